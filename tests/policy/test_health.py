"""Health: the truth table row by row, the check machine as sentences and as laws."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.messages import BackendState
from smtplb.policy.health import JITTER_RATIO, STANDINGS, CheckState, CheckTrack, OperatorState, standing
from smtplb.settings import CheckLevel, CheckSettings


def track(rise: int = 2, fall: int = 3) -> CheckTrack:
    return CheckTrack(CheckSettings(rise=rise, fall=fall))


# passed, identity
RESULTS = {"+": (True, True), "?": (True, None), "-": (False, None), "i": (False, False)}


def states(machine: CheckTrack, results: str) -> list[CheckState]:
    """Feed results: `+` passed, `?` passed without a word on the identity, `-` failed, `i` lacks the identity."""
    seen = []
    for result in results:
        passed, identity = RESULTS[result]
        machine.result(passed, identity=identity)
        seen.append(machine.state)
    return seen


def no_jitter() -> float:
    return 0.0


UP, DOWN, NO_IDENTITY = CheckState.UP, CheckState.DOWN, CheckState.NO_IDENTITY


def test_the_table_has_a_row_for_every_pair() -> None:
    assert set(STANDINGS) == set(product(OperatorState, CheckState))


@pytest.mark.parametrize(
    ("check", "state", "usable", "last_resort"),
    [
        (CheckState.UNPROVEN, BackendState.UNPROVEN, False, True),
        (CheckState.UP, BackendState.UP, True, False),
        (CheckState.DOWN, BackendState.DOWN, False, True),
        (CheckState.NO_IDENTITY, BackendState.UNPROVEN, False, False),
        (CheckState.OFF, BackendState.UP, True, False),
    ],
)
def test_a_ready_backend_is_what_its_checks_say(
    check: CheckState, state: BackendState, usable: bool, last_resort: bool
) -> None:
    told = standing(OperatorState.READY, check, 3)
    assert (told.state, told.usable, told.last_resort, told.weight) == (state, usable, last_resort, 3)


@pytest.mark.parametrize("check", CheckState)
@pytest.mark.parametrize("operator", [OperatorState.DRAIN, OperatorState.MAINT])
def test_drain_and_maint_win_over_every_check_and_are_never_a_last_resort(
    operator: OperatorState, check: CheckState
) -> None:
    told = standing(operator, check, 1)
    assert (told.state.value, told.usable, told.last_resort) == (operator.value, False, False)


def test_usable_and_last_resort_exclude_each_other() -> None:
    assert not [row for row in STANDINGS.values() if row.usable and row.last_resort]


def test_offers_are_told_in_every_state() -> None:
    for operator, check in STANDINGS:
        assert standing(operator, check, 1, {b"DSN": b""}).offers == {b"DSN": b""}


def test_first_result_decides_at_once() -> None:
    assert states(track(rise=5), "+") == [UP]
    assert states(track(fall=5), "-") == [DOWN]


def test_up_goes_down_after_fall_failures_in_a_row() -> None:
    assert states(track(fall=3), "+---") == [UP, UP, UP, DOWN]


def test_a_success_between_starts_the_count_of_failures_anew() -> None:
    assert states(track(fall=3), "+--+--") == [UP] * 6


def test_down_comes_up_after_rise_successes_in_a_row() -> None:
    assert states(track(rise=2), "-+-++") == [DOWN, DOWN, DOWN, DOWN, UP]


def test_the_cause_says_how_many_of_how_many() -> None:
    machine = track(rise=2, fall=3)
    machine.result(True)
    assert machine.cause == "first check"
    states(machine, "---")
    assert machine.cause == "3 of 3"
    states(machine, "++")
    assert machine.cause == "2 of 2"


class TestIdentity:
    @pytest.mark.parametrize("before", ["", "+", "-", "+--", "-+"])
    def test_a_missing_identity_takes_it_out_at_once(self, before: str) -> None:
        machine = track(fall=3)
        states(machine, before)
        assert states(machine, "i") == [NO_IDENTITY]
        assert machine.cause == ""

    def test_one_check_that_proves_it_brings_it_back_at_once(self) -> None:
        machine = track(rise=5)
        assert states(machine, "---i+") == [DOWN, DOWN, DOWN, NO_IDENTITY, UP]
        assert machine.cause == "identity proven"

    def test_failures_for_other_reasons_and_successes_that_came_less_far_prove_nothing(self) -> None:
        assert states(track(rise=1, fall=1), "i-?-?+") == [NO_IDENTITY] * 5 + [UP]

    def test_a_check_that_cannot_tell_is_taken_for_proof_until_shown_otherwise(self) -> None:
        assert states(track(), "???") == [UP] * 3

    def test_it_is_checked_at_the_normal_interval(self) -> None:
        machine = CheckTrack(CheckSettings(interval_s=10, fast_interval_s=2))
        for result in "ii-?":
            states(machine, result)
            assert machine.next_interval_s(no_jitter) == 10

    def test_after_maintenance_the_next_check_decides(self) -> None:
        machine = track()
        states(machine, "i")
        machine.forget()
        assert machine.state is CheckState.UNPROVEN
        assert states(machine, "-") == [DOWN]

    def test_no_check_passes_without_it(self) -> None:
        with pytest.raises(AssertionError):
            track().result(True, identity=False)


def test_the_interval_is_fast_while_the_result_is_uncertain() -> None:
    machine = CheckTrack(CheckSettings(interval_s=10, fast_interval_s=2, rise=2, fall=2))
    assert machine.next_interval_s(no_jitter) == 2  # not checked yet
    seen = []
    for result in "+--++":
        machine.result(result == "+")
        seen.append(machine.next_interval_s(no_jitter))
    assert seen == [10, 2, 10, 2, 10]


def test_a_fast_interval_longer_than_the_interval_slows_nothing_down() -> None:
    machine = CheckTrack(CheckSettings(interval_s=1, fast_interval_s=2))
    assert machine.next_interval_s(no_jitter) == 1


def test_checks_that_are_off_count_as_up_always() -> None:
    machine = CheckTrack(CheckSettings(level=CheckLevel.OFF))
    assert machine.state is CheckState.OFF
    assert not machine.uncertain
    with pytest.raises(AssertionError):
        machine.result(True)


def test_what_was_known_is_forgotten_and_the_next_result_decides_at_once() -> None:
    machine = track()
    states(machine, "+++")
    machine.forget()
    assert (machine.state, machine.uncertain) == (CheckState.UNPROVEN, True)
    assert states(machine, "-") == [DOWN]


results = st.lists(st.booleans(), max_size=60)


@given(results, st.integers(1, 5), st.integers(1, 5))
def test_law_a_state_changes_only_on_the_needed_number_of_results_in_a_row(
    told: list[bool], rise: int, fall: int
) -> None:
    machine = track(rise, fall)
    for count, passed in enumerate(told, 1):
        before = machine.state
        changed = machine.result(passed)
        assert changed is (machine.state is not before)
        needed = 1 if before is CheckState.UNPROVEN else rise if passed else fall
        tail = told[max(0, count - needed) : count]
        unanimous = len(tail) == needed and all(result is passed for result in tail)
        assert machine.state is ((UP if passed else DOWN) if unanimous else before)
        assert machine.uncertain is (passed is not (machine.state is UP))


@given(st.text("+?-i", max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_law_without_the_identity_exactly_from_its_lack_to_its_proof(told: str, rise: int, fall: int) -> None:
    machine = track(rise, fall)
    lacking = False
    for result in told:
        lacking = result == "i" or (lacking and result != "+")
        (state,) = states(machine, result)
        assert (state is NO_IDENTITY) is lacking


@given(results, st.floats(0, 1, exclude_max=True))
def test_law_jitter_shortens_an_interval_by_a_fifth_at_most_and_never_lengthens_it(
    told: list[bool], random: float
) -> None:
    machine = track()
    for passed in told:
        machine.result(passed)
    longest = 2.0 if machine.uncertain else 10.0
    assert longest * (1 - JITTER_RATIO) <= machine.next_interval_s(lambda: random) <= longest
