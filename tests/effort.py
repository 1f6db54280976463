"""How much a run of the tests tries: hypothesis profiles, and what grows with them.

Owns the profiles (`pytest --hypothesis-profile=NAME`) and the scale. Does not own which tests a target of the Makefile picks.
Invariant: `ci` draws the same examples in every run, so that it does not pass today and fail tomorrow; to find something new
is for the others.
"""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

DEV, CI, FUZZ = "dev", "ci", "fuzz"
USUAL: Final = 100  # examples of a law that names no number of its own, under `ci`
_EXAMPLES: Final = {DEV: USUAL // 5, CI: USUAL, FUZZ: USUAL * 50}


def register_profiles() -> None:
    """To be called before test modules are read. Without --hypothesis-profile it is `dev`."""
    for name, count in _EXAMPLES.items():
        settings.register_profile(
            name,
            max_examples=count,
            derandomize=name == CI,
            deadline=None,  # of one example; a machine that is busy elsewhere is no failure of ours
            suppress_health_check=[HealthCheck.too_slow],  # nor is it when examples are drawn
            print_blob=True,
        )
    settings.load_profile(DEV)


def examples(usual: int) -> int:
    """`usual` under `ci`, in proportion under the others: `@settings(max_examples=examples(300))`."""
    return max(1, usual * settings().max_examples // USUAL)


def seeds(usual: int) -> range:
    """Of a campaign whose tests are parametrized by seed."""
    return range(examples(usual))
