"""Rules between the keys of a listener.

Owns what AUTH needs, whom a front may be, and which keys and conditions of a listener can have no effect. Does
not own the relay question (relay_guard.py).
Invariant: a listener that passes never asks for a password in clear where others could read it, nor hands one
on so, and no client can pretend to be another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from smtplb.config.addresses import is_loopback
from smtplb.config.back_tls import takes_passwords
from smtplb.config.checker import Checker
from smtplb.config.conditions import When
from smtplb.config.networks import wholly_covered
from smtplb.config.relay_guard import accept_items, whence
from smtplb.config.routes import facts_of_transaction
from smtplb.config.targets import Targets
from smtplb.config.tree import Path
from smtplb.settings import (
    AuthMode,
    BackendSettings,
    FrontTlsMode,
    ListenerSettings,
    PoolSettings,
    RouteSettings,
)

MAX_NAMED = 3  # backends in one message

_ALWAYS_TLS = (FrontTlsMode.IMPLICIT, FrontTlsMode.STARTTLS_REQUIRED)


# Who connects.


def judge_clients(checker: Checker, path: Path, listener: ListenerSettings) -> None:
    """Deny and allow lists that leave nobody."""
    if wholly_covered(listener.clients.deny) == {4, 6}:
        checker.fault((*path, "clients", "deny"), "nobody could connect: it covers the whole internet")
    unix = [bind for bind in listener.binds if bind.path is not None]
    if unix and listener.clients.allow is not None:
        message = f"nobody could connect to {unix[0]}: clients of a unix socket have no address"
        checker.fault((*path, "clients", "allow"), f"{message}. Give it a listener of its own")


def judge_fronts(checker: Checker, path: Path, listener: ListenerSettings) -> None:
    """Who may say whose mail it is."""
    for key, trusted in (
        ("proxy_protocol_from", listener.proxy_protocol_from),
        ("xclient_from", listener.xclient_from),
    ):
        if wholly_covered(trusted):
            message = "covers the whole internet: anybody could pretend to be any client"
            checker.fault((*path, key), f"{message}. Write the addresses of your fronts")
        elif trusted and listener.binds and all(bind.path is not None for bind in listener.binds):
            message = "no effect: who connects to a unix socket has no address to be trusted by"
            checker.fault((*path, key), message, of_key=True)


# AUTH.


def judge_auth(checker: Checker, path: Path, listener: ListenerSettings, targets: Targets) -> None:
    tls_is_known = checker.is_sound((*path, "tls"))
    if not checker.is_sound((*path, "auth")):
        return
    if listener.auth is AuthMode.OFF:
        if checker.wrote((*path, "auth_without_tls")):
            checker.fault((*path, "auth_without_tls"), "no effect without auth: relay", of_key=True)
        return
    if tls_is_known and checker.is_sound((*path, "auth_without_tls")):
        _judge_auth_without_tls(checker, path, listener)
    _judge_auth_behind(checker, path, targets.reachable(listener.target))
    route = targets.route(listener.target)
    for where, key in facts_of_transaction(route) if route is not None else ():
        checker.fault(
            (*path, "auth"),
            f"the backend is chosen at AUTH, when the client has not yet named senders and recipients, but "
            f"route {listener.target} asks for {key}, at {checker.place(where)}. Use client, helo, tls or auth "
            "there, or another route here",
        )
        break


def _judge_auth_without_tls(checker: Checker, path: Path, listener: ListenerSettings) -> None:
    public = [bind for bind in listener.binds if not is_loopback(bind)]
    mode = listener.tls.mode
    if not listener.auth_without_tls:
        if mode is FrontTlsMode.OFF:
            also = "" if whence(listener) else ", or auth_without_tls: true since only this host can connect"
            message = "passwords are asked for under TLS only, and TLS is off here: write tls: {mode: "
            checker.fault((*path, "auth"), f"{message}starttls-required, ...}}{also}")
    elif public:
        message = f"passwords would cross the network in clear: {public[0]} can be reached from other hosts"
        checker.fault((*path, "auth_without_tls"), f"{message}. Only for loopback and unix sockets")
    elif mode in _ALWAYS_TLS:
        message = f"no effect with tls mode {mode}: nobody gets as far as AUTH without TLS"
        checker.fault((*path, "auth_without_tls"), message, of_key=True)


def _judge_auth_behind(checker: Checker, path: Path, pools: Sequence[PoolSettings]) -> None:
    """Opportunistic TLS is not enough: whoever sits in between takes STARTTLS out, and then reads."""
    clear = [
        f"{backend.pool}/{backend.name} (tls mode {backend.tls.mode})"
        for pool in pools
        for index, backend in enumerate(pool.backends)
        if not takes_passwords(backend) and _tls_is_known(checker, backend, index)
    ]
    if clear:
        more = len(clear) - MAX_NAMED
        names = ", ".join(clear[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        message = f"passwords would cross the network in clear, or could be made to, towards {names}"
        checker.fault((*path, "auth"), f"{message}: write tls: {{mode: required}}, or implicit, in the pool")


def _tls_is_known(checker: Checker, backend: BackendSettings, index: int) -> bool:
    pool: Path = ("pools", backend.pool)
    own = (*pool, "backends", index)
    deciding: list[Path] = [("defaults", "pool", "tls"), (*pool, "tls"), (*own, "tls"), (*own, "address")]
    return all(map(checker.is_sound, deciding))


# Facts that cannot be.


def judge_facts(checker: Checker, path: Path, listener: ListenerSettings, conditions: Sequence[When]) -> None:
    """Conditions of `accept` that never hold here: whoever wrote them expects mail to pass."""
    accept = (*path, "accept")
    if checker.text_at(accept) is not None:  # anyone
        return
    mode = listener.tls.mode if checker.is_sound((*path, "tls")) else None
    for item, condition in zip(accept_items(checker, accept), conditions, strict=True):
        if condition.auth and listener.auth is AuthMode.OFF and checker.is_sound((*path, "auth")):
            checker.fault((*item, "auth"), "never holds: nobody can authenticate here without auth: relay")
        if condition.tls is True and mode is FrontTlsMode.OFF:
            checker.fault((*item, "tls"), "never holds: TLS is off here")
        elif condition.tls is False and mode in _ALWAYS_TLS:
            checker.fault((*item, "tls"), f"never holds: all mail here comes under TLS (mode {mode})")


# Routes.


def judge_other_route(checker: Checker, path: Path, route: RouteSettings | None) -> None:
    key = (*path, "other_route")
    if route is None and checker.wrote(key) and checker.is_sound(key) and checker.is_sound((*path, "to")):
        checker.fault(key, "no effect: `to` is not a route, so all recipients go the same way", of_key=True)
