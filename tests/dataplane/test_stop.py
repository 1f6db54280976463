"""Stopping a worker: sessions end at the edges of transactions, and it tells once that all is over."""

from __future__ import annotations

from smtplb.messages import DrainSessions, SessionsDrained, StopAccepting
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup


def drained(stage: FakeStage) -> list[int]:
    return [message.ended for message in stage.record.messages if isinstance(message, SessionsDrained)]


def open_body(client: Client) -> None:
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")


def stop(stage: FakeStage, within_s: float = 60.0) -> None:
    stage.receive(StopAccepting())
    stage.receive(DrainSessions(within_s))


def test_nobody_there() -> None:
    stage = FakeStage()
    stop(stage)
    stage.clock(100.0)
    assert drained(stage) == [0], "told once"
    stage.finish()


def test_sessions_are_counted_and_the_end_is_told_once() -> None:
    stage = FakeStage()
    clients = [stage.client().hello() for _ in range(3)]
    open_body(clients[0])
    stop(stage)
    assert [client.take_all() for client in clients[1:]] == [["421 4.3.2 Service shutting down"]] * 2
    stage.clock(10.0)
    assert drained(stage) == []
    clients[0].send("hi\r\n.\r\n")
    assert clients[0].take_all() == ["250 2.0.0 queued at A as 1", "421 4.3.2 Service shutting down"]
    stage.clock(100.0)
    assert drained(stage) == [3]
    assert stage.mtas["A"].commands[-1] == "QUIT", "no backend logs a lost connection"
    stage.finish()


def test_new_clients_are_sent_away() -> None:
    stage = FakeStage()
    first = stage.client().hello()
    open_body(first)
    stop(stage)
    assert stage.client().take_all() == ["421 4.3.2 Service shutting down"]
    stage.finish()


def test_after_the_time_is_over_only_final_replies_are_awaited() -> None:
    stage = FakeStage(Setup(limits={"idle_timeout_s": 3000.0}))
    in_body, final, between = (stage.client().hello() for _ in range(3))
    open_body(in_body)
    stage.mtas["A"].faults.append(Fault("final", "hang"))
    open_body(final)
    final.send("hi\r\n.\r\n")
    between.ask("MAIL FROM:<s@a.test>")
    stop(stage, within_s=30.0)
    stage.clock(29.0)
    assert (in_body.ended, between.ended, final.ended) == ("", "", "")
    stage.clock(2.0)
    assert in_body.take_all() == between.take_all() == ["421 4.3.2 Service shutting down"]
    assert final.take_all() == []
    stage.clock(720.0)
    assert final.take_all() == [
        "451 4.4.2 No answer to the message, try again later",
        "421 4.3.2 Service shutting down",
    ]
    assert sorted(stage.record.outcomes) == ["in_doubt", "tempfail", "tempfail"]
    stage.clock(10.0)
    assert drained(stage) == [3]
    stage.finish()


def test_a_late_reply_is_awaited_though_its_client_is_gone() -> None:
    """The record of what became of the message is worth the wait (design 4.7); final bounds it."""
    stage = FakeStage()
    client = stage.client().hello()
    stage.mtas["A"].faults.append(Fault("final", "hang"))
    open_body(client)
    client.send("hi\r\n.\r\n")
    client.reset()
    stop(stage)
    stage.clock(100.0)
    assert drained(stage) == []
    assert stage.record.outcomes == []
    stage.clock(700.0)
    assert stage.record.outcomes == ["in_doubt"]
    assert drained(stage) == [0]
    stage.finish()


def test_client_that_does_not_read_its_421_does_not_hold_up_the_stop() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    client.transport.stall()
    client.send("NOOP\r\n")
    stop(stage)
    stage.clock(35.0)
    assert client.transport.lost
    stage.clock(10.0)
    assert drained(stage) == [1]
    stage.finish()


def test_close_ends_everything_at_once() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    open_body(client)
    stage.loop.run(stage.worker.close)
    assert client.ended == "aborted"
    assert stage.mtas["A"].sessions[0].ended == "aborted"
    assert stage.taken() == {"A": 0}
    assert not stage.record.bugs
    assert not stage.loop.violations
