"""Several sessions at once before backends with few connections, in random trouble, by seed: who waits, who is moved, who leaves.

test_campaign.py has one session at a time and looks at every way to say a message; here transactions meet in the queue, take each
other's connections and are interrupted while they wait. The same laws: the ledger, replies in step, nothing left behind.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from random import Random

import pytest

from smtplb.messages import BackendState
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.ledger import Told, check
from tests.dataplane.mta import OFFERS, Fault, stuffed
from tests.dataplane.setup import Setup
from tests.effort import seeds

ACTS = (
    *("close", "reset", "hang", "garbage", "half", "extra", "then close", "then reset"),
    *("421 4.3.2 x", "421 4.7.0 x", "450 4.2.0 x", "451 4.3.0 x", "452 4.3.1 x", "554 x", "503 5.5.1 x"),
)
PLACES = ("greeting", "hello", "mail", "rcpt", "data", "body", "final", "rset")
LINE = b"x" * 70 + b"\r\n"
PATIENCE = 60  # times that nothing moves but the clock

Life = Generator[int, list[str], None]  # wants so many replies, and gets them; fewer once the session is over


@dataclass
class Message:
    told: Told
    complete: bool = False  # its client has said all of it


class Somebody:
    """One client, whose life stops wherever it waits for a reply."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.number = number
        self.client: Client = crowd.stage.client().hello()
        self.heard: list[str] = []
        self.messages: list[Message] = []
        self.life = self.live()
        self.wants = next(self.life, -1)
        self.over = self.wants < 0

    def step(self) -> bool:
        """False: it waits."""
        self.heard += self.client.take_all()
        if len(self.heard) < self.wants and not self.client.ended:
            return False
        got, self.heard = self.heard[: self.wants], self.heard[self.wants :]
        try:
            self.wants = self.life.send(got)
        except StopIteration:
            self.over = True
        return True

    def say(self, data: bytes) -> None:
        if not self.client.ended:
            self.client.say(data)
            self.crowd.stage.loop.settle()

    def live(self) -> Life:
        random = self.crowd.random
        for serial in range(random.randint(1, 4)):
            body = b"id %d\r\n" % serial + LINE * random.choice((0, 3, 2000, 6000))
            message = Message(Told(f"s{self.number}-{serial}@a.test", body))
            self.messages.append(message)
            if not (yield from self.transaction(message)) or self.client.ended:
                return
        self.say(b"QUIT\r\n")
        yield 1

    def transaction(self, message: Message) -> Generator[int, list[str], bool]:
        """False: the session is over, or was left."""
        random, told = self.crowd.random, message.told
        recipients = [f"r{number}@b.test" for number in range(random.choice((1, 2)))]
        chunked = random.random() < 0.4
        commands = [f"MAIL FROM:<{told.sender}>", *(f"RCPT TO:<{each}>" for each in recipients)]
        self.say("".join(command + "\r\n" for command in commands).encode())
        if random.random() < 0.05:
            self.leave(random.choice(("reset", "eof")))
            return False
        answers = yield len(commands)
        if len(answers) < len(commands):
            return False
        told.recipients = dict(zip(recipients, answers[1:], strict=True))
        if random.random() < 0.1 or not told.accepted:
            self.say(b"RSET\r\n")
            return (yield 1) == ["250 2.0.0 Ok"]
        if not chunked:
            self.say(b"DATA\r\n")
            if random.random() < 0.05:
                self.leave("reset")
                return False
            answers = yield 1
            told.last = (answers or [""])[0]
            if not told.last.startswith("354"):
                return bool(answers)
            told.last = ""
            return (yield from self.content(message, stuffed(told.body) + b".\r\n"))
        return (yield from self.content(message, b"BDAT %d LAST\r\n%s" % (len(told.body), told.body)))

    def content(self, message: Message, wire: bytes) -> Generator[int, list[str], bool]:
        random = self.crowd.random
        while len(wire) > 3:
            if random.random() < 0.03:
                self.leave(random.choice(("reset", "eof")))
                return False
            at = random.choice((len(wire), random.randrange(1, len(wire))))
            message.complete = at == len(wire)
            self.say(wire[:at])
            wire = wire[at:]
            yield 0
        if wire:
            message.complete = True
            self.say(wire)
        if random.random() < 0.08:
            how = random.choice(("reset", "eof"))
            self.leave(how)
            if how == "reset":
                return False
        answers = yield 1
        message.told.last = (answers or [""])[0]
        return bool(answers) and not message.told.last.startswith("421")

    def leave(self, how: str) -> None:
        if not self.client.ended:
            (self.client.reset if how == "reset" else self.client.eof)()


class Crowd:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.how_often = random.choice((0.1, 0.4, 0.9))
        self.names = "ABD"[: random.randint(1, 3)]
        limit = random.choice((1, 1, 2, 3, None))
        idle = random.choice((0, 1, 32))
        self.stage = FakeStage(
            Setup(
                pools={"p": " ".join(self.names)},
                limits={"errors": 1000, "idle_timeout_s": 5000.0},
                attempts=random.choice((1, 2, 3)),
                max_connections=limit,
                queue={"length": random.choice((1, 3, 500)), "timeout_s": random.choice((10.0, 200.0))},
                keep={
                    "idle": idle,
                    "warm": min(idle, random.choice((0, 0, 2))),
                    "max_transactions": random.choice((1, 3, 1000)),
                },
                replay={"memory_bytes": 100_000, "per_message_bytes": random.choice((200_000, 10_000_000))},
            )
        )
        for mta in self.stage.mtas.values():
            mta.offers = random.choice((OFFERS, (*OFFERS, "CHUNKING"), (*OFFERS, "CHUNKING"), OFFERS[1:]))
        self.everybody = [Somebody(self, number) for number in range(random.randint(2, 6))]

    def trouble(self) -> None:
        random = self.random
        name = random.choice(self.names)
        mta, site = self.stage.mtas[name], self.stage.sites[name]
        match random.randrange(10):
            case 0 | 1 | 2 | 3 | 4:
                place, act = random.choice(PLACES), random.choice(ACTS)
                if place == "rset" and not act[0].isdigit():
                    act = "close"
                taken = act in ("close", "reset", "hang", "half") and random.random() < 0.5
                mta.faults.append(Fault(place, act, times=random.choice((1, 2)), taken=taken))
            case 5:
                site.connects = random.choice(("refuse", "hang"))
            case 6:
                sessions = [session for session in mta.sessions if session.wire and not session.deaf]
                if sessions:
                    random.choice(sessions)._close()
            case 7:
                self.stage.set_state(name, random.choice((BackendState.DOWN, BackendState.DRAIN)))
            case _:
                self.all_is_well(name)
        self.stage.loop.settle()

    def all_is_well(self, name: str) -> None:
        self.stage.mtas[name].faults.clear()
        self.stage.sites[name].connects = "accept"
        self.stage.set_state(name, BackendState.UP)

    def run(self) -> None:
        random, waited = self.random, 0
        while alive := [each for each in self.everybody if not each.over]:
            random.shuffle(alive)
            moved = [each.step() for each in alive]
            if random.random() < self.how_often:
                self.trouble()
            if any(moved):
                waited = 0
                continue
            waited += 1
            assert waited < PATIENCE, [(each.number, each.wants, each.heard) for each in alive]
            self.stage.clock(random.choice((0.5, 5.0, 30.0, 300.0)))
        self.stage.clock(1000.0)
        for name in self.names:  # so that nothing is kept warm
            self.stage.set_state(name, BackendState.DRAIN)
        for each in self.everybody:
            for message in each.messages:
                check(self.stage, message.told, may_be_in_doubt=message.complete)
        self.stage.finish()


@pytest.mark.campaign
@pytest.mark.parametrize("seed", seeds(200))
def test_seed(seed: int) -> None:
    Crowd(seed).run()
