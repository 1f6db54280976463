"""What control plane and data plane tell each other. Nothing else passes between them.

Owns the message types of both directions. Does not own how they travel (controlplane/link.py).
Invariant: plain, picklable data; a receiver never keeps a reference into the sender's live state.

supervisor -> worker: Snapshot, StopAccepting, DrainSessions, ReportRequest, ReloadCertificates, ReopenLog.
supervisor -> worker process, besides: WorkerStart, Handed.
worker -> supervisor: WorkerReport, SessionsDrained, BackendsAnswered, and the events of observe/events.py.
worker process -> supervisor's process: Beat.
worker -> other workers, by way of the supervisor's process: RetriesRemembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from smtplb.observe.events import WorkerEvent
from smtplb.observe.histogram import Histogram
from smtplb.settings import LogSettings, TrafficSettings

BackendKey = tuple[str, str]  # pool, backend


class BackendState(StrEnum):
    """Effective state of a backend, worst cause first when several hold (policy/health.py has the truth table)."""

    MAINT = "maint"
    DRAIN = "drain"
    UNPROVEN = "unproven"
    DOWN = "down"
    EJECTED = "ejected"
    SLOW_START = "slow-start"
    UP = "up"


@dataclass(frozen=True, slots=True)
class BackendStanding:
    """What a worker needs to know of a backend's state.

    `usable`: takes new transactions. `last_resort`: may be tried while nothing of its target is usable
    (down or ejected, or not checked yet; never drain, maint or unproven identity: design 4.8).
    """

    state: BackendState
    usable: bool
    last_resort: bool
    weight: int  # effective; 0 takes nothing while others are usable
    reachable: bool = True  # by the last check it takes connections, whatever it says on them
    offers: dict[bytes, bytes] | None = (
        None  # keywords of its last EHLO with their parameters; None: none seen yet
    )


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """The first message to a worker process: who it is, and where its log lines go. `scoreboard`: a descriptor that it has.
    `processor`: the one that it is to stay on; None: any. `tell_where`: the signal at which it says on standard error where it is.
    """

    number: int
    workers: int
    scoreboard: int
    log: LogSettings
    secret: bytes = field(repr=False)  # keys the hashes of policy/affinity.py
    tell_where: int
    processor: int | None = None


@dataclass(frozen=True, slots=True)
class Handed:
    """To a worker process, before the first snapshot of a configuration: how many listening sockets of each listener wait on its
    second socket pair, in this order; and where each backend has its place in the scoreboard. Replaces the one before it.
    """

    listeners: dict[str, int]
    places: dict[BackendKey, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that decides where a transaction may go. Replaces the snapshot before it as a whole.

    `standings` has an entry for each configured backend. `shares` has, for each group, (pool, share) in order of
    preference; a share of 0 takes nothing. Generations only grow, and so does `configuration`, by one with each reload: while
    it is the same, `traffic` is, too.
    """

    generation: int
    traffic: TrafficSettings
    standings: dict[BackendKey, BackendStanding]
    shares: dict[str, tuple[tuple[str, int], ...]]
    configuration: int = 0


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Close the worker's listeners; sessions go on."""


@dataclass(frozen=True, slots=True)
class DrainSessions:
    """421 between transactions; after `within_s` transactions whose terminator has not left end too.

    Those whose terminator has left have until `timeouts.final` (design 4.9). Answered by SessionsDrained.
    """

    within_s: float


@dataclass(frozen=True, slots=True)
class SessionsDrained:
    ended: int


SLOW_FINAL_S = 5.0  # a message that waits longer for its answer; one of SECONDS_BOUNDS


@dataclass(frozen=True, slots=True)
class Observed:
    """What one backend's traffic showed since the last such message. Clients are IP addresses, "" where there is none."""

    delivered: int = 0  # messages that it took
    quick: int = 0  # final replies within SLOW_FINAL_S
    slow: tuple[str, ...] = ()  # clients of messages that have waited longer by now, each message once
    taken: int = 0  # recipients
    refused: int = 0
    refused_clients: tuple[str, ...] = ()  # some of those


@dataclass(frozen=True, slots=True)
class BackendsAnswered:
    """How many attempts each backend answered to the end since the last such message, be it with a refusal; and what else
    was seen there.

    Sent before a BackendBlamed that follows them, so that "in a row" means the same on both sides.
    """

    counts: dict[BackendKey, int]
    observed: dict[BackendKey, Observed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RetriesRemembered:
    """Where messages that were told to come again go first: (key, backend, until, once) as policy/affinity.py has them. From one
    worker to all others. Times are of the monotonic clock, which the processes of a host share.
    """

    entries: list[tuple[bytes, BackendKey, float, bool]]


@dataclass(frozen=True, slots=True)
class ReportRequest:
    serial: int


@dataclass(slots=True)
class ListenerReport:
    """Counters of one listener since the worker started. `transactions` is keyed by (pool or "", outcome)."""

    listener: str
    accepting: bool = False
    sessions_open: int = 0
    sessions_total: int = 0
    message_bytes: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    transactions: dict[tuple[str, str], int] = field(default_factory=dict)
    durations: dict[str, Histogram] = field(default_factory=dict)  # by pool


@dataclass(slots=True)
class BackendReport:
    """Counters of one backend since the worker started; in_flight, idle, leased, connecting are as of now."""

    pool: str
    backend: str
    in_flight: int = 0
    idle: int = 0
    leased: int = 0
    connecting: int = 0
    attempts: dict[str, int] = field(default_factory=dict)  # AttemptOutcome -> count
    replies: dict[tuple[str, int], int] = field(default_factory=dict)  # (phase, code) -> count
    reuse: dict[str, int] = field(default_factory=dict)  # new | reused | stale -> count
    final: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class PoolReport:
    pool: str
    retries: dict[tuple[str, str], int] = field(default_factory=dict)  # (phase, reason) -> count
    lease_wait: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class WorkerReport:
    serial: int
    generation: int
    listeners: list[ListenerReport]
    pools: list[PoolReport]
    backends: list[BackendReport]


BEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class Beat:
    """From a worker process, every BEAT_S: its loop turns."""


@dataclass(frozen=True, slots=True)
class ReloadCertificates:
    """Certificate files changed: read them again. What cannot be read leaves the old ones in use, with a Notice."""


@dataclass(frozen=True, slots=True)
class ReopenLog:
    """The log file was renamed: open it anew. Means nothing to a worker that has no log of its own."""


ToWorker = (
    Snapshot
    | ReloadCertificates
    | ReopenLog
    | StopAccepting
    | DrainSessions
    | ReportRequest
    | RetriesRemembered
)
FromWorker = WorkerReport | Beat | SessionsDrained | BackendsAnswered | RetriesRemembered | WorkerEvent
