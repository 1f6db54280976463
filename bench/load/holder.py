"""`python -m bench.load.holder PORT [--tls]`: opens sessions and holds them, as many idle clients do.

Told on its input, one line each, and answers each with one line: `open COUNT`, `send OCTETS` (a message in every session).
Ends, and its sessions with it, when its input does.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop

from bench.load.session import Session
from bench.load.traffic import body
from bench.wire import client_context

AT_A_TIME = 50  # sessions that are being opened, or that send


class Holder:
    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._context = context
        self._sessions: list[Session] = []

    async def open(self, count: int) -> None:
        await _all([self._open_one] * count)

    async def _open_one(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Session] = loop.create_future()

        def failed(reason: str) -> None:
            if not opened.done():
                opened.set_exception(ConnectionError(reason))

        await loop.create_connection(
            lambda: Session(self._context, opened.set_result, failed), "127.0.0.1", self._port
        )
        self._sessions.append(await opened)

    async def send(self, size_bytes: int) -> None:
        content = body(size_bytes)
        await _all([partial(_send, session, content) for session in self._sessions])


async def _send(session: Session, content: bytes) -> None:
    for said in (b"MAIL FROM:<a@a.test>\r\n", b"RCPT TO:<b@b.test>\r\n", b"DATA\r\n", content):
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session.say(said, 1, partial(answered.set_result, None))
        await answered


async def _all(jobs: list[Callable[[], Awaitable[None]]]) -> None:
    """Some at a time."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    await asyncio.gather(*[work() for _ in range(AT_A_TIME)])


async def _serve(port: int, tls: bool) -> None:
    holder = Holder(port, client_context() if tls else None)
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, number = line.split()
        await {"open": holder.open, "send": holder.send}[word](int(number))
        print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load.holder", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    uvloop.run(_serve(options.port, options.tls))


if __name__ == "__main__":
    main()
