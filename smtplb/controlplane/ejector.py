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
from smtplb.settings import TrafficSettings


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
        now = deadlines.clock()
        self._pools = {
            pool.name: Ejection(pool.eject, [backend.name for backend in pool.backends], now)
            for pool in traffic.pools
            if pool.eject is not None
        }
        self._alarm = Alarm(deadlines, self._time_is_over)

    def answered(self, message: BackendsAnswered) -> None:
        now = self._deadlines.clock()
        for (pool, backend), count in message.counts.items():
            if pool in self._pools:
                self._pools[pool].succeeded(backend, now, count)

    def blamed(self, event: BackendBlamed) -> None:
        ejection = self._pools.get(event.pool)
        if ejection is None:
            return
        now = self._deadlines.clock()
        reason = ejection.blamed(event.backend, _network(event.client), now)
        until_s = ejection.until_s(event.backend)
        if reason is not None and until_s is not None:
            self._set_ejected((event.pool, event.backend), until_s - now, f"{reason}, last: {event.reason}")
            self._arm()

    def close(self) -> None:
        self._alarm.off()

    def _time_is_over(self) -> None:
        now = self._deadlines.clock()
        for name, ejection in self._pools.items():
            for backend in ejection.due(now):
                self._set_ejected((name, backend), None, "time of ejection is over")
        self._arm()

    def _arm(self) -> None:
        times = [ejection.next_due_s for ejection in self._pools.values() if ejection.next_due_s is not None]
        if times:
            self._alarm.set(min(times))


def _network(client: str) -> ClientKey | None:
    """None: behind a unix socket, or unknown to us: all of those count as one."""
    try:
        return network_key(ip_address(client))
    except ValueError:
        return None
