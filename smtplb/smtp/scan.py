"""The passes over octets: where a body ends, whether it is lawful; whether a word is plain; the path that nearly all mail has.

Owns their contracts, and their form in Python. In a compiled wheel _scan.c takes their place: the same answers for any octets.
Does not own what follows from them (body.py, chunks.py, address.py, observe/encode.py).
"""

from __future__ import annotations

import io
import re

_PLAIN_PATH = re.compile(
    rb"<([!#-'*+\--9=?A-Z^-~]+@[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)>(?=[ ]|\Z)"  # address.py has the grammar
)
_LAWFUL_NEWLINES = (None, "\r\n")
# One scanner for all: reset before each use, so it holds nothing of anybody. It scans in C, 2.5 times as fast as counting.
_scanner = io.IncrementalNewlineDecoder(None, translate=False)


def find_end(work: bytes) -> int:
    """Where CRLF.CRLF begins, -1 if it is not there (RFC 5321 4.1.1.4)."""
    return work.find(b"\r\n.\r\n")


def is_lawful(segment: bytes) -> bool:
    """Only CRLF line ends and no NUL. `segment` must not end in a CR whose next byte is unknown."""
    _scanner.reset()
    _scanner.decode(segment.decode("latin-1"), True)
    return _scanner.newlines in _LAWFUL_NEWLINES and b"\0" not in segment


def is_plain(said: bytes | str) -> bool:
    """Printable ASCII without a double quote or a backslash: the same in a log line, in JSON and in quotes."""
    text = said if isinstance(said, str) else said.decode("latin-1")
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def plain_path(argument: bytes) -> bytes | None:
    """The path, without brackets, of an argument that begins with `<atom@name>` in ASCII, with nothing or a blank behind it.
    None says nothing about any other."""
    found = _PLAIN_PATH.match(argument)
    return found[1] if found is not None else None


def line_end(data: bytes, at: int) -> int:
    """Where the next LF stands, from `at` on (0 to len(data)); -1: there is none."""
    return data.find(b"\n", at)


# For tests, which hold the two forms against each other.
in_python = (find_end, is_lawful, is_plain, plain_path, line_end)

try:
    from smtplb.smtp._scan import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        find_end,
        is_lawful,
        is_plain,
        line_end,
        plain_path,
    )
except ImportError:  # not compiled
    COMPILED = False
else:
    COMPILED = True
