"""What happened, told once. Metrics and log lines derive from these.

Owns the event types. Does not own writing them (observe/logs.py) or counting them (dataplane counters, observe/metrics.py).
Invariant: plain data; never a message body, never AUTH data. Byte fields are what a client or backend said: unchecked,
to be encoded by whoever prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smtplb.observe.ended import SessionEnded, TransactionEnded
from smtplb.observe.outcomes import AttemptOutcome


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


# What each message and each session tells: for the log alone.
MailEvent = TransactionEnded | AttemptFailed | SessionEnded
# What the control plane hears of a worker as well.
WorkerEvent = BackendBlamed | Notice
Event = MailEvent | WorkerEvent | BackendChanged | GroupShifted
