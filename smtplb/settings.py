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


class FrontTlsMode(StrEnum):
    OFF = "off"
    STARTTLS = "starttls"
    STARTTLS_REQUIRED = "starttls-required"
    IMPLICIT = "implicit"


class BackTlsMode(StrEnum):
    OFF = "off"
    OPPORTUNISTIC = "opportunistic"  # never verifies; in clear where it cannot be had
    REQUIRED = "required"  # never falls back
    IMPLICIT = "implicit"


class IdentityMode(StrEnum):
    NONE = "none"
    XFORWARD = "xforward"
    XCLIENT = "xclient"
    PROXY_V1 = "proxy-v1"
    PROXY_V2 = "proxy-v2"

    @property
    def binds(self) -> bool:
        """A connection that told this identity belongs to the session for life (design 4.11)."""
        return self in (IdentityMode.XCLIENT, IdentityMode.PROXY_V1, IdentityMode.PROXY_V2)


class ReceivedMode(StrEnum):
    AUTO = "auto"  # where the backend cannot see the client
    ALWAYS = "always"
    NEVER = "never"


class AuthMode(StrEnum):
    OFF = "off"
    RELAY = "relay"


class OtherRoute(StrEnum):
    DEFER = "defer"
    FOLLOW = "follow"


class ClientCertificates(StrEnum):
    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class BalancePer(StrEnum):
    TRANSACTION = "transaction"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Address:
    """A stream address: TCP (`host` is a name or an IP address without brackets) or, with `path`, a unix socket; or, with
    `handed`, whatever sockets of that name systemd hands down (FileDescriptorName=).
    """

    host: str = ""
    port: int = 0
    path: str | None = None
    handed: str | None = None

    def __str__(self) -> str:
        if self.handed is not None:
            return f"systemd:{self.handed}"
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
    tls: bool | None = None
    auth: bool | None = None
    size_over_bytes: int | None = None
    negated: Condition | None = None  # `not:` must fail for this condition to hold


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    certificate: str  # PEM file, chain included
    key: str  # PEM file


@dataclass(frozen=True, slots=True)
class FrontTlsSettings:
    mode: FrontTlsMode = FrontTlsMode.OFF
    certificates: tuple[CertificateSettings, ...] = ()  # the first is for clients without SNI
    minimum: str = "TLS1.2"  # or TLS1.3
    client_certificates: ClientCertificates = ClientCertificates.OFF
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class BackTlsSettings:
    mode: BackTlsMode = BackTlsMode.OFF
    verify: bool = True  # required and implicit only
    ca: str | None = None  # PEM file; None: the system's
    server_name: str | None = None  # for SNI and verification; None: the backend's host name, if it is one


@dataclass(frozen=True, slots=True)
class ClientRules:
    """Who may connect, by network: deny is looked at first; allow None: anybody."""

    allow: tuple[Network, ...] | None = None
    deny: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    sessions: int | None = 2000
    sessions_per_client: int | None = None  # a client is an IPv4 address or an IPv6 /64
    sessions_per_network: int | None = None  # IPv4 /24, IPv6 /56
    connections_per_minute: int | None = None  # per client
    messages_per_minute: int | None = None  # per client
    recipients_per_minute: int | None = None  # per client
    recipients: int = 1000  # accepted RCPTs per transaction. RFC 5321 4.5.3.1.8: at least 100
    message_size_bytes: int | None = 50 * 1024 * 1024
    errors: int = 20  # error replies in one session, then 421 4.7.0. Postfix smtpd_hard_error_limit 20
    idle_timeout_s: float = 300.0  # RFC 5321 4.5.3.2.7: at least 5 minutes
    body_timeout_s: float = 3600.0  # for a whole message: a byte a second does not keep a session


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    name: str
    binds: tuple[Address, ...]
    target: str  # a pool, group or route: one namespace
    accept: tuple[Condition, ...] | None = (
        None  # None: left out, and config proved that it may be (design 4.13)
    )
    bare_newline: BareNewline = BareNewline.NORMALIZE
    limits: ListenerLimits = field(default_factory=ListenerLimits)
    tls: FrontTlsSettings = field(default_factory=FrontTlsSettings)
    auth: AuthMode = AuthMode.OFF
    auth_without_tls: bool = False  # config allows it on loopback only
    clients: ClientRules = field(default_factory=ClientRules)
    proxy_protocol_from: tuple[Network, ...] = ()  # must send a PROXY header; from others one is refused
    xclient_from: tuple[Network, ...] = ()
    other_route: OtherRoute = OtherRoute.DEFER
    greeting_delay_s: float = 0.0

    def met_like(self, other: ListenerSettings) -> bool:
        """Sessions that began by these settings can go on by the others: nothing that is settled at their beginning differs."""
        mine = (self.tls.mode, self.auth, self.auth_without_tls, self.proxy_protocol_from, self.xclient_from)
        return mine == (
            other.tls.mode,
            other.auth,
            other.auth_without_tls,
            other.proxy_protocol_from,
            other.xclient_from,
        )


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
    warm: int = 0  # of these, so many are opened before anybody needs them
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
    tls: BackTlsSettings = field(default_factory=BackTlsSettings)
    identity: IdentityMode = IdentityMode.NONE
    received: ReceivedMode = ReceivedMode.AUTO
    max_connections: int | None = (
        None  # to this backend, kept and checks' own not counted apart; None: no limit
    )

    @property
    def adds_received(self) -> bool:
        """XFORWARD is for logs only: a backend's Received line names us, so ours has to name the client."""
        if self.received is ReceivedMode.AUTO:
            return not self.identity.binds
        return self.received is ReceivedMode.ALWAYS

    @property
    def key(self) -> tuple[str, str]:
        return (self.pool, self.name)

    def reached_like(self, other: BackendSettings) -> bool:
        """Its connections, and what is known of its health, are good for the other settings, too."""
        return (self.address, self.source, self.tls, self.identity) == (
            other.address,
            other.source,
            other.tls,
            other.identity,
        )


@dataclass(frozen=True, slots=True)
class EjectSettings:
    """Passive health: taking a backend out for a while by what its traffic shows."""

    after: int = 5  # client networks in a row that met a fault of this backend
    for_s: float = 30.0  # the first time; twice as long the second time, and so on
    max_for_s: float = 300.0
    at_most_ratio: float = 0.5  # of a pool's backends, rounded down, but one of two or more
    refusals: bool = False  # also one that refuses nearly every recipient, while the others do not


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Transactions that wait while every usable backend has max_connections in use."""

    length: int = 500
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    name: str
    backends: tuple[BackendSettings, ...]
    policy: Policy = Policy.ROUND_ROBIN
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    balance_per: BalancePer = BalancePer.TRANSACTION
    queue: QueueSettings = field(default_factory=QueueSettings)
    eject: EjectSettings | None = field(default_factory=EjectSettings)  # None: off
    slow_start_s: float = 0.0  # how long a backend that came back takes to its full weight


@dataclass(frozen=True, slots=True)
class RefuseReply:
    """What a `refuse` rule answers: "550 5.7.1 not here"."""

    code: int
    enhanced: str
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Exactly one of `target` and `refuse`; `when` None only in the last rule."""

    when: Condition | None
    target: str | None = None
    refuse: RefuseReply | None = None


@dataclass(frozen=True, slots=True)
class RouteSettings:
    name: str
    rules: tuple[Rule, ...]


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
    token: str | None = field(
        default=None, repr=False
    )  # content of token_file; None: changes only through the socket


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
class ReplaySettings:
    """What may be kept of bodies under way, so that another backend can be sent the same message."""

    memory_bytes: int = 256 * 1024  # of one message; more goes to what is left of shared memory, or to a file
    per_message_bytes: int = 50 * 1024 * 1024
    total_bytes: int = 1024 * 1024 * 1024  # of all messages of a worker, memory and files
    directory: str | None = None  # None: the system's directory for temporary files
    shared_memory_bytes: int = 32 * 1024 * 1024  # of all messages of a worker


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """What the data plane needs: everything that a message can meet on its way."""

    hostname: str
    listeners: tuple[ListenerSettings, ...]
    pools: tuple[PoolSettings, ...]
    groups: tuple[GroupSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    in_doubt_remember_s: float = 600.0  # a retry of a message in doubt goes to the same backend first
    attempts: int = 3  # of one transaction, replacement of stale connections not counted (replay.attempts)


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration."""

    traffic: TrafficSettings
    admin: AdminSettings = field(default_factory=AdminSettings)
    probes_bind: Address | None = None
    log: LogSettings = field(default_factory=LogSettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    workers: int = 1  # processes that carry mail; 1: this one does
    worker_cpu_affinity: bool = False  # each of several workers stays on one processor
    sha256: str = ""  # of the files it came from, hexadecimal; "" when it came from none
    sha256_written: str = ""  # the same without the lists behind `file:`
    lists: tuple[str, ...] = ()  # the files behind `file:`, as paths
    source: str = ""  # the file, as it was named
