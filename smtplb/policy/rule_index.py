"""Which rules of a route can hold for a recipient, without looking at all of them.

Owns an index over what rules ask of the recipient. Does not own what a condition means (routing.py).
Invariant: every rule that holds is among the candidates, in the order of the rules; most that do not hold are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge

from smtplb.settings import Condition
from smtplb.smtp.address import domain_of


class RuleIndex:
    """Numbers of rules by the recipient domain that they name; a thousand rules then cost as much as ten.

    A rule that names none, or that has no condition, is always a candidate.
    """

    __slots__ = ("_always", "_exact", "_suffixes")

    def __init__(self, conditions: Sequence[Condition | None]) -> None:
        always: list[int] = []
        self._exact: dict[str, list[int]] = {}
        self._suffixes: dict[str, list[int]] = {}
        for number, condition in enumerate(conditions):
            domains = condition.recipient_domain if condition is not None else None
            if domains is None:
                always.append(number)
                continue
            for name in domains.exact:
                self._exact.setdefault(name, []).append(number)
            for name in domains.suffixes:
                self._suffixes.setdefault(name, []).append(number)
        self._always = always

    def candidates(self, recipient: bytes) -> Sequence[int]:
        """In ascending order, each at least once."""
        found: list[list[int]] = []
        name = domain_of(recipient).decode("latin-1").lower()
        if name:
            exact = self._exact.get(name)
            if exact is not None:
                found.append(exact)
            if self._suffixes:
                at = name.find(".")
                while at >= 0:
                    name = name[at + 1 :]
                    below = self._suffixes.get(name)
                    if below is not None:
                        found.append(below)
                    at = name.find(".")
        if not found:
            return self._always
        return list(merge(*found, self._always))
