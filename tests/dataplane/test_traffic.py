"""What a worker tells of its backends' traffic: each fact once, and nothing for a message."""

from __future__ import annotations

from smtplb.messages import BackendsAnswered, Observed
from tests.dataplane.harness import FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup


def told(stage: FakeStage) -> list[Observed]:
    messages = [m for m in stage.record.messages if isinstance(m, BackendsAnswered)]
    return [seen for message in messages for seen in message.observed.values()]


def test_messages_taken_and_recipients_are_told_once() -> None:
    stage = FakeStage()
    stage.mtas["A"].verdicts["bad@b.test"] = "550 5.1.1 unknown"
    client = stage.client().hello()
    client.message("r@b.test", "bad@b.test")
    client.message("r@b.test")
    stage.clock(3.0)
    assert told(stage) == [
        Observed(delivered=2, quick=2, taken=2, refused=1, refused_clients=("192.0.2.7",))
    ], told(stage)
    stage.finish()


def test_a_message_that_waits_too_long_is_told_once_while_it_waits() -> None:
    stage = FakeStage()
    stage.mtas["A"].faults.append(Fault("final", "hang"))
    client = stage.client().hello()
    client.message()
    stage.clock(4.9)
    assert all(not seen.slow for seen in told(stage))
    stage.clock(1.0)
    assert [seen.slow for seen in told(stage) if seen.slow] == [("192.0.2.7",)]
    stage.clock(1000.0)
    assert sum(len(seen.slow) for seen in told(stage)) == 1
    assert sum(seen.quick for seen in told(stage)) == 0
    assert stage.record.outcomes == ["in_doubt"]
    stage.finish()


def test_an_answer_in_time_and_one_that_was_late_make_two_messages() -> None:
    stage = FakeStage(Setup())
    client = stage.client().hello()
    client.message()
    session = stage.mtas["A"].sessions[0]
    stage.mtas["A"].faults.append(Fault("final", "hang", times=1))
    client.message()
    stage.clock(30.0)
    session.deaf = False
    session._say("250 2.0.0 queued late")
    stage.loop.settle()
    assert client.take_all() == ["250 2.0.0 queued late"]
    stage.clock(3.0)
    assert (sum(s.quick for s in told(stage)), sum(len(s.slow) for s in told(stage))) == (1, 1)
    assert sum(s.delivered for s in told(stage)) == 2
    stage.finish()
