"""Plays a dialogue file on a stage, fake or real, and says where it went otherwise.

Owns the order of items and what each lane expects. Does not own transports (harness.py, sockets.py) or the format (script.py).
Invariant: every line that a lane hears is expected by the file, and every event of a failed attempt is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from smtplb.messages import BackendState, DrainSessions, StopAccepting
from tests.dataplane.harness import Record
from tests.dataplane.mta import OFFERS
from tests.dataplane.parties import Party, Peer, Site
from tests.dataplane.script import CLIENT, Item, Script

T = TypeVar("T")
_STATES = {
    "up": BackendState.UP,
    "drain": BackendState.DRAIN,
    "maint": BackendState.MAINT,
    "down": BackendState.DOWN,
}


class Theatre(Protocol):
    """A stage as the player needs it. `until` waits for an answer other than None: a fake stage has it at once or never."""

    record: Record
    sites: dict[str, Site]

    async def open(self, peer: Peer) -> None: ...

    async def until(self, ready: Callable[[], T | None]) -> T | None: ...

    async def connects(self, name: str, how: str) -> None: ...

    def clock(self, seconds: float) -> None: ...

    def set_state(self, name: str, state: BackendState) -> None: ...

    def receive(self, message: object) -> None: ...


class Mismatch(AssertionError):
    pass


class Lane:
    """One backend as its dialogue plays it: greets and answers EHLO and QUIT by itself."""

    def __init__(self, name: str, script: Script, told: Callable[[], None]) -> None:
        self.name = name
        self.by_hand = name in script.by_hand
        self.offers = script.offers.get(name, OFFERS)
        self.told = told
        self.heard: deque[tuple[LaneConnection, str]] = deque()
        self.connections: list[LaneConnection] = []
        self.present: LaneConnection | None = None  # where the last line was heard that the file expected
        self.quits_expected = sum(
            1 for item in script.items if item.lane == name and item.kind == "<" and item.text == "QUIT"
        )

    def session(self) -> LaneConnection:
        connection = LaneConnection(self)
        self.connections.append(connection)
        if self.by_hand:
            self.present = connection
        return connection


class LaneConnection(Party):
    def __init__(self, lane: Lane) -> None:
        super().__init__(lane.told)
        self._lane = lane
        self._in_body = False

    def connected(self, wire: object) -> None:
        super().connected(wire)  # type: ignore[arg-type]
        if not self._lane.by_hand:
            self.say(b"220 %s ESMTP\r\n" % self._lane.name.encode())

    def say(self, data: bytes) -> None:
        if data.startswith(b"354"):
            self._in_body = True
        super().say(data)

    def heard(self, data: bytes) -> None:
        super().heard(data)
        while (line := self.take_line()) is not None:
            self._line(line.decode("latin-1"))
        self._told()

    def _line(self, line: str) -> None:
        lane = self._lane
        if self._in_body:
            self._in_body = line != "."
        elif not lane.by_hand and line.startswith("EHLO "):
            self._hello()
            return
        elif not lane.by_hand and line.startswith("HELO "):
            self.say(b"250 %s\r\n" % lane.name.encode())
            return
        elif line == "QUIT" and not lane.quits_expected:
            self.say(b"221 2.0.0 bye\r\n")
            assert self.wire is not None
            self.wire.eof()
            return
        elif line == "QUIT":
            lane.quits_expected -= 1
        lane.heard.append((self, line))

    def _hello(self) -> None:
        offers = self._lane.offers
        if offers is None:
            self.say(b"502 5.5.1 HELO, please\r\n")
            return
        lines = [self._lane.name, *offers]
        self.say(
            "".join(
                f"250{' ' if at == len(lines) - 1 else '-'}{text}\r\n" for at, text in enumerate(lines)
            ).encode()
        )


class Player:
    def __init__(
        self,
        script: Script,
        theatre: Theatre,
        lanes: dict[str, Lane],
        client: Party,
        *,
        glued: bool = False,
        cut_anywhere: bool = False,
    ) -> None:
        self._script = script
        self._theatre = theatre
        self._lanes = lanes
        self._client = client
        self._failures_seen = 0
        self._ended_seen = 0
        # What a party says at a stretch may come in one segment.
        self._grouped = glued or cut_anywhere
        self._data_said = False
        self._due: deque[Item] = deque()  # what the client is to hear and did not yet
        self._items = glued_items(script.items) if glued else list(script.items)

    async def play(self) -> None:
        await self._theatre.open(self._client)
        if CLIENT not in self._script.by_hand:
            await self._client_hears(Item("<", CLIENT, "220 lb.test ESMTP", 0))
            self._client.say(b"EHLO client.test\r\n")
            while not (await self._client_line(Item("<", CLIENT, "the reply to EHLO", 0))).startswith("250 "):
                pass
        for item in self._items:
            await self._do(item)
        await self._theatre.until(lambda: True)
        await self._hear_due(all_of_it=True)
        for lane in self._lanes.values():
            await self._refuse_data(lane)
        self.check_quiet()

    def check_quiet(self) -> None:
        if not self._quiet:
            raise self._error(Item("", "", "", 0), "at the end there is more than was expected")

    @property
    def _quiet(self) -> bool:
        return (
            not self._client.buffer
            and not any(lane.heard for lane in self._lanes.values())
            and self._failures_seen == len(self._theatre.record.failures)
        )

    async def _do(self, item: Item) -> None:
        if item.kind in (">", ">>"):
            data = item.text.encode("latin-1") + (b"\r\n" if item.kind == ">" else b"")
            await self._say(item, data)
        elif item.kind == "=":
            await self._event(item)
        elif item.kind == "!":
            await self._fault(item)
        elif item.lane == CLIENT:
            await self._hear_client(item)
        else:
            await self._hear_backend(item)

    async def _say(self, item: Item, data: bytes) -> None:
        speaker: Party | None = self._client
        if item.lane == CLIENT:
            await self._hear_due(all_of_it=True)
            self._data_said = "DATA" in item.text
        else:
            lane = self._lanes[item.lane]
            speaker = await self._theatre.until(
                lambda: lane.present if lane.present is not None and lane.present.wire is not None else None
            )
        if speaker is None:
            raise self._error(item, f"{item.lane} has no connection to say it on")
        speaker.say(data)
        await self._theatre.until(lambda: True)

    # -- hearing -------------------------------------------------------------------------------------

    async def _hear_client(self, item: Item) -> None:
        """A client that has said all up to DATA at once may hear the answers together, if before it says more."""
        self._due.append(item)
        await self._hear_due(all_of_it=not (self._grouped and self._data_said))

    async def _hear_due(self, *, all_of_it: bool) -> None:
        while self._due and (all_of_it or self._client.buffer or self._client.ended):
            await self._client_hears(self._due.popleft())

    async def _client_hears(self, item: Item) -> None:
        if item.text.startswith("["):
            await self._over(item, self._client)
            return
        line = await self._client_line(item)
        if not matches(item.text, line):
            raise self._error(item, f"the client heard {line!r}")

    async def _client_line(self, item: Item) -> str:
        line = await self._theatre.until(self._client.take_line)
        if line is None:
            raise self._error(item, "the client heard nothing more")
        return line.decode("latin-1")

    async def _hear_backend(self, item: Item) -> None:
        lane = self._lanes[item.lane]
        if item.text.startswith("["):
            present = await self._theatre.until(lambda: lane.present)
            if present is None:
                raise self._error(item, f"{lane.name} has no connection")
            await self._over(item, present)
            return
        heard = await self._theatre.until(lambda: lane.heard.popleft() if lane.heard else None)
        if heard is None:
            raise self._error(item, f"{lane.name} heard nothing more")
        lane.present, line = heard
        if line == "DATA" and item.text != line and self._grouped:
            lane.heard.appendleft(heard)
            await self._refuse_data(lane)
            await self._hear_backend(item)
            return
        if not matches(item.text, line):
            raise self._error(item, f"{lane.name} heard {line!r}")

    async def _refuse_data(self, lane: Lane) -> None:
        """In a group DATA comes along with RCPT: where it is not in the file, that had no recipient left for it."""
        if self._grouped and lane.heard and lane.heard[0][1] == "DATA":
            connection, _ = lane.heard.popleft()
            connection.say(b"503 5.5.1 RCPT first\r\n")
            await self._theatre.until(lambda: True)

    async def _over(self, item: Item, party: Party) -> None:
        ended = await self._theatre.until(lambda: party.ended or None)
        if ended is None:
            raise self._error(item, "the connection is still open")
        if ended != "either" and item.text != f"[{ended}]":
            raise self._error(item, f"the connection was {ended}")

    async def _event(self, item: Item) -> None:
        record = self._theatre.record
        if item.text.startswith("ended "):
            seen = self._ended_seen
            told = await self._theatre.until(
                lambda: record.outcomes[seen] if len(record.outcomes) > seen else None
            )
            self._ended_seen += 1
            if told != item.text.removeprefix("ended "):
                raise self._error(item, f"the transaction ended {told}")
            return
        seen = self._failures_seen
        told = await self._theatre.until(
            lambda: record.failures[seen] if len(record.failures) > seen else None
        )
        self._failures_seen += 1
        if told != item.text:
            raise self._error(item, f"told was {told!r}")

    # -- faults --------------------------------------------------------------------------------------

    async def _fault(self, item: Item) -> None:
        theatre, name, argument = self._theatre, item.lane, item.text
        if name == "clock":
            theatre.clock(float(argument))
        elif name == "stop":
            theatre.receive(StopAccepting())
            theatre.receive(DrainSessions(float(argument)))
        elif name in _STATES:
            theatre.set_state(argument, _STATES[name])
        elif name in ("refuse", "accept", "hang"):
            await theatre.connects(argument, name)
        else:
            party = self._client if argument == CLIENT else self._lanes[argument].present
            if party is None or party.wire is None:
                raise self._error(item, f"{argument} has no connection")
            if name == "reset":
                party.wire.reset()
            else:
                party.wire.eof()
        await theatre.until(lambda: True)

    def _error(self, item: Item, what: str) -> Mismatch:
        rest = {name: [line for _, line in lane.heard] for name, lane in self._lanes.items()}
        expected = f"expected {item.lane}{item.kind} {item.text!r}: " if item.text else ""
        return Mismatch(
            f"{self._script.path}:{item.line}: {expected}{what}\n"
            f"  not taken yet: client {self._client.buffer!r}, backends {rest}, "
            f"told {self._theatre.record.failures[self._failures_seen :]}"
        )


def matches(pattern: str, line: str) -> bool:
    return line.startswith(pattern[:-2]) if pattern.endswith("..") else line == pattern


def glued_items(items: list[Item]) -> list[Item]:
    """All that a party says at a stretch as one segment.

    The client waits for nothing but faults and events; a backend for all that it or somebody else hears or says.
    """
    glued: list[Item] = []
    open_at: dict[str, int] = {}  # lane -> where in `glued` its present segment is
    for item in items:
        if item.kind in ("!", "="):
            open_at.clear()
        elif item.kind in (">", ">>"):
            text = item.text + ("\r\n" if item.kind == ">" else "")
            at = open_at.get(item.lane)
            if item.lane == CLIENT:
                open_at = {lane: where for lane, where in open_at.items() if lane == CLIENT}
            if at is not None:
                glued[at] = Item(">>", item.lane, glued[at].text + text, glued[at].line)
                continue
            open_at[item.lane] = len(glued)
            item = Item(">>", item.lane, text, item.line)
        elif item.lane != CLIENT:
            open_at.pop(item.lane, None)
        glued.append(item)
    return glued
