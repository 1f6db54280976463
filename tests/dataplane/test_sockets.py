"""What only real sockets show: kernel buffers, RST and FIN, half-closes, names that do not resolve; under uvloop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from smtplb.settings import Address
from tests.dataplane.ledger import Told, check_taken
from tests.dataplane.mta import Fault, ModelMta
from tests.dataplane.parties import Party
from tests.dataplane.setup import Setup
from tests.dataplane.theatres import SocketTheatre, SocketWire

LINE = b"0123456789" * 7 + b"\r\n"


class Talker(Party):
    """A client that waits for what it is owed."""

    def __init__(self, theatre: SocketTheatre) -> None:
        super().__init__(theatre.tell)
        self._theatre = theatre

    @property
    def socket_wire(self) -> SocketWire:
        assert isinstance(self.wire, SocketWire)
        return self.wire

    async def line(self) -> str:
        line = await self._theatre.until(self.take_line)
        assert line is not None, "nothing more was heard"
        return line.decode("latin-1")

    async def lines(self, count: int) -> list[str]:
        return [await self.line() for _ in range(count)]

    async def one(self, command: str) -> str:
        self.say(command.encode() + b"\r\n")
        return await self.line()

    async def hello(self) -> Talker:
        assert await self.line() == "220 lb.test ESMTP"
        self.say(b"EHLO client.test\r\n")
        while not (await self.line()).startswith("250 "):
            pass
        return self

    async def message(self, sender: str = "s@a.test", body: bytes = b"hi\r\n") -> str:
        self.say(f"MAIL FROM:<{sender}>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n".encode())
        replies = await self.lines(3)
        if replies[-1].startswith("354"):
            self.say(body + b".\r\n")
            return await self.line()
        return replies[-1]


class Lab:
    def __init__(self, theatre: SocketTheatre, mtas: dict[str, ModelMta]) -> None:
        self.theatre = theatre
        self.mtas = mtas

    async def client(self) -> Talker:
        talker = Talker(self.theatre)
        await self.theatre.open(talker)
        return await talker.hello()

    async def settled(self, mta: str, count: int) -> None:
        """Until a backend has taken so many."""
        assert await self.theatre.until(lambda: len(self.mtas[mta].taken) >= count or None)


@asynccontextmanager
async def lab(setup: Setup) -> AsyncIterator[Lab]:
    mtas: dict[str, ModelMta] = {}
    loop = asyncio.get_running_loop()

    def model(name: str) -> ModelMta:
        mtas[name] = ModelMta(
            name,
            later=lambda callback: loop.call_later(0.005, callback),
            told=lambda: theatre.tell(),
        )
        return mtas[name]

    theatre = SocketTheatre(setup, model)
    async with theatre:
        yield Lab(theatre, mtas)
        assert not theatre.record.bugs, "\n".join(theatre.record.bugs)
        assert not any(mta.broken for mta in mtas.values()), [mta.broken for mta in mtas.values()]


async def test_one_session_reaches_all_backends_evenly() -> None:
    async with lab(Setup(pools={"p": "A B D"})) as it:
        client = await it.client()
        for _ in range(60):
            assert (await client.message()).startswith("250 2.0.0 queued")
        assert {name: len(mta.taken) for name, mta in it.mtas.items()} == {"A": 20, "B": 20, "D": 20}
        assert [site.count for site in it.theatre.sites.values()] == [1, 1, 1]


async def test_no_delay_at_both_ends() -> None:
    async with lab(Setup()) as it:
        client = await it.client()
        await client.message()
        (session,) = it.theatre.worker._listeners[0].sessions
        router = it.theatre.worker._router
        assert router is not None
        (connection,) = router.pools["p"].backends["A"]._idle
        for transport in (session._transport, connection._transport):
            assert transport is not None
            sock = transport.get_extra_info("socket")
            assert cast("socket.socket", sock).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_slow_backend_holds_the_client_back_through_all_buffers() -> None:
    async with lab(Setup()) as it:
        client = await it.client()
        client.say(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n")
        await client.lines(3)
        backend = it.mtas["A"].sessions[0].wire
        assert backend is not None
        backend.stall()
        body = LINE * 400_000  # 28 MB: more than both kernels' buffers take
        client.say(body + b".\r\n")
        for _ in range(300):
            await asyncio.sleep(0)
        assert client.socket_wire.transport.get_write_buffer_size() > 5_000_000
        backend.unstall()
        assert await client.line() == "250 2.0.0 queued at A as 1"
        assert it.mtas["A"].taken[0].body == body


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_backend_lost_in_a_large_body(how: str) -> None:
    async with lab(Setup(pools={"p": "A B"})) as it:
        client = await it.client()
        client.say(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n")
        await client.lines(3)
        body = LINE * 40_000
        client.say(body[:1_500_000])
        assert await it.theatre.until(lambda: len(it.mtas["A"].sessions[0]._buffer) > 1_000_000 or None)
        wire = it.mtas["A"].sessions[0].wire
        assert wire is not None
        (wire.eof if how == "close" else wire.reset)()
        assert await it.theatre.until(lambda: it.theatre.record.failures or None)
        client.say(body[1_500_000:] + b".\r\n")
        assert await client.line() == "250 2.0.0 queued at B as 1"
        assert it.mtas["B"].taken[0].body == body
        assert it.theatre.record.failures == ["A fault block lost", "A blamed lost"]


async def test_client_reset_in_the_body_completes_nothing() -> None:
    async with lab(Setup()) as it:
        client = await it.client()
        client.say(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n")
        await client.lines(3)
        client.say(LINE)
        assert await it.theatre.until(lambda: it.mtas["A"].sessions[0]._buffer or None)
        client.socket_wire.reset()
        assert await it.theatre.until(lambda: it.mtas["A"].sessions[0].ended or None)
        assert it.mtas["A"].taken == []
        assert it.theatre.record.outcomes == ["aborted"]


async def test_client_that_ends_its_message_and_resets_while_it_is_not_read() -> None:
    """During a replay the kernel keeps its terminator and, behind that, its reset."""
    async with lab(Setup(pools={"p": "A B"})) as it:
        client = await it.client()
        client.say(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n")
        await client.lines(3)
        client.say(LINE)
        assert await it.theatre.until(lambda: it.mtas["A"].sessions[0]._buffer or None)
        it.mtas["B"].faults.append(Fault("greeting", "hang"))
        wire = it.mtas["A"].sessions[0].wire
        assert wire is not None
        wire.reset()
        sessions = it.mtas["B"].sessions
        assert await it.theatre.until(lambda: (sessions and sessions[0].wire) or None)
        client.say(b".\r\n")
        await it.theatre.breathe()
        client.socket_wire.reset()
        await it.theatre.breathe()
        assert it.theatre.record.outcomes == [], "it is not seen yet"
        sessions[0].deaf = False
        sessions[0]._say("220 late")
        assert await it.theatre.until(lambda: it.theatre.record.outcomes or None) == ["aborted"]
        assert it.mtas["B"].taken == []


async def test_half_close_behind_a_whole_session() -> None:
    async with lab(Setup(pools={"p": "A B"})) as it:
        client = await it.client()
        message = b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\nhi\r\n.\r\n"
        client.say(message * 3 + b"QUIT\r\n")
        client.socket_wire.eof()
        replies = await client.lines(13)
        assert [reply[:3] for reply in replies] == ["250", "250", "354", "250"] * 3 + ["221"]
        assert await it.theatre.until(lambda: client.ended or None)


async def test_a_name_that_cannot_be_looked_up_is_a_failed_connect() -> None:
    async with lab(Setup(pools={"p": "A B"})) as it:
        theatre = it.theatre
        theatre._addresses["A"] = Address("a..b", 25)  # cannot even be encoded for the DNS
        router = theatre.worker._router
        assert router is not None
        backend = router.pools["p"].backends["A"]
        object.__setattr__(backend.settings, "address", theatre._addresses["A"])
        client = await it.client()
        assert await client.message() == "250 2.0.0 queued at B as 1"
        assert theatre.record.failures == ["A fault connect connect", "A blamed connect"]


ACTS = (
    "close",
    "reset",
    "421 4.3.2 x",
    "554 5.0.0 x",
    "450 4.2.0 x",
    "garbage",
    "half",
    "long",
    "extra",
    "extra later",
)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("phase", ["greeting", "hello", "mail", "rcpt", "data", "final"])
async def test_faults(phase: str, act: str) -> None:
    """The ledger over real connections; then the next message of the session."""
    async with lab(Setup(pools={"p": "A B"})) as it:
        client = await it.client()
        it.mtas["A"].faults.append(Fault(phase, act))
        told = Told("s@a.test", b"hi\r\n", {"r@b.test": "250"})
        told.last = await client.message(told.sender, told.body)
        check_taken(it.mtas, told, in_doubt=phase == "final")
        it.mtas["A"].faults.clear()
        client.say(b"RSET\r\n")
        assert await client.line() == "250 2.0.0 Ok"
        after = Told("after@a.test", b"hi again\r\n", {"r@b.test": "250"})
        after.last = await client.message(after.sender, after.body)
        assert after.last.startswith("250 2.0.0 queued at")
        check_taken(it.mtas, after)


async def test_many_sessions_at_once() -> None:
    async with lab(Setup(pools={"p": "A B D"})) as it:
        clients = [await it.client() for _ in range(30)]

        async def ten(n: int, client: Talker) -> list[str]:
            return [await client.message(f"s{n}-{k}@a.test", b"body %d %d\r\n" % (n, k)) for k in range(10)]

        replies = await asyncio.gather(*(ten(n, client) for n, client in enumerate(clients)))
        assert all(reply.startswith("250 2.0.0 queued") for row in replies for reply in row)
        taken = {t.sender: t.body for mta in it.mtas.values() for t in mta.taken}
        assert len(taken) == sum(len(mta.taken) for mta in it.mtas.values()) == 300
        for n in range(30):
            for k in range(10):
                assert taken[f"s{n}-{k}@a.test"] == b"body %d %d\r\n" % (n, k)


async def test_client_that_never_reads() -> None:
    async with lab(Setup(limits={"errors": 1_000_000_000})) as it:
        client = await it.client()
        client.socket_wire.stall()
        client.say(b"HELP\r\n" * 1_000_000)
        (session,) = it.theatre.worker._listeners[0].sessions
        for _ in range(10_000):
            if session._writing_paused:
                break
            await asyncio.sleep(0)
        assert session._writing_paused
        assert client.socket_wire.transport.get_write_buffer_size() > 100_000, "it is not read either"
        client.socket_wire.unstall()
        assert len(await client.lines(1000)) == 1000
