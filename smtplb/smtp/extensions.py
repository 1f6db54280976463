"""Extensions: what a backend's EHLO reply offers, what we offer, which MAIL parameter needs which extension.

Owns the keyword tables. Does not own the commands that carry them.
Invariant: a keyword of a backend never reaches a client; what we offer is ours (protocol facts: "must never be forwarded").
"""

from __future__ import annotations

import re

from smtplb.smtp.replies import Reply

# RFC 5321 4.1.1.1: ehlo-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-"); ehlo-param = 1*(%d33-126)
# No two repetitions side by side that can take the same octets: that would be cubic on a long line of blanks.
_EHLO_LINE = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ \t=]([\t\x20-\x7e]*))?\Z")
_DIGITS = re.compile(rb"[0-9]{1,19}\Z")

# RFC 1870 SIZE=, RFC 6152 BODY=
MAIL_PARAMETER_NEEDS = {b"SIZE": b"SIZE", b"BODY": b"8BITMIME"}


class Capabilities:
    """What a backend listed in its EHLO reply; all empty after HELO."""

    __slots__ = ("keywords", "pipelining", "size_limit_bytes")

    def __init__(self, reply: Reply | None = None) -> None:
        keywords: dict[bytes, bytes] = {}
        if reply is not None:
            for line in reply.lines[1:]:
                found = _EHLO_LINE.match(line)
                if found is not None:
                    keywords.setdefault(found[1].upper(), (found[2] or b"").lstrip(b" \t=").rstrip(b" \t"))
        self.keywords = keywords
        self.pipelining = b"PIPELINING" in keywords
        limit = keywords.get(b"SIZE", b"")
        # RFC 1870 3: SIZE 0 is no fixed limit, SIZE alone unknown.
        self.size_limit_bytes = int(limit) or None if _DIGITS.match(limit) else None

    def __contains__(self, keyword: bytes) -> bool:
        return keyword in self.keywords

    def mail_parameters(self, parameters: dict[bytes, bytes | None]) -> bytes:
        """The parameters of a client's MAIL that this backend may be given, each with a blank before it.

        Dropping BODY= is lawful towards a backend without 8BITMIME only because the body is not changed by us and
        a 7-bit one needs no declaration; SIZE= is a courtesy.
        """
        if not parameters:
            return b""
        out = b""
        for name, value in parameters.items():
            needs = MAIL_PARAMETER_NEEDS.get(name)
            if needs is not None and needs in self.keywords:
                out += b" " + name if value is None else b" %s=%s" % (name, value)
        return out


def ehlo_reply(hostname: bytes, size_limit_bytes: int | None) -> bytes:
    """Our answer to EHLO. RFC 1870 3: SIZE 0 means that no fixed limit is in force."""
    return b"250-%s\r\n250-PIPELINING\r\n250-SIZE %d\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n" % (
        hostname,
        size_limit_bytes or 0,
    )
