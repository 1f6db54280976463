"""TLS to backends: off, opportunistic, required and implicit, and what each does when it cannot be had."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from smtplb.dataplane import certificates
from smtplb.dataplane.connection import HIGH_WATER_BYTES
from smtplb.dataplane.tls import TlsStream
from smtplb.settings import BackTlsMode, BackTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.client import settle
from tests.protocol.mta import FULL, OFFERS, Mta, Session
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

OFF, OPPORTUNISTIC, REQUIRED, IMPLICIT = BackTlsMode


def back(mode: BackTlsMode, **options: Any) -> BackTlsSettings:
    return BackTlsSettings(mode, **{"ca": certs.authority_file("good"), **options})


def secure(name: str = "a", context: ssl.SSLContext | None = None, **options: Any) -> Mta:
    offers = OFFERS if options.get("implicit") else (*OFFERS, "STARTTLS")
    return Mta(name, *offers, tls=context or certs.server(), **options)


def through_tls(mta: Mta) -> list[bool]:
    return [taken.session.engine is not None for taken in mta.taken]


@pytest.mark.parametrize("mode", [OFF, OPPORTUNISTIC, REQUIRED, IMPLICIT])
async def test_a_message_goes_out_as_the_pool_says(mode: BackTlsMode) -> None:
    a = secure(implicit=mode is IMPLICIT)
    async with Stage(pool(a, tls=back(mode))) as stage:
        client = await stage.client()
        for _ in range(2):
            assert (await client.message()).startswith("250")
        assert through_tls(a) == [mode is not OFF] * 2
        assert len(a.sessions) == 1
        if mode in (OPPORTUNISTIC, REQUIRED):
            assert a.sessions[0].lines[:3] == ["EHLO lb.test", "STARTTLS", "EHLO lb.test"], "RFC 3207 4.2"


async def test_what_was_offered_in_clear_is_forgotten() -> None:
    """A backend that offers more inside TLS, or less."""
    a = secure()
    a.offers = (*OFFERS, "STARTTLS", "CHUNKING")
    a.tls_offers = ("PIPELINING", "DSN")
    async with Stage(pool(a, tls=back(REQUIRED))) as stage:
        client = await stage.client()
        assert "DSN" in await client.keywords()
        await client.envelope(mail="<s@a.test> RET=HDRS SIZE=100")
        assert (await client.bdat(b"x\r\n"))[0].startswith("250")
        assert a.taken[0].mail == "FROM:<s@a.test> RET=HDRS"
        assert a.taken[0].how == "DATA"


@pytest.mark.parametrize("behind", [b"250 injected\r\n", b"220 x\r\n250-lb\r\n250 XCLIENT\r\n", b"x" * 100])
async def test_what_comes_in_clear_behind_the_220_is_dropped(behind: bytes) -> None:
    """Response injection (nodemailer#1835 at our end). In a segment of its own it breaks the handshake instead."""
    a = secure()
    a.behind_starttls = behind
    b = secure("b")
    async with Stage(pool(a, b, tls=back(REQUIRED))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        for session in a.sessions:
            assert "MAIL FROM:<s@a.test>" not in session.lines[: session.clear_lines]
        assert all(through_tls(a) + through_tls(b))
        assert len(a.taken) + len(b.taken) == 1


# -- opportunistic ---------------------------------------------------------------------------------------


async def test_opportunistic_goes_in_clear_where_it_is_not_offered() -> None:
    a = Mta("a")
    async with Stage(pool(a, tls=back(OPPORTUNISTIC))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert not stage.failures


@pytest.mark.parametrize("reply", ["454 4.7.0 not now", "502 5.5.1 what", "501 no"])
async def test_opportunistic_goes_on_in_clear_after_a_refusal(reply: str) -> None:
    a = secure(says={"STARTTLS": reply})
    async with Stage(pool(a, tls=back(OPPORTUNISTIC))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert len(a.sessions) == 1
        assert through_tls(a) == [False]
        assert not stage.failures


@pytest.mark.parametrize("how", ["no common version", "garbage", "close", "hang"])
async def test_opportunistic_takes_a_fresh_clear_connection_after_a_failed_handshake(how: str) -> None:
    """Nobody is blamed, and it is remembered for ten minutes."""
    a = secure()
    if how == "no common version":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA")
        certs.leaf("127.0.0.1").configure_cert(context)
        a.tls = context
    else:
        a.garbage = b"250 in clear\r\n" if how == "garbage" else b""

        def answer(session: Session, line: str) -> str | None:
            if line != "STARTTLS" or how == "garbage":
                return None
            session.send(b"220 go\r\n")
            return f"!{how}"

        a.answer = answer
    async with Stage(pool(a, tls=back(OPPORTUNISTIC))) as stage:
        client = await stage.client()
        client.send(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n")
        assert (await client.reply()).startswith("250")
        if how == "hang":
            await until(lambda: a.sessions and a.sessions[0].lines[-1:] == ["STARTTLS"])
            await settle()
            stage.pass_time(31.0)
        assert (await client.reply()).startswith("250")
        assert (await client.data()).startswith("250")
        assert through_tls(a) == [False]
        assert not stage.blamed
        assert len(a.sessions) == 2
        stage.pass_time(100.0)
        assert (await client.message()).startswith("250")
        assert not any(line == "STARTTLS" for session in a.sessions[1:] for line in session.lines)
        a.tls, a.garbage, a.answer = certs.server(), b"", lambda session, line: None
        stage.pass_time(200.0)
        stage.pass_time(200.0)
        stage.pass_time(200.0)
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert through_tls(a)[-1], "ten minutes later it is tried again"


async def test_opportunistic_never_verifies() -> None:
    a = secure(context=certs.server("elsewhere.test", by="bad", expired=True))
    async with Stage(pool(a, tls=back(OPPORTUNISTIC))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert through_tls(a) == [True]


# -- required and implicit -------------------------------------------------------------------------------

WRONG = {
    "wrong authority": ("127.0.0.1", {"by": "bad"}),
    "expired": ("127.0.0.1", {"expired": True}),
    "wrong name": ("elsewhere.test", {}),
}


@pytest.mark.parametrize("mode", [REQUIRED, IMPLICIT])
@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
async def test_a_certificate_that_does_not_verify_costs_the_backend(
    mode: BackTlsMode, case: tuple[str, dict[str, Any]]
) -> None:
    name, how = case
    implicit = mode is IMPLICIT
    a = secure(context=certs.server(name, **how), implicit=implicit)
    async with Stage(pool(a, tls=back(mode))) as stage:
        client = await stage.client()
        assert (await client.message())[0] == "4", "never 5xx"
        assert (await client.message())[0] == "4"
        assert not a.taken
        assert stage.blamed == ["a", "a"]
        assert {failure.split()[-1] for failure in stage.failures} == {"tls"}
    a, b = secure(context=certs.server(name, **how), implicit=implicit), secure("b", implicit=implicit)
    async with Stage(pool(a, b, tls=back(mode))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert (len(a.taken), len(b.taken)) == (0, 1)
        assert stage.blamed == ["a"]


@pytest.mark.parametrize("mode", [REQUIRED, IMPLICIT])
async def test_verification_can_be_left_out_and_names_be_given(mode: BackTlsMode) -> None:
    implicit = mode is IMPLICIT
    a = secure(context=certs.server("elsewhere.test", by="bad"), implicit=implicit)
    async with Stage(pool(a, tls=back(mode, verify=False))) as stage:
        assert (await (await stage.client()).message()).startswith("250")
    a = secure(context=certs.server("elsewhere.test"), implicit=implicit)
    async with Stage(pool(a, tls=back(mode, server_name="elsewhere.test"))) as stage:
        assert (await (await stage.client()).message()).startswith("250")
    asked: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certs.leaf("elsewhere.test").configure_cert(context)
    context.sni_callback = lambda engine, name, _: asked.append(name or "")
    a = secure(context=context, implicit=implicit)
    async with Stage(pool(a, tls=back(mode, server_name="elsewhere.test"))) as stage:
        assert (await (await stage.client()).message()).startswith("250")
    assert asked == ["elsewhere.test"]


@pytest.mark.parametrize("known", [True, False])
async def test_without_a_ca_file_the_systems_authorities_count(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(certificates, "_client_contexts", {})
    monkeypatch.setenv("SSL_CERT_FILE", certs.authority_file("good" if known else "bad"))
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    a = secure()
    async with Stage(pool(a, tls=BackTlsSettings(REQUIRED))) as stage:
        client = await stage.client()
        assert (await client.message())[0] == ("2" if known else "4")
        assert len(a.taken) == int(known)


async def test_required_never_falls_back_where_it_is_not_offered() -> None:
    """Also where somebody in between took the keyword out."""
    a = Mta("a")
    async with Stage(pool(a, tls=back(REQUIRED))) as stage:
        client = await stage.client()
        for _ in range(3):
            assert (await client.envelope())[1][0] == "4"
            await client.ask("RSET")
        assert not any(line.startswith("MAIL") for line in a.lines)
        assert stage.blamed == ["a"] * 3
        assert a.sessions[0].lines[-1] == "QUIT", "it leaves as RFC 5321 3.8 asks"


@pytest.mark.parametrize(
    "reply", ["454 4.7.0 not now", "502 5.5.1 what", "421 4.3.2 busy", "!close", "!abort"]
)
async def test_required_never_falls_back_after_a_refusal(reply: str) -> None:
    a, b = secure(says={"STARTTLS": reply}), secure("b")
    async with Stage(pool(a, b, tls=back(REQUIRED))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert through_tls(b) == [True]
        assert not any(line.startswith("MAIL") for line in a.lines)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_required_needs_tls_1_2() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certs.leaf("127.0.0.1").configure_cert(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    a = secure(context=context)
    async with Stage(pool(a, tls=back(REQUIRED))) as stage:
        client = await stage.client()
        assert (await client.envelope())[1][0] == "4"
        assert not a.taken


@pytest.mark.parametrize(
    "tls", [{"server_name": ".bad"}, {"server_name": "a" * 300 + ".test"}, {"ca": "/nonexistent"}]
)
async def test_settings_that_cannot_work_are_a_failure_and_no_accident(tls: dict[str, str]) -> None:
    a = secure()
    async with Stage(pool(a, tls=back(REQUIRED, **tls))) as stage:
        client = await stage.client()
        assert (await client.envelope())[1][0] == "4"
        assert stage.failures[0].endswith(" tls")


@pytest.mark.parametrize("mode", [REQUIRED, IMPLICIT])
async def test_the_end_of_tls_in_the_middle_is_the_loss_of_the_connection(mode: BackTlsMode) -> None:
    a, b = secure(implicit=mode is IMPLICIT), secure("b", implicit=mode is IMPLICIT)
    async with Stage(pool(a, b, tls=back(mode))) as stage:
        client = await stage.client()
        await client.envelope()
        session = a.sessions[0]
        session.send_raw(session.close_notify() + b"354 go on\r\n250 2.0.0 queued\r\n")
        await until(lambda: stage.failures, "the loss is seen")
        assert (await client.data()).startswith("250")
        assert stage.failures == ["a replaced rcpt stale"]
        assert through_tls(a) + through_tls(b) == [True]


@pytest.mark.parametrize("offers", [FULL, OFFERS], ids=["CHUNKING", "without"])
async def test_a_slow_backend_slows_the_client_down_through_tls_too(offers: tuple[str, ...]) -> None:
    a = secure()
    a.offers = (*offers, "STARTTLS")
    a.reads_body = False
    body = b"x" * 78 + b"\r\n"
    body *= 150_000  # 12 MB
    async with Stage(pool(a, tls=back(REQUIRED)), replay={"per_message_bytes": 100_000}) as stage:
        client = await stage.client()
        await client.envelope()
        if "CHUNKING" in offers:
            client.send(b"BDAT %d LAST\r\n" % len(body) + body)
        else:
            assert (await client.ask("DATA")).startswith("354")
            client.send(body + b".\r\n")
        session = next(iter(stage.listener.sessions))
        await until(lambda: session._reading_paused, "the client is not read any more")
        (connection,) = stage.backend("a")._leased
        stream = connection._transport
        assert isinstance(stream, TlsStream)
        held = stream._raw.get_write_buffer_size()
        assert HIGH_WATER_BYTES <= held < HIGH_WATER_BYTES + 300_000
        assert len(session._held) < 300_000
        a.sessions[0].read_on()
        assert (await client.reply()).startswith("250")
        assert a.taken[0].content == body
