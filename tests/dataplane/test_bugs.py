"""What becomes of a message, its client and its backend when our own code raises: nothing false is told, nobody is blamed."""

from __future__ import annotations

from typing import Any

import pytest

from smtplb.dataplane.attempt import Attempt
from smtplb.dataplane.course import Course
from smtplb.dataplane.dialogue import Dialogue
from smtplb.dataplane.transaction import Transaction
from tests.compiled import interpreted_only
from tests.dataplane.harness import FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup

FROM_THE_CLIENTS_SIDE = [
    (Transaction, "recipient"),
    (Transaction, "data"),
    (Transaction, "body"),
    (Dialogue, "line"),
]
FROM_THE_BACKENDS_SIDE = [
    (Course, "recipient_accepted"),
    (Course, "envelope_answered"),
    (Course, "body_wanted"),
    (Course, "tell_client"),
    (Attempt, "reply_received"),
    (Transaction, "final_answered"),
]

pytestmark = interpreted_only


def raises_once(monkeypatch: pytest.MonkeyPatch, kind: object, name: str, *, at: int = 0) -> None:
    """A method of a class, or of one object."""
    original = getattr(kind, name)
    calls = iter(range(1000))

    def raising(*arguments: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise RuntimeError("a bug of ours")
        return original(*arguments, **named)

    monkeypatch.setattr(kind, name, raising)


def talk(stage: FakeStage) -> str:
    """One message, patiently; the last reply."""
    client = stage.client().hello()
    heard = client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")
    if heard[-1].startswith("354"):
        client.send("hi\r\n.\r\n")
        heard += client.take_all()
    return heard[-1]


@pytest.mark.parametrize(
    ("kind", "name"), FROM_THE_CLIENTS_SIDE, ids=lambda part: getattr(part, "__name__", part)
)
def test_bug_in_a_turn_of_the_client(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    raises_once(monkeypatch, kind, name, at=1 if name == "line" else 0)
    assert talk(stage) == "421 4.3.0 Local error, try again later"
    assert stage.taken() == {"A": 0, "B": 0}
    assert len(stage.record.bugs) == 1
    assert "a bug of ours" in stage.record.bugs[0]
    assert stage.record.blamed == []
    stage.record.forget_bugs()
    stage.finish()


@pytest.mark.parametrize(
    ("kind", "name"), FROM_THE_BACKENDS_SIDE, ids=lambda part: getattr(part, "__name__", part)
)
def test_bug_in_a_turn_of_the_backend(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    """The loop tells it and ends that connection; for the message it is as if the backend were lost, but nobody's fault."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    raises_once(monkeypatch, kind, name)
    last = talk(stage)
    taken = sum(stage.taken().values())
    assert (last.startswith("250 2.0.0 queued") and taken == 1) or last.startswith("451 4.4.2")
    assert stage.record.blamed == []
    (violation,) = stage.loop.violations
    assert "a bug of ours" in violation
    stage.loop.violations.clear()
    stage.finish()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Course, "attempt_failed"), (Attempt, "connection_broken"), (Attempt, "_opening_failed")],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_bug_that_leaves_a_client_without_anybody_to_answer(
    monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    """It hears 421 when its time is over, not nothing for ever."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    raises_once(monkeypatch, kind, name)
    if name == "_opening_failed":
        stage.sites["A"].connects = "refuse"
        client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    else:
        stage.mtas["A"].faults.append(Fault("mail", "hang"))
        client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
        wire = stage.mtas["A"].sessions[0].wire
        assert wire is not None
        try:
            wire.reset()
            stage.loop.settle()
        except RuntimeError:
            pass
    assert client.take_all() == []
    stage.clock(301.0)
    assert client.take_all() == ["421 4.3.0 Local error, try again later"]
    assert stage.record.blamed == []
