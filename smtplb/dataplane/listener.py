"""A listener: the sockets it accepts on, the sessions it has, and whom it lets in.

Owns admission, the set of open sessions, and what each client has used up. Does not own binding (the control plane does) nor
what a session says.
Invariant: every open session is in `sessions` and counted once, for the client it was admitted as; the sockets handed in
stay open when the listener stops accepting.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.session import House, Session
from smtplb.messages import ListenerReport
from smtplb.policy.limits import ClientKey, Presence, RateTable, client_key, network_key
from smtplb.policy.refusal import Refusal
from smtplb.policy.routing import matches_network

BACKLOG: Final = 4096

BoundTo = tuple[int, Any]  # address family, and where as getsockname() has it


class Listener(House):
    """See the module."""

    def __init__(self, context: ListenerContext) -> None:
        super().__init__(context)  # of new sessions; open ones take it up between transactions
        self.sessions: set[Session] = set()
        self._admitted: dict[Session, tuple[ClientKey, ClientKey]] = {}  # counted as these
        self._servers: dict[BoundTo, asyncio.AbstractServer] = {}
        self._unopened: dict[BoundTo, socket.socket] = {}  # our own duplicates
        self._stopping = False
        self.when_empty: Callable[[], None] | None = None  # told each time the last session ends
        limits = context.settings.limits
        self._clients = Presence()
        self._networks = Presence()
        self._connections = RateTable(limits.connections_per_minute)
        self._messages = RateTable(limits.messages_per_minute)
        self._recipients = RateTable(limits.recipients_per_minute)

    @property
    def _counts_clients(self) -> bool:
        limits = self.context.settings.limits
        return not (limits.sessions_per_client is None and limits.sessions_per_network is None)

    def change(self, context: ListenerContext) -> None:
        """A reload. Who is here stays counted; a rate that changed starts with full measure."""
        before, limits = self.context.settings.limits, context.settings.limits
        self.context = context
        if before.connections_per_minute != limits.connections_per_minute:
            self._connections = RateTable(limits.connections_per_minute)
        if before.messages_per_minute != limits.messages_per_minute:
            self._messages = RateTable(limits.messages_per_minute)
        if before.recipients_per_minute != limits.recipients_per_minute:
            self._recipients = RateTable(limits.recipients_per_minute)
        for session in list(self.sessions):
            session.reloaded()

    def listen_on(self, sockets: list[socket.socket]) -> None:
        """These and no others from now on; accept() follows. Each is duplicated, so that closing ours leaves the owner's open. An
        address that is accepted on already goes on as it is."""
        wanted = {(sock.family, sock.getsockname()): sock for sock in sockets}
        for bound in [bound for bound in self._servers if bound not in wanted]:
            self._servers.pop(bound).close()
        self._forget_unopened()
        self._unopened = {bound: sock.dup() for bound, sock in wanted.items() if bound not in self._servers}

    @property
    def unopened(self) -> bool:
        """There are sockets that accept() has not come to yet."""
        return bool(self._unopened)

    async def accept(self) -> None:
        """Begin to accept where we do not yet."""
        loop = self.context.runtime.loop
        while self._unopened:
            bound = next(iter(self._unopened))
            sock = self._unopened.pop(bound)
            if sock.family == socket.AF_UNIX:
                server = await loop.create_unix_server(self._new_session, sock=sock, backlog=BACKLOG)
            else:
                server = await loop.create_server(self._new_session, sock=sock, backlog=BACKLOG)
            if self._stopping:
                server.close()
            else:
                self._servers[bound] = server

    def _new_session(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", Session(self))

    def stop_accepting(self) -> None:
        self._stopping = True
        self._forget_unopened()
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _forget_unopened(self) -> None:
        for sock in self._unopened.values():
            sock.close()
        self._unopened.clear()

    def arrived(self, session: Session) -> None:
        self.sessions.add(session)

    def admit(self, session: Session) -> Refusal | None:
        """Judged once at connect, and again when a front says that the client is another one."""
        context = self.context
        settings = context.settings
        limit = settings.limits.sessions
        client = session.client
        if self._stopping:
            return Refusal.SHUTTING_DOWN
        if limit is not None and len(self.sessions) > limit:
            return Refusal.TOO_MANY_SESSIONS
        if session.speaks_for_nobody:
            self._leave(session)
            return None if context.usable else Refusal.NOTHING_USABLE
        if matches_network(settings.clients.deny, client) or (
            settings.clients.allow is not None and not matches_network(settings.clients.allow, client)
        ):
            return Refusal.CLIENT_DENIED
        if client is not None and (
            self._counts_clients or settings.limits.connections_per_minute is not None
        ):
            refused = self._admit_client(session, client_key(client), network_key(client))
            if refused is not None:
                return refused
        return None if context.usable else Refusal.NOTHING_USABLE

    def _admit_client(self, session: Session, client: ClientKey, network: ClientKey) -> Refusal | None:
        limits = self.context.settings.limits
        self._leave(session)
        if (
            limits.sessions_per_client is not None
            and self._clients.count(client) >= limits.sessions_per_client
        ):
            return Refusal.TOO_MANY_FROM_CLIENT
        if (
            limits.sessions_per_network is not None
            and self._networks.count(network) >= limits.sessions_per_network
        ):
            return Refusal.TOO_MANY_FROM_CLIENT
        if not self._connections.take(client, self.context.runtime.deadlines.clock()):
            return Refusal.TOO_FAST
        self._clients.enter(client)
        self._networks.enter(network)
        self._admitted[session] = (client, network)
        return None

    def _leave(self, session: Session) -> None:
        keys = self._admitted.pop(session, None)
        if keys is not None:
            self._clients.leave(keys[0])
            self._networks.leave(keys[1])

    def takes_message(self, session: Session) -> bool:
        return self._take(self._messages, session)

    def takes_recipient(self, session: Session) -> bool:
        return self._take(self._recipients, session)

    def _take(self, table: RateTable, session: Session) -> bool:
        if not table.limited or session.client is None:
            return True
        return table.take(client_key(session.client), self.context.runtime.deadlines.clock())

    def session_over(self, session: Session) -> None:
        self.sessions.discard(session)
        self._leave(session)
        if not self.sessions and self.when_empty is not None:
            self.when_empty()

    def report(self) -> ListenerReport:
        return self.context.report(accepting=bool(self._servers), sessions_open=len(self.sessions))
