"""What the control plane shows of itself: read-only pictures, taken in one turn of the loop.

Owns the types that admin/ renders and the problems it lists. Does not own JSON, and no state.
Invariant: plain data, complete; a view never changes after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smtplb.observe.histogram import Histogram


@dataclass(slots=True)
class CheckView:
    level: str
    last_result: str  # "ok" | "failed" | "" before the first
    last_text: str  # "250 mx1.example.net", "421 4.3.2 All server ports are busy", "connection refused", ...
    last_at: float | None  # unix time
    duration_s: float | None
    in_a_row: int  # results alike in a row, the last included
    next_in_s: float | None
    passed: int
    failed: int
    state: str = ""  # policy.health.CheckState: what checks say, whatever the operator set
    durations: Histogram = field(default_factory=Histogram)  # of all checks so far


@dataclass(slots=True)
class OperatorView:
    state: str  # ready | drain | maint
    weight: int | None  # an override of the configured weight
    reason: str
    since: float | None  # unix time
    until: float | None  # unix time; then back to ready


@dataclass(slots=True)
class BackendView:
    pool: str
    name: str
    address: str
    backup: bool
    state: str  # messages.BackendState
    usable: bool
    reason: str
    since: float  # unix time of the last change of state
    operator: OperatorView
    check: CheckView
    weight: int
    effective_weight: int
    in_flight: int
    connections: dict[str, int]  # idle, leased, connecting
    attempts: dict[str, int]  # AttemptOutcome -> count
    reuse: dict[str, int]
    replies: dict[tuple[str, int], int]
    latency_s: dict[str, float | None]  # p50, p99 of the final reply
    final: Histogram = field(default_factory=Histogram)  # waits for the final reply
    last_resort: bool = False  # may be tried while nothing of its target is usable
    identity: str = "none"  # settings.IdentityMode: how it is to hear of clients
    offers: list[str] = field(default_factory=list)  # extensions in its last EHLO: "SIZE 10240000", "DSN"
    seen: bool = False  # it has answered EHLO to a check; else `offers` says nothing
    tls: str = ""  # version in the last good check: "TLSv1.3"; "" in clear
    tls_verified: bool = False  # by its settings
    certificate_expires: float | None = None  # unix time, of the certificate that it showed last
    ejected_until: float | None = None  # unix time; taken out by its traffic
    ca_problem: str = ""  # why the CA file it is verified against cannot be used; "" if it can


@dataclass(slots=True)
class PoolView:
    name: str
    policy: str
    backends: list[BackendView]
    usable_ratio: float  # usable weight / configured weight, backups apart
    retries: dict[tuple[str, str], int]
    lease_wait: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class GroupMemberView:
    pool: str
    share: int  # effective
    configured_share: int
    usable_ratio: float


@dataclass(slots=True)
class GroupView:
    name: str
    mode: str
    members: list[GroupMemberView]
    active: list[str]  # pools with a share above 0
    reason: str
    since: float  # unix time of the last shift
    failback_in_s: float | None  # None: none pending
    failback_waits: bool  # manual fail-back: the preferred pool is well again and waits for the operator


@dataclass(slots=True)
class CertificateView:
    file: str
    expires: float | None  # unix time, of the one in use; None: none is
    problem: str  # why the file cannot be used; "" if it can
    in_use: bool  # clients are shown what was read from it, last or before


@dataclass(slots=True)
class ListenerView:
    name: str
    binds: list[str]
    target: str
    accepting: bool
    usable_backends: int
    sessions_open: int
    sessions_limit: int | None
    sessions_total: int
    message_bytes: int
    refusals: dict[str, int]
    transactions: dict[tuple[str, str], int]
    durations: dict[str, Histogram] = field(default_factory=dict)  # of transactions, by pool
    # Pools by the name of the pool or group that mail goes to: one such name, or those in the rules of a route.
    targets: dict[str, list[str]] = field(default_factory=dict)
    tls: str = "off"  # settings.FrontTlsMode
    certificates: list[CertificateView] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)  # end-to-end extensions that clients are offered
    withheld: dict[str, list[str]] = field(default_factory=dict)  # the others, with who lacks them


@dataclass(slots=True)
class Problem:
    """`anchor` names a heading in docs/problems.md."""

    severity: str  # failing | degraded
    where: str  # "pool/backend", a listener, a group
    text: str
    hint: str
    anchor: str


@dataclass(slots=True)
class StatusView:
    hostname: str
    version: str
    condition: str  # ok | degraded | failing
    started: float  # unix time
    config_sha256: str
    config_source: str
    config_loaded: float
    problems: list[Problem]
    listeners: list[ListenerView]
    groups: list[GroupView]
    pools: list[PoolView]
    config_reload_ok: bool = True  # the last reload, or the first load, succeeded
    config_reloads: dict[str, int] = field(default_factory=dict)  # ok, failed
    worker_restarts: int = 0


@dataclass(slots=True)
class ReadinessView:
    """`reasons` is empty exactly when ready."""

    ready: bool
    reasons: list[str]
    listeners: dict[str, bool] = field(default_factory=dict)  # has a usable backend
