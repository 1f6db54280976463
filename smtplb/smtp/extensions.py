"""Extensions: what a backend's EHLO reply offers, what we offer, which MAIL parameter needs which extension.

Owns the keyword tables. Does not own the commands that carry them.
Invariant: a keyword of a backend never reaches a client; what we offer is ours (protocol facts: "must never be forwarded").
"""

from __future__ import annotations

import re
from typing import Final

from smtplb.smtp.replies import Reply

# RFC 5321 4.1.1.1: ehlo-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-"); ehlo-param = 1*(%d33-126)
# No two repetitions side by side that can take the same octets: that would be cubic on a long line of blanks.
_EHLO_LINE: Final = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ \t=]([\t\x20-\x7e]*))?\Z")
_MAILMAX: Final = re.compile(rb"(?:^|[ \t])MAILMAX=([1-9][0-9]{0,5})(?=[ \t]|\Z)", re.IGNORECASE)
_DIGITS: Final = re.compile(rb"[0-9]{1,19}\Z")

# Which keyword a backend must list to be given a parameter. RFC 1870, 6152, 6531, 3461, 8689, 4954.
_MAIL_NEEDS: Final = {
    b"SIZE": b"SIZE",
    b"BODY": b"8BITMIME",
    b"SMTPUTF8": b"SMTPUTF8",
    b"RET": b"DSN",
    b"ENVID": b"DSN",
    b"REQUIRETLS": b"REQUIRETLS",
    b"AUTH": b"AUTH",
}
RCPT_PARAMETERS: Final = {b"NOTIFY": b"DSN", b"ORCPT": b"DSN"}
MAIL_PARAMETERS: Final = _MAIL_NEEDS
# Dropping these towards a backend that does not list them changes nothing about the message.
_COURTESIES: Final = frozenset({b"SIZE", b"AUTH"})

# Offered in front only if every backend that the listener can reach has them, since they say what may be in a message.
END_TO_END: Final = (b"8BITMIME", b"SMTPUTF8", b"DSN", b"BINARYMIME", b"REQUIRETLS")
# Mechanisms that are bound to the TLS channel between client and backend, which we end (RFC 5929, RFC 4422).
_UNRELAYABLE_MECHANISMS: Final = (b"EXTERNAL",)

Parameters = dict[bytes, bytes | None]


def needs_of(parameters: Parameters) -> frozenset[bytes]:
    """Keywords without which a backend cannot take a transaction with these MAIL (or RCPT) parameters."""
    if not parameters:
        return frozenset()
    needs = set()
    for name, value in parameters.items():
        if name in RCPT_PARAMETERS:
            needs.add(RCPT_PARAMETERS[name])
        elif name == b"BODY":
            kind = (value or b"").upper()
            if kind == b"BINARYMIME":
                needs.update((b"BINARYMIME", b"CHUNKING"))
            elif kind == b"8BITMIME":
                needs.add(b"8BITMIME")
        elif name not in _COURTESIES:
            needs.add(_MAIL_NEEDS[name])
    return frozenset(needs)


def common_offers(backends: list[dict[bytes, bytes] | None]) -> frozenset[bytes]:
    """What all backends can do end to end, by what each last listed; nothing while one of them was never seen."""
    if not backends or any(offers is None for offers in backends):
        return frozenset()
    common = {keyword for keyword in END_TO_END if all(offers and keyword in offers for offers in backends)}
    if not all(offers and b"CHUNKING" in offers for offers in backends):
        common.discard(b"BINARYMIME")  # RFC 3030 3: BINARYMIME goes by BDAT only
    if b"8BITMIME" not in common:
        common.discard(b"SMTPUTF8")  # RFC 6531 3.1
    return frozenset(common)


def common_mechanisms(backends: list[dict[bytes, bytes] | None]) -> list[bytes]:
    """SASL mechanisms that every backend lists, in the first one's order, without those that cannot be relayed."""
    if not backends or any(offers is None for offers in backends):
        return []
    lists = [(offers or {}).get(b"AUTH", b"").upper().split() for offers in backends]
    return [
        mechanism
        for mechanism in lists[0]
        if all(mechanism in other for other in lists[1:])
        and not mechanism.endswith(b"-PLUS")
        and mechanism not in _UNRELAYABLE_MECHANISMS
    ]


def offered_size(offers: dict[bytes, bytes]) -> int:
    """SIZE of an EHLO reply; 0 for no limit, an unknown one (RFC 1870 3), and what is no number."""
    text = offers.get(b"SIZE", b"")
    return int(text) if _DIGITS.match(text) else 0


def size_limit(backends: list[dict[bytes, bytes] | None]) -> int | None:
    """The largest SIZE of all; None if one has no fixed limit or was never seen."""
    largest = 0
    for offers in backends:
        value = offered_size(offers or {})
        if value == 0:
            return None
        largest = max(largest, value)
    return largest or None


class Capabilities:
    """What a backend listed in its EHLO reply; all empty after HELO."""

    __slots__ = ("keywords", "mail_max", "pipelining", "size_limit_bytes")

    def __init__(self, reply: Reply | None = None) -> None:
        keywords: dict[bytes, bytes] = {}
        if reply is not None:
            for line in reply.lines[1:]:
                found = _EHLO_LINE.match(line)
                if found is not None:
                    keywords.setdefault(found[1].upper(), (found[2] or b"").lstrip(b" \t=").rstrip(b" \t"))
        self.keywords = keywords
        self.pipelining = b"PIPELINING" in keywords
        found_max = _MAILMAX.search(keywords.get(b"LIMITS", b""))
        self.mail_max = (
            int(found_max[1]) if found_max is not None else None
        )  # transactions in a session, RFC 9422
        self.size_limit_bytes = offered_size(keywords) or None

    def __contains__(self, keyword: bytes) -> bool:
        return keyword in self.keywords

    def mail_parameters(self, parameters: Parameters) -> bytes:
        """The parameters of a client's MAIL that this backend may be given, each with a blank before it.

        BODY=7BIT is dropped towards a backend without 8BITMIME; anything else that matters was checked by needs_of().
        """
        return self._given(parameters, _MAIL_NEEDS)

    def rcpt_parameters(self, parameters: Parameters) -> bytes:
        return self._given(parameters, RCPT_PARAMETERS)

    def _given(self, parameters: Parameters, needs: dict[bytes, bytes]) -> bytes:
        out = b""
        for name, value in parameters.items():
            if needs[name] in self.keywords or (name == b"BODY" and b"BINARYMIME" in self.keywords):
                out += b" " + name if value is None else b" %s=%s" % (name, value)
        return out


def ehlo_reply(
    hostname: bytes,
    offers: frozenset[bytes],
    *,
    size_limit_bytes: int | None,
    starttls: bool = False,
    mechanisms: list[bytes] | None = None,
    xclient: bool = False,
    limits: bytes = b"",
) -> bytes:
    """Our answer to EHLO. PIPELINING, CHUNKING and ENHANCEDSTATUSCODES are hop by hop and always ours.

    RFC 1870 3: SIZE 0 means that no fixed limit is in force.
    """
    words = [hostname, b"PIPELINING", b"SIZE %d" % (size_limit_bytes or 0)]
    words.extend(keyword for keyword in END_TO_END if keyword in offers)
    words.extend((b"CHUNKING", b"ENHANCEDSTATUSCODES"))
    if starttls:
        words.append(b"STARTTLS")
    if mechanisms:
        words.append(b"AUTH " + b" ".join(mechanisms))
    if xclient:
        words.append(b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT")
    if limits:
        words.append(b"LIMITS " + limits)
    return b"".join(b"250-%s\r\n" % word for word in words[:-1]) + b"250 %s\r\n" % words[-1]
