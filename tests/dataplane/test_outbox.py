"""Who writes when: once a turn, at its end, in the order in which they came; what goes wrong for one harms no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.dataplane.outbox import KEPT_BYTES, MAX_SPEAKERS, Outbox, Speaker
from smtplb.messages import DrainSessions
from tests.compiled import interpreted_only
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.setup import Setup
from tests.dataplane.test_bugs import raises_once


class Hand:
    """A loop that runs what was handed to call_soon when it is told to."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.told: list[int] = []
        self.failed: list[int] = []
        self.outbox = Outbox(self.soon.append)

    def end_turn(self) -> None:
        soon, self.soon[:] = self.soon[:], []
        for callback in soon:
            callback()


class One(Speaker):
    def __init__(self, hand: Hand, number: int, *, again: bool, fails: bool) -> None:
        self._hand, self._number, self._again, self._fails = hand, number, again, fails

    def write_out(self) -> None:
        self._hand.told.append(self._number)
        if self._again:
            self._again = False
            self._hand.outbox.add(self)
        if self._fails:
            raise RuntimeError("a bug of ours")

    def write_failed(self, error: Exception) -> None:
        self._hand.failed.append(self._number)


@interpreted_only
@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=150), max_size=4))
def test_each_is_told_once_for_each_time_it_was_added_and_in_order(
    turns: list[list[tuple[bool, bool]]],
) -> None:
    hand = Hand()
    added: list[int] = []
    failing: list[int] = []
    again = 0
    for turn in turns:
        for wants_more, fails in turn:
            number = len(added)
            added.append(number)
            failing += [number] * (fails + (fails and wants_more))
            again += wants_more
            hand.outbox.add(One(hand, number, again=wants_more, fails=fails))
            assert len(hand.soon) == 1, "one callback a turn"
        hand.end_turn()
        hand.end_turn()
    first = list(dict.fromkeys(hand.told))
    assert first == added
    assert len(hand.told) == len(added) + again
    assert sorted(hand.failed) == failing
    assert hand.soon == []


@interpreted_only
def test_a_crowd_does_not_wait_for_its_last() -> None:
    hand = Hand()
    for number in range(MAX_SPEAKERS):
        assert hand.told == []
        hand.outbox.add(One(hand, number, again=False, fails=False))
    assert hand.told == list(range(MAX_SPEAKERS))
    hand.end_turn()
    assert len(hand.told) == MAX_SPEAKERS


def with_a_neighbour(stage: FakeStage) -> tuple[Client, Client]:
    """Two sessions whose writes fall into one turn."""
    return stage.client().hello(), stage.client().hello()


def test_a_reply_that_cannot_be_written_ends_its_session_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = FakeStage(Setup(pools={"p": "A"}))
    first, second = with_a_neighbour(stage)
    raises_once(monkeypatch, first.transport, "writelines")
    for client in (first, second):
        client.say(b"NOOP\r\n")
    stage.loop.settle()
    assert first.take_all() == []
    assert first.transport.lost
    assert second.take_all() == ["250 2.0.0 Ok"]
    assert len(stage.record.bugs) == 1
    assert "a bug of ours" in stage.record.bugs[0]
    stage.record.forget_bugs()
    stage.finish()


def test_a_command_that_cannot_be_written_is_not_the_backends_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    for _ in range(2):
        assert client.message()[-1].startswith("250")
    to_a, _to_b = [wire for wire in stage.wires if not isinstance(wire.peer, Client)]
    raises_once(monkeypatch, to_a.ours, "writelines")
    assert client.message()[-1].startswith("250"), "the other takes it"
    assert stage.record.blamed == []
    assert stage.taken() == {"A": 1, "B": 2}
    assert any("a bug of ours" in violation for violation in stage.loop.violations)
    stage.loop.violations.clear()
    stage.finish()


def test_both_answers_of_a_turn_are_one_write() -> None:
    """A client that spoke in two segments before anybody wrote."""
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()
    before = len(client.transport.writes)
    for _ in range(2):
        client.transport.protocol.data_received(b"NOOP\r\n")
    stage.loop.settle()
    assert client.take_all() == ["250 2.0.0 Ok"] * 2
    assert len(client.transport.writes) == before + 1
    stage.finish()


@pytest.mark.parametrize("said", [b"NOOP\r\n", b"QUIT\r\n", b"HELP"])
def test_an_end_in_the_same_turn_does_not_take_the_answers_with_it(said: bytes) -> None:
    """Who sends and closes its half at once (printf | nc) is still answered, though our transport is closed right behind it."""
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()
    transport = client.transport

    def both() -> None:
        transport.protocol.data_received(b"NOOP\r\n" + said)
        if not transport.protocol.eof_received():
            transport.close()

    stage.loop.run(both)
    answers = {b"NOOP\r\n": ["250 2.0.0 Ok"], b"QUIT\r\n": ["221 2.0.0 Bye"], b"HELP": []}
    assert client.take_all() == ["250 2.0.0 Ok", *answers[said]]
    assert transport.lost
    stage.finish()


def test_what_was_said_in_the_turn_in_which_the_worker_ends_is_heard() -> None:
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()

    def last_turn() -> None:
        stage.worker.receive(DrainSessions(within_s=0.0))
        stage.worker.close()

    stage.loop.run(last_turn)
    assert [line[:3] for line in client.take_all()] == ["421"]
    stage.check()


def test_the_last_word_leaves_before_the_end() -> None:
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()
    protocol: Any = client.transport.protocol
    protocol.data_received(b"QUIT\r\n")
    assert not client.transport.is_closing(), "with the end of the turn"
    stage.loop.settle()
    assert client.take_all() == ["221 2.0.0 Bye"]
    assert client.transport.lost
    stage.finish()


def test_who_cannot_even_be_ended_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second bug while the first is dealt with: the others of that turn are written to, and go on."""
    stage = FakeStage(Setup(pools={"p": "A"}))
    first, second = with_a_neighbour(stage)

    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(first.transport, "writelines", broken)
    monkeypatch.setattr(first.transport, "abort", broken)

    def both() -> None:
        for client in (first, second):
            client.transport.protocol.data_received(b"NOOP\r\n")

    stage.loop.call_soon(both)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        stage.loop.settle()
    stage.loop.settle()
    assert second.take_all() == ["250 2.0.0 Ok"]
    assert second.ask("NOOP") == ["250 2.0.0 Ok"]


def test_a_large_last_piece_and_its_terminator_are_one_write() -> None:
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
    body = b"x" * 70 + b"\r\n"
    client.send(body * (2 * KEPT_BYTES // len(body)) + b".\r\n")
    assert client.take_all()[-1].startswith("250")
    (to_a,) = [wire for wire in stage.wires if not isinstance(wire.peer, Client)]
    _, last = to_a.ours.writes[-1]
    assert last.endswith(b"\r\n.\r\n")
    assert len(last) > KEPT_BYTES
    stage.finish()
