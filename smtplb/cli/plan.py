"""What a reload changed, in words.

Owns the words. Does not own the plan (config/diff.py), which comes as the admin API writes it.
Invariant: one line for each thing that was added, removed or changed; "nothing has changed" if there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS = (
    ("listeners", "listener"),
    ("routes", "route"),
    ("groups", "group"),
    ("pools", "pool"),
    ("backends", "backend"),
)


def plan_lines(plan: dict[str, Any]) -> list[str]:
    lines = [line for key, word in KINDS for line in _changes(plan, word, plan.get(key) or {})]
    lines += [f"{key}: changed" for key in plan.get("others", [])]
    return lines or ["nothing has changed"]


def _changes(plan: dict[str, Any], word: str, changes: dict[str, Any]) -> Iterator[str]:
    for name in changes.get("added", []):
        yield f"{word} {name}: added"
    for name in changes.get("removed", []):
        yield f"{word} {name}: removed" + (
            ", its sessions end between transactions" if word == "listener" else ""
        )
    for name, keys in (changes.get("changed") or {}).items():
        text = f"{word} {name}: {', '.join(keys)} changed"
        if word == "listener" and name in plan.get("ends_sessions", []):
            text += ", its sessions end between transactions"
        if word == "backend" and name in plan.get("reconnects", []):
            text += ", its connections are left"
        yield text
