"""The table of commands: verbs, in which phase each may come, and whether it takes an argument.

Owns the order of commands (RFC 5321 4.1.4). Does not own the grammar of arguments (commands.py).
Invariant: each verb that is not in the table is known to be refused, and how.
"""

from __future__ import annotations

from enum import Enum, Flag, auto


class Phase(Flag):
    """Where a session stands, as far as the order of commands goes."""

    GREETED = auto()  # no HELO or EHLO yet
    READY = auto()  # between transactions
    MAIL = auto()  # MAIL was accepted, no RCPT yet
    RCPT = auto()  # a RCPT came
    ANY = GREETED | READY | MAIL | RCPT


class Verb(Enum):
    """Verbs and their rules: phases in which each is in order, whether an argument is required, allowed or forbidden."""

    __hash__ = object.__hash__  # Enum's own is a Python call; members are singletons

    HELO = (b"HELO", Phase.ANY, "required")
    EHLO = (b"EHLO", Phase.ANY, "required")
    MAIL = (b"MAIL", Phase.READY, "required")
    RCPT = (b"RCPT", Phase.MAIL | Phase.RCPT, "required")
    DATA = (b"DATA", Phase.RCPT, "forbidden")
    BDAT = (b"BDAT", Phase.ANY, "required")  # its octets follow whatever the phase: the dialogue sorts it out
    STARTTLS = (b"STARTTLS", Phase.GREETED | Phase.READY, "forbidden")
    AUTH = (b"AUTH", Phase.READY, "required")
    XCLIENT = (b"XCLIENT", Phase.GREETED | Phase.READY, "required")
    RSET = (b"RSET", Phase.ANY, "forbidden")
    NOOP = (b"NOOP", Phase.ANY, "allowed")
    VRFY = (b"VRFY", Phase.ANY, "required")
    HELP = (b"HELP", Phase.ANY, "allowed")
    QUIT = (b"QUIT", Phase.ANY, "forbidden")

    def __init__(self, token: bytes, phases: Phase, argument: str) -> None:
        self.token = token
        self.phases = phases
        self.phase_bits: int = phases.value  # a Flag's own operators are Python calls
        self.argument = argument


# Known, not offered: 502 (RFC 5321 4.2.4), while anything else is 500.
NOT_IMPLEMENTED = frozenset(
    {b"EXPN", b"SEND", b"SOML", b"SAML", b"TURN", b"ETRN", b"ATRN", b"BURL", b"XFORWARD"}
)
# A browser made to speak to us (ALPACA, CVE-2021-3618): the session ends at the first of these.
FOREIGN = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT", b"PATCH", b"TRACE"})

VERBS = {verb.token: verb for verb in Verb}
