"""Laws of single values: what is written reads back, what is not written so is refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtplb.config.scalars import (
    MAX_DURATION_S,
    choice,
    duration,
    duration_to,
    format_duration,
    format_size,
    hostname,
    name,
    or_unlimited,
    percent,
    positive_duration,
    positive_size,
    size,
    text,
    whole,
)
from smtplb.settings import Policy

ANYTHING = st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.text(), max_size=2), st.none())
READERS: list[Callable[[object], object]] = [
    duration, positive_duration, duration_to(60.0), size, positive_size, percent, whole(0, 9), or_unlimited(whole(1, 9)),
    text, name, hostname, choice(Policy),
]  # fmt: skip


@given(st.integers(0, MAX_DURATION_S * 1000))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 2**39))
def test_a_size_reads_back_as_it_was_written(octets: int) -> None:
    assert size(format_size(octets)) == octets


@given(st.integers(1, 100))
def test_a_percentage_is_a_ratio(whole_percent: int) -> None:
    assert percent(f"{whole_percent}%") == whole_percent / 100


@given(ANYTHING)
def test_readers_raise_nothing_but_words(value: object) -> None:
    for reader in READERS:
        try:
            reader(value)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - either it reads or it says why


@given(st.integers(0, 10**9), st.sampled_from(["", "s", "MiB", "%"]))
def test_digits_beyond_ascii_are_never_numbers(number: int, unit: str) -> None:
    arabic = "".join(chr(0x660 + int(digit)) for digit in str(number)) + unit
    for reader in (duration, size, percent, whole(0, 10**9)):
        with pytest.raises(ValueError):
            reader(arabic)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0s", 0.0),
        ("365d", 31536000.0),
    ],
)
def test_durations_have_one_number_and_one_unit(written: str, seconds: float) -> None:
    assert duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "s", "5 s", " 5s", "5s ", "5s\n", "+5s", "-5s", "05s", "1_0s", "5S", "5sec", "1.5s", "1h30m", "366d", "9" * 5000 + "s"],
)  # fmt: skip
def test_anything_else_is_no_duration(written: str) -> None:
    with pytest.raises(ValueError):
        duration(written)


@pytest.mark.parametrize("bare", [5, "5"])
def test_a_bare_number_is_told_to_take_a_unit(bare: object) -> None:
    with pytest.raises(ValueError, match=r"write 5s"):
        duration(bare)
    with pytest.raises(ValueError, match=r"write 5B"):
        size(bare)


@given(st.integers() | st.text("0123456789-+_. ", max_size=12))
@example(-1)
@example("007")
def test_advice_that_is_followed_is_accepted(bare: object) -> None:
    """A number that wants more than its unit is not told to take one."""
    for read, most in ((duration, MAX_DURATION_S), (size, 10**9)):
        with pytest.raises(ValueError) as refusal:
            read(bare)
        advice = re.search(r"write (\S+) \(or", str(refusal.value))
        if advice is not None and int(advice[1][:-1]) <= most:
            read(advice[1])


def test_a_duration_that_must_be_positive_is() -> None:
    assert positive_duration("1ms") == 0.001
    with pytest.raises(ValueError, match="at least 1ms"):
        positive_duration("0s")


@pytest.mark.parametrize(
    ("written", "octets"), [("512B", 512), ("256KiB", 262144), ("50MiB", 52428800), ("1GiB", 1073741824)]
)
def test_sizes_have_binary_units(written: str, octets: int) -> None:
    assert size(written) == octets


@pytest.mark.parametrize("written", ["50MB", "50M", "50 MiB", "50mib", "5.5MiB", "-1B", "+1B", "1TiB", "01B"])
def test_anything_else_is_no_size(written: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        size(written)


@pytest.mark.parametrize("written", ["0%", "101%", "50", "0.5", "50 %", 50, "5.5%", "-5%"])
def test_anything_else_is_no_percentage(written: object) -> None:
    with pytest.raises(ValueError):
        percent(written)


def test_unlimited_is_a_word_and_never_0() -> None:
    read = or_unlimited(whole(1, 100))
    assert read("unlimited") is None
    assert read(7) == 7
    with pytest.raises(ValueError, match="write unlimited"):
        read(0)
    with pytest.raises(ValueError):
        read(False)


@given(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True))
def test_names_are_taken_as_they_are(written: str) -> None:
    assert name(written) == written


@pytest.mark.parametrize("written", ["", "-a", ".a", "a b", "a/b", "ä", "a" * 64, "a\n", "a:1", 7, True])
def test_anything_else_is_no_name(written: object) -> None:
    with pytest.raises(ValueError):
        name(written)


def test_a_name_in_capitals_is_told_how_to_be_written() -> None:
    with pytest.raises(ValueError, match="write east"):
        name("East")


@pytest.mark.parametrize("written", ["lb1.example.net", "lb1", "A-1.example"])
def test_host_names_are_those_of_rfc_5321(written: str) -> None:
    assert hostname(written) == written


@pytest.mark.parametrize(
    "written", ["", "-a", "a-", "a..b", "a_b.c", "a.b.", "a b", "ä.de", ".".join(["a" * 60] * 5)]
)
def test_anything_else_is_no_host_name(written: str) -> None:
    with pytest.raises(ValueError):
        hostname(written)


def test_a_word_of_a_later_version_is_not_taken_for_a_typo() -> None:
    read = choice(Policy, ("random-two",))
    assert read("weighted") is Policy.WEIGHTED
    with pytest.raises(ValueError, match="not supported in this version"):
        read("random-two")
    with pytest.raises(ValueError, match=re.escape("must be one of round-robin, weighted, least-connection")):
        read("wieghted")
