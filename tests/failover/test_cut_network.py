"""Connections that are cut at any octet, in either direction, and arrive in splinters: the books agree all the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.conftest import Begin
from tests.failover.killing import Traffic, settled_books
from tests.failover.network import Weather, network
from tests.failover.test_killed_servers import assert_nobody_noticed, senders_in_doubt
from tests.lab import Exim, Mta, Postfix, Sendmail
from tests.lab.fixtures import Lab

MESSAGES, SESSIONS, BODY_BYTES = 300, 10, 3000
SHORT = {"max_transactions": 5}  # so that many connections meet the weather


def bad_weather(seed: int) -> Callable[[], Weather]:
    """Most connections end in the middle of something: a command, the body, the dot, a reply."""
    random = Random(seed)

    def next_one() -> Weather:
        weather = Weather(piece=random.choice((1 << 16, 1 << 16, 1000, 100)))
        kind = random.random()
        if kind < 0.5:
            weather.cut_after_to = random.randrange(1, 3 * BODY_BYTES)
        elif kind < 0.9:
            weather.cut_after_from = random.randrange(1, 1000)
        return weather

    return next_one


async def test_every_message_arrives_through_bad_weather_in_front_of_one_of_two(
    lab: Lab, begin: Begin
) -> None:
    """The other one is well: nobody hears anything but what was in doubt."""
    servers: list[Mta] = [await asyncio.to_thread(lab.start, Postfix(name)) for name in ("far", "near")]
    async with network(servers[0].port, bad_weather(1)) as between:
        entries = [
            {"name": "far", "address": between.address},
            {"name": "near", "address": servers[1].address},
        ]
        balancer = await asyncio.to_thread(
            begin, Smtplb({"relays": pool(*entries, check={"level": "off"}, connections=SHORT)})
        )
        traffic = Traffic(balancer.port, messages=MESSAGES, sessions=SESSIONS, body_bytes=BODY_BYTES)
        books = await settled_books(await traffic.run(), servers)
        FIGURES.info("%d of %d connections cut: %s", between.cuts, between.accepted, books.line())
        assert between.cuts >= 30
        assert_nobody_noticed(books, balancer)


@pytest.mark.parametrize("seed", [2, 3])
async def test_the_books_agree_where_every_way_is_bad(lab: Lab, begin: Begin, seed: int) -> None:
    """Three kinds of servers, none of them well: clients have to come again, yet nothing is lost nor doubled without a record."""
    servers: list[Mta] = [await asyncio.to_thread(lab.start, kind()) for kind in (Postfix, Exim, Sendmail)]
    async with AsyncExitStack() as ways:
        between = [
            await ways.enter_async_context(network(server.port, bad_weather(seed * 10 + at)))
            for at, server in enumerate(servers)
        ]
        entries = [
            {"name": server.name, "address": way.address, "mta": server.kind}
            for server, way in zip(servers, between, strict=True)
        ]
        balancer = await asyncio.to_thread(
            begin, Smtplb({"relays": pool(*entries, check={"level": "off"}, connections=SHORT)})
        )
        traffic = Traffic(balancer.port, messages=MESSAGES, sessions=SESSIONS, body_bytes=BODY_BYTES)
        books = await settled_books(await traffic.run(), servers)
        FIGURES.info("%d connections cut: %s", sum(way.cuts for way in between), books.line())
        doubts = senders_in_doubt(balancer)
        told = Counter(
            sent.sender
            for sent in books.sent
            for reply in sent.errors
            if reply.startswith("451 4.4.2 No answer")
        )
        assert told == doubts
        assert all(reply.startswith("451 4.") for reply in books.errors), books.errors
        assert books.lost == []
        sender_of = {sent.message_id: sent.sender for sent in books.sent}
        assert all(times <= 1 + doubts[sender_of[which]] for which, times in books.doubled.items())
