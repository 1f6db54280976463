"""What follows a failed attempt: second opinions, stale connections, the limit; and that it always comes to an end."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.policy.outcome import (
    IDLE_LOSS,
    Blame,
    Command,
    Decision,
    Elsewhere,
    Reason,
    classify_loss,
    classify_opening,
    classify_reply,
)
from smtplb.policy.retry import Attempts, BackendKey, Next, attempt_deadline_s
from smtplb.smtp.replies import Reply
from tests.effort import examples

A, B, C, D = (("pool", name) for name in "abcd")


def reply(line: bytes, command: Command = Command.RCPT, *, first_on_kept: bool = False) -> Decision:
    told = Reply(int(line[:3]), [line[4:]])
    return classify_reply(command, told, first_on_kept=first_on_kept, errors_before=0)


VERDICT = reply(b"550 5.1.1 no")
BUSY = reply(b"421 4.3.2 busy")
POLICY = reply(b"421 4.7.0 slow down")
STORAGE = reply(b"452 4.3.1 disk full")
MISFIT = reply(b"530 5.7.0 TLS first")
STALE_REPLY = reply(b"550 5.0.0 what", Command.MAIL, first_on_kept=True)
STALE_MISFIT = reply(b"503 5.5.1 what", Command.MAIL, first_on_kept=True)
LOST = classify_loss(Reason.LOST, first_on_kept=False, errors_before=0)
STALE = classify_loss(Reason.LOST, first_on_kept=True, errors_before=0)
REFUSED = classify_opening(Reason.CONNECT, None)
BUSY_GREETING = classify_opening(Reason.GREETING, Reply(421, [b"4.3.2 busy"]))


def blamed(attempts: Attempts, command: object) -> list[BackendKey]:
    return [suspicion.backend for suspicion in attempts.succeeded(command)]


def failed(
    attempts: Attempts,
    backend: BackendKey,
    decision: Decision,
    command: object = "RCPT 1",
    *,
    has_reply: bool = True,
) -> Next:
    attempts.begin(backend)
    return attempts.after(backend, command, decision, has_reply=has_reply)


# -- one failure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "with_reply", "without_reply"),
    [
        (VERDICT, Next.RELAY, Next.GIVE_UP),
        (BUSY, Next.OTHER, Next.OTHER),
        (STORAGE, Next.OTHER, Next.OTHER),
        (LOST, Next.OTHER, Next.OTHER),
        (MISFIT, Next.OTHER, Next.OTHER),
        (REFUSED, Next.OTHER, Next.OTHER),
        (BUSY_GREETING, Next.OTHER, Next.OTHER),
        (STALE, Next.SAME_FRESH, Next.SAME_FRESH),
        (IDLE_LOSS, Next.SAME_FRESH, Next.SAME_FRESH),
        (POLICY, Next.SAME_FRESH, Next.SAME_FRESH),
        (STALE_REPLY, Next.SAME_FRESH, Next.SAME_FRESH),
        (STALE_MISFIT, Next.SAME_FRESH, Next.SAME_FRESH),
    ],
)
def test_after_the_first_failure(decision: Decision, with_reply: Next, without_reply: Next) -> None:
    assert failed(Attempts(3), A, decision) is with_reply
    assert failed(Attempts(3), A, decision, has_reply=False) is without_reply


@pytest.mark.parametrize(
    ("decision", "with_reply"),
    [
        (VERDICT, Next.RELAY),
        (BUSY, Next.RELAY),
        (STORAGE, Next.RELAY),
        (POLICY, Next.RELAY),
        (STALE_REPLY, Next.RELAY),
        # about us, not about the mail: relayed it would bounce it
        (MISFIT, Next.GIVE_UP),
        (STALE_MISFIT, Next.GIVE_UP),
        (REFUSED, Next.GIVE_UP),
        (BUSY_GREETING, Next.GIVE_UP),
    ],
)
def test_with_nobody_else_to_ask(decision: Decision, with_reply: Next) -> None:
    assert Attempts.without_other(decision, has_reply=True) is with_reply
    assert Attempts.without_other(decision, has_reply=False) is Next.GIVE_UP


# -- second opinions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), list(product([BUSY, STORAGE, LOST], repeat=2)))
def test_two_backends_that_fail_alike_are_a_fact_about_the_mail_and_nobody_is_blamed(
    first: Decision, second: Decision
) -> None:
    attempts = Attempts(5)
    assert failed(attempts, A, first) is Next.OTHER
    assert failed(attempts, B, second) is Next.RELAY
    assert blamed(attempts, "RCPT 1") == []


def test_two_that_fall_silent_leave_nothing_to_relay() -> None:
    attempts = Attempts(5)
    assert failed(attempts, A, LOST, has_reply=False) is Next.OTHER
    assert failed(attempts, B, LOST, has_reply=False) is Next.GIVE_UP


@pytest.mark.parametrize("decision", [BUSY, STORAGE, LOST])
def test_the_first_is_blamed_when_the_second_answers_the_same_command(decision: Decision) -> None:
    attempts = Attempts(3)
    assert failed(attempts, A, decision) is Next.OTHER
    attempts.begin(B)
    assert blamed(attempts, Command.MAIL) == [], "another command proves nothing"
    assert blamed(attempts, "RCPT 2") == []
    assert blamed(attempts, "RCPT 1") == [A]
    assert blamed(attempts, "RCPT 1") == [], "once"


def test_a_verdict_of_the_second_proves_nothing_about_the_first() -> None:
    attempts = Attempts(3)
    failed(attempts, A, LOST)
    assert failed(attempts, B, VERDICT) is Next.RELAY
    assert blamed(attempts, Command.DATA) == []


def test_failures_at_different_commands_are_two_questions() -> None:
    attempts = Attempts(5)
    assert failed(attempts, A, BUSY, "RCPT 1") is Next.OTHER
    assert failed(attempts, B, LOST, Command.MAIL) is Next.OTHER
    attempts.begin(C)
    assert blamed(attempts, Command.MAIL) == [B]
    assert blamed(attempts, "RCPT 1") == [A]


def test_what_is_never_blamed_leaves_no_suspicion() -> None:
    for decision in (MISFIT, POLICY, STALE, STALE_REPLY, STALE_MISFIT, VERDICT, IDLE_LOSS, REFUSED):
        assert decision.blame is not Blame.IF_OTHER_SUCCEEDS
        attempts = Attempts(3)
        failed(attempts, A, decision)
        assert blamed(attempts, "RCPT 1") == []


def test_busy_greetings_are_tried_all_round_and_blamed_against_one_that_answers() -> None:
    attempts = Attempts(4)
    assert failed(attempts, A, BUSY_GREETING, Command.CONNECT, has_reply=False) is Next.OTHER
    assert failed(attempts, B, BUSY_GREETING, Command.CONNECT, has_reply=False) is Next.OTHER
    attempts.begin(C)
    assert blamed(attempts, Command.CONNECT) == [A, B]


def test_a_misfit_does_not_end_the_search_for_a_second_opinion() -> None:
    attempts = Attempts(4)
    assert failed(attempts, A, LOST) is Next.OTHER
    assert failed(attempts, B, MISFIT) is Next.OTHER
    attempts.begin(C)
    assert blamed(attempts, "RCPT 1") == [A]


# -- stale connections ---------------------------------------------------------------------------------------------


def test_a_stale_connection_is_replaced_once_and_does_not_count() -> None:
    attempts = Attempts(1)
    assert failed(attempts, A, STALE, has_reply=False) is Next.SAME_FRESH
    attempts.begin(A)
    assert attempts.count == 1
    assert failed(attempts, A, STALE, has_reply=False) is Next.GIVE_UP


def test_a_backend_that_hangs_up_on_a_fresh_connection_too_gives_way_to_another() -> None:
    attempts = Attempts(2)
    assert failed(attempts, A, STALE, has_reply=False) is Next.SAME_FRESH
    assert failed(attempts, A, STALE, has_reply=False) is Next.OTHER
    assert failed(attempts, B, STALE, has_reply=False) is Next.SAME_FRESH, "each may be stale once"
    assert failed(attempts, B, STALE, has_reply=False) is Next.GIVE_UP


def test_a_policy_421_on_a_fresh_connection_too_is_the_answer() -> None:
    attempts = Attempts(3)
    assert failed(attempts, A, POLICY) is Next.SAME_FRESH
    assert failed(attempts, A, POLICY) is Next.RELAY


def test_a_5xx_that_a_fresh_connection_repeats_is_the_answer_unless_it_is_about_us() -> None:
    attempts = Attempts(3)
    assert failed(attempts, A, STALE_REPLY, Command.MAIL) is Next.SAME_FRESH
    assert failed(attempts, A, VERDICT, Command.MAIL) is Next.RELAY
    attempts = Attempts(2)
    assert failed(attempts, A, STALE_MISFIT, Command.MAIL) is Next.SAME_FRESH
    assert failed(attempts, A, MISFIT, Command.MAIL) is Next.OTHER
    assert failed(attempts, B, STALE_MISFIT, Command.MAIL) is Next.SAME_FRESH
    assert failed(attempts, B, STALE_MISFIT, Command.MAIL) is Next.GIVE_UP


# -- the limit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("decision", [REFUSED, MISFIT, BUSY_GREETING])
def test_backends_are_asked_up_to_the_limit(decision: Decision, limit: int) -> None:
    attempts = Attempts(limit)
    for backend in (A, B, C, D)[: limit - 1]:
        assert failed(attempts, backend, decision, has_reply=False) is Next.OTHER
    assert failed(attempts, (A, B, C, D)[limit - 1], decision, has_reply=False) is Next.GIVE_UP


def test_at_the_limit_the_words_of_the_last_are_the_answer() -> None:
    assert failed(Attempts(1), A, BUSY) is Next.RELAY
    assert failed(Attempts(1), A, MISFIT) is Next.GIVE_UP


FRESH = [VERDICT, BUSY, POLICY, STORAGE, MISFIT, LOST, REFUSED, BUSY_GREETING, IDLE_LOSS]
ANY_DECISION = st.sampled_from([*FRESH, STALE_REPLY, STALE_MISFIT, STALE])
STORIES = st.lists(st.tuples(ANY_DECISION, st.integers(0, 2), st.booleans()), min_size=40, max_size=40)


@settings(max_examples=examples(300))
@given(st.integers(1, 5), STORIES)
def test_every_story_ends_and_asks_no_backend_more_than_once_and_once_afresh(
    limit: int, story: list[tuple[Decision, int, bool]]
) -> None:
    attempts = Attempts(limit)
    asked = [("pool", "0")]
    for decision, command, has_reply in story:
        following = failed(attempts, asked[-1], decision, command, has_reply=has_reply)
        if following is Next.SAME_FRESH:
            asked.append(asked[-1])
        elif following is Next.OTHER:
            asked.append(("pool", str(len(set(asked)))))
        else:
            assert following is Next.GIVE_UP or has_reply
            if following is Next.RELAY:
                assert decision.elsewhere is not Elsewhere.ANY
                assert decision.reason is not Reason.MISFIT
            break
    else:
        pytest.fail("no end")
    assert len(set(asked)) <= limit
    assert all(asked.count(backend) <= 2 for backend in asked)
    assert attempts.count == len(set(asked))


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout_s", "budget_end_s", "others_left", "deadline_s"),
    [
        (5.0, 1270.0, True, 1005.0),
        (300.0, 1270.0, True, 1135.0),  # half of what is left
        (300.0, 1270.0, False, 1270.0),
        (300.0, 2000.0, False, 1300.0),
        (300.0, 1000.0, True, 1000.0),
        (300.0, 900.0, True, 1000.0),  # overdrawn: at once, never in the past
        (300.0, 900.0, False, 1000.0),
    ],
)
def test_an_attempt_gets_its_timeout_or_what_the_clients_time_allows(
    timeout_s: float, budget_end_s: float, others_left: bool, deadline_s: float
) -> None:
    assert attempt_deadline_s(1000.0, timeout_s, budget_end_s, others_left=others_left) == deadline_s


SECONDS = st.floats(0, 1e6)


@given(SECONDS, SECONDS, SECONDS, st.booleans())
def test_no_attempt_outlasts_its_timeout_or_the_clients_time(
    now: float, timeout_s: float, budget_end_s: float, others_left: bool
) -> None:
    deadline_s = attempt_deadline_s(now, timeout_s, budget_end_s, others_left=others_left)
    assert now <= deadline_s <= now + timeout_s
    assert deadline_s <= max(now, budget_end_s) + 1e-6
    assert deadline_s <= attempt_deadline_s(now, timeout_s, budget_end_s, others_left=False)
