"""A message that a backend may have although nobody heard so: what is on record, and where the retry goes (RFC 1047)."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from smtplb.observe.events import AttemptFailed
from smtplb.observe.outcomes import AttemptOutcome
from tests.dataplane.harness import FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup

BODY = "Subject: hi\r\n\r\nhello\r\n"
DIGEST = blake2b(BODY.encode(), digest_size=16).hexdigest()
AFTER_THE_DOT = ["close", "reset", "hang", "garbage", "half", "354 what", "421 4.3.2 bye", "451 4.3.0 no"]


def doubts(stage: FakeStage) -> list[AttemptFailed]:
    return [
        message
        for message in stage.record.messages
        if isinstance(message, AttemptFailed) and message.outcome is AttemptOutcome.IN_DOUBT
    ]


@pytest.mark.parametrize("received", ["never", "always"])
@pytest.mark.parametrize("act", AFTER_THE_DOT)
def test_each_doubt_is_one_record_that_names_its_transaction_and_the_digest_of_its_body(
    act: str, received: str
) -> None:
    stage = FakeStage(Setup(limits={"idle_timeout_s": 5000.0}, received=received))
    client = stage.client().hello()
    stage.mtas["A"].faults.append(Fault("final", act, times=1, taken=True))
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
    client.send(BODY + ".\r\n")
    stage.clock(730.0)
    (reply,) = client.take_all()
    assert reply.startswith("451 4.")
    (record,) = doubts(stage)
    (ended,) = stage.record.ended
    assert record.transaction_id == ended.transaction_id != ""
    assert record.backend == ended.backend == "A"
    assert ended.digest == DIGEST
    assert (ended.sender, ended.recipient, ended.recipients) == (b"s@a.test", b"r@b.test", 1)
    stage.finish()


@pytest.mark.parametrize("act", ["450 4.2.0 later", "451 4.7.1 later", "452 4.3.1 full", "550 5.6.0 no"])
def test_a_verdict_behind_the_dot_leaves_no_doubt(act: str) -> None:
    stage = FakeStage()
    client = stage.client().hello()
    stage.mtas["A"].faults.append(Fault("final", act, times=1))
    assert client.message()[-1] == act
    assert doubts(stage) == []
    assert stage.record.ended[-1].digest == ""
    stage.finish()


@pytest.mark.parametrize("act", ["close", "451 4.3.0 no"])
def test_the_retry_of_a_message_in_doubt_goes_to_the_same_backend_first(act: str) -> None:
    stage = FakeStage(Setup(pools={"p": "A B D"}))
    client = stage.client().hello()
    for mta in stage.mtas.values():
        mta.faults.append(Fault("final", act, times=1, taken=True))
    had: dict[str, str] = {}  # sender -> backend
    for sender in ("x@a.test", "y@a.test", "z@a.test"):
        before = stage.taken()
        assert client.message(sender=sender)[-1].startswith("451")
        (had[sender],) = [each for each, count in stage.taken().items() if count > before[each]]
    assert sorted(had.values()) == ["A", "B", "D"]
    for sender in ("y@a.test", "z@a.test", "x@a.test"):
        assert client.message(sender=sender)[-1].startswith(f"250 2.0.0 queued at {had[sender]}")
        assert client.message(sender="other@a.test")[-1].startswith("250")
    stage.finish()
