"""How attempts and transactions end, and in which phase: the closed words for it, in events, counters and lines.

Owns nothing but the words. Invariant: each is what metrics and lines print.
"""

from __future__ import annotations

from enum import StrEnum


class TransactionOutcome(StrEnum):
    __hash__ = str.__hash__  # Enum's own is a Python call

    OK = "ok"  # a backend's 250 was relayed
    REFUSED = "refused"  # by us, on the client's account (limits, accept, syntax)
    TEMPFAIL = "tempfail"  # 4xx, ours or a backend's
    PERMFAIL = "permfail"  # 5xx of a backend
    ABORTED = "aborted"  # RSET, QUIT, EHLO or gone before the end of data
    IN_DOUBT = "in_doubt"  # terminator handed over, no reply (design 4.7)


class AttemptOutcome(StrEnum):
    __hash__ = str.__hash__  # Enum's own is a Python call

    OK = "ok"
    VERDICT = "verdict"
    FAULT = "fault"
    IN_DOUBT = "in_doubt"
    REPLACED = "replaced"  # a stale kept connection, exchanged for a new one
    ABANDONED = "abandoned"  # the client ended it


class Phase(StrEnum):
    """Where in its life an attempt is; also the name of the timeout that bounds it."""

    __hash__ = str.__hash__  # Enum's own is a Python call

    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "hello"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BLOCK = "block"
    FINAL = "final"
    RSET = "rset"
    QUIT = "quit"
