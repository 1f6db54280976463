"""A worker process: the data plane, its log, and the socket pair to the supervisor. Started by controlplane/process_link.py.

Owns the life of the process. Does not own any decision.
Invariant: it ends when the socket pair ends, whoever closed it. It imports nothing that the data plane does without
(test_architecture.py looks), so that it is ready in a tenth of a second and small.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import os
import signal
import socket
import sys
from itertools import islice
from typing import cast

import uvloop

from smtplb.cli import collector
from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.dataplane.worker import Worker
from smtplb.framing import FrameReader, frame
from smtplb.messages import BEAT_S, Beat, FromWorker, Handed, ReopenLog, ToWorker, WorkerStart
from smtplb.observe.events import Notice
from smtplb.observe.logs import LogWriter
from smtplb.policy.affinity import Affinity

MAX_DESCRIPTORS = 253  # in one packet (SCM_MAX_FD, unix(7))


class Channel(asyncio.Protocol):
    """The worker's end of the socket pair. `descriptors`: that of the other one, by which listening sockets come."""

    def __init__(self, descriptors: socket.socket) -> None:
        self._descriptors = descriptors
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._deadlines = Deadlines.of(asyncio.get_running_loop())
        self._start: WorkerStart | None = None
        self._log: LogWriter | None = None
        self._scoreboard: Scoreboard | None = None
        self._sockets: list[socket.socket] = []
        self._worker: Worker | None = None
        self._frozen = False
        self._outgoing: list[bytes] = []
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._beat()

    def _beat(self) -> None:
        if not self.ended.is_set():
            self._send(Beat())
            asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case WorkerStart():
                self._start = message
                if sys.stderr is not None:  # closed by who started us
                    faulthandler.register(message.tell_where)  # in C: it needs no turn of the loop
                self._scoreboard = Scoreboard(message.scoreboard, message.workers, message.number)
                # One key for all workers: marks of hidden addresses are to be the same in each log.
                key = hashlib.sha256(b"log" + message.secret).digest()
                self._log = LogWriter(message.log, key=key)
                if message.processor is not None:
                    _stay_on(message.processor, self._log)
            case Handed():
                self._handed(message)
            case ReopenLog():
                assert self._log is not None
                self._log.reopen()
            case _:
                assert self._worker is not None
                self._worker.receive(cast("ToWorker", message))
                if not self._frozen:  # its first snapshot: what was made for it lives as long as the process
                    self._frozen = True
                    collector.settle()

    def connection_lost(self, error: Exception | None) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._log is not None:
            self._log.close()
        self.ended.set()

    def _handed(self, message: Handed) -> None:
        """Listening sockets and the layout of the scoreboard, for the snapshot that follows."""
        start, scoreboard = self._start, self._scoreboard
        assert start is not None and scoreboard is not None
        scoreboard.learn(message.places)
        waiting = iter(self._read_sockets(sum(message.listeners.values())))
        sockets = {name: list(islice(waiting, count)) for name, count in message.listeners.items()}
        if self._worker is None:
            loop, affinity = asyncio.get_running_loop(), Affinity(start.secret, shared=True)
            assert self._log is not None
            # What mail itself tells goes to the log here: the supervisor does not handle every message.
            self._worker = Worker(
                loop, self._deadlines, self._send, self._log.emit, sockets, scoreboard, affinity
            )
        else:
            self._worker.take_sockets(sockets)
        for sock in self._sockets:  # the worker has duplicates of what it accepts on
            sock.close()
        self._sockets = [sock for socks in sockets.values() for sock in socks]

    def _read_sockets(self, count: int) -> list[socket.socket]:
        """They were sent before the message that says how many: nothing is waited for."""
        found: list[socket.socket] = []
        while len(found) < count:
            _, descriptors, flags, _ = socket.recv_fds(self._descriptors, 1, MAX_DESCRIPTORS)
            if not descriptors or flags & socket.MSG_CTRUNC:
                raise OSError(f"{len(found)} of {count} listening sockets came")
            found += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        return found

    def _send(self, message: FromWorker) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))


def _stay_on(processor: int, log: LogWriter) -> None:
    try:
        os.sched_setaffinity(0, {processor})
    except OSError as error:  # taken away just now: mail goes on, where the kernel likes
        text = f"cannot stay on processor {processor}: {error.strerror}"
        log.emit(Notice("warning", "worker-cpu-affinity", text))


async def _run(messages: int, descriptors: int) -> None:
    ours, theirs = socket.socket(fileno=messages), socket.socket(fileno=descriptors)
    ours.setblocking(False)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(
            number, lambda: None
        )  # the supervisor gets them, too, and says what is to be done
    _, channel = await loop.create_connection(lambda: Channel(theirs), sock=ours)
    await channel.ended.wait()


def main() -> None:
    uvloop.run(_run(*map(int, sys.argv[1:3])))


if __name__ == "__main__":
    main()
