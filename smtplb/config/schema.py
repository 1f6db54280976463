"""The keys of this version's configuration file.

Owns which keys exist, the form of their values, and the keys that a later version will know. Does not own
defaults (smtplb/settings.py), rules between keys (pools.py, groups.py, listeners.py) or conditions
(conditions.py).
Invariant: a key is here only if it has an effect, and docs/configuration.md describes each (tests/config
checks that).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from smtplb.config.addresses import backend_address, bind_address, bind_addresses, source_address, unix_path
from smtplb.config.conditions import When, anyone
from smtplb.config.errors import quote
from smtplb.config.files import UnreadableError, read_secret
from smtplb.config.scalars import (
    boolean,
    choice,
    duration,
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
from smtplb.config.section import Section, as_list, context_of
from smtplb.settings import Address, BareNewline, CheckLevel, FailbackMode, GroupMode, Policy

ANYONE = "anyone"
IDENTITIES_LATER = ("xforward", "xclient", "proxy-v1", "proxy-v2")
LOG_FORMATS = ("auto", "text", "ecs")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_STREAMS = ("stdout", "stderr")
LOG_ADDRESSES = ("plain", "hash", "omit")


class Mta(StrEnum):
    POSTFIX = "postfix"
    EXIM = "exim"
    SENDMAIL = "sendmail"
    EXCHANGE = "exchange"


# Readers that need to know where the file stands.


def _binds(value: object, info: ValidationInfo) -> tuple[Address, ...]:
    return bind_addresses(value, context_of(info).directory)


def _bind(value: object, info: ValidationInfo) -> Address:
    return bind_address(value, context_of(info).directory)


def _socket(value: object, info: ValidationInfo) -> str:
    return unix_path(value, context_of(info).directory)


def _token(value: object, info: ValidationInfo) -> str:
    try:
        return read_secret(context_of(info).path(text(value)))
    except UnreadableError as error:
        raise ValueError(str(error)) from None


def _destination(value: object, info: ValidationInfo) -> str:
    written = text(value)
    if written in LOG_STREAMS:
        return written
    if "/" not in written:
        raise ValueError("must be stdout, stderr or a path with a slash, such as /var/log/smtplb.log")
    return str(context_of(info).path(written))


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
Percent = Annotated[float, PlainValidator(percent)]
Name = Annotated[str, PlainValidator(name)]
Hostname = Annotated[str, PlainValidator(hostname)]
Sources = Annotated[
    list[Annotated[str, PlainValidator(source_address)]],
    BeforeValidator(as_list),
    Field(min_length=1),
]
Count = Annotated[int, PlainValidator(whole(1, 1_000_000))]
Bind = Annotated[Address, PlainValidator(_bind)]


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
    later = frozenset({"warm"})

    idle: Annotated[int, PlainValidator(whole(0, 100_000))] | None = None
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


class PerBackend(Section):
    """What defaults.pool, a pool and a backend may all say. The most specific one counts, key by key."""

    later = frozenset({"max_connections", "eject", "slow_start", "received", "tls", "balance_per"})

    mta: Annotated[Mta, PlainValidator(choice(Mta))] | None = None
    source: Sources | None = None
    identity: Annotated[str, PlainValidator(word(("none",), IDENTITIES_LATER))] | None = None
    check: Check | None = None
    connections: Connections | None = None
    timeouts: Timeouts | None = None


class PoolDefaults(PerBackend):
    later = PerBackend.later | {"hash_on", "queue"}

    policy: Annotated[Policy, PlainValidator(choice(Policy, ("random-two", "fastest", "hash")))] | None = None
    budget: Budget | None = None


class Backend(PerBackend):
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


# Listeners.


class Limits(Section):
    later = frozenset({"sessions_per_client", "connections_per_minute"})

    sessions: Annotated[int | None, PlainValidator(or_unlimited(whole(1, 1_000_000)))] = None
    recipients: Count | None = None
    message_size_bytes: Annotated[int | None, PlainValidator(or_unlimited(positive_size))] = Field(
        None, alias="message_size"
    )
    errors: Count | None = None
    idle_timeout_s: PositiveDuration | None = Field(None, alias="idle_timeout")


class Listener(Section):
    required = {"bind": 'bind: "127.0.0.1:2525"', "to": "to: the pool or group that takes the mail"}
    later = frozenset(
        {"clients", "proxy_protocol_from", "xclient_from", "tls", "auth", "other_route", "greeting_delay"}
    )

    name: Name | None = None
    bind: Annotated[
        list[Annotated[tuple[Address, ...], PlainValidator(_binds)]],
        BeforeValidator(as_list),
        Field(min_length=1),
    ] = []
    to: Name | None = None
    accept: Annotated[list[When], BeforeValidator(_accept), Field(min_length=1)] | None = None
    bare_newline: Annotated[BareNewline, PlainValidator(choice(BareNewline))] | None = None
    limits: Limits | None = None


# The rest.


class Shutdown(Section):
    delay_s: Duration | None = Field(None, alias="delay")
    drain_s: Duration | None = Field(None, alias="drain")


class Replay(Section):
    later = frozenset({"memory", "per_message", "total"})

    attempts: Annotated[int, PlainValidator(whole(1, 10))] | None = None


class Defaults(Section):
    pool: PoolDefaults | None = None


class Admin(Section):
    bind: Bind | None = None
    socket: Annotated[str, PlainValidator(_socket)] | None = None
    token: Annotated[str, PlainValidator(_token)] | None = Field(None, alias="token_file")


class Probes(Section):
    required = {"bind": 'bind: "0.0.0.0:8026"'}

    bind: Bind | None = None


class Log(Section):
    format: Annotated[str, PlainValidator(word(LOG_FORMATS))] | None = None
    level: Annotated[str, PlainValidator(word(LOG_LEVELS))] | None = None
    destination: Annotated[str, PlainValidator(_destination)] | None = None
    addresses: Annotated[str, PlainValidator(word(LOG_ADDRESSES))] | None = None


class Document(Section):
    """The whole file, in the order in which mail flows through it."""

    required = {
        "listeners": 'listeners: [{bind: "127.0.0.1:2525", to: POOL}]',
        "pools": 'pools: {POOL: {backends: ["HOST:PORT"]}}',
    }
    later = frozenset({"workers", "user", "state_dir", "in_doubt", "routes"})

    version: Annotated[int, PlainValidator(_one_version)] = 1
    hostname: Hostname | None = None
    include: Annotated[list[Annotated[str, PlainValidator(text)]], BeforeValidator(as_list)] = []
    shutdown: Shutdown | None = None
    replay: Replay | None = None
    networks: dict[str, Any] = {}
    defaults: Defaults | None = None
    listeners: list[Listener] = []
    groups: dict[str, Group] = {}
    pools: dict[str, Pool] = {}
    admin: Admin | None = None
    probes: Probes | None = None
    log: Log | None = None
