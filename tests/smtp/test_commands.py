"""Commands: the table row by row, arguments as real clients write them, and limits on what they may cost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.smtp import verbs
from smtplb.smtp.commands import (
    MAX_COMMAND_LINE_BYTES,
    SyntaxFault,
    is_auth_response,
    parse_auth,
    parse_bdat,
    parse_hello,
    parse_mail,
    parse_rcpt,
    split_line,
)
from smtplb.smtp.verbs import FOREIGN, NOT_IMPLEMENTED, VERBS

A_WHILE_S = 0.5  # what takes microseconds

ARGUMENTS = SyntaxFault.ARGUMENTS
ALL = frozenset({b"SIZE", b"8BITMIME", b"SMTPUTF8", b"DSN", b"BINARYMIME", b"REQUIRETLS", b"AUTH"})

# RFC 5321 4.1.4 (order) and 4.1.1 (arguments): verb, phases in order G(reeted) R(eady) M(ail) r(cpt), argument
TABLE = {
    b"HELO": ("GRMr", "required"),
    b"EHLO": ("GRMr", "required"),
    b"MAIL": ("R", "required"),
    b"RCPT": ("Mr", "required"),
    b"DATA": ("r", "forbidden"),
    b"BDAT": ("GRMr", "required"),
    b"STARTTLS": ("GR", "forbidden"),
    b"AUTH": ("R", "required"),
    b"XCLIENT": ("GR", "required"),
    b"RSET": ("GRMr", "forbidden"),
    b"NOOP": ("GRMr", "allowed"),
    b"VRFY": ("GRMr", "required"),
    b"HELP": ("GRMr", "allowed"),
    b"QUIT": ("GRMr", "forbidden"),
}
LETTERS = {"G": verbs.GREETED, "R": verbs.READY, "M": verbs.IN_MAIL, "r": verbs.IN_RCPT}
ARGUMENT = {
    "required": (True, True),
    "allowed": (False, True),
    "forbidden": (False, False),
}  # needed, may come


def test_the_table_holds_these_verbs_and_no_other() -> None:
    assert set(VERBS) == set(TABLE)
    assert all(verb.token == token for token, verb in VERBS.items())


@pytest.mark.parametrize(("token", "row"), TABLE.items())
def test_each_verb_is_in_order_in_its_phases_only(token: bytes, row: tuple[str, str]) -> None:
    verb = VERBS[token]
    assert {letter for letter, phase in LETTERS.items() if phase & verb.phases} == set(row[0])
    assert (verb.needs_argument, verb.may_have_argument) == ARGUMENT[row[1]]


def test_any_phase_is_each_of_them() -> None:
    assert sum(LETTERS.values()) == verbs.ANY
    assert all(phase.bit_count() == 1 for phase in LETTERS.values())


def test_a_word_is_a_verb_or_not_implemented_or_foreign_or_unknown() -> None:
    assert not set(VERBS) & NOT_IMPLEMENTED
    assert not set(VERBS) & FOREIGN
    assert not NOT_IMPLEMENTED & FOREIGN
    assert all(word == word.upper() for word in {*VERBS, *NOT_IMPLEMENTED, *FOREIGN})


@pytest.mark.parametrize("word", [b"XFORWARD", b"ETRN", b"EXPN", b"BURL", b"TURN", b"ATRN"])
def test_commands_that_are_never_offered_are_known_by_name(word: bytes) -> None:
    """Never passed on: a client that could send XFORWARD to a backend would choose its own address."""
    assert word in NOT_IMPLEMENTED


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/1.1", b"POST /a HTTP/1.0", b"CONNECT mx:25 HTTP/1.1", b"get /", b"OPTIONS * HTTP/1.1"],
)
def test_cve_2021_3618_a_browser_is_known_by_its_first_word(line: bytes) -> None:
    assert split_line(line)[0] in FOREIGN


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"QUIT", b"QUIT", b""),
        (b"quit", b"QUIT", b""),
        (b"QuIt  ", b"QUIT", b""),
        (b"EHLO client.test", b"EHLO", b"client.test"),
        (b"EHLO  client.test \t", b"EHLO", b"client.test"),
        (b"EHLO\tclient.test", b"EHLO", b"client.test"),
        (b"MAIL FROM:<a@b.test> SIZE=1", b"MAIL", b"FROM:<a@b.test> SIZE=1"),
        (b"MAIL FROM:<a@b.test>\tSIZE=1", b"MAIL", b"FROM:<a@b.test>\tSIZE=1"),
        (b"MAIL\tFROM:<a@b.test> SIZE=1", b"MAIL", b"FROM:<a@b.test> SIZE=1"),
        (b'MAIL\tFROM:<"a\tb"@c.test>', b"MAIL", b'FROM:<"a\tb"@c.test>'),  # the argument is as it was sent
        (b"", b"", b""),
        (b" QUIT", b"", b"QUIT"),
        (b"QUIT\0", b"QUIT\0", b""),
        (b"QUIT\x0b", b"QUIT\x0b", b""),
        (b"NOOP \x0b", b"NOOP", b"\x0b"),
        (b"QUIT\r", b"QUIT\r", b""),
        (b"\xc4\xb1", b"\xc4\xb1", b""),  # dotless i: upper() of text would make an I of it
    ],
)
def test_a_line_is_a_verb_and_an_argument(line: bytes, verb: bytes, argument: bytes) -> None:
    assert split_line(line) == (verb, argument)


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        (b"client.test", b"client.test"),
        (b"[192.0.2.7]", b"[192.0.2.7]"),
        (b"[IPv6:2001:db8::7]", b"[IPv6:2001:db8::7]"),
        (b"WIN-3Q_1", b"WIN-3Q_1"),
        (b"client.test and more", b"client.test"),
        (b"x" * 255, b"x" * 255),
        (b"x" * 256, ARGUMENTS),
        (b"", ARGUMENTS),
        (b"cli\0ent", ARGUMENTS),
        (b"cli\rent", ARGUMENTS),
        (b"cli\tent", ARGUMENTS),
        (b"cli\x7fent", ARGUMENTS),
        (b"b\xc3\xbccher.test", ARGUMENTS),
    ],
)
def test_the_name_in_helo_is_one_printable_word(argument: bytes, name: bytes | SyntaxFault) -> None:
    assert parse_hello(argument) == name


# -- BDAT and AUTH -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        (b"0", (0, False)),
        (b"0 LAST", (0, True)),
        (b"1000", (1000, False)),
        (b"86 \t last", (86, True)),
        (b"00000000000000000010", (10, False)),
        (b"", None),
        (b"LAST", None),
        (b"10LAST", None),
        (b"10 LAST 5", None),
        (b"10 FIRST", None),
        (b"-1", None),
        (b"+1", None),
        (b"1_0", None),
        (b"0x10", None),
        (b"1.0", None),
        (b"\xd9\xa1", None),
        (b"1" * 21, None),
        (b"10\0", None),
        (b"10\r", None),
        (b"10 LAST\x0b", None),
    ],
)
def test_the_size_of_a_chunk_is_ascii_digits_or_nothing_is_known(
    argument: bytes, parsed: tuple[int, bool] | None
) -> None:
    assert parse_bdat(argument) == parsed


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        (b"PLAIN", (b"PLAIN", None)),
        (b"plain AGEAYg==", (b"PLAIN", b"AGEAYg==")),
        (b"SCRAM-SHA-256 =", (b"SCRAM-SHA-256", b"=")),
        (b"X_Y-1", (b"X_Y-1", None)),
        (b"", None),
        (b"PLAIN *", None),  # RFC 4954 4: cancels an exchange, begins none
        (b"PLAIN  AGEAYg==", None),
        (b"PLAIN AGEAYg== x", None),
        (b"PLAIN AGE\0AYg==", None),
        (b"PLAIN AG=E", None),
        (b"PLAIN AGEAYg===", None),
        (b"PLAIN \xff", None),
        (b"PLAIN\0", None),
        (b"A" * 21, None),
    ],
)
def test_auth_is_a_mechanism_and_perhaps_base64(
    argument: bytes, parsed: tuple[bytes, bytes | None] | None
) -> None:
    assert parse_auth(argument) == parsed


@pytest.mark.parametrize("line", [b"", b"=", b"*", b"AGEAYg==", b"YWJj", b"+/+/"])
def test_a_continuation_is_base64_or_empty_or_cancels(line: bytes) -> None:
    assert is_auth_response(line)


@pytest.mark.parametrize(
    "line", [b"**", b" ", b"AGE AYg==", b"AGE\0", b"YWJj\r", b"YWJj\n", b"QUIT\t", b"\xc3\xa9", b"-_"]
)
def test_a_continuation_that_is_no_base64_goes_to_nobody(line: bytes) -> None:
    """CVE-2025-53859: login data is bounded and strict."""
    assert not is_auth_response(line)


# -- laws ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")))
def test_any_line_is_split_and_nothing_between_the_words_is_lost(line: bytes) -> None:
    verb, argument = split_line(line)
    assert not set(verb) & set(b" \t")
    assert argument == argument.strip(b" \t")
    words = line.replace(b"\t", b" ").upper()
    assert words.startswith(verb)
    assert words[len(verb) :].strip(b" ") == argument.replace(b"\t", b" ").upper()


UNITS = [
    b" ",
    b"\t",
    b" a",
    b" a=",
    b" a=b",
    b"a",
    b"=",
    b" =",
    b"  a",
    b" a\t",
    b"-",
    b" a-",
    b" SIZE=1",
    b"\0",
    b" \0",
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_line_costs_more_than_its_length(unit: bytes) -> None:
    for start in (b"", b"FROM:<a@b.test>", b"TO:<a@b.test>", b"FROM:<a@b.test> ENVID=", b"FROM:", b"PLAIN "):
        for end in (b"", b"\0", b"=", b" ", b"\xff"):
            line = start + unit * (MAX_COMMAND_LINE_BYTES // len(unit)) + end
            started = time.process_time()
            split_line(line)
            parse_hello(line)
            parse_mail(line, ALL)
            parse_rcpt(line, ALL, smtputf8=True)
            parse_bdat(line)
            parse_auth(line)
            assert time.process_time() - started < A_WHILE_S
