"""What a listener's `to` may name: pools, groups and routes, which share their names.

Owns that one namespace, and which pools mail to a name can end at. Does not own what any of them is made of.
Invariant: of two things with one name the first keeps it (pools, then groups, then routes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smtplb.config.checker import Checker
from smtplb.config.errors import quote
from smtplb.config.scalars import name
from smtplb.config.tree import Path
from smtplb.settings import GroupSettings, PoolSettings, RouteSettings


@dataclass(frozen=True, slots=True)
class Targets:
    pools: Mapping[str, PoolSettings]
    groups: Mapping[str, GroupSettings]
    routes: Mapping[str, RouteSettings]

    @property
    def names(self) -> list[str]:
        return [*self.pools, *self.groups, *self.routes]

    def reachable(self, target: str) -> list[PoolSettings]:
        """Pools that mail to `target` can end at, each once; those that do not exist are left out."""
        found: dict[str, PoolSettings] = {}
        for pool in self._pool_names(target):
            if pool in self.pools:
                found[pool] = self.pools[pool]
        return list(found.values())

    def _pool_names(self, target: str) -> list[str]:
        if target in self.pools:
            return [target]
        if target in self.groups:
            return [member.pool for member in self.groups[target].members]
        if target not in self.routes:
            return []
        named = [rule.target for rule in self.routes[target].rules if rule.target not in (None, target)]
        return [pool for each in named if each not in self.routes for pool in self._pool_names(each or "")]


def judge_name(checker: Checker, path: Path, key: str, others: Mapping[str, Path]) -> None:
    """A name of a group or route: lawful, and not taken by one of `others` (name -> where that one stands)."""
    try:
        name(key)
    except ValueError as error:
        checker.fault(path, str(error), of_key=True)
    if key in others:
        where, what = others[key], str(others[key][0]).removesuffix("s")
        message = f"a {what} has this name, at {checker.place(where, of_key=True)}"
        checker.fault(path, f"{message}; pools, groups and routes share their names", of_key=True)


def taken(section: str, names: Mapping[str, object]) -> dict[str, Path]:
    """For judge_name: where the names of a section stand."""
    return {key: (section, key) for key in names}


def is_target(targets: Targets, target: str) -> bool:
    return target in targets.pools or target in targets.groups or target in targets.routes


def no_route(target: str) -> str:
    return f"{quote(target)} is a route: a rule goes to a pool or group"
