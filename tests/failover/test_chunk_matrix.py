"""The fault matrix of tests/dataplane/test_matrix.py once more, for a client that sends BDAT.

Backends with CHUNKING get chunks, those without get DATA; a replay may go from one kind to the other.
"""

from __future__ import annotations

import pytest

from tests.dataplane.harness import FakeStage
from tests.dataplane.ledger import check
from tests.dataplane.mta import OFFERS
from tests.dataplane.setup import Setup
from tests.dataplane.test_matrix import (
    BODY,
    CASES,
    CHUNKING,
    LARGE,
    OPENING,
    blame_expected,
    commit,
    repaired,
    terminator_left,
    transaction,
)

# sick -> names of the backends that have no CHUNKING. A is the one that fails.
KINDS = {
    "only": ("", "A"),
    "first": ("", "A", "B", "AB"),
    "all": ("", "AB"),
}
PARTIES = [(sick, plain) for sick, kinds in KINDS.items() for plain in kinds]


def a_gets_data(plain: str) -> bool:
    return "A" in plain


def blamed_where_another_is_well(phase: str, fault: str, plain: str) -> bool | None:
    """As with DATA, but for what the other kind of backend is never asked. None: any answer will do."""
    if phase == "data":
        if not a_gets_data(plain):
            return False  # A is never asked
        if "B" not in plain:
            return (
                None if fault.startswith(("extra", "then-")) else False
            )  # B is never asked: nothing proves A wrong
    if phase == "body" and not a_gets_data(plain) and fault in ("hang", "early", "extra", "extra-later"):
        return None  # a chunk has a reply of its own: its silence is found out at the last one
    return blame_expected(phase, fault)


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize(("phase", "fault"), CASES, ids=[f"{phase}-{fault}" for phase, fault in CASES])
@pytest.mark.parametrize(
    ("sick", "plain"), PARTIES, ids=[f"{sick}-{plain or 'none'}" for sick, plain in PARTIES]
)
def test_fault(sick: str, plain: str, phase: str, fault: str, kept: bool) -> None:
    for count in (1, 3):
        one_case(sick, plain, phase, fault, kept=kept, count=count)


def one_case(sick: str, plain: str, phase: str, fault: str, *, kept: bool, count: int) -> None:
    names = ["A"] if sick == "only" else ["A", "B"]
    stage = FakeStage(Setup(pools={"p": " ".join(names)}, limits={"idle_timeout_s": 3000.0}))
    for name, mta in stage.mtas.items():
        mta.offers = OFFERS if name in plain else CHUNKING
    client = stage.client().hello()
    if kept:
        for name in names:
            check(stage, transaction(stage, client, f"before-{name}@a.test", ["r0@b.test"], bdat=True))
    for name in names if sick == "all" else ["A"]:
        commit(stage, name, phase, fault)
    if kept and phase in OPENING:
        stage.mtas["A"].sessions[-1]._close()
        stage.loop.settle()
    body = LARGE if fault in ("slow", "stall") else BODY
    told = transaction(
        stage, client, "s@a.test", [f"r{n}@b.test" for n in range(count)], bdat=True, body=body
    )
    hung_chunk = phase == "body" and fault == "hang"
    check(stage, told, may_be_in_doubt=phase == "final" or hung_chunk)
    if sick == "first":
        expected = blamed_where_another_is_well(phase, fault, plain)
        if kept and phase in OPENING and fault == "421":
            expected = None  # B was not asked the same: its connection was up
        if expected is not None:
            assert ("A" in stage.record.blamed) is expected, stage.record.failures
        assert "B" not in stage.record.blamed
        if repaired(phase, fault, expected=blame_expected(phase, fault)):
            assert told.last.startswith("250"), (told, stage.record.failures)
    elif phase not in OPENING:
        assert not stage.record.blamed, "nobody did better"
    if fault == "slow" or (phase == "final" and fault.startswith("then-")):
        assert told.last.startswith("250")
    elif terminator_left(phase, fault) and not fault.isdigit() and not fault.startswith("extra"):
        assert told.last == "451 4.4.2 No answer to the message, try again later"
        assert stage.record.outcomes[-1] == "in_doubt"
    for site in stage.sites.values():
        site.connects = "accept"
    for mta in stage.mtas.values():
        mta.faults.clear()
    after = transaction(stage, client, "after@a.test", ["x@b.test", "y@b.test"], bdat=True)
    check(stage, after)
    assert after.last.startswith("250 2.0.0 queued at"), after
    stage.finish()
