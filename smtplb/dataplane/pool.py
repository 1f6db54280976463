"""A pool: its backends in tiers, and which of them takes the next transaction.

Owns the candidates a policy may pick from. Does not own policies (policy/balance.py), connections (backend.py) or checks.
Invariant: a choice is a backend of the first tier that has one left; drain, maint and unproven identity are in no tier.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.dataplane.warming import Warming
from smtplb.messages import BackendKey, BackendStanding, PoolReport
from smtplb.observe.histogram import Histogram
from smtplb.policy.balance import Balancer, balancer
from smtplb.settings import PoolSettings


class Pool:
    """Tiers: usable with weight; usable backups; usable with weight 0. Apart: those to be tried when all else is down."""

    __slots__ = (
        "_balancer",
        "_first",
        "_last_resort",
        "_later",
        "_on_room",
        "_retry_balancer",
        "_runtime",
        "_scoreboard",
        "backends",
        "lease_wait_s",
        "limited",
        "retries",
        "settings",
        "warmings",
    )

    def __init__(
        self,
        runtime: Runtime,
        settings: PoolSettings,
        on_room: Callable[[Pool], None],
        scoreboard: Scoreboard | None = None,
    ) -> None:
        self._runtime = runtime
        self._on_room = on_room
        self._scoreboard = scoreboard
        self.settings = settings
        self.backends: dict[str, Backend] = {
            b.name: Backend(runtime, b, settings, scoreboard) for b in settings.backends
        }
        self.limited = False
        self.warmings: list[Warming] = []
        self._note_backends()
        self._balancer: Balancer[Backend] = balancer(settings.policy)
        # Retries take turns of their own: with those of first attempts, two backends of which one fails would see every
        # transaction begin at the bad one.
        self._retry_balancer: Balancer[Backend] = balancer(settings.policy)
        self._first: list[Backend] = []
        self._later: list[Backend] = []
        self._last_resort: list[Backend] = []
        self.retries: dict[tuple[str, str], int] = {}
        self.lease_wait_s = Histogram()

    def change(self, settings: PoolSettings) -> list[Backend]:
        """New settings, by a reload. A backend that is reached as before stays; those that do not are given back, dismissed."""
        before = self.backends
        if settings.policy is not self.settings.policy:
            self._balancer, self._retry_balancer = balancer(settings.policy), balancer(settings.policy)
        self.settings = settings
        self.backends = {}
        for each in settings.backends:
            backend = before.get(each.name)
            if backend is not None and not backend.dismissed and backend.settings.reached_like(each):
                backend.change(each, settings)
            else:
                backend = Backend(self._runtime, each, settings, self._scoreboard)
            self.backends[each.name] = backend
        gone = [
            backend for backend in before.values() if self.backends.get(backend.settings.name) is not backend
        ]
        for backend in gone:
            backend.dismiss()
        self._note_backends()
        return gone

    def _note_backends(self) -> None:
        self.warmings = [b.warming for b in self.backends.values() if b.warming is not None]
        self.limited = any(b.max_connections is not None for b in self.settings.backends)
        for backend in self.backends.values():
            backend.on_room = (lambda: self._on_room(self)) if self.limited else None

    def apply(self, standings: dict[BackendKey, BackendStanding]) -> None:
        """Take the standings of a new snapshot."""
        for backend in self.backends.values():
            backend.stand(standings[backend.key])
        usable = [b for b in self.backends.values() if b.standing.usable]
        tiers = [
            [b for b in usable if not b.settings.backup and b.weight > 0],
            [b for b in usable if b.settings.backup and b.weight > 0],
            [b for b in usable if b.weight == 0],
        ]
        filled = [tier for tier in tiers if tier]
        self._first = filled[0] if filled else []
        self._later = [b for tier in filled[1:] for b in tier]
        self._last_resort = [
            b for b in self.backends.values() if b.standing.last_resort and not b.standing.usable
        ]
        # A tier of weight 0 only: all alike. The policies want weights above 0.
        candidates = [b for b in self._first if b.weight > 0]
        self._balancer.update(candidates)
        self._retry_balancer.update(candidates)

    @property
    def usable(self) -> bool:
        return bool(self._first)

    def choose(self, skip: Collection[Backend]) -> Backend | None:
        """The usable backend for the next attempt, None if every one is in `skip`."""
        picked = (self._retry_balancer if skip else self._balancer).pick(skip)
        if picked is not None:
            return picked
        for tier in (self._first, self._later):
            for backend in tier:
                if backend not in skip:
                    return backend
        return None

    def choose_last_resort(self, skip: Collection[Backend]) -> Backend | None:
        """One that is down or ejected: tried only when nothing of the whole target is usable (design 4.8), or all that is
        has failed the transaction."""
        left = [b for b in self._last_resort if b not in skip]
        return min(left, key=lambda b: b.in_flight, default=None)

    def others_left(self, skip: Collection[Backend]) -> bool:
        """Some usable backend is not in `skip`."""
        return len(self._first) + len(self._later) > len(skip) or any(
            b not in skip for tier in (self._first, self._later) for b in tier
        )

    def last_resort_left(self, skip: Collection[Backend]) -> bool:
        return any(b not in skip for b in self._last_resort)

    def count_retry(self, phase: str, reason: str) -> None:
        key = (phase, reason)
        self.retries[key] = self.retries.get(key, 0) + 1

    def report(self) -> PoolReport:
        return PoolReport(
            pool=self.settings.name, retries=dict(self.retries), lease_wait=self.lease_wait_s.copy()
        )
