"""What every section of the schema is made of.

Owns the base model and the questions that others ask of a model: its keys, what was written. Does not own any
key.
Invariant: every field has a default, so that a section without its mistakes still validates; what must be
written is `required` and asked for apart (checker.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo
from pydantic.fields import FieldInfo

from smtplb.config.context import Context


class Section(BaseModel):
    """A mapping of known keys. Attributes carry units in their names; the alias is the key in the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    required: ClassVar[Mapping[str, str]] = {}  # key -> what to write
    later: ClassVar[frozenset[str]] = frozenset()  # keys that a future version will know
    shorthand: ClassVar[str] = ""  # the key that a text alone stands for

    def written(self) -> dict[str, Any]:
        """Attributes that stood in the file, by attribute name."""
        return {attribute: getattr(self, attribute) for attribute in sorted(self.model_fields_set)}


def as_list(value: object) -> object:
    """One value may stand for a list of one."""
    return value if isinstance(value, list) else [value]


def context_of(info: ValidationInfo) -> Context:
    assert isinstance(info.context, Context)
    return info.context


def fields(model: type[Section]) -> Iterator[tuple[str, str, FieldInfo]]:
    """(key in the file, attribute, field) of each key."""
    for attribute, field in model.model_fields.items():
        yield field.alias or attribute, attribute, field


def keys(model: type[Section]) -> list[str]:
    return [key for key, _, _ in fields(model)]


def section_of(annotation: object) -> type[Section] | None:
    """The section inside `X | None`, `list[X]`, `dict[str, X]` or an annotated one of these."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in get_args(annotation):
        found = section_of(part)
        if found is not None:
            return found
    return None


def section_at(model: type[Section], loc: tuple[str | int, ...]) -> type[Section]:
    """The section at a place that pydantic names: keys and indices below `model`."""
    for part in loc:
        for key, _, field in fields(model):
            if key == part:
                model = section_of(field.annotation) or model
                break
    return model
