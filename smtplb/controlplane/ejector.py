"""Passive health: from what workers tell of answers and blame to backends taken out and let in again.

Owns one Ejection per pool and the alarms for their ends. Does not own backend state (registry.py), nor the rules
(policy/ejection.py).
Invariant: what the registry holds as ejected is what the pools' Ejections hold.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from smtplb.controlplane.alarm import Alarm
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import BackendKey, BackendsAnswered
from smtplb.observe.events import BackendBlamed
from smtplb.policy.ejection import Ejection
from smtplb.policy.limits import ClientKey, network_key
from smtplb.settings import BackendSettings, TrafficSettings


class Ejector:
    """`set_ejected` takes (backend, seconds it will be out or None, why)."""

    def __init__(
        self,
        traffic: TrafficSettings,
        *,
        deadlines: Deadlines,
        set_ejected: Callable[[BackendKey, float | None, str], None],
    ) -> None:
        self._deadlines = deadlines
        self._set_ejected = set_ejected
        self._reached = _backends(traffic)
        now = deadlines.clock()
        self._pools = {
            pool.name: Ejection(pool.eject, [backend.name for backend in pool.backends], now)
            for pool in traffic.pools
            if pool.eject is not None
        }
        self._alarm = Alarm(deadlines, self._time_is_over)

    def change(self, traffic: TrafficSettings) -> list[BackendKey]:
        """A reload. What is known of a backend stays where its pool's `eject` does and it is reached as before. Those that were
        out and are let in, since nobody knows any more why, are given back.
        """
        now = self._deadlines.clock()
        before, self._pools = self._pools, {}
        reached, self._reached = self._reached, _backends(traffic)
        freed = {(name, each) for name, ejection in before.items() for each in ejection.out}
        for pool in traffic.pools:
            if pool.eject is None:
                continue
            ejection = before.get(pool.name)
            if ejection is None or ejection.settings != pool.eject:
                ejection = Ejection(pool.eject, [], now)
            ejection.keep(
                {
                    backend.name: (old := reached.get(backend.key)) is not None and old.reached_like(backend)
                    for backend in pool.backends
                }
            )
            self._pools[pool.name] = ejection
            freed -= {(pool.name, each) for each in ejection.out}
        self._arm()
        return [key for key in freed if key in self._reached]

    def answered(self, message: BackendsAnswered) -> None:
        now = self._deadlines.clock()
        for (pool, backend), count in message.counts.items():
            if self._looks_at(pool, backend):
                self._pools[pool].succeeded(backend, now, count)

    def blamed(self, event: BackendBlamed) -> None:
        if not self._looks_at(event.pool, event.backend):
            return
        ejection = self._pools[event.pool]
        now = self._deadlines.clock()
        reason = ejection.blamed(event.backend, _network(event.client), now)
        until_s = ejection.until_s(event.backend)
        if reason is not None and until_s is not None:
            self._set_ejected((event.pool, event.backend), until_s - now, f"{reason}, last: {event.reason}")
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


def _network(client: str) -> ClientKey | None:
    """None: behind a unix socket, or unknown to us: all of those count as one."""
    try:
        return network_key(ip_address(client))
    except ValueError:
        return None
