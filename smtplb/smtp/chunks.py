"""The body of a message in BDAT chunks (RFC 3030), and its way between chunks and DATA.

Owns the one canonical form of a chunked body, and dot-stuffing towards a backend without CHUNKING. Does not own counting a
client's octets (dataplane/dialogue.py).
Invariant: what comes out has no lone CR or LF and no NUL, unless the client declared BODY=BINARYMIME; stuffed output holds
no CRLF.CRLF.
"""

from __future__ import annotations

from typing import Final

from smtplb.smtp.scan import count_traces, is_lawful

# Functions from outside what is compiled are looked up by name each time: here once.
_count_traces: Final = count_traces
_is_lawful: Final = is_lawful

_RECEIVED: Final = b"\r\nreceived:"


class ChunkReader:
    """Canonical bytes from raw octets of chunks. One for each message; `binary` passes octets as they are."""

    __slots__ = ("_binary", "_held_cr", "ended", "lawless", "raw_bytes")

    def __init__(self, *, binary: bool) -> None:
        self._binary = binary
        self._held_cr = False  # a CR whose next octet is not known yet
        self.ended = False
        self.lawless = False
        self.raw_bytes = 0

    def feed(self, data: bytes) -> bytes:
        self.raw_bytes += len(data)
        if self._binary or not data:
            return data
        work = b"\r" + data if self._held_cr else data
        self._held_cr = work.endswith(b"\r")
        if self._held_cr:
            work = work[:-1]
        if _is_lawful(work):
            return work
        self.lawless = True
        lines = work.replace(b"\0", b" ").replace(b"\r\n", b"\n").replace(b"\r", b" ")
        return lines.replace(b"\n", b"\r\n")

    def finish(self) -> bytes:
        """The last chunk was read: what was still held."""
        self.ended = True
        if not self._held_cr:
            return b""
        self._held_cr = False
        self.lawless = True
        return b" "


class DotStuffer:
    """From chunks to DATA: every leading dot is doubled, a missing last CRLF is added (RFC 5321 4.5.2). One for each attempt."""

    __slots__ = ("_at_line_start",)

    def __init__(self) -> None:
        self._at_line_start = True

    def feed(self, data: bytes) -> bytes:
        if not data:
            return data
        out = data.replace(b"\n.", b"\n..")  # canonical: each LF is behind a CR
        if self._at_line_start and out.startswith(b"."):
            out = b"." + out
        self._at_line_start = data.endswith(b"\n")
        return out

    def finish(self) -> bytes:
        """What has to come before the terminator."""
        return b"" if self._at_line_start else b"\r\n"


def trace_mark(hostname: str) -> bytes:
    """What our own trace lines have in them, in lower case."""
    return b"by %s (smtplb) with " % hostname.encode("ascii").lower()


class ReceivedCounter:
    """Counts trace lines while a header goes by (RFC 5321 6.3: loops). It stops looking behind the header."""

    __slots__ = ("_by_us", "_done", "_fresh", "_tail", "own", "total")

    def __init__(self, mark: bytes) -> None:
        """`mark`: what trace_mark() made."""
        self._by_us = mark
        self._done = False
        self._fresh = True
        self._tail = b"\r\n"
        self.total = 0
        self.own = 0

    def feed(self, data: bytes) -> None:
        if self._done or not data:
            return
        if self._fresh:
            self._fresh = False
            counts = _count_traces(data, self._by_us)
            if counts >= 0:  # the header in one piece, as nearly always
                self._done = True
                self.total, self.own = counts >> 16, counts & 0xFFFF
                return
        work = self._tail + data
        end = work.find(b"\r\n\r\n")
        if end >= 0:
            self._done = True
            work = work[:end]
        work = work.lower()
        self.total += work.count(_RECEIVED)
        seen = self.total > 0  # our words count in such a line only
        if seen:
            self.own += work.count(self._by_us)
        if self._done:
            self._tail = b""
            return
        # Overlap so that what lies across two pieces is seen, short enough that nothing is seen twice.
        keep = max(len(_RECEIVED), len(self._by_us)) - 1
        self._tail = work[-keep:]
        self.total -= self._tail.count(_RECEIVED)
        if seen:
            self.own -= self._tail.count(self._by_us)
