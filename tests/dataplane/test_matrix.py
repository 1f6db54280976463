"""Every phase of an attempt times every fault, on new and kept connections, with one and three recipients.

After each: the ledger, who is blamed, and that the next transaction of the session works and gets its own replies.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.ledger import Told, check
from tests.dataplane.mta import OFFERS, PHASES, Fault, stuffed
from tests.dataplane.setup import Setup

FAULTS = (
    *("refuse", "close", "reset", "hang", "421", "450", "451", "452", "550", "554", "garbage", "half"),
    *("early", "extra", "extra-later", "close-taken", "half-taken"),
    *("then-close", "then-reset"),  # the usual answer, and then it is dead
    *("slow", "stall"),  # it reads the body slowly, or no more
    *("dead-1", "dead-20", "dead-30"),  # after so many octets of the body; behind 20 our terminator has left
)
IN_BODY = ("early", "slow", "stall", "dead-1", "dead-20", "dead-30")
OPENING = ("connect", "greeting", "hello")
BODY = b"Subject: hi\r\n\r\nhello\r\n.dots\r\n..and dots\r\n"
LARGE = BODY + b"more than all buffers on the way hold, 64\r\n" * 20_000
CHUNKING = (*OFFERS, "CHUNKING")


def possible(phase: str, fault: str) -> bool:
    if phase == "connect":
        return fault in ("refuse", "hang")
    if fault.endswith("-taken"):
        return phase == "final"
    if fault in IN_BODY:
        return phase == "body"
    return fault != "refuse"


CASES = [(phase, fault) for phase in PHASES for fault in FAULTS if possible(phase, fault)]


def commit(stage: FakeStage, name: str, phase: str, fault: str) -> None:
    if phase == "connect":
        stage.sites[name].connects = {"refuse": "refuse", "hang": "hang"}[fault]
        return
    act, _, taken = fault.partition("-taken") if fault.endswith("-taken") else (fault, "", None)
    if act.startswith(("extra-", "then-", "dead-")):
        act = act.replace("-", " ")
    if act.isdigit():
        act += " no"
    stage.mtas[name].faults.append(Fault(phase, act, taken=taken is not None))


def transaction(
    stage: FakeStage,
    client: Client,
    sender: str,
    recipients: list[str],
    *,
    bdat: bool = False,
    body: bytes = BODY,
) -> Told:
    """Step by step, with patience; the body in two parts."""
    told = Told(sender, body)
    assert patient(stage, client, f"MAIL FROM:<{sender}>\r\n") == "250 2.1.0 Ok"
    for recipient in recipients:
        told.recipients[recipient] = patient(stage, client, f"RCPT TO:<{recipient}>\r\n")
    if bdat:
        told.last = patient(stage, client, f"BDAT 20\r\n{body[:20].decode()}")
        if told.last.startswith("250"):
            told.last = patient(stage, client, f"BDAT {len(body) - 20} LAST\r\n{body[20:].decode()}")
        else:
            assert client.one("RSET") == "250 2.0.0 Ok"
        return told
    told.last = patient(stage, client, "DATA\r\n")
    if told.last.startswith("354"):
        wire = stuffed(body) + b".\r\n"
        client.send(wire[:20])
        told.last = patient(stage, client, wire[20:].decode())
    return told


def patient(stage: FakeStage, client: Client, text: str) -> str:
    client.send(text)
    heard = client.take_all()
    if not heard:
        stage.clock(280.0)
        heard = client.take_all()
    if not heard:
        stage.clock(730.0)  # final
        heard = client.take_all()
    assert len(heard) == 1, (text, heard)
    return heard[0]


def blame_expected(phase: str, fault: str) -> bool | None:
    """With another backend that is well. None: out of step, any answer will do."""
    if fault in ("extra-later", "extra") and phase not in ("greeting", "hello", "body"):
        return None
    if fault.startswith("then-"):
        return True if phase == "greeting" else None if phase != "final" else False
    if fault in ("dead-30", "slow"):
        return False
    if fault in ("stall", "dead-1", "dead-20"):
        return True
    if phase in OPENING:
        return None if fault == "extra-later" else True
    if phase == "final":
        return False
    if phase == "body":
        return fault in ("close", "reset", "421", "garbage", "half", "early", "extra", "extra-later")
    if fault in ("close", "reset", "half", "hang", "421", "garbage"):
        return True
    return fault == "452" and phase == "mail"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize(("phase", "fault"), CASES, ids=[f"{phase}-{fault}" for phase, fault in CASES])
@pytest.mark.parametrize("sick", ["only", "first", "all"])
def test_fault(sick: str, phase: str, fault: str, kept: bool, count: int) -> None:
    run(sick, phase, fault, kept=kept, count=count)


@pytest.mark.parametrize("way", ["chunks", "chunks-as-data"])
@pytest.mark.parametrize(
    ("phase", "fault"),
    [case for case in CASES if case[0] in ("data", "body", "final")],
    ids=lambda part: part,
)
@pytest.mark.parametrize("sick", ["only", "first", "all"])
def test_fault_with_chunks(sick: str, phase: str, fault: str, way: str) -> None:
    run(sick, phase, fault, kept=True, count=1, bdat=True, chunking=way == "chunks")


def run(
    sick: str, phase: str, fault: str, *, kept: bool, count: int, bdat: bool = False, chunking: bool = False
) -> None:
    names = ["A"] if sick == "only" else ["A", "B"]
    stage = FakeStage(Setup(pools={"p": " ".join(names)}, limits={"idle_timeout_s": 3000.0}))
    client = stage.client().hello()
    for mta in stage.mtas.values():
        mta.offers = CHUNKING if chunking else OFFERS
    if kept:
        for name in names:
            check(stage, transaction(stage, client, f"before-{name}@a.test", ["r0@b.test"], bdat=bdat))
    for name in names if sick == "all" else ["A"]:
        commit(stage, name, phase, fault)
    if kept and phase in OPENING:
        stage.mtas["A"].sessions[-1]._close()  # the kept one is gone: a new one has to come up
        stage.loop.settle()
    body = LARGE if fault in ("slow", "stall") else BODY
    told = transaction(
        stage, client, "s@a.test", [f"r{n}@b.test" for n in range(count)], bdat=bdat, body=body
    )
    check(stage, told, may_be_in_doubt=phase == "final" or (bdat and phase == "body"))
    if not bdat:
        expect(stage, told, sick, phase, fault, kept=kept)
    elif told.last.startswith("4") and terminator_left(phase, fault) and not fault.isdigit():
        assert stage.record.outcomes[-1] == "in_doubt"
    for site in stage.sites.values():
        site.connects = "accept"
    for mta in stage.mtas.values():
        mta.faults.clear()
    after = transaction(stage, client, "after@a.test", ["x@b.test", "y@b.test"], bdat=bdat)
    check(stage, after)
    assert after.last.startswith("250 2.0.0 queued at"), after
    assert all(
        reply.startswith(f"250 2.1.5 {recipient} ok at") for recipient, reply in after.recipients.items()
    )
    stage.finish()


def terminator_left(phase: str, fault: str) -> bool:
    """Before the fault came, our end of the message had gone out."""
    return phase == "final" or fault == "dead-30"


def repaired(phase: str, fault: str, *, expected: bool | None) -> bool:
    """The fault came before our terminator, it was one, and another backend is well: the client sees nothing but success."""
    if phase == "body":
        return fault in ("close", "reset", "421", "garbage", "half", "stall", "slow", "dead-1", "dead-20")
    return phase != "final" and (bool(expected) or fault.startswith("then-"))


def expect(stage: FakeStage, told: Told, sick: str, phase: str, fault: str, *, kept: bool) -> None:
    """Beyond the ledger: repaired where another backend is well, blamed as the table says, in doubt behind the dot."""
    if sick == "first":
        expected = blame_expected(phase, fault)
        if kept and phase in OPENING and fault == "421":
            expected = None  # B was not asked the same: its connection was up
        if expected is not None:
            assert ("A" in stage.record.blamed) is expected, stage.record.failures
        assert "B" not in stage.record.blamed
        if repaired(phase, fault, expected=expected):
            assert told.last.startswith("250"), "the other backend took it"
    elif phase not in OPENING:
        assert not stage.record.blamed, "nobody did better"
    if phase == "final" and fault == "452" and sick == "first":
        assert told.last.startswith("250 2.0.0 queued at B")
    elif fault == "slow" or (phase == "final" and fault.startswith("then-")):
        assert told.last.startswith("250")
    elif terminator_left(phase, fault) and not fault.isdigit() and not fault.startswith("extra"):
        assert told.last == "451 4.4.2 No answer to the message, try again later"
        assert stage.record.outcomes[-1] == "in_doubt"
        assert "A in_doubt final" in " ".join(stage.record.failures)


def test_the_matrix_is_whole() -> None:
    def cases() -> Iterator[tuple[str, str]]:
        for phase in PHASES:
            for fault in FAULTS:
                yield phase, fault

    left_out = set(cases()) - set(CASES)
    assert all(
        phase == "connect" or fault in ("refuse", *IN_BODY) or "taken" in fault for phase, fault in left_out
    )
