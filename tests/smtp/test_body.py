"""The body: a slow and plain model beside the reader, laws over any bytes and splits, and every known smuggling trick.

The model walks single bytes and looks both ways; it shares nothing with the reader.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtplb.smtp.body import TERMINATOR, BodyReader
from smtplb.smtp.scan import is_lawful
from tests.effort import examples

END = b"\r\n.\r\n"
A_WHILE_S = 2.0  # what takes some 20 ms


class Told:
    """What a reader made of a stream. `rest` is empty unless `ended`."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        reader = BodyReader()
        out, rest = [], []
        for chunk in chunks:
            if reader.ended:
                rest.append(chunk)
                continue
            canonical, behind = reader.feed(chunk)
            assert reader.ended or not behind
            out.append(canonical)
            rest.append(behind)
        self.out = b"".join(out)
        self.rest = b"".join(rest)
        self.ended = reader.ended
        self.lawless = reader.lawless
        self.raw_bytes = reader.raw_bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Told) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(vars(self))


def model(raw: bytes) -> tuple[bytes, bytes | None]:
    """(canonical body, what is behind the end of data or None if there is no end), one byte at a time."""
    window = b"\r\n"  # the CRLF behind DATA
    for at, octet in enumerate(raw):
        window = (window + bytes([octet]))[-5:]
        if window == END:
            return model_lines(raw[: at - 2]), raw[at + 1 :]
    return model_lines(raw), None


def model_lines(body: bytes) -> bytes:
    out, line, at = bytearray(), bytearray(), 0
    while at < len(body):
        octet, following = body[at], body[at + 1] if at + 1 < len(body) else None
        at += 1
        if octet == 0x0D and following == 0x0A:
            continue
        if octet == 0x0A:
            out += b".." if line == b"." else line
            out += b"\r\n"
            line.clear()
        else:
            line.append(0x20 if octet in (0x00, 0x0D) else octet)
    return bytes(out + line)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[start:end] for start, end in pairwise(edges)]


def one_by_one(data: bytes) -> list[bytes]:
    return cut(data, range(len(data)))


def assert_canonical(out: bytes) -> None:
    """Design law: CRLF.CRLF once, at the end; no lone CR or LF; no NUL."""
    sent = b"\r\n" + out + TERMINATOR
    assert sent.find(END) == len(sent) - len(END)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", out)
    assert not out or out.endswith(b"\r\n")


# -- cases ---------------------------------------------------------------------------------------------------------

CASES = {
    "an empty body": (b"", b"", False),
    "one line": (b"a\r\n", b"a\r\n", False),
    "one empty line": (b"\r\n", b"\r\n", False),
    "a dot-stuffed line stays as sent": (b"..\r\n...a\r\n", b"..\r\n...a\r\n", False),
    "a leading dot stays as sent": (b".a\r\nb\r\n", b".a\r\nb\r\n", False),
    "dots inside a line": (b"a.\r\nb.c.\r\n", b"a.\r\nb.c.\r\n", False),
    "eight-bit octets": (b"\xe4\x85\xff\r\n", b"\xe4\x85\xff\r\n", False),
    "other controls": (b"a\x0b\x0c\x1c\x1a\x7f\r\n", b"a\x0b\x0c\x1c\x1a\x7f\r\n", False),
    "a bare LF ends a line": (b"a\nb\r\n", b"a\r\nb\r\n", True),
    "a bare LF at the start": (b"\na\r\n", b"\r\na\r\n", True),
    "a bare LF at the end": (b"a\n\r\n", b"a\r\n\r\n", True),
    "two bare LF": (b"a\n\nb\r\n", b"a\r\n\r\nb\r\n", True),
    "LF CR": (b"a\n\rb\r\n", b"a\r\n b\r\n", True),
    "a bare CR": (b"a\rb\r\n", b"a b\r\n", True),
    "a bare CR at the start": (b"\ra\r\n", b" a\r\n", True),
    "CR CR LF": (b"a\r\r\n", b"a \r\n", True),
    "a NUL": (b"a\0b\r\n", b"a b\r\n", True),
    "NUL between CR and LF": (b"a\r\0\nb\r\n", b"a  \r\nb\r\n", True),
    "a lone dot behind a bare LF": (b"a\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n", True),
    "a lone dot before a bare LF": (b"a\r\n.\nb\r\n", b"a\r\n..\r\nb\r\n", True),
    "a lone dot at the start before a bare LF": (b".\nb\r\n", b"..\r\nb\r\n", True),
    "three lone dots in a row": (b"\n.\n.\n.\nb\r\n", b"\r\n..\r\n..\r\n..\r\nb\r\n", True),
    "a dot and CR CR LF": (b"a\r\n.\r\r\nb\r\n", b"a\r\n. \r\nb\r\n", True),
    "a dot and NUL": (b"a\r\n.\0\r\nb\r\n", b"a\r\n. \r\nb\r\n", True),
    "a NUL and a dot": (b"a\r\n\0.\r\nb\r\n", b"a\r\n .\r\nb\r\n", True),
    "a leading dot behind a bare LF stays": (b"a\n.b\r\n", b"a\r\n.b\r\n", True),
}


@pytest.mark.parametrize("behind", [b"", b"QUIT\r\n", b"\r\n.\r\n", b".\r\n", b"\n", b"\0"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_body_is_read_whole_and_byte_by_byte_and_with_bytes_behind_it(
    case: tuple[bytes, bytes, bool], behind: bytes
) -> None:
    raw, out, lawless = case
    stream = raw + TERMINATOR + behind
    whole = Told([stream])
    assert (whole.out, whole.lawless, whole.rest, whole.raw_bytes) == (out, lawless, behind, len(raw))
    assert whole.ended
    assert Told(one_by_one(stream)) == whole
    assert Told([raw, TERMINATOR, behind]) == whole
    assert model(stream) == (out, behind)
    assert_canonical(out)


@pytest.mark.parametrize("raw", [case[0] for case in CASES.values()], ids=CASES)
def test_a_body_without_its_end_never_ends(raw: bytes) -> None:
    told = Told(one_by_one(raw + b".\r"))
    assert not told.ended
    assert model(raw + b".\r")[1] is None


@pytest.mark.parametrize("held", [b"\r", b".", b".\r", b"\r\n.", b"\r\n.\r", b"a\r", b"\n.", b"\n.\r"])
def test_what_may_become_an_end_is_kept_back_and_nothing_else(held: bytes) -> None:
    kept = {b"\r": 1, b".": 1, b".\r": 2, b"\r\n.": 1, b"\r\n.\r": 2, b"a\r": 1, b"\n.": 1, b"\n.\r": 2}[held]
    assert Told([held]).raw_bytes == len(held) - kept
    assert Told(one_by_one(held)).raw_bytes == len(held) - kept


@pytest.mark.parametrize("sent_on", [b"a.", b"a..", b"..", b"\r\n..", b"a", b"\r\n", b"a.\r\n", b"\n", b"\0"])
def test_what_cannot_become_an_end_is_sent_on_at_once(sent_on: bytes) -> None:
    assert Told([sent_on]).raw_bytes == len(sent_on)


def test_raw_bytes_count_what_the_client_sent_and_not_what_goes_out() -> None:
    assert Told([b"a\nb\n.\n\0" + END]).raw_bytes == len(b"a\nb\n.\n\0\r\n")


@pytest.mark.parametrize(
    ("segment", "lawful"),
    [
        (b"", True),
        (b"a", True),
        (b"\r\n", True),
        (b"a\r\nb\r\n", True),
        (b"\x85\x0b\x0c\x1c", True),
        (b"\n", False),
        (b"a\r\nb\n", False),
        (b"\rb", False),
        (b"\r\r\n", False),
        (b"\n\r\n", False),
        (b"\0", False),
        (b"a\r\n\0\r\n", False),
    ],
)
def test_lawful_is_crlf_only_and_no_nul(segment: bytes, lawful: bool) -> None:
    assert is_lawful(segment) is lawful
    assert is_lawful(b"\n") is False
    assert is_lawful(segment) is lawful, "nothing of the segment before is remembered"


def test_two_readers_at_work_by_turns_do_not_mix() -> None:
    first, second = BodyReader(), BodyReader()
    assert first.feed(b"a\r") == (b"a", b"")
    assert second.feed(b"\nb\r") == (b"\r\nb", b"")
    assert first.feed(b"\n.\r") == (b"\r\n", b"")
    assert second.feed(b"\n.\r\nrest") == (b"\r\n", b"rest")
    assert first.feed(b"\n") == (b"", b"")
    assert (first.lawless, second.lawless) == (False, True)
    assert first.ended
    assert second.ended


# -- laws ----------------------------------------------------------------------------------------------------------

PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"\0",
    b"a",
    b"\r\n.",
    b".\r\n",
    b"\n.\n",
    b"\r\n.\r",
    b"..",
    b"\xff",
    b"xyz",
]
bodies = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join) | st.binary(max_size=60)
CUTS = st.lists(st.integers(0, 130), max_size=20)


@settings(max_examples=examples(1000))
@given(bodies, CUTS)
@example(b".\r\n" + END, [1])
def test_the_reader_agrees_with_the_model_over_any_split(raw: bytes, cuts: list[int]) -> None:
    stream = raw + END
    out, rest = model(stream)
    told = Told(cut(stream, cuts))
    assert told.ended
    assert (told.out, told.rest) == (out, rest)
    assert rest is not None
    assert told.raw_bytes == len(stream) - len(rest) - len(TERMINATOR)
    assert told.lawless is (out != stream[: told.raw_bytes])
    assert Told(one_by_one(stream)) == told == Told([stream])


@settings(max_examples=examples(500))
@given(bodies)
def test_what_leaves_us_is_canonical_and_stays_as_it_is_when_read_again(raw: bytes) -> None:
    out = Told([raw + END]).out
    assert_canonical(out)
    again = Told([out + TERMINATOR])
    assert (again.out, again.lawless, again.ended, again.rest) == (out, False, True, b"")


@settings(max_examples=examples(500))
@given(bodies, CUTS)
def test_what_was_sent_on_so_far_is_a_beginning_of_the_whole(raw: bytes, cuts: list[int]) -> None:
    """Nothing sent on would have to be taken back, and at most two octets are kept back."""
    final = Told([raw + END])
    reader, out = BodyReader(), b""
    fed = 0
    for chunk in cut(raw, cuts):
        canonical, _ = reader.feed(chunk)
        out += canonical
        fed += len(chunk)
        assert final.out.startswith(out)
        if reader.ended:
            break
        assert fed - 2 <= reader.raw_bytes <= fed


LINES = st.lists(st.binary(max_size=20).map(lambda line: re.sub(rb"[\r\n\0]", b"x", line)), max_size=20)


@settings(max_examples=examples(300))
@given(LINES, CUTS, st.binary(max_size=8))
def test_a_lawful_body_passes_byte_for_byte(lines: list[bytes], cuts: list[int], behind: bytes) -> None:
    body = b"".join((b"." + line if line.startswith(b".") else line) + b"\r\n" for line in lines)
    told = Told(cut(body + TERMINATOR + behind, cuts))
    assert (told.out, told.rest, told.lawless, told.ended) == (body, behind, False, True)


SIZES = [around + more for around in (4096, 65536, 262144) for more in range(-3, 4)]


@pytest.mark.parametrize("chunk_size", [4096, 65536, 256_000, 262144])
@pytest.mark.parametrize("size", SIZES)
def test_lawful_bodies_of_every_size_around_the_usual_buffers_pass(size: int, chunk_size: int) -> None:
    lines = b"..dots\r\n" + b"x" * 70 + b"\r\n"
    body = lines * ((size - 2) // len(lines))
    body += b"y" * (size - len(body) - 2) + b"\r\n"
    stream = body + TERMINATOR + b"QUIT\r\n"
    told = Told(cut(stream, range(0, len(stream), chunk_size)))
    assert (told.out, told.rest, told.lawless, told.ended) == (body, b"QUIT\r\n", False, True)
    assert told.raw_bytes == size


@pytest.mark.parametrize("size", [4096, 65536, 262144])
@pytest.mark.parametrize(
    "trick", [b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r\0\n", b"\n.\n.\n", b"\r\n.\r\n"]
)
def test_a_trick_across_the_edge_of_a_chunk_is_seen_at_every_place(size: int, trick: bytes) -> None:
    for start in range(size - len(trick) - 1, size + 2):
        raw = (b"x" * 62 + b"\r\n") * (start // 64) + b"y" * (start % 64)
        stream = raw + trick + b"MAIL\r\n" + END
        told = Told([stream[:size], stream[size:]])
        assert (told.out, told.rest) == (
            (raw + b"\r\n", b"MAIL\r\n" + END) if trick == END else model_of(raw, trick)
        )


def model_of(raw: bytes, trick: bytes) -> tuple[bytes, bytes]:
    """As the model says; the long lawful part in front is not walked again for each place."""
    out, rest = model(b"y" + trick + b"MAIL\r\n" + END)
    assert rest is not None
    return raw + out[1:], rest


@pytest.mark.parametrize(
    "pattern", [b"\n", b"\r", b".", b"\0", b"\n.", b"\r\n.\n", b".\r", b"\r\r\n.", b"\n.\n"]
)
@pytest.mark.parametrize("chunk_size", [1_000_000, 1000])
def test_a_megabyte_of_any_trick_costs_no_more_than_its_length(pattern: bytes, chunk_size: int) -> None:
    raw = pattern * (1_000_000 // len(pattern))
    start = time.process_time()
    Told(cut(raw, range(0, len(raw), chunk_size)))
    assert time.process_time() - start < A_WHILE_S


# -- smuggling -----------------------------------------------------------------------------------------------------

SMUGGLED = b"MAIL FROM:<ceo@victim.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nhello\r\n"

# What some MTA or other has taken for a line end, and octets that some drop before they look.
_LAX_LINE_END = rb"(?:\r+\n|\r|\n)"
LAX_ENDS = [
    re.compile(_LAX_LINE_END + rb"\0*\.\0*" + _LAX_LINE_END),
    re.compile(rb"\n\.\r*\n"),
    re.compile(rb"\r\n\.\r(?!\n)"),
    re.compile(rb"\r\n\.\n"),
]


def assert_one_message(trick: bytes) -> None:
    """The trick does not end the data, here or at a backend that takes anything for an end; all of it is one body."""
    stream = b"Subject: cover\r\n\r\nfirst" + trick + SMUGGLED + TERMINATOR
    for chunks in ([stream], one_by_one(stream)):
        told = Told(chunks)
        assert told.ended
        assert told.rest == b""
        assert told.lawless
        assert b"MAIL FROM:<ceo@victim.test>" in told.out
        assert_canonical(told.out)
        sent = b"\r\n" + told.out + TERMINATOR
        for lax in LAX_ENDS:
            found = lax.search(sent)
            assert found is None or found.end() == len(sent)


@pytest.mark.parametrize("trick", [b"\n.\r\n", b"\n.\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r"])
def test_cve_2023_51764_postfix_took_a_bare_lf_for_a_line_end(trick: bytes) -> None:
    assert_one_message(trick)


@pytest.mark.parametrize("trick", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r\r\n"])
def test_cve_2023_51765_sendmail_took_lf_dot_lf_for_the_end(trick: bytes) -> None:
    assert_one_message(trick)


@pytest.mark.parametrize("trick", [b"\n.\r\n", b"\r\n.\n", b"\n.\n", b"\r\n\r\n\n.\r\n", b"\r\r\n.\n"])
def test_cve_2023_51766_exim_took_a_bare_lf_before_the_dot(trick: bytes) -> None:
    assert_one_message(trick)


@pytest.mark.parametrize("trick", [b"\n.\r\n", b"\n.\n", b"\r.\r", b"\n.\r"])
def test_cve_2024_27305_aiosmtpd_took_other_line_ends(trick: bytes) -> None:
    assert_one_message(trick)


@pytest.mark.parametrize("trick", [b"\r.\r", b"\r.\r\n", b"\r.\n", b"\n.\r", b"\r\n.\r", b"\r\r.\r\r"])
def test_gateways_that_make_a_line_end_of_a_bare_cr_get_none(trick: bytes) -> None:
    assert_one_message(trick)


@pytest.mark.parametrize(
    "trick",
    [
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n.\r\0\n",
        b"\r\0\n.\r\n",
        b"\0\r\n\0.\0\r\n",
        b"\n\0.\n",
        b"\n.\0\n",
        b"\r\0.\r\0",
        b"\r\n\0\0.\0\0\r\n",
    ],
)
def test_servers_that_drop_nul_before_they_look_are_given_none(trick: bytes) -> None:
    """NUL becomes a blank: left out, the octets beside it would come together (seven of the 13 sequences of 2025)."""
    assert_one_message(trick)


@pytest.mark.parametrize(
    "trick", [b"\x85.\x85", b"\x0b.\x0b", b"\x0c.\x0c", b"\xe2\x80\xa8.\xe2\x80\xa8", b"\x1c.\x1c"]
)
def test_line_ends_of_other_worlds_are_text_and_pass(trick: bytes) -> None:
    """NEL, VT, FF, LS, FS: what str.splitlines() parts at. Lawful octets in a body; no MTA ends data there."""
    stream = b"a" + trick + SMUGGLED + TERMINATOR
    told = Told([stream])
    assert (told.out, told.rest, told.lawless) == (b"a" + trick + SMUGGLED, b"", False)


@pytest.mark.parametrize("behind", [SMUGGLED, b".\r\n", b"\n.\n", b"\r\n.\r\n"])
def test_what_is_behind_the_one_end_of_data_is_commands_and_untouched(behind: bytes) -> None:
    told = Told([b"a" + END + behind])
    assert (told.out, told.rest) == (b"a\r\n", behind)
