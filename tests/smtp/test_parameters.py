"""MAIL and RCPT: paths and parameters as real clients write them, each read or refused for a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.smtp.commands import SyntaxFault, parse_hello, parse_mail, parse_rcpt
from smtplb.smtp.extensions import Parameters
from tests.effort import examples

ARGUMENTS, ADDRESS = SyntaxFault.ARGUMENTS, SyntaxFault.ADDRESS
PARAMETER, PARAMETER_VALUE = SyntaxFault.PARAMETER, SyntaxFault.PARAMETER_VALUE
NEEDS_SMTPUTF8 = SyntaxFault.NEEDS_SMTPUTF8

PLAIN = frozenset({b"SIZE", b"8BITMIME"})  # what nearly every listener offers
ALL = PLAIN | {b"SMTPUTF8", b"DSN", b"BINARYMIME", b"REQUIRETLS", b"AUTH"}

# -- MAIL ----------------------------------------------------------------------------------------------------------

MAIL: list[tuple[bytes, tuple[bytes, Parameters] | SyntaxFault]] = [
    (b"FROM:<a@b.test>", (b"a@b.test", {})),
    (b"from:<a@b.test>", (b"a@b.test", {})),
    (b"FROM:<>", (b"", {})),
    (b"FROM: <a@b.test>", (b"a@b.test", {})),
    (b"FROM:a@b.test", (b"a@b.test", {})),
    (b"FROM:<a@b.test> ", (b"a@b.test", {})),
    # Postfix, Exim, Sendmail and Exchange as clients
    (b"FROM:<a@b.test> SIZE=1234", (b"a@b.test", {b"SIZE": b"1234"})),
    (b"FROM:<a@b.test> SIZE=1234 BODY=8BITMIME", (b"a@b.test", {b"SIZE": b"1234", b"BODY": b"8BITMIME"})),
    (b"FROM:<> SIZE=1234 BODY=7BIT", (b"", {b"SIZE": b"1234", b"BODY": b"7BIT"})),
    (b"FROM:<a@b.test> BODY=8bitmime size=1", (b"a@b.test", {b"BODY": b"8bitmime", b"SIZE": b"1"})),
    (b"FROM:<a@b.test>  SIZE=1\tBODY=7BIT ", (b"a@b.test", {b"SIZE": b"1", b"BODY": b"7BIT"})),
    (b"FROM:<prvs=123=a@b.test> SIZE=1", (b"prvs=123=a@b.test", {b"SIZE": b"1"})),
    (b'FROM:<"a b"@c.test> SIZE=1', (b'"a b"@c.test', {b"SIZE": b"1"})),
    # RFC 1870 4: size-value = 1*20DIGIT
    (b"FROM:<a@b.test> SIZE=0", (b"a@b.test", {b"SIZE": b"0"})),
    (b"FROM:<a@b.test> SIZE=99999999999999999999", (b"a@b.test", {b"SIZE": b"99999999999999999999"})),
    (b"FROM:<a@b.test> SIZE=100000000000000000000", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE=-1", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE=+1", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE=1_0", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE=0x1", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE=1.0", PARAMETER_VALUE),
    (b"FROM:<a@b.test> SIZE=\xd9\xa1", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=\xb2", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=1=2", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE = 1", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=1 SIZE=2", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=1 size=1", ARGUMENTS),
    (b"FROM:<a@b.test> BODY=BINARYMIME", PARAMETER_VALUE),
    (b"FROM:<a@b.test> BODY=9BIT", PARAMETER_VALUE),
    (b"FROM:<a@b.test> BODY", PARAMETER_VALUE),
    ("FROM:<é@b.test>".encode(), NEEDS_SMTPUTF8),
    # known elsewhere, not offered
    (b"FROM:<a@b.test> AUTH=<>", PARAMETER),
    (b"FROM:<a@b.test> RET=HDRS ENVID=QQ314159", PARAMETER),
    (b"FROM:<a@b.test> SMTPUTF8", PARAMETER),
    (b"FROM:<a@b.test> REQUIRETLS", PARAMETER),
    (b"FROM:<a@b.test> XSHADOW=1", PARAMETER),
    # malformed
    (b"", ARGUMENTS),
    (b"FROM", ARGUMENTS),
    (b"FROM <a@b.test>", ARGUMENTS),
    (b"TO:<a@b.test>", ARGUMENTS),
    (b"FROM :<a@b.test>", ARGUMENTS),
    (b"FROM:", ADDRESS),
    (b"FROM:<a@b.test", ADDRESS),
    (b"FROM:<a@b.test>SIZE=1", ADDRESS),
    (b"FROM:<a@b@c.test>", ADDRESS),
    (b"FROM:<a@b.test>\0SIZE=1", ADDRESS),
    (b"FROM:<a@b.test>\x0bSIZE=1", ADDRESS),
    (b"FROM:<a@b.test> SI\0ZE=1", ARGUMENTS),
    (b"FROM:<a@b.test> =1", ARGUMENTS),
    (b"FROM:<a@b.test> -X=1", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=1\x0bBODY=7BIT", ARGUMENTS),
    (b"FROM:<a@b.test> SIZE=1\rMAIL", ARGUMENTS),
    (b"FROM:<a@b.test> <c@d.test>", ARGUMENTS),
    (b"FROM:a@b.test <c@d.test>", ARGUMENTS),
]


@pytest.mark.parametrize(("argument", "parsed"), MAIL)
def test_mail_is_read_or_refused_for_a_reason(
    argument: bytes, parsed: tuple[bytes, Parameters] | SyntaxFault
) -> None:
    assert parse_mail(argument, PLAIN) == parsed


GOOD_MAIL = [argument for argument, parsed in MAIL if not isinstance(parsed, SyntaxFault)]


@pytest.mark.parametrize("trailing", [b" X=1", b"x", b"\0", b" \xff", b">", b" SIZE=1 SIZE=2"])
@pytest.mark.parametrize("argument", GOOD_MAIL)
def test_mail_with_something_behind_it_is_refused_or_read_as_another(
    argument: bytes, trailing: bytes
) -> None:
    parsed = parse_mail(argument + trailing, PLAIN)
    assert isinstance(parsed, SyntaxFault) or parsed != parse_mail(argument, PLAIN)


def test_parameters_of_one_mail_are_not_those_of_the_next() -> None:
    first = parse_mail(b"FROM:<a@b.test> SIZE=1", PLAIN)
    assert parse_mail(b"FROM:<c@d.test>", PLAIN) == (b"c@d.test", {})
    assert first == (b"a@b.test", {b"SIZE": b"1"})


# parameters: good?
MAIL_VALUES = {
    b"BODY=BINARYMIME": True,
    b"SMTPUTF8": True,
    b"SMTPUTF8=1": False,  # RFC 6531 3.4: no value
    b"REQUIRETLS": True,
    b"REQUIRETLS=x": False,
    b"RET=FULL": True,
    b"RET=hdrs": True,
    b"RET=BODY": False,
    b"RET": False,
    b"ENVID=QQ314159+2B": True,
    b"ENVID=a+2b": False,  # RFC 3461 4: hexadecimal digits in upper case
    b"ENVID=a+": False,
    b"ENVID": False,
    b"AUTH=<>": True,
    b"AUTH=e+3Dmc2@example.test": True,
    b"AUTH=a<b+": False,
    b"AUTH": False,
}


@pytest.mark.parametrize(("word", "good"), MAIL_VALUES.items())
def test_a_mail_parameter_is_taken_where_it_is_offered_and_well_formed(word: bytes, good: bool) -> None:
    name, equals, value = word.partition(b"=")
    parsed = parse_mail(b"FROM:<a@b.test> " + word, ALL)
    assert parsed == ((b"a@b.test", {name: value if equals else None}) if good else PARAMETER_VALUE)
    assert isinstance(parse_mail(b"FROM:<a@b.test> " + word, frozenset()), SyntaxFault)


def test_an_address_beyond_ascii_needs_smtputf8_in_the_same_mail() -> None:
    path = "é@bücher.example".encode()
    assert parse_mail(b"FROM:<%s> SMTPUTF8" % path, ALL) == (path, {b"SMTPUTF8": None})
    assert parse_mail(b"FROM:<%s>" % path, ALL) is NEEDS_SMTPUTF8
    assert parse_mail(b"FROM:<%s> SMTPUTF8" % path, PLAIN) is PARAMETER


# -- RCPT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        (b"TO:<a@b.test>", (b"a@b.test", {})),
        (b"to: <a@b.test> ", (b"a@b.test", {})),
        (b"TO:a@b.test", (b"a@b.test", {})),
        (b"TO:<Postmaster>", (b"Postmaster", {})),
        (b"TO:<@relay.test:a@b.test>", (b"@relay.test:a@b.test", {})),
        (b"TO:<a@b.test> NOTIFY=NEVER", (b"a@b.test", {b"NOTIFY": b"NEVER"})),
        (
            b"TO:<a@b.test> notify=success,FAILURE,DELAY ORCPT=rfc822;A+2B@b.test",
            (b"a@b.test", {b"NOTIFY": b"success,FAILURE,DELAY", b"ORCPT": b"rfc822;A+2B@b.test"}),
        ),
        (b"TO:<a@b.test> ORCPT=utf-8;\\x{E9}@b.test", (b"a@b.test", {b"ORCPT": b"utf-8;\\x{E9}@b.test"})),
        (b"TO:<a@b.test> NOTIFY=NEVER,FAILURE", PARAMETER_VALUE),
        (b"TO:<a@b.test> NOTIFY=", ARGUMENTS),
        (b"TO:<a@b.test> NOTIFY", PARAMETER_VALUE),
        (b"TO:<a@b.test> ORCPT=a@b.test", PARAMETER_VALUE),
        (b"TO:<a@b.test> ORCPT=rfc822;a=b", ARGUMENTS),
        (b"TO:<a@b.test> NOTIFY=NEVER notify=NEVER", ARGUMENTS),
        (b"TO:<>", ADDRESS),
        (b"TO:", ADDRESS),
        (b"TO:<a b@c.test>", ADDRESS),
        (b"TO:<a@b.test>,<c@d.test>", ADDRESS),
        (b"TO:<a@b.test> SIZE=1", PARAMETER),
        (b"TO:<a@b.test> X", PARAMETER),
        (b"TO:<a@b.test> X X", ARGUMENTS),
        (b"TO:<a@b.test> \0", ARGUMENTS),
        (b"TO:<a@b.test> <c@d.test>", ARGUMENTS),
        (b"FROM:<a@b.test>", ARGUMENTS),
        (b"TO<a@b.test>", ARGUMENTS),
        (b"", ARGUMENTS),
        ("TO:<é@b.test>".encode(), NEEDS_SMTPUTF8),
    ],
)
def test_rcpt_is_read_or_refused_for_a_reason(
    argument: bytes, parsed: tuple[bytes, Parameters] | SyntaxFault
) -> None:
    assert parse_rcpt(argument, ALL, smtputf8=False) == parsed


def test_parameters_of_rcpt_are_refused_where_dsn_is_not_offered() -> None:
    """RFC 3461 5.2.2: NOTIFY=SUCCESS would oblige us to report."""
    assert parse_rcpt(b"TO:<a@b.test> NOTIFY=NEVER", PLAIN, smtputf8=False) is PARAMETER


def test_a_recipient_beyond_ascii_needs_that_mail_said_smtputf8() -> None:
    path = "é@b.test".encode()
    assert parse_rcpt(b"TO:<%s>" % path, ALL, smtputf8=True) == (path, {})


# -- law ------------------------------------------------------------------------------------------------------------

PIECES = [
    b"FROM:",
    b"TO:",
    b"<a@b.test>",
    b"<>",
    b" ",
    b"\t",
    b"SIZE=1",
    b"BODY=8BITMIME",
    b"=",
    b"X",
    b"\0",
    b"\r",
    b"\x0b",
]
PIECES += [b"\xff", b'"', b"1" * 21, b"SMTPUTF8", b"NOTIFY=NEVER", b"ENVID=+", "<é@b.test>".encode()]
arguments = st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=10).map(b"".join)


def is_printable(text: bytes) -> bool:
    return text.decode("utf-8").replace(" ", "").isprintable()


@settings(max_examples=examples(1000))
@given(arguments, st.sampled_from([PLAIN, ALL, frozenset[bytes]()]), st.booleans())
def test_any_argument_is_a_value_or_a_fault_and_what_passes_is_printable(
    argument: bytes, offered: frozenset[bytes], smtputf8: bool
) -> None:
    for start in (b"", b"FROM:<a@b.test>", b"TO:<a@b.test>"):
        for parsed in (
            parse_mail(start + argument, offered),
            parse_rcpt(start + argument, offered, smtputf8=smtputf8),
        ):
            if isinstance(parsed, SyntaxFault):
                continue
            path, parameters = parsed
            assert is_printable(path)
            assert path.isascii() or smtputf8 or b"SMTPUTF8" in parameters
            for name, value in parameters.items():
                assert name == name.upper()
                assert value is None or all(0x21 <= octet < 0x7F for octet in value)
        hello = parse_hello(start + argument)
        assert isinstance(hello, SyntaxFault) or (hello and all(0x21 <= octet < 0x7F for octet in hello))
