"""Random sessions against random trouble, by seed: the ledger holds, replies stay in step, nothing is left behind.

A seed fixes everything: backends and what they offer, faults that come and go, how the client groups and splits what it
says, when it half-closes, resets or dawdles, flow control, drains. A failure names its seed.
"""

from __future__ import annotations

from random import Random

import pytest

from smtplb.messages import BackendState
from tests.dataplane.harness import Client, FakeStage, FakeWire
from tests.dataplane.ledger import Told, check
from tests.dataplane.mta import OFFERS, Fault, stuffed
from tests.dataplane.setup import Setup
from tests.effort import seeds

ACTS = (
    *("close", "reset", "hang", "garbage", "half", "extra", "early"),
    *("421 4.3.2 x", "421 4.7.0 x", "450 4.2.0 x", "451 4.3.0 x", "452 4.3.1 x"),
    *("550 5.1.1 x", "554 x", "503 5.5.1 x", "250 x", "354 x"),
)
IN_DOUBT = ("close", "reset", "hang", "garbage", "half", "354", "421 4.3.2", "451 4.3.0")  # may have taken it
PLACES = ("greeting", "hello", "mail", "rcpt", "data", "body", "final", "rset", "quit")


class Campaign:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.names = "ABD"[: random.randint(1, 3)]
        self.stage = FakeStage(
            Setup(
                pools={"p": " ".join(self.names)},
                limits={"errors": 1000, "idle_timeout_s": 5000.0},
                attempts=random.choice((1, 2, 3, 3)),
                keep={"idle": random.choice((0, 1, 32)), "max_transactions": random.choice((1, 3, 1000))},
            ),
            split=random.random() < 0.1,
        )
        for mta in self.stage.mtas.values():
            mta.offers = random.choice((OFFERS, (*OFFERS, "CHUNKING"), OFFERS[1:], ("CHUNKING",), (), None))
            mta.takes_data_for_nobody = random.random() < 0.3
            mta.verdicts = {"unknown@b.test": "550 5.1.1 unknown", "grey@b.test": "450 4.2.0 grey"}
        self.told: list[Told] = []
        self.chunked: set[str] = set()  # senders of messages that go by BDAT
        self.serial = 0

    def trouble(self) -> None:
        """Faults come and go."""
        random = self.random
        for name, mta in self.stage.mtas.items():
            site = self.stage.sites[name]
            if random.random() < 0.5:
                mta.faults.clear()
                site.connects = "accept"
            if random.random() < 0.35:
                place, act = random.choice(PLACES), random.choice(ACTS)
                if (place, act[0]) in (("mail", "3"), ("rcpt", "3")):
                    act = "334 what"
                if act == "early" and place != "body":
                    act = "close"
                if place in ("rset", "quit") and not act[0].isdigit():
                    act = random.choice(("close", "reset", "hang"))
                taken = act.startswith(IN_DOUBT) and random.random() < 0.5
                mta.faults.append(Fault(place, act, times=random.choice((1, 2, None)), taken=taken))
            elif random.random() < 0.1:
                site.connects = random.choice(("refuse", "hang"))
            if random.random() < 0.1 and mta.sessions and mta.sessions[-1].wire is not None:
                mta.sessions[-1]._close()
            if random.random() < 0.1:
                self.stage.set_state(name, random.choice((BackendState.DOWN, BackendState.DRAIN)))
            elif random.random() < 0.5:
                self.stage.set_state(name, BackendState.UP)
            if random.random() < 0.1:
                self.stall(mta.sessions[-1].wire if mta.sessions else None)
        self.stage.loop.settle()

    def stall(self, wire: object) -> None:
        if isinstance(wire, FakeWire) and not wire.ours.lost:
            wire.stall()

    def unstall(self) -> None:
        for wire in self.stage.wires:
            if wire.transport is not None and wire.transport.stalled:
                wire.unstall()
        self.stage.loop.settle()

    # -- the client ----------------------------------------------------------------------------------

    def send(self, client: Client, data: bytes) -> None:
        random = self.random
        if random.random() < 0.5 and data:
            cuts = sorted(random.randrange(len(data)) for _ in range(random.randint(1, 4)))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                client.say(data[start:end])
                if random.random() < 0.3:
                    self.stage.loop.settle()
        else:
            client.say(data)
        self.stage.loop.settle()

    def hear(self, client: Client, count: int) -> list[str]:
        """`count` replies, with patience; fewer only if the session was ended."""
        heard = client.take_all()
        for _ in range(40):
            if len(heard) >= count or client.ended:
                break
            self.unstall()
            self.stage.clock(100.0)
            heard += client.take_all()
        assert len(heard) == count or client.ended, (count, heard)
        return heard

    def body(self) -> bytes:
        random = self.random
        sizes = (0, 10, 100, 5000, 100_000, 300_000, 700_000)
        size = random.choice(sizes[:3] if self.stage.split else sizes)
        line = b"x" * random.choice((20, 70, 998)) + b"\r\n"
        body = (line * (size // len(line) + 1))[:size]
        body += b"" if not body or body.endswith(b"\r\n") else b"\n" if body.endswith(b"\r") else b"\r\n"
        return random.choice((b"", b".\r\n", b".x\r\n..\r\n")) + body

    def envelope(self) -> tuple[Told, list[str]]:
        """A new transaction and its commands."""
        random = self.random
        self.serial += 1
        told = Told(f"s{self.serial}@a.test", self.body())
        self.told.append(told)
        recipients = [
            random.choice(("unknown", "grey", f"r{n}", f"r{n}", f"r{n}")) + "@b.test"
            for n in range(random.choice((1, 1, 2, 5)))
        ]
        recipients = list(dict.fromkeys(recipients))
        commands = [f"MAIL FROM:<{told.sender}>", *(f"RCPT TO:<{r}>" for r in recipients)]
        if random.random() < 0.25:
            self.chunked.add(told.sender)
        else:
            commands.append("DATA")
        if random.random() < 0.2:
            commands.insert(random.randrange(len(commands)), "NOOP")
        return told, commands

    def transactions(self, client: Client) -> bool:
        """One, and those that were pipelined behind it. False if the session is over."""
        told, commands = self.envelope()
        answers = self.say_commands(client, commands)
        while self.heard_envelope(client, told, commands, answers):
            told.last = ""
            self.meanwhile()
            if told.sender in self.chunked:
                return self.say_chunks(client, told)
            if self.random.random() < 0.3:
                said, (told, commands) = told, self.envelope()
                heard = self.say_group(client, said, commands)
                if client.ended:
                    return False
                said.last, *answers = heard
            else:
                return self.say_body(client, told)
        return not client.ended

    def say_group(self, client: Client, told: Told, commands: list[str]) -> list[str]:
        """The body, and the next transaction's commands behind the dot in the same segment."""
        group = "".join(command + "\r\n" for command in commands).encode()
        self.send(client, stuffed(told.body) + b".\r\n" + group)
        return self.hear(client, 1 + len(commands))

    def heard_envelope(self, client: Client, told: Told, commands: list[str], answers: list[str]) -> bool:
        """True if the body is wanted."""
        if client.ended:
            return False
        for command, answer in zip(commands, answers, strict=True):
            if command.startswith("RCPT"):
                told.recipients[command[9:-1]] = answer
            elif command.startswith("MAIL"):
                assert answer == "250 2.1.0 Ok", answers
            elif command == "NOOP":
                assert answer == "250 2.0.0 Ok", answers
        if told.sender in self.chunked:
            return True
        told.last = answers[-1]
        return told.last.startswith("354")

    def say_commands(self, client: Client, commands: list[str]) -> list[str]:
        if self.random.random() < 0.5:
            self.send(client, "".join(command + "\r\n" for command in commands).encode())
            return self.hear(client, len(commands))
        answers = []
        for command in commands:
            self.send(client, command.encode() + b"\r\n")
            answers += self.hear(client, 1)
            if client.ended:
                break
            self.meanwhile()
        return answers

    def meanwhile(self) -> None:
        if self.random.random() < 0.05:
            self.stage.clock(self.random.choice((1.0, 70.0, 290.0)))
        if self.random.random() < 0.05:
            self.trouble()

    def say_body(self, client: Client, told: Told) -> bool:
        random = self.random
        wire = stuffed(told.body) + b".\r\n"
        ending = random.choices(("stay", "reset", "eof", "reset late", "eof late"), (90, 3, 3, 2, 2))[0]
        if ending in ("reset", "eof"):
            self.send(client, wire[: random.randrange(len(wire) - 2)])
            self.leave(client, ending)
            return False
        if random.random() < 0.3:
            at = random.randrange(len(wire))
            self.send(client, wire[:at])
            self.meanwhile()
            wire = wire[at:]
        if ending == "stay":
            self.send(client, wire)
            told.last = (self.hear(client, 1) or [""])[0]
            return not client.ended
        client.say(wire)
        if ending == "reset late":
            assert client.wire is not None
            client.wire.reset()
            self.stage.loop.settle()
            return False
        assert client.wire is not None
        client.wire.eof()
        self.stage.loop.settle()
        told.last = (self.hear(client, 1) or [""])[0]
        return False

    def say_chunks(self, client: Client, told: Told) -> bool:
        """By BDAT: all at once, or each when the last one was answered."""
        random, body = self.random, told.body
        cuts = sorted(random.randint(0, len(body)) for _ in range(random.choice((0, 1, 3, 8))))
        pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        commands = [
            b"BDAT %d%s\r\n%s" % (len(piece), b" LAST" if at == len(pieces) - 1 else b"", piece)
            for at, piece in enumerate(pieces)
        ]
        if random.random() < 0.1:
            whole = b"".join(commands)
            self.send(client, whole[: random.randrange(len(whole))])
            self.leave(client, random.choice(("reset", "eof")))
            return False
        if random.random() < 0.5:
            self.send(client, b"".join(commands))
            told.last = (self.hear(client, len(commands)) or [""])[-1]
        else:
            for command in commands:
                self.send(client, command)
                told.last = (self.hear(client, 1) or [""])[0]
                if client.ended or not told.last.startswith("250"):
                    break
                self.meanwhile()
        if client.ended:
            return False
        if not told.last.startswith("2"):
            self.send(client, b"RSET\r\n")
            assert self.hear(client, 1) == ["250 2.0.0 Ok"] or client.ended
        return not client.ended

    def leave(self, client: Client, how: str) -> None:
        assert client.wire is not None
        (client.wire.reset if how == "reset" else client.wire.eof)()
        self.stage.loop.settle()

    def run(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            if all(
                self.stage.setup.states.get(n, BackendState.UP) is not BackendState.UP for n in self.names
            ):
                self.stage.set_state("A", BackendState.UP)
            client = self.stage.client().hello()
            for _ in range(self.random.randint(1, 6)):
                if not self.transactions(client):
                    break
                self.trouble()
        self.unstall()
        self.stage.clock(1000.0)
        for told in self.told:
            check(self.stage, told, may_be_in_doubt=True)
        self.stage.finish()


@pytest.mark.campaign
@pytest.mark.parametrize("seed", seeds(200))
def test_seed(seed: int) -> None:
    Campaign(seed).run()
