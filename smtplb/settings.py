"""Plain settings: what a configuration file has become once it was read and checked.

Owns the types that policy, dataplane and controlplane share. Does not own reading or checking: that is config/.
Invariant: immutable, complete (every default filled in), picklable, free of any library beyond the standard one.
Units are in the names: `_s` seconds, `_bytes` octets, `_ratio` 0..1. `None` means "no limit" where a limit may be absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


class Policy(StrEnum):
    ROUND_ROBIN = "round-robin"
    WEIGHTED = "weighted"
    LEAST_CONNECTION = "least-connection"


class CheckLevel(StrEnum):
    OFF = "off"
    TCP = "tcp"
    BANNER = "banner"
    EHLO = "ehlo"


class GroupMode(StrEnum):
    ACTIVE_ACTIVE = "active-active"
    ACTIVE_PASSIVE = "active-passive"


class FailbackMode(StrEnum):
    AUTO = "auto"
    MANUAL = "manual"


class BareNewline(StrEnum):
    NORMALIZE = "normalize"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Address:
    """A stream address: TCP (`host` is a name or an IP address without brackets) or, with `path`, a unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Domains:
    """Domain patterns, lower case ASCII. `suffixes` are written without the leading dot: `.x` matches any subdomain of x, not x."""

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Condition:
    """Facts that must all hold (keys ANDed); inside a key any value will do (ORed). None: the key was not written.

    The empty condition holds always. Judged per recipient (policy/routing.py).
    """

    client: tuple[Network, ...] | None = None
    helo: Domains | None = None
    sender: frozenset[str] | None = None
    sender_domain: Domains | None = None
    recipient: frozenset[str] | None = None
    recipient_domain: Domains | None = None
    size_over_bytes: int | None = None
    negated: Condition | None = None  # `not:` must fail for this condition to hold


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    sessions: int | None = 2000
    recipients: int = 1000  # accepted RCPTs per transaction. RFC 5321 4.5.3.1.8: at least 100
    message_size_bytes: int | None = 50 * 1024 * 1024
    errors: int = 20  # error replies in one session, then 421 4.7.0. Postfix smtpd_hard_error_limit 20
    idle_timeout_s: float = 300.0  # RFC 5321 4.5.3.2.7: at least 5 minutes


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    name: str
    binds: tuple[Address, ...]
    target: str  # a pool or a group: one namespace
    accept: tuple[Condition, ...] | None = (
        None  # None: left out, and config proved that it may be (design 4.13)
    )
    bare_newline: BareNewline = BareNewline.NORMALIZE
    limits: ListenerLimits = field(default_factory=ListenerLimits)


@dataclass(frozen=True, slots=True)
class CheckSettings:
    level: CheckLevel = CheckLevel.EHLO
    interval_s: float = 10.0
    fast_interval_s: float = 2.0  # while the result is uncertain (neither rise nor fall reached)
    timeout_s: float = 8.0  # the whole probe. Above postscreen's greet wait of 6 s
    rise: int = 2
    fall: int = 3
    hello: str = ""  # name in EHLO; empty: the balancer's own host name


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Kept connections to one backend. A limit of 0 for `idle` keeps none."""

    idle: int = 32
    idle_timeout_s: float = 60.0
    max_age_s: float = 240.0  # below Postfix smtpd_timeout 300 s
    max_transactions: int = 1000


@dataclass(frozen=True, slots=True)
class TimeoutSettings:
    """How long a backend may take in each phase. RFC 5321 4.5.3.2 names the client's minima; ours are not below them."""

    connect_s: float = 5.0
    greeting_s: float = 30.0
    mail_s: float = 300.0
    rcpt_s: float = 300.0
    data_s: float = 120.0
    block_s: float = 180.0
    final_s: float = 720.0


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Time from a client's command to our reply (design 4.14); all attempts together."""

    rcpt_s: float = 270.0
    data_s: float = 100.0


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One MTA address with everything a pool sets for its backends already merged in."""

    pool: str
    name: str
    address: Address
    weight: int = 1
    backup: bool = False  # used only while no other backend of the pool is usable
    source: str | None = None  # local IP address towards the backend
    check: CheckSettings = field(default_factory=CheckSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)

    @property
    def key(self) -> tuple[str, str]:
        return (self.pool, self.name)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    name: str
    backends: tuple[BackendSettings, ...]
    policy: Policy = Policy.ROUND_ROBIN
    budget: BudgetSettings = field(default_factory=BudgetSettings)


@dataclass(frozen=True, slots=True)
class GroupMember:
    pool: str
    share: int = 100  # active-active: parts of the whole; without meaning in active-passive


@dataclass(frozen=True, slots=True)
class GroupSettings:
    name: str
    mode: GroupMode
    members: tuple[GroupMember, ...]  # active-passive: first is preferred
    failover_below_ratio: float = 0.5  # usable weight of a pool strictly below this: load goes on
    failback_mode: FailbackMode = FailbackMode.AUTO
    failback_delay_s: float = 60.0


@dataclass(frozen=True, slots=True)
class AdminSettings:
    bind: Address | None = None
    socket: str | None = None
    token: str | None = field(default=None, repr=False)  # content of token_file; None: changes only through the socket


@dataclass(frozen=True, slots=True)
class LogSettings:
    format: str = "auto"  # auto | text | ecs
    level: str = "info"  # debug | info | warning | error
    destination: str = "stdout"  # stdout | stderr | a file
    addresses: str = "plain"  # plain | hash | omit


@dataclass(frozen=True, slots=True)
class ShutdownSettings:
    delay_s: float = 5.0  # readyz says 503 while we still accept
    drain_s: float = 60.0  # then transactions end, at the latest after this


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """What the data plane needs: everything that a message can meet on its way."""

    hostname: str
    listeners: tuple[ListenerSettings, ...]
    pools: tuple[PoolSettings, ...]
    groups: tuple[GroupSettings, ...] = ()
    attempts: int = 3  # of one transaction, replacement of stale connections not counted (replay.attempts)


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration."""

    traffic: TrafficSettings
    admin: AdminSettings = field(default_factory=AdminSettings)
    probes_bind: Address | None = None
    log: LogSettings = field(default_factory=LogSettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    sha256: str = ""  # of the files it came from, hexadecimal; "" when it came from none
    source: str = ""  # the file, as it was named
