"""Paths of MAIL and RCPT: the one reading that we and every backend share.

Owns the grammar of Reverse-path and Forward-path (RFC 5321 4.1.2), as strict as needed and no stricter. Does not own routing.
Invariant: a path that passes is printable (ASCII, or UTF-8 for SMTPUTF8) and cannot be read in two ways; it is sent on
verbatim, in brackets.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from smtplb.smtp.scan import plain_path

# Functions from outside what is compiled are looked up by name each time: here once.
_plain_path: Final = plain_path

MAX_PATH_BYTES: Final = (
    512  # without brackets. RFC 5321 4.5.3.1.3: 256; source routes and BATV/SRS are longer in practice
)

# Only what MTAs read alike (ran: Postfix, Exim, Sendmail). Not here though some take it: comments (Postfix delivers
# `a@b(c.d` to a@b), specials outside quotes (Sendmail cuts `a:b@c` down to b@c), anything but names in a domain.
# One octet at a time beside quoted strings, and no two alternatives that can begin alike: linear on any input.
_ATOM: Final = rb"[!#-'*+\--9=?A-Z^-~\x80-\xff]"  # RFC 5322 3.2.3 atext, and dots wherever they are
_QUOTED: Final = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_NAME: Final = rb"[A-Za-z0-9_\x80-\xff-]+(?:\.[A-Za-z0-9_\x80-\xff-]+)*\.?"  # underscores are in use
_DOMAIN: Final = rb"(?:%s|\[[A-Za-z0-9:.-]+\])" % _NAME
_LOCAL_PART: Final = rb"(?:%s|%s)+" % (_ATOM, _QUOTED)
_ROUTE: Final = rb"@%s(?:,@%s)*:" % (_DOMAIN, _DOMAIN)  # RFC 5321 4.1.2 A-d-l
_PATH: Final = rb"(?:%s(?:@%s)?|%s%s@%s)?" % (_LOCAL_PART, _DOMAIN, _ROUTE, _LOCAL_PART, _DOMAIN)
_BRACKETED: Final = re.compile(rb"[ \t]*<(%s)>(?=[ \t]|\Z)" % _PATH)
_UNBRACKETED: Final = re.compile(rb"[ \t]*(%s+(?:@%s)?)(?=[ \t]|\Z)" % (_ATOM, _DOMAIN))


def parse_path(argument: bytes) -> tuple[bytes, bytes] | None:
    """(path without brackets, what follows it) or None if the path is malformed or can be read in two ways.

    A blank before the path and missing brackets are taken, as Postfix and Exim do; an empty path needs its brackets.
    """
    plain = _plain_path(argument)  # nearly all mail; _BRACKETED says the same of it
    if plain is not None:
        return (plain, argument[len(plain) + 2 :]) if len(plain) <= MAX_PATH_BYTES else None
    found = _BRACKETED.match(argument) or _UNBRACKETED.match(argument)
    if found is None:
        return None
    path = found[1]
    if len(path) > MAX_PATH_BYTES or not (path.isascii() or _is_clean_utf8(path)):
        return None
    return path, argument[found.end() :]


def is_ascii_path(path: bytes) -> bool:
    """It needs no SMTPUTF8."""
    return path.isascii()


def _is_clean_utf8(path: bytes) -> bool:
    """RFC 6531 3.3, without C1 controls, separators and the like that some system may take for a line end or a blank."""
    try:
        return path.decode("utf-8").replace(" ", "").isprintable()
    except UnicodeDecodeError:
        return False


def domain_of(path: bytes) -> bytes:
    """The final domain in lower case, without a trailing dot; b"" if there is none. `path` has passed parse_path.

    One beyond ASCII is given as it stands in the DNS (RFC 6531 3.2: both forms name the same), if there is but one such form.
    """
    _, at, domain = path.rpartition(b"@")
    if not at or b'"' in domain:  # an @ inside a quoted local part without a domain
        return b""
    domain = domain.lower().removesuffix(b".")
    return domain if domain.isascii() else _in_the_dns(domain)


@lru_cache(maxsize=256)  # each condition of a route asks again
def _in_the_dns(domain: bytes) -> bytes:
    """The xn-- form, or the domain as it is where that form reads back as something else: what is mapped (letters in circles,
    a full stop of another script) one system takes for our domain and the next for another."""
    try:
        text = domain.decode("utf-8").lower()
        # RFC 1035 2.3.4. Beforehand: the time that encoding takes grows with the square of a label.
        if len(text) > 253 or max(map(len, text.split("."))) > 63:
            return domain
        form = text.encode("idna")
        return form if form.decode("idna") == text else domain
    except UnicodeError:
        return domain


def is_postmaster(path: bytes) -> bool:
    """RFC 5321 4.5.1: `postmaster` without a domain must be accepted."""
    return path.lower() == b"postmaster"


def names_a_route(path: bytes) -> bool:
    """The path holds a further destination: user%other@here, other!user@here, "user@other"@here, @other:user@here.

    Postfix (allow_percent_hack, swap_bangpath, resolve_dequoted_address: all on by default) and Sendmail follow these for
    clients that they trust; since backends often trust us, such a recipient is not "of" its visible domain. A route in
    front is ignored by all three (ran), but Sendmail can be told to honour it.
    """
    domain = domain_of(path)
    local = path.rpartition(b"@")[0] if domain else path
    return b"%" in local or b"!" in local or b"@" in local
