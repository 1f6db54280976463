"""Passive health: from what workers tell of answers and blame to backends taken out and let in again.

Owns one Ejection and one BlackHoles per pool and the alarms for their ends. Does not own backend state (registry.py), nor the rules
(policy/ejection.py, policy/black_hole.py).
Invariant: what the registry holds as ejected is what the pools' Ejections hold.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from smtplb.controlplane.alarm import Alarm
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import BackendKey, BackendsAnswered, Observed
from smtplb.observe.events import BackendBlamed, Event, Notice
from smtplb.policy.black_hole import BlackHoles
from smtplb.policy.ejection import Ejection
from smtplb.policy.limits import ClientKey, client_key, network_key
from smtplb.settings import BackendSettings, TrafficSettings


class Ejector:
    """`set_ejected` takes (backend, seconds it will be out or None, why)."""

    def __init__(
        self,
        traffic: TrafficSettings,
        *,
        deadlines: Deadlines,
        set_ejected: Callable[[BackendKey, float | None, str], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._deadlines = deadlines
        self._set_ejected = set_ejected
        self._reached = _backends(traffic)
        self._emit = emit
        now = deadlines.clock()
        self._pools = {
            pool.name: Ejection(pool.eject, [backend.name for backend in pool.backends], now)
            for pool in traffic.pools
            if pool.eject is not None
        }
        self._black_holes = {
            pool.name: BlackHoles([backend.name for backend in pool.backends], now) for pool in traffic.pools
        }
        self._refusals = {pool.name for pool in traffic.pools if pool.eject and pool.eject.refusals}
        self._alarm = Alarm(deadlines, self._time_is_over)

    def change(self, traffic: TrafficSettings) -> list[BackendKey]:
        """A reload. What is known of a backend stays where its pool's `eject` does and it is reached as before. Those that were
        out and are let in, since nobody knows any more why, are given back.
        """
        now = self._deadlines.clock()
        before, self._pools = self._pools, {}
        reached, self._reached = self._reached, _backends(traffic)
        freed = {(name, each) for name, ejection in before.items() for each in ejection.out}
        holes, self._black_holes = self._black_holes, {}
        self._refusals = {pool.name for pool in traffic.pools if pool.eject and pool.eject.refusals}
        for pool in traffic.pools:
            stays = {
                backend.name: (old := reached.get(backend.key)) is not None and old.reached_like(backend)
                for backend in pool.backends
            }
            self._black_holes[pool.name] = holes.get(pool.name) or BlackHoles([], now)
            self._black_holes[pool.name].keep(stays)
            if pool.eject is None:
                continue
            ejection = before.get(pool.name)
            if ejection is None or ejection.settings != pool.eject:
                ejection = Ejection(pool.eject, [], now)
            ejection.keep(stays)
            self._pools[pool.name] = ejection
            freed -= {(pool.name, each) for each in ejection.out}
        self._arm()
        return [key for key in freed if key in self._reached]

    def answered(self, message: BackendsAnswered) -> None:
        now = self._deadlines.clock()
        for (pool, backend), count in message.counts.items():
            if self._looks_at(pool, backend):
                self._pools[pool].succeeded(backend, now, count)
        observed = {key: seen for key, seen in message.observed.items() if key in self._reached}
        for key, seen in observed.items():
            self._observed(key, seen, now)
        for pool in {pool for pool, _ in observed}:
            self._tell_black_holes(pool, now)

    def _observed(self, key: BackendKey, seen: Observed, now: float) -> None:
        pool, backend = key
        ejection = self._pools.get(pool)
        if ejection is not None and (seen.quick or seen.slow):
            reason = ejection.finals(backend, seen.quick, [_network(client) for client in seen.slow], now)
            if reason is not None:
                self._take_out(key, reason, now)
        clients = {_client(client) for client in seen.refused_clients}
        self._black_holes[pool].answered(backend, seen.taken, seen.refused, clients, now)

    def _tell_black_holes(self, pool: str, now: float) -> None:
        holes = self._black_holes[pool]
        for backend, words in holes.found().items():
            fields: dict[str, str | int | float] = {"pool": pool, "backend": backend}
            self._emit(Notice("warning", "black-hole", f"{pool}/{backend}: {words}", fields))
            if pool in self._refusals and self._pools[pool].refuses(backend, now):
                holes.start_over(backend)
                self._take_out((pool, backend), words, now)

    def blamed(self, event: BackendBlamed) -> None:
        if not self._looks_at(event.pool, event.backend):
            return
        ejection = self._pools[event.pool]
        now = self._deadlines.clock()
        reason = ejection.blamed(event.backend, _network(event.client), now)
        if reason is not None:
            self._take_out((event.pool, event.backend), f"{reason}, last: {event.reason}", now)

    def _take_out(self, key: BackendKey, reason: str, now: float) -> None:
        until_s = self._pools[key[0]].until_s(key[1])
        assert until_s is not None
        self._set_ejected(key, until_s - now, reason)
        self._arm()

    def _looks_at(self, pool: str, backend: str) -> bool:
        """Workers may still tell of one that a reload took out."""
        return pool in self._pools and (pool, backend) in self._reached

    def close(self) -> None:
        self._alarm.off()

    def _time_is_over(self) -> None:
        now = self._deadlines.clock()
        for name, ejection in self._pools.items():
            for backend in ejection.due(now):
                self._set_ejected((name, backend), None, "time of ejection is over")
        self._arm()

    def _arm(self) -> None:
        self._alarm.off()
        times = [ejection.next_due_s for ejection in self._pools.values() if ejection.next_due_s is not None]
        if times:
            self._alarm.set(min(times))


def _backends(traffic: TrafficSettings) -> dict[BackendKey, BackendSettings]:
    return {backend.key: backend for pool in traffic.pools for backend in pool.backends}


def _client(client: str) -> ClientKey | None:
    try:
        return client_key(ip_address(client))
    except ValueError:
        return None


def _network(client: str) -> ClientKey | None:
    """None: behind a unix socket, or unknown to us: all of those count as one."""
    try:
        return network_key(ip_address(client))
    except ValueError:
        return None
