"""Listeners.

Owns the rules of a listener: name, binds, target, and that binds are used once. Does not own the relay
question (relay_guard.py).
Invariant: a listener that passes has a target that exists, and nobody else binds its addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from smtplb.config.checker import Checker
from smtplb.config.conditions import to_condition
from smtplb.config.errors import quote
from smtplb.config.groups import no_such
from smtplb.config.relay_guard import guard, judge_accept
from smtplb.config.schema import Listener
from smtplb.config.tree import Path
from smtplb.settings import Address, BareNewline, GroupSettings, ListenerLimits, ListenerSettings, Network

DEFAULT_NAME = "smtp"


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
    checker: Checker,
    networks: Mapping[str, tuple[Network, ...]],
    pools: Mapping[str, object],
    groups: Mapping[str, GroupSettings],
    binds: Binds,
) -> list[ListenerSettings]:
    paths = checker.items(("listeners",))
    if not paths and checker.is_sound(("listeners",)):
        checker.fault(("listeners",), "is empty: at least one listener is needed")
    listeners = []
    for path in paths:
        section = checker.read(Listener, path, networks)
        for index, addresses in enumerate(section.bind):
            for address in addresses:
                binds.claim((*path, "bind", index), address)
        listeners.append(_to_settings(section))
        target = section.to or ""
        if target and target not in pools and target not in groups:
            checker.fault((*path, "to"), no_such("pool or group", target, [*pools, *groups]))
        if section.accept is not None:
            judge_accept(checker, (*path, "accept"), listeners[-1].binds, section.accept)
        guard(checker, path, listeners[-1].binds, _reachable(target, pools, groups))
    _judge_names(checker, paths, listeners)
    return listeners


def _to_settings(section: Listener) -> ListenerSettings:
    return ListenerSettings(
        name=section.name or DEFAULT_NAME,
        binds=tuple(chain.from_iterable(section.bind)),
        target=section.to or "",
        accept=None if section.accept is None else tuple(map(to_condition, section.accept)),
        bare_newline=section.bare_newline or BareNewline.NORMALIZE,
        limits=ListenerLimits(**(section.limits.written() if section.limits else {})),
    )


def _reachable(target: str, pools: Mapping[str, object], groups: Mapping[str, GroupSettings]) -> list[str]:
    if target in pools:
        return [target]
    return [member.pool for member in groups[target].members] if target in groups else []


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
