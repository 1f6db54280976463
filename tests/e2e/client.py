"""Clients with a ledger: every message has a Message-ID of its own, and every reply is written down.

Owns one client session, traffic of many, and the comparison of what clients heard with what mail servers took.
Invariant: a message whose MAIL was sent is in the ledger, whatever became of it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.lab import Mta
from tests.lab.process import wait_until

PATIENCE_S = 60.0  # for one reply: longer than any stall of a loaded machine, shorter than the test runner's
AGAIN_AFTER_S = 0.02  # before a client that was refused connects again

LOST = ""  # a reply that never came


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """wait_until of the lab, beside the loop. The condition runs in a thread."""
    await asyncio.to_thread(wait_until, condition, what, timeout_s)


class Client:
    """One session. Replies come with their lines joined by blanks; LOST at the end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.greeting = ""

    @classmethod
    async def connect(cls, port: int) -> Client:
        """Returns with the greeting read, whatever it is."""
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.greeting = await client.reply()
        return client

    async def reply(self) -> str:
        lines = []
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    line = await self._reader.readline()
                except ConnectionError:
                    return LOST
                if not line.endswith(b"\n"):
                    return LOST
                lines.append(line.decode("latin-1").rstrip("\r\n"))
                if line[3:4] != b"-":
                    return " ".join(lines)

    async def say(self, *lines: str) -> str:
        """Commands in one write; the last of their replies."""
        return (await self.ask(*lines))[-1]

    async def ask(self, *lines: str) -> list[str]:
        """Commands in one write; all replies."""
        self._writer.write("".join(line + "\r\n" for line in lines).encode("latin-1"))
        return [await self.reply() for _ in lines]

    async def send(
        self,
        message_id: str = "",
        *,
        sender: str = "a@a.test",
        recipient: str = "b@b.test",
        body_bytes: int = 100,
        pipelined: bool = False,
    ) -> str:
        """One message; the first reply that ends it: of MAIL, RCPT or DATA where one of those is refused."""
        commands = [f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA"]
        if pipelined:
            replies = await self.ask(*commands)
        else:
            replies = []
            for line in commands:
                replies.append(await self.say(line))
                if replies[-1][:1] not in ("2", "3"):
                    break
        for reply in replies:
            if reply[:1] not in ("2", "3"):
                return reply
        return await self.say(*_message(message_id or new_message_id(), body_bytes))

    async def quit(self) -> str:
        reply = await self.say("QUIT")
        self.close()
        return reply

    def close(self) -> None:
        """Gone without a word, if it is not gone yet."""
        self._writer.transport.abort()


@asynccontextmanager
async def session(port: int) -> AsyncIterator[Client]:
    """A session past EHLO; left without a word if the block did not quit."""
    client = await Client.connect(port)
    try:
        assert client.greeting.startswith("220"), client.greeting
        assert (await client.say("EHLO client.test")).startswith("250")
        yield client
    finally:
        client.close()


async def turned_away(port: int) -> str:
    """The greeting of a session that is ended with it."""
    client = await Client.connect(port)
    try:
        assert not client.greeting.startswith("220"), client.greeting
        assert await client.reply() == LOST
        return client.greeting
    finally:
        client.close()


def new_message_id() -> str:
    return f"<{uuid.uuid4().hex}@client.test>"


def _message(message_id: str, body_bytes: int) -> list[str]:
    """As one `line`: it has one reply."""
    text = ("x" * 70 + "\r\n") * (body_bytes // 72 + 1)
    return [f"Message-ID: {message_id}\r\nSubject: e2e\r\n\r\n{text}."]


@dataclass(slots=True)
class Entry:
    """One message as its client saw it. Times are unix times; `ended` is 0 while it is under way."""

    message_id: str
    session: int
    began: float
    reply: str = LOST
    ended: float = 0.0


@dataclass(slots=True)
class Ledger:
    entries: list[Entry] = field(default_factory=list)
    sessions: int = 0  # that got a 220
    refused: list[str] = field(default_factory=list)  # greetings that were none
    dismissed: int = 0  # sessions ended by a 421, between messages or in one
    cut: int = 0  # sessions ended without a word

    def ids(self, code: str = "250") -> list[str]:
        return [entry.message_id for entry in self.entries if entry.reply.startswith(code)]

    def not_ok(self) -> list[str]:
        """Replies of messages that ended otherwise than by a 250."""
        return [entry.reply for entry in self.entries if entry.ended and not entry.reply.startswith("250")]

    def since(self, moment: float) -> list[Entry]:
        """Messages begun after it that ended well."""
        return [entry for entry in self.entries if entry.began > moment and entry.reply.startswith("250")]


class Traffic:
    """Sessions that send message after message until the block is left; then each ends what it began.

    per_session   messages before a client says QUIT and connects anew; None: one session for all
    Every other client sends MAIL, RCPT and DATA in one write. Each message has a sender of its own: a message that was
    told to come again is tried first where it was told so, and none of these is such a one.
    """

    def __init__(
        self, port: int, *, sessions: int = 8, per_session: int | None = None, body_bytes: int = 2000
    ) -> None:
        self.ledger = Ledger()
        self._port = port
        self._sessions = sessions
        self._per_session = per_session
        self._body_bytes = body_bytes
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._sessions)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> Ledger:
        """Returns when every client has heard the end of its last message."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks = []
        return self.ledger

    async def more(self, messages: int, timeout_s: float = 30.0) -> None:
        """Waits until so many more messages were answered 250."""
        wanted = len(self.ledger.ids()) + messages
        await until(lambda: len(self.ledger.ids()) >= wanted, f"{messages} more messages", timeout_s)

    async def _client(self, number: int) -> None:
        while not self._stopping:
            try:
                client = await Client.connect(self._port)
            except ConnectionError:
                self.ledger.refused.append("no connection")
                await asyncio.sleep(AGAIN_AFTER_S)
                continue
            try:
                if not client.greeting.startswith("220"):
                    self.ledger.refused.append(client.greeting)
                    await asyncio.sleep(AGAIN_AFTER_S)
                    continue
                self.ledger.sessions += 1
                await self._session(number, client)
            finally:
                client.close()

    async def _session(self, number: int, client: Client) -> None:
        if not self._goes_on(await client.say("EHLO client.test")):
            return
        sent = 0
        while not self._stopping and sent != self._per_session:
            entry = Entry(new_message_id(), number, time.time())
            self.ledger.entries.append(entry)
            entry.reply = await client.send(
                entry.message_id,
                sender=f"s{len(self.ledger.entries)}@a.test",
                body_bytes=self._body_bytes,
                pipelined=number % 2 == 1,
            )
            entry.ended = time.time()
            sent += 1
            if not self._goes_on(entry.reply):
                return
            if not entry.reply.startswith("250") and not self._goes_on(await client.say("RSET")):
                return
        await client.quit()

    def _goes_on(self, reply: str) -> bool:
        if reply.startswith("421"):
            self.ledger.dismissed += 1
        elif reply == LOST:
            self.ledger.cut += 1
        else:
            return True
        return False


def copies(servers: Iterable[Mta]) -> Counter[str]:
    """How often each Message-ID was taken, by all servers together."""
    return Counter(message.message_id for server in servers for message in server.accepted())


async def settle(ledger: Ledger, servers: Sequence[Mta]) -> Counter[str]:
    """Waits until each message answered 250 stands in a server's records, and compares.

    The law: answered 250 is one message at one server, answered 5xx is none; every other one is at most one.
    """
    wanted = set(ledger.ids())
    await until(
        lambda: wanted <= set(copies(servers)), f"records of {len(wanted)} messages answered 250", 30.0
    )
    taken = await asyncio.to_thread(copies, servers)
    twice = [message_id for message_id, count in taken.items() if count > 1]
    assert not twice, f"taken more than once: {twice}"
    known = {entry.message_id for entry in ledger.entries}
    assert set(taken) <= known, f"from nobody: {set(taken) - known}"
    bounced = set(ledger.ids("5")) & set(taken)
    assert not bounced, f"answered 5xx and taken: {bounced}"
    return taken
