"""What a reload changes: two configurations compared.

Owns the comparison, and which keys cannot change while the program runs. Does not own how a change is made (supervisor.py).
Invariant: pure; the plan of a configuration against itself is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from smtplb.settings import BackendSettings, ListenerSettings, Settings

# Fields of settings -> keys of the file, where they differ.
_KEYS = {"binds": "bind", "target": "to", "members": "pools"}
_UNITS = ("_s", "_bytes", "_ratio")
_NAMES = frozenset({"name", "pool"})


@dataclass(frozen=True, slots=True)
class Changes:
    """Of one kind of thing, by name. `changed` has the keys of each."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """`restart`: changed keys that need one. `ends_sessions`: listeners whose open sessions hear 421 between transactions;
    `reconnects`: backends whose connections are left, though their name stays. `others`: further changed keys.
    """

    listeners: Changes
    routes: Changes
    groups: Changes
    pools: Changes
    backends: Changes  # by "pool/backend"; those of added and removed pools included
    others: tuple[str, ...] = ()
    ends_sessions: tuple[str, ...] = ()
    reconnects: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        kinds = (self.listeners, self.routes, self.groups, self.pools, self.backends)
        return any(kinds) or bool(self.others or self.restart)


def plan(old: Settings, new: Settings) -> ReloadPlan:
    listeners, new_listeners = _by_name(old.traffic.listeners), _by_name(new.traffic.listeners)
    backends, new_backends = _backends(old), _backends(new)
    return ReloadPlan(
        listeners=_compare(listeners, new_listeners),
        routes=_compare(_by_name(old.traffic.routes), _by_name(new.traffic.routes)),
        groups=_compare(_by_name(old.traffic.groups), _by_name(new.traffic.groups)),
        pools=_compare(_by_name(old.traffic.pools), _by_name(new.traffic.pools), apart={"backends"}),
        backends=_compare(backends, new_backends),
        others=tuple(_others(old, new)),
        ends_sessions=tuple(name for name in listeners if not _goes_on(listeners, new_listeners, name)),
        reconnects=tuple(
            name
            for name in backends
            if name in new_backends and not backends[name].reached_like(new_backends[name])
        ),
        restart=tuple(_restart(old, new)),
    )


def _goes_on(old: Mapping[str, ListenerSettings], new: Mapping[str, ListenerSettings], name: str) -> bool:
    return name in new and old[name].met_like(new[name])


def _restart(old: Settings, new: Settings) -> Iterable[str]:
    if old.workers != new.workers:
        yield "workers"
    if old.worker_cpu_affinity != new.worker_cpu_affinity:
        yield "worker_cpu_affinity"
    if old.admin != new.admin:
        yield from (f"admin.{key}" for key in _changed_keys(old.admin, new.admin))
    if old.probes_bind != new.probes_bind:
        yield "probes.bind"
    if old.log != new.log:
        yield from (f"log.{key}" for key in _changed_keys(old.log, new.log))


def _others(old: Settings, new: Settings) -> Iterable[str]:
    if old.traffic.hostname != new.traffic.hostname:
        yield "hostname"
    if old.shutdown != new.shutdown:
        yield "shutdown"
    if (old.traffic.replay, old.traffic.attempts) != (new.traffic.replay, new.traffic.attempts):
        yield "replay"
    if old.traffic.in_doubt_remember_s != new.traffic.in_doubt_remember_s:
        yield "in_doubt"


def _by_name(things: Iterable[Any]) -> dict[str, Any]:
    return {thing.name: thing for thing in things}


def _backends(settings: Settings) -> dict[str, BackendSettings]:
    return {"/".join(b.key): b for pool in settings.traffic.pools for b in pool.backends}


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], apart: Iterable[str] = frozenset()) -> Changes:
    changed = {
        name: keys
        for name, thing in old.items()
        if name in new and (keys := _changed_keys(thing, new[name], frozenset(apart)))
    }
    return Changes(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=changed,
    )


def _changed_keys(old: Any, new: Any, apart: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """As the file names them."""
    return tuple(
        _key(each.name)
        for each in fields(old)
        if each.name not in apart | _NAMES and getattr(old, each.name) != getattr(new, each.name)
    )


def _key(field: str) -> str:
    for unit in _UNITS:
        field = field.removesuffix(unit)
    return _KEYS.get(field, field)
