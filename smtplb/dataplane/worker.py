"""A worker's data plane: what it was told by snapshots, and what it tells.

Owns the router, the listeners, the order of a reload and of stopping. Does not own sockets beyond using them, nor any health state.
Invariant: it hears of the world through receive() and tells of itself through `send`, and in no other way.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Iterable

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.certificates import reload_client_contexts
from smtplb.dataplane.context import ListenerContext, ListenerCounters
from smtplb.dataplane.deadlines import NEVER, TICK_S, Deadlines, Waiter
from smtplb.dataplane.listener import Listener
from smtplb.dataplane.replay import ReplayBudget
from smtplb.dataplane.router import Router
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.dataplane.worker_traffic import Traffic
from smtplb.messages import (
    DrainSessions,
    FromWorker,
    ReloadCertificates,
    ReopenLog,
    ReportRequest,
    RetriesRemembered,
    SessionsDrained,
    Snapshot,
    StopAccepting,
    ToWorker,
    WorkerReport,
)
from smtplb.observe.events import BackendBlamed, MailEvent, Notice, WorkerEvent
from smtplb.policy.affinity import Affinity
from smtplb.settings import ListenerSettings, TrafficSettings

PULSE_S = 0.5  # how often the control plane hears of answered attempts
QUITTING_WITHIN_S = 5.0  # on stop, for backends to answer QUIT


class Worker(Waiter):
    """See the module. `sockets` are bound and listening, by listener name. Accepts from its first snapshot on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        send: Callable[[FromWorker], None],
        log: Callable[[MailEvent], None],
        sockets: dict[str, list[socket.socket]],
        scoreboard: Scoreboard | None = None,
        affinity: Affinity | None = None,
    ) -> None:
        """`scoreboard` and `affinity` are shared with other workers; None: there are none."""
        super().__init__()
        self._loop = loop
        self._deadlines = deadlines
        self._send = send
        self._log = log
        self._sockets = sockets
        self._scoreboard = scoreboard
        self._affinity = affinity
        self._router: Router | None = None
        self._configuration = 0
        self._listeners: list[Listener] = []
        self._removed: list[Listener] = []  # by a reload, while sessions of theirs are open
        self._counters: dict[str, ListenerCounters] = {}  # of every listener there ever was
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self._traffic = Traffic()
        self._sessions_to_end = 0
        self._leaving = False  # sessions are gone; backends are being left
        self._drained_told = False
        self._quitting_until_s: float | None = None  # QUIT was said to all
        self._cut_at_s = NEVER

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
                self._stop_accepting()
            case DrainSessions():
                self._drain(message.within_s)
            case RetriesRemembered():
                if self._affinity is not None:
                    self._affinity.learn(message.entries)
            case ReopenLog():
                pass  # the log is the process's

    def take_sockets(self, sockets: dict[str, list[socket.socket]]) -> None:
        """Those that go with the next configuration: its snapshot follows."""
        self._sockets = sockets

    def close(self) -> None:
        """End everything at once; what was said in this turn is heard, what was not answered is the client's to repeat."""
        self._deadlines.disarm(self)
        self._stop_accepting()
        if self._router is not None:
            self._runtime.outbox.end_of_turn()
        for listener in self._all_listeners:
            for session in list(listener.sessions):
                session.abort()
        if self._router is not None:
            self._router.close()

    @property
    def _all_listeners(self) -> list[Listener]:
        return [*self._listeners, *self._removed]

    def _apply(self, snapshot: Snapshot) -> None:
        if self._router is None:
            self._configuration = snapshot.configuration
            self._build(snapshot.traffic).apply(snapshot)
            self._open(snapshot.traffic)
            self._deadlines.set(self, self._deadlines.clock() + PULSE_S)
        elif snapshot.configuration != self._configuration:
            self._configuration = snapshot.configuration
            self._runtime.hello = snapshot.traffic.hostname.encode("ascii")
            self._budget.change(snapshot.traffic.replay)
            self._router.apply(snapshot)
            self._open(snapshot.traffic)
            self._reload_certificates()
        else:
            self._router.apply(snapshot)
            for listener in self._listeners:
                listener.context.refresh()

    def _build(self, traffic: TrafficSettings) -> Router:
        runtime = Runtime(
            self._loop,
            self._deadlines,
            self._emit,
            log=self._log,
            hello=traffic.hostname.encode("ascii"),
            session_prefix=secrets.token_hex(3) + "-",
        )
        self._runtime = runtime
        self._budget = ReplayBudget(traffic.replay)
        self._router = Router(runtime, self._scoreboard, self._affinity)
        return self._router

    def _open(self, traffic: TrafficSettings) -> None:
        """The listeners of a configuration: new ones, and those that stay, with other settings."""
        before = {listener.context.name: listener for listener in self._listeners}
        self._listeners = [self._listener(each, traffic, before) for each in traffic.listeners]
        for listener in before.values():
            self._remove(listener)
        for listener in self._listeners:
            listener.listen_on(self._sockets[listener.context.name])
        if self._starting is None:
            self._starting = self._loop.create_task(self._accept())

    def _listener(
        self, settings: ListenerSettings, traffic: TrafficSettings, before: dict[str, Listener]
    ) -> Listener:
        """Takes the listener of that name out of `before`."""
        assert self._router is not None
        listener = before.pop(settings.name, None)
        context = ListenerContext(
            self._runtime,
            self._router,
            settings,
            traffic,
            self._budget,
            former=None if listener is None else listener.context,
            counters=self._counters.setdefault(settings.name, ListenerCounters()),
        )
        if listener is not None:
            listener.change(context)
            return listener
        if context.certificates is not None:
            self._tell_problems(context.name, context.certificates.problems)
        return Listener(context)

    def _remove(self, listener: Listener) -> None:
        """A reload took it out: 421 between transactions, as at a stop."""
        listener.stop_accepting()
        for session in list(listener.sessions):
            session.drain()
        self._removed = [each for each in [*self._removed, listener] if each.sessions]

    async def _accept(self) -> None:
        try:
            while (due := next((each for each in self._listeners if each.unopened), None)) is not None:
                await due.accept()
        finally:
            self._starting = None

    def _reload_certificates(self) -> None:
        for problem in reload_client_contexts():
            self._send(Notice("error", "certificate", problem))
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

    # -- telling of backends -----------------------------------------------------------------------

    def _emit(self, event: WorkerEvent) -> None:
        if type(event) is BackendBlamed and self._router is not None:
            key = (event.pool, event.backend)  # a reload may have taken it out meanwhile
            self._tell_traffic([backend for backend in self._router.backends if backend.key == key])
        self._send(event)

    def _tell_answered(self) -> None:
        if self._router is not None:
            self._tell_traffic(self._router.backends)

    def _tell_traffic(self, backends: Iterable[Backend]) -> None:
        if (message := self._traffic.take(backends)) is not None:
            self._send(message)

    # -- stopping ----------------------------------------------------------------------------------

    def _stop_accepting(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        for listener in self._listeners:
            listener.stop_accepting()

    def _drain(self, within_s: float) -> None:
        sessions = [session for listener in self._all_listeners for session in listener.sessions]
        if not self._stopping:
            self._stopping = True
            self._sessions_to_end = len(sessions)
            for listener in self._all_listeners:
                listener.when_empty = self._sessions_gone
        for session in sessions:
            session.drain()
        now = self._deadlines.clock()
        self._cut_at_s = now + within_s
        self._deadlines.set(self, now)
        self._sessions_gone()

    def deadline_passed(self, now: float) -> None:
        self._tell_answered()
        if self._affinity is not None and (fresh := self._affinity.take_fresh()):
            self._send(RetriesRemembered(fresh))
        if now >= self._cut_at_s:
            # The hard end: transactions whose terminator has not left end too (design 4.9).
            self._cut_at_s = NEVER
            for listener in self._all_listeners:
                for session in list(listener.sessions):
                    session.cut()
        if self._leaving:
            self._leave_backends(now)
        elif not self._stopping and self._router is not None:
            self._router.keep_warm(now)
        # Room that another worker leaves at a backend shows in the scoreboard only.
        waiting = self._scoreboard is not None and self._router is not None and self._router.look_for_room()
        self._deadlines.set(self, now + (TICK_S if waiting or self._leaving else PULSE_S))

    def _sessions_gone(self) -> None:
        if not self._drained_told and not any(listener.sessions for listener in self._all_listeners):
            self._leaving = True
            self._leave_backends(self._deadlines.clock())

    def _leave_backends(self, now: float) -> None:
        """Late final replies are awaited for the record (design 4.7; `final` bounds them). Then QUIT on what is kept, so that
        no backend logs a lost connection; told once, when that is over."""
        router = self._router
        if router is not None and router.in_use:
            return
        if self._quitting_until_s is None:
            self._quitting_until_s = now + QUITTING_WITHIN_S
        if router is not None:
            router.retire_idle()  # each time: some may have been coming up
        if router is None or not router.connections or now >= self._quitting_until_s:
            self._leaving, self._drained_told = False, True
            self._tell_answered()
            self._send(SessionsDrained(self._sessions_to_end))
