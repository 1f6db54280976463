"""Pools and their backends: the merge, and the rules that span keys.

Owns the order of layers (backend > pool > defaults.pool > preset > built-in), names of backends, and which
keys have an effect under which policy or check level. Does not own the keys (schema.py), the presets
(presets.py), TLS (back_tls.py), or limits and ejection (pool_limits.py).
Invariant: the result holds for every backend each value of the most specific layer that wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from smtplb.config.addresses import backend_address, family
from smtplb.config.back_tls import BackTlsMerge
from smtplb.config.checker import Checker
from smtplb.config.errors import quote
from smtplb.config.layers import Layer, merge, most_specific, written_at
from smtplb.config.pool_limits import NO_WEIGHTS, PoolLimits, max_connections
from smtplb.config.presets import CONNECTIONS
from smtplb.config.scalars import format_duration, name
from smtplb.config.schema import Backend, Check, Pool, PoolDefaults
from smtplb.config.section import keys
from smtplb.config.tree import Path
from smtplb.settings import (
    Address,
    BackendSettings,
    BalancePer,
    BudgetSettings,
    CheckLevel,
    CheckSettings,
    ConnectionSettings,
    IdentityMode,
    Policy,
    PoolSettings,
    ReceivedMode,
    TimeoutSettings,
)

# Stands for an address that was a mistake. The result is never used.
NOWHERE = Address(host="invalid", port=1)
DEFAULTS: Path = ("defaults", "pool")


def read_pools(checker: Checker) -> dict[str, PoolSettings]:
    """All pools by name, also those with mistakes: others are still checked against them."""
    defaults = Layer(DEFAULTS, checker.read(PoolDefaults, DEFAULTS))
    _judge_check(checker, defaults)
    names = checker.names(("pools",))
    if not names and checker.is_sound(("pools",)):
        checker.fault(("pools",), "is empty: at least one pool is needed")
    tls = BackTlsMerge(checker)
    limits = PoolLimits(checker)
    pools = {key: _read_pool(checker, key, defaults, tls, limits) for key in names}
    tls.judge()
    limits.judge()
    return pools


def _read_pool(
    checker: Checker, key: str, defaults: Layer, tls: BackTlsMerge, limits: PoolLimits
) -> PoolSettings:
    path: Path = ("pools", key)
    try:
        name(key)
    except ValueError as error:
        checker.fault(path, str(error), of_key=True)
    own = Layer(path, checker.read(Pool, path, apart=("backends",)))
    _judge_check(checker, own)
    layers = (defaults, own)
    policy = _policy(checker, layers)
    backends_path = (*path, "backends")
    items = checker.items(backends_path)
    if not items and checker.is_sound(backends_path):
        checker.fault(backends_path, "is empty: a pool needs at least one backend")
    backends = []
    for item in items:
        backend = _read_backend(checker, key, layers, item, tls, limits)
        if policy is Policy.ROUND_ROBIN:
            _judge_weight(checker, (*item, "weight"))
        backends.append(backend)
    _judge_names(checker, items, backends)
    _judge_sources(checker, own, [backend.address for backend in backends])
    _judge_backups(checker, backends_path, backends)
    return PoolSettings(
        name=key,
        backends=tuple(backends),
        policy=policy or Policy.ROUND_ROBIN,
        budget=merge(BudgetSettings, "budget", layers),
        balance_per=_balance_per(layers, backends),
        queue=limits.queue(layers, items, backends),
        eject=limits.eject(layers, items),
        slow_start_s=limits.slow_start_s(layers, policy, items, backends),
    )


def _read_backend(
    checker: Checker,
    pool: str,
    above: Sequence[Layer],
    path: Path,
    tls: BackTlsMerge,
    limits: PoolLimits,
) -> BackendSettings:
    section = checker.read(Backend, path)
    own = Layer(path, section)
    _judge_check(checker, own)
    layers = (*above, own)
    address = section.address or NOWHERE
    _judge_sources(checker, own, [address])
    mta, _ = most_specific(layers, "mta")
    identity, _ = most_specific(layers, "identity")
    received, _ = most_specific(layers, "received")
    connections = merge(ConnectionSettings, "connections", layers, CONNECTIONS[mta] if mta else {})
    most = max_connections(layers, mta)
    limits.warm(layers, connections, identity or IdentityMode.NONE, most)
    return BackendSettings(
        pool=pool,
        name=_backend_name(checker, section, path),
        address=address,
        weight=1 if section.weight is None else section.weight,
        backup=section.backup,
        source=_source(checker, layers, section),
        check=_merge_check(checker, layers),
        connections=connections,
        timeouts=merge(TimeoutSettings, "timeouts", layers),
        tls=tls.merge([((*layer.path, "tls"), layer.section.tls) for layer in layers], address),
        identity=identity or IdentityMode.NONE,
        received=received or ReceivedMode.AUTO,
        max_connections=most,
    )


def _backend_name(checker: Checker, section: Backend, path: Path) -> str:
    """Its own name, or its address. A name that was written may have either form."""
    if section.name is None:
        return str(section.address or "")
    try:
        return name(section.name)
    except ValueError as error:
        if ":" in section.name:
            try:
                return str(backend_address(section.name))
            except ValueError:
                pass
        checker.reject((*path, "name"), str(error))
        return ""


def _source(checker: Checker, layers: Sequence[Layer], section: Backend) -> str | None:
    """The local address of the backend's family; None if that family has none: then the system chooses."""
    written, path = most_specific(layers, "source")
    if written is None or section.address is None:
        return None
    version = family(section.address.host)
    if version is None and len(written) > 1:
        message = f"{section.address} is a name of unknown family: write its one source address there"
        checker.fault(path, message)
    fitting = [source for source in written if version in (None, family(source))]
    return fitting[0] if fitting else None


def _policy(checker: Checker, layers: Sequence[Layer]) -> Policy | None:
    """None: what was written for it is a mistake, so nothing is judged by it."""
    if not all(checker.is_sound((*layer.path, "policy")) for layer in layers):
        return None
    written, _ = most_specific(layers, "policy")
    return written or Policy.ROUND_ROBIN


def _balance_per(layers: Sequence[Layer], backends: Sequence[BackendSettings]) -> BalancePer:
    """As written. Else a session whose connections belong to it stays where it has one: moving costs a new
    connection and the client's identity told again.
    """
    written, _ = most_specific(layers, "balance_per")
    if isinstance(written, BalancePer):
        return written
    binds = any(backend.identity.binds for backend in backends)
    return BalancePer.SESSION if binds else BalancePer.TRANSACTION


def _merge_check(checker: Checker, layers: Sequence[Layer]) -> CheckSettings:
    """As merge(). A fast interval that nobody wrote never exceeds the interval that somebody did."""
    check = merge(CheckSettings, "check", layers)
    if check.fast_interval_s <= check.interval_s:
        return check
    path = written_at(layers, "check", "fast_interval_s")
    if path is None:
        return replace(check, fast_interval_s=check.interval_s)
    interval = format_duration(check.interval_s)
    checker.fault((*path, "fast_interval"), f"must not be longer than interval ({interval})")
    return check


# Rules that span keys.


def _judge_check(checker: Checker, layer: Layer) -> None:
    """Keys without effect beside the level in the same mapping."""
    check = layer.section.check
    if check is None or check.level is None:
        return
    without_effect: list[str] = []
    if check.level is CheckLevel.OFF:
        without_effect = [key for key in keys(Check) if key != "level"]
    elif check.level is not CheckLevel.EHLO:
        without_effect = ["hello"]
    for key in without_effect:
        path = (*layer.path, "check", key)
        if checker.wrote(path):
            checker.fault(path, f"no effect with level: {check.level}", of_key=True)


def _judge_weight(checker: Checker, path: Path) -> None:
    if checker.wrote(path) and checker.is_sound(path):
        checker.fault(path, NO_WEIGHTS, of_key=True)


def _judge_sources(checker: Checker, layer: Layer, addresses: Sequence[Address]) -> None:
    """At most one source for each address family, and none for a family that no backend is of."""
    families = {family(address.host) for address in addresses}
    seen: set[int | None] = set()
    for index, source in enumerate(layer.section.source or ()):
        path = (*layer.path, "source", index)
        version = family(source)
        if version in seen:
            checker.fault(path, "a second address of the same family: one is used")
        elif families.isdisjoint({version, None}):
            checker.fault(path, f"no effect: no backend here has an IPv{version} address")
        seen.add(version)


def _judge_names(checker: Checker, items: Sequence[Path], backends: Sequence[BackendSettings]) -> None:
    first: dict[str, Path] = {}
    for path, backend in zip(items, backends, strict=True):
        if not backend.name:
            continue
        if backend.name in first:
            where = checker.place(first[backend.name])
            checker.fault(path, f"a backend of this pool is called {quote(backend.name)} already, at {where}")
        first.setdefault(backend.name, path)


def _judge_backups(checker: Checker, path: Path, backends: Sequence[BackendSettings]) -> None:
    if backends and all(backend.backup for backend in backends):
        checker.fault(path, "every backend is a backup, so none is: leave `backup` out of one")
    if backends and not any(backend.weight for backend in backends):
        checker.fault(path, "every backend has weight 0: give one a weight")
