"""Keys that may have no effect, where several places together decide that: in `defaults`, above backends.

Owns what was seen of them. Does not own any reason.
Invariant: a key is a mistake only if it had no effect in every place that it was looked at for.
"""

from __future__ import annotations

from smtplb.config.checker import Checker
from smtplb.config.tree import Path


class Effects:
    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._why_none: dict[Path, str] = {}  # key -> why it has no effect; "" if it has one

    def note(self, path: Path, why_none: str) -> None:
        """One place where the key at `path` counts: why it has no effect there; "" if it has one, or if that cannot
        be told.
        """
        if not why_none or path not in self._why_none:
            self._why_none[path] = why_none

    def judge(self) -> None:
        """After the last place."""
        for path, why in self._why_none.items():
            if why:
                self._checker.fault(path, why, of_key=True)
