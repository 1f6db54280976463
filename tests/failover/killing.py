"""Traffic that must arrive while mail servers are killed: clients that try until they are told 250, and the books behind it.

Owns the clients, who is killed when, and the comparison of what clients heard, what servers took and what our log says.
Does not own the balancer: whatever listens on a port will do, HAProxy as well.
Invariant: each message has a Message-ID and a sender of its own; everything that was said about it is written down.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from tests.e2e.client import LOST, Client, copies, new_message_id, until
from tests.lab import Mta

TRIES = 8  # of one message; a client that has to come again does so at once


@dataclass(slots=True)
class Sent:
    """One message: `heard` is the word that ended each try. LOST: the connection ended, or could not be had."""

    serial: int
    message_id: str = field(default_factory=new_message_id)
    heard: list[str] = field(default_factory=list)
    took_s: float = 0.0  # all tries together

    @property
    def sender(self) -> str:
        return f"s{self.serial}@a.test"

    @property
    def arrived(self) -> bool:
        return self.heard[-1:] != [] and self.heard[-1].startswith("250")

    @property
    def errors(self) -> list[str]:
        return [reply for reply in self.heard if not reply.startswith("250")]


class Traffic:
    """`messages` over `sessions`; a session that is ended is opened again.

    per_session   messages before a client says QUIT and connects anew; None: as many as it can
    sources       addresses of 127.0.0.0/8, in turn
    """

    def __init__(
        self,
        port: int,
        *,
        messages: int,
        sessions: int = 20,
        body_bytes: int = 4000,
        per_session: int | None = None,
        sources: Sequence[str] = ("127.0.0.1",),
    ) -> None:
        self._port = port
        self._messages = messages
        self._sessions = sessions
        self._body_bytes = body_bytes
        self._per_session = per_session
        self._sources = sources
        self._serials = count()
        self.sent: list[Sent] = []
        self.opened = 0  # sessions
        self.duration_s = 0.0

    async def run(self) -> list[Sent]:
        began = time.monotonic()
        await asyncio.gather(*(self._session(number) for number in range(self._sessions)))
        self.duration_s = time.monotonic() - began
        return self.sent

    @property
    def arrived(self) -> int:
        return sum(sent.arrived for sent in self.sent)

    async def _session(self, number: int) -> None:
        client: Client | None = None
        here = 0
        try:
            while (serial := next(self._serials)) < self._messages:
                if client is not None and here == self._per_session:
                    await client.quit()
                    client = None
                here = 0 if client is None else here
                here += 1
                sent = Sent(serial)
                self.sent.append(sent)
                began = time.monotonic()
                while len(sent.heard) < TRIES and not sent.arrived:
                    client = await self._try(sent, client, number)
                sent.took_s = time.monotonic() - began
            if client is not None:
                await client.quit()
        finally:
            if client is not None:
                client.close()

    async def _try(self, sent: Sent, client: Client | None, number: int) -> Client | None:
        """The session for the next try; None if it was ended."""
        if client is None:
            client, refused = await self._open(number)
            if client is None:
                sent.heard.append(refused)
                return None
        reply = await client.send(
            sent.message_id,
            sender=sent.sender,
            body_bytes=self._body_bytes,
            pipelined=sent.serial % 2 == 1,
        )
        sent.heard.append(reply)
        if reply.startswith("250"):
            return client
        if reply == LOST or reply.startswith("421") or not (await client.say("RSET")).startswith("250"):
            client.close()
            return None
        return client

    async def _open(self, number: int) -> tuple[Client | None, str]:
        source = (self._sources[number % len(self._sources)], 0)
        try:
            streams = await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)
        except OSError:
            return None, LOST
        client = Client(*streams)
        reply = await client.reply()
        if reply.startswith("220"):
            self.opened += 1
            reply = await client.say("EHLO client.test")
        if reply.startswith("250"):
            return client, ""
        client.close()
        return None, reply


@dataclass(slots=True)
class Killer:
    """Kills the victims whole, one after the other, each `every_s`, and starts each again at once, until the traffic ends."""

    victims: Sequence[Mta]
    every_s: float
    kills: int = 0

    async def run(self, traffic: asyncio.Task[list[Sent]]) -> None:
        while True:
            began = time.monotonic()
            victim = self.victims[self.kills % len(self.victims)]
            await asyncio.to_thread(victim.kill_hard)
            self.kills += 1
            await asyncio.to_thread(victim.start)
            left_s = max(0.0, self.every_s - (time.monotonic() - began))
            if (await asyncio.wait([traffic], timeout=left_s))[0]:
                return


@dataclass(slots=True)
class Books:
    """What became of the messages. `doubled` counts by Message-ID what was taken more than once."""

    sent: list[Sent]
    errors: Counter[str]  # words heard, but for 250: first 40 characters, "lost" for a connection that ended
    lost: list[Sent]
    doubled: dict[str, int]
    never_arrived: list[Sent]

    def line(self) -> str:
        return (
            f"{len(self.sent)} messages, {sum(self.errors.values())} errors heard {dict(self.errors)}, "
            f"{len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.never_arrived)} never arrived"
        )


async def settled_books(sent: list[Sent], servers: Sequence[Mta]) -> Books:
    """Waits until every message that was answered 250 stands in the records of a server."""
    wanted = {each.message_id for each in sent if each.arrived}
    try:
        await until(lambda: wanted <= set(copies(servers)), f"records of {len(wanted)} messages", 30.0)
    except Exception:  # then some are lost: that is what the books are for
        pass
    taken = await asyncio.to_thread(copies, servers)
    heard = Counter(reply[:40] or "lost" for each in sent for reply in each.errors)
    return Books(
        sent,
        heard,
        [each for each in sent if each.arrived and each.message_id not in taken],
        {message_id: times for message_id, times in taken.items() if times > 1},
        [each for each in sent if not each.arrived],
    )


async def carry(traffic: Traffic, killer: Killer, servers: Sequence[Mta]) -> Books:
    """All of it: traffic under kills, then the books."""
    task = asyncio.create_task(traffic.run())
    try:
        await killer.run(task)
        return await settled_books(await task, servers)
    finally:
        task.cancel()
