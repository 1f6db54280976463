"""Ends of the log that tests hold in their hands."""

from __future__ import annotations

from collections import deque

from smtplb.observe.outlet import Outlet


class Kept(Outlet):
    """Keeps what is written. `script`: what the next writes do: take at most so many octets, or fail."""

    __slots__ = ("closed", "data", "reopened", "script", "terminal", "writes")

    def __init__(self, *script: int | OSError) -> None:
        self.script: deque[int | OSError] = deque(script)
        self.data = b""
        self.writes = 0
        self.closed = False
        self.terminal = False
        self.reopened = 0

    @property
    def text(self) -> str:
        return self.data.decode()

    @property
    def is_terminal(self) -> bool:
        return self.terminal

    def write(self, data: bytes) -> int:
        self.writes += 1
        step = self.script.popleft() if self.script else len(data)
        if isinstance(step, OSError):
            raise step
        self.data += data[:step]
        return min(step, len(data))

    def wait(self, timeout_s: float) -> None:
        pass

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True
