"""Which backend of a pool takes the next transaction: one small machine per policy.

Owns the order of picks. Does not own who may be picked: the pool hands in its candidates (`update`) whenever they change.
Invariant: over any run without failures the picks approach the weights exactly; a pick is a candidate that is not in `skip`.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
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


class RoundRobin(Generic[C]):
    """Each in turn; weights are without meaning. A pick costs O(1) plus what is skipped."""

    def __init__(self) -> None:
        self._candidates: Sequence[C] = ()
        self._at = 0

    def update(self, candidates: Sequence[C]) -> None:
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
    """Smooth weighted round-robin by earliest deadline: 2 and 3 give B A B A B, not A A B B B.

    Each candidate is due again 1/weight after it was last due. A pick costs O(log n); nginx's variant costs O(n).
    """

    # Integers, so that the order never drifts: the step of weight w is _UNIT // w.
    _UNIT = 1 << 40

    def __init__(self) -> None:
        self._due: list[tuple[int, int, C]] = []
        self._steps: dict[C, int] = {}
        self._now = 0

    def update(self, candidates: Sequence[C]) -> None:
        kept = {candidate: due for due, _, candidate in self._due}
        due_list = []
        steps = {}
        for order, candidate in enumerate(candidates):
            step = self._UNIT // candidate.weight
            if self._steps.get(candidate) == step:
                due = kept[candidate]
            else:
                due = self._now + step
            steps[candidate] = step
            due_list.append((due, order, candidate))
        heapq.heapify(due_list)
        self._due, self._steps = due_list, steps

    def pick(self, skip: Collection[C]) -> C | None:
        passed = []
        picked: C | None = None
        while self._due:
            due, order, candidate = self._due[0]
            if candidate not in skip:
                self._now = due
                heapq.heapreplace(self._due, (due + self._steps[candidate], order, candidate))
                picked = candidate
                break
            passed.append(heapq.heappop(self._due))
        for entry in passed:
            heapq.heappush(self._due, entry)
        return picked


class LeastConnection(Generic[C]):
    """The fewest attempts under way for its weight, this one included; those alike take turns."""

    def __init__(self) -> None:
        self._candidates: Sequence[C] = ()
        self._at = 0

    def update(self, candidates: Sequence[C]) -> None:
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
