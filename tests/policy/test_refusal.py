"""Our own words: each row in form, whose trouble it tells, and nothing in it that a client or a backend said."""

from __future__ import annotations

import re

import pytest

from smtplb.policy import refusal
from smtplb.policy.refusal import Refusal
from smtplb.smtp.replies import Reply, ReplyReader

MAX_REPLY_LINE_BYTES = 512  # RFC 5321 4.5.3.1.5, with CRLF

# What is not the client's doing: 421 or 451, so that mail is tried again (design 4.8).
OUR_TROUBLE = {
    Refusal.NOTHING_USABLE,
    Refusal.TOO_MANY_SESSIONS,
    Refusal.SHUTTING_DOWN,
    Refusal.OUR_BUG,
    Refusal.RECONFIGURED,
    Refusal.NO_BACKEND,
    Refusal.QUEUE_FULL,
    Refusal.QUEUE_TIMEOUT,
    Refusal.BACKEND_LOST,
    Refusal.PINNED_LOST,
    Refusal.BACKEND_MISFIT,
    Refusal.REPLAY_FAILED,
    Refusal.IN_DOUBT,
    Refusal.NO_RECIPIENTS_NOW,
    Refusal.FRONT_UNPROVEN,
}
# ... but for these two, whose codes their RFCs give: RFC 3207 4, RFC 4954 6.
OUR_TROUBLE_BY_RFC = {Refusal.TLS_NOT_NOW: 454, Refusal.AUTH_NOT_NOW: 454}

NOT_OURS_BUT_TEMPORARY = {
    Refusal.TOO_MANY_RECIPIENTS,  # RFC 5321 4.5.3.1.10: 452
    Refusal.OTHER_ROUTE,
    Refusal.TOO_MANY_ERRORS,
    Refusal.FOREIGN_PROTOCOL,
    Refusal.IDLE,
    Refusal.TOO_SLOW,
    Refusal.TOO_FAST,
    Refusal.TOO_MANY_FROM_CLIENT,
    Refusal.TOO_MANY_MESSAGES,
    Refusal.TOO_MANY_RCPTS_A_MINUTE,
}

ROWS = list(Refusal)


def test_no_two_rows_are_the_same_one_under_two_names() -> None:
    """An Enum takes a second row with the same values for another name of the first."""
    assert len(Refusal.__members__) == len(ROWS)
    assert len({(row.wire, row.label) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_one_line_of_ascii_with_an_enhanced_code_of_its_class(row: Refusal) -> None:
    # RFC 3463 2; RFC 2034 4: the classes agree.
    form = re.compile(rb"([245])[0-5][0-9] \1\.[0-9]{1,3}\.[0-9]{1,3} [\x20-\x7e]+\r\n")
    assert form.fullmatch(row.wire)
    assert row.wire.startswith(b"%d " % row.code)
    assert len(row.wire) <= MAX_REPLY_LINE_BYTES
    assert row.line + b"\r\n" == row.wire


@pytest.mark.parametrize("row", ROWS)
def test_a_row_reads_back_and_would_be_relayed_as_it_is(row: Refusal) -> None:
    reader = ReplyReader()
    reader.feed(row.wire)
    reply = reader.next_reply()
    assert isinstance(reply, Reply)
    assert reply.wire() == row.wire
    assert reply.enhanced is not None
    assert reader.empty


@pytest.mark.parametrize("row", [row for row in ROWS if row in OUR_TROUBLE])
def test_our_own_trouble_is_421_or_451(row: Refusal) -> None:
    assert row.code in (421, 451)


@pytest.mark.parametrize(("row", "code"), OUR_TROUBLE_BY_RFC.items())
def test_our_own_trouble_has_the_code_of_the_rfc_where_there_is_one(row: Refusal, code: int) -> None:
    assert row.code == code


def test_every_temporary_row_is_known_here_and_every_other_is_the_clients_doing() -> None:
    temporary = {row for row in ROWS if row.code < 500}
    assert temporary == OUR_TROUBLE | set(OUR_TROUBLE_BY_RFC) | NOT_OURS_BUT_TEMPORARY


@pytest.mark.parametrize(
    ("row", "line"),
    [  # what the design fixes word for word
        (Refusal.NOTHING_USABLE, "421 4.3.2"),
        (Refusal.NO_BACKEND, "451 4.4.1"),
        (Refusal.BACKEND_MISFIT, "451 4.3.5"),
        (Refusal.REPLAY_FAILED, "451 4.3.0"),
        (Refusal.IN_DOUBT, "451 4.4.2"),
        (Refusal.NOT_ACCEPTED, "550 5.7.1"),
        (Refusal.BARE_NEWLINE, "550 5.6.0"),
        (Refusal.OTHER_ROUTE, "452 4.5.3"),
        (Refusal.TOO_MANY_RECIPIENTS, "452 4.5.3"),
        (Refusal.CLIENT_DENIED, "554 5.7.1"),
        (Refusal.FRONT_UNPROVEN, "451 4.7.1"),
        # and the RFCs
        (Refusal.UNKNOWN_COMMAND, "500 5.5.2"),  # RFC 3463 3.6 X.5.2 syntax error
        (Refusal.BAD_ARGUMENTS, "501 5.5.4"),  # X.5.4 invalid command arguments
        (Refusal.BAD_SENDER, "501 5.1.7"),
        (Refusal.BAD_RECIPIENT, "501 5.1.3"),
        (Refusal.WRONG_ORDER, "503 5.5.1"),
        (Refusal.TOO_LARGE, "552 5.3.4"),  # RFC 1870 6.1
        (Refusal.UNKNOWN_PARAMETER, "555 5.5.4"),
        (Refusal.NEEDS_TLS, "530 5.7.0"),  # RFC 3207 4
        (Refusal.NEEDS_SMTPUTF8, "553 5.6.7"),  # RFC 6531 3.2
        (Refusal.MAIL_LOOP, "554 5.4.6"),  # RFC 3463 3.5
        (Refusal.AUTH_NEEDS_TLS, "538 5.7.11"),
    ],
)
def test_codes_are_those_of_the_design_and_the_rfcs(row: Refusal, line: str) -> None:
    assert row.line.decode().startswith(line + " ")


@pytest.mark.parametrize("row", ROWS)
def test_a_label_is_a_heading_and_no_sentence(row: Refusal) -> None:
    assert re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", row.label)


@pytest.mark.parametrize("row", ROWS)
def test_a_text_names_no_host_and_holds_no_place_for_one(row: Refusal) -> None:
    text = row.line.decode().split(" ", 2)[2]
    assert not re.search(r"[%{}<>@\[\]]|\b[\w-]+\.(?:\w|$)", text)


OTHERS = {
    name: value.replace(b"%d", b"18446744073709551615")
    for name, value in vars(refusal).items()
    if isinstance(value, bytes)
}


@pytest.mark.parametrize("wire", OTHERS.values(), ids=OTHERS)
def test_our_good_replies_are_in_form_too(wire: bytes) -> None:
    assert re.fullmatch(rb"(?:354|([2])[0-9]{2} \1\.[0-9]\.[0-9]) [\x20-\x7e]+\r\n", wire)
    assert len(wire) <= MAX_REPLY_LINE_BYTES
