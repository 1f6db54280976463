"""A worker process: the data plane, its log, and the socket pair to the supervisor. Started by controlplane/process_link.py.

Owns the life of the process. Does not own any decision.
Invariant: it ends when the socket pair ends, whoever closed it. It imports nothing that the data plane does without
(test_architecture.py looks), so that it is ready in a tenth of a second and small.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import cast

import uvloop

from smtplb.cli import collector
from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.dataplane.worker import Worker
from smtplb.framing import FrameReader, frame
from smtplb.messages import FromWorker, Snapshot, WorkerStart
from smtplb.observe.events import AttemptFailed, SessionEnded, TransactionEnded
from smtplb.observe.logs import LogWriter
from smtplb.policy.affinity import Affinity

# Told to the log here, so that the supervisor does not handle every message: everything else goes to it.
_LOGGED_HERE = (TransactionEnded, SessionEnded, AttemptFailed)


class Channel(asyncio.Protocol):
    """The worker's end of the socket pair."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._deadlines = Deadlines.of(asyncio.get_running_loop())
        self._start: WorkerStart | None = None
        self._log: LogWriter | None = None
        self._worker: Worker | None = None
        self._outgoing: list[bytes] = []
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            if isinstance(message, WorkerStart):
                self._start = message
                self._log = LogWriter(message.log)
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._log.reopen)
            elif isinstance(message, Snapshot) and self._worker is None:
                self._worker = self._make(message)
                self._worker.receive(message)
                collector.settle()
            elif self._worker is not None:
                self._worker.receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._log is not None:
            self._log.close()
        self.ended.set()

    def _make(self, snapshot: Snapshot) -> Worker:
        start = self._start
        assert start is not None
        sockets = {name: [socket.socket(fileno=fd) for fd in fds] for name, fds in start.listeners.items()}
        keys = [backend.key for pool in snapshot.traffic.pools for backend in pool.backends]
        scoreboard = Scoreboard(start.scoreboard, start.workers, keys, start.number)
        affinity = Affinity(start.secret, shared=True)
        return Worker(asyncio.get_running_loop(), self._deadlines, self._send, sockets, scoreboard, affinity)

    def _send(self, message: FromWorker) -> None:
        if isinstance(message, _LOGGED_HERE):
            assert self._log is not None
            self._log.emit(message)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))


async def _run(descriptor: int) -> None:
    ours = socket.socket(fileno=descriptor)
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(
            number, lambda: None
        )  # the supervisor gets them, too, and says what is to be done
    _, channel = await loop.create_connection(Channel, sock=ours)
    await channel.ended.wait()


def main() -> None:
    uvloop.run(_run(int(sys.argv[1])))


if __name__ == "__main__":
    main()
