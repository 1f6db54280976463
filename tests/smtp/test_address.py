"""Paths: what passes has one reading, ours and that of every backend; what has two does not pass.

How Postfix 3.7, Exim 4.96 and Sendmail 8.17 read a path is from runs of them, marked (ran).
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.smtp.address import (
    MAX_PATH_BYTES,
    domain_of,
    is_ascii_path,
    is_postmaster,
    names_a_route,
    parse_path,
)
from tests.effort import examples

A_WHILE_S = 0.5  # what takes microseconds

# path: its domain
LAWFUL = {
    b"user@example.org": b"example.org",
    b"User@Example.ORG": b"example.org",
    b"user@example.org.": b"example.org",
    b"user@localhost": b"localhost",
    b"user@_spf.under_score.test": b"_spf.under_score.test",
    b"user@xn--bcher-kva.example": b"xn--bcher-kva.example",
    b"user@[192.0.2.1]": b"[192.0.2.1]",
    b"user@[IPv6:2001:db8::1]": b"[ipv6:2001:db8::1]",
    b"a.b+c-d_e=f/g'h*i&j#k$l{m|n}o^p`q~r?s@x.test": b"x.test",
    b"..a..b.@docomo.test": b"docomo.test",  # not lawful, in real use, and one reading
    b"SRS0=HHH=TT=example.org=alice@forward.test": b"forward.test",
    b"prvs=0123456789=user@batv.test": b"batv.test",
    b"bounce+user=example.org@verp.test": b"verp.test",
    b'"quoted user"@x.test': b"x.test",
    b'"<>,;:()[]@ .!%"@x.test': b"x.test",
    rb'"a\"b\\c"@x.test': b"x.test",
    b'""@x.test': b"x.test",
    b'first."second last"@x.test': b"x.test",
    b"postmaster": b"",
    b"user": b"",
    b'"a@evil.test"': b"",
    b'"a@evil.test".x.test': b"",  # a local part to the end: no domain
    b"@relay.test:user@example.org": b"example.org",
    b"@relay.test,@[192.0.2.1]:user@example.org": b"example.org",
    "jösé@bücher.example".encode(): b"xn--bcher-kva.example",  # SMTPUTF8, RFC 6531 3.2
    '"jö sé"@x.test'.encode(): b"x.test",
    b"": b"",
}

TWO_READINGS = {
    "a comment that never ends: Postfix delivers to evil.test (ran)": b"user@evil.test(x.ours.test",
    "a comment: gone for Postfix and Exim, part of the domain for Sendmail (ran)": b"user@evil.test(x).ours.test",
    "a comment in the local part (ran)": b"a(b)@ours.test",
    "a comment in front (ran)": b"(b)a@ours.test",
    "a colon: Sendmail cuts off what is before it (ran)": b"evil.test:b@ours.test",
    "two colons": b"evil.test::b@ours.test",
    "a group": b"group:a@ours.test;",
    "a comma in the local part": b"a,b@ours.test",
    "a comma in the domain": b"user@evil.test,x.ours.test",
    "a semicolon in the local part": b"a;b@ours.test",
    "a semicolon in the domain": b"user@evil.test;x.ours.test",
    "a quoted domain: unquoted by Postfix (ran)": b'user@"evil.test".ours.test',
    "a quoted @ in the domain": b'user@"a@evil.test".ours.test',
    "two domains": b"user@evil.test@ours.test",
    "two domains, one quoted": b'user@"x"@ours.test',
    "no local part": b"@ours.test",
    "no domain behind the @": b"user@",
    "an empty label (refused by all three, ran)": b"user@evil.test..ours.test",
    "an empty label in front": b"user@.ours.test",
    "two dots at the end: Sendmail drops both (ran)": b"user@ours.test..",
    "only a dot": b"user@.",
    "a percent sign in the domain": b"user@evil.test%ours.test",
    "a bang in the domain": b"user@evil.test!ours.test",
    "a slash in the domain": b"user@evil.test/ours.test",
    "a backslash": b"user\\@evil.test@ours.test",
    "a backslash in an atom": b"us\\er@ours.test",
    "a literal in the middle": b"user@[192.0.2.1]x.ours.test",
    "a literal behind a name": b"user@x[192.0.2.1].ours.test",
    "a literal with an address in it": b"user@[a@b]",
    "a literal in brackets twice": b"user@[[192.0.2.1]]",
    "an empty literal": b"user@[]",
    "a literal without an end": b"user@[192.0.2.1",
    "a literal as local part": b"[x]@ours.test",
    "a blank": b"us er@ours.test",
    "a blank at the end": b"user@ours.test ",
    "a blank at the start": b" user@ours.test",
    "a tab": b"us\ter@ours.test",
    "a tab inside quotes": b'"a\tb"@ours.test',
    "a CR": b"user\r@ours.test",
    "a LF inside quotes": b'"a\nb"@ours.test',
    "a NUL": b"user\0@ours.test",
    "a DEL inside quotes": b'"a\x7f"@ours.test',
    "eight bits that are not UTF-8": b"us\xe9r@ours.test",
    "eight bits inside quotes that are not UTF-8": b'"\xe9"@ours.test',
    "an overlong form of @": b"user\xc1\x80evil.test@ours.test",
    "half of a surrogate pair": b"us\xed\xa0\x80er@ours.test",
    "NEL, a line end to some": "us\x85er@ours.test".encode(),
    "a line separator": "us\u2028er@ours.test".encode(),
    "a blank that does not break": "us\xa0er@ours.test".encode(),
    "a character without width": "us\u200ber@ours.test".encode(),
    "a character that turns the direction": "us\u202eer@ours.test".encode(),
    "an escaped octet above 127": b'"\\\xc3\xa9"@ours.test',
    "a bracket inside": b"a<b@ours.test",
    "a closing bracket inside": b"a>b@ours.test",
    "an open quote": b'"user@ours.test',
    "a quote that escapes its end": b'"user\\"@ours.test',
    "a route without an address": b"@relay.test:",
    "a route to a name without a domain": b"@relay.test:user",
    "a route with an empty stop": b"@:user@ours.test",
    "a route in a route": b"@a.test:@b.test:user@ours.test",
    "a quoted route": b'@"a:b":user@ours.test',
    "too long": b"u" * (MAX_PATH_BYTES - 9) + b"@ours.test",
}


@pytest.mark.parametrize("rest", [b"", b" SIZE=100", b"\tSIZE=100", b"   ", b" <b@b.test>"])
@pytest.mark.parametrize("path", LAWFUL)
def test_a_lawful_path_passes_with_whatever_follows(path: bytes, rest: bytes) -> None:
    assert parse_path(b"<" + path + b">" + rest) == (path, rest)
    assert parse_path(b" \t<" + path + b">" + rest) == (path, rest)


@pytest.mark.parametrize("path", LAWFUL)
def test_a_lawful_path_cut_short_never_passes_as_another(path: bytes) -> None:
    whole = b"<" + path + b">"
    for end in range(len(whole)):
        assert parse_path(whole[:end]) is None


@pytest.mark.parametrize(
    "behind", [b">", b"x", b"<", b'"', b",<b@b.test>", b"(x)", b"\r", b"\n", b"\0", b"\x0b"]
)
@pytest.mark.parametrize("path", LAWFUL)
def test_only_a_blank_or_nothing_may_follow_the_bracket(path: bytes, behind: bytes) -> None:
    assert parse_path(b"<" + path + b">" + behind) is None


@pytest.mark.parametrize(("path", "domain"), LAWFUL.items())
def test_the_domain_is_what_is_behind_the_at_outside_quotes(path: bytes, domain: bytes) -> None:
    assert domain_of(path) == domain


@pytest.mark.parametrize("path", TWO_READINGS.values(), ids=TWO_READINGS)
def test_a_path_with_two_readings_or_none_does_not_pass(path: bytes) -> None:
    assert parse_path(b"<" + path + b">") is None


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        (b"user@x.test", (b"user@x.test", b"")),
        (b" user@x.test SIZE=1", (b"user@x.test", b" SIZE=1")),
        (b"postmaster", (b"postmaster", b"")),
        (b"user@[192.0.2.1]", (b"user@[192.0.2.1]", b"")),
        (b"", None),
        (b" ", None),
        (b" SIZE=1", (b"SIZE=1", b"")),  # an empty path needs its brackets
        (b'"a b"@x.test', None),
        (b"user@x.test>", None),
        (b"<user@x.test", None),
        (b"<<user@x.test>>", None),
        (b"User <user@x.test>", (b"User", b" <user@x.test>")),  # what follows is no parameter: refused there
        (b"user@x.test,b@x.test", None),
        (b"user@x.test(comment)", None),
    ],
)
def test_brackets_may_be_missing_around_a_plain_address(
    argument: bytes, parsed: tuple[bytes, bytes] | None
) -> None:
    assert parse_path(argument) == parsed


def test_a_path_may_be_as_long_as_the_limit() -> None:
    path = b"u" * (MAX_PATH_BYTES - len(b"@x.test")) + b"@x.test"
    assert parse_path(b"<" + path + b">") == (path, b"")
    assert parse_path(b"<u" + path + b">") is None
    assert parse_path(b"u" + path) is None


def test_smtputf8_is_needed_for_anything_beyond_ascii() -> None:
    assert is_ascii_path(b'"a b"@x.test')
    assert is_ascii_path(b"")
    assert not is_ascii_path("é@x.test".encode())
    assert not is_ascii_path("a@é.test".encode())


@pytest.mark.parametrize("path", [b"postmaster", b"Postmaster", b"POSTMASTER"])
def test_postmaster_needs_no_domain(path: bytes) -> None:
    assert is_postmaster(path)


@pytest.mark.parametrize("path", [b"", b"postmaster@x.test", b'"postmaster"', b"postmaster.", b"postmaste"])
def test_others_are_not_postmaster(path: bytes) -> None:
    assert not is_postmaster(path)


@pytest.mark.parametrize(
    "path",
    [
        b"user%evil.test@ours.test",
        b"evil.test!user@ours.test",
        b'"user@evil.test"@ours.test',
        b'"user%evil.test"@ours.test',
        b'"evil.test!user"@ours.test',
        rb'"user\@evil.test"@ours.test',
        b'first."user@evil.test"@ours.test',
        b'"user@evil.test"',  # no domain; Postfix and Sendmail deliver to evil.test (ran)
        b'"user@evil.test".ours.test',
        b"user%evil.test",
        b"evil.test!user",
        b"@evil.test:user@ours.test",  # ignored by all three (ran) unless an old Sendmail is told to honour it
        b"@evil.test,@other.test:user@ours.test",
    ],
)
def test_a_further_destination_is_seen(path: bytes) -> None:
    assert parse_path(b"<" + path + b">") == (path, b"")
    assert names_a_route(path)


@pytest.mark.parametrize(
    "path",
    [b"user@ours.test", b"", b"postmaster", b'"a b"@ours.test', b"user@[IPv6:::1]", b"a=b+c/d@ours.test"],
)
def test_an_ordinary_address_names_no_further_destination(path: bytes) -> None:
    assert not names_a_route(path)


# -- laws --------------------------------------------------------------------------------------------------------

PIECES = [
    *b'@<>"\\[]():;,.%! \ta',
    b"user",
    b"@evil.test",
    b"@ours.test",
    b".ours.test",
    b'"@"',
    b"[192.0.2.1]",
    b"\xe9",
]
PIECES = [piece if isinstance(piece, bytes) else bytes([piece]) for piece in PIECES]
arguments = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
bracketed = arguments.map(lambda inside: b"<" + inside + b">")


@settings(max_examples=examples(2000))
@given(bracketed | arguments)
def test_what_passes_is_printable_and_reads_back_as_itself(argument: bytes) -> None:
    parsed = parse_path(argument)
    if parsed is None:
        return
    path, rest = parsed
    assert path.decode("utf-8").replace(" ", "").isprintable()
    assert is_ascii_path(path) is all(0x20 <= octet <= 0x7E for octet in path)
    assert len(path) <= MAX_PATH_BYTES
    assert not rest or rest[0] in b" \t"
    assert argument.endswith(rest)
    assert parse_path(b"<" + path + b">") == (path, b"")


ESCAPED_OR_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


@settings(max_examples=examples(2000))
@given(bracketed | arguments)
def test_what_passes_has_one_reading(argument: bytes) -> None:
    """Without its quoted strings a path holds no special but one @, and a domain holds nothing that is quoted."""
    parsed = parse_path(argument)
    if parsed is None:
        return
    path, _ = parsed
    if path.startswith(b"@"):
        assert names_a_route(path)
        path = path.partition(b":")[2]
    bare = ESCAPED_OR_QUOTED.sub(b"", path)
    domain = domain_of(path)
    assert bare.count(b"@") == bool(domain)
    assert not re.search(rb'[\\"<>(),; ]', bare)
    assert re.fullmatch(rb"(?:[a-z0-9_\x80-\xff-]+\.)*[a-z0-9_\x80-\xff-]+|\[[a-z0-9.:-]+\]|", domain)
    if domain:
        assert path.lower().removesuffix(b".").endswith(b"@" + domain)
    if not names_a_route(path):
        assert path.count(b"@") == bool(domain)


UNIT = [
    b"<",
    b">",
    b'"',
    b'""',
    b'"a',
    b"\\",
    b'\\"',
    b'"\\',
    b"@",
    b"@a",
    b"@a:",
    b"@a,",
    b".",
    b"a.",
    b"a",
    b"[",
    b"]",
]
UNIT += [b"[]", b"@[", b" ", b"\t", b":", b",", b"(", b'"a"@', b"a@a.", b'"\\"', b"@a.a,@a"]


@pytest.mark.parametrize("unit", UNIT)
def test_no_line_costs_more_than_its_length(unit: bytes) -> None:
    for start in (b"<", b"", b'<"', b"<@", b"<a@", b" <"):
        for end in (b"", b">", b'"', b'">', b"@", b"\0", b"@a>x", b"@a>"):
            line = start + unit * (2048 // len(unit)) + end
            started = time.process_time()
            parse_path(line)
            assert time.process_time() - started < A_WHILE_S


@pytest.mark.parametrize(
    "domain", ["\u4e00\u4e07\u4e0e" * 55, "\u00fc." * 125 + "x", ".".join(["\u4e00\u4e8c\u4e09" * 20] * 2)]
)
def test_no_domain_beyond_ascii_costs_much(domain: str) -> None:
    start = time.process_time()
    for number in range(100):
        domain_of(f"{number}@{number}.{domain}".encode())
    assert time.process_time() - start < 1.0
