"""One thing to do at one time, on the shared timing wheel.

Owns nothing but the callback. Does not own the wheel (dataplane/deadlines.py).
Invariant: an alarm rings at most once per `set`, never before its time, and never after `off`.
"""

from __future__ import annotations

from collections.abc import Callable

from smtplb.dataplane.deadlines import NEVER, Deadlines


class Alarm:
    __slots__ = ("_deadlines", "_ring", "deadline_bucket", "deadline_s")

    def __init__(self, deadlines: Deadlines, ring: Callable[[], None]) -> None:
        self._deadlines = deadlines
        self._ring = ring
        self.deadline_s = NEVER
        self.deadline_bucket = 0

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
