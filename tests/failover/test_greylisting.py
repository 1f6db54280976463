"""Greylisting backends without a shared database: a retry goes where the first try was, so it is known there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from smtplb.dataplane.worker import PULSE_S
from smtplb.policy.affinity import MAX_ENTRIES, TEMPFAIL_AGE_S, Affinity
from tests.dataplane.harness import FakeStage
from tests.dataplane.setup import Setup
from tests.e2e.balancer import Json, Smtplb, pool
from tests.e2e.conftest import Begin
from tests.failover.test_taken_out import send_from, source
from tests.lab import Postfix
from tests.lab.fixtures import Lab

SENDERS = 24
SECRET = b"0123456789abcdef"


class Greylist:
    """A policy server of Postfix (SMTPD_POLICY_README): whom it does not know has to come again."""

    def __init__(self) -> None:
        self.port = 0
        self.known: set[tuple[str, str]] = set()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        facts: dict[str, str] = {}
        try:
            while line := (await reader.readline()).decode():
                name, _, value = line.rstrip("\n").partition("=")
                if name:
                    facts[name] = value
                    continue
                triplet = facts["sender"], facts["recipient"]
                action = "dunno" if triplet in self.known else "450 4.2.0 greylisted"
                self.known.add(triplet)
                facts = {}
                writer.write(f"action={action}\n\n".encode())
        except ConnectionError:
            pass
        finally:
            writer.close()
            del self._open[task]

    async def end(self) -> None:
        """Postfix keeps its connections."""
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)


@asynccontextmanager
async def greylist() -> AsyncIterator[Greylist]:
    policy = Greylist()
    server = await asyncio.start_server(policy.serve, "127.0.0.1", 0)
    policy.port = server.sockets[0].getsockname()[1]
    try:
        yield policy
    finally:
        server.close()
        await policy.end()


@pytest.mark.measured
@pytest.mark.parametrize("workers", [1, 2])
async def test_no_message_has_to_come_a_third_time(lab: Lab, begin: Begin, workers: int) -> None:
    """Two Postfix, each with a greylist of its own; senders from networks of their own, in several sessions."""
    async with greylist() as first, greylist() as second:
        servers = [
            await asyncio.to_thread(
                lab.start,
                Postfix(
                    name,
                    main_cf={
                        "smtpd_recipient_restrictions": f"check_policy_service inet:127.0.0.1:{policy.port}, "
                        "permit_mynetworks, reject"
                    },
                ),
            )
            for name, policy in (("one", first), ("two", second))
        ]
        balancer = await asyncio.to_thread(
            begin, Smtplb({"relays": pool(*servers)}, sections={"workers": workers})
        )
        senders = [f"s{number}@a.test" for number in range(SENDERS)]
        for number, sender in enumerate(senders):
            reply = await send_from(balancer.port, source(1 + number), sender=sender)
            assert reply.startswith("450 4.2.0")
        assert len(first.known) + len(second.known) == SENDERS
        assert workers > 1 or len(first.known) == len(second.known)
        await others_meanwhile(balancer, 2 * PULSE_S)
        shares = len(first.known), len(second.known)
        for number, sender in enumerate(reversed(senders)):
            # Another host of the same network, as large senders do.
            address = source(SENDERS - number, host=99)
            assert (await send_from(balancer.port, address, sender=sender)).startswith("250"), sender
        assert (len(first.known), len(second.known)) == shares, "each retry went where the first try was"


async def others_meanwhile(balancer: Smtplb, seconds: float) -> None:
    """Retries come after minutes, this is enough: what one worker remembers the others hear with its next pulse."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        await send_from(balancer.port, source(200), sender="other@a.test")


async def test_where_its_backend_is_gone_a_retry_goes_elsewhere(lab: Lab, begin: Begin) -> None:
    grey = {"smtpd_recipient_restrictions": "check_sender_access static:{450 4.2.0 later}, reject"}
    first = await asyncio.to_thread(lab.start, Postfix("one", main_cf=grey))
    other = await asyncio.to_thread(lab.start, Postfix("two"))
    entries: list[Json] = [
        {"name": "one", "address": first.address},
        {"name": "two", "address": other.address, "backup": True},
    ]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}))
    assert (await send_from(balancer.port, source(1))).startswith("450 4.2.0")
    await asyncio.to_thread(first.kill_hard)
    assert (await send_from(balancer.port, source(1))).startswith("250")


def grey_stage(**setup: object) -> FakeStage:
    stage = FakeStage(Setup(pools={"p": "A B D"}, limits={"idle_timeout_s": 100_000.0}, **setup))  # type: ignore[arg-type]
    for mta in stage.mtas.values():
        mta.verdicts["grey@b.test"] = "450 4.2.0 grey"
    return stage


def asked(stage: FakeStage, sender: str = "s@a.test", recipient: str = "grey@b.test") -> str:
    """The backend that a transaction was brought to."""
    before = {name: len(mta.commands) for name, mta in stage.mtas.items()}
    client = stage.client().hello()
    client.ask(f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>")
    mail = f"MAIL FROM:<{sender}>"
    (found,) = [name for name, mta in stage.mtas.items() if mail in mta.commands[before[name] :]]
    client.ask("QUIT")
    return found


@pytest.mark.parametrize("verdict", ["450 4.2.0 grey", "451 4.7.1 grey", "450 grey"])
def test_450_and_451_are_remembered_for_a_day(verdict: str) -> None:
    stage = grey_stage()
    for mta in stage.mtas.values():
        mta.verdicts["grey@b.test"] = verdict
    first = asked(stage)
    for _ in range(4):
        asked(stage, sender="other@a.test", recipient="fine@b.test")
        stage.clock(3 * 3600.0)
        assert asked(stage) == first
    stage.finish()


def test_after_a_day_it_is_anybody_again() -> None:
    stage = grey_stage()
    first = asked(stage)
    stage.clock(TEMPFAIL_AGE_S + 1)
    assert {asked(stage, recipient="fine@b.test") for _ in range(3)} == {"A", "B", "D"}
    assert first in "ABD"
    stage.finish()


@pytest.mark.parametrize("verdict", ["452 4.5.3 too many", "550 5.1.1 unknown", "250 2.1.5 fine"])
def test_other_verdicts_are_not(verdict: str) -> None:
    stage = grey_stage()
    for mta in stage.mtas.values():
        mta.verdicts["grey@b.test"] = verdict
    assert {asked(stage) for _ in range(3)} == {"A", "B", "D"}
    stage.finish()


def test_the_table_is_bounded_and_the_oldest_goes_first() -> None:
    table = Affinity(SECRET)
    keys = [table.key(None, b"s%d@a.test" % number, b"r@b.test") for number in range(MAX_ENTRIES + 10)]
    for key in keys:
        table.remember(key, ("p", "A"), 100.0)
    assert len(table) == MAX_ENTRIES
    assert table.recall(keys[9], 0.0) is None
    assert table.recall(keys[10], 0.0) == ("p", "A")


def test_keys_hold_nobody_s_address_and_differ_between_processes() -> None:
    first, second = Affinity(SECRET), Affinity(SECRET[::-1])
    key = first.key(None, b"anna@a.test", b"bert@b.test")
    assert b"anna" not in key
    assert len(key) == 12
    assert key != second.key(None, b"anna@a.test", b"bert@b.test")
    assert key == first.key(None, b"ANNA@a.test", b"bert@B.TEST"), "case of addresses means nothing here"
    assert key != first.key(None, b"anna@a.testb", b"ert@b.test")


def test_workers_tell_each_other_what_they_remember_and_not_what_they_were_told() -> None:
    first, second = Affinity(SECRET, shared=True), Affinity(SECRET, shared=True)
    key = first.key(None, b"s@a.test", b"r@b.test")
    first.remember(key, ("p", "A"), 100.0)
    first.remember(key, ("p", "B"), 200.0, once=True)
    second.learn(first.take_fresh())
    assert first.take_fresh() == []
    assert second.take_fresh() == [], "else it would go round for ever"
    assert second.recall(key, 150.0) == ("p", "B")
    assert second.recall(key, 150.0) is None, "once"
    second.remember(key, ("p", "A"), 300.0)
    assert second.take_fresh() == [(key, ("p", "A"), 300.0, False)]


def test_a_worker_alone_keeps_no_list_of_news() -> None:
    table = Affinity(SECRET)
    table.remember(table.key(None, b"s@a.test", b"r@b.test"), ("p", "A"), 100.0)
    assert table.take_fresh() == []
