"""What readers of scalars may know beyond the scalar: names of networks, and files beside the configuration.

Owns the lines of `file:` lists. Does not own what a line means: the caller passes its reader.
Invariant: a mistake inside a list is reported at its own file and line, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from smtplb.config.errors import ConfigError
from smtplb.config.files import Files, UnreadableError
from smtplb.settings import Network

T = TypeVar("T")

MAX_LIST_ERRORS = 20  # of one list; a wrong file has as many as it has lines

_LINE_END = re.compile(r"\r?\n")  # not splitlines(): that also parts at VT, FF, NEL, LS and PS


@dataclass(frozen=True, slots=True)
class Context:
    files: Files
    directory: Path  # of the file that is being read
    networks: Mapping[str, tuple[Network, ...]]
    report: Callable[[ConfigError], None]

    def path(self, written: str) -> Path:
        return self.directory / written

    def lines(self, written: str, read: Callable[[object], T]) -> Iterator[T]:
        """What `read` makes of each line of the list called `written`. ValueError: the file cannot be used at
        all.

        One value a line; `#` starts a comment at the start of a line or behind a blank; empty lines are
        skipped.
        """
        path = self.path(written)
        try:
            whole = self.files.list_text(path)
        except UnreadableError as error:
            raise ValueError(str(error)) from None
        errors = 0
        for number, line in enumerate(_LINE_END.split(whole.removeprefix("\ufeff")), start=1):
            value = re.sub(r"(?:^|[ \t])#.*", "", line).strip(" \t")
            if not value:
                continue
            try:
                yield read(value)
            except ValueError as error:
                self.report(ConfigError(str(path), number, line.index(value) + 1, "", str(error)))
                errors += 1
                if errors >= MAX_LIST_ERRORS:
                    return
