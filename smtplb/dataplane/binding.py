"""What one session holds at backends: its identity, connections that carry it, and the backend it is bound to.

Owns the connections that belong to the session between transactions. Does not own leases (backend.py).
Invariant: a connection in `kept` carries this session's identity and nobody else's, and ends with the session.
"""

from __future__ import annotations

from typing import Protocol

from smtplb.dataplane.identity import Identity


class KeptConnection(Protocol):
    """A connection to a backend, as the binding sees it."""

    def no_longer_wanted(self) -> None:
        """Its session is over: QUIT."""


class Keeper(Protocol):
    """A backend, as the binding sees it: something that can be told apart from others."""

    key: tuple[str, str]


class Binding:
    """One for each session. `pinned`: the backend that authenticated the client (design 4.2), on `pinned_on` while that lives;
    `sticky`: the one chosen for the session where balance_per is session; `verdict`: what a backend said of this client at
    connect, for every RCPT."""

    __slots__ = ("alive", "identity", "kept", "pinned", "pinned_on", "sticky", "verdict")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.kept: dict[Keeper, KeptConnection] = {}
        self.pinned: Keeper | None = None
        self.pinned_on: KeptConnection | None = None
        self.sticky: Keeper | None = None
        self.verdict: bytes | None = None
        self.alive = True

    @property
    def pinned_lost(self) -> bool:
        """The one connection on which the client is known has ended."""
        return self.pinned is not None and self.pinned_on is None

    def end(self) -> None:
        """The session is over, and with it what it kept."""
        self.alive = False
        for connection in list(self.kept.values()):
            connection.no_longer_wanted()
