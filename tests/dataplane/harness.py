"""The data plane on fake transports: synchronous, deterministic, with a clock that stands still.

Owns the worker under test, the far end of every fake connection, and what is looked at when a test ends (finish).
Does not own what is said: tests play the parties, or a ModelMta answers.
Invariant: between two calls of a test everything that could happen has happened.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import cast

from smtplb.dataplane.deadlines import TICK_S, Deadlines
from smtplb.dataplane.listener import Listener
from smtplb.dataplane.worker import Worker
from smtplb.messages import BackendState, FromWorker, WorkerReport
from smtplb.observe.ended import SessionEnded, TransactionEnded
from smtplb.observe.events import AttemptFailed, BackendBlamed, MailEvent, Notice
from smtplb.settings import Address
from tests.dataplane.fakes import NO_TIMER, FakeLoop, FakeSocket, FakeTransport, PendingConnect
from tests.dataplane.mta import OFFERS, ModelMta
from tests.dataplane.parties import Answering, Party, Peer, Site
from tests.dataplane.setup import Setup

LONG_S = 1100.0  # beyond every timeout of the default settings
STEP_S = 1.0


class Record:
    """What the worker told."""

    def __init__(self) -> None:
        self.messages: list[FromWorker | MailEvent] = []

    def of(self, kind: type) -> list[FromWorker | MailEvent]:
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def failures(self) -> list[str]:
        """AttemptFailed and BackendBlamed as dialogues write them: "A fault mail busy", "A blamed busy"."""
        lines = []
        for message in self.messages:
            if isinstance(message, AttemptFailed):
                lines.append(f"{message.backend} {message.outcome} {message.phase} {message.reason}")
            elif isinstance(message, BackendBlamed):
                lines.append(f"{message.backend} blamed {message.reason}")
        return lines

    @property
    def blamed(self) -> list[str]:
        return [message.backend for message in self.messages if isinstance(message, BackendBlamed)]

    @property
    def ended(self) -> list[TransactionEnded]:
        return [message for message in self.messages if isinstance(message, TransactionEnded)]

    @property
    def outcomes(self) -> list[str]:
        return [str(message.outcome) for message in self.ended]

    @property
    def session_reasons(self) -> list[str]:
        return [message.reason for message in self.messages if isinstance(message, SessionEnded)]

    def forget_bugs(self) -> None:
        """Those that the test wanted."""
        self.messages[:] = [message for message in self.messages if getattr(message, "what", "") != "bug"]

    @property
    def bugs(self) -> list[str]:
        return [
            f"{message.text}\n{message.fields.get('trace')}"
            for message in self.messages
            if isinstance(message, Notice) and message.what == "bug"
        ]


class FakeWire:
    """A Wire, and the far end of one FakeTransport. `split`: each byte that is said comes as a chunk of its own."""

    def __init__(self, loop: FakeLoop, peer: Peer, *, split: bool) -> None:
        self._loop = loop
        self.peer = peer
        self.split = split
        self.transport: FakeTransport | None = None

    @property
    def ours(self) -> FakeTransport:
        assert self.transport is not None
        return self.transport

    def say(self, data: bytes) -> None:
        if self.split:
            for at in range(len(data)):
                self.ours.deliver(data[at : at + 1])
        else:
            self.ours.deliver(data)

    def eof(self) -> None:
        self.ours.deliver_eof()

    def reset(self) -> None:
        self.ours.deliver_reset()

    def stall(self) -> None:
        self.ours.stall()

    def unstall(self) -> None:
        self.ours.unstall()

    def arrived(self, data: bytes) -> None:
        self.peer.heard(data)

    def over(self, *, aborted: bool) -> None:
        self.peer.over("aborted" if aborted else "closed")


class Client(Party):
    """A client of a FakeStage; each call runs until nothing is left to do."""

    def __init__(self, stage: FakeStage) -> None:
        super().__init__()
        self._stage = stage

    @property
    def transport(self) -> FakeTransport:
        assert isinstance(self.wire, FakeWire)
        return self.wire.ours

    def send(self, data: bytes | str) -> None:
        self.say(data.encode("latin-1") if isinstance(data, str) else data)
        self._stage.loop.settle()

    def ask(self, *lines: str) -> list[str]:
        """Send lines in one segment; all that was answered by then."""
        self.send("".join(line + "\r\n" for line in lines))
        return self.take_all()

    def one(self, line: str) -> str:
        answer = self.ask(line)
        assert len(answer) == 1, (line, answer)
        return answer[0]

    def hello(self) -> Client:
        assert self.take_all() == ["220 lb.test ESMTP"]
        assert self.ask("EHLO client.test")[-1] == "250 ENHANCEDSTATUSCODES"
        return self

    def message(self, *recipients: str, sender: str = "s@a.test", body: str = "hi\r\n") -> list[str]:
        """One transaction step by step; the reply to each RCPT, to DATA and to the end of data, as far as it got."""
        assert self.one(f"MAIL FROM:<{sender}>") == "250 2.1.0 Ok"
        answers = [self.one(f"RCPT TO:<{recipient}>") for recipient in recipients or ("r@b.test",)]
        answers.append(self.one("DATA"))
        if answers[-1].startswith("354"):
            self.send(body + ".\r\n")
            answers += self.take_all()
        return answers

    def eof(self) -> None:
        assert self.wire is not None
        self.wire.eof()
        self._stage.loop.settle()

    def reset(self) -> None:
        assert self.wire is not None
        self.wire.reset()
        self._stage.loop.settle()


class FakeStage:
    """See the module. Backends are named in `setup`; each is a ModelMta unless `answering` says otherwise."""

    def __init__(
        self,
        setup: Setup | None = None,
        *,
        answering: Callable[[str], Answering] | None = None,
        split: bool = False,
    ) -> None:
        self.setup = setup or Setup()
        self.split = split
        self.loop = FakeLoop()
        self.loop.connecting = self._connecting
        self.record = Record()
        self.wires: list[FakeWire] = []
        self.mtas: dict[str, ModelMta] = {}
        self.sites: dict[str, Site] = {}
        self.addresses = {name: Address("192.0.2.100", 2501 + at) for at, name in enumerate(self.setup.names)}
        for name in self.setup.names:
            self.sites[name] = Site(name, answering(name) if answering is not None else self._model(name))
        self.deadlines = Deadlines(self.loop.time, lambda delay_s, callback: NO_TIMER)
        self.generation = 0
        self.worker = Worker(
            self.loop.as_loop,
            self.deadlines,
            self.record.messages.append,
            self.record.messages.append,
            {"in": [cast("socket.socket", FakeSocket())]},
        )
        self.apply()

    def _model(self, name: str) -> ModelMta:
        mta = self.mtas[name] = ModelMta(name, OFFERS, later=self._later)
        return mta

    def _later(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(lambda: self.loop.call_soon(lambda: self.loop.call_soon(callback)))

    # -- what tests do -------------------------------------------------------------------------------

    def client(self) -> Client:
        client = Client(self)
        self.connect(client)
        return client

    def connect(self, peer: Peer) -> None:
        wire = FakeWire(self.loop, peer, split=self.split)
        protocol = self.loop.factories[0]()
        wire.transport = FakeTransport(self.loop, protocol, wire)
        self.wires.append(wire)
        self.loop.run(wire.transport.begin)
        self.loop.run(peer.connected, wire)

    def apply(self) -> None:
        """Tell the worker of the present settings and states."""
        self.generation += 1
        self.loop.run(self.worker.receive, self.setup.snapshot(self.generation, self.addresses))

    def set_state(self, name: str, state: BackendState) -> None:
        self.setup.states[name] = state
        self.apply()

    def receive(self, message: object) -> None:
        self.loop.run(self.worker.receive, message)

    def clock(self, seconds: float) -> None:
        """Let time pass. The wheel is turned where somebody waits in it, and nowhere between."""
        end = self.loop.now + seconds
        buckets = self.deadlines._buckets
        while buckets and (when := (min(buckets) + 0.5) * TICK_S) <= end:
            self.loop.now = max(self.loop.now, when)
            self.loop.run(self.deadlines.advance, self.loop.now)
        self.loop.now = end

    def report(self) -> WorkerReport:
        from smtplb.messages import ReportRequest

        self.receive(ReportRequest(1))
        report = self.record.messages[-1]
        assert isinstance(report, WorkerReport)
        return report

    @property
    def listener(self) -> Listener:
        return self.worker._listeners[0]

    def taken(self) -> dict[str, int]:
        """Messages by backend."""
        return {name: len(mta.taken) for name, mta in self.mtas.items()}

    # -- the end -------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold at any time."""
        assert not self.record.bugs, "\n".join(self.record.bugs)
        assert not self.loop.violations, self.loop.violations
        broken = {name: mta.broken for name, mta in self.mtas.items() if mta.broken}
        assert not broken, broken

    def finish(self) -> None:
        """Every client goes, time passes until nobody waits for anything: nothing may be left of anything."""
        self.check()
        for wire in self.wires:
            if isinstance(wire.peer, Party) and wire.transport is not None and not wire.transport.lost:
                wire.unstall()
                wire.reset()
        self.loop.settle()
        end = self.loop.now + LONG_S
        self.clock(STEP_S)  # at least two pulses of the worker
        while self._who_waits() and self.loop.now < end:
            self.clock(STEP_S)
        self.check()
        assert not self.listener.sessions
        router = self.worker._router
        assert router is not None
        for pool in router.pools.values():
            for backend in pool.backends.values():
                left = {
                    "idle": backend._idle,
                    "bound": backend._bound,
                    "leased": backend._leased,
                    "connecting": backend._connecting,
                    "resetting": backend._resetting,
                    "quitting": backend._quitting,
                    "seekers": backend._seekers,
                }
                assert not any(left.values()), (backend.key, {k: v for k, v in left.items() if v})
        budget = self.listener.context.replay_budget
        assert (budget.used_memory_bytes, budget.used_file_bytes) == (0, 0)
        assert not self._who_waits()
        open_wires = [wire for wire in self.wires if wire.transport is not None and not wire.transport.lost]
        assert not open_wires, "connections left open"
        started = sum(session.transactions for session in self._session_ends())
        assert started == len(self.record.ended), "each transaction ends exactly once"

    def _who_waits(self) -> list[object]:
        """In the wheel, but for the worker's own pulse, which never ends."""
        return [w for bucket in self.deadlines._buckets.values() for w in bucket if w is not self.worker]

    def _session_ends(self) -> Iterable[SessionEnded]:
        return [message for message in self.record.messages if isinstance(message, SessionEnded)]

    # -- connects ------------------------------------------------------------------------------------

    def _connecting(self, pending: PendingConnect) -> None:
        name = next(
            name
            for name, address in self.addresses.items()
            if (address.host, address.port) == pending.address
        )
        site = self.sites[name]
        site.count += 1
        if site.connects == "refuse":
            pending.refuse()
        elif site.connects == "accept":
            peer = site.answering.session()
            wire = FakeWire(self.loop, peer, split=self.split)
            self.wires.append(wire)
            wire.transport = pending.succeed(wire)
            self.loop.call_soon(lambda: self.loop.call_soon(peer.connected, wire))
