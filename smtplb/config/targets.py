"""What a listener's `to` may name: pools, groups and routes, which share their names.

Owns that one namespace, and which pools mail to a name can end at. Does not own what any of them is made of.
Invariant: of two things with one name the first keeps it (pools, then groups, then routes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from smtplb.config.checker import Checker
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

    def route(self, target: str) -> RouteSettings | None:
        """The route that `target` names; None if it names something else, or nothing."""
        return None if target in self.pools or target in self.groups else self.routes.get(target)

    def reachable(self, target: str) -> list[PoolSettings]:
        """Pools that mail to `target` can end at, each once; those that do not exist are left out."""
        route = self.route(target)
        ends = [target] if route is None else [rule.target or "" for rule in route.rules]
        pools = dict.fromkeys(pool for end in ends for pool in self._members(end))  # an ordered set
        return [self.pools[pool] for pool in pools if pool in self.pools]

    def _members(self, end: str) -> Iterable[str]:
        if end in self.pools or end not in self.groups:
            return [end]
        return [member.pool for member in self.groups[end].members]


def judge_name(checker: Checker, path: Path, *others: Iterable[str]) -> None:
    """The name of a group or route: lawful, and not taken. `others`: names of pools, then those of groups."""
    key = str(path[-1])
    try:
        name(key)
    except ValueError as error:
        checker.fault(path, str(error), of_key=True)
    for section, names in zip(("pools", "groups"), others, strict=False):
        if key in names:
            where = checker.place((section, key), of_key=True)
            message = f"a {section.removesuffix('s')} has this name, at {where}; "
            checker.fault(path, message + "pools, groups and routes share their names", of_key=True)
