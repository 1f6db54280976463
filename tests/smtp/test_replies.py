"""Replies of backends: the grammar case by case, then as laws over any bytes and any split of them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.smtp.replies import MAX_REPLY_BYTES, MAX_REPLY_LINE_BYTES, Garbled, Reply, ReplyReader
from tests.effort import examples

A_WHILE_S = 1.0  # what takes milliseconds; a quadratic reading of the same takes seconds


def read(chunks: Iterable[bytes]) -> list[Reply | None]:
    """Replies in order; None for the garbled one that ends the stream."""
    reader = ReplyReader()
    found: list[Reply | None] = []
    for chunk in chunks:
        reader.feed(chunk)
        while (reply := reader.next_reply()) is not None:
            if isinstance(reply, Garbled):
                return [*found, None]
            found.append(reply)
    return found


def one_by_one(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def three_ways(data: bytes) -> list[Reply | None]:
    """Whole, byte by byte, and with bytes of a next reply behind it; all must agree."""
    whole = read([data])
    assert read(one_by_one(data)) == whole
    assert read([data, b"250 next\r\n"]) == (whole if None in whole else [*whole, Reply(250, [b"next"])])
    trailed = read([data + b"25"])
    assert trailed == whole
    return whole


LAWFUL = {
    "a greeting": (b"220 mx1.lab.test ESMTP Postfix\r\n", Reply(220, [b"mx1.lab.test ESMTP Postfix"])),
    "a bare code": (b"250\r\n", Reply(250, [b""])),
    "a code and a blank": (b"250 \r\n", Reply(250, [b""])),
    "a bare LF, as some write": (b"250 ok\n", Reply(250, [b"ok"])),
    "several lines": (b"250-a\r\n250-\r\n250 c\r\n", Reply(250, [b"a", b"", b"c"])),
    "a bare code as last line": (b"250-a\r\n250\r\n", Reply(250, [b"a", b""])),
    "a tab in the text": (b"250 a\tb\r\n", Reply(250, [b"a\tb"])),
    "text beyond ASCII": (b"550 caf\xc3\xa9\r\n", Reply(550, [b"caf\xc3\xa9"])),
    "two blanks": (b"550  user unknown\r\n", Reply(550, [b" user unknown"])),
    "a hyphen in the text": (b"250 -a\r\n", Reply(250, [b"-a"])),
    "Exchange": (
        b"250 2.6.0 <x@y.test> [InternalId=123, Hostname=ex1] Queued mail for delivery\r\n",
        Reply(250, [b"2.6.0 <x@y.test> [InternalId=123, Hostname=ex1] Queued mail for delivery"]),
    ),
    "Sendmail": (
        b"553 5.1.8 <a@b.test>... Domain of sender address a@b.test does not exist\r\n",
        Reply(553, [b"5.1.8 <a@b.test>... Domain of sender address a@b.test does not exist"]),
    ),
    "Exim": (
        b"550-Verification failed for <a@b.test>\r\n550-Unrouteable address\r\n550 Sender verify failed\r\n",
        Reply(550, [b"Verification failed for <a@b.test>", b"Unrouteable address", b"Sender verify failed"]),
    ),
    # RFC 5321 4.2 has no second digit above 5. Operators write such codes in access maps all the same, and clients
    # go by the first digit (4.3.2): a refusal read as trouble of the backend would be tried again for days.
    "a code of an access map": (b"571 5.7.1 no\r\n", Reply(571, [b"5.7.1 no"])),
}


@pytest.mark.parametrize("case", LAWFUL.values(), ids=LAWFUL)
def test_a_lawful_reply_is_read_at_any_pace(case: tuple[bytes, Reply]) -> None:
    wire, reply = case
    assert three_ways(wire) == [reply]


GARBAGE = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28\r\n",
    "an empty line": b"\r\n",
    "only LF": b"\n",
    "two digits": b"25\r\n",
    "two digits and a blank": b"25 ok\r\n",
    "four digits": b"2500 ok\r\n",
    "a code below 200": b"199 ok\r\n",
    "a code above 599": b"600 ok\r\n",
    "no blank behind the code": b"250ok\r\n",
    "a tab behind the code": b"250\tok\r\n",
    "a NUL behind the code": b"250\0ok\r\n",
    "a CR behind the code": b"250\rok\r\n",
    "two CR behind the code": b"250\r\r\n",
    "a blank before the code": b" 250 ok\r\n",
    "digits beyond ASCII": b"\xef\xbc\x9250 ok\r\n",
    "a sign": b"+25 ok\r\n",
    "another code in the same reply": b"250-a\r\n251 b\r\n",
    "a reply cut short by another": b"250-a\r\n\r\n",
}


@pytest.mark.parametrize("wire", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_reply_is_garbled_at_any_pace(wire: bytes) -> None:
    assert three_ways(wire) == [None]


@pytest.mark.parametrize("start", [b"HTTP", b"SSH-", b"\x16\x03\x01\x02", b"250x", b"    "])
def test_garbage_is_known_after_four_bytes_without_waiting_for_a_line_end(start: bytes) -> None:
    reader = ReplyReader()
    reader.feed(start)
    assert isinstance(reader.next_reply(), Garbled)


def test_pipelined_replies_come_out_in_order() -> None:
    stream = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n550-5.1.1 no\r\n550 5.1.1 such user\r\n354 go\r\n"
    codes = [reply.code if reply else None for reply in three_ways(stream)]
    assert codes == [250, 250, 550, 354]


@pytest.mark.parametrize("control", [b"\0", b"\r", b"\x0b", b"\x0c", b"\x1b", b"\x7f"])
def test_a_control_in_the_text_becomes_a_blank(control: bytes) -> None:
    assert three_ways(b"550 a" + control + b"b\r\n") == [Reply(550, [b"a b"])]


def test_a_response_cannot_be_split_by_a_carriage_return() -> None:
    assert three_ways(b"550 no\r250 2.0.0 Ok\r\n") == [Reply(550, [b"no 250 2.0.0 Ok"])]


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    text = b"x" * (MAX_REPLY_LINE_BYTES - len(b"250 \r\n"))
    assert read([b"250 " + text + b"\r\n"]) == [Reply(250, [text])]
    assert read([b"250 x" + text + b"\r\n"]) == [None]
    assert read(one_by_one(b"250 " + text + b"\r\n")) == [Reply(250, [text])]
    assert read(one_by_one(b"250 x" + text + b"\r\n")) == [None]


@pytest.mark.parametrize("size", [200_000, 256_000, MAX_REPLY_LINE_BYTES - len(b"250 ")])
def test_a_line_without_an_end_is_given_up_at_the_limit(size: int) -> None:
    assert read([b"250 " + b"x" * size]) == [None]
    assert read([b"250-" + b"x" * size + b"\r\n250 ok\r\n"]) == [None]


def test_no_more_than_one_line_is_held_while_a_line_comes_in_slowly() -> None:
    reader = ReplyReader()
    held = b"250 "
    reader.feed(held)
    fed = len(held)
    while reader.next_reply() is None:
        reader.feed(b"x" * 100)
        fed += 100
        assert fed <= MAX_REPLY_LINE_BYTES + 100


def test_a_reply_of_many_lines_is_given_up_at_the_limit() -> None:
    line = b"250-" + b"x" * 94 + b"\r\n"
    enough = MAX_REPLY_BYTES // len(line)
    assert read([line * (enough - 1) + b"250 x\r\n"]) != [None]
    assert read([line * (enough + 1)]) == [None]
    assert read(line for _ in range(enough + 1)) == [None]


def test_the_limit_counts_anew_for_each_reply() -> None:
    reply = (b"250-" + b"x" * 994 + b"\r\n") * 40 + b"250 x\r\n"
    assert [found.code if found else None for found in read([reply] * 5)] == [250] * 5


@pytest.mark.parametrize("line", [b"250-\n", b"250-a\r\n", b"\n"])
def test_many_short_lines_in_one_chunk_cost_no_quadratic_time(line: bytes) -> None:
    chunk = line * (2_000_000 // len(line))
    start = time.process_time()
    assert read([chunk]) == [None]
    assert time.process_time() - start < A_WHILE_S


def test_many_short_replies_in_one_chunk_cost_no_quadratic_time() -> None:
    start = time.process_time()
    assert len(read([b"250 a\r\n" * 100_000])) == 100_000
    assert time.process_time() - start < 2 * A_WHILE_S


def test_a_reader_is_empty_before_and_between_replies_only() -> None:
    reader = ReplyReader()
    assert reader.empty
    reader.feed(b"250-a\r\n")
    assert reader.next_reply() is None
    assert not reader.empty, "half a reply is held"
    reader.feed(b"250 b\r\n2")
    assert reader.next_reply() == Reply(250, [b"a", b"b"])
    assert not reader.empty, "one byte is held"
    reader.feed(b"50 c\r\n")
    assert reader.next_reply() == Reply(250, [b"c"])
    assert reader.next_reply() is None
    assert reader.empty


@pytest.mark.parametrize("before", [b"25", b"250-a\r\n", b"250-a\r\n25", b"250 injected\r\n", b"x"])
def test_clear_forgets_all_that_came_before(before: bytes) -> None:
    """CVE-2021-38371: words behind the 220 to STARTTLS must not be taken for answers inside TLS."""
    for looks_first in (False, True):
        reader = ReplyReader()
        reader.feed(before)
        if looks_first:
            reader.next_reply()
        reader.clear()
        assert reader.empty
        reader.feed(b"451 later\r\n")
        assert reader.next_reply() == Reply(451, [b"later"])


def test_the_detail_of_garbage_is_short_and_holds_no_control() -> None:
    reader = ReplyReader()
    reader.feed(b"\x1b[2J\0\r" + b"x" * 1000 + b"\n")
    found = reader.next_reply()
    assert isinstance(found, Garbled)
    assert found.detail.startswith(b" [2J")
    assert len(found.detail) == 200


# -- what is told to a client ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "enhanced"),
    [
        (250, b"2.1.5 Ok", b"2.1.5"),
        (451, b"4.3.0 later", b"4.3.0"),
        (550, b"5.7.1", b"5.7.1"),
        (550, b"5.7.606 banned", b"5.7.606"),
        (550, b"4.7.1 of another class", None),
        (250, b"Ok", None),
        (354, b"3.0.0 no such class", None),
        (250, b"2.1.5Ok", None),
        (250, b"2.1234.5 Ok", None),
        (250, b"2.1 Ok", None),
        (250, b"\xef\xbc\x92.1.5 Ok", None),
        (250, b" 2.1.5 Ok", None),
    ],
)
def test_an_enhanced_code_counts_if_its_class_agrees(code: int, text: bytes, enhanced: bytes | None) -> None:
    assert Reply(code, [text]).enhanced == enhanced


@pytest.mark.parametrize(
    ("reply", "code", "wire"),
    [
        (Reply(250, [b"2.1.5 Ok"]), None, b"250 2.1.5 Ok\r\n"),
        (Reply(250, [b"Ok"]), None, b"250 2.0.0 Ok\r\n"),
        (Reply(250, [b""]), None, b"250 2.0.0 \r\n"),
        (Reply(354, [b"go"]), None, b"354 go\r\n"),
        (Reply(421, [b"4.3.2 closing"]), 451, b"451 4.3.2 closing\r\n"),
        (Reply(550, [b"4.7.1 no"]), None, b"550 5.0.0 4.7.1 no\r\n"),
        (Reply(550, [b"5.7.1 a", b"5.7.1 b"]), None, b"550-5.7.1 a\r\n550 5.7.1 b\r\n"),
        # RFC 2034 4: the same status code at the beginning of each line.
        (Reply(550, [b"5.7.1 a", b"b"]), None, b"550-5.7.1 a\r\n550 5.7.1 b\r\n"),
        (Reply(550, [b"a", b"5.7.1 b"]), None, b"550-5.7.1 a\r\n550 5.7.1 b\r\n"),
        (Reply(550, [b"a", b"b"]), None, b"550-5.0.0 a\r\n550 5.0.0 b\r\n"),
        (Reply(421, [b"4.7.0 a", b"b"]), 451, b"451-4.7.0 a\r\n451 4.7.0 b\r\n"),
    ],
)
def test_a_relayed_reply_carries_an_enhanced_code_on_each_line(
    reply: Reply, code: int | None, wire: bytes
) -> None:
    assert reply.wire(code) == wire


def test_a_reply_is_told_to_logs_by_its_first_line() -> None:
    assert Reply(550, [b"5.1.1 a", b"5.1.1 b"]).text_line() == b"550 5.1.1 a"


def test_replies_are_equal_by_what_they_say() -> None:
    assert Reply(250, [b"a"]) == Reply(250, [b"a"])
    assert Reply(250, [b"a"]) != Reply(251, [b"a"])
    assert Reply(250, [b"a"]) != Reply(250, [b"a", b""])
    assert repr(Reply(250, [b"a"])) == "Reply(250, [b'a'])"


# -- laws --------------------------------------------------------------------------------------------------------

CODES = st.sampled_from([b"250", b"250", b"250", b"421", b"354", b"571", b"25", b"199", b"HTTP"])
SEPARATORS = st.sampled_from([b" ", b" ", b"-", b"-", b"", b"\t", b"\0", b"\r"])
TEXTS = st.sampled_from([b"", b"Ok", b"2.1.5 Ok", b"4.3.2", b"\r", b"a\rb", b"\0", b"\x85"]) | st.binary(
    max_size=4
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b""])
streams = st.lists(st.tuples(CODES, SEPARATORS, TEXTS, ENDS).map(b"".join), max_size=12).map(b"".join)
CUTS = st.lists(st.integers(0, 120), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    return [data[start:end] for start, end in pairwise(places)]


@settings(max_examples=examples(300))
@given(streams, CUTS)
def test_any_split_of_any_stream_gives_the_same_replies(data: bytes, cuts: list[int]) -> None:
    whole = read([data])
    assert read(cut(data, cuts)) == whole
    assert read(one_by_one(data)) == whole


LINE = re.compile(rb"[2-5][0-9][0-9][ -][\t\x20-\x7e\x80-\xff]*\Z")


@settings(max_examples=examples(300))
@given(streams, st.booleans())
def test_what_passes_holds_no_control_and_goes_out_as_whole_lines(data: bytes, as_451: bool) -> None:
    for reply in read([data]):
        if reply is None:
            continue
        for text in reply.lines:
            assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", text)
        wire = reply.wire(451 if as_451 and reply.code // 100 == 4 else None)
        *lines, rest = wire.split(b"\r\n")
        assert rest == b""
        assert len(lines) == len(reply.lines)
        assert all(LINE.match(line) for line in lines)
        assert [line[3:4] for line in lines] == [b"-"] * (len(lines) - 1) + [b" "]
        digit = wire[:1]
        if digit != b"3":
            assert all(re.match(rb"%s\.\d{1,3}\.\d{1,3}(?: |\Z)" % digit, line[4:]) for line in lines)


@given(
    st.lists(
        st.tuples(st.integers(200, 599), st.lists(st.binary(max_size=30), min_size=1, max_size=4)), max_size=5
    )
)
def test_what_we_send_reads_back_as_one_reply_each(told: list[tuple[int, list[bytes]]]) -> None:
    clean = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
    replies = [Reply(code, [clean.sub(b"", text) for text in lines]) for code, lines in told]
    stream = b"".join(reply.wire() for reply in replies)
    assert [(found.code, len(found.lines)) for found in read([stream]) if found] == [
        (reply.code, len(reply.lines)) for reply in replies
    ]
