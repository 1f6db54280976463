"""`python -m bench.relay PORT BACKEND_PORT...`: the least that a relay of messages in Python on uvloop has to do.

The yardstick that tells smtplb's own code from uvloop and the kernel: it chooses a backend for each message in turn, keeps its
connections to backends, sends MAIL and RCPT in one write and passes the body on as it comes. It has no checks, limits, timers,
metrics, log, fail-over or TLS, believes every client and backend, and must not be used for mail.
"""

from __future__ import annotations

import argparse
import asyncio
from itertools import cycle
from typing import cast

import uvloop

END = b"\r\n.\r\n"
OK = b"250 2.0.0 ok\r\n"
REPLIES = {
    b"EHLO": b"250-relay.bench.test\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250 8BITMIME\r\n",
    b"HELO": b"250 relay.bench.test\r\n",
    b"RSET": OK,
    b"NOOP": OK,
}


class Backend:
    """An address and its free connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.free: list[Connection] = []


class Connection(asyncio.Protocol):
    """To a backend. `swallow`: replies that nobody waits for (greeting, EHLO, MAIL)."""

    __slots__ = ("_backend", "_begun", "_buffer", "_client", "_is_final", "_swallow", "transport")

    def __init__(self, backend: Backend, client: Client, begun: bytes) -> None:
        self._backend = backend
        self._client: Client | None = client
        self._begun = begun  # what is to be said as soon as it is open
        self._buffer = b""
        self._swallow = 3  # greeting, EHLO, the first MAIL
        self._is_final = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self.transport.write(b"EHLO relay.bench.test\r\n" + self._begun)

    def say(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)
        else:
            self._begun += data

    def begin(self, client: Client, data: bytes) -> None:
        self._client = client
        self._swallow = 1
        self.say(data)

    def finish(self, data: bytes) -> None:
        """The end of the body: with the next reply this connection is free again."""
        self._is_final = True
        self.say(data)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if not data.endswith(b"\n"):
            data, newline, self._buffer = data.rpartition(b"\n")
            data += newline
        while self._swallow and data:
            line, _, data = data.partition(b"\n")
            self._swallow -= line[3:4] != b"-"
        if not data:
            return
        client = self._client
        if self._is_final:
            self._is_final = False
            self._client = None
            self._backend.free.append(self)
            if client is not None:
                client.finished()
        if client is not None:
            client.transport.write(data)

    def leave(self) -> None:
        """The client is gone in the middle."""
        self._client = None
        if self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._backend.free:
            self._backend.free.remove(self)
        elif self._client is not None:
            self._client.transport.abort()


class Client(asyncio.Protocol):
    __slots__ = ("_buffer", "_connection", "_in_body", "_mail", "_relay", "_tail", "transport")

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._buffer = self._mail = self._tail = b""
        self._connection: Connection | None = None
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self.transport.write(b"220 relay.bench.test ESMTP\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connection.leave()
            self._connection = None

    def finished(self) -> None:
        self._connection = None

    def data_received(self, data: bytes) -> None:
        if self._in_body:
            self._pass_on(data)
            return
        if self._buffer:
            data = self._buffer + data
        *lines, self._buffer = data.split(b"\r\n")
        replies, out = [], []
        for line in lines:
            verb = line[:4].upper()
            if verb == b"MAIL":
                self._mail = line
                replies.append(OK)
            elif verb == b"RCPT":
                out.append(self._mail + b"\r\n" + line if self._mail else line)
                self._mail = b""
            elif verb == b"DATA":
                out.append(line)
                self._in_body, self._tail = True, b"\r\n"
            elif verb == b"QUIT":
                self.transport.write(b"221 2.0.0 bye\r\n")
                self.transport.close()
                return
            else:
                replies.append(REPLIES[verb])
        if replies:
            self.transport.write(b"".join(replies))
        if out:
            self._say(b"\r\n".join(out) + b"\r\n")

    def _say(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.say(data)
        else:
            self._connection = self._relay.lease(self, data)

    def _pass_on(self, data: bytes) -> None:
        assert self._connection is not None
        tail = (self._tail + data)[-5:] if len(data) < 5 else data[-5:]
        if tail == END:
            self._in_body = False
            self._connection.finish(data)
        else:
            self._tail = tail
            self._connection.say(data)


class Relay:
    def __init__(self, ports: list[int]) -> None:
        self._backends = cycle([Backend(port) for port in ports])
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()

    def lease(self, client: Client, data: bytes) -> Connection:
        backend = next(self._backends)
        if backend.free:
            connection = backend.free.pop()
            connection.begin(client, data)
            return connection
        connection = Connection(backend, client, data)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.create_connection(lambda: connection, "127.0.0.1", backend.port)
        )
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return connection


async def _serve(port: int, backends: list[int]) -> None:
    relay = Relay(backends)
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(relay), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("backends", type=int, nargs="+", help="ports on 127.0.0.1")
    options = parser.parse_args()
    uvloop.run(_serve(options.port, options.backends))


if __name__ == "__main__":
    main()
