"""Listeners.

Owns the assembly of a listener: name, binds, target, defaults that follow from them, and that binds are used
once. Does not own TLS (front_tls.py), the rules between its keys (listener_rules.py) or the relay question
(relay_guard.py).
Invariant: a listener that passes has a target that exists, and nobody else binds its addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from smtplb.config.checker import Checker
from smtplb.config.conditions import NetworkList, joined_networks, to_condition
from smtplb.config.errors import quote
from smtplb.config.front_tls import read_front_tls
from smtplb.config.groups import no_such
from smtplb.config.listener_rules import (
    judge_auth,
    judge_clients,
    judge_facts,
    judge_fronts,
    judge_other_route,
)
from smtplb.config.networks import wholly_covered
from smtplb.config.relay_guard import clients_are_told, guard, judge_accept, whence
from smtplb.config.schema import Listener
from smtplb.config.targets import Targets
from smtplb.config.tree import Path
from smtplb.settings import (
    Address,
    AuthMode,
    BareNewline,
    ClientRules,
    FrontTlsSettings,
    ListenerLimits,
    ListenerSettings,
    Network,
    OtherRoute,
)

DEFAULT_NAME = "smtp"
SUBMISSION_PORTS = frozenset({465, 587})  # RFC 8314, RFC 6409


class Binds:
    """Which key uses an address already."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._first: dict[Address, Path] = {}

    def claim(self, path: Path, address: Address) -> None:
        if address in self._first:
            where = self._checker.place(self._first[address])
            self._checker.fault(path, f"{address} is bound already, at {where}")
        self._first.setdefault(address, path)


def read_listeners(
    checker: Checker, networks: Mapping[str, tuple[Network, ...]], targets: Targets, binds: Binds
) -> list[ListenerSettings]:
    paths = checker.items(("listeners",))
    if not paths and checker.is_sound(("listeners",)):
        checker.fault(("listeners",), "is empty: at least one listener is needed")
    listeners = [_read_listener(checker, path, networks, targets, binds) for path in paths]
    _judge_names(checker, paths, listeners)
    return listeners


def _read_listener(
    checker: Checker,
    path: Path,
    networks: Mapping[str, tuple[Network, ...]],
    targets: Targets,
    binds: Binds,
) -> ListenerSettings:
    section = checker.read(Listener, path, networks, apart=("tls",))
    for index, addresses in enumerate(section.bind):
        for address in addresses:
            binds.claim((*path, "bind", index), address)
    listener = _to_settings(section, read_front_tls(checker, (*path, "tls")))
    target = section.to or ""
    if target and target not in targets.names:
        checker.reject((*path, "to"), no_such("pool, group or route", target, targets.names))
    reachable = targets.reachable(target)
    if section.accept is not None:
        needed = bool(whence(listener)) and not clients_are_told(reachable)
        judge_accept(checker, (*path, "accept"), section.accept, needed=needed)
        judge_facts(checker, path, listener, section.accept)
    judge_clients(checker, path, listener)
    judge_fronts(checker, path, listener)
    judge_auth(checker, path, listener, targets)
    judge_other_route(checker, path, targets.route(target))
    guard(checker, path, listener, reachable)
    return listener


def _to_settings(section: Listener, tls: FrontTlsSettings) -> ListenerSettings:
    binds = tuple(chain.from_iterable(section.bind))
    auth = section.auth or AuthMode.OFF
    return ListenerSettings(
        name=section.name or DEFAULT_NAME,
        binds=binds,
        target=section.to or "",
        accept=None if section.accept is None else tuple(map(to_condition, section.accept)),
        bare_newline=section.bare_newline or BareNewline.NORMALIZE,
        limits=ListenerLimits(**(section.limits.written() if section.limits else {})),
        tls=tls,
        auth=auth,
        auth_without_tls=bool(section.auth_without_tls),
        clients=_client_rules(section),
        proxy_protocol_from=_joined(section.proxy_protocol_from),
        xclient_from=_joined(section.xclient_from),
        other_route=section.other_route or _default_other_route(binds, auth),
        greeting_delay_s=section.greeting_delay_s or 0.0,
    )


def _default_other_route(binds: tuple[Address, ...], auth: AuthMode) -> OtherRoute:
    """Applications without a queue lose a recipient that is deferred, and they say nothing."""
    submission = auth is AuthMode.RELAY or any(bind.port in SUBMISSION_PORTS for bind in binds)
    return OtherRoute.FOLLOW if submission else OtherRoute.DEFER


def _client_rules(section: Listener) -> ClientRules:
    """`allow: any` is no rule, so that those who have no address pass too."""
    clients = section.clients
    if clients is None:
        return ClientRules()
    allow = None if clients.allow is None else joined_networks(clients.allow)
    if allow is not None and wholly_covered(allow) == {4, 6}:
        allow = None
    return ClientRules(allow=allow, deny=_joined(clients.deny))


def _joined(networks: NetworkList | None) -> tuple[Network, ...]:
    return () if networks is None else joined_networks(networks)


def _judge_names(checker: Checker, paths: list[Path], listeners: list[ListenerSettings]) -> None:
    first: dict[str, Path] = {}
    for path, listener in zip(paths, listeners, strict=True):
        if not checker.wrote((*path, "name")):
            if len(paths) > 1:
                checker.fault((*path, "name"), "missing: with two or more listeners each needs a name")
            continue
        if not checker.is_sound((*path, "name")):
            continue
        if listener.name in first:
            where = checker.place(first[listener.name])
            checker.fault((*path, "name"), f"a listener is called {quote(listener.name)} already, at {where}")
        first.setdefault(listener.name, (*path, "name"))
