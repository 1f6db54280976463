"""What is wrong with a configuration, and where.

Owns the places of a file, the error and the collection of errors. Does not own any rule.
Invariant: whatever bytes a file held, an error prints as one line without control characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_QUOTED_CHARS = 60
MAX_QUOTED_PATH_CHARS = 400


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A character of a file, counted from 1. Line 0: the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One mistake. `key` is the path to it, such as `pools.east.check.interval`; "" when it is in no key."""

    file: str
    line: int
    column: int
    key: str
    message: str

    @classmethod
    def at(cls, place: Place, key: str, message: str) -> ConfigError:
        return cls(place.file, place.line, place.column, key, message)

    def __str__(self) -> str:
        place = str(Place(self.file, self.line, self.column))
        return printable(": ".join(part for part in (place, self.key, self.message) if part))


class ConfigErrors(Exception):
    """All mistakes of a configuration, by file, line and column. `str()` has one line for each."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(sorted(set(errors), key=lambda e: (e.file, e.line, e.column, e.key, e.message)))
        super().__init__("\n".join(map(str, self.errors)))


def printable(text: str) -> str:
    """`text` with every character that could break or steer a terminal line written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quote(value: object, limit: int = MAX_QUOTED_CHARS) -> str:
    """A value as error texts show it. Long ones are cut: an error is read, not searched."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if len(text) <= limit else f"`{text[:limit]}...`"


def quote_path(path: object) -> str:
    return quote(path, MAX_QUOTED_PATH_CHARS)
