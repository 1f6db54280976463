"""What keeps backends from too much: limits of connections, warm ones among them, the queue, ejection, slow start.

Owns their merge and when they have no effect. Does not own the keys (schema.py), the presets (presets.py) nor
the other keys of a pool (pools.py).
Invariant: whoever wrote one of these keys has a pool in which it can matter.
"""

from __future__ import annotations

from collections.abc import Sequence

from smtplb.config.checker import Checker
from smtplb.config.effects import Effects
from smtplb.config.layers import Layer, merge, most_specific, written_at
from smtplb.config.presets import MAX_CONNECTIONS
from smtplb.config.scalars import format_duration
from smtplb.config.schema import NO_EJECT, Mta
from smtplb.config.tree import Path
from smtplb.settings import (
    BackendSettings,
    ConnectionSettings,
    EjectSettings,
    IdentityMode,
    Policy,
    QueueSettings,
)

NO_WEIGHTS = "no effect under policy round-robin: use policy: weighted"

_LIMITING = ("max_connections", "mta")  # keys that decide whether a backend has a limit of connections


def max_connections(layers: Sequence[Layer], mta: Mta | None) -> int | None:
    """Of a backend. `unlimited` wins over layers below, and over the preset, as a number does."""
    for layer in reversed(layers):
        if "max_connections" in layer.section.model_fields_set:
            return layer.section.max_connections
    return MAX_CONNECTIONS[mta] if mta is not None else None


class PoolLimits:
    """Merges for each pool, and remembers which of the written keys had an effect for one of them.

    `layers`: defaults, then the pool; `items`: where its backends stand.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._effects = Effects(checker)
        self._told: set[Path] = set()  # where a mistake stands that several backends have in common

    def judge(self) -> None:
        """After the last pool."""
        self._effects.judge()

    def warm(
        self,
        layers: Sequence[Layer],
        connections: ConnectionSettings,
        identity: IdentityMode,
        most: int | None,
    ) -> None:
        """Of a backend: as many as are opened ahead must find room. `most`: its max_connections."""
        section = written_at(layers, "connections", "warm")
        if section is None or not connections.warm:
            return
        path = (*section, "warm")
        why = (
            f"no effect with identity {identity}: a connection belongs to one client"
            if identity.binds
            else ""
        )
        self._effects.note(path, why)
        for limit, key in ((connections.idle, "idle"), (most, "max_connections")):
            if limit is not None and connections.warm > limit and path not in self._told:
                self._told.add(path)
                self._checker.fault(path, f"must not be more than {key} ({limit})")

    def queue(
        self, layers: Sequence[Layer], items: Sequence[Path], backends: Sequence[BackendSettings]
    ) -> QueueSettings:
        deciding = [*(layer.path for layer in layers), *items]
        is_known = all(self._checker.is_sound((*path, key)) for path in deciding for key in _LIMITING)
        why = ""
        if is_known and backends and all(backend.max_connections is None for backend in backends):
            why = "no effect without max_connections: nobody waits for a connection"
        for layer in _that_wrote("queue", layers):
            self._effects.note((*layer.path, "queue"), why)
        return merge(QueueSettings, "queue", layers)

    def eject(self, layers: Sequence[Layer], items: Sequence[Path]) -> EjectSettings | None:
        """None: off. Behind an `off`, a mapping of a more specific layer starts from the built-in defaults."""
        heard: list[Layer] = []
        for layer in _that_wrote("eject", layers):
            heard = [layer] if _is_off(layer) else [*heard, layer]
        why = "no effect: the only backend of a pool is never taken out" if len(items) == 1 else ""
        for layer in heard:
            self._effects.note((*layer.path, "eject"), why)
        if heard and _is_off(heard[-1]):
            return None
        eject = merge(EjectSettings, "eject", heard)
        self._judge_times(heard, eject)
        return eject

    def slow_start_s(
        self,
        layers: Sequence[Layer],
        policy: Policy | None,
        items: Sequence[Path],
        backends: Sequence[BackendSettings],
    ) -> float:
        """`policy` None: it was a mistake."""
        written, path = most_specific(layers, "slow_start_s")
        if written is None:
            return 0.0
        why = ""
        if policy is Policy.ROUND_ROBIN:
            why = NO_WEIGHTS
        elif policy is not None and self._are_light(items, backends):
            why = "no effect on weights of 1, which have no parts: write weight: 10 in each backend"
        self._effects.note((*path[:-1], "slow_start"), why)
        return float(written)

    def _are_light(self, items: Sequence[Path], backends: Sequence[BackendSettings]) -> bool:
        if not backends or not all(self._checker.is_sound((*item, "weight")) for item in items):
            return False
        return all(backend.weight <= 1 for backend in backends)

    def _judge_times(self, layers: Sequence[Layer], eject: EjectSettings) -> None:
        if eject.max_for_s >= eject.for_s:
            return
        path = written_at(layers, "eject", "max_for_s")
        if path is not None:
            message = f"must not be shorter than for ({format_duration(eject.for_s)})"
            self._checker.fault((*path, "max_for"), message)
            return
        path = written_at(layers, "eject", "for_s")
        assert path is not None  # the defaults fit each other
        message = f"must not be longer than max_for ({format_duration(eject.max_for_s)})"
        self._checker.fault((*path, "for"), message)


def _that_wrote(attribute: str, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if attribute in layer.section.model_fields_set]


def _is_off(layer: Layer) -> bool:
    return getattr(layer.section, "eject", None) is NO_EJECT
