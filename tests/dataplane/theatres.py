"""Where a dialogue is played: on fake transports at once, or over real sockets on loopback.

Owns the two theatres. Does not own the order of items (player.py).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.worker import Worker
from smtplb.messages import BackendState
from smtplb.settings import Address
from tests.dataplane.harness import FakeStage, Record
from tests.dataplane.parties import Answering, Party, Peer, Site
from tests.dataplane.player import Lane, Player
from tests.dataplane.script import Script
from tests.dataplane.setup import Setup

T = TypeVar("T")
LOOK_EVERY_S = 0.05
PATIENCE_S = 60.0  # only a failure takes as long


class FakeTheatre:
    def __init__(self, stage: FakeStage) -> None:
        self._stage = stage
        self.record = stage.record
        self.sites = stage.sites

    async def open(self, peer: Peer) -> None:
        self._stage.connect(peer)

    async def until(self, ready: Callable[[], T | None]) -> T | None:
        self._stage.loop.settle()
        return ready()

    async def connects(self, name: str, how: str) -> None:
        self.sites[name].connects = how

    def clock(self, seconds: float) -> None:
        self._stage.clock(seconds)

    def set_state(self, name: str, state: BackendState) -> None:
        self._stage.set_state(name, state)

    def receive(self, message: object) -> None:
        self._stage.receive(message)


def at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise AssertionError("it waited")


def play_on_fakes(script: Script, *, split: bool = False, glued: bool = False) -> None:
    lanes = {name: Lane(name, script, lambda: None) for name in script.setup.names}
    stage = FakeStage(script.setup, answering=lanes.__getitem__, split=split)
    at_once(Player(script, FakeTheatre(stage), lanes, Party(), glued=glued).play())
    stage.finish()


# -- sockets -------------------------------------------------------------------------------------------


class SocketWire(asyncio.Protocol):
    """The test's end of a real connection."""

    def __init__(self, peer: Peer, *, closes: bool) -> None:
        self._peer = peer
        self._closes = closes  # eof() closes altogether: an MTA; a client half-closes
        self._transport: asyncio.Transport | None = None
        self._over = False

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peer.connected(self)

    def data_received(self, data: bytes) -> None:
        self._peer.heard(data)

    def eof_received(self) -> bool:
        self._ended()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._ended()

    def _ended(self) -> None:
        # Neither end can tell an abort from a close here: FIN or RST depends on what the kernel still held.
        if not self._over:
            self._over = True
            self._peer.over("either")

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    def eof(self) -> None:
        if self._closes:
            self.transport.close()
        else:
            self.transport.write_eof()

    def reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def stall(self) -> None:
        self.transport.pause_reading()

    def unstall(self) -> None:
        self.transport.resume_reading()


class SocketTheatre:
    """A worker on the running loop, its backends and its clients on loopback."""

    def __init__(self, setup: Setup, answering: Callable[[str], Answering]) -> None:
        self.setup = setup
        self.record = Record()
        self.sites = {name: Site(name, answering(name)) for name in setup.names}
        self._told = asyncio.Event()
        self._servers: dict[str, asyncio.Server] = {}
        self._addresses: dict[str, Address] = {}
        self._wires: list[SocketWire] = []
        self._generation = 0

    def tell(self) -> None:
        self._told.set()

    async def __aenter__(self) -> SocketTheatre:
        self._loop = loop = asyncio.get_running_loop()
        for name in self.sites:
            self._servers[name] = await self._serve(name, 0)
            port = self._servers[name].sockets[0].getsockname()[1]
            self._addresses[name] = Address("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._deadlines = Deadlines.of(loop)
        self.worker = Worker(loop, self._deadlines, self._take, self._take, {"in": [self._listening]})
        self._apply()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.worker.close()
        self._deadlines.close()
        for wire in self._wires:
            if wire._transport is not None:
                wire._transport.abort()
        for server in self._servers.values():
            server.close()
        self._listening.close()
        for _turn in range(5):
            await asyncio.sleep(0)

    async def _serve(self, name: str, port: int) -> asyncio.Server:
        site = self.sites[name]

        def wire() -> SocketWire:
            site.count += 1
            self._wires.append(SocketWire(site.answering.session(), closes=True))
            return self._wires[-1]

        return await self._loop.create_server(wire, "127.0.0.1", port)

    def _take(self, message: Any) -> None:
        self.record.messages.append(message)
        self._told.set()

    def _apply(self) -> None:
        self._generation += 1
        self.worker.receive(self.setup.snapshot(self._generation, self._addresses))

    # -- Theatre -------------------------------------------------------------------------------------

    async def open(self, peer: Peer) -> None:
        host, port = self._listening.getsockname()
        wire = SocketWire(peer, closes=False)
        self._wires.append(wire)
        await self._loop.create_connection(lambda: wire, host, port)

    async def until(self, ready: Callable[[], T | None]) -> T | None:
        deadline = self._loop.time() + PATIENCE_S
        while (answer := ready()) is None:
            self._told.clear()
            left = deadline - self._loop.time()
            if left <= 0:
                return None
            try:  # what comes about without a word (a connection that nobody speaks on) is looked for, too
                await asyncio.wait_for(self._told.wait(), min(left, LOOK_EVERY_S))
            except TimeoutError:
                continue
        return answer

    async def connects(self, name: str, how: str) -> None:
        self._servers[name].close()
        if how == "accept":
            self._servers[name] = await self._serve(name, self._addresses[name].port)

    def clock(self, seconds: float) -> None:
        raise AssertionError("real time is not waited for")

    def set_state(self, name: str, state: BackendState) -> None:
        self.setup.states[name] = state
        self._apply()

    def receive(self, message: Any) -> None:
        self.worker.receive(message)

    async def breathe(self) -> None:
        """What is on its way already arrives."""
        for _turn in range(20):
            await asyncio.sleep(0)


async def play_on_sockets(script: Script) -> None:
    lanes: dict[str, Lane] = {}

    def lane(name: str) -> Lane:
        lanes[name] = Lane(name, script, lambda: theatre.tell())
        return lanes[name]

    theatre = SocketTheatre(script.setup, lane)
    async with theatre:
        client = Party(theatre.tell)
        player = Player(script, theatre, lanes, client, cut_anywhere=True)
        await player.play()
        await theatre.breathe()
        player.check_quiet()
        assert not theatre.record.bugs, "\n".join(theatre.record.bugs)
