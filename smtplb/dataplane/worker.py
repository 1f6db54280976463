"""A worker's data plane: what it was told by snapshots, and what it tells.

Owns the router, the listeners, and the order of stopping. Does not own sockets beyond using them, nor any health state.
Invariant: it hears of the world through receive() and tells of itself through `send`, and in no other way.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

from smtplb.dataplane.certificates import client_context
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import NEVER, Deadlines
from smtplb.dataplane.listener import Listener
from smtplb.dataplane.replay import ReplayBudget
from smtplb.dataplane.router import Router
from smtplb.dataplane.runtime import Runtime
from smtplb.messages import (
    DrainSessions,
    FromWorker,
    ReloadCertificates,
    ReportRequest,
    SessionsDrained,
    Snapshot,
    StopAccepting,
    ToWorker,
    WorkerReport,
)
from smtplb.observe.events import Notice
from smtplb.settings import TrafficSettings


class Worker:
    """See the module. `sockets` are bound and listening, by listener name. Accepts from its first snapshot on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        send: Callable[[FromWorker], None],
        sockets: dict[str, list[socket.socket]],
    ) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._send = send
        self._sockets = sockets
        self._router: Router | None = None
        self._listeners: list[Listener] = []
        self._starting: asyncio.Task[None] | None = None
        self._drained_told = True
        self._sessions_to_end = 0
        self.deadline_s = NEVER
        self.deadline_bucket = 0

    def receive(self, message: ToWorker) -> None:
        """The one way in."""
        match message:
            case Snapshot():
                self._apply(message)
            case ReportRequest():
                self._send(self._report(message.serial))
            case ReloadCertificates():
                self._reload_certificates()
            case StopAccepting():
                for listener in self._listeners:
                    listener.stop_accepting()
            case DrainSessions():
                self._drain(message.within_s)

    def close(self) -> None:
        """End everything at once; what was not answered is the client's to repeat."""
        self._deadlines.disarm(self)
        if self._starting is not None:
            self._starting.cancel()
        for listener in self._listeners:
            listener.stop_accepting()
            for session in list(listener.sessions):
                session.abort()
        if self._router is not None:
            self._router.close()

    def _apply(self, snapshot: Snapshot) -> None:
        if self._router is None:
            self._build(snapshot.traffic).apply(snapshot)
            self._open(snapshot.traffic)
        else:
            self._router.apply(snapshot)
            for listener in self._listeners:
                listener.context.refresh()

    def _build(self, traffic: TrafficSettings) -> Router:
        runtime = Runtime(
            self._loop,
            self._deadlines,
            self._send,
            hello=traffic.hostname.encode("ascii"),
            session_prefix=secrets.token_hex(3) + "-",
        )
        self._runtime = runtime
        self._router = Router(runtime)
        return self._router

    def _open(self, traffic: TrafficSettings) -> None:
        assert self._router is not None
        budget = ReplayBudget(traffic.replay)
        for settings in traffic.listeners:
            context = ListenerContext(self._runtime, self._router, settings, traffic, budget)
            if context.certificates is not None:
                self._tell_problems(context.name, context.certificates.problems)
            self._listeners.append(Listener(context, self._sockets[settings.name]))
        self._starting = self._loop.create_task(self._accept())

    async def _accept(self) -> None:
        for listener in self._listeners:
            await listener.accept()
        self._starting = None

    def _reload_certificates(self) -> None:
        client_context.cache_clear()
        for listener in self._listeners:
            certificates = listener.context.certificates
            if certificates is not None:
                certificates.load()
                self._tell_problems(listener.context.name, certificates.problems)

    def _tell_problems(self, listener: str, problems: list[str]) -> None:
        for problem in problems:
            self._send(Notice("error", "certificate", f"listener {listener}: {problem}"))

    def _report(self, serial: int) -> WorkerReport:
        router = self._router
        pools = list(router.pools.values()) if router is not None else []
        return WorkerReport(
            serial=serial,
            generation=router.generation if router is not None else 0,
            listeners=[listener.report() for listener in self._listeners],
            pools=[pool.report() for pool in pools],
            backends=[backend.report() for pool in pools for backend in pool.backends.values()],
        )

    # -- stopping ----------------------------------------------------------------------------------

    def _drain(self, within_s: float) -> None:
        sessions = [session for listener in self._listeners for session in listener.sessions]
        self._sessions_to_end = len(sessions)
        self._drained_told = False
        for listener in self._listeners:
            listener.when_empty = self._listener_empty
        for session in sessions:
            session.drain()
        self._deadlines.set(self, self._deadlines.clock() + within_s)
        self._listener_empty()

    def deadline_passed(self, now: float) -> None:
        """The hard end: transactions whose terminator has not left end too (design 4.9)."""
        for listener in self._listeners:
            for session in list(listener.sessions):
                session.cut()

    def _listener_empty(self) -> None:
        if not self._drained_told and not any(listener.sessions for listener in self._listeners):
            self._drained_told = True
            self._deadlines.disarm(self)
            self._send(SessionsDrained(self._sessions_to_end))
