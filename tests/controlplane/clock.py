"""A clock that stands still until it is told to go, and a timing wheel that runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from smtplb.dataplane.deadlines import TICK_S, Deadlines


class _NoTimer(asyncio.TimerHandle):
    def __init__(self) -> None:
        pass

    def cancel(self) -> None:
        pass


def _never(delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return _NoTimer()


class FakeClock:
    """`now` is the wheel's time and, `WALL` later, unix time."""

    WALL = 1_700_000_000.0

    def __init__(self) -> None:
        self.now = 1000.0
        self.deadlines = Deadlines(lambda: self.now, _never)

    def wall(self) -> float:
        return self.WALL + self.now

    def go(self, seconds: float) -> None:
        """Let time pass, in steps of the wheel: what one deadline sets off is seen by the next."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + TICK_S, end)
            self.deadlines.advance(self.now)
        self.deadlines.advance(self.now + TICK_S)  # the wheel is late by a tick at most
