"""What happened, told once. Metrics and log lines derive from these.

Owns the event types. Does not own writing them (observe/logs.py) or counting them (dataplane counters, observe/metrics.py).
Invariant: plain data; never a message body, never AUTH data. Byte fields are what a client or backend said: unchecked,
to be encoded by whoever prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(slots=True)
class TransactionEnded:
    listener: str
    session_id: str
    transaction_id: str  # session_id plus a serial
    client: str
    helo: bytes
    sender: bytes
    recipients: int  # accepted
    recipients_refused: int
    pool: str  # "" when none was chosen
    backend: str
    outcome: TransactionOutcome
    phase: str  # the last phase reached
    cause: str  # why it ended so: "backend said so", "client reset", "no usable backend", ...
    reply: bytes  # last reply the client got for it, first line, without CRLF; b"" if none
    message_bytes: int  # body octets sent to the backend
    attempts: int
    duration_s: float
    recipient: bytes = b""  # the first accepted one; if nobody was accepted, the first one asked for
    digest: str = ""  # of the body of a message in doubt, hexadecimal


@dataclass(slots=True)
class AttemptFailed:
    """An attempt that ended in a fault or in doubt, or was replaced. `blamed`: counts against the backend (design 4.4)."""

    pool: str
    backend: str
    session_id: str
    client: str
    outcome: AttemptOutcome
    phase: str
    reason: str  # closed set: see policy/outcome.py Reason
    detail: bytes  # the backend's words or the system's, first line
    blamed: bool
    transaction_id: str = ""  # "" of an AUTH, which belongs to none


@dataclass(slots=True)
class BackendBlamed:
    """A fault was proven to be this backend's (design 4.4). What ejection counts; not a line of its own at level info."""

    pool: str
    backend: str
    session_id: str
    client: str
    reason: str


@dataclass(slots=True)
class SessionEnded:
    listener: str
    session_id: str
    client: str
    reason: str
    transactions: int
    duration_s: float


@dataclass(slots=True)
class BackendChanged:
    """A backend's effective state changed, or its operator state or weight did."""

    pool: str
    backend: str
    old: str
    new: str
    reason: str
    down_for_s: float | None = None  # set when it comes back


@dataclass(slots=True)
class GroupShifted:
    group: str
    old: tuple[tuple[str, int], ...]
    new: tuple[tuple[str, int], ...]
    reason: str


@dataclass(slots=True)
class Notice:
    """Life of the process: started, listening, stopping, a problem of our own."""

    level: str  # info | warning | error
    what: str  # closed set of short names: "started", "listening", "stopping", "bug", ...
    text: str
    fields: dict[str, str | int | float] = field(default_factory=dict)


Event = (
    TransactionEnded | AttemptFailed | BackendBlamed | SessionEnded | BackendChanged | GroupShifted | Notice
)
