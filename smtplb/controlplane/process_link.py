"""Worker processes: N of them behind what looks like one link.

Owns starting, watching and replacing worker processes, and putting their reports together. Does not own what they do.
Invariant: every worker has the latest snapshot; a dead one is replaced, its sockets stay open here meanwhile, so clients
that connect wait in the queue and are not refused. A worker ends when its socket pair does: none outlives this process.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import cast

from smtplb.controlplane.link import LocalLink, OpenLink, Sockets
from smtplb.controlplane.reports import merged
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.framing import FrameReader, frame
from smtplb.messages import (
    DrainSessions,
    FromWorker,
    ReportRequest,
    RetriesRemembered,
    SessionsDrained,
    Snapshot,
    ToWorker,
    WorkerReport,
    WorkerStart,
)
from smtplb.observe.events import Notice
from smtplb.settings import LogSettings, Settings

RESTART_PAUSE_S = 1.0  # after a worker that lived shorter than this
ENDING_S = 2.0  # for a worker to end by itself once its socket pair is closed


class _Process(asyncio.Protocol):
    """One worker process and its end of the socket pair."""

    def __init__(self, number: int, links: ProcessLinks, ours: socket.socket) -> None:
        self.number = number
        self._ours = ours
        self._links = links
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.pidfd: int | None = None
        self.started_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._links.received(self, message)

    def send(self, message: object) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def close(self) -> None:
        """At once, not with the loop's next turn: somebody may be about to wait for the process."""
        try:
            self._ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already
        if self._transport is not None:
            self._transport.abort()


class ProcessLinks:
    """A WorkerLink to `count` processes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sockets,
        receive: Callable[[FromWorker], None],
        *,
        count: int,
        log: LogSettings,
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._receive = receive
        self._draining = False
        self._count = count
        self._log = log
        self._snapshot: Snapshot | None = None
        self._scoreboard: Scoreboard | None = None
        self._secret = secrets.token_bytes(16)  # the same for a replaced worker: what others know still holds
        self._processes: list[_Process | None] = [None] * count
        self._closing = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._reports: dict[int, dict[int, WorkerReport]] = {}
        self._asked: dict[int, set[int]] = {}  # by serial: workers that still owe a report
        self._retired: WorkerReport | None = (
            None  # last reports of workers that died, so that counters never fall
        )
        self._last: dict[int, WorkerReport] = {}
        self._drained: set[int] = set()
        self._ended_sessions = 0
        self.restarts = 0

    # -- the link ----------------------------------------------------------------------------------

    def send(self, message: ToWorker) -> None:
        if isinstance(message, Snapshot):
            first = self._snapshot is None
            self._snapshot = message
            if first:
                keys = [backend.key for pool in message.traffic.pools for backend in pool.backends]
                self._scoreboard = Scoreboard.create(self._count, keys)
                for number in range(self._count):
                    self._start(number)
                return
        elif isinstance(message, ReportRequest):
            self._ask(message)
            return
        elif isinstance(message, DrainSessions):
            self._draining = True
        for process in self._processes:
            if process is not None:
                process.send(message)

    def close(self) -> None:
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        for task in self._starting:
            task.cancel()
        for process in self._processes:
            if process is not None:
                self._end(process)
        if self._scoreboard is not None:
            self._scoreboard.close()
            self._scoreboard = None

    # -- processes ---------------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        """Exec, never fork a running loop: `python -m smtplb.cli.worker FD` with the sockets handed down."""
        assert self._scoreboard is not None
        ours, theirs = socket.socketpair()
        process = _Process(number, self, ours)
        listeners = {
            name: [s.fileno() for s in socks[number :: self._count]] for name, socks in self._sockets.items()
        }
        handed_down = [fd for fds in listeners.values() for fd in fds]
        child = subprocess.Popen(
            [sys.executable, "-m", "smtplb.cli.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno(), self._scoreboard.descriptor, *handed_down],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        process.child = child
        process.started_s = self._loop.time()
        process.pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(process.pidfd, self._ended, process)
        self._processes[number] = process
        task = self._loop.create_task(self._connect(process, ours, listeners))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _connect(self, process: _Process, ours: socket.socket, listeners: dict[str, list[int]]) -> None:
        assert self._snapshot is not None and self._scoreboard is not None
        ours.setblocking(False)
        await self._loop.create_connection(lambda: process, sock=ours)
        process.send(
            WorkerStart(
                number=process.number,
                workers=self._count,
                listeners=listeners,
                scoreboard=self._scoreboard.descriptor,
                log=self._log,
                secret=self._secret,
            )
        )
        process.send(self._snapshot)

    def _ended(self, process: _Process) -> None:
        """Its pidfd became readable: the process is gone."""
        self._forget(process)
        if self._closing or self._processes[process.number] is not process:
            return
        number = process.number
        self._processes[number] = None
        code = process.child.poll() if process.child is not None else None
        if self._scoreboard is not None:
            self._scoreboard.clear(number)
        last = self._last.pop(number, None)
        if last is not None:
            self._retired = merged([last, *([self._retired] if self._retired else [])], last.serial)
        for serial in list(self._asked):
            self._report_settled(serial, number)
        self.restarts += 1
        lived_s = self._loop.time() - process.started_s
        pause_s = 0.0 if lived_s >= RESTART_PAUSE_S else RESTART_PAUSE_S
        self._receive(
            Notice(
                "error", "worker-died", f"worker {number} died ({_how(code)}); another one takes its place"
            )
        )
        if self._draining:
            self._settle_drained(number, 0)
            return
        timer = self._loop.call_later(pause_s, self._restart, number)
        self._timers.add(timer)

    def _restart(self, number: int) -> None:
        if not self._closing:
            self._start(number)

    def _end(self, process: _Process) -> None:
        """Its socket pair closes, so it ends; what does not end in time is killed."""
        process.close()
        child = process.child
        if child is not None:
            try:
                child.wait(0 if child.poll() is not None else ENDING_S)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
        self._forget(process)

    def _forget(self, process: _Process) -> None:
        if process.pidfd is not None:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = None
        if process.child is not None:
            process.child.poll()
        process.close()

    # -- messages ----------------------------------------------------------------------------------

    def received(self, process: _Process, message: FromWorker) -> None:
        if isinstance(message, WorkerReport):
            self._last[process.number] = message
            self._reports.setdefault(message.serial, {})[process.number] = message
            self._report_settled(message.serial, process.number)
        elif isinstance(message, SessionsDrained):
            self._settle_drained(process.number, message.ended)
        elif isinstance(message, RetriesRemembered):
            for other in self._processes:
                if other is not None and other is not process:
                    other.send(message)
        else:
            self._receive(message)

    def _ask(self, request: ReportRequest) -> None:
        """A worker that is only now starting has nothing to report; one that hangs lets the request time out."""
        running = {process.number for process in self._processes if process is not None}
        self._asked[request.serial] = set(running)
        for process in self._processes:
            if process is not None:
                process.send(request)
        if not running:
            self._report_settled(request.serial, -1)

    def _report_settled(self, serial: int, number: int) -> None:
        owing = self._asked.get(serial)
        if owing is None:
            return
        owing.discard(number)
        if owing:
            return
        del self._asked[serial]
        reports = list(self._reports.pop(serial, {}).values())
        if self._retired is not None:
            reports.append(self._retired)
        for stale in [old for old in self._reports if old < serial]:
            self._reports.pop(stale, None)
            self._asked.pop(stale, None)
        self._receive(merged(reports, serial))

    def _settle_drained(self, number: int, ended: int) -> None:
        self._drained.add(number)
        self._ended_sessions += ended
        if all(process is None or process.number in self._drained for process in self._processes):
            self._receive(SessionsDrained(self._ended_sessions))


def link_for(settings: Settings) -> OpenLink:
    """One worker lives in this process; several are processes of their own."""
    if settings.workers == 1:
        return LocalLink
    return partial(ProcessLinks, count=settings.workers, log=settings.log)


def _how(code: int | None) -> str:
    if code is None:
        return "no status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
