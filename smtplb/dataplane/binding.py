"""What one session holds at backends: its identity, connections that carry it, and the backend it is bound to.

Owns the connections that belong to the session between transactions. Does not own leases (backend.py).
Invariant: a connection in `kept` carries this session's identity and nobody else's, and ends with the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtplb.dataplane.identity import Identity

if TYPE_CHECKING:
    from smtplb.dataplane.backend import Backend
    from smtplb.dataplane.connection import Connection


class Binding:
    """One for each session. `pinned`: the backend that authenticated the client (design 4.2); `sticky`: the one chosen for
    the session where balance_per is session; `verdict`: what a backend said of this client at connect, for every RCPT."""

    __slots__ = ("alive", "identity", "kept", "pinned", "sticky", "verdict")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.kept: dict[Backend, Connection] = {}
        self.pinned: Backend | None = None
        self.sticky: Backend | None = None
        self.verdict: bytes | None = None
        self.alive = True

    def end(self) -> None:
        """The session is over: QUIT on what it kept."""
        self.alive = False
        for backend, connection in list(self.kept.items()):
            backend.retire(connection)
