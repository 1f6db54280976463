"""Backends that refuse nearly every recipient while the others of their pool do not: a black hole for mail.

Owns the counts of recipients by backend, and when they say so. Does not own what is done about it (controlplane/ejector.py).
Invariant: of a pool with one backend nothing is ever said, since there is nobody to compare it with; a backend is told of
once until it does better again.

Such a backend passes its checks, answers at once, and so draws ever more mail under least-connection. Its refusals are
verdicts, which no ejection counts; but that all of many clients are wrong there and right elsewhere is no verdict on them.
"""

from __future__ import annotations

from collections.abc import Collection

from smtplb.policy.limits import ClientKey

WINDOW_S = 300.0  # counts are over one to two of these
LEAST_RECIPIENTS = 50  # at the backend, and at the others together; fewer say nothing
LEAST_CLIENTS = 10  # that were refused
REFUSES, OTHERS_REFUSE = 0.9, 0.3  # above, and below


class _Count:
    __slots__ = ("clients", "old_clients", "old_refused", "old_taken", "refused", "taken")

    def __init__(self) -> None:
        self.taken = self.refused = self.old_taken = self.old_refused = 0
        self.clients: set[ClientKey | None] = set()
        self.old_clients: set[ClientKey | None] = set()

    def turn_window(self) -> None:
        self.old_taken, self.old_refused, self.old_clients = self.taken, self.refused, self.clients
        self.taken = self.refused = 0
        self.clients = set()

    @property
    def all_refused(self) -> int:
        return self.refused + self.old_refused

    @property
    def all(self) -> int:
        return self.all_refused + self.taken + self.old_taken


class BlackHoles:
    """Of one pool."""

    def __init__(self, backends: list[str], now: float) -> None:
        self._counts = {name: _Count() for name in backends}
        self._told: set[str] = set()
        self._window_end_s = now + WINDOW_S

    def keep(self, backends: dict[str, bool]) -> None:
        """These are the pool's from now on; True: what is known of it stays."""
        self._counts = {
            name: self._counts[name] if stays and name in self._counts else _Count()
            for name, stays in backends.items()
        }
        self._told = {name for name in self._told if backends.get(name)}

    def answered(
        self, backend: str, taken: int, refused: int, clients: Collection[ClientKey | None], now: float
    ) -> None:
        """So many recipients were answered; `clients`: some of those that were refused."""
        if now >= self._window_end_s:
            turns = 1 if now < self._window_end_s + WINDOW_S else 2  # behind a long silence all of it is old
            self._window_end_s = now + WINDOW_S
            for each in list(self._counts.values()) * turns:
                each.turn_window()
        count = self._counts[backend]
        count.taken += taken
        count.refused += refused
        for client in clients:
            if len(count.clients) < LEAST_CLIENTS:
                count.clients.add(client)

    def found(self) -> dict[str, str]:
        """Those that are black holes since now, with words. To be asked when all backends were counted."""
        now = {name for name, count in self._counts.items() if self._is_one(name, count)}
        fresh, self._told = now - self._told, now
        return {name: self._words(self._counts[name]) for name in sorted(fresh)}

    @staticmethod
    def _words(count: _Count) -> str:
        return f"{count.all_refused} of {count.all} recipients refused while others take them"

    def start_over(self, backend: str) -> None:
        """It was taken out: only what it does from then on counts."""
        self._counts[backend] = _Count()
        self._told.discard(backend)

    def _is_one(self, backend: str, count: _Count) -> bool:
        if count.all < LEAST_RECIPIENTS or count.all_refused <= REFUSES * count.all:
            return False
        if len(count.clients | count.old_clients) < LEAST_CLIENTS:
            return False
        others = [other for name, other in self._counts.items() if name != backend]
        recipients = sum(other.all for other in others)
        refused = sum(other.all_refused for other in others)
        return recipients >= LEAST_RECIPIENTS and refused < OTHERS_REFUSE * recipients
