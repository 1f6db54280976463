"""Group shares: which pools of a group take load, and how much, as the usable weight of the pools comes and
goes.

Owns fitness of a pool, fail-over, fail-back. Does not own backend state, nor the clock: `now` is an
argument, in seconds of a clock that never goes back.
Invariant: shares sum to more than 0, and no pool without a usable backend has a share while another pool of
the group has one.

A pool is *well* if it has a usable backend and its usable weight is not strictly below `failover_below`.
Fail-over is immediate. Fail-back is a move to a pool that was seen unwell, away from one that is well: it
waits until the pool was well for `delay` without interruption, in manual mode for the operator. A pool that
is well at its first checks was never away: it gets its place at once, so that the order in which first
checks end means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from smtplb.messages import BackendStanding
from smtplb.settings import BackendSettings, FailbackMode, GroupMode, GroupSettings


@dataclass(frozen=True, slots=True)
class PoolFitness:
    """`ratio`: usable weight / configured weight of the backends that are not `backup`; of all, if all are.

    `usable`: any backend is usable, backups included. `proven`: none waits for its first check.
    """

    ratio: float
    usable: bool
    proven: bool


def fitness(backends: Iterable[tuple[BackendSettings, BackendStanding]]) -> PoolFitness:
    """Backups do not count towards the ratio: a pool that lives on them has lost what it was built for, so
    its load goes on to a pool that is well. They count as usable: if no pool is well, one with a backup is
    better than one with nothing. A weight raised by the operator adds nothing (it brings no capacity), a
    lowered one takes away.
    """
    everyone = list(backends)
    regular = [pair for pair in everyone if not pair[0].backup] or everyone
    configured = sum(settings.weight for settings, _ in regular)
    if configured:
        usable = sum(
            min(standing.weight, settings.weight) for settings, standing in regular if standing.usable
        )
    else:  # all weights are 0: count heads
        configured = len(regular)
        usable = sum(standing.usable for _, standing in regular)
    return PoolFitness(
        ratio=usable / configured if configured else 0.0,
        usable=any(standing.usable for _, standing in everyone),
        # Not checked yet, that is: one that lacks its identity was checked, and is not well.
        proven=not any(standing.state == "unproven" and standing.last_resort for _, standing in everyone),
    )


NOTHING = PoolFitness(0.0, usable=False, proven=False)


class GroupShares:
    """Shares of one group. Call update() whenever fitness changed and when `next_at` has come.

    `failback_at`: when the next automatic fail-back is due, None for none pending. `failback_waits`: a pool
    is well again and only the operator brings it back. `reason` tells the last change of `shares`.
    """

    def __init__(self, settings: GroupSettings) -> None:
        self.settings = settings
        self.order = tuple(member.pool for member in settings.members)
        self.reason = "configured"
        self.failback_at: float | None = None
        self.failback_waits = False
        self.next_at: float | None = None
        self._fitness: Mapping[str, PoolFitness] = dict.fromkeys(self.order, NOTHING)
        self._well_since: dict[str, float] = {}  # -inf: never seen unwell; only pools that are well
        self._seen_unwell: set[str] = set()
        self.shares = self._configured_shares()

    def update(self, fitness: Mapping[str, PoolFitness], now: float) -> bool:
        """Take note of the pools' fitness (one for each pool of the group). True if the shares changed."""
        self._fitness = fitness
        for pool in self.order:
            if self._is_well(pool):
                self._well_since.setdefault(pool, now if pool in self._seen_unwell else -inf)
            else:
                self._well_since.pop(pool, None)
                if fitness[pool].proven:
                    self._seen_unwell.add(pool)
        return self._settle(now, by_operator=False)

    def fail_back(self, now: float) -> bool:
        """The operator wants it now, in either mode: delays are skipped. False if there was nothing to
        bring back.
        """
        return self._settle(now, by_operator=True)

    # What the two modes differ in.

    def _configured_shares(self) -> tuple[tuple[str, int], ...]:
        raise NotImplementedError

    def _decide(self, now: float, by_operator: bool) -> tuple[tuple[tuple[str, int], ...], str]:
        raise NotImplementedError

    def _waiting(self) -> list[str]:
        """Pools that are well and would take load, were it not for fail-back."""
        raise NotImplementedError

    def _dwell_ends_at(self) -> float | None:
        return None

    # Shared by both.

    def _settle(self, now: float, *, by_operator: bool) -> bool:
        shares, reason = self._decide(now, by_operator)
        changed = shares != self.shares
        if changed:
            self.shares = shares
            self.reason = reason
        waiting = self._waiting()
        auto = self.settings.failback_mode is FailbackMode.AUTO
        self.failback_waits = bool(waiting) and not auto
        self.failback_at = min(map(self._recovered_at, waiting)) if waiting and auto else None
        wakes = [at for at in (self.failback_at, self._dwell_ends_at()) if at is not None and at > now]
        self.next_at = min(wakes, default=None)
        return changed

    def _is_well(self, pool: str) -> bool:
        fit = self._fitness[pool]
        return fit.usable and fit.ratio >= self.settings.failover_below_ratio

    def _recovered_at(self, pool: str) -> float:
        """When the pool has been well for long enough; inf while it is not well."""
        return self._well_since.get(pool, inf) + self.settings.failback_delay_s

    def _may_return(self, pool: str, now: float, by_operator: bool) -> bool:
        since = self._well_since.get(pool)
        if since is None:
            return False
        if since == -inf or by_operator:
            return True
        return self.settings.failback_mode is FailbackMode.AUTO and self._recovered_at(pool) <= now

    def _because_unwell(self, pool: str) -> str:
        fit = self._fitness[pool]
        if not fit.usable:
            return f"{pool} has no usable backend"
        return f"{pool} has {fit.ratio:.0%} of its weight, below {self.settings.failover_below_ratio:.0%}"

    def _because_back(self, pool: str, by_operator: bool) -> str:
        if by_operator:
            return f"{pool} brought back by the operator"
        if self._well_since[pool] == -inf:
            return f"{pool} is proven"
        return f"{pool} is well for {self.settings.failback_delay_s:g} s"


class ActivePassive(GroupShares):
    """One pool takes all: the first one that is well, in the order of preference.

    If none is well: the one with the most usable weight; ties stay where the load is. From one unwell pool
    to an earlier one load moves only after it has stayed for `delay`: two pools in trouble do not throw it
    to and fro. If nothing is usable anywhere: the first one, where it is tried as a last resort.
    """

    def __init__(self, settings: GroupSettings) -> None:
        self._active = settings.members[0].pool
        self._shifted_at = -inf
        self._dwells = False
        super().__init__(settings)

    def _configured_shares(self) -> tuple[tuple[str, int], ...]:
        return tuple((pool, 100 if pool == self._active else 0) for pool in self.order)

    def _decide(self, now: float, by_operator: bool) -> tuple[tuple[tuple[str, int], ...], str]:
        self._dwells = False
        pool, reason = self._choose(now, by_operator)
        if pool != self._active:
            self._active = pool
            self._shifted_at = now
        return self._configured_shares(), reason

    def _choose(self, now: float, by_operator: bool) -> tuple[str, str]:
        active = self._active
        if self._is_well(active):
            for pool in self.order[: self.order.index(active)]:
                if self._may_return(pool, now, by_operator):
                    return pool, self._because_back(pool, by_operator)
            return active, self.reason
        reason = self._because_unwell(active)
        for pool in self.order:
            if self._is_well(pool):
                return pool, reason
        best = max(self.order, key=self._rank)  # the first of equals
        if self._rank(best) == (0.0, False):
            return self.order[0], "no pool has a usable backend"
        if self._rank(best) <= self._rank(active):
            return active, self.reason
        earlier = self.order.index(best) < self.order.index(active)
        if earlier and self._fitness[active].usable and now < self._dwell_over_at():
            self._dwells = True
            return active, self.reason
        return best, reason

    def _rank(self, pool: str) -> tuple[float, bool]:
        fit = self._fitness[pool]
        return (fit.ratio, fit.usable)

    def _dwell_over_at(self) -> float:
        return self._shifted_at + self.settings.failback_delay_s

    def _dwell_ends_at(self) -> float | None:
        return self._dwell_over_at() if self._dwells else None

    def _waiting(self) -> list[str]:
        return [pool for pool in self.order[: self.order.index(self._active)] if self._is_well(pool)]


class ActiveActive(GroupShares):
    """Every pool takes its configured share; one that is not well loses it to the others, in proportion to
    theirs.

    If none is well: all that have something usable take their configured shares; if nothing is usable, all
    do (last resort). A configured share of 0 takes load only while nobody else may.
    """

    def __init__(self, settings: GroupSettings) -> None:
        self._configured = {member.pool: member.share for member in settings.members}
        self._out: set[str] = set()  # lost its share; well again or not
        super().__init__(settings)

    def _configured_shares(self) -> tuple[tuple[str, int], ...]:
        return self._split(self.order)

    def _split(self, takers: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """Configured shares of the takers, 0 for the others: what is missing falls to the takers in
        proportion.
        """
        takers = set(takers)
        plain = any(self._configured[pool] for pool in takers)
        return tuple(
            (pool, (self._configured[pool] if plain else 1) if pool in takers else 0) for pool in self.order
        )

    def _decide(self, now: float, by_operator: bool) -> tuple[tuple[tuple[str, int], ...], str]:
        reasons: list[str] = []
        for pool in self.order:
            if pool not in self._out:
                if not self._is_well(pool):
                    self._out.add(pool)
                    reasons.append(self._because_unwell(pool))
            elif self._may_return(pool, now, by_operator):
                self._out.discard(pool)
                reasons.append(self._because_back(pool, by_operator))
        return self._split(self._takers()), "; ".join(reasons) or "usable weight changed"

    def _takers(self) -> list[str]:
        takers = [pool for pool in self.order if pool not in self._out]
        if takers:
            return takers
        takers = [pool for pool in self.order if self._is_well(pool)]
        self._out.difference_update(takers)  # their delay was for the sake of pools that are gone now
        if takers:
            return takers
        weighty = [pool for pool in self.order if self._fitness[pool].ratio > 0]
        if weighty:
            return weighty
        if usable := [pool for pool in self.order if self._fitness[pool].usable]:
            return usable
        return list(self.order)

    def _waiting(self) -> list[str]:
        return [pool for pool in self.order if pool in self._out and self._is_well(pool)]


MODES: dict[GroupMode, type[GroupShares]] = {
    GroupMode.ACTIVE_PASSIVE: ActivePassive,
    GroupMode.ACTIVE_ACTIVE: ActiveActive,
}


def group_shares(settings: GroupSettings) -> GroupShares:
    return MODES[settings.mode](settings)
