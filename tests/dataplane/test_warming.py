"""`connections.warm`: connections that are there before anybody needs them, and what they may never do."""

from __future__ import annotations

import pytest

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.warming import MAX_REST_S
from smtplb.messages import BackendState, DrainSessions, SessionsDrained, StopAccepting
from smtplb.settings import Address, BackendSettings, ConnectionSettings, IdentityMode, PoolSettings
from tests.dataplane.fakes import FakeLoop
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup
from tests.dataplane.test_sockets import lab

PULSE_S = 0.7  # in which the worker's pulse beats at least once


def warmed(warm: int = 2, beats: int = 2, **setup: object) -> FakeStage:
    stage = FakeStage(Setup(keep={"warm": warm, "max_age_s": 3000.0}, **setup))  # type: ignore[arg-type]
    stage.clock(beats * PULSE_S)
    return stage


def end(stage: FakeStage) -> None:
    """Nothing is left once nothing is to be kept ready."""
    for name in stage.mtas:
        stage.set_state(name, BackendState.DRAIN)
    stage.finish()


def open_now(stage: FakeStage, name: str = "A") -> int:
    return sum(session.ended == "" and not session.deaf for session in stage.mtas[name].sessions)


def envelope(client: Client) -> list[str]:
    return client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")


def test_the_first_transaction_finds_a_connection_past_ehlo() -> None:
    stage = warmed(2)
    assert stage.mtas["A"].commands == ["EHLO lb.test"] * 2
    client = stage.client().hello()
    stage.sites["A"].connects = "hang"  # none could come up now
    assert client.message()[-1] == "250 2.0.0 queued at A as 1"
    assert stage.sites["A"].count == 2
    assert stage.report().backends[0].idle == 2
    end(stage)


def test_what_is_in_use_is_replaced_and_what_is_kept_counts() -> None:
    stage = warmed(2)
    clients = [stage.client().hello() for _ in range(3)]
    for client in clients:
        envelope(client)
    stage.clock(2 * PULSE_S)
    assert stage.sites["A"].count == 3 + 2
    for client in clients:
        client.ask("RSET")
    stage.clock(2 * PULSE_S)
    assert stage.report().backends[0].idle == 5, "up to `idle` all are kept"
    assert stage.sites["A"].count == 5
    end(stage)


def test_two_at_most_come_up_at_once() -> None:
    stage = warmed(10, beats=0)
    stage.sites["A"].connects = "hang"
    stage.clock(4.0)
    assert stage.sites["A"].count == 2
    end(stage)


def test_one_that_expires_is_replaced() -> None:
    stage = FakeStage(Setup(keep={"warm": 2, "idle_timeout_s": 60.0}))
    stage.clock(600.0)
    assert open_now(stage) == 2
    assert 18 <= stage.sites["A"].count <= 22
    assert all(session.ended in ("", "closed") for session in stage.mtas["A"].sessions), "with QUIT"
    end(stage)


@pytest.mark.parametrize("state", [BackendState.DOWN, BackendState.EJECTED, BackendState.UNPROVEN])
def test_none_is_opened_at_a_backend_that_is_not_usable(state: BackendState) -> None:
    stage = warmed(2, states={"A": state})
    assert stage.sites["A"].count == 0
    stage.set_state("A", BackendState.UP)
    stage.clock(PULSE_S)
    assert open_now(stage) == 2
    stage.set_state("A", state)
    stage.clock(600.0)
    assert open_now(stage) == 0, "idle_timeout"
    assert stage.sites["A"].count == 2
    end(stage)


@pytest.mark.parametrize("state", [BackendState.DRAIN, BackendState.MAINT])
def test_they_end_when_the_operator_takes_the_backend_out(state: BackendState) -> None:
    stage = warmed(2)
    stage.set_state("A", state)
    stage.clock(30.0)
    assert [session.ended for session in stage.mtas["A"].sessions] == ["closed", "closed"]
    assert stage.mtas["A"].commands.count("QUIT") == 2
    end(stage)


def test_never_more_than_max_connections() -> None:
    stage = warmed(3, max_connections=4)
    assert open_now(stage) == 3
    clients = [stage.client().hello() for _ in range(6)]
    for client in clients:
        envelope(client)
        stage.clock(2 * PULSE_S)
        assert open_now(stage) <= 4
    assert [len(client.take_all()) for client in clients] == [0] * 6
    assert stage.report().backends[0].leased == 4
    clients[0].ask("RSET")
    assert clients[4].take_all() == ["250 2.1.5 r@b.test ok at A"], "who waits comes first"
    end(stage)


@pytest.mark.parametrize("trouble", ["refuse", "greeting", "right after"])
def test_trouble_makes_it_rest_longer_and_longer_and_ejects_nobody(trouble: str) -> None:
    stage = FakeStage(Setup(keep={"warm": 4, "idle_timeout_s": 3000.0, "max_age_s": 3000.0}))
    if trouble == "refuse":
        stage.sites["A"].connects = "refuse"
    elif trouble == "greeting":
        stage.mtas["A"].faults.append(Fault("greeting", "421 4.3.2 too many"))
    spans = []
    before = 0
    for _ in range(10):
        for _ in range(60):
            stage.clock(1.0)
            if trouble == "right after":
                for session in stage.mtas["A"].sessions:
                    if not session.deaf:
                        session._close()
                stage.loop.settle()
        spans.append(stage.sites["A"].count - before)
        before = stage.sites["A"].count
    # Two come up at once, and two more before the first of them has ended.
    assert spans[0] <= 4 * 7
    assert all(span <= 4 * 2 for span in spans[2:]), spans
    assert stage.record.failures == []
    stage.sites["A"].connects = "accept"
    stage.mtas["A"].faults.clear()
    stage.clock(MAX_REST_S + 2.0)
    assert open_now(stage) == 4
    end(stage)


def test_a_backend_that_was_away_is_warmed_at_once_when_it_is_back() -> None:
    stage = warmed(2, beats=0)
    stage.sites["A"].connects = "refuse"
    stage.clock(300.0)
    stage.set_state("A", BackendState.DOWN)
    stage.clock(PULSE_S)
    stage.sites["A"].connects = "accept"
    stage.set_state("A", BackendState.UP)
    stage.clock(PULSE_S)
    assert open_now(stage) == 2
    end(stage)


@pytest.mark.parametrize("act", ["421 4.4.2 idle for too long", "close", "reset", "550 5.5.0 too long"])
def test_one_that_grew_stale_unused_is_replaced_unseen_and_nobody_is_blamed(act: str) -> None:
    stage = warmed(1, pools={"p": "A B"})
    stage.mtas["A"].faults.append(Fault("mail", act, times=1))
    client = stage.client().hello()
    assert client.message()[-1] == "250 2.0.0 queued at A as 1"
    assert stage.record.failures == ["A replaced mail stale"]
    end(stage)


@pytest.mark.parametrize("act", ["421 4.4.2 idle for too long", "close"])
def test_so_is_one_that_came_up_for_a_client_that_had_left(act: str) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    stage.sites["A"].connects = "hang"
    envelope(client)
    client.reset()
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[0])
    stage.loop.settle()
    stage.mtas["A"].faults.append(Fault("mail", act, times=1))
    other = stage.client().hello()
    other.message()  # B's turn
    assert other.message()[-1] == "250 2.0.0 queued at A as 1"
    assert stage.record.failures == ["A replaced mail stale"]
    stage.finish()


def test_one_that_fails_takes_nobody_down_whose_own_is_still_coming() -> None:
    stage = FakeStage(Setup(keep={"warm": 2}))
    stage.sites["A"].connects = "hang"
    stage.clock(PULSE_S)
    client = stage.client().hello()
    envelope(client)
    assert stage.sites["A"].count == 2, "it takes one of those that are coming"
    first, second = stage.loop.connects
    first.refuse()
    stage.loop.settle()
    assert client.take_all() == []
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(second)
    stage.loop.settle()
    assert client.take_all() == ["250 2.1.5 r@b.test ok at A"]
    assert stage.record.failures == []
    end(stage)


def test_what_carries_a_clients_identity_is_not_opened_without_one() -> None:
    stage = FakeStage()
    runtime = Runtime(
        FakeLoop().as_loop,
        stage.deadlines,
        lambda event: None,
        log=lambda event: None,
        hello=b"lb.test",
        session_prefix="s",
    )
    pool = PoolSettings("p", ())
    for identity in IdentityMode:
        settings = BackendSettings(
            "p",
            "A",
            Address("192.0.2.1", 25),
            identity=identity,
            connections=ConnectionSettings(warm=2),
        )
        assert (Backend(runtime, settings, pool).warming is None) is identity.binds
    stage.finish()


def test_a_stop_is_not_held_up_by_one_that_is_coming() -> None:
    stage = warmed(2)
    envelope(stage.client().hello())
    stage.sites["A"].connects = "hang"
    stage.clock(PULSE_S)
    late = stage.loop.connects[-1]
    stage.receive(StopAccepting())
    stage.receive(DrainSessions(1.0))
    stage.clock(1.2)
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(late)
    stage.loop.settle()
    stage.clock(1.0)
    assert stage.record.of(SessionsDrained)
    assert len(stage.mtas["A"].sessions) == 3
    stage.finish()


async def test_warm_connections_on_sockets() -> None:
    async with lab(Setup(pools={"p": "A"}, keep={"warm": 3})) as it:
        hellos = it.mtas["A"].commands
        assert await it.theatre.until(lambda: hellos.count("EHLO lb.test") == 3 or None)
        client = await it.client()
        await it.theatre.connects("A", "refuse")
        for n in range(5):
            assert await client.message() == f"250 2.0.0 queued at A as {n + 1}"
        assert it.theatre.sites["A"].count == 3
        assert it.theatre.record.failures == []
