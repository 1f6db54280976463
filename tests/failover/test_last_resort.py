"""When every usable backend has failed a transaction, those that are down or ejected are tried before the client is sent away.

Checks lag: a backend may be well again and not be known to be, and a pool's last usable one may be dead and not be known to be.
"""

from __future__ import annotations

import pytest

from smtplb.messages import BackendState
from tests.dataplane.harness import FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup

OUT = [BackendState.EJECTED, BackendState.DOWN]
LOSSES = ("close", "reset", "garbage", "half", "421 4.3.2 bye")
PLACES = [
    *(("connect", act) for act in ("refuse", "hang")),
    *(("greeting", act) for act in (*LOSSES, "hang")),
    *((phase, act) for phase in ("mail", "rcpt", "data") for act in LOSSES),
]


def stage_where_a_is(state: BackendState) -> FakeStage:
    return FakeStage(Setup(pools={"p": "A B"}, states={"A": state}, limits={"idle_timeout_s": 5000.0}))


def commit(stage: FakeStage, name: str, phase: str, act: str) -> None:
    if phase == "connect":
        stage.sites[name].connects = act
    else:
        stage.mtas[name].faults.append(Fault(phase, act))


def message(stage: FakeStage) -> str:
    """With patience; the last word."""
    client = stage.client().hello()
    heard: list[str] = []
    for line in ("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA", "hi\r\n."):
        client.send(line + "\r\n")
        heard = client.take_all()
        if not heard:
            stage.clock(280.0)
            heard = client.take_all()
        if heard[-1][0] not in "23":
            break
    return heard[-1]


@pytest.mark.parametrize("state", OUT)
@pytest.mark.parametrize(("phase", "act"), PLACES)
def test_one_that_is_out_takes_the_message_when_the_last_usable_one_fails(
    state: BackendState, phase: str, act: str
) -> None:
    stage = stage_where_a_is(state)
    commit(stage, "B", phase, act)
    if act == "421 4.3.2 bye" and phase != "greeting":
        assert message(stage).startswith("451 4.3.2 bye"), "words are passed on as they are"
    else:
        assert message(stage).startswith("250 2.0.0 queued at A")
    stage.finish()


@pytest.mark.parametrize("state", OUT)
def test_it_takes_over_in_the_body_too(state: BackendState) -> None:
    stage = stage_where_a_is(state)
    client = stage.client().hello()
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
    client.send("half of ")
    stage.mtas["B"].sessions[-1]._close()
    stage.loop.settle()
    client.send("it\r\n.\r\n")
    assert client.take_all() == ["250 2.0.0 queued at A as 1"]
    assert stage.mtas["A"].taken[0].body == b"half of it\r\n"
    stage.finish()


@pytest.mark.parametrize("state", [BackendState.DRAIN, BackendState.MAINT])
def test_one_that_the_operator_took_out_is_never_tried(state: BackendState) -> None:
    stage = stage_where_a_is(state)
    stage.sites["B"].connects = "refuse"
    assert message(stage).startswith("451 4.4.1")
    assert stage.sites["A"].count == 0
    stage.finish()


@pytest.mark.parametrize("state", OUT)
@pytest.mark.parametrize(
    "words", ["451 4.3.0 lookup failed", "452 4.3.1 full", "450 4.2.0 grey", "550 5.1.1 no"]
)
def test_words_of_the_usable_one_are_passed_on_without_asking_those_that_are_out(
    state: BackendState, words: str
) -> None:
    """Else a fact about one recipient would cost a connect to a dead host each time."""
    stage = stage_where_a_is(state)
    stage.mtas["B"].verdicts["r@b.test"] = words
    assert message(stage) == words
    assert stage.sites["A"].count == 0
    stage.finish()


def test_attempts_stay_bounded() -> None:
    stage = FakeStage(
        Setup(pools={"p": "A B D"}, states={"A": BackendState.DOWN, "D": BackendState.EJECTED}, attempts=2)
    )
    for name in "ABD":
        stage.sites[name].connects = "refuse"
    assert message(stage).startswith("451 4.4.1")
    assert sum(site.count for site in stage.sites.values()) == 2
    stage.finish()


def test_both_out_and_both_failing_is_said_so() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, states={"A": BackendState.DOWN, "B": BackendState.EJECTED}))
    for name in "AB":
        stage.sites[name].connects = "refuse"
    assert message(stage).startswith("451 4.4.1")
    assert sum(site.count for site in stage.sites.values()) == 2
    stage.finish()
