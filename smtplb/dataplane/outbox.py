"""Who has something to write this turn: all of it leaves at the end of the turn, one write for each.

Owns the order in which they write, and when. Does not own what is written, nor the transports (session.py, connection.py).
Invariant: who was added is told once, before the loop waits again.

A write wakes whoever reads at the other end. Spread over a turn, each may find its reader asleep again, and waking costs more than
the write; together they find it awake. docs/decisions/data-path.md has the figures.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from smtplb.compiled import trait

MAX_SPEAKERS: Final = 64  # then the first need not wait for the last
KEPT_BYTES: Final = 32 * 1024  # more for one end is written at once: memory, and the copy that joins it


@trait
class Speaker:
    """Who writes to a transport of its own."""

    @abstractmethod
    def write_out(self) -> None:
        """Write what is there. Called even if there is no transport any more."""

    @abstractmethod
    def write_failed(self, error: Exception) -> None:
        """write_out() raised: a bug of ours."""


class Outbox:
    """One for each loop. `call_soon` is the loop's."""

    __slots__ = ("_call_soon", "_due", "_flush_is_due")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._due: list[Speaker] = []
        self._flush_is_due = False

    def add(self, speaker: Speaker) -> None:
        """To be called once until write_out() follows, which may be inside this call."""
        due = self._due
        due.append(speaker)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._call_soon(self.end_of_turn)
        elif len(due) >= MAX_SPEAKERS:
            self._flush()

    def end_of_turn(self) -> None:
        """What call_soon calls; tests that let time jump within a turn call it themselves."""
        self._flush_is_due = False
        self._flush()

    def write_now(self, speaker: Speaker) -> None:
        """Before the end of the turn, for who will have no transport then."""
        try:
            speaker.write_out()
        except Exception as error:
            speaker.write_failed(error)

    def _flush(self) -> None:
        """Each is told, whatever becomes of the others."""
        due, self._due = self._due, []
        second: Exception | None = None
        for speaker in due:
            try:
                self.write_now(speaker)
            except Exception as error:
                second = error
        if second is not None:
            raise second
