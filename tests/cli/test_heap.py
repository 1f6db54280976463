"""Freed memory that the allocator keeps goes back to the system, once a minute."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import cast

import pytest

from smtplb.cli.heap import EVERY_S, Trimming, find_trim

PIECES = """
from pathlib import Path
from smtplb.cli.heap import find_trim

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

kept = [bytes(20_000) + bytes([at % 7]) for at in range(4000)]
kept = kept[::50]  # what stays lies between what is free
before = resident()
find_trim()(0)
print(before - resident())
"""


class Later:
    """Loop enough: what is called later, and when."""

    def __init__(self) -> None:
        self.due: tuple[float, Callable[[], None]] | None = None

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Later:
        self.due = (seconds, callback)
        return self

    def cancel(self) -> None:
        self.due = None


def test_it_is_asked_for_once_a_minute_until_the_end() -> None:
    later = Later()
    asked: list[int] = []

    def trim(kept: int) -> int:
        asked.append(kept)
        return 1

    trimming = Trimming(cast("asyncio.AbstractEventLoop", later), trim)
    for turn in range(3):
        assert len(asked) == turn
        assert later.due is not None
        seconds, callback = later.due
        assert seconds == EVERY_S
        callback()
    assert asked == [0, 0, 0]
    trimming.close()
    assert later.due is None


@pytest.mark.skipif(find_trim() is None, reason="not glibc")
def test_what_is_free_between_what_stays_goes_back() -> None:
    given_back = int(
        subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True).stdout
    )
    print(f"{given_back:,} octets of 80,000,000 given back")  # noqa: T201
    assert given_back > 40_000_000
