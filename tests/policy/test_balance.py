"""Balancing: exact shares, even order, fairness over leaving and coming back, and what is skipped, as laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.policy.balance import Balancer, LeastConnection, RoundRobin, Weighted, balancer
from smtplb.settings import Policy
from tests.effort import examples


class Backend:
    def __init__(self, name: str, weight: int = 1, in_flight: int = 0) -> None:
        self.name = name
        self.weight = weight
        self.in_flight = in_flight

    def __repr__(self) -> str:
        return f"{self.name}({self.weight})"


def backends(*weights: int) -> list[Backend]:
    return [
        Backend(chr(ord("A") + at % 26) + str(at // 26 or ""), weight) for at, weight in enumerate(weights)
    ]


def picks(machine: Balancer[Backend], count: int, skip: Sequence[Backend] = ()) -> list[Backend]:
    found = []
    for _ in range(count):
        picked = machine.pick(skip)
        assert picked is not None
        found.append(picked)
    return found


def names(found: Sequence[Backend]) -> str:
    return "".join(backend.name for backend in found)


def weighted(candidates: Sequence[Backend]) -> Weighted[Backend]:
    machine: Weighted[Backend] = Weighted()
    machine.update(candidates)
    return machine


def round_robin(candidates: Sequence[Backend]) -> RoundRobin[Backend]:
    machine: RoundRobin[Backend] = RoundRobin()
    machine.update(candidates)
    return machine


def least_connection(candidates: Sequence[Backend]) -> LeastConnection[Backend]:
    machine: LeastConnection[Backend] = LeastConnection()
    machine.update(candidates)
    return machine


def largest_deviation(candidates: Sequence[Backend], found: Sequence[Backend]) -> Fraction:
    """How far any candidate ever was from its exact share, in picks."""
    total = sum(backend.weight for backend in candidates)
    counts = Counter[Backend]()
    largest = Fraction(0)
    for number, picked in enumerate(found, 1):
        counts[picked] += 1
        for backend in candidates:
            exact = Fraction(number * backend.weight, total)
            largest = max(largest, abs(counts[backend] - exact))
    return largest


Maker = Callable[[Sequence[Backend]], Balancer[Backend]]
MACHINES: list[Maker] = [round_robin, weighted, least_connection]

WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=12)


# -- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (Policy.ROUND_ROBIN, RoundRobin),
        (Policy.WEIGHTED, Weighted),
        (Policy.LEAST_CONNECTION, LeastConnection),
    ],
)
def test_each_policy_has_its_machine(policy: Policy, kind: type[object]) -> None:
    first: Balancer[Backend] = balancer(policy)
    assert type(first) is kind
    assert balancer(policy) is not first


@pytest.mark.parametrize("make", MACHINES)
def test_nobody_is_picked_where_nobody_is(make: Maker) -> None:
    assert make([]).pick(()) is None


@pytest.mark.parametrize("make", MACHINES)
def test_nobody_is_picked_when_all_are_skipped_and_later_picks_go_on(make: Maker) -> None:
    candidates = backends(2, 3, 1)
    machine = make(candidates)
    assert machine.pick(candidates) is None
    assert machine.pick(candidates[:2]) is candidates[2]
    assert machine.pick(()) is not None


@pytest.mark.parametrize("make", MACHINES)
def test_the_only_candidate_is_always_picked(make: Maker) -> None:
    (only,) = backends(7)
    assert picks(make([only]), 10) == [only] * 10


@pytest.mark.parametrize("make", MACHINES)
@given(weights=WEIGHTS, seed=st.integers(0, 1000))
def test_a_pick_is_a_candidate_that_is_not_skipped(make: Maker, weights: list[int], seed: int) -> None:
    rng = Random(seed)
    everyone = backends(*weights)
    machine = make([])
    candidates: list[Backend] = []
    for _ in range(60):
        if rng.random() < 0.2:
            candidates = [backend for backend in everyone if rng.random() < 0.7]
            machine.update(candidates)
        skip = [backend for backend in everyone if rng.random() < 0.3]
        picked = machine.pick(skip)
        left = [backend for backend in candidates if backend not in skip]
        assert (picked in left) if left else (picked is None)


# -- round robin -------------------------------------------------------------------------------------------------


def test_round_robin_takes_turns_in_the_order_of_the_pool() -> None:
    assert names(picks(round_robin(backends(1, 1, 1)), 7)) == "ABCABCA"


def test_round_robin_gives_everyone_the_same_whatever_the_weights() -> None:
    candidates = backends(1, 50, 7, 3)
    counts = Counter(picks(round_robin(candidates), 4000))
    assert set(counts.values()) == {1000}


def test_round_robin_skips_only_for_the_present_pick() -> None:
    candidates = a, b, c = backends(1, 1, 1)
    machine = round_robin(candidates)
    assert machine.pick([a]) is b
    assert machine.pick(()) is c
    assert machine.pick(()) is a


def test_round_robin_goes_on_behind_the_last_pick_when_candidates_change() -> None:
    a, b, c, d = backends(1, 1, 1, 1)
    machine = round_robin([a, b, c])
    assert machine.pick(()) is a
    machine.update([b, c])
    assert machine.pick(()) is b, "b was next"
    machine.update([a, b, c, d])
    assert names(picks(machine, 5)) == "CDABC"
    machine.update([d, a])
    assert names(picks(machine, 3)) == "DAD"


def test_round_robin_starves_nobody_while_another_comes_and_goes() -> None:
    a, b, c = backends(1, 1, 1)
    machine = round_robin([a, b, c])
    found = []
    for turn in range(300):
        machine.update([a, b, c] if turn % 2 else [b, c])
        found += picks(machine, 1)
    counts = Counter(found)
    assert min(counts[b], counts[c]) >= 100


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=30))
def test_round_robin_never_picks_one_twice_while_another_stays_unpicked(present: list[set[int]]) -> None:
    """Between two picks of one, every other that was there all the time was picked."""
    everyone = backends(*[1] * 6)
    machine = round_robin([])
    history: list[tuple[set[int], int]] = []
    for there in present:
        machine.update([everyone[at] for at in sorted(there)])
        picked = everyone.index(picks(machine, 1)[0])
        for back in range(len(history) - 1, -1, -1):
            if history[back][1] == picked:
                since = history[back:]
                always = set.intersection(*(entry[0] for entry in since), there) - {picked}
                assert always <= {entry[1] for entry in since}
                break
        history.append((there, picked))


# -- weighted ----------------------------------------------------------------------------------------------------


def test_weights_two_and_three_are_forty_and_sixty_percent_evenly_mixed() -> None:
    candidates = a, b = backends(2, 3)
    found = picks(weighted(candidates), 5000)
    assert names(found[:10]) == "BABABBABAB"
    counts = Counter(found)
    assert abs(counts[a] - 2000) <= 1
    assert abs(counts[b] - 3000) <= 1
    for start in range(len(found) - 5):
        assert abs(found[start : start + 5].count(a) - 2) <= 1


def test_equal_weights_take_turns_in_the_order_of_the_pool() -> None:
    assert names(picks(weighted(backends(5, 5, 5)), 7)) == "ABCABCA"


def test_a_heavy_one_among_many_light_ones_is_not_given_everything_at_once() -> None:
    """Ten and ten times one: every other pick, not ten in a row."""
    found = picks(weighted(backends(10, *[1] * 10)), 200)
    assert not any(first.weight == second.weight == 10 for first, second in pairwise(found))


@settings(max_examples=examples(200))
@given(WEIGHTS)
def test_nobody_is_ever_off_its_exact_share_by_a_whole_pick(weights: list[int]) -> None:
    candidates = backends(*weights)
    assert largest_deviation(candidates, picks(weighted(candidates), 300)) < 1


def test_shares_do_not_drift_over_a_million_picks() -> None:
    candidates = backends(1, 3, 7, 11, 97)
    machine = weighted(candidates)
    counts = Counter(picks(machine, 119 * 8400))
    assert {backend.weight: count for backend, count in counts.items()} == {
        weight: weight * 8400 for weight in (1, 3, 7, 11, 97)
    }


@given(WEIGHTS, st.integers(0, 100))
def test_an_update_that_changes_nothing_changes_no_pick(weights: list[int], at: int) -> None:
    """Snapshots come whenever any backend of the house changes."""
    candidates = backends(*weights)
    plain, updated = weighted(candidates), weighted(candidates)
    assert picks(plain, at) == picks(updated, at)
    for _ in range(50):
        updated.update(list(candidates))
        assert picks(plain, 1) == picks(updated, 1)


@given(WEIGHTS, st.integers(1, 100), st.integers(0, 200), st.integers(0, 200))
def test_one_that_leaves_and_comes_back_gets_its_share_and_nothing_to_make_up_for_it(
    weights: list[int], weight: int, before: int, meanwhile: int
) -> None:
    others = backends(*weights)
    traveller = Backend("T", weight)
    machine = weighted([*others, traveller])
    picks(machine, before)
    machine.update(others)
    gone = picks(machine, meanwhile)
    assert traveller not in gone
    assert largest_deviation(others, gone) < 2, "one pick of each may be owed from before"
    machine.update([traveller, *others])
    back = picks(machine, 200)
    assert largest_deviation([traveller, *others], back) < 2


@given(WEIGHTS, st.integers(0, 10_000))
def test_a_weight_that_changes_all_the_time_starves_nobody(weights: list[int], seed: int) -> None:
    """A slow start raises a weight in every snapshot: what a backend has waited for must not be lost each time."""
    rng = Random(seed)
    candidates = backends(*weights)
    machine = weighted(candidates)
    exact = dict.fromkeys(candidates, Fraction(0))
    counts = Counter[Backend]()
    for _ in range(150):
        candidates[0].weight = rng.randint(1, 100)
        machine.update(candidates)
        total = sum(backend.weight for backend in candidates)
        for backend in candidates:
            exact[backend] += Fraction(backend.weight, total)
        counts.update(picks(machine, 1))
    for backend in candidates:
        assert abs(counts[backend] - exact[backend]) < 3


def test_what_is_skipped_for_one_pick_is_made_up_soon_after() -> None:
    candidates = a, b = backends(1, 1)
    machine = weighted(candidates)
    first = picks(machine, 3, skip=[a])
    assert first == [b] * 3
    assert Counter(first + picks(machine, 97)) == {a: 50, b: 50}


def test_a_newcomer_after_a_skip_has_no_advantage() -> None:
    a, b, c = backends(1, 1, 1)
    machine = weighted([a, b])
    picks(machine, 4, skip=[a])
    machine.update([a, b, c])
    counts = Counter(picks(machine, 300))
    assert abs(counts[c] - 100) <= 2


# -- least connection --------------------------------------------------------------------------------------------


def test_the_fewest_in_flight_is_picked() -> None:
    a, b, c = Backend("A", in_flight=3), Backend("B", in_flight=1), Backend("C", in_flight=2)
    machine = least_connection([a, b, c])
    assert machine.pick(()) is b
    assert machine.pick([b]) is c
    assert machine.pick([b, c]) is a


def test_idle_backends_of_equal_weight_take_turns() -> None:
    assert names(picks(least_connection(backends(1, 1, 1)), 7)) == "ABCABCA"


@pytest.mark.parametrize(
    ("light", "heavy", "picked"),
    [(0, 0, "H"), (0, 1, "L"), (1, 2, "H"), (1, 3, "L"), (0, 2, "L"), (3, 6, "H"), (3, 7, "L")],
)
def test_a_backend_of_weight_two_carries_twice_as_much(light: int, heavy: int, picked: str) -> None:
    machine = least_connection([Backend("L", 1, light), Backend("H", 2, heavy)])
    found = picks(machine, 1)[0]
    after = {"L": (light + 1) / 1, "H": (heavy + 1) / 2}
    assert after[found.name] == min(after.values())
    assert found.name == picked or after["L"] == after["H"]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=8),
    st.sets(st.integers(0, 7)),
)
def test_no_other_would_be_loaded_less_for_its_weight(
    loads: list[tuple[int, int]], skipped: set[int]
) -> None:
    candidates = [Backend(str(at), weight, in_flight) for at, (weight, in_flight) in enumerate(loads)]
    skip = [candidates[at] for at in skipped if at < len(candidates)]
    picked = least_connection(candidates).pick(skip)
    left = [backend for backend in candidates if backend not in skip]
    if picked is None:
        assert not left
        return
    load = Fraction(picked.in_flight + 1, picked.weight)
    assert load == min(Fraction(backend.in_flight + 1, backend.weight) for backend in left)


@given(WEIGHTS)
def test_work_that_stays_is_spread_by_weight(weights: list[int]) -> None:
    candidates = backends(*weights)
    machine = least_connection(candidates)
    for _ in range(3 * sum(weights)):
        found = picks(machine, 1)[0]
        found.in_flight += 1
    assert [backend.in_flight for backend in candidates] == [3 * weight for weight in weights]


def test_least_connection_goes_on_behind_the_last_pick_when_candidates_change() -> None:
    a, b, c = backends(1, 1, 1)
    machine = least_connection([a, b, c])
    assert machine.pick(()) is a
    machine.update([b, c])
    assert machine.pick(()) is b
    machine.update([a, b, c])
    assert machine.pick(()) is c
