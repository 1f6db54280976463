"""Which backend a transaction asks next.

Owns the target, what the transaction needs of a backend, who was asked already, and the rules of design 4.4 applied to that.
Does not own an attempt (attempt.py), answers to the client (transaction.py), or the order inside a pool (policy/balance.py).
Invariant: no backend is chosen twice; one that lacks what the transaction uses is passed over and nobody's fault.
"""

from __future__ import annotations

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.router import Target
from smtplb.policy.retry import Attempts, BackendKey


class Search:
    """One for each transaction and target. `needs`: extensions that the transaction uses."""

    __slots__ = (
        "_binding",
        "_last_resort",
        "_preferred",
        "_skip",
        "attempts",
        "busy",
        "needs",
        "size_bytes",
        "target",
    )

    def __init__(
        self,
        target: Target,
        binding: Binding,
        attempts_limit: int,
        needs: frozenset[bytes],
        size_bytes: int,
        preferred: BackendKey | None,
    ) -> None:
        """`preferred`: where this message was told to come again (policy/affinity.py)."""
        self._preferred = preferred
        self.target = target
        self._binding = binding
        self.needs = needs
        self.size_bytes = size_bytes
        self.attempts = Attempts(attempts_limit)
        self._skip: list[Backend] = []
        self._last_resort = False
        self.busy = False  # after next_backend(): somebody could be asked, but has no room now

    def next_backend(self) -> Backend | None:
        """The backend of the next attempt; it counts as asked."""
        backend = self._choose()
        if backend is not None:
            self._skip.append(backend)
        return backend

    @property
    def choosy(self) -> bool:
        """Some backend will not be asked (any more)."""
        return bool(self._skip)

    def _choose(self) -> Backend | None:
        binding = self._binding
        if binding.pinned is not None:
            # The one that authenticated the client, on the connection on which it did (design 4.2).
            there = not binding.pinned_lost and not self._skip
            named = self.target.backend_named(binding.pinned.key) if there else None
            return named if named is binding.pinned else None  # another one may have its name after a reload
        if self._preferred is not None and (wished := self._wished(self._preferred)) is not None:
            return wished
        if binding.sticky is not None and (wished := self._wished(binding.sticky.key)) is not None:
            return wished
        self.busy = False
        passed_over: list[Backend] = []
        while True:
            backend = self.target.choose(
                [*self._skip, *passed_over] if passed_over else self._skip, last_resort=self._last_resort
            )
            if backend is None:
                return None
            if not self._able(backend):
                self._skip.append(backend)
            elif not backend.has_room(binding):
                self.busy = True
                passed_over.append(backend)
            else:
                return backend

    def _wished(self, key: BackendKey) -> Backend | None:
        wished = self.target.backend_sharing(key)
        if (
            wished is not None
            and wished not in self._skip
            and wished.standing.usable
            and self._able(wished)
            and wished.has_room(self._binding)
        ):
            return wished
        return None

    def _able(self, backend: Backend) -> bool:
        if not self.needs and not self.size_bytes:
            return True
        return not backend.lacks(self.needs, self.size_bytes) and (
            b"REQUIRETLS" not in self.needs or backend.verifies_tls
        )

    @property
    def others_left(self) -> bool:
        """While the present attempt runs: another backend could be asked after it."""
        return self.attempts.count < self.attempts.limit and self.another_left

    @property
    def another_left(self) -> bool:
        """next_backend() would find somebody. An authenticated session has one backend only."""
        return self._binding.pinned is None and self.target.others_or_last_resort_left(self._skip)

    def widen(self) -> bool:
        """Nothing usable is left, and there are no words to relay: from now on those that are down or ejected may be asked.
        Checks lag, and one that is well again may not be known to be. False: there is none."""
        self._last_resort = self._binding.pinned is None and self.target.last_resort_left(self._skip)
        return self._last_resort
