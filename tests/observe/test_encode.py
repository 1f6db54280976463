"""Words from outside stay on one printable line; addresses of people are kept back when that is asked for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.observe.encode import MAX_FIELD, People, octets, words

KEY = b"k" * 32
HASH = People("hash", KEY)
OMIT = People("omit", KEY)
PLAIN = People("plain", KEY)


def read_back(shown: str) -> bytes:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), shown).encode("latin-1")


@given(st.binary(max_size=MAX_FIELD))
def test_any_octets_become_printable_ascii_that_can_be_read_back(raw: bytes) -> None:
    shown = octets(raw)
    assert shown.isascii()
    assert shown.isprintable()
    assert read_back(shown) == raw


@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_text_becomes_printable(text: str) -> None:
    shown = words(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode()  # lone surrogates are escaped, too


def test_ordinary_words_stay_as_they_are() -> None:
    assert octets(b"250 2.0.0 Ok: queued as 4XyZ") == "250 2.0.0 Ok: queued as 4XyZ"
    assert words("Störung am Speicher") == "Störung am Speicher"


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        "a\rb",
        "a\x1b[2Jb",
        "a\x85b",
        "a\u2028b",
        "a\u2029b",
        "a\x0bb",
        "a\x9b31mb",
        "a\u202eb",
        "a\x00b",
    ],
)
def test_line_breaks_and_terminal_escapes_of_every_kind_are_written_out(text: str) -> None:
    assert words(text).startswith("a\\")
    assert octets(text.encode()).startswith("a\\")


def test_a_long_field_is_cut_and_says_so() -> None:
    assert octets(b"x" * 5000) == "x" * MAX_FIELD + "..."
    assert words("x" * 5000) == "x" * MAX_FIELD + "..."


def test_the_same_address_has_the_same_mark_whatever_its_case() -> None:
    assert HASH.address(b"Anna@A.test") == HASH.address(b"anna@a.test")
    assert HASH.address(b"anna@a.test") != HASH.address(b"bert@a.test")
    assert HASH.address(b"anna@a.test") != People("hash", b"j" * 32).address(b"anna@a.test")


def test_the_null_sender_is_always_shown() -> None:
    assert [people.address(b"") for people in (PLAIN, HASH, OMIT)] == ["<>"] * 3


def test_an_address_quoted_by_a_backend_gets_the_mark_of_its_field() -> None:
    mark = HASH.address(b"anna@a.test")
    assert (
        HASH.prose("550 5.1.1 <anna@a.test>: user unknown", b"anna@a.test")
        == f"550 5.1.1 <{mark}>: user unknown"
    )
    assert HASH.prose("550 no anna@a.test here") == f"550 no {mark} here"


def test_an_omitted_address_is_left_out_of_replies_too() -> None:
    assert OMIT.address(b"anna@a.test") is None
    assert OMIT.prose('550 "a b"@a.test and c@d.test', b'"a b"@a.test') == "550 [omitted] and [omitted]"


local = st.text(alphabet="abcXYZ019!#$%&'*+-/=?^_`{|}~.", min_size=1, max_size=30)
domain = st.text(alphabet="abcXYZ019.-", min_size=1, max_size=30)


@given(local, domain, st.text(max_size=30), st.text(max_size=30), st.sampled_from([HASH, OMIT]))
def test_no_address_survives_in_prose(name: str, place: str, before: str, after: str, people: People) -> None:
    shown = people.prose(words(f"{before} <{name}@{place}> {after}"))
    assert f"{name}@{place}" not in shown


def test_hiding_addresses_takes_linear_time_on_hostile_replies() -> None:
    for hostile in ("a" * 500_000 + " @", "a@" * 250_000, "@" * 500_000, '"' * 500_000 + "@a"):
        OMIT.prose(hostile)  # the square of this would take minutes
