"""The Received line that goes in front where a backend cannot see the client, and mail that comes round (RFC 5321 4.4, 6.3)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.settings import AuthMode, FrontTlsMode, FrontTlsSettings, IdentityMode, ReceivedMode
from smtplb.smtp.chunks import ReceivedCounter, trace_mark
from tests.protocol import certificates as certs
from tests.protocol.client import settle
from tests.protocol.mta import FULL, OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

DATE = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}"
OURS = "Received: from h.test ([127.0.0.1])\r\n\tby lb.test (smtplb) with SMTP id x.1;\r\n\tSun, 1 Jan 2023 00:00:00 +0000\r\n"
OTHER = "Received: from a.test by b.test\r\n\twith ESMTP; Sun, 1 Jan 2023 00:00:00 +0000\r\n"


def traced(*mtas: Mta, **options: Any) -> Stage:
    listener = options.pop("listener", None)
    return Stage(pool(*mtas, received=ReceivedMode.AUTO, **options), listener=listener)


def line_of(content: bytes) -> str:
    found = re.match(rb"Received: (?:[^\r]|\r\n\t)*\r\n", content)
    assert found, content[:300]
    return found[0].decode("ascii")


async def test_its_form_is_exact() -> None:
    a = Mta("a")
    async with traced(a) as stage:
        client = await stage.client("h.test")
        assert (await client.message(body=b"Subject: x\r\n\r\nhello\r\n")).startswith("250")
        line = line_of(a.taken[0].content)
        identifier = stage.ends[0].transaction_id
        assert re.fullmatch(
            r"Received: from h\.test \(\[127\.0\.0\.1\]\)\r\n"
            rf"\tby lb\.test \(smtplb\) with ESMTP id {re.escape(identifier)};\r\n"
            rf"\t{DATE}\r\n",
            line,
        )
        assert a.taken[0].content == line.encode() + b"Subject: x\r\n\r\nhello\r\n"


@pytest.mark.parametrize(
    ("hello", "tls", "login", "protocol"),
    [
        ("HELO", False, False, "SMTP"),
        ("EHLO", False, False, "ESMTP"),
        ("EHLO", True, False, "ESMTPS"),
        ("EHLO", True, True, "ESMTPSA"),
        ("EHLO", False, True, "ESMTPA"),
    ],
)
async def test_it_names_the_protocol(hello: str, tls: bool, login: bool, protocol: str) -> None:
    """RFC 3848."""
    a = Mta("a", *OFFERS, "AUTH PLAIN")
    listener = {
        "tls": FrontTlsSettings(FrontTlsMode.STARTTLS, (certs.pair("mx.test"),)),
        "auth": AuthMode.RELAY,
        "auth_without_tls": True,
    }
    async with traced(a, listener=listener) as stage:
        client = await stage.client()
        if tls:
            await client.starttls(certs.client(), "mx.test")
        await client.ask(f"{hello} h.test")
        if login:
            assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235")
        assert (await client.message()).startswith("250")
        assert f" with {protocol} id " in line_of(a.taken[0].content)


@pytest.mark.parametrize("name", ["a(b", "a)b", "a;b", 'a"b', "a<b>", "a\\b", "()", "x" * 255])
async def test_a_hostile_name_is_not_repeated(name: str) -> None:
    a = Mta("a")
    async with traced(a) as stage:
        client = await stage.client(name)
        assert (await client.message()).startswith("250")
        said = name if name.isalnum() else "unknown"
        line = line_of(a.taken[0].content)
        assert line.startswith(f"Received: from {said} ([127.0.0.1])\r\n")
        assert all(len(part) <= 998 for part in line.split("\r\n"))


@pytest.mark.parametrize("first", [b" folded", b"\tfolded", b"\r\nno header", b"Subject: x", b"."])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_begins_with_a_blank_does_not_continue_it(first: bytes, chunked: bool) -> None:
    a = Mta("a", *FULL)
    body = first + b"\r\n"
    async with traced(a) as stage:
        client = await stage.client()
        await client.envelope()
        if chunked:
            await client.bdat(body)
        else:
            await client.data(body.replace(b".\r\n", b"..\r\n"))
        content = a.taken[0].content
        line = line_of(content).encode()
        assert content == line + (b"\r\n" if first[:1] in b" \t" else b"") + body


@pytest.mark.parametrize("sent", [b". folded\r\n", b".\tfolded\r\n", b".\0folded\r\n", b".\rfolded\r\n"])
async def test_nor_does_one_that_hides_the_blank_behind_a_dot(sent: bytes) -> None:
    """A backend takes the dot away (RFC 5321 4.5.2), and then the line begins with a blank."""
    a = Mta("a", *FULL)
    async with traced(a) as stage:
        client = await stage.client()
        await client.envelope()
        client.send(b"DATA\r\n")
        assert (await client.reply()).startswith("354")
        for octet in sent + b".\r\n":
            client.send(bytes([octet]))
            await settle(2)
        assert (await client.reply()).startswith("250")
        content = a.taken[0].content
        line = line_of(content).encode()
        assert content[len(line) :].startswith((b"\r\n ", b"\r\n\t"))


async def test_an_empty_message_gets_one_too() -> None:
    a = Mta("a", *FULL)
    async with traced(a) as stage:
        client = await stage.client()
        assert (await client.message(body=b"")).startswith("250")
        await client.envelope()
        assert (await client.chunk(b"", last=True)).startswith("250")
        for taken in a.taken:
            assert taken.content == line_of(taken.content).encode()


@pytest.mark.parametrize("mode", IdentityMode)
@pytest.mark.parametrize("received", ReceivedMode)
async def test_it_goes_where_the_backend_cannot_see_the_client(
    mode: IdentityMode, received: ReceivedMode
) -> None:
    offers = ("XCLIENT ADDR PORT NAME HELO PROTO", "XFORWARD ADDR PORT")
    a = Mta("a", *OFFERS, *offers, proxy=mode.value.startswith("proxy"))
    async with Stage(pool(a, identity=mode, received=received)) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        wanted = received is ReceivedMode.ALWAYS or (received is ReceivedMode.AUTO and not mode.binds)
        assert a.taken[0].content.startswith(b"Received: from client.test") is wanted


async def test_size_is_raised_by_it() -> None:
    a = Mta("a", "PIPELINING", "SIZE 5000")
    async with traced(a) as stage:
        client = await stage.client()
        assert (await client.message(mail="<s@a.test> SIZE=100")).startswith("250")
        line = line_of(a.taken[0].content)
        assert a.taken[0].mail == f"FROM:<s@a.test> SIZE={100 + len(line)}"
        assert (await client.message(mail="<s@a.test> SIZE=5000"))[:3] in ("250", "552")


async def test_a_replay_has_the_same_one() -> None:
    a, b = Mta("a"), Mta("b")
    a.dies_after = 1000
    async with traced(a, b) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.ask("DATA")).startswith("354")
        client.send(b"x" * 2000 + b"\r\n")
        await until(lambda: b.sessions and "DATA" in b.sessions[0].lines)
        first = bytes(a.sessions[0]._buffer)
        client.send(b".\r\n")
        assert (await client.reply()).startswith("250")
        assert b.taken[0].content.startswith(line_of(first).encode())


# -- loops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("own", "others", "code"),
    [
        (0, 0, "250"),
        (2, 10, "250"),
        (3, 0, "554"),
        (4, 0, "554"),
        (0, 49, "250"),
        (0, 50, "554"),
        (2, 48, "554"),
    ],
)
async def test_mail_that_comes_round_is_refused_at_its_end(
    own: int, others: int, code: str, chunked: bool
) -> None:
    a = Mta("a", *FULL)
    body = (OURS * own + OTHER * others + "Subject: x\r\n\r\n" + OURS * 9 + "hello\r\n").encode()
    async with traced(a) as stage:
        client = await stage.client()
        await client.envelope()
        answer = (await client.bdat(body))[0] if chunked else await client.data(body)
        assert answer[:3] == code
        assert len(a.taken) == int(code == "250")
        if code == "554":
            assert answer.startswith("554 5.4.6")
            assert stage.refusals["loop"] == 1
        assert (await client.message()).startswith("250")


@given(st.integers(0, 4), st.integers(0, 4), st.lists(st.integers(1, 60), max_size=30), st.booleans())
def test_trace_lines_are_counted_once_however_they_are_cut(
    own: int, others: int, sizes: list[int], upper: bool
) -> None:
    header = OURS * own + "X-Received: no\r\n" + OTHER * others + "Subject: Received:\r\n"
    data = (header.upper() if upper else header).encode() + b"\r\n" + (OURS + OTHER).encode()
    counter = ReceivedCounter(trace_mark("LB.test"))
    at = 0
    for size in [*sizes, len(data)]:
        counter.feed(data[at : at + size])
        at += size
    assert (counter.own, counter.total) == (own, own + others)
