"""Memory that nobody uses goes back to the system.

Owns when the C library is asked for that. Does not own what uses memory.
Invariant: without a C library that can do it (musl, macOS) nothing happens.

glibc keeps what was freed below its highest block in use, and TLS records and bodies leave much of that between what stays:
resident memory of a busy balancer crept up for twenty minutes though no more of it was in use.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

EVERY_S = 60.0


def find_trim() -> Callable[[int], int] | None:
    """malloc_trim(3): whole pages that are free, wherever they lie, go back."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None


class Trimming:
    """Once a minute, until close()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, trim: Callable[[int], int] | None = None) -> None:
        self._loop = loop
        self._trim = find_trim() if trim is None else trim
        self._timer: asyncio.TimerHandle | None = None
        self._again()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        if self._trim is not None:
            self._timer = self._loop.call_later(EVERY_S, self._turn)

    def _turn(self) -> None:
        assert self._trim is not None
        self._trim(0)
        self._again()
