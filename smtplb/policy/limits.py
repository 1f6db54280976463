"""How much one client may have: sessions at a time, connections, messages and recipients a minute.

Owns the counts by client and by network prefix. Does not own what is answered (policy/refusal.py) nor the listener's total.
Invariant: memory is bounded by MAX_CLIENTS; a client that is forgotten starts with a full allowance, never with less.
A client is an IPv4 address or an IPv6 /64: one host owns a /64. A network is an IPv4 /24 or an IPv6 /56.
"""

from __future__ import annotations

from typing import Final

from smtplb.policy.routing import ClientAddress

MAX_CLIENTS: Final = 100_000

ClientKey = tuple[int, int]  # IP version, address without its host part


def client_key(address: ClientAddress) -> ClientKey:
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (4, int(address)) if address.version == 4 else (6, int(address) >> 64)


def network_key(address: ClientAddress) -> ClientKey:
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (4, int(address) >> 8) if address.version == 4 else (6, int(address) >> 72)


class Rate:
    """At most `per_minute` in any minute, as a bucket that refills evenly."""

    __slots__ = ("_at_s", "_left", "_per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute)
        self._at_s = now

    def take(self, now: float) -> bool:
        """One more; False if the allowance is used up (then nothing is taken)."""
        left = min(self._left + (now - self._at_s) * self._per_minute / 60.0, float(self._per_minute))
        self._at_s = now
        self._left = left - 1.0 if left >= 1.0 else left
        return left >= 1.0


class RateTable:
    """A Rate for each client; the least recently seen are forgotten. `per_minute` None: no limit."""

    __slots__ = ("_per_minute", "_rates", "limited")

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self.limited = per_minute is not None
        self._rates: dict[ClientKey, Rate] = {}

    def take(self, key: ClientKey | None, now: float) -> bool:
        if self._per_minute is None or key is None:
            return True
        rate = self._rates.pop(key, None)
        if rate is None:
            if len(self._rates) >= MAX_CLIENTS:
                del self._rates[next(iter(self._rates))]
            rate = Rate(self._per_minute, now)
        self._rates[key] = rate  # to the end: dicts keep order
        return rate.take(now)


class Presence:
    """Sessions open at a time, by key; bounded by the sessions that are open."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[ClientKey, int] = {}

    def count(self, key: ClientKey) -> int:
        return self._counts.get(key, 0)

    def enter(self, key: ClientKey) -> None:
        self._counts[key] = self._counts.get(key, 0) + 1

    def leave(self, key: ClientKey) -> None:
        left = self._counts[key] - 1
        if left:
            self._counts[key] = left
        else:
            del self._counts[key]
