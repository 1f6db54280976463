"""Replies of a backend: reading them from a byte stream, and writing them to a client.

Owns the reply grammar (RFC 5321 4.2), its limits, and the enhanced status code each relayed line must carry (RFC 2034).
Does not own what a reply means: that is policy/outcome.py.
Invariant: a Reply holds whole lines of printable bytes only, so relaying it can never start a second reply.
"""

from __future__ import annotations

import re
from typing import Final

from smtplb.smtp.scan import line_end

# Functions from outside what is compiled are looked up by name each time: here once.
_line_end: Final = line_end

# Incl. CRLF. RFC 5321 4.5.3.1.5: 512; Exim and Exchange exceed it; RFC 4954 4: a challenge behind "334 " has up to 12288.
MAX_REPLY_LINE_BYTES: Final = 12288 + 6
MAX_REPLY_BYTES: Final = 65536  # all lines of one reply

# RFC 5321 4.2: Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF
# The second digit goes to 9: operators write 571 and the like in access maps, and clients go by the first digit (4.3.2).
_LINE: Final = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\x00-\x08\x0a-\x1f\x7f]*))?\Z")
_CODE: Final = re.compile(rb"[2-5][0-9][0-9](?:[ -]|\Z)")
_BEGINNING: Final = re.compile(rb"[2-5][0-9][0-9](?:[ -]|\r?\Z)")  # of a line whose end has not come
# RFC 3463 2: status-code = class "." subject "." detail
_ENHANCED: Final = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?=[ \r]|\Z)")
_CONTROLS_TO_BLANK: Final = bytes(0x20 if (i < 0x20 and i != 0x09) or i == 0x7F else i for i in range(256))


class Reply:
    """One whole reply. `lines` are without CRLF and code: just the text of each line. Immutable: one may be given out often."""

    __slots__ = ("_own_wire", "code", "lines")

    def __init__(self, code: int, lines: list[bytes]) -> None:
        self.code = code
        self.lines = lines
        self._own_wire: bytes | None = None  # made once

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.lines!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and (self.code, self.lines) == (other.code, other.lines)

    __hash__ = None  # type: ignore[assignment]

    @property
    def enhanced(self) -> bytes | None:
        """The enhanced status code of the first line if its class agrees with the reply code, e.g. b"4.3.2"."""
        return _enhanced(self.code // 100, self.lines[0])

    def text_line(self) -> bytes:
        """The first line as it was said, without CRLF."""
        return b"%d %s" % (self.code, self.lines[0])

    def wire(self, code: int | None = None) -> bytes:
        """As sent to a client, under another code of the same class if one is given.

        RFC 2034 4: each 2xx, 4xx and 5xx line carries an enhanced code of the same class, the same one on all lines.
        A line without one gets that of the first line which has one; X.0.0 where the backend gave none at all.
        """
        if code is not None:
            return self._wire(code)
        wire = self._own_wire
        if wire is None:
            wire = self._own_wire = self._wire(self.code)
        return wire

    def _wire(self, code: int) -> bytes:
        digit, lines = code // 100, self.lines
        if len(lines) == 1:
            text = lines[0]
            if digit == 3 or _enhanced(digit, text) is not None:
                return b"%d %s\r\n" % (code, text)
            return b"%d %d.0.0 %s\r\n" % (code, digit, text)
        if digit != 3:
            codes = [_enhanced(digit, text) for text in lines]
            common = next(filter(None, codes), b"%d.0.0" % digit)
            lines = [t if own else b"%s %s" % (common, t) for own, t in zip(codes, lines, strict=True)]
        last = len(lines) - 1
        return b"".join(
            b"%d%s%s\r\n" % (code, b"-" if at < last else b" ", text) for at, text in enumerate(lines)
        )


def _enhanced(digit: int, text: bytes) -> bytes | None:
    """The enhanced status code that `text` begins with, if it is of class `digit`."""
    found = _ENHANCED.match(text)
    return found[0] if found is not None and int(found[1]) == digit else None


class Garbled:
    """What came is not a reply. `detail` is the beginning of what came, made printable."""

    __slots__ = ("detail",)

    def __init__(self, detail: bytes) -> None:
        self.detail = detail[:200].translate(_CONTROLS_TO_BLANK)


# Backends say the same few lines all day: those are read once. Bounded by number and length; longer ones (queue ids) pass by.
_known: dict[bytes, Reply] = {}
MAX_KNOWN: Final = 256
MAX_KNOWN_BYTES: Final = 48


class ReplyReader:
    """Cuts a byte stream into replies. Memory is bounded by MAX_REPLY_BYTES plus one chunk."""

    __slots__ = ("_at", "_buffer", "_code", "_lines", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0  # where the next line starts: cutting it off at each line would be quadratic
        self._lines: list[bytes] | None = None  # of the reply under way
        self._code = b""
        self._size = 0

    @property
    def empty(self) -> bool:
        """No byte of a reply is held."""
        return self._at == len(self._buffer) and self._lines is None

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def clear(self) -> None:
        """Forget what is held (RFC 3207 4.2: all that came before a TLS handshake)."""
        self._buffer = b""
        self._at = 0
        self._lines = None
        self._size = 0

    def next_reply(self) -> Reply | Garbled | None:
        """The next whole reply, None if more bytes are needed. After Garbled the stream is of no further use."""
        while True:
            buffer, at = self._buffer, self._at
            if at == len(buffer):  # most of the time: all that came was looked at
                return None
            end = _line_end(buffer, at)
            if end < 0:
                held = len(buffer) - at
                if held >= MAX_REPLY_LINE_BYTES or (held >= 4 and not _BEGINNING.match(buffer, at)):
                    return Garbled(buffer[at : at + 200])
                if at:
                    self._buffer, self._at = buffer[at:], 0
                return None
            line = buffer[at : end - 1] if end > at and buffer[end - 1] == 0x0D else buffer[at:end]
            size = end + 1 - at
            self._at = end + 1
            if self._lines is None:
                known = _known.get(line)
                if known is not None:
                    return known
            self._size += size
            found = _LINE.match(line)
            if found is None and _CODE.match(line):  # rare: controls in the text must not reach a client
                found = _LINE.match(line.translate(_CONTROLS_TO_BLANK))
            if found is None or size > MAX_REPLY_LINE_BYTES or self._size > MAX_REPLY_BYTES:
                return Garbled(line)
            code, dash, text = found.groups(b"")
            if self._lines is None:
                if dash != b"-":
                    self._size = 0
                    reply = Reply(int(code), [text])
                    if len(line) <= MAX_KNOWN_BYTES:
                        if len(_known) >= MAX_KNOWN:
                            _known.clear()
                        _known[line] = reply
                    return reply
                self._lines, self._code = [text], code
                continue
            if code != self._code:
                return Garbled(line)
            self._lines.append(text)
            if dash != b"-":
                reply = Reply(int(code), self._lines)
                self._lines, self._size = None, 0
                return reply
