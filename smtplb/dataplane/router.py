"""From the facts of a recipient to a target, and from a target to the backend of the next attempt.

Owns the pools, groups and routes of a worker, and in which order a target's pools are asked. Does not own shares (the
control plane sends them), conditions (policy/routing.py), picks inside a pool (pool.py), or attempts (transaction.py).
Invariant: a snapshot is applied whole; a choice is never a backend that is in `skip`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.pool import Pool
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.dataplane.waiting import Queue
from smtplb.messages import BackendKey, Snapshot
from smtplb.observe.outcomes import Phase
from smtplb.policy.affinity import Affinity
from smtplb.policy.balance import Weighted
from smtplb.policy.outcome import Reason
from smtplb.policy.routing import Facts, holds
from smtplb.policy.rule_index import RuleIndex
from smtplb.settings import Condition, RefuseReply, RouteSettings, TrafficSettings
from smtplb.smtp.address import is_postmaster


class _Share:
    """A pool with its share, as a candidate of the weighted policy."""

    __slots__ = ("in_flight", "pool", "weight")

    def __init__(self, pool: Pool, weight: int) -> None:
        self.pool = pool
        self.weight = weight
        self.in_flight = 0


class Target:
    """A pool, or a group as the latest snapshot shares it out."""

    __slots__ = ("_order", "_shares", "_sharing", "queue")

    def __init__(self, runtime: Runtime) -> None:
        self.queue = Queue(runtime.deadlines, 0, 0.0)
        self._order: list[Pool] = []  # every pool, those with the largest shares first
        self._shares: dict[str, _Share] = {}
        self._sharing: Weighted[_Share] = Weighted()

    def apply(self, shares: list[tuple[Pool, int]]) -> None:
        kept = {}
        for pool, share in shares:
            name = pool.settings.name
            old = self._shares.get(name)
            if share > 0:
                if old is None or old.pool is not pool:
                    old = _Share(pool, share)
                old.weight = share  # in place: what it has waited for stays its own
                kept[name] = old
        self._shares = kept
        self._sharing.update(list(kept.values()))
        # sorted() is stable: pools without a share keep the order of preference.
        self._order = [pool for pool, _ in sorted(shares, key=lambda entry: -entry[1])]
        # One queue for the target: who waits takes the first room in any of its pools.
        waiting = [pool.settings.queue for pool in self._order if pool.limited]
        self.queue.length = max((queue.length for queue in waiting), default=0)
        self.queue.timeout_s = max((queue.timeout_s for queue in waiting), default=0.0)
        self.queue.serve()

    @property
    def pools(self) -> list[Pool]:
        return self._order

    @property
    def usable(self) -> bool:
        return any(pool.usable for pool in self._order)

    @property
    def worth_a_try(self) -> bool:
        """Some backend is down or ejected, but takes connections."""
        return any(b.standing.last_resort and b.standing.reachable for b in self.backends)

    @property
    def backends(self) -> list[Backend]:
        return [backend for pool in self._order for backend in pool.backends.values()]

    def choose(self, skip: Sequence[Backend], *, last_resort: bool = False) -> Backend | None:
        """The backend for the next attempt: by share first, then any usable one in order of preference, then, while
        nothing at all is usable or as a `last_resort`, one that is down or ejected."""
        first: Pool | None
        if skip:
            first = self._pool_of(
                skip
            )  # a further attempt stays in the pool of the one before, while that has others
        elif len(self._shares) == 1:
            first = next(iter(self._shares.values())).pool
        else:
            share = self._sharing.pick(())
            first = share.pool if share is not None else None
        if first is not None and (backend := first.choose(skip)) is not None:
            return backend
        for pool in self._order:
            if pool is not first and (backend := pool.choose(skip)) is not None:
                return backend
        if self.usable and not last_resort:
            return None
        for pool in self._order:
            if (backend := pool.choose_last_resort(skip)) is not None:
                return backend
        return None

    def backend_named(self, key: BackendKey | None) -> Backend | None:
        if key is None:
            return None
        for pool in self._order:
            if pool.settings.name == key[0]:
                return pool.backends.get(key[1])
        return None

    def backend_sharing(self, key: BackendKey) -> Backend | None:
        """backend_named(), but only in a pool that takes load now: wishes never undo a fail-over."""
        return self.backend_named(key) if key[0] in self._shares else None

    def too_large(self, size_bytes: int) -> bool:
        """No backend takes a message of this size, by what each last said."""
        return all(backend.lacks(frozenset(), size_bytes) for backend in self.backends)

    def _pool_of(self, skip: Sequence[Backend]) -> Pool | None:
        name = skip[-1].settings.pool
        return next((pool for pool in self._order if pool.settings.name == name), None)

    def others_left(self, skip: Sequence[Backend]) -> bool:
        return any(pool.others_left(skip) for pool in self._order)

    def others_or_last_resort_left(self, skip: Sequence[Backend]) -> bool:
        """A further choose() would find somebody."""
        return self.others_left(skip) or (not self.usable and self.last_resort_left(skip))

    def last_resort_left(self, skip: Sequence[Backend]) -> bool:
        return any(pool.last_resort_left(skip) for pool in self._order)


class Route:
    """Ordered rules; the first that holds decides."""

    __slots__ = ("_index", "_last", "_rules", "targets")

    def __init__(self, settings: RouteSettings, targets: dict[str, Target]) -> None:
        self._rules: list[tuple[Condition | None, Target | RefuseReply]] = []
        self.targets: list[Target] = []
        for rule in settings.rules:
            if rule.target is not None:
                target = targets[rule.target]
                self._rules.append((rule.when, target))
                if target not in self.targets:
                    self.targets.append(target)
            elif rule.refuse is not None:
                self._rules.append((rule.when, rule.refuse))
        self._index = RuleIndex([when for when, _ in self._rules])
        # RCPT TO:<postmaster> has no domain to go by: the last `to` takes it.
        self._last = next(where for _, where in reversed(self._rules) if isinstance(where, Target))

    def decide(self, facts: Facts) -> Target | RefuseReply:
        if is_postmaster(facts.recipient):
            return self._last
        for number in self._index.candidates(facts.recipient):
            when, where = self._rules[number]
            if when is None or holds(when, facts):
                return where
        return self._last  # config sees to it that the last rule has no `when`


class Router:
    """All targets by name."""

    __slots__ = (
        "_configuration",
        "_former_backends",
        "_former_pools",
        "_former_targets",
        "_runtime",
        "_scoreboard",
        "affinity",
        "generation",
        "pools",
        "routes",
        "targets",
    )

    def __init__(
        self, runtime: Runtime, scoreboard: Scoreboard | None = None, affinity: Affinity | None = None
    ) -> None:
        """`affinity`: one that other workers are told of; without it nobody is."""
        self._runtime = runtime
        self._scoreboard = scoreboard
        self.pools: dict[str, Pool] = {}
        self.targets: dict[str, Target] = {}
        self.routes: dict[str, Route] = {}
        self.affinity = affinity if affinity is not None else Affinity(secrets.token_bytes(16))
        self.generation = 0
        self._configuration = -1
        # Taken out by reloads. Pools: by name, for their counters and for transactions that began there. Backends: the last of
        # each name for its counters, and all that still have something under way. Targets: while somebody waits there.
        self._former_pools: dict[str, Pool] = {}
        self._former_backends: list[Backend] = []
        self._former_targets: list[Target] = []

    def apply(self, snapshot: Snapshot) -> None:
        """Take a snapshot: standings and shares, and at the first one and after a reload what there is at all."""
        changed = snapshot.configuration != self._configuration
        if changed:
            self._configuration = snapshot.configuration
            self._take_pools(snapshot.traffic)
        for pool in self.pools.values():
            pool.apply(snapshot.standings)
        for name, pool in self.pools.items():
            self._target(name).apply([(pool, 1)])
        for group, shares in snapshot.shares.items():
            self._target(group).apply([(self.pools[pool], share) for pool, share in shares])
        if changed:
            self._drop_targets({*self.pools, *snapshot.shares})
            self.routes = {route.name: Route(route, self.targets) for route in snapshot.traffic.routes}
        self.generation = snapshot.generation

    def _take_pools(self, traffic: TrafficSettings) -> None:
        before, self.pools = self.pools, {}
        gone: list[Backend] = []
        for settings in traffic.pools:
            pool = before.pop(settings.name, None) or self._former_pools.pop(settings.name, None)
            if pool is None:
                pool = Pool(self._runtime, settings, self._room_in, self._scoreboard)
            else:
                gone += pool.change(settings)
            self.pools[settings.name] = pool
        for name, pool in before.items():
            self._former_pools[name] = pool
            for backend in pool.backends.values():
                backend.dismiss()
                gone.append(backend)
        self._dismissed(gone)

    def _dismissed(self, gone: list[Backend]) -> None:
        """Counters stay with a name: they never fall, and go on if it comes back."""
        former = {backend.key: backend for backend in [*self._former_backends, *gone]}
        for pool in self.pools.values():
            for backend in pool.backends.values():
                counted = former.get(backend.key)
                if counted is not None and counted is not backend:
                    backend.count_like(counted)
        known = [backend for backend in self._former_backends if backend.connections or backend.in_use]
        self._former_backends = [*dict.fromkeys([*known, *gone, *former.values()])]

    def _drop_targets(self, names: set[str]) -> None:
        for name in [name for name in self.targets if name not in names]:
            self._former_targets.append(self.targets.pop(name))
        self._former_targets = [target for target in self._former_targets if len(target.queue)]

    def _target(self, name: str) -> Target:
        target = self.targets.get(name)
        if target is None:
            target = self.targets[name] = Target(self._runtime)
        return target

    @property
    def _waited_at(self) -> list[Target]:
        return [*self.targets.values(), *self._former_targets]

    @property
    def _all_backends(self) -> list[Backend]:
        """Those that a reload took out, too."""
        return [*self.backends, *self._former_backends]

    def _room_in(self, pool: Pool) -> None:
        for target in self._waited_at:
            if len(target.queue) and pool in target.pools:
                target.queue.serve()

    def look_for_room(self) -> bool:
        """Among workers: serve who waits, if there is room now. True while somebody waits."""
        waiting = False
        for backend in self._all_backends:
            waiting = backend.look_for_room() or waiting
        for target in self._waited_at:
            target.queue.serve()
            waiting = waiting or len(target.queue) > 0
        for pool in self.pools.values():
            queued = sum(len(target.queue) for target in self.targets.values() if pool in target.pools)
            for backend in pool.backends.values():
                backend.yield_room(queued)
        return waiting

    def reachable(self, name: str) -> list[Target]:
        """Every target that mail to `name` (pool, group or route) can end at."""
        route = self.routes.get(name)
        return route.targets if route is not None else [self.targets[name]]

    @property
    def connections(self) -> int:
        """To all backends, those that are ending included."""
        return sum(backend.connections for backend in self._all_backends)

    @property
    def in_use(self) -> int:
        """Attempts of this worker that are under way at any backend."""
        return sum(backend.in_use for backend in self._all_backends)

    @property
    def backends(self) -> list[Backend]:
        return [backend for pool in self.pools.values() for backend in pool.backends.values()]

    def keep_warm(self, now: float) -> None:
        """Open connections ahead of need, where that is configured."""
        for pool in self.pools.values():
            for warming in pool.warmings:
                warming.top_up(now)

    def retire_idle(self) -> None:
        for backend in self._all_backends:
            backend.retire_idle()

    def lease_waited(self, pool: str, seconds: float) -> None:
        self._pool(pool).lease_wait_s.observe(seconds)

    def retried(self, pool: str, phase: Phase, reason: Reason) -> None:
        self._pool(pool).count_retry(phase.value, reason.value)

    def _pool(self, name: str) -> Pool:
        return self.pools.get(name) or self._former_pools[name]

    def close(self) -> None:
        for backend in self._all_backends:
            backend.close()
