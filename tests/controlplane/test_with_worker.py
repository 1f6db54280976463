"""The supervisor with a real worker on loopback: what clients see of starting, draining and stopping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from smtplb.controlplane.supervisor import Supervisor
from smtplb.observe.events import BackendChanged, Event, GroupShifted, Notice
from smtplb.settings import (
    Address,
    CheckLevel,
    CheckSettings,
    GroupMember,
    GroupMode,
    GroupSettings,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)
from tests.controlplane.things import backend, listener, pool

CHECK = CheckSettings(CheckLevel.EHLO, interval_s=0.2, fast_interval_s=0.1, timeout_s=1.0, rise=2, fall=2)


class Mta:
    """A backend that takes every message and knows how many it has; `down()` and `up()` on the same port."""

    def __init__(self) -> None:
        self.port = 0
        self.messages = 0
        self.lost = 0  # clients that left without QUIT
        self.quits = asyncio.Semaphore(0)  # one for each client that said QUIT
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            writer.write(b"220 mta\r\n")
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    self.messages += 1
                writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 2.0.0 ok\r\n")
                if verb == b"QUIT":
                    self.quits.release()
                    return
            self.lost += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            self.lost += 1
        finally:
            self._writers.discard(writer)
            writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def at(cls, address: Address) -> Client:
        return cls(*await asyncio.open_connection(address.host, address.port))

    async def reply(self) -> str:
        async with asyncio.timeout(10):
            while True:
                line = (await self._reader.readline()).decode()
                if line[3:4] != "-":
                    return line.rstrip()

    async def say(self, line: str) -> str:
        self._writer.write(line.encode() + b"\r\n")
        return await self.reply()

    async def send(self) -> str:
        """One message; the reply to its end of data."""
        assert (await self.say("MAIL FROM:<a@a.test>")).startswith("250")
        answer = await self.say("RCPT TO:<b@b.test>")
        if not answer.startswith("250"):
            return answer
        assert (await self.say("DATA")).startswith("354")
        return await self.say("Subject: x\r\n\r\nhello\r\n.")

    def close(self) -> None:
        self._writer.transport.abort()


class Lab:
    def __init__(self, traffic: TrafficSettings, drain_s: float) -> None:
        self.events: list[Event] = []
        self.told = asyncio.Event()
        shutdown = ShutdownSettings(delay_s=0.0, drain_s=drain_s)
        self.supervisor = Supervisor(Settings(traffic, shutdown=shutdown), emit=self._emit)

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        self.told.set()

    async def client(self) -> Client:
        return await Client.at(self.supervisor.bound["mx"][0])

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.told.clear()
                await self.told.wait()

    def state(self, pool_name: str, name: str) -> str:
        changes = [
            event
            for event in self.events
            if isinstance(event, BackendChanged) and (event.pool, event.backend) == (pool_name, name)
        ]
        return changes[-1].new

    def bugs(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, Notice) and event.level == "error"]


@asynccontextmanager
async def lab(east: Mta, west: Mta, drain_s: float = 5.0, failback_s: float = 0.3) -> AsyncIterator[Lab]:
    await east.up()
    await west.up()
    traffic = TrafficSettings(
        "lb1.test",
        (listener("mx", "site"),),
        (
            pool("east", backend("east", "a", port=east.port, check=CHECK)),
            pool("west", backend("west", "b", port=west.port, check=CHECK)),
        ),
        (
            GroupSettings(
                "site",
                GroupMode.ACTIVE_PASSIVE,
                (GroupMember("east"), GroupMember("west")),
                failback_delay_s=failback_s,
            ),
        ),
    )
    it = Lab(traffic, drain_s)
    await it.supervisor.start()
    try:
        yield it
        assert it.bugs() == []
    finally:
        await it.supervisor.stop(0)
        await east.down()
        await west.down()


async def test_an_open_session_follows_the_group_to_the_other_pool_and_back() -> None:
    east, west = Mta(), Mta()
    async with lab(east, west) as it:
        client = await it.client()
        assert (await client.reply()).startswith("220")
        await client.say("EHLO c.test")
        assert (await client.send()).startswith("250")
        assert (east.messages, west.messages) == (1, 0)
        await east.down()
        await it.until(lambda: it.state("east", "a") == "down")
        assert (await client.send()).startswith("250")
        assert (east.messages, west.messages) == (1, 1)
        await east.up()
        await it.until(lambda: sum(isinstance(event, GroupShifted) for event in it.events) == 2)
        assert (await client.send()).startswith("250")
        assert (east.messages, west.messages) == (2, 1)
        client.close()


async def test_what_is_drained_gets_no_further_message_and_clients_notice_nothing() -> None:
    east, west = Mta(), Mta()
    async with lab(east, west) as it:
        client = await it.client()
        await client.reply()
        await client.say("EHLO c.test")
        assert (await client.send()).startswith("250")
        it.supervisor.set_backend("east", "a", state="drain", reason="test")
        await asyncio.sleep(0)
        assert (await client.send()).startswith("250")
        assert (east.messages, west.messages) == (1, 1)
        client.close()


async def test_stopping_says_421_between_transactions_and_then_all_is_over() -> None:
    east, west = Mta(), Mta()
    async with lab(east, west) as it:
        client = await it.client()
        await client.reply()
        await client.say("EHLO c.test")
        await client.send()
        status = await it.supervisor.status()
        assert status.listeners[0].accepting
        assert status.listeners[0].sessions_open == 1
        stopping = asyncio.ensure_future(it.supervisor.stop(5))
        assert (await client.reply()).startswith("421")
        async with asyncio.timeout(5):
            await stopping
        assert not it.supervisor.live()
        client.close()


async def test_nothing_usable_and_nothing_to_try_is_a_421_greeting() -> None:
    east, west = Mta(), Mta()
    async with lab(east, west) as it:
        it.supervisor.set_backend("east", "a", state="maint", force=True)
        it.supervisor.set_backend("west", "b", state="maint", force=True)
        await asyncio.sleep(0)
        client = await it.client()
        assert (await client.reply()).startswith("421 4.3.2")
        client.close()


async def test_checks_leave_no_backend_with_a_lost_connection() -> None:
    east, west = Mta(), Mta()
    async with lab(east, west) as it:
        async with asyncio.timeout(10):
            for _ in range(5):
                await east.quits.acquire()
        assert (await it.supervisor.pools())[0].backends[0].check.failed == 0
    assert (east.lost, west.lost) == (0, 0)
