"""Several workers are one balancer: what has to be right for all of them is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import session, until
from tests.e2e.conftest import Begin, Embed
from tests.e2e.test_killed_worker import sessions_of, workers_of

BACKENDS = 4
SESSIONS = 12
TRIES = 5  # the kernel gives all sessions to one worker once in 2 ** 11 times


async def test_least_connection_counts_the_transactions_of_all_workers(begin: Begin, embed: Embed) -> None:
    backends = [await embed(f"mx{number}") for number in range(BACKENDS)]
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = Smtplb({"relays": pool(*entries, policy="least-connection")}, sections={"workers": 3})
    await asyncio.to_thread(begin, balancer)
    assert await asyncio.to_thread(balancer.is_ready)
    for _ in range(TRIES):
        async with AsyncExitStack() as stack:
            for number in range(SESSIONS):
                client = await stack.enter_async_context(session(balancer.port))
                assert (await client.say("MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>")).startswith("250")
                found = await asyncio.to_thread(balancer.backends)
                under_way = sorted(each["in_flight"] for each in found.values())
                assert sum(under_way) == number + 1
                assert under_way[-1] - under_way[0] <= 1, under_way
            spread = [sessions_of(pid, balancer) for pid in workers_of(balancer)]

        def all_over() -> bool:
            return not any(each["in_flight"] for each in balancer.backends().values())

        await until(all_over, "all are gone")
        if sum(count > 0 for count in spread) > 1:
            break
    FIGURES.info("%d sessions over workers %s, at backends %s", SESSIONS, spread, under_way)
    assert sum(count > 0 for count in spread) > 1


async def test_each_worker_stays_on_its_processor(begin: Begin, embed: Embed) -> None:
    backend = await embed("only")
    entry = {"name": backend.name, "address": backend.address}
    ours = sorted(os.sched_getaffinity(0))
    count = min(len(ours) + 1, 64)  # the last one shares the first one's
    sections = {"workers": count, "worker_cpu_affinity": True}
    balancer = Smtplb({"relays": pool(entry)}, sections=sections)
    await asyncio.to_thread(begin, balancer)
    assert await asyncio.to_thread(balancer.is_ready)
    everybody = sorted([*ours, *ours][:count])
    await until(lambda: bound(workers_of(balancer)) == everybody, "each is where it stays")
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("250")


def bound(pids: Iterable[int]) -> list[int]:
    """The processors that each of them may use."""
    return sorted(number for pid in pids for number in os.sched_getaffinity(pid))


async def test_auto_is_a_worker_for_each_processor(begin: Begin, embed: Embed) -> None:
    backend = await embed("only")
    entry = {"name": backend.name, "address": backend.address}
    balancer = Smtplb({"relays": pool(entry)}, sections={"workers": "auto"})
    await asyncio.to_thread(begin, balancer)
    assert await asyncio.to_thread(balancer.is_ready)
    processors = len(os.sched_getaffinity(0))
    if processors > 1:
        assert len(workers_of(balancer)) == processors
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("250")
    workers = workers_of(balancer)
    # A worker ends with the supervisor, however that ended.
    await asyncio.to_thread(balancer.kill_main)
    await until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), "none outlives it")
