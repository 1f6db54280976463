"""Group shares: fail-over and fail-back as stories on a clock, and the laws that hold whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.messages import BackendState
from smtplb.policy.health import CheckState, OperatorState, standing
from smtplb.policy.shares import GroupShares, PoolFitness, fitness, group_shares
from smtplb.settings import Address, BackendSettings, FailbackMode, GroupMember, GroupMode, GroupSettings

WELL = PoolFitness(1.0, usable=True, proven=True)
DEAD = PoolFitness(0.0, usable=False, proven=True)
UNPROVEN = PoolFitness(0.0, usable=False, proven=False)
ON_BACKUP = PoolFitness(0.0, usable=True, proven=True)
DELAY_S = 60.0


def part(ratio: float) -> PoolFitness:
    return PoolFitness(ratio, usable=ratio > 0, proven=True)


def group(
    mode: GroupMode,
    shares: Mapping[str, int],
    below: float = 0.5,
    failback: FailbackMode = FailbackMode.AUTO,
) -> GroupShares:
    members = tuple(GroupMember(pool, share) for pool, share in shares.items())
    return group_shares(GroupSettings("site", mode, members, below, failback, DELAY_S))


def passive(failback: FailbackMode = FailbackMode.AUTO, below: float = 0.5) -> GroupShares:
    return group(GroupMode.ACTIVE_PASSIVE, {"east": 100, "west": 100}, below, failback)


def active(failback: FailbackMode = FailbackMode.AUTO) -> GroupShares:
    return group(GroupMode.ACTIVE_ACTIVE, {"a": 60, "b": 30, "c": 10}, failback=failback)


def at(machine: GroupShares, now: float, **pools: PoolFitness) -> dict[str, int]:
    machine.update(pools, now)
    return dict(machine.shares)


EAST = {"east": 100, "west": 0}
WEST = {"east": 0, "west": 100}


class TestFitness:
    def backend(self, name: str, weight: int = 1, backup: bool = False) -> BackendSettings:
        return BackendSettings("east", name, Address("127.0.0.1", 25), weight=weight, backup=backup)

    def test_ratio_is_usable_weight_of_configured_weight(self) -> None:
        up = standing(OperatorState.READY, CheckState.UP, 3)
        down = standing(OperatorState.READY, CheckState.DOWN, 1)
        assert fitness([(self.backend("a", 3), up), (self.backend("b", 1), down)]).ratio == 0.75

    def test_backups_make_a_pool_usable_but_not_well(self) -> None:
        down = standing(OperatorState.READY, CheckState.DOWN, 1)
        up = standing(OperatorState.READY, CheckState.UP, 1)
        fit = fitness([(self.backend("a"), down), (self.backend("b", backup=True), up)])
        assert fit == PoolFitness(0.0, usable=True, proven=True)

    def test_a_pool_of_backups_only_counts_them(self) -> None:
        up = standing(OperatorState.READY, CheckState.UP, 1)
        assert fitness([(self.backend("a", backup=True), up)]).ratio == 1.0

    def test_a_raised_weight_adds_nothing_and_a_lowered_one_takes_away(self) -> None:
        raised = standing(OperatorState.READY, CheckState.UP, 10)
        lowered = standing(OperatorState.READY, CheckState.UP, 0)
        down = standing(OperatorState.READY, CheckState.DOWN, 1)
        assert fitness([(self.backend("a"), raised), (self.backend("b"), down)]).ratio == 0.5
        assert fitness([(self.backend("a"), lowered), (self.backend("b"), raised)]).ratio == 0.5

    def test_weights_of_zero_all_over_count_heads(self) -> None:
        up = standing(OperatorState.READY, CheckState.UP, 0)
        down = standing(OperatorState.READY, CheckState.DOWN, 0)
        assert fitness([(self.backend("a", 0), up), (self.backend("b", 0), down)]).ratio == 0.5

    @pytest.mark.parametrize("state", BackendState)
    def test_only_unproven_backends_make_a_pool_unproven(self, state: BackendState) -> None:
        told = standing(OperatorState.READY, CheckState.UNPROVEN, 1)
        told = type(told)(state, usable=False, last_resort=True, weight=1)
        assert fitness([(self.backend("a"), told)]).proven is (state is not BackendState.UNPROVEN)


class TestActivePassive:
    def test_the_preferred_pool_takes_all(self) -> None:
        assert at(passive(), 0, east=WELL, west=WELL) == EAST

    def test_load_goes_on_at_once_when_usable_weight_is_strictly_below_the_threshold(self) -> None:
        machine = passive()
        assert at(machine, 0, east=WELL, west=WELL) == EAST
        assert at(machine, 1, east=part(0.5), west=WELL) == EAST
        assert at(machine, 1, east=part(0.49), west=WELL) == WEST
        assert machine.reason == "east has 49% of its weight, below 50%"

    def test_load_comes_back_after_the_delay(self) -> None:
        machine = passive()
        at(machine, 0, east=WELL, west=WELL)
        at(machine, 10, east=DEAD, west=WELL)
        assert at(machine, 100, east=WELL, west=WELL) == WEST
        assert (machine.failback_at, machine.failback_waits, machine.next_at) == (160, False, 160)
        assert at(machine, 159.9, east=WELL, west=WELL) == WEST
        assert at(machine, 160, east=WELL, west=WELL) == EAST
        assert machine.reason == "east is well for 60 s"
        assert machine.next_at is None

    def test_an_interruption_starts_the_delay_anew(self) -> None:
        machine = passive()
        at(machine, 0, east=DEAD, west=WELL)
        at(machine, 10, east=WELL, west=WELL)
        at(machine, 50, east=part(0.2), west=WELL)
        at(machine, 51, east=WELL, west=WELL)
        assert at(machine, 100, east=WELL, west=WELL) == WEST
        assert at(machine, 111, east=WELL, west=WELL) == EAST

    def test_if_the_other_pool_fails_load_returns_without_delay(self) -> None:
        machine = passive()
        at(machine, 0, east=DEAD, west=WELL)
        at(machine, 10, east=WELL, west=WELL)
        assert at(machine, 11, east=WELL, west=DEAD) == EAST

    def test_manual_failback_waits_for_the_operator(self) -> None:
        machine = passive(FailbackMode.MANUAL)
        at(machine, 0, east=DEAD, west=WELL)
        assert not machine.failback_waits
        assert at(machine, 10_000, east=WELL, west=WELL) == WEST
        assert (machine.failback_waits, machine.failback_at, machine.next_at) == (True, None, None)
        assert machine.fail_back(10_001)
        assert dict(machine.shares) == EAST
        assert not machine.failback_waits
        assert not machine.fail_back(10_002)

    def test_the_operator_may_cut_the_delay_short(self) -> None:
        machine = passive()
        at(machine, 0, east=DEAD, west=WELL)
        at(machine, 1, east=WELL, west=WELL)
        assert machine.fail_back(2)
        assert dict(machine.shares) == EAST

    def test_the_operator_cannot_bring_back_a_pool_that_is_not_well(self) -> None:
        machine = passive(FailbackMode.MANUAL)
        at(machine, 0, east=part(0.3), west=WELL)
        assert not machine.fail_back(1)
        assert dict(machine.shares) == WEST

    @pytest.mark.parametrize("failback", FailbackMode)
    def test_the_order_in_which_first_checks_end_means_nothing(self, failback: FailbackMode) -> None:
        machine = passive(failback)
        assert at(machine, 0, east=UNPROVEN, west=UNPROVEN) == EAST
        assert at(machine, 1, east=UNPROVEN, west=WELL) == WEST
        assert at(machine, 2, east=WELL, west=WELL) == EAST

    def test_if_no_pool_is_well_the_one_with_most_usable_weight_takes_all(self) -> None:
        assert at(passive(), 0, east=part(0.2), west=part(0.4)) == WEST

    def test_if_no_pool_is_well_a_pool_on_its_backups_is_better_than_nothing(self) -> None:
        assert at(passive(), 0, east=DEAD, west=ON_BACKUP) == WEST

    def test_if_nothing_is_usable_the_first_pool_is_the_last_resort(self) -> None:
        machine = passive()
        at(machine, 0, east=DEAD, west=WELL)
        assert at(machine, 1, east=DEAD, west=DEAD) == EAST

    def test_two_pools_in_trouble_do_not_throw_load_to_and_fro(self) -> None:
        machine = passive()
        at(machine, 0, east=WELL, west=part(0.3))
        assert at(machine, 1, east=part(0.2), west=part(0.3)) == WEST
        assert at(machine, 2, east=part(0.4), west=part(0.3)) == WEST
        assert machine.next_at == 61
        assert at(machine, 61, east=part(0.4), west=part(0.3)) == EAST

    def test_a_threshold_of_zero_leaves_a_pool_only_when_nothing_in_it_is_usable(self) -> None:
        machine = passive(below=0.0)
        assert at(machine, 0, east=ON_BACKUP, west=WELL) == EAST
        assert at(machine, 1, east=DEAD, west=WELL) == WEST


class TestActiveActive:
    def test_every_pool_takes_its_configured_share(self) -> None:
        assert at(active(), 0, a=WELL, b=WELL, c=WELL) == {"a": 60, "b": 30, "c": 10}

    def test_a_pool_below_the_threshold_loses_its_share_to_the_others_in_proportion(self) -> None:
        machine = active()
        at(machine, 0, a=WELL, b=WELL, c=WELL)
        assert at(machine, 1, a=part(0.4), b=WELL, c=WELL) == {"a": 0, "b": 30, "c": 10}
        assert machine.reason == "a has 40% of its weight, below 50%"

    def test_it_comes_back_after_the_delay(self) -> None:
        machine = active()
        at(machine, 0, a=DEAD, b=WELL, c=WELL)
        assert at(machine, 10, a=WELL, b=WELL, c=WELL)["a"] == 0
        assert machine.next_at == machine.failback_at == 70
        assert at(machine, 70, a=WELL, b=WELL, c=WELL) == {"a": 60, "b": 30, "c": 10}

    def test_manual_failback_waits_for_the_operator(self) -> None:
        machine = active(FailbackMode.MANUAL)
        at(machine, 0, a=DEAD, b=WELL, c=WELL)
        assert at(machine, 10_000, a=WELL, b=WELL, c=WELL)["a"] == 0
        assert machine.failback_waits
        assert machine.fail_back(10_001)
        assert dict(machine.shares)["a"] == 60

    def test_a_pool_in_its_delay_takes_load_at_once_if_no_other_is_well(self) -> None:
        machine = active()
        at(machine, 0, a=DEAD, b=WELL, c=DEAD)
        assert at(machine, 1, a=WELL, b=DEAD, c=DEAD) == {"a": 60, "b": 0, "c": 0}

    def test_if_no_pool_is_well_all_with_something_usable_share(self) -> None:
        assert at(active(), 0, a=part(0.1), b=part(0.4), c=DEAD) == {"a": 60, "b": 30, "c": 0}
        assert at(active(), 0, a=ON_BACKUP, b=DEAD, c=DEAD) == {"a": 60, "b": 0, "c": 0}

    def test_if_nothing_is_usable_all_are_a_last_resort(self) -> None:
        assert at(active(), 0, a=DEAD, b=DEAD, c=DEAD) == {"a": 60, "b": 30, "c": 10}

    def test_a_configured_share_of_zero_takes_load_only_while_nobody_else_may(self) -> None:
        machine = group(GroupMode.ACTIVE_ACTIVE, {"a": 100, "spare": 0})
        assert at(machine, 0, a=WELL, spare=WELL) == {"a": 100, "spare": 0}
        assert at(machine, 1, a=DEAD, spare=WELL) == {"a": 0, "spare": 1}


NAMES = ("a", "b", "c")
fitnesses = st.one_of(
    st.sampled_from([WELL, DEAD, UNPROVEN, ON_BACKUP]), st.sampled_from([0.1, 0.3, 0.49, 0.5, 0.8]).map(part)
)
histories = st.lists(
    st.tuples(st.floats(0, 100), st.tuples(*[fitnesses] * len(NAMES)), st.booleans()), min_size=1, max_size=25
)
machines = st.tuples(
    st.sampled_from(GroupMode),
    st.lists(st.integers(0, 100), min_size=3, max_size=3).map(
        lambda shares: dict(zip(NAMES, shares, strict=True))
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(FailbackMode),
)
Machine = tuple[GroupMode, dict[str, int], float, FailbackMode]
History = list[tuple[float, tuple[PoolFitness, ...], bool]]


def is_well(machine: GroupShares, fit: PoolFitness) -> bool:
    return fit.usable and fit.ratio >= machine.settings.failover_below_ratio


@given(machines, histories)
def test_law_shares_are_never_all_zero_and_never_for_a_dead_pool_beside_a_usable_one(
    made: Machine, history: History
) -> None:
    machine, now = group(*made), 0.0
    for step_s, fits, operator in history:
        now += step_s
        pools = dict(zip(NAMES, fits, strict=True))
        before = machine.shares
        changed = machine.update(pools, now)
        assert changed is (machine.shares != before)
        if operator:
            machine.fail_back(now)
        shares = dict(machine.shares)
        assert list(shares) == list(NAMES)
        assert sum(shares.values()) > 0
        assert min(shares.values()) >= 0
        if any(fit.usable for fit in fits):
            assert not [pool for pool in NAMES if shares[pool] and not pools[pool].usable]


@given(machines, histories)
def test_law_failover_is_immediate(made: Machine, history: History) -> None:
    """No pool that is not well has a share while another one is well: not even for one step."""
    machine, now = group(*made), 0.0
    for step_s, fits, _ in history:
        now += step_s
        pools = dict(zip(NAMES, fits, strict=True))
        machine.update(pools, now)
        if any(is_well(machine, fit) for fit in fits):
            takers = [pool for pool, share in machine.shares if share]
            assert all(is_well(machine, pools[pool]) for pool in takers)


@given(machines, histories)
def test_law_failback_never_comes_before_the_delay_and_never_by_itself_in_manual_mode(
    made: Machine, history: History
) -> None:
    """A pool that was seen unwell takes load from well ones only after `delay` of wellness."""
    machine, now = group(*made), 0.0
    seen_unwell: set[str] = set()
    well_since: dict[str, float] = {}
    for step_s, fits, _ in history:
        now += step_s
        pools = dict(zip(NAMES, fits, strict=True))
        well_before = set(well_since)
        for pool, fit in pools.items():
            if is_well(machine, fit):
                well_since.setdefault(pool, now if pool in seen_unwell else -inf)
            else:
                well_since.pop(pool, None)
                seen_unwell |= {pool} if fit.proven else set()
        before = dict(machine.shares)
        machine.update(pools, now)
        shares = dict(machine.shares)
        kept = [pool for pool in well_before & set(well_since) if before[pool]]
        gained = [pool for pool in NAMES if shares[pool] and not before[pool]]
        for pool in gained if kept else []:
            since = well_since[pool]
            if since > -inf:
                assert machine.settings.failback_mode is FailbackMode.AUTO
                assert now - since >= DELAY_S


@given(machines, histories)
def test_law_nothing_moves_by_time_alone_before_next_at_and_what_is_due_then_moves(
    made: Machine, history: History
) -> None:
    machine, now = group(*made), 0.0
    for step_s, fits, _ in history:
        now += step_s
        pools = dict(zip(NAMES, fits, strict=True))
        machine.update(pools, now)
        if machine.next_at is None:
            assert not machine.update(pools, now + 1e6)
        else:
            assert machine.next_at > now
            assert not machine.update(pools, (now + machine.next_at) / 2)
            now = machine.next_at
            machine.update(pools, now)
            assert (machine.next_at or inf) > now
