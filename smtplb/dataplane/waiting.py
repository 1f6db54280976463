"""Transactions that wait until some backend of their target has room.

Owns the order of waiting and its bounds. Does not own connections (backend.py) nor what a transaction does with its turn.
Invariant: first come, first served, but for room that the first cannot use; a transaction waits in at most one place, and not
longer than the pool's queue timeout.
"""

from __future__ import annotations

from typing import Protocol

from smtplb.dataplane.deadlines import Deadlines, Waiter


class Waiting(Protocol):
    """The transaction, as the queue sees it."""

    @property
    def choosy(self) -> bool:
        """Not every backend will do: where there is no room for it, there may be some for those behind it."""

    def room_found(self) -> bool:
        """Try again; False: there was no room for it after all, and it keeps its place."""

    def waited_too_long(self) -> None: ...


class Place(Waiter):
    """A place in a queue, with its deadline."""

    __slots__ = ("_queue", "who")

    def __init__(self, queue: Queue, who: Waiting) -> None:
        super().__init__()
        self._queue = queue
        self.who = who

    def deadline_passed(self, now: float) -> None:
        self._queue.leave(self)
        self.who.waited_too_long()


class Queue:
    """Of one target. `length` 0: nobody waits."""

    __slots__ = ("_deadlines", "_places", "_serving", "length", "timeout_s")

    def __init__(self, deadlines: Deadlines, length: int, timeout_s: float) -> None:
        self._deadlines = deadlines
        self._places: dict[Place, None] = {}  # in order
        self._serving = False
        self.length = length
        self.timeout_s = timeout_s

    def __len__(self) -> int:
        return len(self._places)

    def join(self, who: Waiting) -> Place | None:
        """None: the queue is full."""
        if len(self._places) >= self.length:
            return None
        place = Place(self, who)
        self._places[place] = None
        self._deadlines.set(place, self._deadlines.clock() + self.timeout_s)
        return place

    def leave(self, place: Place) -> None:
        self._places.pop(place, None)
        self._deadlines.disarm(place)

    def serve(self) -> None:
        """There is room somewhere: let those in front have it."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._serve_one():
                pass
        finally:
            self._serving = False

    def _serve_one(self) -> bool:
        """The first that finds room; nobody else is asked once one found none that would have taken any."""
        for place in self._places:
            if place.who.room_found():
                self.leave(place)
                return True
            if not place.who.choosy:
                return False
        return False
