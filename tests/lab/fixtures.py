"""How tests get at the lab: what is missing skips, or fails where that was asked for; what was started ends.

Owns `require` and `Lab`. The fixtures themselves are in tests/conftest.py.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import NoReturn, TypeVar

import pytest

from tests.lab.process import Available, Instance

HOW_TO_GET = "run `make mtas` as root on Debian"
LAB_IS_REQUIRED = os.environ.get("SMTPLB_REQUIRE_MTAS", "") not in ("", "0")

Started = TypeVar("Started", bound=Instance)


def require(*programs: Available) -> None:
    """Skips the calling test if one of the programs cannot run here; fails it under SMTPLB_REQUIRE_MTAS=1."""
    for program in programs:
        reason = program.available()
        if reason is not None:
            skip_or_fail(reason)


def skip_or_fail(reason: str) -> NoReturn:
    message = f"{reason}: {HOW_TO_GET}"
    if LAB_IS_REQUIRED:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class Lab:
    """Starts instances for a test and ends them behind it, last one first.

    `start` and `require` block: from asynchronous tests `await asyncio.to_thread(lab.start, Postfix())`.
    """

    def __init__(self) -> None:
        self._started = ExitStack()

    def require(self, *programs: Available) -> None:
        require(*programs)

    def start(self, instance: Started) -> Started:
        """Returns when the instance listens. Skips (or fails) the test where its program is missing."""
        require(type(instance))
        self._started.enter_context(instance)
        return instance

    def close(self) -> None:
        self._started.close()
