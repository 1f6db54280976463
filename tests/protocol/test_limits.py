"""Limits and abuse: counted per client, never reset by what the client does, and always answered before the end."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from smtplb.settings import ClientRules, FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.client import Client, settle
from tests.protocol.mta import FULL, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until


def limited(*mtas: Mta, **limits: Any) -> Stage:
    return Stage(pool(*mtas or (Mta("a"),)), listener={"limits": limits})


# -- who may be here -------------------------------------------------------------------------------------


async def test_sessions_are_counted_overall_per_client_and_per_network() -> None:
    async with limited(sessions=4, sessions_per_client=2, sessions_per_network=3) as stage:

        async def greeting(source: str) -> str:
            return (await (await stage.connect(source=source)).reply())[:9]

        assert [await greeting("127.0.0.1") for _ in range(3)] == ["220 lb.te"] * 2 + ["421 4.7.0"]
        assert [await greeting(f"127.0.0.{n}") for n in (2, 3)] == ["220 lb.te", "421 4.7.0"]
        assert [await greeting(f"127.0.{n}.1") for n in (1, 2)] == ["220 lb.te", "421 4.3.2"]
        stage.clients[0].reset()
        await until(lambda: len(stage.listener.sessions) == 3)
        assert await greeting("127.0.0.1") == "220 lb.te"


async def test_lists_are_looked_at_first_and_deny_before_allow() -> None:
    rules = ClientRules(allow=(ip_network("127.0.0.0/24"),), deny=(ip_network("127.0.0.8/29"),))
    async with Stage(
        pool(Mta("a")), listener={"clients": rules, "limits": {"sessions_per_client": 1}}
    ) as stage:
        for source, code in {"127.0.0.1": "220", "127.0.0.9": "554", "127.0.1.1": "554"}.items():
            client = await stage.connect(source=source)
            assert (await client.reply())[:3] == code
        await client.nothing_more()
        assert stage.refusals["denied"] == 2


async def test_rates_refill_evenly() -> None:
    async with limited(connections_per_minute=3, messages_per_minute=2, recipients_per_minute=4) as stage:
        codes = [(await (await stage.connect()).reply())[:3] for _ in range(4)]
        assert codes == ["220"] * 3 + ["421"]
        client = await (await stage.connect(source="127.0.0.2")).greeted()
        assert (await client.message("<a@b.test>", "<b@b.test>")).startswith("250")
        assert (await client.message("<a@b.test>")).startswith("250")
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("450 4.7.1")
        stage.pass_time(31.0)
        assert [r[:3] for r in await client.envelope("<a@b.test>", "<b@b.test>", "<c@b.test>")] == ["250"] * 4
        assert (await client.ask("RCPT TO:<d@b.test>")).startswith("450 4.7.1")
        assert (await client.data()).startswith("250"), "those that were taken are"


# -- errors ----------------------------------------------------------------------------------------------


async def test_too_many_errors_end_the_session_whoever_made_them() -> None:
    a = Mta("a", says={"RCPT": "550 5.1.1 nobody"})
    async with limited(a, errors=6) as stage:
        client = await stage.client()
        assert (await client.ask("WHAT")).startswith("500")
        assert (await client.ask("MAIL FROM:<a b>")).startswith("501")
        replies = await client.envelope("<a@b.test>", "<b@b.test>")
        assert [r[:3] for r in replies] == ["250", "550", "550"]
        assert (await client.ask("RSET")).startswith("250")
        a.sessions[0].reset()  # another connection does not begin another count
        await until(lambda: not a.open)
        replies = await client.envelope("<a@b.test>")
        assert replies[1].startswith("550")
        client.send(b"RCPT TO:<b@b.test>\r\nRCPT TO:<c@b.test>\r\n")
        assert (await client.reply()).startswith("550")
        assert (await client.reply()).startswith("421 4.7.0")
        await client.nothing_more()
        assert not stage.blamed


async def test_temporary_answers_are_no_errors() -> None:
    a = Mta("a", says={"RCPT": "450 4.2.1 greylisted"})
    async with limited(a, errors=2) as stage:
        client = await stage.client()
        for _ in range(5):
            assert (await client.envelope())[1].startswith("450")
            await client.ask("RSET")


async def test_recipients_are_limited_whether_they_are_taken_or_not() -> None:
    a = Mta("a")
    async with limited(a, recipients=3) as stage:
        client = await stage.client()
        replies = await client.envelope(*(f"<{n}@b.test>" for n in range(5)))
        assert [r[:9] for r in replies[1:]] == ["250 2.1.5"] * 3 + ["452 4.5.3"] * 2
        assert (await client.data()).startswith("250")
        assert len(a.taken[0].rcpts) == 3


async def test_recipients_that_are_deferred_do_not_pile_up() -> None:
    a = Mta("a", says={"RCPT": "450 4.2.1 greylisted"})
    async with limited(a, recipients=100) as stage:
        client = await stage.client()
        await client.ask("MAIL FROM:<s@a.test>")
        for _ in range(30):
            await client.ask_all(*["RCPT TO:<r@b.test>"] * 100)
        session = next(iter(stage.listener.sessions))
        transaction = session._dialogue.transaction
        assert transaction is not None
        assert len(transaction.recipients) <= 100 + 1000


# -- the greeting ----------------------------------------------------------------------------------------


async def test_who_speaks_before_the_greeting_is_no_mail_client() -> None:
    async with Stage(pool(Mta("a")), listener={"greeting_delay_s": 5.0}) as stage:
        early = await stage.connect()
        early.send(b"EHLO x\r\n")
        assert (await early.reply()).startswith("554 5.5.0")
        await early.nothing_more()
        patient = await stage.connect()
        await settle()
        assert not patient.everything
        stage.pass_time(5.2)
        assert (await patient.greeted()).everything
        left = await stage.connect()
        left.eof()
        await until(lambda: len(stage.listener.sessions) == 1, "who leaves before it is gone")


async def test_the_greeting_is_delayed_behind_the_handshake() -> None:
    tls = FrontTlsSettings(FrontTlsMode.IMPLICIT, (certs.pair("mx.test"),))
    async with Stage(pool(Mta("a")), listener={"greeting_delay_s": 5.0, "tls": tls}) as stage:
        patient, early = await stage.connect(), await stage.connect()
        await patient.secure(certs.client(), "mx.test")
        await early.secure(certs.client(), "mx.test")
        early.send(b"EHLO x\r\n")
        assert (await early.reply()).startswith("554 5.5.0")
        stage.pass_time(5.2)
        assert (await patient.reply()).startswith("220")


# -- time ------------------------------------------------------------------------------------------------


async def test_a_command_that_comes_a_byte_at_a_time_is_idle() -> None:
    async with limited(idle_timeout_s=300.0) as stage:
        client = await stage.client()
        for octet in b"EHLO":
            client.send(bytes([octet]))
            await settle(3)
            stage.pass_time(70.0)
        await settle()
        assert not client.over
        client.send(b" ")
        await settle(3)
        stage.pass_time(70.0)
        assert (await client.reply()).startswith("421 4.4.2")
        await client.nothing_more()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_message_that_comes_a_byte_at_a_time_ends_in_the_end(chunked: bool) -> None:
    a = Mta("a", *FULL)
    async with limited(a, idle_timeout_s=300.0, body_timeout_s=1000.0) as stage:
        client = await stage.client()
        await client.envelope()
        if chunked:
            client.send(b"BDAT 1000 LAST\r\n")
        else:
            assert (await client.ask("DATA")).startswith("354")
        for _ in range(9):
            client.send(b"x")
            await settle(3)
            stage.pass_time(110.0)
        await settle()
        assert not client.over
        client.send(b"x")
        await settle(3)
        stage.pass_time(110.0)
        assert (await client.reply()).startswith("421 4.4.2")
        await client.nothing_more()
        await until(lambda: not a.open, "the backend's connection is cut")
        assert not a.taken
        assert stage.refusals["slow-message"] == 1
        assert stage.outcomes == ["aborted"]


async def test_chunks_that_come_slowly_are_one_message() -> None:
    a = Mta("a", *FULL)
    async with limited(a, idle_timeout_s=300.0, body_timeout_s=1000.0) as stage:
        client = await stage.client()
        await client.envelope()
        for _ in range(4):
            assert (await client.chunk(b"x\r\n")).startswith("250")
            stage.pass_time(240.0)
        client.send(b"BDAT 3\r\n")
        await settle()
        stage.pass_time(60.0)
        assert (await client.reply()).startswith("421 4.4.2")


async def test_each_message_has_the_whole_time() -> None:
    a = Mta("a", *FULL)
    async with limited(a, idle_timeout_s=300.0, body_timeout_s=400.0) as stage:
        client = await stage.client()
        for _ in range(4):
            await client.envelope()
            assert (await client.ask("DATA")).startswith("354")
            stage.pass_time(250.0)
            client.send(b"x\r\n")
            await settle()
            stage.pass_time(100.0)
            client.send(b".\r\n")
            assert (await client.reply()).startswith("250")
        assert len(a.taken) == 4


async def test_octets_that_nobody_asked_for_have_a_deadline_too() -> None:
    async with limited(idle_timeout_s=300.0, body_timeout_s=1000.0) as stage:
        client = await stage.client()
        client.send(b"BDAT 99999999999999999999\r\n")
        for _ in range(10):
            client.send(b"MAIL FROM:<x@a.test>\r\n")
            await settle(3)
            stage.pass_time(110.0)
        assert (await client.reply()).startswith("421 4.4.2")


async def test_the_backends_time_is_not_the_clients() -> None:
    a = Mta("a", says={"FINAL": "!silent"})
    async with limited(a, idle_timeout_s=10.0, body_timeout_s=20.0) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.ask("DATA")).startswith("354")
        client.send(b"x\r\n.\r\n")
        await until(lambda: a.sessions[0]._mode == "command")
        for _ in range(10):
            stage.pass_time(30.0)
            await settle()
        assert not client.over
        a.sessions[0].say("250 2.0.0 queued")
        assert (await client.reply()).startswith("250")


async def test_a_client_that_does_not_read_is_given_up() -> None:
    a = Mta("a")
    async with limited(a, idle_timeout_s=300.0, errors=1_000_000_000) as stage:
        client = await stage.client()
        client.stop_reading()
        line = b"HELP\r\n" * 20_000
        session = next(iter(stage.listener.sessions))
        while not session._writing_paused:
            client.send(line)
            await settle(5)
        assert client.transport is not None
        assert len(session._held) < 400_000
        stage.pass_time(301.0)
        stage.pass_time(31.0)
        await until(lambda: not stage.listener.sessions, "it is cut")


# -- lines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2045, 2046, 2047, 5000, 500_000])
async def test_a_line_that_is_too_long_is_one_error(length: int) -> None:
    async with limited() as stage:
        client = await stage.client()
        line = b"NOOP " + b"x" * (length - 5)
        client.send(line + b"\r\nNOOP\r\n")
        codes = [r[:3] for r in await client.replies(2)]
        assert codes == (["250", "250"] if length <= 2046 else ["500", "250"])


@pytest.mark.parametrize("verb", ["GET / HTTP/1.1", "POST /x HTTP/1.0", "CONNECT a:25 HTTP/1.1"])
async def test_a_browser_is_told_one_thing_only(verb: str) -> None:
    """ALPACA, CVE-2021-3618: the body of a request must not be read as mail."""
    a = Mta("a")
    async with limited(a) as stage:
        client = await stage.connect()
        client.send(
            verb.encode() + b"\r\nHost: x\r\n\r\nEHLO x\r\nMAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n"
        )
        assert (await client.reply()).startswith("220")
        assert (await client.reply()).startswith("421 4.7.0")
        await client.nothing_more()
        assert not a.sessions


async def half_closed(stage: Stage) -> Client:
    client = await stage.client()
    await client.envelope()
    client.send(b"DATA\r\n")
    assert (await client.reply()).startswith("354")
    return client


async def test_a_half_close_behind_the_message_is_no_loss() -> None:
    a = Mta("a", says={"FINAL": "!silent"})
    async with limited(a) as stage:
        client = await half_closed(stage)
        client.send(b"x\r\n.\r\n")
        client.eof()
        await until(lambda: a.sessions[0]._mode == "command")
        await settle()
        a.sessions[0].say("250 2.0.0 queued")
        assert (await client.reply()).startswith("250")
        await client.nothing_more()
