"""BDAT in front and to backends: octets are counted and consumed whatever comes of them (RFC 3030)."""

from __future__ import annotations

import pytest

from smtplb.settings import BareNewline, FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates
from tests.protocol.client import Client
from tests.protocol.mta import FULL, OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

BODY = b"Subject: dots\r\n\r\n.one\r\n..two\r\n.\r\nend\r\n"
KINDS = {"CHUNKING": FULL, "without CHUNKING": OFFERS}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def mta(request: pytest.FixtureRequest) -> Mta:
    return Mta("a", *request.param)


async def test_a_chunked_message_arrives_as_it_was(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        replies = await client.bdat(BODY[:20], BODY[20:21], BODY[21:])
        assert [r[:3] for r in replies] == ["250", "250", "250"]
        assert [t.content for t in mta.taken] == [BODY]
        assert mta.taken[0].how == ("BDAT" if "CHUNKING" in mta.offers else "DATA")
        assert (await client.message()).startswith("250"), "the session goes on"


@pytest.mark.parametrize("empties", [1, 3])
async def test_empty_chunks_are_chunks(mta: Mta, empties: int) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        replies = await client.bdat(*[b""] * empties, BODY, b"")
        assert [r[:3] for r in replies] == ["250"] * (empties + 2)
        assert [t.content for t in mta.taken] == [BODY]


async def test_an_empty_last_chunk_alone_is_an_empty_message(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.ask("BDAT 0 LAST")).startswith("250")
        assert [t.content for t in mta.taken] == [b""]


async def test_a_missing_last_line_end_is_added_for_data_only(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.bdat(b"Subject: x\r\n\r\nhalf a line"))[0].startswith("250")
        added = b"" if "CHUNKING" in mta.offers else b"\r\n"
        assert [t.content for t in mta.taken] == [b"Subject: x\r\n\r\nhalf a line" + added]


async def test_envelope_chunks_and_the_next_transaction_go_in_one_segment(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        one = b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nBDAT 5\r\na\r\nb\nBDAT 3 LAST\r\n.\r\n"
        client.send(one + one.replace(b"s@", b"t@") + b"NOOP\r\nQUIT\r\n")
        replies = await client.replies(10)
        assert [r[:3] for r in replies] == ["250"] * 9 + ["221"]
        assert [t.sender for t in mta.taken] == ["s@a.test", "t@a.test"]
        assert {t.content for t in mta.taken} == {b"a\r\nb\r\n.\r\n"}


async def test_a_large_chunk_behind_rcpt_does_not_wait_for_anybody(mta: Mta) -> None:
    """More than is held while a reply is due, in one chunk that begins before the backend's leave."""
    body = b"x" * 76 + b"\r\n"
    body *= 20_000  # 1.5 MB
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        client.send(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nBDAT %d LAST\r\n" % len(body) + body)
        assert [r[:3] for r in await client.replies(3)] == ["250", "250", "250"]
        assert mta.taken[0].content == body


async def in_state(client: Client, state: str) -> None:
    if state == "greeted":
        assert (await client.reply()).startswith("220")
        return
    await client.greeted()
    if state == "mail":
        await client.ask("MAIL FROM:<s@a.test>")
    elif state == "refused":
        await client.ask_all("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    elif state == "reset":
        await client.envelope()
        await client.chunk(b"xy")
        await client.ask("RSET")


@pytest.mark.parametrize("state", ["greeted", "ready", "mail", "refused", "reset"])
async def test_out_of_place_its_octets_are_consumed_and_then_refused(mta: Mta, state: str) -> None:
    if state == "refused":
        mta.says["RCPT"] = ["550 5.1.1 nobody"]
    async with Stage(pool(mta)) as stage:
        client = await stage.connect()
        await in_state(client, state)
        trap = b"MAIL FROM:<trap@a.test>\r\nQUIT\r\n"
        client.send(b"BDAT %d\r\n" % len(trap) + trap + b"BDAT %d LAST\r\n" % len(trap) + trap + b"NOOP\r\n")
        replies = await client.replies(3)
        assert [r[0] for r in replies] == ["5", "5", "2"]
        assert not mta.taken
        assert (await client.ask("RSET")).startswith("250")
        if state != "greeted":
            assert (await client.message()).startswith("250")


async def test_before_tls_where_it_is_required_its_octets_are_consumed_too(mta: Mta) -> None:
    tls = FrontTlsSettings(FrontTlsMode.STARTTLS_REQUIRED, (certificates.pair("mx.test"),))
    async with Stage(pool(mta), listener={"tls": tls}) as stage:
        client = await stage.client()
        client.send(b"BDAT 6\r\nQUIT\r\nNOOP\r\n")
        assert [r[:3] for r in await client.replies(2)] == ["530", "250"]


@pytest.mark.parametrize(
    "line",
    [
        "BDAT",
        "BDAT ",
        "BDAT x",
        "BDAT -1",
        "BDAT +5",
        "BDAT 1_0",
        "BDAT 5 FIRST",
        "BDAT 5 LAST x",
        "BDAT 0x5",
        "BDAT LAST",
        "BDAT 123456789012345678901",
    ],
)
async def test_where_nobody_can_know_its_size_the_session_ends(mta: Mta, line: str) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        client.send(line.encode() + b"\r\nMAIL FROM:<trap@a.test>\r\nRCPT TO:<trap@a.test>\r\n")
        assert (await client.reply()).startswith("501 5.5.4")
        await client.nothing_more()
        assert not mta.taken


async def test_too_large_is_said_once_all_was_read(mta: Mta) -> None:
    async with Stage(pool(mta), listener={"limits": {"message_size_bytes": 1000}}) as stage:
        client = await stage.client()
        await client.envelope()
        chunk = b"x" * 98 + b"\r\n"
        replies = await client.bdat(*[chunk] * 12)
        assert [r[:3] for r in replies] == ["250"] * 10 + ["552", "552"]
        assert not mta.taken
        assert (await client.message()).startswith("250")


async def test_rset_between_chunks_ends_the_message(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.chunk(b"a\r\n")).startswith("250")
        assert (await client.ask("RSET")).startswith("250")
        await client.envelope(mail="<t@a.test>")
        assert (await client.bdat(BODY))[0].startswith("250")
        assert [(t.sender, t.content) for t in mta.taken] == [("t@a.test", BODY)]


@pytest.mark.parametrize(
    "verb", ["DATA", "MAIL FROM:<x@a.test>", "RCPT TO:<x@a.test>", "STARTTLS", "AUTH PLAIN"]
)
async def test_between_chunks_only_chunks_go_on(mta: Mta, verb: str) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        await client.chunk(b"a\r\n")
        assert (await client.ask(verb)).startswith("503")
        assert (await client.ask("NOOP")).startswith("250")
        assert (await client.bdat(b"b\r\n"))[0].startswith("250")
        assert [t.content for t in mta.taken] == [b"a\r\nb\r\n"]


async def test_bdat_behind_data_is_content() -> None:
    a = Mta("a")
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.data(b"BDAT 3 LAST\r\nabc\r\n")).startswith("250")
        assert a.taken[0].content == b"BDAT 3 LAST\r\nabc\r\n"


async def test_binarymime_passes_octet_for_octet() -> None:
    a = Mta("a", *FULL)
    body = bytes(range(256)) * 40 + b"\r\n.\r\nQUIT\r\n\n.\n\r.\r\0"
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        await client.envelope(mail="<s@a.test> BODY=BINARYMIME")
        assert (await client.ask("DATA")).startswith("503")
        assert [r[:3] for r in await client.bdat(body[:1000], body[1000:])] == ["250", "250"]
        assert a.taken[0].content == body
        assert "BODY=BINARYMIME" in a.taken[0].mail


async def test_a_lawless_chunk_is_made_lawful(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        await client.bdat(b"a\nb\rc\0d\r", b"\n.\n", b"\r")
        assert [t.content for t in mta.taken] == [
            b"a\r\nb c d\r\n.\r\n " + (b"" if "CHUNKING" in mta.offers else b"\r\n")
        ]


async def test_a_lawless_chunk_is_refused_where_that_is_the_rule(mta: Mta) -> None:
    async with Stage(pool(mta), listener={"bare_newline": BareNewline.REJECT}) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.bdat(b"a\nb"))[0].startswith("550 5.6.0")
        assert not mta.taken
        assert (await client.message()).startswith("250")


# -- faults of the backend -------------------------------------------------------------------------------


async def test_a_refused_chunk_answers_the_next_one_and_the_message() -> None:
    a, b = Mta("a", *FULL, says={"BDAT": ["552 5.3.4 too much"]}), Mta("b", *FULL)
    async with Stage(pool(a, b)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.chunk(b"a\r\n"))[:3] == "250"
        await until(lambda: not a.open, "the connection is given up")
        assert (await client.bdat(b"b\r\n", b"c\r\n")) == ["552 5.3.4 too much"] * 2
        assert not a.taken + b.taken
        assert (await client.message()).startswith("250")


@pytest.mark.parametrize("other", KINDS.values(), ids=KINDS)
async def test_a_loss_between_chunks_is_repaired_unseen(mta: Mta, other: tuple[str, ...]) -> None:
    b = Mta("b", *other)
    mta.says["BDAT"] = ["!abort"]
    async with Stage(pool(mta, b)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.chunk(BODY[:20])).startswith("250")
        if "CHUNKING" not in mta.offers:
            mta.sessions[0].reset()
        await until(lambda: stage.failures, "the loss is seen")
        assert (await client.bdat(BODY[20:]))[0].startswith("250")
        assert [t.content for t in b.taken] == [BODY]
        assert stage.blamed == ["a"]


async def test_a_chunk_that_is_no_longer_wanted_is_not_completed(mta: Mta) -> None:
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        client.send(b"BDAT 100 LAST\r\nonly this")
        await until(lambda: mta.lines[-1:] in (["DATA"], ["BDAT 9"]), "it began")
        client.reset()
        await until(lambda: not stage.listener.sessions, "the session ends")
        assert not mta.taken
        assert stage.outcomes == ["aborted"]


async def test_behind_an_unreadable_line_its_octets_are_no_commands(mta: Mta) -> None:
    async with Stage(pool(mta), listener={"bare_newline": BareNewline.REJECT}) as stage:
        client = await stage.client()
        await client.envelope()
        client.send(b"BDAT 6\nQUIT\r\n")
        assert (await client.reply()).startswith("500")
        await client.nothing_more()
