"""A worker in a process of its own, so that its memory can be measured: `python -m tests.protocol.host`.

Owns the process at both ends. Invariant: it ends when its standard input does; nothing but the worker runs in it.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.worker import Worker
from smtplb.messages import BackendStanding, BackendState, FromWorker, Snapshot
from smtplb.observe.events import Notice
from smtplb.settings import ListenerLimits, ListenerSettings, ReplaySettings, TrafficSettings
from tests.protocol.client import Client
from tests.protocol.stage import Pool

_PAGE_KIB = 4


class Hosted:
    """A worker like that of Stage, elsewhere; `rss_kib` is its memory."""

    def __init__(
        self, pool: Pool, listener: dict[str, Any] | None = None, replay: dict[str, Any] | None = None
    ) -> None:
        self._pool = pool
        self._listener = listener or {}
        self._replay = ReplaySettings(**({"shared_memory_bytes": 0} | (replay or {})))
        self.clients: list[Client] = []

    async def __aenter__(self) -> Hosted:
        for mta in self._pool.mtas:
            await mta.start()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.protocol.host",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(self._snapshot()))
        self.port = int(await self._answer())
        return self

    def _snapshot(self) -> Snapshot:
        listener = {"target": self._pool.name, **self._listener}
        limits = ListenerLimits(**listener.pop("limits", {}))
        settings = ListenerSettings(name="in", binds=(), limits=limits, **listener)
        traffic = TrafficSettings("lb.test", (settings,), (self._pool.settings(),), replay=self._replay)
        standings = {
            (self._pool.name, mta.name): BackendStanding(
                BackendState.UP, usable=True, last_resort=False, weight=1, offers=mta.keywords
            )
            for mta in self._pool.mtas
        }
        return Snapshot(1, traffic, standings, {})

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            client.reset()
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = await self._process.wait()
        for mta in self._pool.mtas:
            for session in mta.sessions:
                session.reset()
            mta.stop()
        assert code == 0, "a bug was told, see above"

    async def _answer(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the worker's process died"
        return line

    async def connect(self) -> Client:
        client = Client()
        self.clients.append(client)
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", self.port)
        return client

    async def sessions(self) -> int:
        """Open ones, once everything that came before was looked at."""
        return int((await self._ask())[0])

    async def rss_kib(self) -> int:
        await self._ask()
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE_KIB

    async def _ask(self) -> Sequence[bytes]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"?")
        return (await self._answer()).split()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.buffer
    snapshot: Snapshot = await loop.run_in_executor(None, pickle.load, stdin)
    listening = socket.create_server(("127.0.0.1", 0), backlog=2000)
    listening.setblocking(False)
    bugs = 0

    def take(message: FromWorker) -> None:
        nonlocal bugs
        if isinstance(message, Notice) and message.what == "bug":
            bugs += 1
            sys.stderr.write(f"{message.text}\n{message.fields}\n")

    deadlines = Deadlines.of(loop)
    worker = Worker(loop, deadlines, take, lambda event: None, {"in": [listening]})
    worker.receive(snapshot)
    print(listening.getsockname()[1], flush=True)  # noqa: T201
    gc.collect()
    gc.freeze()
    while await loop.run_in_executor(None, stdin.read, 1):
        gc.collect()
        print(len(worker._listeners[0].sessions), flush=True)  # noqa: T201
    worker.close()
    sys.exit(1 if bugs else 0)


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(_serve())
