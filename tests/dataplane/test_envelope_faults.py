"""The table of design 4.4, row by row, before any body byte: with one, two and three backends, one and three recipients.

Each row is tried with the fault at the first backend only, and at all of them. Looked at: what the client hears, what each
backend was asked, who is blamed.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.mta import Fault, ModelMta
from tests.dataplane.setup import Setup

NAMES = ("A", "B", "D")


@dataclass(frozen=True)
class Row:
    """`kind`: the row of the table. `words`: what is relayed when nobody else is left to ask; a prefix of the reply."""

    phase: str
    act: str
    kind: str  # opening | busy-opening | policy-opening | one-other | fresh | misfit | verdict
    words: str = "451 4.4."

    @property
    def id(self) -> str:
        return f"{self.phase}-{self.act}".replace(" ", "_")


OPENING = [
    Row("connect", "refuse", "opening"),
    Row("greeting", "close", "opening"),
    Row("greeting", "reset", "opening"),
    Row("greeting", "garbage", "opening"),
    Row("greeting", "long", "opening"),
    Row("greeting", "half", "opening"),
    Row("greeting", "hang", "opening"),
    Row("greeting", "extra", "opening"),  # it speaks again before EHLO: out of step from the start
    Row("greeting", "554 5.3.2 not here", "opening"),
    Row("greeting", "450 4.3.2 not now", "opening"),
    Row("greeting", "250 what is this", "opening"),
    Row("greeting", "421 4.3.2 busy", "busy-opening"),
    Row("greeting", "421 busy", "busy-opening"),
    Row("greeting", "421 4.7.0 too many connections from you", "policy-opening"),
    Row("hello", "close", "opening"),
    Row("hello", "reset", "opening"),
    Row("hello", "garbage", "opening"),
    Row("hello", "half", "opening"),
    Row("hello", "hang", "opening"),
    Row("hello", "extra", "opening"),
    Row("hello", "550 5.7.1 go away", "opening"),
    Row("hello", "450 4.3.2 later", "opening"),
    Row("hello", "354 what", "opening"),
    Row("hello", "421 4.3.2 busy", "busy-opening"),
    Row("hello", "421 4.7.0 too fast", "policy-opening"),
]
ENVELOPE = [
    Row(phase, act, kind, words)
    for phase in ("mail", "rcpt", "data")
    for act, kind, words in (
        ("close", "one-other", "451 4.4.2"),
        ("reset", "one-other", "451 4.4.2"),
        ("garbage", "one-other", "451 4.4.2"),
        ("half", "one-other", "451 4.4.2"),
        ("hang", "one-other", "451 4.4.2"),
        ("421 4.3.2 shutting down", "one-other", "451 4.3.2 shutting down"),
        ("421 bye", "one-other", "451 4.0.0 bye"),
        ("451 4.3.0 queue file write error", "one-other", "451 4.3.0 queue file write error"),
        ("452 4.3.1 disk full", "one-other", "452 4.3.1 disk full"),
        ("450 4.3.5 lookup failed", "one-other", "450 4.3.5 lookup failed"),
        ("334 what", "one-other", "451 4.4.2"),
        ("421 4.7.0 too many errors", "fresh", "451 4.7.0 too many errors"),
        ("530 5.7.0 STARTTLS first", "misfit", "451 4.3.5"),
        ("503 5.5.1 HELO first", "misfit", "451 4.3.5"),
        ("500 what", "misfit", "451 4.3.5"),
        ("502 what", "misfit", "451 4.3.5"),
        ("504 what", "misfit", "451 4.3.5"),
        ("538 5.7.11 encrypt", "misfit", "451 4.3.5"),
        ("555 5.5.4 parameter", "misfit", "451 4.3.5"),
        ("501 5.5.2 syntax", "misfit", "451 4.3.5"),
        ("501 5.1.3 bad address", "verdict", "501 5.1.3 bad address"),
        ("501 5.5.4 bad argument", "verdict", "501 5.5.4 bad argument"),
        ("450 4.2.0 greylisted", "verdict", "450 4.2.0 greylisted"),
        ("451 later", "verdict", "451 4.0.0 later"),
        ("451 4.3.2 not accepting", "verdict", "451 4.3.2 not accepting"),
        ("451 4.4.1 next hop down", "verdict", "451 4.4.1 next hop down"),
        ("451 4.7.1 greylisted", "verdict", "451 4.7.1 greylisted"),
        ("550 5.7.1 no", "verdict", "550 5.7.1 no"),
        ("554 no", "verdict", "554 5.0.0 no"),
        ("552 5.2.2 full", "verdict", "552 5.2.2 full"),
    )
] + [
    Row("mail", "452 too many", "one-other", "452 4.0.0 too many"),
    Row("mail", "452 4.2.2 mailbox full", "one-other", "452 4.2.2 mailbox full"),
    Row("rcpt", "452 4.2.2 mailbox full", "verdict", "452 4.2.2 mailbox full"),
    Row("rcpt", "452 too many recipients", "verdict", "452 4.0.0 too many recipients"),
    Row("data", "452 4.2.2 mailbox full", "verdict", "452 4.2.2 mailbox full"),
    Row("data", "250 ok", "one-other", "451 4.4.2"),  # 2xx where 354 belongs
]
ROWS = OPENING + ENVELOPE
RECIPIENTS = ("r1@b.test", "r2@b.test", "r3@b.test")


def commit_fault(stage: FakeStage, name: str, row: Row) -> None:
    if row.phase == "connect":
        stage.sites[name].connects = "refuse"
    else:
        stage.mtas[name].faults.append(Fault(row.phase, row.act))


def cure(stage: FakeStage) -> None:
    for site in stage.sites.values():
        site.connects = "accept"
    for mta in stage.mtas.values():
        mta.faults.clear()


def one_message(stage: FakeStage, client: Client, recipients: tuple[str, ...]) -> tuple[list[str], str]:
    """A pipelined transaction; (replies to the recipients, the last word: to DATA or to the final dot)."""
    commands = ["MAIL FROM:<s@a.test>", *(f"RCPT TO:<{r}>" for r in recipients), "DATA"]
    answers = client.ask(*commands)
    while len(answers) < len(commands):
        before = len(answers)
        stage.clock(300.0)  # beyond any budget
        answers += client.take_all()
        assert len(answers) > before, ("no answer within the budget", answers)
    assert answers[0] == "250 2.1.0 Ok"
    last = answers[-1]
    if last.startswith("354"):
        client.send("Subject: hi\r\n\r\nhello\r\n.\r\n")
        (last,) = client.take_all()
    return answers[1:-1], last


def asked(mta: ModelMta, verb: str = "MAIL") -> int:
    return sum(command.startswith(verb) for command in mta.commands)


@pytest.mark.parametrize("recipients", [1, 3])
@pytest.mark.parametrize("backends", [1, 2, 3])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_fault_at_the_first_backend_only(row: Row, backends: int, recipients: int) -> None:
    names = NAMES[:backends]
    stage = FakeStage(Setup(pools={"p": " ".join(names)}))
    client = stage.client().hello()
    commit_fault(stage, "A", row)
    to, last = one_message(stage, client, RECIPIENTS[:recipients])
    repaired = row.kind not in ("verdict", "fresh") and backends > 1
    if repaired:
        answered = "A" if row.phase == "data" else "B"  # what was answered stays answered
        assert to == [f"250 2.1.5 {r} ok at {answered}" for r in RECIPIENTS[:recipients]]
        assert last == "250 2.0.0 queued at B as 1"
        assert stage.taken() == {name: int(name == "B") for name in names}
        assert all(asked(stage.mtas[name]) == 0 for name in names[2:])
    else:
        expect_words(row, to, last)
        assert all(asked(stage.mtas[name]) == 0 for name in names[1:]), "nobody else is asked for a verdict"
        assert sum(stage.taken().values()) == 0
    assert stage.record.blamed == (["A"] if blames(row, backends) else [])
    if row.kind == "fresh":
        assert asked(stage.mtas["A"]) == 2, "a fresh connection to the same backend, once"
    expect_next_transaction(stage, client)
    stage.finish()


def blames(row: Row, backends: int) -> bool:
    if row.kind == "opening":
        return True
    return row.kind in ("one-other", "busy-opening") and backends > 1


def expect_words(row: Row, to: list[str], last: str) -> None:
    if row.phase == "data":
        assert all(reply.startswith("250 2.1.5") for reply in to)
        assert last.startswith(row.words)
        return
    assert all(reply.startswith(row.words) for reply in to), to
    # RFC 5321 4.1.1.4: 503 or 554 to DATA without a recipient; 451 where a recipient only has to wait.
    assert last.startswith("451 " if row.words.startswith("4") else "554 5.5.1"), last


def expect_next_transaction(stage: FakeStage, client: Client) -> None:
    """The session lives on, in step: the next message gets its own replies from a backend that is well."""
    cure(stage)
    before = sum(stage.taken().values())
    answers = client.message("next@b.test", sender="next@a.test")
    while len(answers) < 3:
        stage.clock(300.0)
        answers += client.take_all()
    assert answers[0].startswith("250 2.1.5 next@b.test ok at "), answers
    assert answers[2].startswith("250 2.0.0 queued at "), answers
    assert sum(stage.taken().values()) == before + 1
    assert any(mta.taken and mta.taken[-1].recipients == ("next@b.test",) for mta in stage.mtas.values())


@pytest.mark.parametrize("recipients", [1, 3])
@pytest.mark.parametrize("backends", [2, 3])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_fault_at_every_backend(row: Row, backends: int, recipients: int) -> None:
    names = NAMES[:backends]
    stage = FakeStage(Setup(pools={"p": " ".join(names)}))
    client = stage.client().hello()
    for name in names:
        commit_fault(stage, name, row)
    to, last = one_message(stage, client, RECIPIENTS[:recipients])
    expect_words(row, to, last)
    assert sum(stage.taken().values()) == 0
    tried = [name for name in names if stage.sites[name].count]
    match row.kind:
        case "opening":
            assert tried == list(names)
            assert stage.record.blamed == list(names), "no client was involved: at once"
        case "busy-opening" | "policy-opening" | "misfit":
            assert tried == list(names)
            assert stage.record.blamed == []
        case "one-other":
            if row.phase != "rcpt" or recipients == 1:  # else each RCPT may ask one other
                assert tried == ["A", "B"], "one other backend, not a third"
            assert stage.record.blamed == [], "a fact about the mail, or a shared dependency"
        case "fresh":
            assert tried == ["A"]
            assert asked(stage.mtas["A"]) == 2
            assert stage.record.blamed == []
        case "verdict":
            assert tried == ["A"]
            assert asked(stage.mtas["A"]) == 1
            assert stage.record.failures == []
    expect_next_transaction(stage, client)
    stage.finish()


@pytest.mark.parametrize("recipients", [1, 3])
@pytest.mark.parametrize("row", [row for row in ENVELOPE if row.phase == "mail"], ids=lambda row: row.id)
def test_first_answer_on_a_kept_connection(row: Row, recipients: int) -> None:
    """A close, 421 or 5xx there is repeated on a fresh connection to the same backend; the rest is as on any other."""
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()
    client.message()
    commit_fault(stage, "A", Row(row.phase, row.act, row.kind))
    stage.mtas["A"].faults[0].times = 1
    to, last = one_message(stage, client, RECIPIENTS[:recipients])
    stale = row.act in ("close", "reset", "half") or row.act.startswith(("421", "5"))
    if stale:
        assert to == [f"250 2.1.5 {r} ok at A" for r in RECIPIENTS[:recipients]]
        assert last == "250 2.0.0 queued at A as 2"
        assert stage.record.failures == [f"A replaced mail {'misfit' if row.kind == 'misfit' else 'stale'}"]
        assert stage.sites["A"].count == 2
    else:
        expect_words(row, to, last)
    assert stage.record.blamed == []
    expect_next_transaction(stage, client)
    stage.finish()


@pytest.mark.parametrize("act", ["close", "reset", "421 4.4.2 idle", "extra later"])
def test_kept_connection_that_ends_while_idle_is_nobodys_fault(act: str) -> None:
    stage = FakeStage(Setup(pools={"p": "A"}))
    client = stage.client().hello()
    client.message()
    session = stage.mtas["A"].sessions[0]
    assert session.wire is not None
    match act:
        case "close":
            session.wire.eof()
        case "reset":
            session.wire.reset()
        case "421 4.4.2 idle":
            session._say(act)
            session._close()
        case _:
            session._say("250 2.0.0 extra")
    stage.loop.settle()
    assert client.message()[-1] == "250 2.0.0 queued at A as 2"
    assert stage.sites["A"].count == 2
    assert stage.record.failures == []
    stage.finish()


@pytest.mark.parametrize("act", ["421 4.7.0 too many errors", "421 bye", "close", "reset"])
def test_after_five_error_replies_421_or_close_blames_nobody(act: str) -> None:
    """Five bad recipients, then the backend has had enough of this client: a fresh connection for the good one."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    mta = stage.mtas["A"]
    mta.verdicts = {f"bad{n}@b.test": "550 5.1.1 unknown" for n in range(5)}
    mta.faults.append(Fault("rcpt", act, times=1, at=5))
    assert client.one("MAIL FROM:<s@a.test>") == "250 2.1.0 Ok"
    for n in range(5):
        assert client.one(f"RCPT TO:<bad{n}@b.test>") == "550 5.1.1 unknown"
    assert client.one("RCPT TO:<good@b.test>") == "250 2.1.5 good@b.test ok at A"
    assert stage.record.failures == ["A replaced rcpt stale"]
    assert asked(mta) == 2
    assert stage.sites["B"].count == 0
    stage.finish()


@pytest.mark.parametrize("reply", ["450 4.2.0 greylisted", "451 no", "452 4.2.2 full", "450", "550 5.1.1 no"])
def test_tempfails_that_clients_provoke_eject_nothing(reply: str) -> None:
    """Whatever every backend says about senders and recipients comes back in its own words, and nobody is blamed."""
    stage = FakeStage(Setup(pools={"p": "A B D"}))
    client = stage.client().hello()
    for mta in stage.mtas.values():
        mta.verdicts = {"bad@b.test": reply}
    heard = []
    for _ in range(6):
        client.ask("MAIL FROM:<s@a.test>")
        heard.append(client.one("RCPT TO:<bad@b.test>"))
        client.ask("RSET")
    assert len(set(heard)) == 1
    assert heard[0].startswith(reply[:3])
    assert stage.record.failures == []
    stage.finish()


def test_a_silent_backend_is_left_after_half_of_the_budget() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    stage.mtas["A"].faults.append(Fault("rcpt", "hang"))
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    stage.clock(134.9)
    assert client.take_all() == []
    stage.clock(0.5)
    assert client.take_all() == ["250 2.1.5 r@b.test ok at B"]
    assert stage.record.failures == ["A fault rcpt timeout", "A blamed timeout"]
    stage.finish()
