"""What keeps backends from too much: limits of connections, the queue for them, ejection, slow start.

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
from smtplb.settings import BackendSettings, EjectSettings, Policy, PoolSettings, QueueSettings


def max_connections(layers: Sequence[Layer], mta: Mta | None) -> int | None:
    """Of a backend. `unlimited` wins over layers below, and over the preset, as a number does."""
    for layer in reversed(layers):
        if "max_connections" in layer.section.model_fields_set:
            return layer.section.max_connections
    return MAX_CONNECTIONS[mta] if mta is not None else None


class PoolLimits:
    """Merges for each pool (`layers`: defaults, then the pool; `items`: where its backends stand), and remembers which
    of the written keys had an effect for one of them.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._effects = Effects(checker)

    def judge(self) -> None:
        """After the last pool."""
        self._effects.judge()

    def queue(
        self, layers: Sequence[Layer], items: Sequence[Path], backends: Sequence[BackendSettings]
    ) -> QueueSettings:
        above = [layer.path for layer in layers]
        deciding = [(*path, key) for path in (*above, *items) for key in ("max_connections", "mta")]
        is_limited = any(backend.max_connections is not None for backend in backends)
        why = ""
        if not is_limited and all(map(self._checker.is_sound, deciding)):
            why = "no effect without max_connections: nobody waits for a connection"
        self._note("queue", layers, why)
        return merge(QueueSettings, "queue", layers)

    def eject(self, layers: Sequence[Layer], items: Sequence[Path]) -> EjectSettings | None:
        """None: off. A mapping in a more specific layer than `off` switches it on again."""
        for index, layer in enumerate(layers):
            if getattr(layer.section, "eject") is NO_EJECT:
                layers = layers[index:]
        why = "no effect: the only backend of a pool is never taken out" if len(items) == 1 else ""
        self._note("eject", layers, why)
        if getattr(layers[-1].section, "eject") is NO_EJECT:
            return None
        eject = merge(EjectSettings, "eject", layers)
        self._judge_times(layers, eject)
        return eject

    def slow_start_s(self, layers: Sequence[Layer], policy: Policy, policy_path: Path) -> float:
        why = ""
        if policy is Policy.ROUND_ROBIN and self._checker.is_sound(policy_path):
            why = "no effect under policy round-robin: use policy: weighted"
        self._note("slow_start_s", layers[-1:], why, key="slow_start")
        return 0.0
