"""Deadlines of everything that waits, in one timing wheel with one timer.

Owns when a waiter is told that its time is over. Does not own what happens then.
Invariant: an armed waiter sits in exactly one bucket, at or before its deadline; `disarm` removes it at once.

A deadline is a number on its owner. Moving it later costs nothing: the wheel looks again when the old time comes.
A heap was rejected: it cannot remove, and short sessions would leave their entries behind for the whole idle time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from smtplb.compiled import mypyc_attr

TICK_S: Final = 0.1  # a deadline is told at most this late
NEVER: Final = float("inf")


@mypyc_attr(allow_interpreted_subclasses=True)
class Waiter:
    """`deadline_s` is a time of the wheel's clock or NEVER; `deadline_bucket` belongs to the wheel, 0 while not armed.

    A base class, not a protocol, as are the others of the data plane: compiled code then finds attributes and methods by place.
    """

    __slots__ = ("deadline_bucket", "deadline_s")

    def __init__(self) -> None:
        self.deadline_s = NEVER
        self.deadline_bucket = 0

    def deadline_passed(self, now: float) -> None:
        raise NotImplementedError


class Deadlines:
    """A timing wheel. `clock` tells the time in seconds; `call_later` re-arms the one timer, as loop.call_later does."""

    __slots__ = ("_buckets", "_call_later", "_next_bucket", "_timer", "clock")

    def __init__(
        self,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
    ) -> None:
        self.clock = clock
        self._call_later = call_later
        self._buckets: dict[int, set[Waiter]] = {}
        self._next_bucket = 0  # no bucket below this one holds a waiter
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Deadlines:
        return cls(loop.time, loop.call_later)

    def set(self, waiter: Waiter, deadline_s: float) -> None:
        """Set when `waiter` is to be told; NEVER for not at all. The cheap common case is a deadline that moves later."""
        waiter.deadline_s = deadline_s
        bucket = waiter.deadline_bucket
        if deadline_s == NEVER or (bucket and bucket <= deadline_s / TICK_S + 1):  # _place() rounds up
            return
        self._place(waiter)

    def disarm(self, waiter: Waiter) -> None:
        """Forget the waiter; to be called when it ends."""
        waiter.deadline_s = NEVER
        bucket = waiter.deadline_bucket
        if bucket:
            waiter.deadline_bucket = 0
            members = self._buckets[bucket]
            members.discard(waiter)
            if not members:
                del self._buckets[bucket]

    def advance(self, now: float) -> None:
        """Tell every waiter whose deadline is not after `now`. What the timer calls; tests with a fake clock call it themselves."""
        due = int(now / TICK_S)
        if due - self._next_bucket > len(self._buckets):
            keys = sorted(key for key in self._buckets if key <= due)
        else:
            keys = [key for key in range(self._next_bucket, due + 1) if key in self._buckets]
        self._next_bucket = due + 1
        bug: Exception | None = None
        for key in keys:
            # A waiter told earlier in this turn may have ended others: look again each time.
            members = self._buckets.get(key)
            while members:
                waiter = members.pop()
                waiter.deadline_bucket = 0
                if waiter.deadline_s <= now:
                    waiter.deadline_s = NEVER
                    try:
                        waiter.deadline_passed(now)
                    except Exception as error:  # our bug, in one waiter: the others have deadlines, too
                        bug = error
                elif waiter.deadline_s != NEVER:
                    self._place(waiter)
                members = self._buckets.get(key)
            self._buckets.pop(key, None)
        if bug is not None:
            raise bug

    def close(self) -> None:
        """Stop the timer and forget all waiters."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for members in self._buckets.values():
            for waiter in members:
                waiter.deadline_bucket = 0
        self._buckets.clear()

    def _place(self, waiter: Waiter) -> None:
        if waiter.deadline_bucket:
            deadline_s = waiter.deadline_s
            self.disarm(waiter)
            waiter.deadline_s = deadline_s
        # Rounded up, so that a waiter is never told early; and never into a bucket that was emptied already.
        bucket = int(waiter.deadline_s / TICK_S) + 1
        if bucket < self._next_bucket:
            bucket = self._next_bucket
        if bucket < 1:
            bucket = 1
        waiter.deadline_bucket = bucket
        self._buckets.setdefault(bucket, set()).add(waiter)
        self._arm()

    def _arm(self) -> None:
        # A method of its own: in _turn() mypyc would take `_timer is None` for proven, though what was told may have set it.
        if self._timer is None:
            self._timer = self._call_later(TICK_S, self._turn)

    def _turn(self) -> None:
        self._timer = None
        try:
            self.advance(self.clock())
        finally:
            if self._buckets:
                self._arm()
