"""500 clients that never end what they begin, at once: memory stays bounded, and everybody else's mail goes through."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import session, until
from tests.e2e.conftest import Begin
from tests.identity.parties import envelope
from tests.lab import SmtpSink
from tests.lab.fixtures import Lab

CLIENTS = 500
KEPT_BYTES = 64 * 1024  # replay.memory, of each message
PIECE = 32 * 1024
LINE_BYTES = BODY_BYTES = 512 * 1024  # what each client sends: without a bound it would be 250 MiB
RECIPIENTS, ROW = 50, 200  # limits.recipients, and what each client wants
LIMITS = {"recipients": RECIPIENTS, "message_size": "256KiB", "errors": 1_000_000}
REPLAY = {"memory": "64KiB", "per_message": "128KiB", "total": "128MiB"}
# For a client: what reading takes, and what is kept of its message.
OF_A_CLIENT = 48 * 1024
BASE = 16 * 1024 * 1024


class Raw:
    """A client that is held back only by our taking no more of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.octets = 0

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        self.octets += len(data)

    async def reply(self) -> bytes:
        line = await self._reader.readline()
        while line[3:4] == b"-":
            line = await self._reader.readline()
        return line

    async def hello(self) -> None:
        await self.send(b"EHLO client.test\r\n")
        assert (await self.reply()).startswith(b"250")

    async def to_data(self) -> None:
        await self.hello()
        await self.send(b"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n")
        assert [(await self.reply())[:3] for _ in range(3)] == [b"250", b"250", b"354"]

    def close(self) -> None:
        self._writer.transport.abort()


async def lines_without_end(client: Raw) -> None:
    await client.hello()
    for _ in range(LINE_BYTES // PIECE):
        await client.send(b"x" * PIECE)


async def lines_without_end_in_a_body(client: Raw) -> None:
    await client.to_data()
    for _ in range(BODY_BYTES // PIECE):
        await client.send(b"x" * PIECE)


async def bodies_without_end(client: Raw) -> None:
    await client.to_data()
    for _ in range(BODY_BYTES // PIECE):
        await client.send(b"0123456789abcd\r\n" * (PIECE // 16))


async def recipients_without_end(client: Raw) -> None:
    await client.hello()
    await client.send(b"MAIL FROM:<a@a.test>\r\n")
    assert (await client.reply()).startswith(b"250")
    for first in range(0, ROW, 20):
        row = [b"RCPT TO:<%s%d@b.test>\r\n" % (b"r" * 56, number) for number in range(first, first + 20)]
        await client.send(b"".join(row))
        for _ in row:
            assert (await client.reply())[:3] in (b"250", b"452")


async def nothing_is_read(client: Raw) -> None:
    """Commands with long replies, until we take no more."""
    try:
        async with asyncio.timeout(2):
            for _ in range(4 * LINE_BYTES // PIECE):
                await client.send(b"EHLO client.test\r\nNOOP\r\n" * (PIECE // 24))
    except TimeoutError:
        pass


Act = Callable[[Raw], Awaitable[None]]
ACTS: dict[Act, int] = {  # and what may be kept of each beyond what reading takes
    lines_without_end: 0,
    lines_without_end_in_a_body: KEPT_BYTES,
    bodies_without_end: KEPT_BYTES,
    recipients_without_end: 0,
    nothing_is_read: 256 * 1024,  # one read of commands waits until it reads
}


async def connect(port: int, *, reads: bool) -> Raw:
    own = socket.socket()
    if not reads:  # what is not read stands at the other end
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
    return Raw(*await asyncio.open_connection(sock=own, limit=4096))


@pytest.mark.measured
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_memory_is_bounded_and_other_mail_goes_through(lab: Lab, begin: Begin, act: Act) -> None:
    sinks = [
        await asyncio.to_thread(lab.start, SmtpSink(name)) for name in ("mx1", "mx2")
    ]  # two: for a replay
    balancer = Smtplb(
        {"relays": pool(*sinks, check={"level": "off"})},
        listener={"limits": LIMITS},
        sections={"replay": REPLAY},
    )
    await asyncio.to_thread(begin, balancer)
    async with session(balancer.port) as other:
        assert (await other.send()).startswith("250")
    before = balancer.rss_bytes()
    clients = [await connect(balancer.port, reads=act is not nothing_is_read) for _ in range(CLIENTS)]
    try:
        if act is not nothing_is_read:
            greetings = await asyncio.gather(*(client.reply() for client in clients))
            assert {greeting[:3] for greeting in greetings} == {b"220"}
        await asyncio.gather(*(act(client) for client in clients))
        async with session(balancer.port) as other:  # while they all stand
            assert (await other.send()).startswith("250")
        assert balancer.status()["listeners"][0]["sessions"]["open"] >= CLIENTS
        grown = balancer.peak_rss_bytes() - before
    finally:
        for client in clients:
            client.close()
    taken = sum(client.octets for client in clients)
    FIGURES.info("%s: %d KiB sent, %d KiB more", act.__name__, taken // 1024, grown // 1024)
    assert grown <= BASE + CLIENTS * (OF_A_CLIENT + ACTS[act])
    closed = lambda: balancer.status()["listeners"][0]["sessions"]["open"] == 0  # noqa: E731
    await until(closed, "all sessions are over")
    async with session(balancer.port) as other:
        assert len(await envelope(other, ["b@b.test"])) == 1
