"""Connections to one backend that are opened before anybody needs them (`connections.warm`).

Owns when one is opened ahead, and how long after trouble none is. Does not own the connections, nor whether one more fits
(backend.py): to the backend they are connections like any other, in the same containers and under the same limits.
Invariant: nothing is opened ahead at a backend that is not usable, while somebody waits for a connection, or before the rest
after a failure is over.

What fails here is nobody's mail: it is not told to the control plane, so it ejects nobody. Checks see the same trouble.
"""

from __future__ import annotations

from typing import Protocol

AT_ONCE = 2  # openings under way ahead of need: a backend that comes back is not met by all of `warm` at the same moment
REST_S = 1.0  # after a failure; twice as long after each further one
MAX_REST_S = 60.0


class Hearth(Protocol):
    """The backend, as this file sees it."""

    @property
    def usable(self) -> bool: ...

    @property
    def ready(self) -> int:
        """Connections that the next transaction can have at once."""

    @property
    def coming(self) -> int:
        """Connections that come up and that nobody waits for; below 0 while more wait than come."""

    def open_ahead(self) -> bool:
        """Open one if a further one is allowed."""


class Warming:
    """See the module. top_up() is called every now and then, by the worker's pulse."""

    __slots__ = ("_backend", "_count", "_failures", "_rest_until_s")

    def __init__(self, backend: Hearth, count: int) -> None:
        self._backend = backend
        self._count = count
        self._failures = 0  # since it was last not usable, or at rest for MAX_REST_S without trouble
        self._rest_until_s = 0.0

    def top_up(self, now: float) -> None:
        backend = self._backend
        if not backend.usable:
            self._failures, self._rest_until_s = 0, 0.0  # what it was is no longer what it will be
            return
        if now < self._rest_until_s:
            return
        while 0 <= backend.coming < AT_ONCE and backend.ready + backend.coming < self._count:
            if not backend.open_ahead():
                return

    def failed(self, now: float) -> None:
        """A connection did not come up, whoever it was for, or ended before anybody had used it."""
        if now < self._rest_until_s:
            return  # one that was under way when the first failed: the same trouble
        if now > self._rest_until_s + MAX_REST_S:
            self._failures = 0
        self._failures += 1
        # The power is bounded, too: a backend may fail for weeks.
        self._rest_until_s = now + min(REST_S * 2.0 ** min(self._failures - 1, 10), MAX_REST_S)
