"""Who gets how much: three policies under the load of smtp-source, and long sessions."""

from __future__ import annotations

import asyncio
import smtplib
from collections import Counter

import pytest

from smtplb.cli.embedded import EmbeddedBackend, Fault, Verb
from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import new_message_id, until
from tests.e2e.conftest import Begin, Embed
from tests.lab import Exim, Mta, Postfix, Sendmail, SmtpSink, SmtpSource
from tests.lab.fixtures import Lab

MESSAGES, SESSIONS = 3000, 20
LONG_SESSION = 300


def sinks(lab: Lab, count: int) -> list[SmtpSink]:
    return [lab.start(SmtpSink(f"sink{number}")) for number in range(1, count + 1)]


def load(port: int, *, keep_sessions: bool, messages: int = MESSAGES) -> None:
    load_result = SmtpSource.run(port, messages=messages, sessions=SESSIONS, keep_sessions=keep_sessions)
    assert (load_result.returncode, load_result.errors) == (0, ())


def within_one_per_cent(counts: list[int], shares: list[int]) -> bool:
    whole = sum(counts)
    return all(
        abs(count - whole * share / sum(shares)) <= whole * share / sum(shares) / 100
        for count, share in zip(counts, shares, strict=True)
    )


def send_in_one_session(port: int, messages: int) -> list[str]:
    """The ids of the messages, each of which was answered 250."""
    message_ids = [new_message_id() for _ in range(messages)]
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=60) as session:
        for message_id in message_ids:
            session.sendmail("a@a.test", ["b@b.test"], f"Message-ID: {message_id}\r\n\r\nhello\r\n")
    return message_ids


@pytest.mark.parametrize("keep_sessions", [False, True])
def test_round_robin_gives_each_of_three_sinks_a_third_within_one_per_cent(
    lab: Lab, begin: Begin, keep_sessions: bool
) -> None:
    three = sinks(lab, 3)
    balancer = begin(Smtplb({"relays": pool(*three)}))
    load(balancer.port, keep_sessions=keep_sessions)
    counts = [sink.messages() for sink in three]
    assert sum(counts) == MESSAGES
    assert within_one_per_cent(counts, [1, 1, 1]), counts
    FIGURES.info(f"round-robin, keep_sessions={keep_sessions}: {counts}")


@pytest.mark.parametrize("keep_sessions", [False, True])
def test_weights_2_and_3_give_40_and_60_per_cent_within_one_per_cent(
    lab: Lab, begin: Begin, keep_sessions: bool
) -> None:
    two = sinks(lab, 2)
    backends = [
        {"name": sink.name, "address": sink.address, "weight": weight}
        for sink, weight in zip(two, (2, 3), strict=True)
    ]
    balancer = begin(Smtplb({"relays": pool(*backends, policy="weighted")}))
    load(balancer.port, keep_sessions=keep_sessions)
    counts = [sink.messages() for sink in two]
    assert sum(counts) == MESSAGES
    assert within_one_per_cent(counts, [2, 3]), counts
    FIGURES.info(f"weights 2 and 3, keep_sessions={keep_sessions}: {counts}")


async def test_least_connection_gives_a_backend_ten_times_slower_under_a_quarter_of_its_even_share(
    lab: Lab, begin: Begin, embed: Embed
) -> None:
    lab.require(SmtpSource)
    # Long beside what a busy machine adds to each answer, else the slow one is not ten times slower.
    delays_s = {"fast1": 0.2, "fast2": 0.2, "slow": 2.0}
    backends: list[EmbeddedBackend] = [
        await embed(name, {Verb.FINAL: Fault(delay_s=delay_s)}) for name, delay_s in delays_s.items()
    ]
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries, policy="least-connection")}))
    messages = 450
    await asyncio.to_thread(load, balancer.port, keep_sessions=True, messages=messages)
    counts = {backend.name: backend.counts.messages for backend in backends}
    assert sum(counts.values()) == messages
    assert counts["slow"] < messages / 3 / 4, counts
    FIGURES.info(f"least-connection: {counts}")


def test_a_session_of_300_messages_reaches_three_sinks_evenly(lab: Lab, begin: Begin) -> None:
    three = sinks(lab, 3)
    balancer = begin(Smtplb({"relays": pool(*three)}))
    send_in_one_session(balancer.port, LONG_SESSION)
    counts = [sink.messages() for sink in three]
    assert counts == [LONG_SESSION // 3] * 3
    assert sum(listener["sessions"]["total"] for listener in balancer.status()["listeners"]) == 1
    FIGURES.info("one session: %s", counts)


async def test_a_session_of_300_messages_reaches_postfix_exim_and_sendmail_evenly(
    lab: Lab, begin: Begin
) -> None:
    servers: list[Mta] = [await asyncio.to_thread(lab.start, mta()) for mta in (Postfix, Exim, Sendmail)]
    backends = [{"name": mta.name, "address": mta.address, "mta": mta.kind} for mta in servers]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*backends)}))
    message_ids = await asyncio.to_thread(send_in_one_session, balancer.port, LONG_SESSION)
    await until(
        lambda: sum(len(server.accepted()) for server in servers) >= LONG_SESSION, "all messages on record"
    )
    counts: Counter[str] = Counter()
    for server in servers:
        counts.update(message.message_id for message in server.accepted())
    assert counts == Counter(message_ids)
    spread = {server.kind: len(server.accepted()) for server in servers}
    assert set(spread.values()) == {LONG_SESSION // 3}, spread
    FIGURES.info(f"one session: {spread}")
