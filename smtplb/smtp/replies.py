"""Replies of a backend: reading them from a byte stream, and writing them to a client.

Owns the reply grammar (RFC 5321 4.2), its limits, and the enhanced status code each relayed line must carry (RFC 2034).
Does not own what a reply means: that is policy/outcome.py.
Invariant: a Reply holds whole lines of printable bytes only, so relaying it can never start a second reply.
"""

from __future__ import annotations

import re

MAX_REPLY_LINE_BYTES = (
    4096  # incl. CRLF. RFC 5321 4.5.3.1.5: 512; Exim and Exchange exceed it; Postfix line_length_limit 2048
)
MAX_REPLY_BYTES = 65536  # all lines of one reply

# "code" text, RFC 5321 4.2: Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF
_LINE = re.compile(rb"([2-5][0-5][0-9])(?:([ -])([^\x00-\x08\x0a-\x1f\x7f]*))?\Z")
_CODE = re.compile(rb"[2-5][0-5][0-9](?:[ -]|\Z)")
# RFC 3463 2: status-code = class "." subject "." detail
_ENHANCED = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?=[ \r]|\Z)")
_CONTROLS_TO_BLANK = bytes(0x20 if (i < 0x20 and i != 0x09) or i == 0x7F else i for i in range(256))


class Reply:
    """One whole reply. `lines` are without CRLF and code: just the text of each line."""

    __slots__ = ("code", "lines")

    def __init__(self, code: int, lines: list[bytes]) -> None:
        self.code = code
        self.lines = lines

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.lines!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and (self.code, self.lines) == (other.code, other.lines)

    __hash__ = None  # type: ignore[assignment]

    @property
    def enhanced(self) -> bytes | None:
        """The enhanced status code of the first line if its class agrees with the reply code, e.g. b"4.3.2"."""
        found = _ENHANCED.match(self.lines[0])
        if found is None or int(found[1]) != self.code // 100:
            return None
        return found[0]

    def text_line(self) -> bytes:
        """The first line as it was said, without CRLF."""
        return b"%d %s" % (self.code, self.lines[0])

    def wire(self, code: int | None = None) -> bytes:
        """As sent to a client, under another code of the same class if one is given.

        RFC 2034 4: each 2xx, 4xx and 5xx line carries an enhanced code of the same class; X.0.0 where the backend gave none.
        """
        code = self.code if code is None else code
        lines = self.lines
        if len(lines) == 1:
            return b"%d %s\r\n" % (code, _with_enhanced(code, lines[0]))
        last = len(lines) - 1
        return b"".join(
            b"%d%s%s\r\n" % (code, b"-" if at < last else b" ", _with_enhanced(code, text))
            for at, text in enumerate(lines)
        )


def _with_enhanced(code: int, text: bytes) -> bytes:
    digit = code // 100
    if digit == 3:
        return text
    found = _ENHANCED.match(text)
    if found is not None and int(found[1]) == digit:
        return text
    return b"%d.0.0 %s" % (digit, text)


class Garbled:
    """What came is not a reply. `detail` is the beginning of what came, made printable."""

    __slots__ = ("detail",)

    def __init__(self, detail: bytes) -> None:
        self.detail = detail[:200].translate(_CONTROLS_TO_BLANK)


class ReplyReader:
    """Cuts a byte stream into replies. Memory is bounded by MAX_REPLY_BYTES plus one chunk."""

    __slots__ = ("_buffer", "_code", "_lines", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[bytes] | None = None  # of the reply under way
        self._code = b""
        self._size = 0

    @property
    def empty(self) -> bool:
        """No byte of a reply is held."""
        return not self._buffer and self._lines is None

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data

    def clear(self) -> None:
        """Forget what is held (RFC 3207 4.2: all that came before a TLS handshake)."""
        self._buffer = b""
        self._lines = None
        self._size = 0

    def next_reply(self) -> Reply | Garbled | None:
        """The next whole reply, None if more bytes are needed. After Garbled the stream is of no further use."""
        while True:
            buffer = self._buffer
            end = buffer.find(b"\n")
            if end < 0:
                if len(buffer) >= MAX_REPLY_LINE_BYTES or (len(buffer) >= 4 and not _CODE.match(buffer)):
                    return Garbled(buffer)
                return None
            line = buffer[: end - 1] if buffer[end - 1 : end] == b"\r" else buffer[:end]
            self._buffer = buffer[end + 1 :]
            self._size += end + 1
            found = _LINE.match(line)
            if found is None:  # rare: controls inside the text, which must not reach a client
                found = _LINE.match(line.translate(_CONTROLS_TO_BLANK))
            if found is None or end >= MAX_REPLY_LINE_BYTES or self._size > MAX_REPLY_BYTES:
                return Garbled(line)
            code, dash, text = found.groups(b"")
            if self._lines is None:
                if dash != b"-":
                    self._size = 0
                    return Reply(int(code), [text])
                self._lines, self._code = [text], code
                continue
            if code != self._code:
                return Garbled(line)
            self._lines.append(text)
            if dash != b"-":
                reply = Reply(int(code), self._lines)
                self._lines, self._size = None, 0
                return reply
