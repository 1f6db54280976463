"""A network between the balancer and one mail server that cuts, delays, splits and stands still.

Owns one listening socket and the connections through it. Does not own what is said on them.
Invariant: octets pass in order and unchanged up to where they end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Weather:
    """What happens to one connection. Octets are counted from its begin, to and from the server apart."""

    cut_after_to: int | None = None  # octets to the server; then both ends are reset
    cut_after_from: int | None = None
    stall_after_to: int | None = None  # then nothing more is taken until release()
    piece: int = 65536  # at most so many octets in a segment
    delay_s: float = 0.0  # of each piece


FAIR = Weather()


class Network:
    """`weather` is asked for each connection, in the order of accepting."""

    def __init__(self, server_port: int, weather: Callable[[], Weather] = lambda: FAIR) -> None:
        self.port = 0
        self.weather = weather
        self.cuts = 0
        self.stalled = asyncio.Event()  # a connection has come to where it stands still
        self.open: set[Link] = set()
        self.accepted = 0
        self._server_port = server_port
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def release(self) -> None:
        self._released.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link(self, self.weather(), writer)
        self.open.add(link)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await link.run(reader, self._server_port)
        except OSError:
            pass  # one of the ends is gone
        finally:
            link.cut()
            self.open.discard(link)
            self._tasks.discard(task)

    def cut_all(self) -> None:
        for link in list(self.open):
            link.cut()

    async def stood_still(self) -> None:
        await self._released.wait()


class Link:
    def __init__(self, network: Network, weather: Weather, client: asyncio.StreamWriter) -> None:
        self._network = network
        self._weather = weather
        self._client = client
        self._server: asyncio.StreamWriter | None = None

    async def run(self, reader: asyncio.StreamReader, port: int) -> None:
        from_server, self._server = await asyncio.open_connection("127.0.0.1", port)
        weather = self._weather
        to = self._pump(reader, self._server, weather.cut_after_to, weather.stall_after_to)
        back = self._pump(from_server, self._client, weather.cut_after_from, None)
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(to), asyncio.ensure_future(back)], return_when=asyncio.FIRST_COMPLETED
        )
        # One end has closed: what is on its way to the other still arrives there.
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
        for writer in (self._server, self._client):
            if not writer.transport.is_closing():
                writer.close()
                await writer.wait_closed()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        cut_after: int | None,
        stall_after: int | None,
    ) -> None:
        weather = self._weather
        passed = 0
        while data := await reader.read(weather.piece):
            if weather.delay_s:
                await asyncio.sleep(weather.delay_s)
            if cut_after is not None and passed + len(data) > cut_after:
                writer.write(data[: cut_after - passed])
                await writer.drain()
                self._network.cuts += 1
                self.cut()
                return
            if stall_after is not None and passed + len(data) > stall_after:
                stall_after = None
                self._network.stalled.set()
                await self._network.stood_still()
            if writer.transport.is_closing():  # meanwhile
                return
            passed += len(data)
            writer.write(data)
            await writer.drain()

    def cut(self) -> None:
        for writer in (self._client, self._server):
            if writer is not None:
                writer.transport.abort()


@asynccontextmanager
async def network(server_port: int, weather: Callable[[], Weather] = lambda: FAIR) -> AsyncIterator[Network]:
    between = Network(server_port, weather)
    server = await asyncio.start_server(between._accept, "127.0.0.1", 0)
    between.port = server.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        server.close()
        between.release()
        between.cut_all()
        await asyncio.gather(*between._tasks, return_exceptions=True)
