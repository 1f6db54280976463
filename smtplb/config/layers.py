"""The layers of a merge: sections that may all say the same, from the least specific to the most.

Owns which of them is heard. Does not own the order of layers (pools.py), nor TLS (back_tls.py), nor what is
read from the merged values.
Invariant: each value is that of the last layer that wrote it, key by key also inside sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from smtplb.config.schema import PerBackend
from smtplb.config.tree import Path
from smtplb.settings import (
    BudgetSettings,
    CheckSettings,
    ConnectionSettings,
    EjectSettings,
    QueueSettings,
    TimeoutSettings,
)

T = TypeVar(
    "T", BudgetSettings, CheckSettings, ConnectionSettings, EjectSettings, QueueSettings, TimeoutSettings
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A section that takes part in a merge, and where it stands."""

    path: Path
    section: PerBackend


def most_specific(layers: Sequence[Layer], attribute: str) -> tuple[Any, Path]:
    """A value of its own, and where it was written; None and the last layer's path if no layer wrote it."""
    for layer in reversed(layers):
        if attribute in layer.section.model_fields_set:
            return getattr(layer.section, attribute), (*layer.path, attribute)
    return None, layers[-1].path


def merge(
    kind: type[T], attribute: str, layers: Sequence[Layer], preset: Mapping[str, Any] | None = None
) -> T:
    """A section of values: key by key, later layers win."""
    values: dict[str, Any] = dict(preset or {})
    for layer in layers:
        section = getattr(layer.section, attribute)
        if section is not None:
            values.update(section.written())
    return kind(**values)


def written_at(layers: Sequence[Layer], attribute: str, inner: str) -> Path | None:
    """The section that wrote its attribute `inner` last: the section's path; None if none did."""
    for layer in reversed(layers):
        section = getattr(layer.section, attribute)
        if section is not None and inner in section.model_fields_set:
            return (*layer.path, attribute)
    return None
