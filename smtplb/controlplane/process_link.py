"""Worker processes: N of them behind what looks like one link.

Owns starting, watching and replacing worker processes, and putting their reports together. Does not own what they do.
Invariant: every worker has the latest snapshot; a dead one is replaced, its sockets stay open here meanwhile, so clients
that connect wait in the queue and are not refused. A worker ends when its socket pair does: none outlives this process.

A worker that hangs is as bad as one that died, for the kernel goes on giving it clients: its loop sends a beat every second, and
one that has been silent for long is killed. Silence is counted in turns of a timer of our own, not read from a clock: if this
process or the whole host was stopped meanwhile, what workers said is still unread, and nobody is to be killed for that.

Listening sockets reach a worker by SCM_RIGHTS, at its start as well as at a reload, on a socket pair of their own: uvloop's
transports cannot carry descriptors. They are sent before the message that speaks of them, so that a worker never waits.
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
from smtplb.controlplane.reports import ended, merged
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.framing import FrameReader, frame
from smtplb.messages import (
    BEAT_S,
    BackendKey,
    Beat,
    DrainSessions,
    FromWorker,
    Handed,
    ReportRequest,
    RetriesRemembered,
    SessionsDrained,
    Snapshot,
    StopAccepting,
    ToWorker,
    WorkerReport,
    WorkerStart,
)
from smtplb.observe.events import MailEvent, Notice
from smtplb.settings import BackendSettings, LogSettings, Settings, TrafficSettings

YOUNG_S = 1.0  # a worker that died before this age may do so again and again
RESTART_PAUSE_S = 0.5  # after the second such a one in a row, and each one after it
SILENT_BEATS = 5  # then it is not alive
HANGING_BEATS = 10  # then it is killed, long before systemd ends all of us (WatchdogSec=30 in examples/)
TELL_WHERE = signal.SIGUSR2
ENDING_S = 2.0  # for a worker to end by itself once its socket pair is closed
# Before a place in the scoreboard is another backend's: longer than any transaction that began at the one before.
PLACE_RESTS_S = 7200.0
DESCRIPTORS_AT_A_TIME = 200  # SCM_MAX_FD is 253 (unix(7))


class _Process(asyncio.Protocol):
    """One worker process and our ends of its socket pairs."""

    def __init__(
        self, number: int, links: ProcessLinks, ours: socket.socket, descriptors: socket.socket
    ) -> None:
        self.number = number
        self._ours = ours
        self._descriptors = descriptors
        self._links = links
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.pidfd: int | None = None
        self.started_s = 0.0
        self.is_up = False  # it was heard of: how long a start takes depends on how many start
        self.silent_beats = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.is_up = True
        self.silent_beats = 0
        for message in self._reader.feed(data):
            self._links.received(self, message)

    def send(self, message: object) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    @property
    def connected(self) -> bool:
        """What is sent arrives. Before that the process is only now coming up, and gets the latest of everything."""
        return self._transport is not None

    @property
    def is_silent(self) -> bool:
        return self.silent_beats >= SILENT_BEATS

    def hand(self, sockets: Sockets, places: dict[BackendKey, int]) -> None:
        """Its listening sockets, and where backends are in the scoreboard. For the snapshot that follows."""
        descriptors = [sock.fileno() for socks in sockets.values() for sock in socks]
        try:
            for at in range(0, len(descriptors), DESCRIPTORS_AT_A_TIME):
                socket.send_fds(self._descriptors, [b"."], descriptors[at : at + DESCRIPTORS_AT_A_TIME])
        except OSError:  # it does not read: it hangs, or has ended. Another one takes its place.
            self.close()
            return
        self.send(Handed({name: len(socks) for name, socks in sockets.items()}, places))

    def close(self) -> None:
        """At once, not with the loop's next turn: somebody may be about to wait for the process."""
        self._descriptors.close()
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
        cpu_affinity: bool = False,
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._receive = receive
        self._draining: DrainSessions | None = None
        self._count = count
        self._log = log
        self._cpu_affinity = cpu_affinity
        self._snapshot: Snapshot | None = None
        self._scoreboard: Scoreboard | None = None
        self._placed: dict[
            BackendKey, tuple[BackendSettings, int]
        ] = {}  # settings and place in the scoreboard
        self._freed: dict[int, float] = {}  # places of backends that are gone -> since when
        self._places = 0  # how many there are
        self._secret = secrets.token_bytes(16)  # the same for a replaced worker: what others know still holds
        self._processes: list[_Process | None] = [None] * count
        self._died_young = [0] * count  # in a row
        self._closing = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._next_beats: asyncio.TimerHandle | None = None
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
            before, self._snapshot = self._snapshot, message
            if before is None:
                self._scoreboard = Scoreboard.create(self._count)
                self._place(message.traffic)
                for number in range(self._count):
                    self._start(number)
                self._count_beats()
                return
            if before.configuration != message.configuration:
                self._place(message.traffic)
                for process in self._running():
                    if process.connected:
                        self._hand(process)
        elif isinstance(message, ReportRequest):
            self._ask(message)
            return
        elif isinstance(message, DrainSessions):
            self._draining = message
        for process in self._running():
            process.send(message)

    def hand(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def live(self) -> bool:
        return not any(process.is_silent for process in self._running())

    def accepts(self) -> bool:
        return any(process.is_up and not process.is_silent for process in self._running())

    def close(self) -> None:
        self._closing = True
        if self._next_beats is not None:
            self._next_beats.cancel()
        for timer in self._timers:
            timer.cancel()
        for task in self._starting:
            task.cancel()
        for process in self._running():
            self._end(process)
        if self._scoreboard is not None:
            self._scoreboard.close()
            self._scoreboard = None

    # -- processes ---------------------------------------------------------------------------------

    def _running(self) -> list[_Process]:
        """Without those that ended and are not replaced yet."""
        return [process for process in self._processes if process is not None]

    def _start(self, number: int) -> None:
        """Exec, never fork a running loop: `python -m smtplb.cli.worker FD FD`."""
        assert self._scoreboard is not None
        ours, theirs = socket.socketpair()
        # Packets: what belongs together is read together.
        our_descriptors, their_descriptors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        our_descriptors.setblocking(False)
        process = _Process(number, self, ours, our_descriptors)
        handed_down = [theirs.fileno(), their_descriptors.fileno()]
        child = subprocess.Popen(
            [sys.executable, "-m", "smtplb.cli.worker", *map(str, handed_down)],
            pass_fds=[*handed_down, self._scoreboard.descriptor],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        their_descriptors.close()
        process.child = child
        process.started_s = self._loop.time()
        process.pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(process.pidfd, self._ended, process)
        self._processes[number] = process
        task = self._loop.create_task(self._connect(process, ours))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _connect(self, process: _Process, ours: socket.socket) -> None:
        ours.setblocking(False)
        await self._loop.create_connection(lambda: process, sock=ours)
        assert self._snapshot is not None and self._scoreboard is not None
        process.send(
            WorkerStart(
                number=process.number,
                workers=self._count,
                scoreboard=self._scoreboard.descriptor,
                log=self._log,
                secret=self._secret,
                tell_where=TELL_WHERE,
                processor=self._processor(process.number),
            )
        )
        self._hand(process)
        process.send(self._snapshot)
        if self._draining is not None:  # meanwhile we began to stop
            process.send(StopAccepting())
            process.send(self._draining)

    def _processor(self, number: int) -> int | None:
        """Those that we may use now, in turn: a processor may have gone since another worker started."""
        if not self._cpu_affinity:
            return None
        processors = sorted(os.sched_getaffinity(0))
        return processors[number % len(processors)]

    def _hand(self, process: _Process) -> None:
        number = process.number
        own = {name: socks[number :: self._count] for name, socks in self._sockets.items()}
        process.hand(own, {key: place for key, (_, place) in self._placed.items()})

    def _place(self, traffic: TrafficSettings) -> None:
        """A backend that is reached as before keeps its place, since workers keep its connections."""
        assert self._scoreboard is not None
        before, self._placed = self._placed, {}
        for pool in traffic.pools:
            for backend in pool.backends:
                known = before.get(backend.key)
                if known is not None and known[0].reached_like(backend):
                    place = before.pop(backend.key)[1]
                else:
                    place = self._free_place()
                self._placed[backend.key] = (backend, place)
        self._freed.update((place, self._loop.time()) for _, place in before.values())
        self._scoreboard.grow(self._places)

    def _free_place(self) -> int:
        """A new one, or one that nobody can have a connection at any more."""
        assert self._scoreboard is not None
        free_since_s = self._loop.time() - PLACE_RESTS_S
        for place, since_s in self._freed.items():
            if since_s < free_since_s and self._scoreboard.is_empty(place):
                del self._freed[place]
                return place
        self._places += 1
        return self._places - 1

    def _count_beats(self) -> None:
        """Every BEAT_S."""
        for process in self._running():
            if process.is_up:
                process.silent_beats += 1
                if process.silent_beats >= HANGING_BEATS:
                    self._kill(process)
        self._next_beats = self._loop.call_later(BEAT_S, self._count_beats)

    def _kill(self, process: _Process) -> None:
        """It hangs. It is to tell where, and ends a beat later: not by SIGABRT, which may leave mail in a core file."""
        assert process.child is not None
        if process.silent_beats > HANGING_BEATS:
            process.child.kill()
            return
        process.child.send_signal(TELL_WHERE)
        silent_s = HANGING_BEATS * BEAT_S
        text = (
            f"worker {process.number} has not answered for {silent_s:.0f} s: it is killed unless it does now"
        )
        self._receive(Notice("error", "worker-hangs", text))

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
            counted = [ended(last), *([self._retired] if self._retired else [])]
            self._retired = merged(counted, last.serial)
        for serial in list(self._asked):
            self._report_settled(serial, number)
        self.restarts += 1
        lived_s = self._loop.time() - process.started_s
        self._died_young[number] = self._died_young[number] + 1 if lived_s < YOUNG_S else 0
        pause_s = RESTART_PAUSE_S if self._died_young[number] > 1 else 0.0
        self._receive(
            Notice(
                "error", "worker-died", f"worker {number} died ({_how(code)}); another one takes its place"
            )
        )
        if self._draining is not None:
            self._settle_drained(number, 0)
            return
        timer = self._loop.call_later(pause_s, self._restart, number)
        self._timers.add(timer)

    def _restart(self, number: int) -> None:
        if self._closing:
            return
        if self._draining is not None:
            self._settle_drained(number, 0)
        else:
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
        elif isinstance(message, Beat):
            pass  # it was heard
        elif isinstance(message, SessionsDrained):
            self._settle_drained(process.number, message.ended)
        elif isinstance(message, RetriesRemembered):
            for other in self._running():
                if other is not process:
                    other.send(message)
        else:
            self._receive(message)

    def _ask(self, request: ReportRequest) -> None:
        """A worker that is only now starting has nothing to report; one that hangs lets the request time out."""
        running = self._running()
        self._asked[request.serial] = {process.number for process in running}
        for process in running:
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
        if all(process.number in self._drained for process in self._running()):
            self._receive(SessionsDrained(self._ended_sessions))


def link_for(settings: Settings, log: Callable[[MailEvent], None]) -> OpenLink:
    """One worker lives in this process; several are processes of their own, with a log of their own."""
    if settings.workers == 1:
        return partial(LocalLink, log=log)
    return partial(
        ProcessLinks,
        count=settings.workers,
        log=settings.log,
        cpu_affinity=settings.worker_cpu_affinity,
    )


def _how(code: int | None) -> str:
    if code is None:
        return "no status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
