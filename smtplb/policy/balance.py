"""Which backend of a pool takes the next transaction: one small machine per policy.

Owns the order of picks. Does not own who may be picked: the pool hands in its candidates (`update`) whenever they change.
Invariant: a pick is a candidate that is not in `skip`; over any run without skips nobody is off its exact share by a whole pick.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from math import lcm
from typing import Generic, Protocol, TypeVar

from smtplb.settings import Policy


class Candidate(Protocol):
    """What a policy may know of a backend. `weight` is the effective one, above 0; `in_flight` counts attempts under way."""

    @property
    def weight(self) -> int: ...
    @property
    def in_flight(self) -> int: ...


C = TypeVar("C", bound=Candidate)


class Balancer(Protocol[C]):
    def update(self, candidates: Sequence[C]) -> None:
        """Replace the candidates; those that stay keep their place in the order."""

    def pick(self, skip: Collection[C]) -> C | None:
        """The backend for the next transaction, None if every candidate is in `skip`."""


def _next_place(old: Sequence[C], at: int, new: Sequence[C]) -> int:
    """Where `new` goes on: at the first of those that stay, in the order in which `old` would have been picked from `at`."""
    places = {candidate: place for place, candidate in enumerate(new)}
    for candidate in (*old[at:], *old[:at]):
        if candidate in places:
            return places[candidate]
    return 0


class RoundRobin(Generic[C]):
    """Each in turn; weights are without meaning. A pick costs O(1) plus what is skipped."""

    def __init__(self) -> None:
        self._candidates: Sequence[C] = ()
        self._at = 0

    def update(self, candidates: Sequence[C]) -> None:
        self._at = _next_place(self._candidates, self._at, candidates)
        self._candidates = candidates

    def pick(self, skip: Collection[C]) -> C | None:
        candidates = self._candidates
        count = len(candidates)
        for step in range(count):
            at = (self._at + step) % count
            candidate = candidates[at]
            if candidate not in skip:
                self._at = at + 1
                return candidate
        return None


class Weighted(Generic[C]):
    """Smooth weighted round-robin: 2 and 3 give B A B A B, not A A B B B; 10 among ten 1s is every other pick.

    Turn k of a candidate begins at k/weight and ends at (k+1)/weight; each pick moves time on by 1/(sum of weights). Of the
    turns that have begun the one that ends first is picked. (Without the first condition the heavy one would take ten
    picks in a row.) A pick costs O(log n); nginx's variant costs O(n).
    """

    def __init__(self) -> None:
        self._begun: list[tuple[int, int, C]] = []  # heap of (end of turn, order, candidate)
        self._later: list[tuple[int, int, C]] = []  # heap of (beginning of turn, order, candidate)
        self._weights: dict[C, int] = {}
        self._total = 1  # of the weights
        self._unit = 1  # what time 1 is, so that all turns begin and end at integers: the order never drifts
        self._time = 0  # present time x unit x total, which is the sum of all beginnings x weight

    def update(self, candidates: Sequence[C]) -> None:
        """What one has waited is kept in parts of a turn, so a weight that is raised step by step loses nothing.

        What those who leave were owed, or had taken in advance, is forgotten.
        """
        weights = {candidate: candidate.weight for candidate in candidates}
        if list(weights.items()) == list(self._weights.items()):
            return
        was, unit = self._weights, lcm(*weights.values()) << 64  # finer, for what is carried over
        begins = {candidate: begin for begin, _, candidate in self._later}
        begins |= {candidate: end - self._unit // was[candidate] for end, _, candidate in self._begun}
        later = []
        for order, (candidate, weight) in enumerate(weights.items()):
            begin = self._time * weight
            if candidate in begins:
                begin += (begins[candidate] * self._total - self._time) * was[candidate]
            later.append((begin * unit // (weight * self._total * self._unit), order, candidate))
        heapq.heapify(later)
        self._begun, self._later, self._weights, self._unit = [], later, weights, unit
        self._total = sum(weights.values()) or 1
        self._time = sum(begin * weights[candidate] for begin, _, candidate in later)

    def pick(self, skip: Collection[C]) -> C | None:
        begun, later, unit = self._begun, self._later, self._unit
        while later and later[0][0] * self._total <= self._time:
            begin, order, candidate = heapq.heappop(later)
            heapq.heappush(begun, (begin + unit // self._weights[candidate], order, candidate))
        entry = _take(begun, skip)
        if entry is not None:
            end, order, candidate = entry
        else:  # all whose turn it is are skipped
            entry = _take(later, skip)
            if entry is None:
                return None
            begin, order, candidate = entry
            end = begin + unit // self._weights[candidate]
        heapq.heappush(later, (end, order, candidate))
        self._time += unit
        return candidate


def _take(heap: list[tuple[int, int, C]], skip: Collection[C]) -> tuple[int, int, C] | None:
    """Pop the least entry whose candidate is not in `skip`."""
    passed = []
    found = None
    while heap:
        entry = heapq.heappop(heap)
        if entry[2] not in skip:
            found = entry
            break
        passed.append(entry)
    for entry in passed:
        heapq.heappush(heap, entry)
    return found


class LeastConnection(Generic[C]):
    """The fewest attempts under way for its weight, this one included; those alike take turns."""

    def __init__(self) -> None:
        self._candidates: Sequence[C] = ()
        self._at = 0

    def update(self, candidates: Sequence[C]) -> None:
        self._at = _next_place(self._candidates, self._at, candidates)
        self._candidates = candidates

    def pick(self, skip: Collection[C]) -> C | None:
        candidates = self._candidates
        count = len(candidates)
        best: C | None = None
        best_at = best_load = 0
        best_weight = 1
        for step in range(count):
            at = (self._at + step) % count
            candidate = candidates[at]
            if candidate in skip:
                continue
            load, weight = candidate.in_flight + 1, candidate.weight
            if best is None or load * best_weight < best_load * weight:
                best, best_at, best_load, best_weight = candidate, at, load, weight
        if best is not None:
            self._at = best_at + 1
        return best


def balancer(policy: Policy) -> Balancer[C]:
    """A fresh machine for a policy."""
    match policy:
        case Policy.ROUND_ROBIN:
            return RoundRobin()
        case Policy.WEIGHTED:
            return Weighted()
        case Policy.LEAST_CONNECTION:
            return LeastConnection()
