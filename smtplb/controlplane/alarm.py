"""One thing to do at one time, on the shared timing wheel.

Owns nothing but the callback. Does not own the wheel (dataplane/deadlines.py).
Invariant: an alarm rings at most once per `set`, never before its time, and never after `off`.
"""

from __future__ import annotations

from collections.abc import Callable

from smtplb.dataplane.deadlines import NEVER, Deadlines, Waiter


class Alarm(Waiter):
    __slots__ = ("_deadlines", "_ring")

    def __init__(self, deadlines: Deadlines, ring: Callable[[], None]) -> None:
        super().__init__()
        self._deadlines = deadlines
        self._ring = ring

    def set(self, at_s: float) -> None:
        """Ring at this time of the wheel's clock, instead of whenever it would have rung."""
        self._deadlines.set(self, at_s)

    def off(self) -> None:
        self._deadlines.disarm(self)

    @property
    def armed(self) -> bool:
        return self.deadline_s != NEVER

    def deadline_passed(self, now: float) -> None:
        self._ring()
