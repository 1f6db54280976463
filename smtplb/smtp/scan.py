"""The two passes over every octet of a body: where it ends, and whether it is lawful.

Owns their contracts, and their form in Python. In a compiled wheel _scan.c takes their place: the same answers for any octets.
Does not own what follows from them (body.py, chunks.py).
"""

from __future__ import annotations

import io

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


in_python = (find_end, is_lawful)  # for tests, which hold the two forms against each other

try:
    from smtplb.smtp._scan import find_end, is_lawful  # type: ignore[import-not-found,no-redef,unused-ignore]
except ImportError:  # not compiled
    pass
