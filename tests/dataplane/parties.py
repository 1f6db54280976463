"""The two ends that a test plays: the client, and each connection of a backend.

Owns what a party heard and how its connection ended. Does not own transports: a Wire is a fake or a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Wire(Protocol):
    """The test's end of a connection."""

    def say(self, data: bytes) -> None: ...

    def eof(self) -> None:
        """Half-close, or close: the other side cannot tell until it writes."""

    def reset(self) -> None:
        """End it with RST."""

    def stall(self) -> None:
        """Read nothing any more."""

    def unstall(self) -> None: ...


class Peer(Protocol):
    """Who plays one end."""

    def connected(self, wire: Wire) -> None: ...

    def heard(self, data: bytes) -> None: ...

    def over(self, how: str) -> None:
        """smtplb ended the connection: "closed" or "aborted"."""


class Party:
    """A Peer that remembers. `told` is called after each change (a socket test waits for that)."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.wire: Wire | None = None
        self.buffer = b""  # heard and not taken yet
        self.everything = b""
        self.ended = ""
        self._told = told

    def connected(self, wire: Wire) -> None:
        self.wire = wire
        self._told()

    def heard(self, data: bytes) -> None:
        self.buffer += data
        self.everything += data
        self._told()

    def over(self, how: str) -> None:
        self.ended = self.ended or how
        self._told()

    def say(self, data: bytes) -> None:
        assert self.wire is not None, "not connected"
        self.wire.say(data)

    def take_line(self) -> bytes | None:
        """The next whole line without its CRLF, None if there is none."""
        line, end, rest = self.buffer.partition(b"\n")
        if not end:
            return None
        self.buffer = rest
        assert line.endswith(b"\r"), f"a bare LF was sent: {line!r}"
        return line[:-1]

    def take_all(self) -> list[str]:
        """All lines heard so far; fails on half a line."""
        text, self.buffer = self.buffer.decode("latin-1"), b""
        assert not text or text.endswith("\r\n"), f"half a line: {text[-200:]!r}"
        lines = text.split("\r\n")[:-1]
        assert not any("\n" in line for line in lines), "a bare LF was sent"
        return lines


class Answering(Protocol):
    """Makes the Peer of each new connection of a backend."""

    def session(self) -> Peer: ...


class Site:
    """One backend address: how it meets connects, and who answers there."""

    def __init__(self, name: str, answering: Answering) -> None:
        self.name = name
        self.answering = answering
        self.connects = "accept"  # | "refuse" | "hang"
        self.count = 0  # connects seen, refused ones included
