"""The table of commands: verbs, in which phase each may come, and whether it takes an argument.

Owns the order of commands (RFC 5321 4.1.4). Does not own the grammar of arguments (commands.py).
Invariant: each verb that is not in the table is known to be refused, and how.
"""

from __future__ import annotations

from typing import Final

# Phases: where a session stands, as far as the order of commands goes. A verb has the sum of those in which it is in order.
GREETED: Final = 1  # no HELO or EHLO yet
READY: Final = 2  # between transactions
IN_MAIL: Final = 4  # MAIL was accepted, no RCPT yet
IN_RCPT: Final = 8  # a RCPT came
ANY: Final = GREETED | READY | IN_MAIL | IN_RCPT


class Verb:
    """A verb and its rules: phases in which it is in order, whether an argument is needed, and whether one may come.

    One object for each verb, known by identity. Not an enumeration: each line looks at these, and members of an enumeration
    are found by name each time.
    """

    __slots__ = ("may_have_argument", "needs_argument", "phases", "token")

    def __init__(self, token: bytes, phases: int, argument: str) -> None:
        self.token = token
        self.phases = phases
        self.needs_argument = argument == "required"
        self.may_have_argument = argument != "forbidden"

    def __repr__(self) -> str:
        return self.token.decode()


HELO: Final = Verb(b"HELO", ANY, "required")
EHLO: Final = Verb(b"EHLO", ANY, "required")
MAIL: Final = Verb(b"MAIL", READY, "required")
RCPT: Final = Verb(b"RCPT", IN_MAIL | IN_RCPT, "required")
DATA: Final = Verb(b"DATA", IN_RCPT, "forbidden")
BDAT: Final = Verb(
    b"BDAT", ANY, "required"
)  # its octets follow whatever the phase: the dialogue sorts it out
STARTTLS: Final = Verb(b"STARTTLS", GREETED | READY, "forbidden")
AUTH: Final = Verb(b"AUTH", READY, "required")
XCLIENT: Final = Verb(b"XCLIENT", GREETED | READY, "required")
RSET: Final = Verb(b"RSET", ANY, "forbidden")
NOOP: Final = Verb(b"NOOP", ANY, "allowed")
VRFY: Final = Verb(b"VRFY", ANY, "required")
HELP: Final = Verb(b"HELP", ANY, "allowed")
QUIT: Final = Verb(b"QUIT", ANY, "forbidden")

VERBS: Final = {
    verb.token: verb
    for verb in (HELO, EHLO, MAIL, RCPT, DATA, BDAT, STARTTLS, AUTH, XCLIENT, RSET, NOOP, VRFY, HELP, QUIT)
}

# Known, not offered: 502 (RFC 5321 4.2.4), while anything else is 500.
NOT_IMPLEMENTED: Final = frozenset(
    {b"EXPN", b"SEND", b"SOML", b"SAML", b"TURN", b"ETRN", b"ATRN", b"BURL", b"XFORWARD"}
)
# A browser made to speak to us (ALPACA, CVE-2021-3618): the session ends at the first of these.
FOREIGN: Final = frozenset(
    {b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT", b"PATCH", b"TRACE"}
)
