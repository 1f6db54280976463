"""Fault or verdict: the table of the design row by row, and what no client can ever bring about."""

from __future__ import annotations

from itertools import product

import pytest

from smtplb.policy.outcome import (
    EARLY_REPLY,
    ERRORS_BEFORE_A_421_IS_OURS,
    GARBLED_REPLY,
    IDENTITY_REFUSED,
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
from smtplb.policy.retry import Attempts, Next
from smtplb.smtp.replies import Reply

NO, ANY = Elsewhere.NO, Elsewhere.ANY
ONE_OTHER, NEW_CONNECTION = Elsewhere.ONE_OTHER, Elsewhere.NEW_CONNECTION
NEVER, AT_ONCE, IF_OTHER = Blame.NEVER, Blame.AT_ONCE, Blame.IF_OTHER_SUCCEEDS
MAIL, RCPT, DATA, BODY = Command.MAIL, Command.RCPT, Command.DATA, Command.BODY
ENVELOPE = (MAIL, RCPT, DATA)
INSIDE = (*ENVELOPE, BODY)


def said(line: str) -> Reply:
    code, _, text = line.partition(" ")
    return Reply(int(code), [text.encode()])


def decide(
    command: Command,
    line: str,
    *,
    first_on_kept: bool = False,
    errors_before: int = 0,
    enhanced_offered: bool = True,
) -> Decision:
    return classify_reply(
        command,
        said(line),
        first_on_kept=first_on_kept,
        errors_before=errors_before,
        enhanced_offered=enhanced_offered,
    )


def facts(decision: Decision) -> tuple[Elsewhere, Blame, Reason]:
    return decision.elsewhere, decision.blame, decision.reason


VERDICT = (NO, NEVER, Reason.VERDICT)
BUSY = (ONE_OTHER, IF_OTHER, Reason.BUSY)
STORAGE = (ONE_OTHER, IF_OTHER, Reason.STORAGE)
STALE = (NEW_CONNECTION, NEVER, Reason.STALE)
MISFIT = (ANY, NEVER, Reason.MISFIT)

# what is said: (to which commands it is said, what it is there, what it is to the others)
REPLIES: dict[str, tuple[tuple[Command, ...], tuple[object, ...], tuple[object, ...] | None]] = {
    # 421 but not 4.7.x
    "421 4.3.2 closing": (INSIDE, BUSY, None),
    "421 too busy": (INSIDE, BUSY, None),
    "421 4.4.2 timeout": (INSIDE, BUSY, None),
    "421 4.3.0 queue file write error": (INSIDE, BUSY, None),
    # 421 4.7.x
    "421 4.7.0 too many errors": (INSIDE, STALE, None),
    "421 4.7.1 rate": (INSIDE, STALE, None),
    # 452 at MAIL; 452 4.3.1
    "452 try later": ((MAIL,), STORAGE, VERDICT),
    "452 4.5.3 too many recipients": ((MAIL,), STORAGE, VERDICT),
    "452 4.2.2 mailbox full": ((MAIL,), STORAGE, VERDICT),
    "452 4.3.1 insufficient system storage": (INSIDE, STORAGE, None),
    # 4.3.0, 4.3.1, 4.3.5 at MAIL, RCPT, DATA
    "451 4.3.0 alias database unavailable": (ENVELOPE, STORAGE, VERDICT),
    "450 4.3.0 queue file write error": (ENVELOPE, STORAGE, VERDICT),
    "451 4.3.1 out of memory": (ENVELOPE, STORAGE, VERDICT),
    "451 4.3.5 server configuration error": (ENVELOPE, STORAGE, VERDICT),
    "454 4.3.0 please try again": (ENVELOPE, STORAGE, VERDICT),
    # everything else
    "450 4.3.2 system not accepting": (INSIDE, VERDICT, None),
    "451 4.3.2 please try again": (INSIDE, VERDICT, None),
    "451 4.4.3 temporary lookup failure": (INSIDE, VERDICT, None),
    "450 4.4.1 sender domain: timeout": (INSIDE, VERDICT, None),
    "450 greylisted": (INSIDE, VERDICT, None),
    "451 4.7.1 greylisted": (INSIDE, VERDICT, None),
    "450 4.1.8 sender domain not found": (INSIDE, VERDICT, None),
    "451 5.3.0 of another class": (INSIDE, VERDICT, None),
    "451 4.3.01 no such detail": (INSIDE, VERDICT, None),
    "454 4.7.0 TLS not available": (INSIDE, VERDICT, None),
    "550 5.1.1 user unknown": (INSIDE, VERDICT, None),
    "550 no": (INSIDE, VERDICT, None),
    "552 5.3.4 too large": (INSIDE, VERDICT, None),
    "553 5.1.8 domain does not exist": (INSIDE, VERDICT, None),
    "554 5.7.1 access denied": (INSIDE, VERDICT, None),
    "554 5.5.1 no valid recipients": (INSIDE, VERDICT, None),
    "551 not here": (INSIDE, VERDICT, None),
    "556 5.1.10 null MX": (INSIDE, VERDICT, None),
    "571 5.7.1 of an access map": (INSIDE, VERDICT, None),
    "501 5.1.3 bad recipient address syntax": (INSIDE, VERDICT, None),
    "501 5.1.7 bad sender address syntax": (INSIDE, VERDICT, None),
    "501 5.5.4 unsupported parameter": (INSIDE, VERDICT, None),
    # 5xx about us
    "500 5.5.2 command unrecognized": (INSIDE, MISFIT, None),
    "502 5.5.1 not implemented": (INSIDE, MISFIT, None),
    "503 5.5.1 bad sequence": (INSIDE, MISFIT, None),
    "504 5.5.4 parameter not implemented": (INSIDE, MISFIT, None),
    "530 5.7.0 must issue STARTTLS first": (INSIDE, MISFIT, None),
    "538 5.7.11 encryption required": (INSIDE, MISFIT, None),
    "555 5.5.4 unsupported option": (INSIDE, MISFIT, None),
    "501 5.5.2 syntax": (INSIDE, MISFIT, None),
    "501 5.7.1 no": (INSIDE, MISFIT, None),
    "501 syntax": (INSIDE, MISFIT, None),
    "501 5.1 no such code": (INSIDE, MISFIT, None),
}


@pytest.mark.parametrize("command", INSIDE)
@pytest.mark.parametrize("line", REPLIES)
def test_a_reply_inside_a_transaction_is_what_its_row_says(line: str, command: Command) -> None:
    commands, there, others = REPLIES[line]
    expected = there if command in commands else others
    assert expected is not None
    assert facts(decide(command, line)) == expected


@pytest.mark.parametrize("command", INSIDE)
@pytest.mark.parametrize("line", ["421 4.3.2 closing", "421 busy", "421 4.7.0 too many errors"])
def test_a_421_is_about_the_connection_after_many_errors_or_as_first_word_on_a_kept_one(
    command: Command, line: str
) -> None:
    assert facts(decide(command, line, first_on_kept=True)) == STALE
    assert facts(decide(command, line, errors_before=ERRORS_BEFORE_A_421_IS_OURS)) == STALE
    assert facts(decide(command, "421 busy", errors_before=ERRORS_BEFORE_A_421_IS_OURS - 1)) == BUSY


def test_five_errors_are_many() -> None:
    assert ERRORS_BEFORE_A_421_IS_OURS == 5


@pytest.mark.parametrize("line", [line for line in REPLIES if line.startswith("5")])
def test_a_5xx_as_first_word_on_a_kept_connection_is_asked_for_again_on_a_fresh_one(line: str) -> None:
    decision = decide(MAIL, line, first_on_kept=True)
    assert (decision.elsewhere, decision.blame, decision.closing) == (NEW_CONNECTION, NEVER, True)
    attempts = Attempts(3)
    attempts.begin(("p", "a"))
    assert attempts.after(("p", "a"), MAIL, decision, has_reply=True) is Next.SAME_FRESH


@pytest.mark.parametrize("line", [line for line in REPLIES if line[0] == "4" and line[:3] != "421"])
def test_a_4xx_other_than_421_is_the_same_on_a_kept_connection_and_after_errors(line: str) -> None:
    for command in INSIDE:
        plain = facts(decide(command, line))
        assert facts(decide(command, line, first_on_kept=True)) == plain
        assert facts(decide(command, line, errors_before=9)) == plain


@pytest.mark.parametrize("command", INSIDE)
def test_a_501_of_a_backend_without_enhanced_codes_is_about_the_address_where_one_was_sent(
    command: Command,
) -> None:
    expected = MISFIT if command is DATA else VERDICT
    assert facts(decide(command, "501 syntax", enhanced_offered=False)) == expected


ABOUT_US = [line for line, (_, there, _) in REPLIES.items() if there == MISFIT]


@pytest.mark.parametrize("line", ABOUT_US)
@pytest.mark.parametrize("first_on_kept", [False, True])
def test_a_5xx_about_us_is_never_the_clients_answer(line: str, first_on_kept: bool) -> None:
    """Relayed it would bounce other people's mail (ran: a backend that demands TLS says 530 to MAIL). Last comes 451."""
    for command in ENVELOPE:
        decision = decide(command, line, first_on_kept=first_on_kept)
        assert Attempts.without_other(decision, has_reply=True) is Next.GIVE_UP
        attempts = Attempts(1)
        attempts.begin(("p", "a"))
        for _ in range(4):
            assert attempts.after(("p", "a"), command, decision, has_reply=True) is not Next.RELAY


@pytest.mark.parametrize("line", ["550 5.1.1 user unknown", "554 5.7.1 denied"])
def test_a_verdict_as_first_word_on_a_kept_connection_is_the_answer_if_nothing_can_be_asked_again(
    line: str,
) -> None:
    decision = decide(MAIL, line, first_on_kept=True)
    assert Attempts.without_other(decision, has_reply=True) is Next.RELAY


# -- losses --------------------------------------------------------------------------------------------------------

LOSSES = (Reason.LOST, Reason.TIMEOUT, Reason.GARBLED)


@pytest.mark.parametrize("reason", LOSSES)
def test_a_loss_inside_a_transaction_asks_for_a_second_opinion(reason: Reason) -> None:
    for errors in range(ERRORS_BEFORE_A_421_IS_OURS):
        assert facts(classify_loss(reason, first_on_kept=False, errors_before=errors)) == (
            ONE_OTHER,
            IF_OTHER,
            reason,
        )


@pytest.mark.parametrize(("first_on_kept", "errors"), [(True, 0), (False, 5), (False, 50), (True, 5)])
def test_a_close_after_many_errors_or_on_a_kept_connection_is_nobodys_fault(
    first_on_kept: bool, errors: int
) -> None:
    assert facts(classify_loss(Reason.LOST, first_on_kept=first_on_kept, errors_before=errors)) == STALE


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.GARBLED])
def test_silence_and_garbage_are_no_close(reason: Reason) -> None:
    decision = classify_loss(reason, first_on_kept=True, errors_before=9)
    assert facts(decision) == (ONE_OTHER, IF_OTHER, reason)


def test_the_named_decisions_are_rows_of_the_table_too() -> None:
    assert facts(EARLY_REPLY) == (ONE_OTHER, IF_OTHER, Reason.EARLY_REPLY)
    assert facts(GARBLED_REPLY) == (ONE_OTHER, IF_OTHER, Reason.GARBLED)
    assert facts(IDLE_LOSS) == STALE
    assert facts(IDENTITY_REFUSED) == (ANY, NEVER, Reason.IDENTITY)


# -- before the first command about the mail -----------------------------------------------------------------------

OPENING = (Reason.CONNECT, Reason.GREETING, Reason.TLS, Reason.LOST, Reason.TIMEOUT, Reason.GARBLED)


@pytest.mark.parametrize("reason", OPENING)
def test_a_connection_that_does_not_come_up_is_blamed_at_once(reason: Reason) -> None:
    assert facts(classify_opening(reason, None)) == (ANY, AT_ONCE, reason)


@pytest.mark.parametrize(
    "line", ["554 no SMTP here", "450 4.3.2 not now", "521 5.3.2 no mail", "502 no HELO"]
)
def test_an_error_as_greeting_or_to_helo_is_blamed_at_once(line: str) -> None:
    assert facts(classify_opening(Reason.GREETING, said(line))) == (ANY, AT_ONCE, Reason.GREETING)


@pytest.mark.parametrize(
    "line", ["421 4.3.2 all server ports are busy", "421 too many connections", "421 4.4.5 busy"]
)
def test_a_busy_greeting_is_blamed_only_against_one_that_answers(line: str) -> None:
    assert facts(classify_opening(Reason.GREETING, said(line))) == (ANY, IF_OTHER, Reason.BUSY)


def test_a_policy_421_as_greeting_is_about_how_many_we_are_and_never_blamed() -> None:
    decision = classify_opening(Reason.GREETING, said("421 4.7.0 too many connections from 10.0.0.1"))
    assert facts(decision) == (ANY, NEVER, Reason.BUSY)


@pytest.mark.parametrize(
    "line", ["554 5.7.1 client blocked", "450 4.7.1 greylisted", "421 4.7.0 rate", "550 no"]
)
def test_an_error_after_the_client_was_named_is_a_verdict_on_the_client(line: str) -> None:
    assert facts(classify_opening(Reason.GREETING, said(line), identity_sent=True)) == VERDICT


@pytest.mark.parametrize("reason", OPENING)
def test_a_loss_after_the_client_was_named_may_be_a_verdict_too(reason: Reason) -> None:
    """A backend that hangs up on a client, in clear text where we expect TLS or in whatever way, answers that client."""
    assert facts(classify_opening(reason, None, identity_sent=True)) == (ONE_OTHER, IF_OTHER, reason)


@pytest.mark.parametrize("identity_sent", [False, True])
def test_an_identity_that_cannot_be_told_is_nobodys_ejection(identity_sent: bool) -> None:
    for reply in (None, said("501 5.5.4 no"), said("550 5.7.0 insufficient authorization")):
        assert facts(classify_opening(Reason.IDENTITY, reply, identity_sent=identity_sent)) == (
            ANY,
            NEVER,
            Reason.IDENTITY,
        )


# -- laws ----------------------------------------------------------------------------------------------------------

DETAILS = [b"", b"4.3.0", b"4.3.1", b"4.3.2", b"4.3.5", b"4.7.0", b"5.1.1", b"5.5.4", b"5.7.1"]


def all_replies() -> list[Decision]:
    """Whatever any reply to any command can be decided as."""
    return [
        classify_reply(
            command,
            Reply(code, [detail + b" text"]),
            first_on_kept=first_on_kept,
            errors_before=errors_before,
            enhanced_offered=enhanced_offered,
        )
        for command, code, detail, first_on_kept, errors_before, enhanced_offered in product(
            Command, range(400, 600), DETAILS, (False, True), (0, 4, 5, 100), (False, True)
        )
    ]


def test_nothing_that_a_client_can_bring_about_is_blamed_at_once() -> None:
    """A client chooses sender, recipients and body, and when it hangs up; with an identity told, also who it is."""
    decisions = all_replies()
    decisions += [
        classify_loss(reason, first_on_kept=first_on_kept, errors_before=errors)
        for reason, first_on_kept, errors in product(LOSSES, (False, True), (0, 4, 5, 100))
    ]
    for reason, detail in product((*OPENING, Reason.IDENTITY), DETAILS):
        decisions.append(classify_opening(reason, None, identity_sent=True))
        decisions += [
            classify_opening(reason, Reply(code, [detail]), identity_sent=True) for code in range(400, 600)
        ]
    decisions += [EARLY_REPLY, GARBLED_REPLY, IDLE_LOSS, IDENTITY_REFUSED]
    assert AT_ONCE not in {decision.blame for decision in decisions}


def test_nobody_is_blamed_for_a_verdict() -> None:
    for decision in all_replies():
        if decision.elsewhere in (NO, NEW_CONNECTION):
            assert decision.blame is NEVER


def test_a_421_always_closes_the_connection() -> None:
    for command, detail, first_on_kept in product(Command, DETAILS, (False, True)):
        reply = Reply(421, [detail])
        assert classify_reply(command, reply, first_on_kept=first_on_kept, errors_before=0).closing


def test_who_goes_elsewhere_for_what_the_connection_did_closes_it() -> None:
    for decision in all_replies():
        if decision.elsewhere in (ANY, NEW_CONNECTION):
            assert decision.closing
