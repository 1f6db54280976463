"""Messages over sessions at a time: as many as go, or at a fixed rate; how long each took.

Owns the count of messages and the clock. Invariant: at a fixed rate a message is due at a moment that was fixed beforehand; one
whose session was still busy then waits, and its wait counts (else a stall would hide behind the messages it holds up).
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.load.session import Session, Then

Step = tuple[bytes, int]  # what is said, and how many replies it gets


@dataclass(frozen=True, slots=True)
class Plan:
    """`rate`: messages a second in all, over so many sessions; None: each session sends when the last message is through."""

    port: int
    messages: int
    sessions: int
    size_bytes: int
    recipients: int = 1
    keep_sessions: bool = False
    pipelining: bool = False
    rate: float | None = None


def body(size_bytes: int) -> bytes:
    """With its terminator. Lines of 72 octets, none of which begins with a dot."""
    header = b"From: <a@a.test>\r\nSubject: bench\r\n\r\n"
    line = b"x" * 70 + b"\r\n"
    lines, rest = divmod(max(0, size_bytes - len(header)), len(line))
    return header + line * lines + b"x" * max(0, rest - 2) + b"\r\n.\r\n"


def steps(plan: Plan) -> list[Step]:
    """A message as Postfix's client says it: with PIPELINING everything up to DATA goes in one piece."""
    envelope = [b"MAIL FROM:<a@a.test>\r\n"]
    envelope += [b"RCPT TO:<b%d@b.test>\r\n" % number for number in range(plan.recipients)]
    envelope.append(b"DATA\r\n")
    first = [(b"".join(envelope), len(envelope))] if plan.pipelining else [(line, 1) for line in envelope]
    return [*first, (body(plan.size_bytes), 1)]


@dataclass(slots=True)
class Outcome:
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    cpu_s: float = 0.0  # of this process while it sent

    def figures(self) -> dict[str, object]:
        taken = sorted(self.latencies_s)
        return {
            "messages": len(taken),
            "duration_s": self.duration_s,
            "cpu_s": self.cpu_s,
            "errors": self.errors[:10],
            "latency_ms": {
                name: round(quantile(taken, part) * 1000, 4)
                for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
        }


def quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class Traffic:
    """One run of a plan."""

    def __init__(self, plan: Plan, context: ssl.SSLContext | None) -> None:
        self.plan = plan
        self.steps = steps(plan)
        self.outcome = Outcome()
        self._context = context
        self._left = plan.messages
        self._busy = plan.sessions
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        began, cpu_s = time.perf_counter(), time.process_time()
        senders = [Sender(self) for _ in range(self.plan.sessions)]
        for sender in senders:
            if self.plan.rate is None:
                sender.next()
            else:
                sender.begin(self.plan.sessions / self.plan.rate)
        await self._over
        self.outcome.duration_s = time.perf_counter() - began
        self.outcome.cpu_s = time.process_time() - cpu_s
        return self.outcome

    def take(self) -> bool:
        """Whether there is one more message to send; it then is the caller's."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def done(self) -> None:
        """A sender has no more to do."""
        self._busy -= 1
        if self._busy == 0 and not self._over.done():
            self._over.set_result(None)

    def connect(self, sender: Sender) -> None:
        def make() -> Session:
            return Session(self._context, sender.opened, sender.failed)

        task = self._loop.create_task(self._connect(make, sender))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, make: Callable[[], Session], sender: Sender) -> None:
        try:
            await self._loop.create_connection(make, "127.0.0.1", self.plan.port)
        except OSError as error:
            sender.failed(f"connect: {error.strerror}")

    def after(self, delay_s: float, then: Then) -> None:
        self._loop.call_later(delay_s, then)


class Sender:
    """One of the sessions at a time: message after message, in one connection or in one for each."""

    __slots__ = ("_began", "_due", "_every_s", "_session", "_step", "_traffic")

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._session: Session | None = None
        self._every_s: float | None = None
        self._due = self._began = 0.0
        self._step = 0

    def begin(self, every_s: float) -> None:
        """At a fixed rate: the first message at a random moment of the first interval."""
        self._every_s = every_s
        self._due = time.perf_counter() + random.uniform(0, every_s)
        self._wait()

    def _wait(self) -> None:
        """The loop's timers have whole milliseconds: waking up late is the load's delay, not the balancer's."""
        left_s = self._due - time.perf_counter()
        if left_s > 0:
            self._traffic.after(left_s, self._on_time)
        else:
            self.next(self._due)

    def _on_time(self) -> None:
        self.next()

    def next(self, began: float | None = None) -> None:
        if not self._traffic.take():
            self._leave()
            return
        self._began = time.perf_counter() if began is None else began
        if self._session is None:
            self._traffic.connect(self)
        else:
            self._say(0)

    def opened(self, session: Session) -> None:
        self._session = session
        self._say(0)

    def failed(self, reason: str) -> None:
        self._traffic.outcome.errors.append(reason)
        self._session = None
        self._traffic.done()

    def _say(self, step: int) -> None:
        assert self._session is not None
        self._step = step
        data, replies = self._traffic.steps[step]
        self._session.say(data, replies, self._answered)

    def _answered(self) -> None:
        if self._step + 1 < len(self._traffic.steps):
            self._say(self._step + 1)
            return
        self._traffic.outcome.latencies_s.append(time.perf_counter() - self._began)
        if self._traffic.plan.keep_sessions or self._session is None:
            self._go_on()
        else:
            session, self._session = self._session, None
            session.quit(self._go_on)

    def _go_on(self) -> None:
        if self._every_s is None:
            self.next()
        else:
            self._due += self._every_s
            self._wait()

    def _leave(self) -> None:
        if self._session is None:
            self._traffic.done()
        else:
            session, self._session = self._session, None
            session.quit(self._traffic.done)
