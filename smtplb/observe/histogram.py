"""Counts of durations by upper bound: what metrics show, and what policies compare backends by.

Owns the bounds. Invariant: the counts of a histogram only grow.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

SECONDS_BOUNDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
)
# A function from outside what is compiled is looked up by name each time, and a tuple that is written out is made anew at each
# use: here once.
_bisect_left: Final = bisect_left
_BOUNDS: Final = list(SECONDS_BOUNDS)


class Histogram:
    """Counts of durations in seconds, by upper bound; the last count is for all above the last bound."""

    __slots__ = ("counts", "sum_s")

    def __init__(self, counts: list[int] | None = None, sum_s: float = 0.0) -> None:
        self.counts = [0] * (len(SECONDS_BOUNDS) + 1) if counts is None else counts
        self.sum_s = sum_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and (self.counts, self.sum_s) == (other.counts, other.sum_s)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Histogram], tuple[list[int], float]]:
        return Histogram, (self.counts, self.sum_s)

    def observe(self, seconds: float) -> None:
        self.counts[_bisect_left(_BOUNDS, seconds)] += 1
        self.sum_s += seconds

    def copy(self) -> Histogram:
        return Histogram(list(self.counts), self.sum_s)

    def quantile_s(self, ratio: float) -> float | None:
        """Upper bound of the bucket in which the quantile lies, None while nothing was observed."""
        total = sum(self.counts)
        if not total:
            return None
        seen = 0
        for bound, count in zip(SECONDS_BOUNDS, self.counts, strict=False):
            seen += count
            if seen >= ratio * total:
                return bound
        return float(SECONDS_BOUNDS[-1])
