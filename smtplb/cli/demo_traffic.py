"""The demo's traffic: a small SMTP client, N sessions of it, and the messages they share.

Owns sending, sending again, and writing down what was told (demo_ledger.py). Does not own the progress shown.
Invariant: a message is sent by one session at a time, and again until it is told 250; every transaction that
sent a command ends as exactly one entry of the ledger.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from smtplb.cli.demo_ledger import Ledger, Told
from smtplb.cli.embedded import DEFAULT_ID_HEADER

REPLY_TIMEOUT_S = 60.0  # of the client; long after the balancer's own limits in the demo
MAX_TRIES = 40
RETRY_PAUSE_S = 0.1  # an MTA waits minutes; nobody watches a demo that long
MAX_REPLY_LINE_BYTES = 8192


class Closed(Exception):
    """The connection ended where a reply was due."""


class GaveUp(Exception):
    """A message was sent MAX_TRIES times, and never told 250."""


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    text: str  # of the last line

    @property
    def in_doubt(self) -> bool:
        """The balancer's words for it (design: in-doubt)."""
        return self.code == 451 and self.text.startswith("4.4.2 ")


class SmtpClient:
    """One session. Closed when the connection is lost; the object is of no use then."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> tuple[SmtpClient, Reply]:
        """Connects; the greeting is the reply. Closed when there is none."""
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_REPLY_LINE_BYTES)
        except OSError as error:
            raise Closed(str(error)) from error
        client = cls(reader, writer)
        try:
            return client, await client.reply()
        except BaseException:
            client.abort()
            raise

    async def reply(self) -> Reply:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                while (line := await self._reader.readuntil(b"\n"))[3:4] == b"-":
                    pass
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:  # TimeoutError is an OSError
            raise Closed(str(error)) from error
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text[:3].isdecimal():
            raise Closed(f"no reply: {text[:80]}")
        return Reply(int(text[:3]), text[4:])

    def send(self, octets: bytes) -> None:
        self._writer.write(octets)

    async def command(self, octets: bytes) -> Reply:
        self.send(octets)
        return await self.reply()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def quit(self) -> None:
        """QUIT, its 221 and the end; a connection that is gone already is fine."""
        try:
            await self.command(b"QUIT\r\n")
        except Closed:
            pass
        finally:
            self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass


@dataclass(slots=True)
class TrafficCounts:
    sessions: int = 0  # opened; above the number asked for when the balancer ended some
    delivered: int = 0
    transactions: int = 0
    session_of: dict[str, int] = field(default_factory=dict)  # transaction -> number of the session
    replies: Counter[str] = field(default_factory=Counter)  # the reply that ended a transaction -> how often


class Outbox:
    """The messages that sessions share, handed out in order. `hold_at`: no further, until released."""

    def __init__(self, messages: int, hold_at: int) -> None:
        self._messages = messages
        self._hold_at = hold_at
        self._next = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def take(self) -> int | None:
        """None: all were handed out."""
        if self._hold_at <= self._next < self._messages:
            await self._released.wait()
        if self._next >= self._messages:
            return None
        self._next += 1
        return self._next - 1


class Traffic:
    """run() delivers what is in the outbox over `sessions` sessions; each sends one message after another."""

    def __init__(
        self,
        host: str,
        port: int,
        outbox: Outbox,
        ledger: Ledger,
        *,
        message_bytes: int = 2048,
        on_delivered: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.host = host
        self.port = port
        self.outbox = outbox
        self.counts = TrafficCounts()
        self._ledger = ledger
        self._on_delivered = on_delivered
        line = b"This message is part of a demonstration; nobody will ever read it.\r\n"
        self._body = line * max(1, message_bytes // len(line))

    async def run(self, sessions: int) -> None:
        """Returns when all is delivered. GaveUp ends it."""
        tasks = [asyncio.ensure_future(_Sender(self, number).run()) for number in range(sessions)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def message(self, transaction: str) -> bytes:
        """With its terminator."""
        header = f"{DEFAULT_ID_HEADER}: {transaction}\r\nSubject: demonstration\r\n\r\n"
        return header.encode() + self._body + b".\r\n"

    def ended(self, transaction: str, session: int, told: Told, words: str) -> None:
        self._ledger.client_told(transaction, told)
        self.counts.transactions += 1
        self.counts.session_of[transaction] = session
        self.counts.replies[words] += 1
        if told is Told.TAKEN:
            self.counts.delivered += 1
            self._on_delivered(self.counts.delivered)


class _Sender:
    """One sender: one session after another where the balancer ends them, usually just one."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        self._traffic = traffic
        self._number = number
        self._client: SmtpClient | None = None
        self._last_words = "no connection"

    async def run(self) -> None:
        try:
            while (message := await self._traffic.outbox.take()) is not None:
                await self._deliver(message)
            if self._client is not None:
                await self._client.quit()
                self._client = None
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.abort()
            self._client = None

    async def _deliver(self, message: int) -> None:
        """Until it is told 250, as an MTA would; GaveUp when it is enough."""
        for serial in range(1, MAX_TRIES + 1):
            if serial > 1:
                await asyncio.sleep(RETRY_PAUSE_S)
            if self._client is None:
                await self._open()
            if self._client is None:
                continue
            transaction = f"{message}.{serial}"
            told, self._last_words = await self._transaction(self._client, transaction)
            self._traffic.ended(transaction, self._number, told, self._last_words)
            if told is Told.TAKEN:
                return
        raise GaveUp(f"message {message} was tried {MAX_TRIES} times; the last answer: {self._last_words}")

    async def _open(self) -> None:
        try:
            self._client, greeting = await SmtpClient.open(self._traffic.host, self._traffic.port)
            self._traffic.counts.sessions += 1
            if greeting.code == 220:
                greeting = await self._client.command(b"EHLO client.localhost\r\n")
            if greeting.code != 250:
                self._last_words = f"{greeting.code} {greeting.text}"
                self._hang_up()
        except Closed:
            self._hang_up()

    async def _transaction(self, client: SmtpClient, transaction: str) -> tuple[Told, str]:
        """What was told, and in what words."""
        terminator_sent = False
        try:
            client.send(b"MAIL FROM:<demo@sender.test>\r\nRCPT TO:<somebody@recipient.test>\r\n")
            mail, rcpt = await client.reply(), await client.reply()
            reply = rcpt
            if mail.code == rcpt.code == 250:
                reply = await client.command(b"DATA\r\n")
            if reply.code == 354:
                terminator_sent = True
                reply = await client.command(self._traffic.message(transaction))
            elif reply.code != 421:
                await client.command(b"RSET\r\n")
        except Closed:
            self._hang_up()
            return (Told.IN_DOUBT if terminator_sent else Told.REFUSED), "connection lost"
        if reply.code == 421:
            self._hang_up()
        if terminator_sent and reply.code == 250:
            return Told.TAKEN, "250"
        if terminator_sent and reply.in_doubt:
            return Told.IN_DOUBT, f"{reply.code} in doubt"
        return Told.REFUSED, str(reply.code)
