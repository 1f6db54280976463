"""What a client wants changed: the body of a request, read strictly.

Owns the grammar of change requests. Does not own whether a change is possible: that is the supervisor's.
Invariant: a Change that comes out has known keys and values in their ranges; all errors are told at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from smtplb.admin.errors import ApiError

MAX_REASON = 200  # characters
MAX_WEIGHT = 256  # as in HAProxy
MAX_FOR_S = 365 * 86400.0
STATES = ("ready", "drain", "maint")
# As in the configuration file (config/scalars.py), which admin/ does not import.
_DURATION = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h|d)")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Change:
    """Of a backend. None: stays as it is."""

    state: str | None = None
    weight: int | None = None
    reason: str = ""
    for_s: float | None = None
    force: bool = False


def read_change(body: bytes) -> Change:
    """ApiError 400: no JSON object; 422: keys or values that are wrong, each named."""
    given = read_object(body)
    errors = [
        {"key": key, "detail": f"unknown key; there are: {', '.join(_KEYS)}"}
        for key in given
        if key not in _KEYS
    ]
    for key, check in _KEYS.items():
        if key in given and (wrong := check(given[key])):
            errors.append({"key": key, "detail": wrong})
    if not errors and "state" not in given and "weight" not in given:
        errors.append({"key": "state", "detail": "nothing to change: give state or weight"})
    if not errors and "for" in given and given.get("state") not in ("drain", "maint"):
        errors.append({"key": "for", "detail": "goes with state drain or maint"})
    if errors:
        detail = "; ".join(f"{error['key']}: {error['detail']}" for error in errors[:5])
        raise ApiError(422, detail, errors=errors[:20])
    return Change(
        state=given.get("state"),
        weight=given.get("weight"),
        reason=given.get("reason", ""),
        for_s=None if "for" not in given else duration_s(given["for"]),
        force=given.get("force", False),
    )


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object without a key that comes twice. ApiError 400."""
    try:
        given = json.loads(body.decode(), object_pairs_hook=_once_each, parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: line {error.lineno}, column {error.colno}") from None
    except ValueError:
        raise ApiError(400, "the body is not JSON: a number is too long") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the body is not a JSON object")
    return given


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ApiError(400, "a key comes twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ApiError(400, f"{name} is not JSON")


def duration_s(text: str) -> float | None:
    """`90s`, `15m`, `2h`, `500ms`; None if it is none."""
    found = _DURATION.fullmatch(text)
    return None if found is None else int(found[1]) * _UNITS_S[found[2]]


def _wrong_state(value: object) -> str | None:
    return None if value in STATES and isinstance(value, str) else "is ready, drain or maint"


def _wrong_weight(value: object) -> str | None:
    # True is an int to Python, and none to JSON.
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT
    return None if fits else f"is a whole number, 0 to {MAX_WEIGHT}"


def _wrong_reason(value: object) -> str | None:
    fits = isinstance(value, str) and len(value) <= MAX_REASON and value.isprintable()
    return None if fits else f"is at most {MAX_REASON} printable characters"


def _wrong_for(value: object) -> str | None:
    seconds = duration_s(value) if isinstance(value, str) else None
    if seconds is None:
        return 'is written as "90s", "15m" or "2h"'
    return None if 0 < seconds <= MAX_FOR_S else "is more than 0 and at most a year"


def _wrong_force(value: object) -> str | None:
    return None if isinstance(value, bool) else "is true or false"


_KEYS: dict[str, Callable[[object], str | None]] = {
    "state": _wrong_state,
    "weight": _wrong_weight,
    "reason": _wrong_reason,
    "for": _wrong_for,
    "force": _wrong_force,
}
