"""Groups of pools.

Owns the rules of a group: its members and shares. Does not own its namespace (targets.py) nor shifting
(policy/shares.py).
Invariant: a group that passes has members that exist, each once, and at least one that takes load.

`failover_below` and `failback` have an effect in both modes: under active-active a pool that falls below
loses its share to the others, and gets it back as fail-back says.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from smtplb.config.checker import Checker
from smtplb.config.errors import quote
from smtplb.config.schema import Group, Member
from smtplb.config.targets import judge_name
from smtplb.config.tree import Path
from smtplb.settings import FailbackMode, GroupMember, GroupMode, GroupSettings

MAX_NAMED = 10


def read_groups(checker: Checker, pools: Collection[str]) -> dict[str, GroupSettings]:
    """All groups by name, also those with mistakes."""
    names = checker.names(("groups",))
    return {key: _read_group(checker, key, pools, names) for key in names}


def _read_group(checker: Checker, key: str, pools: Collection[str], groups: Collection[str]) -> GroupSettings:
    path: Path = ("groups", key)
    judge_name(checker, path, pools)
    section = checker.read(Group, path, apart=("pools",))
    members_path = (*path, "pools")
    items = checker.items(members_path)
    if not items and checker.is_sound(members_path):
        checker.fault(members_path, "is empty: a group needs at least one pool")
    members = [_read_member(checker, item, section.mode, pools, groups) for item in items]
    _judge_members(checker, members_path, items, members, section.mode)
    values = section.written()
    failback = values.pop("failback", None)
    if failback is not None:
        if failback.mode is FailbackMode.MANUAL and failback.delay_s is not None:
            message = "no effect with mode: manual: the operator decides"
            checker.fault((*path, "failback", "delay"), message, of_key=True)
        values.update({f"failback_{attribute}": value for attribute, value in failback.written().items()})
    values["mode"] = section.mode or GroupMode.ACTIVE_PASSIVE
    return GroupSettings(name=key, members=tuple(members), **values)


def _read_member(
    checker: Checker, path: Path, mode: GroupMode | None, pools: Collection[str], groups: Collection[str]
) -> GroupMember:
    section = checker.read(Member, path)
    pool = section.pool or ""
    if pool and pool not in pools:
        if pool in groups:
            message = f"{quote(pool)} is a group: a group is made of pools"
        else:
            message = no_such("pool", pool, pools)
        checker.fault((*path, "pool"), message)
    if section.share is not None and mode is GroupMode.ACTIVE_PASSIVE:
        message = "no effect under mode active-passive: the order of the pools decides"
        checker.fault((*path, "share"), message, of_key=True)
    return GroupMember(pool=pool) if section.share is None else GroupMember(pool=pool, share=section.share)


def _judge_members(
    checker: Checker, path: Path, items: list[Path], members: list[GroupMember], mode: GroupMode | None
) -> None:
    first: dict[str, Path] = {}
    for item, member in zip(items, members, strict=True):
        if member.pool and member.pool in first:
            checker.fault(
                item, f"{quote(member.pool)} is in this group already, at {checker.place(first[member.pool])}"
            )
        first.setdefault(member.pool, item)
    if members and mode is GroupMode.ACTIVE_ACTIVE and not any(member.share for member in members):
        checker.fault(path, "every share is 0: give one pool a share")


def no_such(kind: str, wanted: str, known: Collection[str]) -> str:
    near = get_close_matches(wanted, known, n=1)
    if near:
        return f"no {kind} is called {quote(wanted)}: did you mean {quote(near[0])}?"
    names = sorted(known)
    some = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
    return f"no {kind} is called {quote(wanted)}: known are {some or 'none'}"
