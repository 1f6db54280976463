"""A backend that takes two seconds to answer a message does not slow down what the others carry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from smtplb.cli.embedded import EmbeddedBackend, Fault, Taken, Verb
from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import Client, new_message_id, session
from tests.e2e.conftest import Begin, Embed

SLOW_S = 2.0
USUAL_S = 0.1  # what the others take: well above what a loaded machine adds to one message
CLIENTS, MESSAGES = 12, 300
MOST = 1.2
ROUNDS = 3  # a burst of somebody else's load may spoil one


class Crowd:
    """`CLIENTS` in front of three backends; how long each message took, by the backend that took it."""

    def __init__(self, backends: Sequence[EmbeddedBackend], port: int, slow: str) -> None:
        self.took_s: dict[str, list[float]] = {backend.name: [] for backend in backends}
        self._slow = slow
        self._port = port
        self._where: dict[str, str] = {}
        for backend in backends:
            backend.on_message = self._taken

    def _taken(self, message: Taken) -> None:
        self._where[message.message_id] = message.backend

    @property
    def others_s(self) -> list[float]:
        """Sorted."""
        return sorted(s for name, taken in self.took_s.items() if name != self._slow for s in taken)

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        async with session(self._port) as client:
            while sum(len(taken) for name, taken in self.took_s.items() if name != self._slow) < MESSAGES:
                await self._one(client)

    async def _one(self, client: Client) -> None:
        message_id = new_message_id()
        began = time.perf_counter()
        assert (await client.send(message_id, pipelined=True)).startswith("250")
        self.took_s[self._where.pop(message_id)].append(time.perf_counter() - began)

    def p99_s(self) -> float:
        times = self.others_s
        return times[int(len(times) * 0.99)]


async def crowd(begin: Begin, embed: Embed, name: str, third_s: float) -> Crowd:
    delays_s = (USUAL_S, USUAL_S, third_s)
    backends = [
        await embed(f"{name}{number}", {Verb.FINAL: Fault(delay_s=delay_s)})
        for number, delay_s in enumerate(delays_s)
    ]
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = Smtplb({"relays": pool(*entries, policy="least-connection")}, name=name)
    await asyncio.to_thread(begin, balancer)
    return Crowd(backends, balancer.port, slow=backends[2].name)


async def test_p99_at_the_others_moves_by_less_than_a_fifth(begin: Begin, embed: Embed) -> None:
    """Two crowds at the same time, so that what the machine does to one it does to the other: one has a slow backend."""
    even = await crowd(begin, embed, "even", USUAL_S)
    odd = await crowd(begin, embed, "odd", SLOW_S)
    ratios = []
    for _ in range(ROUNDS):
        for each in (even, odd):
            for taken in each.took_s.values():
                taken.clear()
        await asyncio.gather(even.run(), odd.run())
        ratios.append(odd.p99_s() / even.p99_s())
        FIGURES.info(
            "p99 of the others %.1f ms, without a slow one %.1f ms: %.3f; the slow one took %d of %d",
            odd.p99_s() * 1000,
            even.p99_s() * 1000,
            ratios[-1],
            len(odd.took_s["odd2"]),
            sum(map(len, odd.took_s.values())),
        )
        if ratios[-1] <= MOST:
            break
    assert min(ratios) <= MOST, ratios
    slow = odd.took_s["odd2"]
    assert slow, "it has its part"
    assert len(slow) < len(odd.others_s) / 4, "and a small one"
    assert min(slow) == pytest.approx(SLOW_S, abs=1.0)
