"""The passes over octets: where a body ends, whether it is lawful, how often it has come round; whether a word is plain, and the
line that plain words are filled into; the path that nearly all mail has.

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


def count_traces(data: bytes, ours: bytes) -> int:
    """Trace lines of a header that is whole (RFC 5321 4.4): 65536 for each, and 1 for each `ours` in them, up to 65535.

    `data` begins with the header; -1: the empty line behind it is not there. `ours` is in lower case.
    """
    work = b"\r\n" + data
    end = work.find(b"\r\n\r\n")
    if end < 0:
        return -1
    header = work[:end].lower()
    total = header.count(b"\r\nreceived:")
    return (total << 16) + (min(header.count(ours), 0xFFFF) if total else 0)


MOST_SAID = 1024
MOST_LINE = 4096


def fill(template: tuple[bytes, ...], values: tuple[str | bytes | int, ...]) -> bytes | None:
    """The pieces of `template` with a value between any two.

    None: a word among the values is not plain, a number is negative or has more than 63 bits, all words together have more than
    MOST_SAID octets, or the line has more than MOST_LINE. Then it has to be written with more care.
    """
    said = b"".join(
        [
            v if isinstance(v, bytes) else v.encode("utf-8", "surrogatepass")
            for v in values
            if not isinstance(v, int)
        ]
    )
    if len(said) > MOST_SAID or not is_plain(said):
        return None
    pieces = [template[0]]
    for value, piece in zip(values, template[1:], strict=True):
        if isinstance(value, int):
            if not 0 <= value < 1 << 63:
                return None
            value = b"%d" % value
        pieces += [value if isinstance(value, bytes) else value.encode(), piece]
    line = b"".join(pieces)
    return line if len(line) <= MOST_LINE else None


# For tests, which hold the two forms against each other.
in_python = (find_end, is_lawful, is_plain, plain_path, line_end, count_traces, fill)

try:
    from smtplb.smtp._scan import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        count_traces,
        fill,
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
