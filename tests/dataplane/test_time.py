"""Whose time it is (design 4.14): the client's budget, the backend's timeouts, and what is left for the others."""

from __future__ import annotations

import pytest

from smtplb.dataplane import deadlines
from smtplb.dataplane.deadlines import NEVER, TICK_S, Deadlines
from tests.dataplane.fakes import NO_TIMER
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.parties import Party
from tests.dataplane.setup import Setup

LATE_S = 0.4  # the wheel tells at most two ticks late, twice in a row


def answer_after(stage: FakeStage, client: Client) -> tuple[float, list[str]]:
    """How long until something is heard."""
    began = stage.loop.now
    while not client.buffer:
        assert stage.loop.now - began < 2000.0
        stage.clock(0.1)
    return stage.loop.now - began, client.take_all()


@pytest.mark.parametrize(
    ("backends", "after_s"),
    [("A", 270.0), ("A B", 270.0), ("A B D", 202.5)],  # the third is not asked: two alike
)
def test_rcpt_is_answered_within_its_budget_whoever_is_silent(backends: str, after_s: float) -> None:
    stage = FakeStage(Setup(pools={"p": backends}, limits={"idle_timeout_s": 900.0}))
    for mta in stage.mtas.values():
        mta.faults.append(Fault("mail", "hang"))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    took, heard = answer_after(stage, client)
    assert heard == ["451 4.4.2 Connection to the mail server was lost, try again later"]
    assert took == pytest.approx(after_s, abs=LATE_S)
    assert stage.record.blamed == []
    stage.finish()


@pytest.mark.parametrize(("backends", "after_s"), [("A", 100.0), ("A B", 50.0)])
def test_data_is_answered_within_its_budget(backends: str, after_s: float) -> None:
    stage = FakeStage(Setup(pools={"p": backends}))
    stage.mtas["A"].faults.append(Fault("data", "hang"))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")
    took, heard = answer_after(stage, client)
    assert heard[0].startswith("354" if len(backends) > 1 else "451 4.4.2")
    assert took == pytest.approx(after_s, abs=LATE_S)
    stage.finish()


def test_a_phase_timeout_below_the_budget_counts() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, timeouts={"mail_s": 7.0}))
    stage.mtas["A"].faults.append(Fault("mail", "hang"))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    took, heard = answer_after(stage, client)
    assert heard == ["250 2.1.5 r@b.test ok at B"]
    assert took == pytest.approx(7.0, abs=LATE_S)
    stage.finish()


class Slow:
    """A backend that answers each command only when it is told to."""

    def __init__(self) -> None:
        self.parties: list[Party] = []

    def session(self) -> Party:
        self.parties.append(Party())
        return self.parties[-1]

    @property
    def last(self) -> Party:
        return self.parties[-1]


def slow_stage(setup: Setup) -> tuple[FakeStage, Client, Slow]:
    slow = Slow()
    stage = FakeStage(setup, answering=lambda name: slow)
    return stage, stage.client().hello(), slow


def say(stage: FakeStage, slow: Slow, line: str) -> None:
    slow.last.say(line.encode() + b"\r\n")
    stage.loop.settle()


def test_a_long_row_of_recipients_has_time_as_long_as_replies_come() -> None:
    """A client waits for each reply anew: 50 recipients of 10 s each are no timeout (RFC 5321 4.5.3.2.3: per command)."""
    stage, client, slow = slow_stage(Setup(limits={"idle_timeout_s": 900.0}))
    client.ask("MAIL FROM:<s@a.test>", *(f"RCPT TO:<r{n}@b.test>" for n in range(50)))
    say(stage, slow, "220 hi")
    say(stage, slow, "250-A\r\n250 PIPELINING")
    say(stage, slow, "250 ok")
    for n in range(50):
        stage.clock(10.0)
        say(stage, slow, f"250 2.1.5 r{n}")
        assert client.take_all() == [f"250 2.1.5 r{n}"]
    stage.finish()


def test_one_reply_does_not_buy_time_for_ever() -> None:
    stage, client, slow = slow_stage(Setup(limits={"idle_timeout_s": 900.0}))
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r0@b.test>", "RCPT TO:<r1@b.test>")
    say(stage, slow, "220 hi")
    say(stage, slow, "250-A\r\n250 PIPELINING")
    say(stage, slow, "250 ok")
    stage.clock(200.0)
    say(stage, slow, "250 2.1.5 r0")
    assert client.take_all() == ["250 2.1.5 r0"]
    took, heard = answer_after(stage, client)
    assert heard[0].startswith("451 4.4.2")
    assert took == pytest.approx(270.0, abs=LATE_S)
    stage.finish()


def test_a_body_that_takes_longer_than_the_budget_can_still_be_replayed() -> None:
    """The budget is for what a client waits for; while it sends, it waits for nothing."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")
    for _ in range(20):
        client.send(b"x" * 70 + b"\r\n")
        stage.clock(20.0)
    stage.sites["B"].connects = "hang"
    wire = stage.mtas["A"].sessions[-1].wire
    assert wire is not None
    wire.reset()
    stage.loop.settle()
    stage.clock(3.0)
    stage.sites["B"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[-1])
    stage.loop.settle()
    client.send(b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at B as 1"]
    assert stage.record.failures == ["A fault block lost", "A blamed lost"]
    stage.finish()


def test_time_that_the_client_took_is_not_the_backends() -> None:
    """A kept connection dies behind a long pause of the client: the fresh one has time to come up."""
    stage = FakeStage(Setup(limits={"idle_timeout_s": 900.0}))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    stage.clock(600.0)
    stage.sites["A"].connects = "hang"
    wire = stage.mtas["A"].sessions[-1].wire
    assert wire is not None
    wire.eof()
    stage.loop.settle()
    assert client.ask("DATA") == []
    stage.clock(3.0)
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[-1])
    stage.loop.settle()
    assert client.take_all()[0].startswith("354")
    assert stage.record.blamed == []
    stage.finish()


def test_who_waits_in_the_body_for_a_new_attempt_hears_in_time() -> None:
    """The end of data was said, and the attempts that are left all hang: an answer within the budget of DATA."""
    stage = FakeStage(Setup(pools={"p": "A B D"}, timeouts={"connect_s": 60.0}))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")
    stage.sites["B"].connects = stage.sites["D"].connects = "hang"
    wire = stage.mtas["A"].sessions[-1].wire
    assert wire is not None
    wire.reset()
    stage.loop.settle()
    client.send(b"hi\r\n.\r\n")
    took, heard = answer_after(stage, client)
    assert heard[0].startswith("451 4.4.")
    assert took <= 100.0 + LATE_S
    stage.finish()


# -- the wheel itself ----------------------------------------------------------------------------------


class Waiter(deadlines.Waiter):
    def __init__(self, wheel: Deadlines) -> None:
        super().__init__()
        self.wheel = wheel
        self.told: list[float] = []

    def deadline_passed(self, now: float) -> None:
        self.told.append(now)


class Hand:
    def __init__(self) -> None:
        self.now = 100.0
        self.wheel = Deadlines(lambda: self.now, lambda delay_s, callback: NO_TIMER)

    def go(self, seconds: float) -> None:
        self.now += seconds
        self.wheel.advance(self.now)


def test_wheel_tells_once_not_early_and_hardly_late() -> None:
    hand = Hand()
    waiters = {n: Waiter(hand.wheel) for n in range(1, 200)}
    for n, waiter in waiters.items():
        hand.wheel.set(waiter, hand.now + n * 0.37)
    for _ in range(3000):
        hand.go(0.033)
    for n, waiter in waiters.items():
        (told,) = waiter.told
        assert 0 <= told - (100.0 + n * 0.37) <= 2 * TICK_S


def test_wheel_follows_a_deadline_that_moves() -> None:
    hand = Hand()
    later, sooner, never, gone = (Waiter(hand.wheel) for _ in range(4))
    for waiter in (later, sooner, never, gone):
        hand.wheel.set(waiter, hand.now + 10.0)
    hand.wheel.set(later, hand.now + 20.0)
    hand.wheel.set(sooner, hand.now + 5.0)
    hand.wheel.set(never, NEVER)
    hand.wheel.disarm(gone)
    for _ in range(300):
        hand.go(0.1)
    assert [len(waiter.told) for waiter in (later, sooner, never, gone)] == [1, 1, 0, 0]
    assert later.told[0] == pytest.approx(120.0, abs=2 * TICK_S)
    assert sooner.told[0] == pytest.approx(105.0, abs=2 * TICK_S)
    assert not hand.wheel._buckets


def test_wheel_goes_on_after_a_long_sleep() -> None:
    hand = Hand()
    waiter = Waiter(hand.wheel)
    hand.wheel.set(waiter, hand.now + 1.0)
    hand.go(10_000.0)
    assert len(waiter.told) == 1
    hand.wheel.set(waiter, hand.now + 1.0)
    hand.go(1.2)
    assert len(waiter.told) == 2


def test_a_waiter_that_fails_does_not_stop_the_others() -> None:
    """A bug in one session's timeout must not keep everybody else's from coming."""

    class Broken(Waiter):
        def deadline_passed(self, now: float) -> None:
            raise RuntimeError("a bug")

    hand = Hand()
    broken, others = Broken(hand.wheel), [Waiter(hand.wheel) for _ in range(10)]
    hand.wheel.set(broken, hand.now + 1.0)
    for n, waiter in enumerate(others):
        hand.wheel.set(waiter, hand.now + 0.9 + n * 0.05)
    for _ in range(50):
        try:
            hand.go(0.1)
        except RuntimeError:
            pass
    assert [len(waiter.told) for waiter in others] == [1] * 10
