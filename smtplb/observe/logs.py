"""The log: one line for each event, in text or as JSON with Elastic Common Schema names.

Owns when lines are written (those of one turn of the loop in one write) and what happens when they cannot be.
Does not own what a line says (lines.py) or the descriptor (outlet.py).
Invariant: emit() neither waits nor raises; each event gives exactly one line or is counted as dropped, and
the log itself says how many were. Not for more than one thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from smtplb.observe.encode import People
from smtplb.observe.events import Event, Notice
from smtplb.observe.lines import LEVELS, json_line, level_of, text_line
from smtplb.observe.outlet import Outlet
from smtplb.settings import LogSettings

FLUSH_AT_BYTES: Final = 64 * 1024  # within one turn; Linux pipes hold as much
MAX_BACKLOG_BYTES: Final = 1024 * 1024  # while the reader is slow; then lines are dropped. Some 1,500 lines
RETRY_S: Final = 0.05
CLOSE_WITHIN_S: Final = 1.0
_MILLISECONDS: Final = [f"{ms:03}Z" for ms in range(1000)]


class LogWriter:
    """OSError from the constructor: the destination cannot be opened."""

    def __init__(
        self,
        settings: LogSettings,
        *,
        outlet: Outlet | None = None,
        clock: Callable[[], float] = time.time,
        key: bytes | None = None,
    ) -> None:
        """`key` makes address marks comparable with another log's; by default they are this writer's own."""
        self._outlet = Outlet(settings.destination) if outlet is None else outlet
        self._text = settings.format == "text" or (settings.format == "auto" and self._outlet.is_terminal)
        self._from_level = LEVELS[settings.level]
        self._people = People(settings.addresses, secrets.token_bytes(32) if key is None else key)
        self._clock = clock
        self._second, self._stamp = -1, ""

        self._lines: list[bytes] = []  # of this turn
        self._lines_bytes = 0
        self._backlog = b""  # was offered to the outlet and not taken yet
        self._mid_line = False  # the last octet that the outlet took did not end a line
        self._cut = False  # ... and the rest of that line was dropped
        self._failing = False  # the last write raised
        self._flush_due = False
        self._retry: asyncio.TimerHandle | None = None
        self._untold = 0  # dropped since the last line that said so
        # How many the line says whose last `_telling_bytes` octets come first in the backlog.
        self._telling = self._telling_bytes = 0
        self.dropped = 0

    def emit(self, event: Event) -> None:
        try:
            line = self._line(event)
        except Exception:  # logging must never stop mail; what it could not say is counted
            self._drop(1)
            return
        if line is None:
            return
        if self._backlog and len(self._backlog) + self._lines_bytes + len(line) > MAX_BACKLOG_BYTES:
            self._drop(1)
            return
        self._lines.append(line)
        self._lines_bytes += len(line)
        if self._retry is not None:
            return  # the outlet is slow: its timer asks again, not each turn
        if self._lines_bytes >= FLUSH_AT_BYTES:
            self.flush()
        elif not self._flush_due:
            self._flush_soon()

    def flush(self) -> None:
        """Offer everything to the outlet now."""
        self._flush_due = False
        data = self._backlog + b"".join(self._lines) if self._backlog else b"".join(self._lines)
        self._lines.clear()
        self._lines_bytes = 0
        self._backlog = self._offer(data)
        if self._untold and not self._backlog and not self._failing:
            self._confess()
        if self._backlog and self._retry is None:
            self._retry_later()

    def reopen(self) -> None:
        """After the file was renamed. If it cannot be opened anew, the old one stays and the log says so."""
        self.flush()
        try:
            self._outlet.reopen()
        except OSError as error:
            text = f"log file not opened anew: {error.strerror}"
            self.emit(Notice("error", "log-reopen-failed", text))

    def close(self) -> None:
        """Write what is left, for at most CLOSE_WITHIN_S, and let go of the destination."""
        self.flush()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        until = time.monotonic() + CLOSE_WITHIN_S
        while self._backlog and (left := until - time.monotonic()) > 0:
            self._outlet.wait(left)
            self._backlog = self._offer(self._backlog)
        self._lose(self._backlog)
        self._backlog = b""
        if self._untold:
            self._confess()
        self._outlet.close()

    # -- lines -----------------------------------------------------------------------------------------------

    def _line(self, event: Event) -> bytes | None:
        """None: below the level that is written."""
        if level_of(event) < self._from_level:
            return None
        if self._text:
            return text_line(event, self._people, self._time()).encode()
        return json_line(event, self._people, self._time())

    def _time(self) -> str:
        now = self._clock()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return self._stamp + _MILLISECONDS[int((now - second) * 1000)]

    # -- leaving ---------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        try:
            asyncio.get_running_loop().call_soon(self._flush_turn)
        except RuntimeError:  # before the loop runs, or after
            self.flush()
        else:
            self._flush_due = True

    def _flush_turn(self) -> None:
        if self._flush_due:  # else the turn's lines left because of their size, or by close()
            self.flush()

    def _retry_later(self) -> None:
        try:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._retry_now)
        except RuntimeError:
            return  # the next emit() or close() tries again

    def _retry_now(self) -> None:
        self._retry = None
        self.flush()

    def _offer(self, data: bytes) -> bytes:
        """What the outlet did not take yet. When it fails, the rest is dropped: nothing waits for a disk."""
        while data:
            lead = b"\n" if self._cut else b""
            try:
                taken = self._outlet.write(lead + data)
            except OSError:
                self._failing = True
                self._cut = self._mid_line
                self._lose(data)
                return b""
            if not taken:
                return data
            self._failing = False
            if lead:
                self._cut, self._mid_line = False, False
                taken -= 1
            if taken:
                self._mid_line = data[taken - 1] != 0x0A
                self._telling_bytes = max(0, self._telling_bytes - taken)
                data = data[taken:]
        return b""

    def _lose(self, data: bytes) -> None:
        # A line of which only the end is missing gets it from `lead` later: it is not lost.
        lines = data.count(b"\n") - data.startswith(b"\n")
        if self._telling_bytes > 1:  # the line that told of earlier losses is lost itself
            lines -= 1
            self._untold += self._telling
        self._telling_bytes = 0
        self._drop(lines)

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def _confess(self) -> None:
        """Say how many lines were dropped, once lines can leave again."""
        self._telling, self._untold = self._untold, 0
        text = f"{self._telling} log lines were dropped: they could not be written in time"
        line = self._line(Notice("warning", "log-dropped", text, {"lines": self._telling}))
        if line is not None:
            self._telling_bytes = len(line)
            self._backlog = self._offer(line)


class LibraryHandler(logging.Handler):
    """Turns what libraries say through `logging` (asyncio, aiohttp) into events: the process has one log."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        fields: dict[str, str | int | float] = {"logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        self._emit(Notice(level, "library", record.getMessage(), fields))
