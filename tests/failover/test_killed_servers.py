"""Real Postfix, killed whole and started again under load: nobody hears of it but those whose message was in doubt."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.failover.killing import Books, Killer, Traffic, carry
from tests.lab import Mta, Postfix
from tests.lab.fixtures import Lab

SESSIONS = 20


async def killed_under_load(
    lab: Lab, servers: int, messages: int, every_s: float, **settings: Any
) -> tuple[Books, Smtplb, Killer]:
    """The first of them is the victim."""
    started: list[Mta] = [
        await asyncio.to_thread(lab.start, Postfix(f"mx{number}")) for number in range(1, servers + 1)
    ]
    balancer = await asyncio.to_thread(lab.start, Smtplb({"relays": pool(*started)}, **settings))
    killer = Killer(started[:1], every_s)
    traffic = Traffic(balancer.port, messages=messages, sessions=SESSIONS)
    books = await carry(traffic, killer, started)
    FIGURES.info(
        "%d Postfix, %d kills, %.1f s, %d sessions opened: %s",
        servers,
        killer.kills,
        traffic.duration_s,
        traffic.opened,
        books.line(),
    )
    assert balancer.complaints() == []
    return books, balancer, killer


def senders_in_doubt(balancer: Smtplb) -> Counter[str]:
    """By our log: of each record of a message in doubt, the sender of its transaction."""
    senders = {
        record["smtplb.transaction.id"]: record["email.from.address"]
        for record in balancer.records("transaction-ended")
        if record.get("smtplb.digest")
    }
    return Counter(
        senders[record["smtplb.transaction.id"]]
        for record in balancer.records("attempt-failed")
        if record["smtplb.outcome"] == "in_doubt"
    )


def assert_nobody_noticed(books: Books, balancer: Smtplb) -> None:
    """No error but in doubt, each with its record; none lost; doubled only what a record speaks of."""
    doubts = senders_in_doubt(balancer)
    assert all(reply.startswith("451 4.") for reply in books.errors), books.errors
    assert Counter(sent.sender for sent in books.sent for _ in sent.errors) == doubts
    assert (books.lost, books.never_arrived) == ([], [])
    sender_of = {sent.message_id: sent.sender for sent in books.sent}
    assert all(times <= 1 + doubts[sender_of[message_id]] for message_id, times in books.doubled.items())


@pytest.mark.parametrize("servers", [2, 3])
async def test_400_messages_while_one_is_killed_again_and_again(lab: Lab, servers: int) -> None:
    books, balancer, killer = await killed_under_load(lab, servers, 400, every_s=0.3)
    assert killer.kills >= 2
    assert_nobody_noticed(books, balancer)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("servers", [2, 3])
async def test_2000_messages_while_one_is_killed_every_second(lab: Lab, servers: int, workers: int) -> None:
    books, balancer, killer = await killed_under_load(
        lab, servers, 2000, every_s=1.0, sections={"workers": workers}
    )
    assert killer.kills >= 2
    assert_nobody_noticed(books, balancer)
