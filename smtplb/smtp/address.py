"""Paths of MAIL and RCPT: the one reading that we and every backend share.

Owns the grammar of Reverse-path and Forward-path (RFC 5321 4.1.2), as strict as needed and no stricter. Does not own routing.
Invariant: a path that passes is printable (ASCII, or UTF-8 for SMTPUTF8) and cannot be read in two ways; it is sent on
verbatim, in brackets.
"""

from __future__ import annotations

import re

MAX_PATH_BYTES = (
    512  # without brackets. RFC 5321 4.5.3.1.3: 256; source routes and BATV/SRS are longer in practice
)

# Outside quotes: no blank, control, quote, backslash, angle bracket. A backslash there is an escape to some and not to others.
_PLAIN = rb"[!#-;=?-\[\]-~\x80-\xff]"
_QUOTED = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_SIMPLE_PATH = rb"[!#-;=?-Z^-~]*"  # no quote, backslash, angle or square bracket: nothing to look at twice
_PATH = re.compile(rb"(?:%s|%s)*" % (_PLAIN, _QUOTED))
_BRACKETED = re.compile(rb"[ \t]*<(%s)>(?=[ \t]|\Z)" % _PATH.pattern)
_SIMPLE = re.compile(rb"<(%s)>(?=[ ]|\Z)" % _SIMPLE_PATH)
_UNBRACKETED = re.compile(rb"[ \t]*(%s+)(?=[ \t]|\Z)" % _PLAIN)
_QUOTED_STRING = re.compile(_QUOTED)
_LITERAL_AT_END = re.compile(rb"[^\[\]]*@\[[^\[\]]*\]\Z")
_SOURCE_ROUTE = re.compile(rb"@[^:]*:")


def parse_path(argument: bytes) -> tuple[bytes, bytes] | None:
    """(path without brackets, what follows it) or None if the path is malformed or can be read in two ways.

    A blank before the path and missing brackets are taken, as Postfix and Exim do; an empty path needs its brackets.
    """
    found = _SIMPLE.match(argument) or _BRACKETED.match(argument) or _UNBRACKETED.match(argument)
    if found is None:
        return None
    path = found[1]
    if len(path) > MAX_PATH_BYTES:
        return None
    if path and not _one_reading(path):
        return None
    return path, argument[found.end() :]


def is_ascii_path(path: bytes) -> bool:
    """It needs no SMTPUTF8."""
    return path.isascii()


def _one_reading(path: bytes) -> bool:
    if not path.isascii() and not _is_clean_utf8(path):
        return False
    bare = _QUOTED_STRING.sub(b"q", path) if b'"' in path else path
    if (b"[" in bare or b"]" in bare) and not _LITERAL_AT_END.match(bare):
        return False
    if bare.startswith(b"@"):
        route = _SOURCE_ROUTE.match(bare)
        if route is None:
            return False
        bare = bare[route.end() :]
    # user@a@b: some deliver to a by way of b, some to b.
    return bare.count(b"@") <= 1 and not bare.endswith(b"@") and not bare.startswith(b"@")


def _is_clean_utf8(path: bytes) -> bool:
    """RFC 6531 3.3, without C1 controls, separators and the like that some system may take for a line end or a blank."""
    try:
        return path.decode("utf-8").replace(" ", "").isprintable()
    except UnicodeDecodeError:
        return False


def domain_of(path: bytes) -> bytes:
    """The final domain in lower case, without a trailing dot; b"" if there is none. `path` has passed parse_path."""
    _, at, domain = path.rpartition(b"@")
    if not at or domain.endswith(b'"'):  # an @ inside a quoted local part without a domain
        return b""
    return domain.lower().removesuffix(b".")


def is_postmaster(path: bytes) -> bool:
    """RFC 5321 4.5.1: `postmaster` without a domain must be accepted."""
    return path.lower() == b"postmaster"


def names_a_route(path: bytes) -> bool:
    """The local part holds a further destination: user%other@here, other!user@here, "user@other"@here.

    Postfix (allow_percent_hack, swap_bangpath, resolve_dequoted_address: all on by default) and Sendmail follow these for
    clients that they trust; since backends often trust us, such a recipient is not "of" its visible domain.
    """
    route = _SOURCE_ROUTE.match(path)
    if route is not None:
        path = path[route.end() :]
    mailbox, at, _ = path.rpartition(b"@")
    local = mailbox if at else path
    return b"%" in local or b"!" in local or b"@" in local
