"""Words from outside, made fit for one printable line.

Owns how octets and text that a client, a backend or the system said are written down, and how addresses of
people are kept back. Does not own lines or descriptors (lines.py, outlet.py).
Invariant: what comes out is printable: no control character, no line break of any kind, no terminal escape.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from smtplb.smtp.scan import fill as fill
from smtplb.smtp.scan import is_plain

# Functions from outside what is compiled are looked up by name each time: here once.
_is_plain: Final = is_plain

MAX_FIELD: Final = 1024  # of one field, then "...". A reply line has at most 512 octets (RFC 5321 4.5.3.1.5)

# A backslash is escaped too, so that what was said can be read back without doubt.
_OCTETS: Final = {
    octet: f"\\x{octet:02x}" for octet in range(256) if not 0x20 <= octet <= 0x7E or octet == ord("\\")
}
# The lookbehind lets a match begin at a word's start only: else a long word costs the square of its length.
_ADDRESS: Final = re.compile(r"(?<![^\s<>@(),;:])[^\s<>@(),;:]++@[^\s<>@(),;\"']++")


def octets(raw: bytes) -> str:
    """Printable ASCII; any other octet, and the backslash, as \\xNN."""
    if len(raw) > MAX_FIELD:
        return octets(raw[:MAX_FIELD]) + "..."
    said = raw.decode("latin-1")
    return said if _is_plain(raw) else said.translate(_OCTETS)


def words(text: str, limit: int = MAX_FIELD) -> str:
    """Printable Unicode; else \\xNN, \\uNNNN or \\UNNNNNNNN. A backslash stays: most of this is ours."""
    if len(text) > limit:
        return words(text[:limit], limit) + "..."
    if _is_plain(text) or text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def words_in_json(text: str) -> str:
    """words() as it stands between the quotes of a JSON string."""
    return text if _is_plain(text) and len(text) <= MAX_FIELD else in_json(words(text))


def in_json(said: str) -> str:
    """What octets() or words() gave, as it stands between the quotes of a JSON string."""
    return said if _is_plain(said) else said.replace("\\", "\\\\").replace('"', '\\"')


def _escape(point: int) -> str:
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


class People:
    """How addresses of people are shown: `plain`, `hash` (the same address has the same mark) or `omit`.

    The mark is a keyed BLAKE2b of the address in lower case: nobody without `key` can try addresses on it.
    """

    __slots__ = ("_key", "hides", "mode")

    def __init__(self, mode: str, key: bytes) -> None:
        self.mode = mode
        self.hides = mode != "plain"
        self._key = key

    def address(self, raw: bytes) -> str | None:
        """None: to be left out. The null sender is nobody's address and always shown, as `<>`."""
        if raw[:1] == b"<" and raw[-1:] == b">":
            raw = raw[1:-1]
        if not raw:
            return "<>"
        if not self.hides:
            return octets(raw)
        return self._mark(raw) if self.mode == "hash" else None

    def prose(self, said: str, *known: bytes) -> str:
        """`said` (printable already) without addresses, which backends quote; `known` ones in any form."""
        if not self.hides or "@" not in said:
            return said
        for raw in known:
            bare = raw[1:-1] if raw[:1] == b"<" and raw[-1:] == b">" else raw
            if bare:
                said = said.replace(octets(bare), self._instead(octets(bare)))
        return _ADDRESS.sub(lambda found: self._instead(found[0]), said)

    def _instead(self, shown: str) -> str:
        # Hashed in its printed form; for lawful ASCII addresses that is the form that address() hashes.
        return self._mark(shown.encode("utf-8", "replace")) if self.mode == "hash" else "[omitted]"

    def _mark(self, raw: bytes) -> str:
        return "h:" + blake2b(raw.lower(), digest_size=8, key=self._key).hexdigest()
