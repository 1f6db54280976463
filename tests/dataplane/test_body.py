"""The body on its way: split anywhere, of any size, lost at any point, within and beyond what can be replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataplane.harness import Client, FakeStage, FakeWire
from tests.dataplane.mta import OFFERS, Fault, stuffed
from tests.dataplane.setup import Setup

LINE = b"0123456789" * 7 + b"\r\n"
LOST = "451 4.4.2 Connection to the mail server was lost, try again later"


def open_body(stage: FakeStage, client: Client) -> None:
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")


def cut(stage: FakeStage, name: str) -> None:
    wire = stage.mtas[name].sessions[-1].wire
    assert isinstance(wire, FakeWire)
    wire.reset()
    stage.loop.settle()


def of_size(size: int) -> bytes:
    return ((LINE * (size // len(LINE) + 1))[: size - 2] + b"\r\n") if size else b""


SAMPLES = [
    b"",
    b"\r\n",
    b"a\r\n",
    b".\r\n",
    b"..\r\n",
    b"a\r\n.\r\n.b\r\n\r\n",
    b"\r\n\r\n.\r\n",
    b"a\r\n..\r\n...\r\n",
]


@pytest.mark.parametrize("content", SAMPLES)
def test_split_at_every_place(content: bytes) -> None:
    """In two pieces at each place: the same bytes arrive, the same replies come, the next command is a command."""
    wire = stuffed(content) + b".\r\nNOOP\r\n"
    for at in range(len(wire) + 1):
        stage = FakeStage()
        client = stage.client().hello()
        open_body(stage, client)
        client.send(wire[:at])
        client.send(wire[at:])
        assert client.take_all() == ["250 2.0.0 queued at A as 1", "250 2.0.0 Ok"]
        assert stage.mtas["A"].taken[0].body == content
        stage.finish()


@pytest.mark.parametrize("size", [n + d for n in (4096, 65536, 262144) for d in range(-3, 6)])
@pytest.mark.parametrize("piece", [1 << 20, 4096, 65536, 1000])
def test_sizes_around_powers(size: int, piece: int) -> None:
    stage = FakeStage()
    client = stage.client().hello()
    content = of_size(size)
    open_body(stage, client)
    wire = content + b".\r\n"
    for at in range(0, len(wire), piece):
        client.send(wire[at : at + piece])
    assert client.take_all() == ["250 2.0.0 queued at A as 1"]
    assert stage.mtas["A"].taken[0].body == content
    stage.finish()


@pytest.mark.parametrize("around", [4096, 65536, 262144])
@pytest.mark.parametrize("chunking", [True, False], ids=["to-chunks", "to-DATA"])
@pytest.mark.parametrize("ends_in_line", [True, False])
def test_every_size_around_powers_in_chunks(around: int, chunking: bool, ends_in_line: bool) -> None:
    """Also with a dot, or half a line end, at the edge of a chunk."""
    stage = FakeStage()
    if chunking:
        stage.mtas["A"].offers = (*OFFERS, "CHUNKING")
    client = stage.client().hello()
    for size in range(around - 3, around + 4):
        content = (b".dots\r\n..\r\n" + b"x" * 60 + b"\r\n") * (size // 73 + 1)
        content = content[: size - 2] + (b"\r\n" if ends_in_line else b".x")
        # Cut off by slicing, it may hold half a line end in front of what was put behind: no lawful body.
        content = content.replace(b"\r\r\n", b"y\r\n").replace(b"\r.x", b"y.x")
        assert len(content) == size
        client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
        first, second = content[: around // 2], content[around // 2 :]
        client.send(b"BDAT %d\r\n%sBDAT %d LAST\r\n%s" % (len(first), first, len(second), second))
        assert [reply[:3] for reply in client.take_all()] == ["250", "250"]
        missing = b"" if chunking or ends_in_line else b"\r\n"
        assert stage.mtas["A"].taken[-1].body == content + missing
    stage.finish()


LAWLESS = [
    b"a\nb\r\n",
    b"a\r\n.\nMAIL FROM:<x@a.test>\r\n",
    b"a\n.\nb\r\n",
    b"a\n.\r\nb\r\n",
    b"a\r.\r\nb\r\n",
    b"a\r\n.\rb\r\n",
    b"a\r\n\0.\r\nb\r\n",
    b"a\r\n.\0\r\nb\r\n",
    b"\n.\r\nb\r\n",
    b"\r.\r\nb\r\n",
    b"a\r\r\n.\r\r\nb\r\n",
]


@pytest.mark.parametrize("content", LAWLESS)
@pytest.mark.parametrize("mode", ["normalize", "reject"])
def test_lawless_bodies_are_one_message_or_none(content: bytes, mode: str) -> None:
    """Split anywhere: exactly one of {delivered once and 250, refused and not delivered}; the session stays in step."""
    wire = content + b"\r\n.\r\nNOOP\r\n"
    bodies = set()
    for at in range(len(wire) + 1):
        stage = FakeStage(Setup(bare_newline=mode))
        client = stage.client().hello()
        open_body(stage, client)
        client.send(wire[:at])
        client.send(wire[at:])
        replies = client.take_all()
        assert len(replies) == 2
        assert replies[1] == "250 2.0.0 Ok"
        if mode == "normalize":
            assert replies[0] == "250 2.0.0 queued at A as 1"
            bodies.add(stage.mtas["A"].taken[0].body)
        else:
            assert replies[0].startswith("550 5.6.0")
            assert stage.taken() == {"A": 0}
            assert stage.record.outcomes == ["refused"]
        stage.finish()
    if mode == "normalize":
        assert len(bodies) == 1, "the same reading for every split"


# -- loss in the body ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [1, 100, 70_000, 300_000, 2_000_000])
@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
def test_message_is_sent_again_from_memory_or_file(tmp_path: Path, sent: int, ended: bool) -> None:
    """Beyond `memory` the replay comes from a file that has no name."""
    stage = FakeStage(Setup(pools={"p": "A B"}, replay={"memory_bytes": 65536, "directory": str(tmp_path)}))
    client = stage.client().hello()
    open_body(stage, client)
    body = of_size(2_500_000)
    if ended:
        stage.sites["B"].connects = "hang"
    for at in range(0, sent, 100_000):
        client.send(body[at : min(at + 100_000, sent)])
    assert list(tmp_path.iterdir()) == []
    cut(stage, "A")
    if ended:
        stage.sites["B"].connects = "accept"
        stage.loop.connecting(stage.loop.connects[-1])
        stage.loop.settle()
    client.send(body[sent:] + b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at B as 1"]
    assert stage.mtas["B"].taken[0].body == body
    assert stage.record.failures == ["A fault block lost", "A blamed lost"]
    stage.finish()


@pytest.mark.parametrize(
    ("replay", "why"),
    [
        ({"per_message_bytes": 100_000}, "beyond what one message may keep"),
        ({"memory_bytes": 1000, "total_bytes": 50_000}, "beyond what all may keep"),
        ({"memory_bytes": 1000, "directory": "/nonexistent"}, "no room on disk"),
    ],
)
def test_message_beyond_the_budget_streams_and_cannot_be_repeated(
    replay: dict[str, object], why: str
) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, replay=replay))
    client = stage.client().hello()
    body = of_size(400_000)
    open_body(stage, client)
    client.send(body + b".\r\n")
    assert client.take_all() == ["250 2.0.0 queued at A as 1"], "it streams"
    assert stage.mtas["A"].taken[0].body == body
    open_body(stage, client)  # B
    client.send(body[:200_000])
    cut(stage, "B")
    assert client.take_all() == []
    client.send(body[200_000:] + b".\r\n")
    assert client.take_all() == [LOST]
    assert stage.taken() == {"A": 1, "B": 0}
    assert stage.record.failures == ["B fault block lost"]
    stage.finish()


def test_message_that_outgrows_the_budget_while_a_new_attempt_comes_up() -> None:
    """Nobody has all of it any more: 451 at its end."""
    stage = FakeStage(Setup(pools={"p": "A B"}, replay={"per_message_bytes": 100_000}))
    client = stage.client().hello()
    open_body(stage, client)
    client.send(of_size(50_000))
    stage.sites["B"].connects = "hang"
    cut(stage, "A")
    client.send(of_size(400_000))
    stage.clock(6.0)
    client.send(b".\r\n")
    assert client.take_all() == [LOST]
    stage.finish()


def test_every_backend_dies_in_the_body() -> None:
    stage = FakeStage(Setup(pools={"p": "A B D"}))
    for mta in stage.mtas.values():
        mta.faults.append(Fault("body", "close"))
    client = stage.client().hello()
    open_body(stage, client)
    client.send(of_size(5000))
    client.send(of_size(5000) + b".\r\n")
    assert client.take_all() == [LOST]
    assert stage.record.blamed == [], "two alike: it may be the message"
    assert stage.sites["D"].count == 0, "one other, not a third: a message that kills is not passed round"
    assert client.one("NOOP") == "250 2.0.0 Ok"
    stage.finish()


@pytest.mark.parametrize("how", ["reset", "eof"])
def test_client_that_leaves_while_a_replay_runs(how: str) -> None:
    """Also behind its own terminator, as long as ours has not left: nothing is delivered by a reset."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    stage.mtas["A"].faults.append(Fault("final", "452 4.3.1 full"))
    open_body(stage, client)
    stage.sites["B"].connects = "hang"
    client.send(of_size(5000) + b".\r\n")
    (client.reset if how == "reset" else client.eof)()
    stage.sites["B"].connects = "accept"
    for pending in stage.loop.connects:
        if not pending.given_up and pending.task is not None and not pending.task.done:
            stage.loop.connecting(pending)
    stage.loop.settle()
    stage.clock(1.0)
    if how == "reset":
        assert stage.taken() == {"A": 0, "B": 0}
        assert stage.record.outcomes == ["aborted"]
    else:  # a half-close behind the terminator: the attempt that is under way is finished
        assert stage.taken() == {"A": 0, "B": 1}
        assert client.take_all() == ["250 2.0.0 queued at B as 1"]
    stage.finish()


def test_client_lost_in_each_phase_completes_nothing() -> None:
    for last in ("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA", "a line", ".."):
        for how in ("reset", "eof"):
            stage = FakeStage()
            client = stage.client().hello()
            for line in ("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA", "a line", ".."):
                client.send(line + "\r\n")
                if line == last:
                    break
            (client.reset if how == "reset" else client.eof)()
            assert stage.taken() == {"A": 0}
            assert stage.record.outcomes == ["aborted"]
            stage.finish()


# -- trace line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", [False, True])
def test_received_line_is_the_same_in_a_replay(lose: bool) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, received="always"))
    client = stage.client().hello()
    open_body(stage, client)
    client.send(b"Subject: x\r\n\r\n")
    first = stage.mtas["A"].sessions[-1]._buffer
    if lose:
        cut(stage, "A")
    client.send(b"text\r\n.\r\n")
    taken = stage.mtas["B" if lose else "A"].taken[0].body
    assert taken.startswith(first)
    assert taken.startswith(
        b"Received: from client.test ([192.0.2.7])\r\n\tby lb.test (smtplb) with ESMTP id "
    )
    assert taken.endswith(b"\r\nSubject: x\r\n\r\ntext\r\n")
    stage.finish()


def test_mail_that_came_round_three_times_ends() -> None:
    stage = FakeStage(Setup(received="always"))
    client = stage.client().hello()
    body = b""
    for n in range(4):
        open_body(stage, client)
        client.send(body + b"Subject: x\r\n\r\ntext\r\n.\r\n" if not body else body + b".\r\n")
        (reply,) = client.take_all()
        if n == 3:
            assert reply == "554 5.4.6 Too many hops: mail loop"
        else:
            assert reply.startswith("250")
            body = stage.mtas["A"].taken[-1].body
    stage.finish()


def test_client_that_resets_in_the_body_while_a_replay_runs() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    open_body(stage, client)
    client.send(of_size(5000))
    stage.sites["B"].connects = "hang"
    cut(stage, "A")
    client.reset()
    stage.sites["B"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[-1])
    stage.loop.settle()
    assert stage.taken() == {"A": 0, "B": 0}
    assert stage.record.outcomes == ["aborted"]
    stage.finish()


def test_client_that_ends_its_message_and_resets_while_it_is_not_read() -> None:
    """During a replay the client is not read; when it is again, its terminator comes first and the reset behind it."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    open_body(stage, client)
    client.send(of_size(5000))
    stage.sites["B"].connects = "hang"
    cut(stage, "A")
    client.send(b".\r\n")
    client.reset()
    stage.sites["B"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[-1])
    stage.loop.settle()
    assert stage.taken() == {"A": 0, "B": 0}
    assert stage.record.outcomes == ["aborted"]
    stage.finish()
