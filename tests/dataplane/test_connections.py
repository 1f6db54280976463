"""Connections to backends: kept, shared, worn out, drained, and never in two hands."""

from __future__ import annotations

import pytest

from smtplb.messages import BackendState
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.mta import OFFERS, Fault
from tests.dataplane.setup import Setup


def envelope(client: Client, recipient: str = "r@b.test") -> list[str]:
    return client.ask("MAIL FROM:<s@a.test>", f"RCPT TO:<{recipient}>")


def test_one_connection_serves_many_sessions() -> None:
    stage = FakeStage()
    for n in range(10):
        client = stage.client().hello()
        assert client.message()[-1] == f"250 2.0.0 queued at A as {n + 1}"
        client.ask("QUIT")
    assert stage.sites["A"].count == 1
    report = stage.report().backends[0]
    assert report.reuse["new"] == 1
    assert report.reuse["reused"] == 9
    assert report.attempts["ok"] == 10
    stage.finish()


@pytest.mark.parametrize(
    ("keep", "messages", "connections"),
    [
        ({"idle": 0}, 4, 4),
        ({"max_transactions": 1}, 4, 4),
        ({"max_transactions": 2}, 4, 2),
        ({"max_transactions": 3}, 4, 2),
    ],
)
def test_limits_of_reuse(keep: dict[str, int], messages: int, connections: int) -> None:
    stage = FakeStage(Setup(keep=keep))
    client = stage.client().hello()
    for _ in range(messages):
        assert client.message()[-1].startswith("250")
    assert stage.sites["A"].count == connections
    assert [c for c in stage.mtas["A"].commands if c == "QUIT"], "a worn connection is left in peace"
    assert all(session.ended != "aborted" for session in stage.mtas["A"].sessions)
    stage.finish()


@pytest.mark.parametrize(
    ("limits", "connections"), [("MAILMAX=2", 3), ("RCPTMAX=9 MAILMAX=5", 1), ("RCPTMAX=1", 1)]
)
def test_no_more_mail_in_a_session_than_the_backend_announces(limits: str, connections: int) -> None:
    """RFC 9422: the next one would hear an error for what nobody did wrong."""
    stage = FakeStage()
    mta = stage.mtas["A"]
    mta.offers = (*OFFERS, f"LIMITS {limits}")
    client = stage.client().hello()
    for _ in range(5):
        assert client.message()[-1].startswith("250")
    assert stage.sites["A"].count == connections
    assert all(session.ended in ("", "closed") for session in mta.sessions)
    assert stage.record.failures == []
    stage.finish()


def test_mailmax_of_a_backend_is_obeyed() -> None:
    """RFC 9422 3.1: so many transactions in a session, and no more, whatever became of them."""
    stage = FakeStage()
    stage.mtas["A"].offers = (*OFFERS, "LIMITS MAILMAX=3 RCPTMAX=100")
    client = stage.client().hello()
    for _ in range(2):
        assert client.message()[-1].startswith("250")
    envelope(client)
    client.ask("RSET")
    for _ in range(3):
        assert client.message()[-1].startswith("250")
    mails = [session.mails for session in stage.mtas["A"].sessions]
    assert mails == [3, 3]
    assert stage.record.failures == []
    stage.finish()


@pytest.mark.parametrize("offers", [OFFERS, OFFERS[1:], None], ids=["pipelining", "plain", "helo"])
def test_connection_is_retired_after_five_rsets_without_a_message(offers: tuple[str, ...] | None) -> None:
    """Servers count commands that bring no mail, end sessions for them, or begin to sleep: that is not to meet the next client."""
    stage = FakeStage()
    stage.mtas["A"].offers = offers
    client = stage.client().hello()
    for given_up in (4, 4, 5, 5, 2):  # a message between starts the count anew
        for _ in range(given_up):
            envelope(client)
            assert client.one("RSET") == "250 2.0.0 Ok"
        assert client.message()[-1].startswith("250")
    resets = [session.resets for session in stage.mtas["A"].sessions]
    assert resets == [4 + 4 + 5, 5, 2]
    assert [session.ended for session in stage.mtas["A"].sessions[:2]] == ["closed"] * 2
    assert stage.mtas["A"].commands.count("QUIT") == 2
    stage.finish()


def test_idle_connection_expires_with_quit() -> None:
    stage = FakeStage(Setup(keep={"idle_timeout_s": 60.0}))
    client = stage.client().hello()
    client.message()
    stage.clock(59.0)
    assert stage.mtas["A"].commands[-1] != "QUIT"
    stage.clock(2.0)
    assert stage.mtas["A"].commands[-1] == "QUIT"
    client.message()
    assert stage.sites["A"].count == 2
    stage.finish()


def test_old_connection_is_not_used_again() -> None:
    stage = FakeStage(Setup(keep={"max_age_s": 100.0, "idle_timeout_s": 60.0}))
    client = stage.client().hello()
    for _ in range(5):
        client.message()
        stage.clock(30.0)
    assert stage.sites["A"].count == 2
    stage.finish()


def test_sessions_at_once_have_connections_of_their_own() -> None:
    stage = FakeStage()
    clients = [stage.client().hello() for _ in range(5)]
    for n, client in enumerate(clients):
        assert envelope(client, f"r{n}@b.test")[1] == f"250 2.1.5 r{n}@b.test ok at A"
    assert stage.sites["A"].count == 5
    for n, client in enumerate(clients):
        client.ask("DATA")
        client.send("hi\r\n.\r\n")
        assert client.take_all()[0].startswith("250")
        assert stage.mtas["A"].taken[-1].recipients == (f"r{n}@b.test",)
    assert stage.report().backends[0].idle == 5
    stage.finish()


@pytest.mark.parametrize("offers", [("PIPELINING",), (), None], ids=["pipelining", "plain", "helo"])
def test_connection_whose_mail_was_refused_is_used_again(offers: tuple[str, ...] | None) -> None:
    stage = FakeStage()
    mta = stage.mtas["A"]
    mta.offers = offers
    mta.verdicts["bad@a.test"] = "450 4.7.1 later"
    client = stage.client().hello()
    assert (
        client.ask("MAIL FROM:<bad@a.test>", "RCPT TO:<r@b.test>", "RCPT TO:<q@b.test>")[1:]
        == ["450 4.7.1 later"] * 2
    )
    client.ask("RSET")
    assert client.message()[-1].startswith("250")
    assert stage.sites["A"].count == 1
    stage.finish()


@pytest.mark.parametrize("offers", [("PIPELINING",), (), None], ids=["pipelining", "plain", "helo"])
@pytest.mark.parametrize("until", ["MAIL", "RCPT", "RCPT refused", "DATA refused"])
def test_connection_of_a_transaction_that_was_given_up_is_used_again(
    offers: tuple[str, ...] | None, until: str
) -> None:
    stage = FakeStage()
    mta = stage.mtas["A"]
    mta.offers = offers
    mta.verdicts["bad@b.test"] = "550 5.1.1 unknown"
    client = stage.client().hello()
    client.message()
    client.ask("MAIL FROM:<s@a.test>")
    if until != "MAIL":
        client.ask(f"RCPT TO:<{'bad' if until == 'RCPT refused' else 'r'}@b.test>")
    if until == "DATA refused":
        mta.faults.append(Fault("data", "450 4.2.0 not now", times=1))
        assert client.one("DATA") == "450 4.2.0 not now"
    client.ask("RSET")
    assert client.message("next@b.test")[-1].startswith("250")
    assert mta.taken[-1].recipients == ("next@b.test",)
    assert stage.sites["A"].count == 1
    stage.finish()


@pytest.mark.parametrize("act", ["550 5.5.1 no", "close", "hang", "garbage", "extra"])
def test_connection_is_shared_only_after_a_good_answer_to_rset(act: str) -> None:
    stage = FakeStage()
    mta = stage.mtas["A"]
    client = stage.client().hello()
    envelope(client)
    mta.faults.append(Fault("rset", act, times=1))
    client.ask("RSET")
    assert client.message("next@b.test")[0] == "250 2.1.5 next@b.test ok at A"
    assert stage.sites["A"].count == 2
    assert stage.record.failures == []
    stage.finish()


def test_waiting_session_gets_a_connection_only_after_rset_was_answered() -> None:
    """Replies that one session left behind never reach another (design 4.11)."""
    stage = FakeStage(Setup(max_connections=1))
    first, second = stage.client().hello(), stage.client().hello()
    envelope(first, "first@b.test")
    assert envelope(second, "second@b.test") == ["250 2.1.0 Ok"], "it waits"
    first.ask("RSET")
    assert second.take_all() == ["250 2.1.5 second@b.test ok at A"]
    assert stage.sites["A"].count == 1
    commands = stage.mtas["A"].commands
    assert commands[-3:] == ["RSET", "MAIL FROM:<s@a.test>", "RCPT TO:<second@b.test>"]
    stage.finish()


@pytest.mark.parametrize("act", ["421 4.3.2 too much", "close", "550 5.5.0 too much"])
def test_connection_handed_straight_to_the_next_is_a_kept_one(act: str) -> None:
    """The final reply of one transaction frees it for a session that waits; what it says then is the first answer on a
    kept connection."""
    stage = FakeStage(Setup(pools={"p": "A"}, max_connections=1))
    first, second = stage.client().hello(), stage.client().hello()
    envelope(first)
    first.ask("DATA")
    assert envelope(second) == ["250 2.1.0 Ok"], "it waits"
    stage.mtas["A"].faults.append(Fault("mail", act, times=1))
    first.send("hi\r\n.\r\n")
    assert first.take_all() == ["250 2.0.0 queued at A as 1"]
    assert second.take_all() == ["250 2.1.5 r@b.test ok at A"]
    assert stage.record.failures == ["A replaced mail stale"]
    stage.finish()


def test_nobody_waits_longer_than_the_queue_allows() -> None:
    stage = FakeStage(Setup(max_connections=1, queue={"length": 1, "timeout_s": 10.0}))
    first, second, third = (stage.client().hello() for _ in range(3))
    envelope(first)
    assert envelope(second) == ["250 2.1.0 Ok"]
    assert envelope(third)[1] == "451 4.3.2 Mail servers are busy, try again later"
    stage.clock(11.0)
    assert second.take_all() == ["451 4.3.2 Mail servers are busy, try again later"]
    stage.finish()


def test_who_waits_and_leaves_takes_nobodys_turn() -> None:
    stage = FakeStage(Setup(max_connections=1))
    first, second, third = (stage.client().hello() for _ in range(3))
    envelope(first)
    envelope(second)
    envelope(third)
    second.reset()
    assert first.ask("RSET") == ["250 2.0.0 Ok"]
    assert third.take_all()[-1] == "250 2.1.5 r@b.test ok at A"
    stage.finish()


def test_drained_backend_keeps_nothing() -> None:
    """Idle connections end, one in use ends behind its transaction, and one that comes up late is not kept."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    clients = [stage.client().hello() for _ in range(4)]
    for client in clients:
        envelope(client)  # A B A B
    clients[0].ask("RSET")
    stage.set_state("A", BackendState.DRAIN)
    assert [session.ended for session in stage.mtas["A"].sessions] == ["closed", ""]
    clients[2].ask("DATA")
    clients[2].send("hi\r\n.\r\n")
    assert clients[2].take_all() == ["250 2.0.0 queued at A as 1"]
    assert [session.ended for session in stage.mtas["A"].sessions] == ["closed", "closed"]
    assert all(
        client.message()[-1].endswith(f"queued at B as {n + 1}")
        for n, client in enumerate([clients[0], clients[2]])
    )
    stage.finish()


def test_connection_that_comes_up_for_nobody_at_a_drained_backend_ends() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    stage.sites["A"].connects = "hang"
    envelope(client)
    client.reset()
    stage.set_state("A", BackendState.DRAIN)
    stage.sites["A"].connects = "accept"
    for pending in stage.loop.connects:
        if not pending.given_up:
            stage.loop.connecting(pending)
    stage.loop.settle()
    assert all(session.ended == "closed" for session in stage.mtas["A"].sessions)
    assert stage.report().backends[0].idle == 0
    stage.finish()


def test_half_a_reply_on_an_idle_connection_ends_it() -> None:
    """Its other half would be taken for the answer to somebody's MAIL."""
    stage = FakeStage()
    client = stage.client().hello()
    client.message()
    wire = stage.mtas["A"].sessions[0].wire
    assert wire is not None
    wire.say(b"250 hal")
    stage.loop.settle()
    assert client.message("next@b.test")[0] == "250 2.1.5 next@b.test ok at A"
    assert stage.sites["A"].count == 2
    stage.finish()


def test_disliked_connection_is_not_kept() -> None:
    """Five error replies, and a backend may slow down or hang up on the next client (Postfix smtpd_error_sleep_time)."""
    stage = FakeStage()
    mta = stage.mtas["A"]
    mta.verdicts = {f"bad{n}@b.test": "550 5.1.1 unknown" for n in range(5)}
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", *(f"RCPT TO:<bad{n}@b.test>" for n in range(5)), "RSET")
    assert mta.commands[-1] == "QUIT"
    client.message()
    assert stage.sites["A"].count == 2
    stage.finish()


def test_backend_is_told_of_nothing_when_the_client_only_says_mail() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RSET", "MAIL FROM:<s@a.test>", "QUIT")
    assert stage.sites["A"].count == 0
    assert stage.record.outcomes == ["aborted", "aborted"]
    stage.finish()


def test_client_that_leaves_while_a_connection_comes_up() -> None:
    """The connection is kept for the next one."""
    stage = FakeStage()
    client = stage.client().hello()
    stage.sites["A"].connects = "hang"
    envelope(client)
    client.reset()
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[0])
    stage.loop.settle()
    other = stage.client().hello()
    other.message()
    assert len(stage.mtas["A"].sessions) == 1
    stage.finish()


def test_snapshot_may_name_a_backend_down_while_its_connection_comes_up() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    stage.sites["A"].connects = "hang"
    envelope(client)
    stage.set_state("A", BackendState.DOWN)
    stage.clock(6.0)
    assert client.take_all() == ["250 2.1.5 r@b.test ok at B"]
    stage.finish()
