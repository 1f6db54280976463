"""Backends whose checks are good and whose mail fails: taken out by what clients of several networks met, and let in again."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from smtplb.cli.embedded import EmbeddedBackend, Fault, Verb
from tests.e2e.balancer import FIGURES, Json, Smtplb, pool, unix_time
from tests.e2e.client import Client, until
from tests.e2e.conftest import Begin, Embed

FOR_S, MAX_FOR_S = 0.5, 1.2
EJECT = {"after": 5, "for": "500ms", "max_for": "1200ms"}
BROKEN = Fault(drop=True)  # hangs up when it is told of a recipient, while another one takes it
DEBUG_LOG = {"log": {"format": "ecs", "level": "debug", "destination": "./smtplb.log"}}
SLACK_S = 1.0  # for a machine under load


def source(network: int, host: int = 1) -> str:
    """127.1.1.1 and 127.2.1.1 are in different /24."""
    return f"127.{network}.1.{host}"


async def send_from(port: int, address: str, sender: str = "a@a.test") -> str:
    """One message in a session of its own; the last word."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
    try:
        assert (await client.reply()).startswith("220")
        assert (await client.say("EHLO client.test")).startswith("250")
        reply = await client.send(sender=sender)
        assert (await client.quit()).startswith("221")
        return reply
    finally:
        client.close()


async def start(begin: Begin, backends: list[EmbeddedBackend], **settings: Any) -> Smtplb:
    entries: list[Json] = [
        {"name": backend.name, "address": backend.address, **settings.pop(backend.name, {})}
        for backend in backends
    ]
    sections = {**DEBUG_LOG, **settings.pop("sections", {})}
    if len(backends) > 1:
        settings.setdefault("eject", EJECT)
    balancer = Smtplb({"relays": pool(*entries, **settings)}, sections=sections)
    return await asyncio.to_thread(begin, balancer)


def changes(balancer: Smtplb, name: str) -> list[tuple[str, float]]:
    """New states of a backend and when, in order."""
    return [
        (record["smtplb.state.new"], unix_time(record["@timestamp"]))
        for record in balancer.records("backend-changed")
        if record["smtplb.backend"] == name and record["smtplb.state.old"] != record["smtplb.state.new"]
    ]


@pytest.mark.parametrize(("workers", "times"), [(1, 3), (2, 1)])
async def test_faults_met_by_five_networks_take_it_out_for_longer_each_time(
    begin: Begin, embed: Embed, workers: int, times: int
) -> None:
    sick, well = await embed("sick", {Verb.RCPT: BROKEN}), await embed("well")
    balancer = await start(begin, [sick, well], sections={"workers": workers})
    told: list[str] = []

    def times_out() -> int:
        return [state for state, _ in changes(balancer, "sick")].count("ejected")

    number = 0
    async with asyncio.timeout(30):
        while times_out() < times:
            number += 1
            told.append(await send_from(balancer.port, source(number % 7)))
    assert all(reply.startswith("250") for reply in told), "no client noticed"
    assert well.counts.messages == len(told)
    assert sick.counts.messages == 0
    out = (await asyncio.to_thread(balancer.backends))["sick"]
    assert out["state"] == "ejected"
    assert out["usable"] is False
    assert out["reason"].startswith("traffic: 5 clients in a row met a fault")
    sick.faults.clear()
    await asyncio.to_thread(balancer.wait_state, "sick", "up")
    seen = changes(balancer, "sick")
    stays = [
        back - gone
        for (state, gone), (following, back) in pairwise(seen)
        if (state, following) == ("ejected", "up")
    ]
    FIGURES.info("out for %s s", [round(stay, 2) for stay in stays])
    for stay, wanted in zip(stays, (FOR_S, 2 * FOR_S, MAX_FOR_S)[:times], strict=True):
        assert wanted - 0.05 <= stay <= wanted + SLACK_S
    for _ in range(4):  # each worker has a turn of its own
        assert (await send_from(balancer.port, source(1))).startswith("250")
    assert sick.counts.messages in range(1, 4), "it takes its share again"


async def test_one_client_with_a_whole_network_and_three_others_take_nobody_out(
    begin: Begin, embed: Embed
) -> None:
    sick, well = await embed("sick", {Verb.RCPT: BROKEN}), await embed("well")
    balancer = await start(begin, [sick, well])
    for host in range(1, 31):
        assert (await send_from(balancer.port, source(1, host))).startswith("250")
        assert (await send_from(balancer.port, source(1 + host % 2))).startswith("250")
    assert set((await asyncio.to_thread(balancer.states)).values()) == {"up"}
    blamed = balancer.records("backend-blamed")
    assert len(blamed) >= 20, "its faults were proven, time and again"
    assert {record["smtplb.backend"] for record in blamed} == {"sick"}


async def test_one_that_stands_still_behind_the_final_dot_is_taken_out_while_its_messages_wait(
    begin: Begin, embed: Embed
) -> None:
    """Its checks are good, and it fails nobody for the 12 minutes of `timeouts.final`."""
    still, well = await embed("still", {Verb.FINAL: Fault(delay_s=600.0)}), await embed("well")
    balancer = await start(begin, [still, well], eject={"for": "1m"})
    sent = [asyncio.create_task(send_from(balancer.port, source(number % 6))) for number in range(2 * 21)]
    await asyncio.to_thread(balancer.wait_state, "still", "ejected")
    out = (await asyncio.to_thread(balancer.backends))["still"]
    FIGURES.info("%s", out["reason"])
    assert out["reason"].endswith("messages waited over 5 s for their answer")
    assert well.counts.messages == sum(task.done() for task in sent) == 21
    for _ in range(5):
        assert (await send_from(balancer.port, source(9))).startswith("250")
    for task in sent:
        task.cancel()


ALIKE = {
    "tempfail": Fault("450 4.2.0 come again"),
    "storage": Fault("451 4.3.0 queue file write error"),
    "busy": Fault("421 4.3.2 busy"),
    "policy": Fault("421 4.7.0 not from you"),
    "death": Fault(drop=True),
}


@pytest.mark.parametrize("verb", [Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.BODY, Verb.FINAL])
async def test_what_every_backend_answers_alike_takes_nobody_out_whoever_sends_it(
    begin: Begin, embed: Embed, verb: Verb
) -> None:
    """Clients of twelve networks, mail that every backend defers, or dies of: it is the mail, or a thing they share."""
    backends = [await embed(f"mx{number}") for number in range(3)]
    balancer = await start(begin, backends, eject={**EJECT, "after": 2})
    asked: dict[str, float] = {}
    for kind, fault in ALIKE.items():
        for backend in backends:
            backend.faults[verb] = fault
        before = sum(backend.counts.connections_total for backend in backends)
        for number in range(12):
            reply = await send_from(balancer.port, source(number), sender=f"{kind}{number}@a.test")
            assert reply[:4] in ("450 ", "451 "), (kind, reply)
        after = sum(backend.counts.connections_total for backend in backends)
        asked[kind] = (after - before) / 12
    assert set((await asyncio.to_thread(balancer.states)).values()) == {"up"}
    assert balancer.records("backend-blamed") == []
    FIGURES.info("%s: connections for each message: %s", verb, asked)
    assert max(asked.values()) <= 4, (
        "a message that kills is shown to two backends, to each once more on a fresh connection"
    )


async def test_no_more_are_out_than_at_most(begin: Begin, embed: Embed) -> None:
    """Three of four are sick, 50 % may be out: the third one stays in."""
    backends = [await embed(f"sick{number}", {Verb.RCPT: BROKEN}) for number in range(3)]
    backends.append(await embed("well"))
    balancer = await start(begin, backends, eject={**EJECT, "for": "60s", "max_for": "60s"})
    for number in range(120):
        reply = await send_from(balancer.port, source(number % 13))
        # Two that are lost at the same command are not followed by a third: it may be the message.
        assert reply.startswith(("250", "451 4.4.2"))
    states = await asyncio.to_thread(balancer.states)
    assert sorted(states.values()) == ["ejected", "ejected", "up", "up"]
    assert states["well"] == "up"


async def test_the_last_one_of_a_pool_stays_in(begin: Begin, embed: Embed) -> None:
    sick = await embed("sick", {Verb.RCPT: BROKEN})
    balancer = await start(begin, [sick])
    for number in range(10):
        assert (await send_from(balancer.port, source(number))).startswith("451 4.4.2")
    assert await asyncio.to_thread(balancer.states) == {"sick": "up"}
    sick.faults.clear()
    assert (await send_from(balancer.port, source(1))).startswith("250")


async def test_one_that_is_out_takes_mail_when_the_others_die(begin: Begin, embed: Embed) -> None:
    """It is well again, but its time is not over; and nobody knows yet that the other one is dead."""
    sick, well = await embed("sick", {Verb.RCPT: BROKEN}), await embed("well")
    slow_check = {"interval": "60s", "timeout": "1s"}
    balancer = await start(
        begin, [sick, well], eject={**EJECT, "for": "60s", "max_for": "60s"}, check=slow_check
    )
    for number in range(12):
        assert (await send_from(balancer.port, source(number))).startswith("250")
    await asyncio.to_thread(balancer.wait_state, "sick", "ejected")
    sick.faults.clear()
    await well.kill()
    for number in range(5):
        assert (await send_from(balancer.port, source(number))).startswith("250")
    assert sick.counts.messages == 5
    assert await asyncio.to_thread(balancer.states) == {"sick": "ejected", "well": "up"}


async def test_one_that_comes_back_starts_slowly(begin: Begin, embed: Embed) -> None:
    sick, well = await embed("sick", {Verb.RCPT: BROKEN}), await embed("well")
    balancer = await start(
        begin,
        [sick, well],
        sick={"weight": 10},
        well={"weight": 10},
        policy="weighted",
        slow_start="2s",
    )
    number = 0
    while "ejected" not in (await asyncio.to_thread(balancer.states)).values():
        number += 1
        assert (await send_from(balancer.port, source(number % 7))).startswith("250")
    sick.faults.clear()
    await asyncio.to_thread(balancer.wait_state, "sick", "slow-start")
    weights: list[int] = []
    shares: dict[int, list[int]] = {}  # effective weight -> messages sent, of these at the one that came back
    while (state := (await asyncio.to_thread(balancer.backends))["sick"])["state"] == "slow-start":
        weight = int(state["effective_weight"])
        weights.append(weight)
        before = sick.counts.messages
        for _ in range(5):
            assert (await send_from(balancer.port, source(1))).startswith("250")
        sent = shares.setdefault(weight, [0, 0])
        sent[0] += 5
        sent[1] += sick.counts.messages - before
    assert state["state"] == "up"
    assert state["effective_weight"] == 10
    assert weights == sorted(weights)
    assert weights[0] <= 3
    assert len(set(weights)) >= 5
    FIGURES.info("effective weight: messages, of these at the one that came back: %s", shares)
    low = [count for weight, count in shares.items() if weight <= 3]
    assert sum(mine for _, mine in low) <= 0.35 * sum(total for total, _ in low)
    await until(lambda: [s for s, _ in changes(balancer, "sick")][-2:] == ["slow-start", "up"], "both told")
