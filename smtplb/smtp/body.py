"""The body of a message behind DATA: where it ends, and its one canonical form.

Owns finding the end of data across any split of the input and normalising what is not lawful. Does not own sending it.
Invariant: what comes out holds CRLF.CRLF once, at its end, no lone CR or LF and no NUL; lawful input comes out unchanged.

RFC 5321 2.3.8 and 4.1.1.4: only CRLF ends a line and only CRLF.CRLF ends the data. Anything else that some MTA may take
for a line end or an end of data never leaves us (CVE-2023-51764, -51765, -51766): a bare LF becomes CRLF, a CR that is not
before a LF becomes a blank, NUL becomes a blank, and a line that would be a lone dot becomes two.
"""

from __future__ import annotations

from typing import Final

from smtplb.smtp.scan import find_end, is_lawful

# Functions from outside what is compiled are looked up by name each time: here once.
_find_end: Final = find_end
_is_lawful: Final = is_lawful

TERMINATOR: Final = b".\r\n"  # behind the CRLF of the last line

_MIDDLE: Final = 0
_AFTER_CRLF: Final = 1
_AFTER_LF: Final = 2


class BodyReader:
    """Turns the raw bytes behind DATA into canonical ones. One for each message.

    `lawless`: something had to be changed. `ended`: the end of data was found. `raw_bytes`: octets read, without the terminator.
    """

    __slots__ = ("_held", "_line_start", "ended", "lawless", "raw_bytes")

    def __init__(self) -> None:
        self._held = (
            b""  # a suffix that may still become part of a line end or of the terminator: CR, dot, dot CR
        )
        self._line_start = _AFTER_CRLF  # the CRLF behind DATA counts (RFC 5321 4.1.1.4)
        self.ended = False
        self.lawless = False
        self.raw_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(canonical bytes to send, input behind the end of data). The second is empty until `ended`.

        The terminator itself is not part of the first: who relays adds TERMINATOR when the message is complete.
        """
        held = len(self._held)
        work = self._held + data if held else data
        rest = b""
        if self._line_start == _AFTER_CRLF and work.startswith(TERMINATOR):
            self.ended, end, rest = True, 0, work[3:]
        else:
            end = _find_end(work)
            if end >= 0:
                self.ended, end, rest = True, end + 2, work[end + 5 :]
            else:
                end = len(work) - self._undecided(work)
        self._held = b"" if self.ended else work[end:]
        segment = work[:end] if end < len(work) else work
        self.raw_bytes += len(segment)
        if not segment:
            return b"", rest
        if _is_lawful(segment):
            # CRLF dot CRLF is cut off above; a lone dot between a bare LF before and a CRLF here is not.
            if self._line_start == _AFTER_LF and segment.startswith(TERMINATOR):
                self.lawless = True
                segment = b"." + segment
            self._line_start = _AFTER_CRLF if segment.endswith(b"\n") else _MIDDLE
            return segment, rest
        self.lawless = True
        return self._normalise(segment), rest

    def _undecided(self, work: bytes) -> int:
        """Length of the suffix whose meaning depends on what comes next."""
        if not work or work[-1] not in b".\r":
            return 0
        if work.endswith(b".\r"):
            dot = 2
        elif work.endswith(b"."):
            dot = 1
        else:
            return 1
        starts_line = work[-dot - 1] == 0x0A if len(work) > dot else self._line_start != _MIDDLE
        return dot if starts_line else dot - 1

    def _normalise(self, segment: bytes) -> bytes:
        """All in C: no Python work per line, since lawless input is chosen by whoever sends it."""
        # The last line end decides what the next segment starts after.
        if segment.endswith(b"\r\n"):
            line_start = _AFTER_CRLF
        elif segment.endswith(b"\n"):
            line_start = _AFTER_LF
        else:
            line_start = _MIDDLE
        lines = segment.replace(b"\0", b" ").replace(b"\r\n", b"\n").replace(b"\r", b" ")
        # Twice: replace() does not look again at the LF which ended its last match.
        lines = lines.replace(b"\n.\n", b"\n..\n").replace(b"\n.\n", b"\n..\n")
        if self._line_start != _MIDDLE and lines.startswith(b".\n"):
            lines = b"." + lines
        self._line_start = line_start
        return lines.replace(b"\n", b"\r\n")
