"""What a backend's answer, or its silence, means: fault or verdict, try elsewhere or not, blame or not (design 4.4).

Owns the table. Does not own what is done about it (policy/retry.py decides, dataplane/transaction.py acts).
Invariant: the answer depends only on what the backend did; nothing that a client can choose makes a backend blamed at once.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import Final

from smtplb.smtp.replies import Reply


class Command(StrEnum):
    """What the backend was asked; `CONNECT` covers all before the first command about the mail."""

    CONNECT = "connect"
    IDENTITY = "identity"  # XFORWARD
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "block"
    FINAL = "final"


class Elsewhere(Enum):
    NO = auto()
    ANY = auto()  # any other backend, as many as the attempts allow
    ONE_OTHER = auto()  # one other backend: a second opinion
    NEW_CONNECTION = auto()  # the same backend again, on a connection that was never used


class Blame(Enum):
    NEVER = auto()
    AT_ONCE = auto()
    IF_OTHER_SUCCEEDS = auto()


class Reason(StrEnum):
    """Why an attempt ended; label of metrics and log lines. A closed set."""

    OK = "ok"
    VERDICT = "verdict"
    CONNECT = "connect"  # no connection
    GREETING = "greeting"  # garbled or none, or an error reply to connect or EHLO
    TLS = "tls"  # a handshake that failed, or STARTTLS not to be had where it is required
    IDENTITY = "identity"  # the configured identity is not offered or refused
    BUSY = "busy"  # 421
    STORAGE = "storage"  # 452 and 4.3.x
    LOST = "lost"
    TIMEOUT = "timeout"
    GARBLED = "garbled"
    STALE = "stale"  # a kept connection that had ended, or a policy 421 on it
    MISFIT = "misfit"  # a 5xx about us, not about the mail
    EARLY_REPLY = "early-reply"  # 2xx or 3xx before our terminator
    MISMATCH = "mismatch"  # a replay got another answer than the client was given
    BUG = "bug"  # ours: an exception ended the connection
    CUT = "cut"  # we are stopping


class Decision:
    """`closing`: the backend ends the connection, or it is of no further use."""

    __slots__ = ("blame", "closing", "elsewhere", "reason")

    def __init__(self, elsewhere: Elsewhere, blame: Blame, reason: Reason, *, closing: bool) -> None:
        self.elsewhere = elsewhere
        self.blame = blame
        self.reason = reason
        self.closing = closing


_VERDICT: Final = Decision(Elsewhere.NO, Blame.NEVER, Reason.VERDICT, closing=False)
_BUSY: Final = Decision(Elsewhere.ONE_OTHER, Blame.IF_OTHER_SUCCEEDS, Reason.BUSY, closing=True)
_POLICY_421: Final = Decision(Elsewhere.NEW_CONNECTION, Blame.NEVER, Reason.STALE, closing=True)
_STALE: Final = Decision(Elsewhere.NEW_CONNECTION, Blame.NEVER, Reason.STALE, closing=True)
_STORAGE: Final = Decision(Elsewhere.ONE_OTHER, Blame.IF_OTHER_SUCCEEDS, Reason.STORAGE, closing=False)
_MISFIT: Final = Decision(Elsewhere.ANY, Blame.NEVER, Reason.MISFIT, closing=True)
_STALE_MISFIT: Final = Decision(Elsewhere.NEW_CONNECTION, Blame.NEVER, Reason.MISFIT, closing=True)
_EARLY: Final = Decision(Elsewhere.ONE_OTHER, Blame.IF_OTHER_SUCCEEDS, Reason.EARLY_REPLY, closing=True)
_LOST: Final = {
    reason: Decision(Elsewhere.ONE_OTHER, Blame.IF_OTHER_SUCCEEDS, reason, closing=True)
    for reason in (Reason.LOST, Reason.TIMEOUT, Reason.GARBLED)
}
_NO_CONNECTION: Final = {
    reason: Decision(Elsewhere.ANY, Blame.AT_ONCE, reason, closing=True)
    for reason in (Reason.CONNECT, Reason.GREETING, Reason.TLS, Reason.LOST, Reason.TIMEOUT, Reason.GARBLED)
}
# A backend that was told of a client may hang up on that client, also where we expect TLS: never blamed on its word alone.
_NO_CONNECTION_FOR_CLIENT: Final = {
    reason: Decision(Elsewhere.ONE_OTHER, Blame.IF_OTHER_SUCCEEDS, reason, closing=True)
    for reason in _NO_CONNECTION
}
_LOST[Reason.BUG] = _NO_CONNECTION[Reason.BUG] = _NO_CONNECTION_FOR_CLIENT[Reason.BUG] = Decision(
    Elsewhere.ONE_OTHER, Blame.NEVER, Reason.BUG, closing=True
)
# What a backend offers is its operator's doing, yet a client chooses what is told: nobody is ejected for it. Checks see it.
_NO_IDENTITY: Final = Decision(Elsewhere.ANY, Blame.NEVER, Reason.IDENTITY, closing=True)
# A client can make a backend busy by opening sessions here: a 421 greeting is blamed only against one that answers.
_BUSY_GREETING: Final = Decision(Elsewhere.ANY, Blame.IF_OTHER_SUCCEEDS, Reason.BUSY, closing=True)
# 421 4.7.x: too many connections from us, at a rate that our clients set.
_POLICY_GREETING: Final = Decision(Elsewhere.ANY, Blame.NEVER, Reason.BUSY, closing=True)

# Replies about what we sent, never about the mail (ran: a backend that demands TLS says 530 to MAIL).
_ABOUT_US: Final = frozenset({500, 502, 503, 504, 530, 538, 555})
_STORAGE_DETAILS: Final = frozenset({b"4.3.0", b"4.3.1", b"4.3.5"})
ERRORS_BEFORE_A_421_IS_OURS: Final = (
    5  # error replies on one connection, then a 421 or a close is an answer to those
)


def classify_reply(
    command: Command, reply: Reply, *, first_on_kept: bool, errors_before: int, enhanced_offered: bool = True
) -> Decision:
    """Decide about an error reply (4xx or 5xx) inside a transaction, before our terminator.

    `first_on_kept`: it answers the first command on a connection that served another transaction before.
    `errors_before`: error replies that this connection gave before this one. `enhanced_offered`: EHLO listed
    ENHANCEDSTATUSCODES; without it a 501 to MAIL or RCPT is taken as being about the address, since our syntax is checked.
    """
    code = reply.code
    enhanced = reply.enhanced
    if code == 421:
        if first_on_kept or errors_before >= ERRORS_BEFORE_A_421_IS_OURS:
            return _STALE
        if enhanced is not None and enhanced.startswith(b"4.7."):
            return _POLICY_421
        return _BUSY
    if code < 500:
        if enhanced in _STORAGE_DETAILS and command in (Command.MAIL, Command.RCPT, Command.DATA):
            return _STORAGE
        if code == 452 and (command is Command.MAIL or enhanced == b"4.3.1"):
            return _STORAGE
        return _VERDICT
    about_us = code in _ABOUT_US or (
        code == 501 and not _about_the_address(enhanced) and (enhanced_offered or command is Command.DATA)
    )
    if first_on_kept:  # repeated once on a fresh connection, whatever it says
        return _STALE_MISFIT if about_us else _STALE
    return _MISFIT if about_us else _VERDICT


def _about_the_address(enhanced: bytes | None) -> bool:
    return enhanced is not None and (enhanced.startswith(b"5.1.") or enhanced == b"5.5.4")


def classify_loss(reason: Reason, *, first_on_kept: bool, errors_before: int) -> Decision:
    """Decide about a connection that ended inside a transaction, before our terminator, without a reply that says why."""
    if reason is Reason.LOST and (first_on_kept or errors_before >= ERRORS_BEFORE_A_421_IS_OURS):
        return _STALE
    return _LOST[reason]


def classify_opening(reason: Reason, reply: Reply | None, *, identity_sent: bool = False) -> Decision:
    """Decide about a connection that did not come up.

    Before an identity was told, nothing about the mail or the client was said, so it is the backend's trouble. After it, an
    error reply is a verdict on the client (design 4.4), and a loss may be one. But 421 4.3.x speaks of the backend, whoever
    asks ("421 4.3.2 All server ports are busy"): another one is tried.
    """
    if reason is Reason.IDENTITY:
        return _NO_IDENTITY
    if identity_sent and not (reply is not None and reply.code == 421 and _about_the_system(reply)):
        return _VERDICT if reply is not None else _NO_CONNECTION_FOR_CLIENT[reason]
    if reply is not None and reply.code == 421:
        return _POLICY_GREETING if (reply.enhanced or b"").startswith(b"4.7.") else _BUSY_GREETING
    return _NO_CONNECTION[reason]


def _about_the_system(reply: Reply) -> bool:
    """RFC 3463 3.4: X.3.x is the mail system's status."""
    return (reply.enhanced or b"").startswith(b"4.3.")


# The client's budget ended the wait before the backend's own time was up: nobody's fault.
OPENING_CUT: Final = Decision(Elsewhere.ANY, Blame.NEVER, Reason.TIMEOUT, closing=True)
EARLY_REPLY: Final = _EARLY
IDENTITY_REFUSED: Final = _NO_IDENTITY
GARBLED_REPLY: Final = _LOST[Reason.GARBLED]
# A connection that ended while the backend owed nothing: the client's pace, not the backend's health.
IDLE_LOSS: Final = _STALE


def words_for_client(reply: Reply) -> bytes:
    """A backend's reply as the client hears it. 421 speaks of a channel that is the backend's, not ours: 451 keeps ours open."""
    return reply.wire(451) if reply.code == 421 else reply.wire()
