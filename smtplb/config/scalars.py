"""Scalars with a meaning: numbers, durations, sizes, percentages, names, words from a list.

Owns how they are written, in both directions. Does not own where they occur (schema.py) nor addresses
(addresses.py).
Invariant: numbers are ASCII digits only, without sign, leading zero, blank or underscore; `int()` sees
nothing else.

The readers take any plain value and raise ValueError with the words for the operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import TypeVar

from smtplb.config.errors import quote
from smtplb.config.substitute import Substituted

E = TypeVar("E", bound=StrEnum)

UNLIMITED = "unlimited"
MAX_DURATION_S = 365 * 86400  # a timer, not a calendar; keeps sums far from what a clock cannot hold

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,10})(ms|s|m|h|d)")
_SIZE = re.compile(r"(0|[1-9][0-9]{0,11})(B|KiB|MiB|GiB)")
_PERCENT = re.compile(r"(0|[1-9][0-9]{0,2})%")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}")
_BARE = re.compile(r"0|[1-9][0-9]{0,8}")
_BARE_NUMBERS = range(10**9)  # the same, read by YAML
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
# RFC 5321 4.1.2 Domain, as a host name; 253 so that it fits DNS (RFC 1035 2.3.4: 255 octets on the wire).
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
MAX_HOSTNAME_CHARS = 253


def is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wants_only_a_unit(value: object) -> bool:
    """Else the advice to add one would be refused as well."""
    if isinstance(value, str):
        return _BARE.fullmatch(value) is not None
    return is_number(value) and value in _BARE_NUMBERS


def duration(value: object) -> float:
    """`500ms`, `5s`, `5m`, `2h`, `1d` -> seconds."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        if _wants_only_a_unit(value):
            raise ValueError(f"a duration needs a unit: write {value}s (or ms, m, h, d)")
        raise ValueError(
            f"{quote(value)} is not a duration: write one number and one unit, such as 500ms, 5s, 5m, 2h, 1d"
        )
    number, unit = int(match[1]), match[2]
    seconds = number / 1000 if unit == "ms" else number * _UNIT_S[unit]
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{quote(value)} is longer than 365d")
    return seconds


def positive_duration(value: object) -> float:
    seconds = duration(value)
    if seconds <= 0:
        raise ValueError(f"{quote(value)} is no time at all: write at least 1ms")
    return seconds


def duration_to(most_s: float) -> Callable[[object], float]:
    """A reader of durations from 0s up to a bound."""

    def read(value: object) -> float:
        seconds = duration(value)
        if seconds > most_s:
            raise ValueError(f"{quote(value)}: must be at most {format_duration(most_s)}")
        return seconds

    return read


def format_duration(seconds: float) -> str:
    """The shortest way to write it; `duration()` reads it back. Finer than a millisecond is rounded."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        in_unit, rest = divmod(milliseconds, round(_UNIT_S[unit] * 1000))
        if in_unit and not rest:
            return f"{in_unit}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def size(value: object) -> int:
    """`512B`, `256KiB`, `50MiB`, `1GiB` -> octets."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        if _wants_only_a_unit(value):
            raise ValueError(f"a size needs a unit: write {value}B (or KiB, MiB, GiB)")
        raise ValueError(
            f"{quote(value)} is not a size: write one number and one unit, such as 512B, 256KiB, 50MiB, 1GiB"
        )
    return int(match[1]) * _UNIT_BYTES[match[2]]


def positive_size(value: object) -> int:
    octets = size(value)
    if octets <= 0:
        raise ValueError(f"{quote(value)} leaves no room: write at least 1B")
    return octets


def format_size(octets: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        in_unit, rest = divmod(octets, _UNIT_BYTES[unit])
        if in_unit and not rest:
            return f"{in_unit}{unit}"
    return f"{octets}B"


def percent(value: object) -> float:
    """`1%` to `100%` -> 0.01 to 1.0."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{quote(value)} is not a percentage: write a whole one, such as 50%")
    if not 1 <= int(match[1]) <= 100:
        raise ValueError(f"{quote(value)}: must be from 1% to 100%")
    return int(match[1]) / 100


def whole(least: int, most: int) -> Callable[[object], int]:
    """A reader of whole numbers within bounds."""

    def read(value: object) -> int:
        if isinstance(value, Substituted) and _INTEGER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(
                f"{quote(value)} is not a whole number: write digits only, from {least} to {most}"
            )
        if not least <= value <= most:
            raise ValueError(f"{value}: must be from {least} to {most}")
        return value

    return read


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Substituted) and value in ("true", "false"):
        return value == "true"
    raise ValueError(f"{quote(value)}: must be true or false")


def or_unlimited(read: Callable[[object], int]) -> Callable[[object], int | None]:
    """As `read`, but `unlimited` means that there is no limit; 0 never does."""

    def read_or_unlimited(value: object) -> int | None:
        if value == UNLIMITED:
            return None
        if value == 0 and is_number(value):
            raise ValueError(f"0 would allow nothing: write {UNLIMITED} for no limit")
        return read(value)

    return read_or_unlimited


def text(value: object) -> str:
    if isinstance(value, str):
        if not value:
            raise ValueError("is empty")
        if not value.isprintable():
            raise ValueError(f"{quote(value)} holds control characters")
        return str(value)  # Substituted or not, from here on it is plain
    if isinstance(value, int):
        raise ValueError(f'{quote(value)} is not text: write it in quotes, "{str(value).lower()}"')
    raise ValueError("must be a single text, not a list or mapping")


def name(value: object) -> str:
    """The name of a listener, pool, group, backend or network."""
    found = text(value)
    if not _NAME.fullmatch(found):
        lower = found.lower()
        hint = f": write {lower}" if lower != found and _NAME.fullmatch(lower) else ""
        raise ValueError(
            f"{quote(found)} is not a name{hint} (a-z, 0-9, then also _ . -, at most 63 characters)"
        )
    return found


def hostname(value: object) -> str:
    """Our own name, as it goes into greetings and EHLO."""
    found = text(value)
    if len(found) > MAX_HOSTNAME_CHARS or not _HOSTNAME.fullmatch(found):
        raise ValueError(f"{quote(found)} is not a host name, such as lb1.example.net")
    return found


def word(words: Collection[str], later: Collection[str] = ()) -> Callable[[object], str]:
    """A reader of one word out of a list. `later`: words of a future version, so that nobody looks for a
    typo.
    """
    wanted = f"must be one of {', '.join(words)}" if len(words) > 1 else f"must be {next(iter(words))}"

    def read(value: object) -> str:
        if isinstance(value, str) and value in words:
            return str(value)
        if isinstance(value, str) and value in later:
            raise ValueError(f"{quote(value)} is not supported in this version: {wanted}")
        raise ValueError(f"{quote(value)}: {wanted}")

    return read


def choice(kind: type[E], later: Collection[str] = ()) -> Callable[[object], E]:
    """As `word`, for an enumeration."""
    read = word([member.value for member in kind], later)
    return lambda value: kind(read(value))
