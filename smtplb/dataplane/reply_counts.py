"""How often a backend gave which code to what. Plain dictionaries of integers: each reply of a message is counted.

Owns the counts. Invariant: they only grow.
"""

from __future__ import annotations


class ReplyCounts:
    """How often the backend gave which code to what, by code."""

    __slots__ = ("data", "final", "mail", "rcpt")

    def __init__(self) -> None:
        self.mail: dict[int, int] = {}
        self.rcpt: dict[int, int] = {}
        self.data: dict[int, int] = {}
        self.final: dict[int, int] = {}

    def by_phase(self) -> dict[tuple[str, int], int]:
        phases = {"mail": self.mail, "rcpt": self.rcpt, "data": self.data, "final": self.final}
        return {(name, code): count for name, codes in phases.items() for code, count in codes.items()}


def count(codes: dict[int, int], code: int) -> None:
    codes[code] = codes.get(code, 0) + 1
