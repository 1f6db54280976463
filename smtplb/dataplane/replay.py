"""What of a body was sent, so that it can be sent again to another backend.

Owns the canonical bytes of one message while they fit the budgets: in memory first, then in an unlinked temporary file.
Does not own when they are replayed (transaction.py, relay.py).
Invariant: `complete` holds exactly while every byte given to keep() is still here; all buffers together stay within the
budget, and nothing of a message outlives it on disk.
"""

from __future__ import annotations

import os
import tempfile
from typing import Final

from smtplb.settings import ReplaySettings

PIECE_BYTES: Final = 64 * 1024  # what a replay reads and writes at a time
MOST_IN_MEMORY_BYTES: Final = (
    4 * 1024 * 1024
)  # of one message: all of it is written at once when it goes to a file


class ReplayBudget:
    """What all messages of a worker have used of what they may."""

    __slots__ = (
        "_memory_bytes",
        "_per_message_bytes",
        "_shared_memory_bytes",
        "_total_bytes",
        "directory",
        "used_file_bytes",
        "used_memory_bytes",
    )

    def __init__(self, settings: ReplaySettings) -> None:
        self.used_memory_bytes = 0
        self.used_file_bytes = 0
        self.change(settings)

    def change(self, settings: ReplaySettings) -> None:
        """What is held already stays."""
        self.directory = settings.directory
        self._memory_bytes = settings.memory_bytes
        self._shared_memory_bytes = settings.shared_memory_bytes
        self._per_message_bytes = settings.per_message_bytes
        self._total_bytes = settings.total_bytes

    def allows(self, held_bytes: int, more_bytes: int) -> bool:
        """A message that holds `held_bytes` may hold `more_bytes` more."""
        used = self.used_memory_bytes + self.used_file_bytes
        return held_bytes + more_bytes <= self._per_message_bytes and used + more_bytes <= self._total_bytes

    def fits_memory(self, held_bytes: int, more_bytes: int) -> bool:
        """Its own part each message has in any case; more of it while there is room in what all share."""
        together = held_bytes + more_bytes
        return together <= self._memory_bytes or (
            together <= MOST_IN_MEMORY_BYTES
            and self.used_memory_bytes + more_bytes <= self._shared_memory_bytes
        )


class ReplayBuffer:
    """Pieces in the order they were sent. Over a budget all is dropped, and streaming goes on without replay."""

    __slots__ = ("_budget", "_chunks", "_file", "complete", "size_bytes")

    def __init__(self, budget: ReplayBudget) -> None:
        self._budget = budget
        self._chunks: list[bytes | bytearray] = []
        self._file: int | None = None  # descriptor of a file without a name
        self.size_bytes = 0
        self.complete = True

    def keep(self, piece: bytes) -> None:
        size = len(piece)
        if not self.complete or not size:
            return
        budget = self._budget
        if not budget.allows(self.size_bytes, size):
            self.drop()
            self.complete = False
        elif self._file is None and budget.fits_memory(self.size_bytes, size):
            self.size_bytes += size
            budget.used_memory_bytes += size
            self._keep_in_memory(piece)
        else:
            self._keep_in_file(piece)

    def drop(self) -> None:
        """Give everything back; nothing can be replayed any more unless nothing was kept."""
        if not self.size_bytes and self._file is None:
            return
        if self._file is None:
            self._budget.used_memory_bytes -= self.size_bytes
            self._chunks.clear()
        else:
            self._budget.used_file_bytes -= self.size_bytes
            os.close(self._file)
            self._file = None
        self.size_bytes = 0
        self.complete = False

    def piece_at(self, offset: int) -> bytes:
        """Up to PIECE_BYTES (or the rest of one kept piece, whatever its size) from `offset`; b"" at the end."""
        if self._file is not None:
            return os.pread(self._file, min(PIECE_BYTES, self.size_bytes - offset), offset)
        at = 0
        for chunk in self._chunks:
            if offset < at + len(chunk):
                return bytes(chunk[offset - at :] if offset > at else chunk)
            at += len(chunk)
        return b""

    def _keep_in_memory(self, piece: bytes) -> None:
        """As it is, but for crumbs: a body that comes in two octets at a time must neither cost twenty times as much nor be
        read again as many pieces."""
        chunks = self._chunks
        if not chunks or len(chunks[-1]) + len(piece) > PIECE_BYTES:
            chunks.append(piece)
            return
        last = chunks[-1]
        if not isinstance(last, bytearray):
            last = chunks[-1] = bytearray(last)
        last.extend(piece)

    def _keep_in_file(self, piece: bytes) -> None:
        """A write into the page cache, not to the disk: it takes about as long as the copy that it is."""
        budget = self._budget
        try:
            if self._file is None:
                self._file = _nameless_file(budget.directory)
                budget.used_memory_bytes -= self.size_bytes
                budget.used_file_bytes += self.size_bytes
                chunks, self._chunks = self._chunks, []
                _write_all(self._file, b"".join(chunks))
            _write_all(self._file, piece)
        except OSError:  # no space, no directory: the message goes on without replay
            self.drop()
            self.complete = False
            return
        budget.used_file_bytes += len(piece)
        self.size_bytes += len(piece)


def _nameless_file(directory: str | None) -> int:
    directory = directory or tempfile.gettempdir()
    try:
        return os.open(
            directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600
        )  # never had a name: half the cost
    except OSError:  # EOPNOTSUPP, EISDIR: not every file system can; any other will be met again
        file, name = tempfile.mkstemp(prefix="smtplb-replay-", dir=directory)
        os.unlink(name)
        return file


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.write(file, view)  # not inside the slice: mypyc evaluates what stands there twice
        view = view[written:]
