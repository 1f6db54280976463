"""The keys of this version's configuration file.

Owns which keys exist, the form of their values, and the keys that a later version will know. Does not own
defaults (smtplb/settings.py), rules between keys (pools.py, pool_limits.py, back_tls.py, groups.py, routes.py,
listeners.py, listener_rules.py, front_tls.py, document.py) or conditions (conditions.py).
Invariant: a key is here only if it has an effect, and docs/configuration.md describes each (tests/config
checks that).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from smtplb.config import pem, readers
from smtplb.config.addresses import backend_address, source_address
from smtplb.config.conditions import NetworkList, When, anyone
from smtplb.config.errors import quote
from smtplb.config.replies import refuse_reply
from smtplb.config.scalars import (
    boolean,
    choice,
    duration,
    duration_to,
    hostname,
    name,
    or_unlimited,
    percent,
    positive_duration,
    positive_size,
    text,
    whole,
    word,
)
from smtplb.config.section import Section, as_list
from smtplb.settings import (
    Address,
    AuthMode,
    BackTlsMode,
    BalancePer,
    BareNewline,
    CheckLevel,
    ClientCertificates,
    FailbackMode,
    FrontTlsMode,
    GroupMode,
    IdentityMode,
    OtherRoute,
    Policy,
    ReceivedMode,
    RefuseReply,
)

ANYONE = "anyone"
OFF = "off"
TLS_VERSIONS = ("TLS1.2", "TLS1.3")
MAX_CONNECTIONS = 65535  # more than one address can open to another: ports
MAX_GREETING_DELAY_S = 60.0  # RFC 5321 4.5.3.2.1: a client waits 5 minutes; people at its end wait less
LOG_FORMATS = ("auto", "text", "ecs")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_ADDRESSES = ("plain", "hash", "omit")


class Mta(StrEnum):
    POSTFIX = "postfix"
    EXIM = "exim"
    SENDMAIL = "sendmail"
    EXCHANGE = "exchange"


def _accept(value: object) -> object:
    if value == ANYONE:
        return anyone()
    if isinstance(value, str):
        raise ValueError(f"{quote(value)}: must be a list of conditions, or the word {ANYONE}")
    return as_list(value)


def _one_version(value: object) -> int:
    if value != 1 or isinstance(value, bool):
        raise ValueError("this program reads version 1")
    return 1


Level = Annotated[CheckLevel, PlainValidator(choice(CheckLevel, ("starttls", "auth", "rcpt")))]
Duration = Annotated[float, PlainValidator(duration)]
PositiveDuration = Annotated[float, PlainValidator(positive_duration)]
Size = Annotated[int, PlainValidator(positive_size)]
Percent = Annotated[float, PlainValidator(percent)]
Name = Annotated[str, PlainValidator(name)]
Hostname = Annotated[str, PlainValidator(hostname)]
Sources = Annotated[
    list[Annotated[str, PlainValidator(source_address)]],
    BeforeValidator(as_list),
    Field(min_length=1),
]
Count = Annotated[int, PlainValidator(whole(1, 1_000_000))]
CountOrUnlimited = Annotated[int | None, PlainValidator(or_unlimited(whole(1, 1_000_000)))]
Bind = Annotated[Address, PlainValidator(readers.bind)]
Authorities = Annotated[str, PlainValidator(readers.good_path(pem.authorities))]


# Pools.


class Check(Section):
    later = frozenset({"recipient"})

    level: Level | None = None
    interval_s: PositiveDuration | None = Field(None, alias="interval")
    fast_interval_s: PositiveDuration | None = Field(None, alias="fast_interval")
    timeout_s: PositiveDuration | None = Field(None, alias="timeout")
    rise: Annotated[int, PlainValidator(whole(1, 100))] | None = None
    fall: Annotated[int, PlainValidator(whole(1, 100))] | None = None
    hello: Hostname | None = None


class Connections(Section):
    idle: Annotated[int, PlainValidator(whole(0, 100_000))] | None = None
    warm: Annotated[int, PlainValidator(whole(0, 1000))] | None = None
    idle_timeout_s: PositiveDuration | None = Field(None, alias="idle_timeout")
    max_age_s: PositiveDuration | None = Field(None, alias="max_age")
    max_transactions: Count | None = None


class Timeouts(Section):
    connect_s: PositiveDuration | None = Field(None, alias="connect")
    greeting_s: PositiveDuration | None = Field(None, alias="greeting")
    mail_s: PositiveDuration | None = Field(None, alias="mail")
    rcpt_s: PositiveDuration | None = Field(None, alias="rcpt")
    data_s: PositiveDuration | None = Field(None, alias="data")
    block_s: PositiveDuration | None = Field(None, alias="block")
    final_s: PositiveDuration | None = Field(None, alias="final")


class Budget(Section):
    rcpt_s: PositiveDuration | None = Field(None, alias="rcpt")
    data_s: PositiveDuration | None = Field(None, alias="data")


class BackTls(Section):
    mode: Annotated[BackTlsMode, PlainValidator(choice(BackTlsMode))] | None = None
    verify: Annotated[bool, PlainValidator(boolean)] | None = None
    ca: Authorities | None = None
    server_name: Hostname | None = None


class Queue(Section):
    length: Count | None = None
    timeout_s: PositiveDuration | None = Field(None, alias="timeout")


class Eject(Section):
    # From 2: no client alone may take a backend out, and one network counts once.
    after: Annotated[int, PlainValidator(whole(2, 1000))] | None = None
    for_s: PositiveDuration | None = Field(None, alias="for")
    max_for_s: PositiveDuration | None = Field(None, alias="max_for")
    at_most_ratio: Percent | None = Field(None, alias="at_most")
    refusals: Annotated[bool, PlainValidator(boolean)] | None = None


NO_EJECT = Eject.model_construct()  # `eject: off`: this very object


def _eject(value: object) -> object:
    if value == OFF:
        return NO_EJECT
    if isinstance(value, str | int):
        raise ValueError(f"{quote(value)}: must be a mapping of keys, or the word {OFF}")
    return value


class PerBackend(Section):
    """What defaults.pool, a pool and a backend may all say. The most specific one counts, key by key."""

    mta: Annotated[Mta, PlainValidator(choice(Mta))] | None = None
    source: Sources | None = None
    max_connections: Annotated[int | None, PlainValidator(or_unlimited(whole(1, MAX_CONNECTIONS)))] = None
    identity: Annotated[IdentityMode, PlainValidator(choice(IdentityMode))] | None = None
    received: Annotated[ReceivedMode, PlainValidator(choice(ReceivedMode))] | None = None
    tls: BackTls | None = None
    check: Check | None = None
    connections: Connections | None = None
    timeouts: Timeouts | None = None


class PoolDefaults(PerBackend):
    later = frozenset({"hash_on"})

    policy: Annotated[Policy, PlainValidator(choice(Policy, ("random-two", "fastest", "hash")))] | None = None
    budget: Budget | None = None
    balance_per: Annotated[BalancePer, PlainValidator(choice(BalancePer))] | None = None
    queue: Queue | None = None
    eject: Annotated[Eject | None, BeforeValidator(_eject)] = None
    slow_start_s: Duration | None = Field(None, alias="slow_start")


class Backend(PerBackend):
    later = frozenset({"eject", "slow_start"})
    required = {"address": "address: HOST:PORT"}
    shorthand = "address"

    name: Annotated[str, PlainValidator(text)] | None = None  # pools.py: a name, or an address
    address: Annotated[Address, PlainValidator(backend_address)] | None = None
    weight: Annotated[int, PlainValidator(whole(0, 256))] | None = None
    backup: Annotated[bool, PlainValidator(boolean)] = False


class Pool(PoolDefaults):
    required = {"backends": 'backends: ["HOST:PORT"]'}

    backends: list[Backend] = []


# Groups.


class Member(Section):
    required = {"pool": "pool: NAME"}
    shorthand = "pool"

    pool: Name | None = None
    share: Annotated[int, PlainValidator(whole(0, 100))] | None = None


class Failback(Section):
    mode: Annotated[FailbackMode, PlainValidator(choice(FailbackMode))] | None = None
    delay_s: Duration | None = Field(None, alias="delay")


class Group(Section):
    required = {"mode": "mode: active-passive or active-active", "pools": "pools: [FIRST, SECOND]"}

    mode: Annotated[GroupMode, PlainValidator(choice(GroupMode))] | None = None
    pools: list[Member] = []
    failover_below_ratio: Percent | None = Field(None, alias="failover_below")
    failback: Failback | None = None


# Routes.


class RouteRule(Section):
    when: When | None = None
    to: Name | None = None
    refuse: Annotated[RefuseReply, PlainValidator(refuse_reply)] | None = None


# Listeners.


class Limits(Section):
    sessions: CountOrUnlimited = None
    sessions_per_client: CountOrUnlimited = None
    sessions_per_network: CountOrUnlimited = None
    connections_per_minute: CountOrUnlimited = None
    messages_per_minute: CountOrUnlimited = None
    recipients_per_minute: CountOrUnlimited = None
    recipients: Count | None = None
    message_size_bytes: Annotated[int | None, PlainValidator(or_unlimited(positive_size))] = Field(
        None, alias="message_size"
    )
    errors: Count | None = None
    idle_timeout_s: PositiveDuration | None = Field(None, alias="idle_timeout")
    body_timeout_s: PositiveDuration | None = Field(None, alias="body_timeout")


class Certificate(Section):
    required = {"certificate": "certificate: FILE, in PEM, with its chain", "key": "key: FILE, in PEM"}

    certificate: Annotated[str, PlainValidator(readers.good_path(pem.certificate))] | None = None
    key: Annotated[str, PlainValidator(readers.good_path(pem.key))] | None = None


class FrontTls(Section):
    mode: Annotated[FrontTlsMode, PlainValidator(choice(FrontTlsMode))] | None = None
    certificates: list[Certificate] = []
    minimum: Annotated[str, PlainValidator(word(TLS_VERSIONS))] | None = Field(None, alias="min")
    client_certificates: Annotated[ClientCertificates, PlainValidator(choice(ClientCertificates))] | None = (
        None
    )
    client_ca: Authorities | None = None


class Clients(Section):
    allow: NetworkList | None = None
    deny: NetworkList | None = None


class Listener(Section):
    required = {
        "bind": 'bind: "127.0.0.1:2525"',
        "to": "to: the pool, group or route that takes the mail",
    }

    name: Name | None = None
    bind: Annotated[
        list[Annotated[tuple[Address, ...], PlainValidator(readers.binds)]],
        BeforeValidator(as_list),
        Field(min_length=1),
    ] = []
    to: Name | None = None
    accept: Annotated[list[When], BeforeValidator(_accept), Field(min_length=1)] | None = None
    clients: Clients | None = None
    proxy_protocol_from: NetworkList | None = None
    xclient_from: NetworkList | None = None
    tls: FrontTls | None = None
    auth: Annotated[AuthMode, PlainValidator(choice(AuthMode))] | None = None
    auth_without_tls: Annotated[bool, PlainValidator(boolean)] | None = None
    bare_newline: Annotated[BareNewline, PlainValidator(choice(BareNewline))] | None = None
    other_route: Annotated[OtherRoute, PlainValidator(choice(OtherRoute))] | None = None
    limits: Limits | None = None
    greeting_delay_s: Annotated[float, PlainValidator(duration_to(MAX_GREETING_DELAY_S))] | None = Field(
        None, alias="greeting_delay"
    )


# The rest.


class Shutdown(Section):
    delay_s: Duration | None = Field(None, alias="delay")
    drain_s: Duration | None = Field(None, alias="drain")


class Replay(Section):
    memory_bytes: Size | None = Field(None, alias="memory")
    shared_memory_bytes: Size | None = Field(None, alias="shared_memory")
    per_message_bytes: Size | None = Field(None, alias="per_message")
    total_bytes: Size | None = Field(None, alias="total")
    attempts: Annotated[int, PlainValidator(whole(1, 10))] | None = None


class InDoubt(Section):
    remember_s: Duration | None = Field(None, alias="remember")


class Defaults(Section):
    pool: PoolDefaults | None = None


class Admin(Section):
    bind: Bind | None = None
    socket: Annotated[str, PlainValidator(readers.admin_socket)] | None = None
    token: Annotated[str, PlainValidator(readers.token)] | None = Field(None, alias="token_file")


class Probes(Section):
    required = {"bind": 'bind: "0.0.0.0:8026"'}

    bind: Bind | None = None


class Log(Section):
    format: Annotated[str, PlainValidator(word(LOG_FORMATS))] | None = None
    level: Annotated[str, PlainValidator(word(LOG_LEVELS))] | None = None
    destination: Annotated[str, PlainValidator(readers.log_destination)] | None = None
    addresses: Annotated[str, PlainValidator(word(LOG_ADDRESSES))] | None = None


class Document(Section):
    """The whole file, in the order in which mail flows through it."""

    required = {
        "listeners": 'listeners: [{bind: "127.0.0.1:2525", to: POOL}]',
        "pools": 'pools: {POOL: {backends: ["HOST:PORT"]}}',
    }
    later = frozenset({"user"})

    version: Annotated[int, PlainValidator(_one_version)] = 1
    hostname: Hostname | None = None
    include: Annotated[list[Annotated[str, PlainValidator(text)]], BeforeValidator(as_list)] = []
    workers: Annotated[int, PlainValidator(readers.workers)] = 1
    worker_cpu_affinity: Annotated[bool, PlainValidator(boolean)] = False
    state_dir: Annotated[str, PlainValidator(readers.state_directory)] | None = None
    shutdown: Shutdown | None = None
    replay: Replay | None = None
    in_doubt: InDoubt | None = None
    networks: dict[str, Any] = {}
    defaults: Defaults | None = None
    listeners: list[Listener] = []
    routes: dict[str, list[RouteRule]] = {}
    groups: dict[str, Group] = {}
    pools: dict[str, Pool] = {}
    admin: Admin | None = None
    probes: Probes | None = None
    log: Log | None = None
