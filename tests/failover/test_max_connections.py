"""max_connections at a real Postfix, counted in its own log: by connections that its processes saw come and go."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.conftest import Begin
from tests.failover.killing import Killer, Traffic, carry, settled_books
from tests.failover.test_killed_servers import assert_nobody_noticed
from tests.lab import Postfix
from tests.lab.fixtures import Lab

LIMIT, SESSIONS, MESSAGES = 4, 24, 300
PATIENT = {"timeout": "60s"}


def most_in_log(server: Postfix) -> int:
    """Connections at a time. A kill ends all of them without a line."""
    now = most = 0
    for line in server.log_lines():
        if "]: connect from" in line:
            now += 1
        elif "]: disconnect from" in line:
            now -= 1
        elif "killed, mark" in line:
            now = 0
        most = max(most, now)
    return most


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_is_never_exceeded_and_everybody_is_served(lab: Lab, begin: Begin, workers: int) -> None:
    """24 sessions, of clients that connect for each message and so keep coming, before two Postfix with 4 connections each."""
    servers = [await asyncio.to_thread(lab.start, Postfix(name)) for name in ("one", "two")]
    settings = {"max_connections": LIMIT, "queue": PATIENT, "check": {"level": "off"}}
    balancer = await asyncio.to_thread(
        begin, Smtplb({"relays": pool(*servers, **settings)}, sections={"workers": workers})
    )
    traffic = Traffic(balancer.port, messages=MESSAGES, sessions=SESSIONS, per_session=3)
    books = await settled_books(await traffic.run(), servers)
    most = [most_in_log(server) for server in servers]
    FIGURES.info("%d workers: most at a time %s; %s", workers, most, books.line())
    assert most == [LIMIT, LIMIT], "all of it, and no more"
    assert not books.errors
    assert (books.lost, books.doubled, books.never_arrived) == ([], {}, [])
    taken = [len(server.accepted()) for server in servers]
    assert min(taken) > (MESSAGES / 4 if workers == 1 else 0), taken


async def test_it_holds_while_one_is_killed(lab: Lab, begin: Begin) -> None:
    servers = [await asyncio.to_thread(lab.start, Postfix(name)) for name in ("one", "two")]
    balancer = await asyncio.to_thread(
        begin,
        Smtplb(
            {"relays": pool(*servers, max_connections=LIMIT, queue=PATIENT, check={"level": "off"})},
        ),
    )
    traffic = Traffic(balancer.port, messages=MESSAGES, sessions=SESSIONS)
    killer = Killer(servers[:1], every_s=0.4)
    books = await carry(traffic, killer, servers)
    most = [most_in_log(server) for server in servers]
    FIGURES.info("%d kills: most at a time %s; %s", killer.kills, most, books.line())
    assert max(most) == LIMIT
    assert_nobody_noticed(books, balancer)


async def test_clients_in_excess_wait_and_postfix_never_has_to_refuse_one(lab: Lab, begin: Begin) -> None:
    """Postfix allows as many connections of one address as it is told here, and answers 421 beyond."""
    main_cf = {
        "smtpd_client_connection_count_limit": str(LIMIT + 2),  # one that is ending, and a check
        "smtpd_client_event_limit_exceptions": "",
    }
    server = await asyncio.to_thread(lab.start, Postfix("strict", main_cf=main_cf))
    balancer = await asyncio.to_thread(
        begin, Smtplb({"relays": pool(server, max_connections=LIMIT, queue=PATIENT)})
    )
    traffic = Traffic(balancer.port, messages=MESSAGES, sessions=SESSIONS, per_session=2)
    books = await settled_books(await traffic.run(), [server])
    assert not books.errors
    assert server.log_lines("Connection concurrency limit exceeded") == []
    FIGURES.info("most at a time in its log: %d of %d", most_in_log(server), LIMIT + 2)
