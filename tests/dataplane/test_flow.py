"""Flow control: nobody's memory holds what the other end cannot take, and nothing waits for ever once it can."""

from __future__ import annotations

import pytest

from smtplb.dataplane.connection import HIGH_WATER_BYTES
from smtplb.dataplane.session import MAX_HELD_BYTES
from tests.dataplane.fakes import READ_BYTES
from tests.dataplane.harness import Client, FakeStage, FakeWire
from tests.dataplane.mta import MtaSession
from tests.dataplane.setup import Setup

ENVELOPE = "MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n"
LINE = b"x" * 70 + b"\r\n"
TAKES_ANY_COMMANDS = {"errors": 1_000_000_000}  # however many carry no mail


def wire_of(session: MtaSession) -> FakeWire:
    assert isinstance(session.wire, FakeWire)
    return session.wire


def patient(stage: FakeStage) -> FakeStage:
    stage.setup.limits["idle_timeout_s"] = 5000.0
    return stage


def open_body(stage: FakeStage, client: Client) -> FakeWire:
    """A transaction up to 354; the wire of its backend."""
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
    return wire_of(stage.mtas["A"].sessions[-1])


def test_client_that_does_not_read_is_not_read() -> None:
    stage = FakeStage(Setup(limits=TAKES_ANY_COMMANDS))
    client = stage.client().hello()
    client.transport.stall()
    for _ in range(100):
        client.send(b"NOOP\r\n" * 1000)
    transport = client.transport
    assert not transport.reading, "its commands stay in its own memory"
    assert len(transport.unsent) < 1_000_000
    transport.unstall()
    stage.loop.settle()
    assert client.take_all() == ["250 2.0.0 Ok"] * 100_000
    stage.finish()


def test_what_one_read_brings_is_answered_in_parts_while_the_client_reads() -> None:
    """The longest reply to the shortest command: all that one read asks for is not made at once (small input, large effect)."""
    stage = FakeStage(Setup(limits=TAKES_ANY_COMMANDS))
    client = stage.client().hello()
    client.transport.stall()
    client.send(b"EHLO x\r\n" * 20_000)
    assert len(client.transport.unsent) < 150_000
    stage.finish()


def test_client_that_never_reads_is_ended() -> None:
    stage = FakeStage(Setup(limits=TAKES_ANY_COMMANDS))
    client = stage.client().hello()
    client.transport.stall()
    for _ in range(30):
        client.send(b"NOOP\r\n" * 1000)
    stage.clock(400.0)
    assert client.transport.lost
    assert stage.record.session_reasons == ["idle"]
    stage.finish()


def test_a_whole_session_in_one_breath() -> None:
    """A client that waits for nothing, with bodies and commands far beyond what is held at once."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    message = ENVELOPE.encode() + b"DATA\r\n" + LINE * 3000 + b".\r\n"
    client.send(message * 5 + b"QUIT\r\n")
    replies = client.take_all()
    assert len(replies) == 5 * 4 + 1
    assert [reply[:3] for reply in replies] == ["250", "250", "354", "250"] * 5 + ["221"]
    assert stage.taken() == {"A": 3, "B": 2}
    assert all(taken.body == LINE * 3000 for mta in stage.mtas.values() for taken in mta.taken)
    stage.finish()


@pytest.mark.parametrize("early", [10, MAX_HELD_BYTES - 1, MAX_HELD_BYTES + 1, 200_000])
def test_body_that_comes_before_354(early: int) -> None:
    """Wrong of the client, and no harm: what came is kept within bounds, what follows is read once 354 was said."""
    stage = FakeStage()
    client = stage.client().hello()
    stage.sites["A"].connects = "hang"
    body = LINE * 5000
    client.send(ENVELOPE.encode() + b"DATA\r\n" + body[:early])
    assert client.transport.reading is (early <= MAX_HELD_BYTES)
    (pending,) = stage.loop.connects
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(pending)
    stage.loop.settle()
    client.send(body[early:] + b".\r\n")
    assert [reply[:3] for reply in client.take_all()] == ["250", "250", "354", "250"]
    assert stage.mtas["A"].taken[0].body == body
    stage.finish()


def test_thousands_of_recipients_in_one_segment() -> None:
    stage = FakeStage(Setup(limits={"recipients": 10_000}))
    client = stage.client().hello()
    count = 6000
    recipients = b"".join(b"RCPT TO:<a-rather-long-recipient-%d@b.test>\r\n" % n for n in range(count))
    assert len(recipients) > READ_BYTES
    client.send(b"MAIL FROM:<s@a.test>\r\n" + recipients + b"DATA\r\n")
    replies = client.take_all()
    assert [reply[:3] for reply in replies] == ["250"] * (1 + count) + ["354"]
    assert replies[count].startswith(f"250 2.1.5 a-rather-long-recipient-{count - 1}@b.test")
    client.send(b"hi\r\n.\r\n")
    assert client.take_all()[0].startswith("250")
    assert len(stage.mtas["A"].taken[0].recipients) == count
    stage.finish()


def test_slow_backend_stops_the_client_and_starts_it_again() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    backend = open_body(stage, client)
    backend.stall()
    for _ in range(100):
        client.send(LINE * 1000)
    assert not client.transport.reading
    assert len(backend.ours.unsent) <= HIGH_WATER_BYTES + READ_BYTES
    backend.unstall()
    stage.loop.settle()
    assert client.transport.reading
    client.send(b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at A as 1"]
    assert stage.mtas["A"].taken[0].body == LINE * 100_000
    stage.finish()


def test_idle_timeout_does_not_run_while_the_backend_is_what_is_slow() -> None:
    stage = FakeStage(Setup(timeouts={"block_s": 2000.0}))
    client = stage.client().hello()
    backend = open_body(stage, client)
    backend.stall()
    client.send(LINE * 10_000)
    stage.clock(900.0)
    assert not client.ended
    backend.unstall()
    stage.loop.settle()
    client.send(b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at A as 1"]
    stage.finish()


def test_backend_that_takes_no_more_of_the_body_is_replaced() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    backend = open_body(stage, client)
    backend.stall()
    client.send(LINE * 5000)
    stage.clock(179.0)
    assert stage.record.failures == []
    stage.clock(2.0)
    client.send(b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at B as 1"]
    assert stage.record.failures == ["A fault block timeout", "A blamed timeout"]
    assert stage.mtas["B"].taken[0].body == LINE * 5000
    stage.finish()


def test_backend_that_reads_again_but_never_answers_is_in_doubt_after_final() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    backend = open_body(stage, client)
    backend.stall()
    client.send(LINE * 1000 + b".\r\n")
    stage.clock(719.0)
    assert client.take_all() == []
    stage.clock(2.0)
    assert client.take_all() == ["451 4.4.2 No answer to the message, try again later"]
    assert stage.record.failures == ["A in_doubt final timeout"]
    stage.finish()


def test_client_that_reads_nothing_while_it_sends_a_body() -> None:
    """Its replies pile up; its body is taken all the same, and within bounds."""
    stage = FakeStage(Setup(limits=TAKES_ANY_COMMANDS))
    client = stage.client().hello()
    client.transport.stall()
    client.send(b"NOOP\r\n" * 10_000 + ENVELOPE.encode() + b"DATA\r\n")
    for _ in range(50):
        client.send(LINE * 1000)
    client.send(b".\r\n")
    client.transport.unstall()
    stage.loop.settle()
    replies = client.take_all()
    assert len(replies) == 10_004
    assert replies[-1] == "250 2.0.0 queued at A as 1"
    assert stage.mtas["A"].taken[0].body == LINE * 50_000
    stage.finish()


def test_replay_waits_for_a_slow_second_backend() -> None:
    """The first backend dies in the body; the second reads slowly: the client waits, then everything goes on."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    open_body(stage, client)
    client.send(LINE * 20_000)
    wires_before = len(stage.wires)
    stage.sites["B"].connects = "hang"
    wire_of(stage.mtas["A"].sessions[-1]).reset()
    stage.loop.settle()
    assert not client.transport.reading, "until the new attempt has caught up"
    stage.sites["B"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[-1])
    assert len(stage.wires) == wires_before + 1
    while stage.mtas["B"].commands[-1:] != ["DATA"]:
        stage.loop.step()
    stage.wires[-1].stall()
    stage.loop.settle()
    client.send(LINE * 1000)
    assert not client.transport.reading
    stage.wires[-1].unstall()
    stage.loop.settle()
    client.send(b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at B as 1"]
    assert stage.mtas["B"].taken[0].body == LINE * 21_000
    stage.finish()


def by_bdat(recipients: int) -> bytes:
    """A message, all at once."""
    to = b"".join(b"RCPT TO:<r%d@b.test>\r\n" % number for number in range(recipients))
    return b"MAIL FROM:<s@a.test>\r\n%sBDAT 4 LAST\r\nhi\r\n" % to


HALF_CLOSED = {
    "many commands": b"NOOP\r\n" * 10_000,
    "mail behind many commands": by_bdat(1) + b"NOOP\r\n" * 9_000 + by_bdat(1),
    "many recipients": 25 * by_bdat(150),
}


@pytest.mark.parametrize("said", HALF_CLOSED.values(), ids=HALF_CLOSED.keys())
def test_who_closes_its_half_and_reads_late_is_answered_all_the_same(said: bytes) -> None:
    """All at once, SHUT_WR behind it, and the answers only later: while they wait for the client nothing is given up."""
    stage = FakeStage(Setup(pools={"p": "A"}, limits={"errors": 1_000_000}))
    client = stage.client().hello()
    client.transport.stall()
    client.transport.deliver(said)
    client.transport.deliver_eof()
    stage.loop.settle()
    stage.clock(1)
    assert not client.transport.is_closing()
    client.transport.unstall()
    stage.loop.settle()
    assert len(client.take_all()) == said.count(b"\r\n") - said.count(b"hi\r\n")
    assert stage.taken() == {"A": said.count(b"BDAT")}
    assert client.transport.lost
    stage.finish()
