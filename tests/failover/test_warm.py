"""Connections opened in advance at a real Postfix, counted in its own log; and at one that is killed."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import session, until
from tests.e2e.conftest import Begin
from tests.failover.killing import Killer, Traffic, carry
from tests.failover.test_killed_servers import assert_nobody_noticed
from tests.failover.test_max_connections import LIMIT, most_in_log
from tests.lab import Postfix
from tests.lab.fixtures import Lab

UNCHECKED = {"check": {"level": "off"}}


def connects(server: Postfix) -> int:
    return len(server.log_lines("]: connect from"))


async def test_the_first_message_needs_no_new_connection(lab: Lab, begin: Begin) -> None:
    server = await asyncio.to_thread(lab.start, Postfix("warm"))
    balancer = await asyncio.to_thread(
        begin, Smtplb({"relays": pool(server, connections={"warm": 3}, **UNCHECKED)})
    )
    await until(lambda: connects(server) == 3, "three connections in the log")
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("250")
        assert (await client.send()).startswith("250")
    assert connects(server) == 3
    balancer.terminate()
    await asyncio.to_thread(balancer.wait_exit)
    await until(lambda: len(server.log_lines("]: disconnect from")) == 3, "their ends in the log")
    ends = server.log_lines("]: disconnect from")
    assert all(re.search(r"ehlo=1 (mail=2 rcpt=2 data=2 )?quit=1 ", line) for line in ends), ends
    assert server.log_lines("lost connection") == []


@pytest.mark.parametrize("workers", [1, 2])
async def test_they_take_no_place_from_who_waits_and_killing_a_server_changes_nothing(
    lab: Lab, begin: Begin, workers: int
) -> None:
    servers = [await asyncio.to_thread(lab.start, Postfix(name)) for name in ("one", "two")]
    settings = {"max_connections": LIMIT, "queue": {"timeout": "60s"}, "connections": {"warm": LIMIT}}
    balancer = await asyncio.to_thread(
        begin, Smtplb({"relays": pool(*servers, **settings, **UNCHECKED)}, sections={"workers": workers})
    )
    traffic = Traffic(balancer.port, messages=400, sessions=24, per_session=3)
    killer = Killer(list(servers[:1]), 0.5)
    books = await carry(traffic, killer, list(servers))
    most = [most_in_log(server) for server in servers]
    FIGURES.info("%d workers, %d kills: most at a time %s; %s", workers, killer.kills, most, books.line())
    assert max(most) <= LIMIT
    assert_nobody_noticed(books, balancer)
