"""How often a backend gave which code to what. Plain integers: each reply of a message is counted.

Owns the counts. Invariant: they only grow.
"""

from __future__ import annotations


class CodeCounts:
    """By code. The one that nearly all replies have is counted apart from the dictionary."""

    __slots__ = ("_others", "_usual", "_usual_code")

    def __init__(self, usual_code: int) -> None:
        self._usual_code = usual_code
        self._usual = 0
        self._others: dict[int, int] = {}

    def count(self, code: int) -> None:
        if code == self._usual_code:
            self._usual += 1
        else:
            self._others[code] = self._others.get(code, 0) + 1

    def by_code(self) -> dict[int, int]:
        return ({self._usual_code: self._usual} if self._usual else {}) | self._others


class ReplyCounts:
    """How often the backend gave which code to what."""

    __slots__ = ("data", "final", "mail", "rcpt")

    def __init__(self) -> None:
        self.mail = CodeCounts(250)
        self.rcpt = CodeCounts(250)
        self.data = CodeCounts(354)
        self.final = CodeCounts(250)

    def by_phase(self) -> dict[tuple[str, int], int]:
        phases = {"mail": self.mail, "rcpt": self.rcpt, "data": self.data, "final": self.final}
        return {
            (name, code): count for name, codes in phases.items() for code, count in codes.by_code().items()
        }
