"""Messages that were told to come again go where they were told so, but not against the operator's word."""

from __future__ import annotations

import asyncio

from smtplb.cli.embedded import Fault, Verb
from tests.e2e.balancer import Smtplb, pool
from tests.e2e.client import session, until
from tests.e2e.conftest import Begin, Embed


async def test_a_retry_reaches_the_backend_that_asked_for_it(begin: Begin, embed: Embed) -> None:
    backends = [await embed(f"mx{number}") for number in range(1, 4)]
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}))
    for backend in backends:
        backend.faults[Verb.RCPT] = Fault(f"450 4.2.0 greylisted by {backend.name}")
    async with session(balancer.port) as client:
        for number in range(9):
            reply = await client.send(sender=f"s{number}@a.test")
            name = reply.rpartition(" ")[2]
            for backend in backends:
                backend.faults.pop(Verb.RCPT, None)
            await client.say("RSET")
            assert (await client.send(sender=f"s{number}@a.test")).startswith("250")
            (taker,) = (backend for backend in backends if backend.counts.messages)
            assert taker.name == name
            taker.counts.messages = 0
            for backend in backends:
                backend.faults[Verb.RCPT] = Fault(f"450 4.2.0 greylisted by {backend.name}")


async def test_after_a_retry_was_taken_the_three_stay_where_they_are_known(
    begin: Begin, embed: Embed
) -> None:
    """For a day: at any other backend greylisting would begin anew."""
    backends = [await embed(f"mx{number}") for number in range(1, 4)]
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}))
    for backend in backends:
        backend.faults[Verb.RCPT] = Fault("450 4.2.0 greylisted", times=1)
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("450")
        await client.say("RSET")
        for backend in backends:
            backend.faults.clear()
        for _ in range(10):
            assert (await client.send()).startswith("250")
    assert sorted(backend.counts.messages for backend in backends) == [0, 0, 10]


async def test_a_retry_does_not_reach_a_pool_that_waits_for_fail_back(begin: Begin, embed: Embed) -> None:
    east, west = await embed("east1"), await embed("west1")
    pools = {
        name: pool({"name": backend.name, "address": backend.address})
        for name, backend in (("east", east), ("west", west))
    }
    group = {"mode": "active-passive", "pools": ["east", "west"], "failback": {"mode": "manual"}}
    balancer = await asyncio.to_thread(begin, Smtplb(pools, groups={"site": group}))
    east.faults[Verb.RCPT] = Fault("450 4.2.0 greylisted")
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("450")
        await client.say("RSET")
        await east.kill()
        await asyncio.to_thread(balancer.wait_state, "east1", "down")
        east.faults.clear()
        await east.start()
        await asyncio.to_thread(balancer.wait_state, "east1", "up")
        await until(lambda: balancer.group("site")["active"] == ["west"], "load stays in the west")
        assert (await client.send()).startswith("250")
    assert (east.counts.messages, west.counts.messages) == (0, 1)
