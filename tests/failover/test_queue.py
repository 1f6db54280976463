"""Who waits while every backend has max_connections in use: in order, bounded, and nobody because of somebody else's wishes."""

from __future__ import annotations

import pytest

from smtplb.messages import BackendState
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.mta import Fault
from tests.dataplane.setup import Setup

BUSY = "451 4.3.2 Mail servers are busy, try again later"


def stage_of(pools: str = "A", limit: int = 1, **setup: object) -> FakeStage:
    setup.setdefault("limits", {"idle_timeout_s": 5000.0, "errors": 1_000_000_000})
    return FakeStage(Setup(pools={"p": pools}, max_connections=limit, **setup))  # type: ignore[arg-type]


def begin(stage: FakeStage, name: str) -> tuple[Client, list[str]]:
    """A client that has said RCPT: the reply to it, if there is one yet."""
    client = stage.client().hello()
    answers = client.ask(f"MAIL FROM:<{name}@a.test>", f"RCPT TO:<{name}@b.test>")
    assert answers[0] == "250 2.1.0 Ok"
    return client, answers[1:]


def holder(stage: FakeStage, backend: str) -> Client:
    """A client that has a lease at that backend."""
    client, answers = begin(stage, f"holder-{backend}")
    assert answers == [f"250 2.1.5 holder-{backend}@b.test ok at {backend}"]
    return client


def test_waiters_are_served_in_order() -> None:
    stage = stage_of()
    first = holder(stage, "A")
    waiting = [begin(stage, f"w{n}") for n in range(5)]
    assert [answers for _, answers in waiting] == [[]] * 5
    client = first
    for n, (following, _) in enumerate(waiting):
        client.ask("RSET")
        assert following.take_all() == [f"250 2.1.5 w{n}@b.test ok at A"]
        assert all(other.take_all() == [] for other, _ in waiting[n + 1 :])
        client = following
    assert stage.sites["A"].count == 1
    stage.finish()


def test_the_queue_is_bounded_in_length_and_time() -> None:
    stage = stage_of(queue={"length": 2, "timeout_s": 10.0})
    held = holder(stage, "A")
    waiting = [begin(stage, f"w{n}") for n in range(2)]
    too_many, answers = begin(stage, "w3")
    assert answers == [BUSY]
    stage.clock(9.0)
    assert [client.take_all() for client, _ in waiting] == [[], []]
    stage.clock(1.5)
    assert [client.take_all() for client, _ in waiting] == [[BUSY], [BUSY]]
    assert stage.listener.context.refusals == {"queue-full": 1, "queue-timeout": 2}
    held.ask("RSET")
    for client, _ in [*waiting, (too_many, [])]:
        client.ask("RSET")
        assert client.message()[-1].startswith("250"), "the session lives on"
    stage.finish()


@pytest.mark.parametrize("how", ["reset", "eof", "RSET"])
def test_a_client_that_leaves_the_queue_is_not_served_and_delays_nobody(how: str) -> None:
    stage = stage_of()
    held = holder(stage, "A")
    leaving, _ = begin(stage, "leaving")
    staying, _ = begin(stage, "staying")
    if how == "RSET":
        assert leaving.ask("RSET") == [], "behind a reply that is due nothing but RCPT is looked at"
    else:
        (leaving.reset if how == "reset" else leaving.eof)()
    held.ask("RSET")
    if how == "reset":
        assert staying.take_all() == ["250 2.1.5 staying@b.test ok at A"]
    else:
        assert leaving.take_all()[0] == "250 2.1.5 leaving@b.test ok at A", (
            "a half-close waits for its answer"
        )
        assert staying.take_all() == ["250 2.1.5 staying@b.test ok at A"]
    stage.finish()


def test_who_waits_for_one_backend_only_does_not_hold_up_those_who_would_take_any() -> None:
    stage = stage_of("A B")
    at_a, at_b = holder(stage, "A"), holder(stage, "B")
    at_a.ask("RSET")
    stage.mtas["A"].faults.append(Fault("mail", "close", times=2))  # the kept connection, and a fresh one
    picky, answers = begin(stage, "picky")
    assert answers == [], "A failed it, B is taken"
    at_a = holder(stage, "A")
    anybody, answers = begin(stage, "anybody")
    assert answers == []
    at_a.ask("RSET")
    assert picky.take_all() == []
    assert anybody.take_all() == ["250 2.1.5 anybody@b.test ok at A"]
    at_b.ask("RSET")
    assert picky.take_all() == ["250 2.1.5 picky@b.test ok at B"]
    stage.finish()


def test_room_in_another_pool_of_the_group_is_taken() -> None:
    stage = FakeStage(
        Setup(pools={"p": "A", "q": "B"}, groups={"g": (("p", 100), ("q", 0))}, target="g", max_connections=1)
    )
    at_a, at_b = holder(stage, "A"), holder(stage, "B")
    waiting, answers = begin(stage, "w")
    assert answers == []
    at_b.ask("RSET")
    assert waiting.take_all() == ["250 2.1.5 w@b.test ok at B"]
    at_a.ask("RSET")
    stage.finish()


def test_a_snapshot_that_brings_a_backend_brings_room() -> None:
    stage = stage_of("A B", states={"B": BackendState.DRAIN})
    at_a = holder(stage, "A")
    waiting, answers = begin(stage, "w")
    assert answers == []
    stage.set_state("B", BackendState.UP)
    assert waiting.take_all() == ["250 2.1.5 w@b.test ok at B"]
    at_a.ask("RSET")
    stage.finish()


def test_who_finds_room_at_a_backend_that_lacks_what_it_uses_is_told_so_at_once() -> None:
    stage = stage_of()
    at_a = holder(stage, "A")
    at_a.ask("RSET")
    stage.apply()  # what A offers is known now
    at_a = holder(stage, "A")
    client = stage.client()
    client.take_all()
    assert "250-8BITMIME" in client.ask("EHLO client.test")
    assert client.ask("MAIL FROM:<w@a.test> BODY=8BITMIME", "RCPT TO:<w@b.test>") == ["250 2.1.0 Ok"]
    router = stage.worker._router
    assert router is not None
    (connection,) = router.pools["p"].backends["A"]._leased
    del connection.capabilities.keywords[b"8BITMIME"]  # what is kept is older than what was seen since
    router.pools["p"].backends["A"].offers = {b"8BITMIME": b""}
    at_a.ask("RSET")
    assert client.take_all() == ["451 4.4.1 No mail server can take this now, try again later"]
    stage.finish()


def test_a_waiting_client_is_not_read() -> None:
    stage = stage_of()
    held = holder(stage, "A")
    waiting, _ = begin(stage, "w")
    for _ in range(10):
        waiting.send(b"NOOP\r\n" * 4000)
    assert not waiting.transport.reading
    held.ask("RSET")
    stage.loop.settle()
    assert waiting.take_all() == ["250 2.1.5 w@b.test ok at A"] + ["250 2.0.0 Ok"] * 40_000
    stage.finish()


def test_a_body_waits_for_room_at_another_backend_and_goes_on_there() -> None:
    """The backend of a message dies in the middle, and the others are full at that moment."""
    stage = stage_of("A B")
    at_a, at_b = holder(stage, "A"), holder(stage, "B")
    assert at_a.one("DATA").startswith("354")
    at_a.send("half of ")
    stage.mtas["A"].sessions[-1]._close()
    stage.loop.settle()
    stage.sites["A"].connects = "refuse"
    assert at_a.take_all() == []
    at_b.ask("RSET")
    at_a.send("it\r\n.\r\n")
    assert at_a.take_all() == ["250 2.0.0 queued at B as 1"]
    assert stage.mtas["B"].taken[0].body == b"half of it\r\n"
    stage.finish()


def test_a_body_that_finds_no_room_in_time_is_read_to_its_end_and_told_so() -> None:
    stage = stage_of("A B")
    at_a, at_b = holder(stage, "A"), holder(stage, "B")
    assert at_a.one("DATA").startswith("354")
    stage.mtas["A"].sessions[-1]._close()
    stage.loop.settle()
    stage.clock(11.0)
    assert at_a.take_all() == []
    at_a.send("it\r\n.\r\n")
    assert at_a.take_all() == [BUSY]
    at_b.ask("RSET")
    assert at_a.message()[-1].startswith("250")
    stage.finish()


def test_never_more_connections_than_allowed_whatever_the_backend_does() -> None:
    """Counted at the backend's end, those that are ending included."""
    stage = stage_of("A", limit=3, keep={"max_transactions": 2}, queue={"timeout_s": 1000.0})
    mta = stage.mtas["A"]
    clients = [stage.client().hello() for _ in range(12)]
    most = 0
    for turn in range(12):
        if turn % 4 == 1:
            mta.faults.append(Fault("mail", "close", times=1))
        if turn % 4 == 3:
            mta.faults.append(Fault("quit", "hang", times=1))
        for client in clients[turn % 3 :: 2]:
            client.send("MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n")
            most = max(most, open_at(stage))
        for client in clients:
            client.send("RSET\r\n")
            most = max(most, open_at(stage))
        stage.clock(6.0)
    assert most == 3
    stage.finish()


def open_at(stage: FakeStage) -> int:
    return sum(not wire.ours.lost for wire in stage.wires if wire.peer in stage.mtas["A"].sessions)
