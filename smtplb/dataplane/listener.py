"""A listener: the sockets it accepts on and the sessions it has.

Owns admission and the set of open sessions. Does not own binding (the control plane does) nor what a session says.
Invariant: every open session is in `sessions`; the sockets handed in stay open when the listener stops accepting.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.session import Session
from smtplb.messages import ListenerReport
from smtplb.policy.refusal import Refusal

BACKLOG = 4096


class Listener:
    """See the module."""

    def __init__(self, context: ListenerContext, sockets: list[socket.socket]) -> None:
        self.context = context
        self.sessions: set[Session] = set()
        self._sockets = sockets
        self._servers: list[asyncio.AbstractServer] = []
        self._stopping = False
        self.when_empty: Callable[[], None] | None = None  # told each time the last session ends

    async def accept(self) -> None:
        """Begin to accept on all sockets. Each is duplicated, so that closing ours leaves the owner's open."""
        loop = self.context.runtime.loop
        for sock in self._sockets:
            copy = sock.dup()
            if copy.family == socket.AF_UNIX:
                server = await loop.create_unix_server(lambda: Session(self), sock=copy, backlog=BACKLOG)
            else:
                server = await loop.create_server(lambda: Session(self), sock=copy, backlog=BACKLOG)
            self._servers.append(server)

    def stop_accepting(self) -> None:
        self._stopping = True
        for server in self._servers:
            server.close()
        self._servers.clear()

    def admit(self, session: Session) -> Refusal | None:
        limit = self.context.settings.limits.sessions
        if self._stopping:
            refused: Refusal | None = Refusal.SHUTTING_DOWN
        elif limit is not None and len(self.sessions) >= limit:
            refused = Refusal.TOO_MANY_SESSIONS
        elif not self.context.target.usable:
            refused = Refusal.NOTHING_USABLE
        else:
            refused = None
        self.sessions.add(session)
        return refused

    def session_over(self, session: Session) -> None:
        self.sessions.discard(session)
        if not self.sessions and self.when_empty is not None:
            self.when_empty()

    def report(self) -> ListenerReport:
        return self.context.report(accepting=bool(self._servers), sessions_open=len(self.sessions))
