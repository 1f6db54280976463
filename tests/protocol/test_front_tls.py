"""TLS in front: who may say what before it, what survives it, and that its end is the end of the session."""

from __future__ import annotations

import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from smtplb.messages import DrainSessions, ReloadCertificates
from smtplb.settings import AuthMode, CertificateSettings, ClientCertificates, FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.client import Client, settle
from tests.protocol.mta import FULL, OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

REQUIRED = FrontTlsMode.STARTTLS_REQUIRED
IMPLICIT = FrontTlsMode.IMPLICIT
MX = "mx.test"


def tls(mode: FrontTlsMode = FrontTlsMode.STARTTLS, *names: str, **options: Any) -> FrontTlsSettings:
    pairs = tuple(certs.pair(name) for name in names or (MX,))
    return FrontTlsSettings(mode, pairs, **options)


def front(*mtas: Mta, **options: Any) -> Stage:
    settings = options.pop("tls", None) or tls()
    return Stage(pool(*mtas or (Mta("a"),)), listener={"tls": settings, **options})


async def secured(stage: Stage, name: str = MX, context: ssl.SSLContext | None = None) -> Client:
    """Past STARTTLS, or past the handshake where it comes first; EHLO not said again."""
    client = await stage.connect()
    if stage.listener.context.settings.tls.mode is IMPLICIT:
        await client.secure(context or certs.client(), name)
        assert (await client.reply()).startswith("220")
    else:
        await client.greeted()
        await client.starttls(context or certs.client(), name)
    return client


@pytest.mark.parametrize("mode", [FrontTlsMode.STARTTLS, REQUIRED, IMPLICIT])
async def test_a_message_comes_in_through_tls(mode: FrontTlsMode) -> None:
    a = Mta("a")
    async with front(a, tls=tls(mode)) as stage:
        client = await secured(stage)
        assert "STARTTLS" not in await client.keywords(), "RFC 3207 4.2"
        assert (await client.message()).startswith("250")
        assert (await client.ask("STARTTLS")).startswith("503")
        await client.leave()
        assert client.over == "close_notify"


async def test_before_starttls_only_what_leads_there_is_taken_where_it_is_required() -> None:
    a = Mta("a")
    async with front(a, tls=tls(REQUIRED)) as stage:
        client = await stage.client()
        assert "STARTTLS" in await client.keywords()
        for line in ("MAIL FROM:<a@a.test>", "VRFY x", "HELP", "AUTH PLAIN", "RCPT TO:<b@b.test>", "DATA"):
            assert (await client.ask(line)).startswith("530 5.7.0"), line
        for line in ("NOOP", "RSET", "HELO x", "EHLO x"):
            assert (await client.ask(line)).startswith("250"), line
        assert (await client.ask("WHAT")).startswith("500")
        await client.starttls(certs.client(), MX)
        await client.ask("EHLO x")
        assert (await client.message()).startswith("250")


async def test_what_was_said_in_clear_is_forgotten() -> None:
    a = Mta("a", *OFFERS, "AUTH PLAIN")
    async with front(a, auth=AuthMode.RELAY, auth_without_tls=True) as stage:
        client = await stage.client("in-clear.test")
        assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235")
        assert (await client.message()).startswith("250")
        await client.starttls(certs.client(), MX)
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("503"), "EHLO"
        assert "AUTH" in await client.keywords("in-tls.test")
        assert (await client.message()).startswith("250")
        assert [t.session.login for t in a.taken] == [["AGEAYg=="], []], "AUTH, and what it was said on"
        assert [end.helo for end in stage.ends] == [b"in-clear.test", b"in-tls.test"]
        assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235")


async def test_starttls_is_not_for_the_middle_of_a_transaction() -> None:
    async with front() as stage:
        client = await stage.client()
        await client.ask("MAIL FROM:<s@a.test>")
        assert (await client.ask("STARTTLS")).startswith("503")
        assert (await client.ask("RSET")).startswith("250")
        assert (await client.ask("STARTTLS now")).startswith("501")
        await client.starttls(certs.client(), MX)


@pytest.mark.parametrize(
    "injected", [b"NOOP\r\n", b"MAIL FROM:<evil@a.test>\r\nRCPT TO:<x@b.test>\r\n", b"x" * 5000]
)
async def test_what_is_pipelined_behind_starttls_is_dropped(injected: bytes) -> None:
    """CVE-2011-0411."""
    a = Mta("a")
    async with front(a) as stage:
        client = await stage.client()
        client.send(b"STARTTLS\r\n" + injected)
        assert (await client.reply()).startswith("220")
        await client.secure(certs.client(), MX)
        await client.ask("EHLO x")
        assert (await client.message()).startswith("250")
        assert [t.sender for t in a.taken] == ["s@a.test"]
        assert stage.refusals["starttls-injection"] == 1


async def test_a_client_hello_behind_starttls_is_dropped_like_everything() -> None:
    async with front() as stage:
        client = await stage.client()
        hello = client.client_hello(certs.client(), MX)
        client.engine, engine = None, client.engine
        client.send(b"STARTTLS\r\n" + hello)
        assert (await client.reply()).startswith("220")
        client.engine = engine
        await settle()
        assert not client.handshaken
        stage.pass_time(31.0)
        await client.gone()


async def test_without_a_certificate_starttls_is_454_until_there_is_one(tmp_path: Path) -> None:
    stem = tmp_path / "late"
    settings = FrontTlsSettings(FrontTlsMode.STARTTLS, (CertificateSettings(f"{stem}.pem", f"{stem}.key"),))
    async with front(tls=settings) as stage:
        assert [notice.what for notice in stage.notices] == ["certificate"]
        client = await stage.client()
        assert (await client.ask("STARTTLS")).startswith("454 4.7.0")
        assert (await client.message()).startswith("250"), "the session goes on"
        certs.write_pair(stem, MX)
        stage.worker.receive(ReloadCertificates())
        await client.starttls(certs.client(), MX)


async def test_implicit_without_a_certificate_ends_without_a_word(tmp_path: Path) -> None:
    settings = FrontTlsSettings(IMPLICIT, (CertificateSettings(str(tmp_path / "x"), str(tmp_path / "y")),))
    async with front(tls=settings) as stage:
        client = await stage.connect()
        await client.nothing_more()
        assert stage.refusals["tls-unavailable"] == 1


# -- certificates ----------------------------------------------------------------------------------------


def names_of(client: Client) -> list[str]:
    assert client.engine is not None
    shown = client.engine.getpeercert()
    assert shown is not None
    pairs = cast("tuple[tuple[str, str], ...]", shown["subjectAltName"])
    return [value for kind, value in pairs if kind == "DNS"]


@pytest.mark.parametrize("mode", [FrontTlsMode.STARTTLS, IMPLICIT])
async def test_the_certificate_is_the_one_of_the_name_that_was_asked_for(mode: FrontTlsMode) -> None:
    async with front(tls=tls(mode, "mx.test", "other.test", "*.wild.test")) as stage:
        for name, shown in {
            "mx.test": "mx.test",
            "other.test": "other.test",
            "OTHER.test": "other.test",
            "a.wild.test": "*.wild.test",
        }.items():
            assert names_of(await secured(stage, name)) == [shown]
        for name in ("unknown.test", "wild.test", "a.b.wild.test", ""):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            certs.authority("good").configure_trust(context)
            assert names_of(await secured(stage, name, context)) == ["mx.test"], "the first is for all others"


def serial_of(client: Client) -> str:
    assert client.engine is not None
    shown = client.engine.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


async def test_new_sessions_get_a_renewed_certificate(tmp_path: Path) -> None:
    stem = tmp_path / "mx"
    certs.write_pair(stem, MX)
    pair = CertificateSettings(f"{stem}.pem", f"{stem}.key")
    async with front(tls=FrontTlsSettings(FrontTlsMode.STARTTLS, (pair, certs.pair("other.test")))) as stage:
        old = await secured(stage)
        certs.write_pair(stem, MX, serial=1)
        stage.worker.receive(ReloadCertificates())
        new = await secured(stage)
        assert serial_of(old) != serial_of(new)
        assert (await old.ask("NOOP")).startswith("250"), "who is inside stays inside"
        Path(pair.key).write_bytes(b"half a fi")
        stage.worker.receive(ReloadCertificates())
        assert [notice.level for notice in stage.notices] == ["error"]
        assert serial_of(await secured(stage)) == serial_of(new), (
            "what cannot be read leaves the old one in use"
        )
        assert names_of(await secured(stage, "other.test")) == ["other.test"]


async def test_a_client_may_show_a_certificate() -> None:
    settings = tls(client_certificates=ClientCertificates.OPTIONAL, client_ca=certs.authority_file())
    async with front(tls=settings) as stage:
        await secured(stage)
        await secured(stage, context=certs.client(certificate="client.test"))
    settings = tls(client_certificates=ClientCertificates.REQUIRED, client_ca=certs.authority_file())
    async with front(tls=settings) as stage:
        client = await secured(stage, context=certs.client(certificate="client.test"))
        assert (await client.ask("NOOP")).startswith("250")
        client = await stage.client()
        assert (await client.ask("STARTTLS")).startswith("220")
        client.begin_tls(certs.client(), name=MX)
        await client.gone()
        assert stage.refusals["tls-handshake"] == 1


# -- versions, ciphers, failures -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_are_refused(version: ssl.TLSVersion) -> None:
    context = certs.client(minimum=version, maximum=version, ciphers="ALL:@SECLEVEL=0")
    async with front() as stage:
        await fails(stage, context)


@pytest.mark.parametrize(
    "ciphers",
    [
        "AES128-SHA",
        "AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA384",
        "AECDH-AES128-SHA",
        "kRSA:@SECLEVEL=0",
        "NULL:@SECLEVEL=0",
    ],
)
async def test_weak_ciphers_are_refused(ciphers: str) -> None:
    try:
        context = certs.client(maximum=ssl.TLSVersion.TLSv1_2, ciphers=ciphers)
    except ssl.SSLError:
        pytest.skip("this OpenSSL has no such cipher to offer")
    async with front() as stage:
        await fails(stage, context)


async def fails(stage: Stage, context: ssl.SSLContext) -> None:
    client = await stage.client()
    assert (await client.ask("STARTTLS")).startswith("220")
    client.begin_tls(context, name=MX)
    await until(lambda: client.tls_error or client.over, "an alert")
    assert not client.handshaken
    client.close()
    await until(lambda: not stage.listener.sessions, "nothing is left behind")
    assert stage.refusals["tls-handshake"] == 1
    assert stage.session_reasons[0].startswith("TLS handshake failed: ")
    assert (await secured(stage)).handshaken, "and nobody else notices"


async def test_where_1_3_is_the_least_1_2_is_refused() -> None:
    async with front(tls=tls(minimum="TLS1.3")) as stage:
        await fails(stage, certs.client(maximum=ssl.TLSVersion.TLSv1_2))
        client = await secured(stage)
        assert client.engine is not None
        assert client.engine.version() == "TLSv1.3"


@pytest.mark.parametrize("mode", [FrontTlsMode.STARTTLS, IMPLICIT])
@pytest.mark.parametrize(
    "said",
    [
        b"EHLO plain.test\r\n",
        b"\x16\x03\x01\x00\x05garbage",
        b"\0" * 600,
        b"\x16\x03\x01\xff\xff" + b"\1" * 70_000,
    ],
)
async def test_what_is_no_handshake_ends_the_session(mode: FrontTlsMode, said: bytes) -> None:
    async with front(tls=tls(mode)) as stage:
        client = await stage.connect()
        if mode is not IMPLICIT:
            await client.greeted()
            assert (await client.ask("STARTTLS")).startswith("220")
        client.send(said)
        while not client.over:
            await client.changed()
        assert b"250 " not in client.everything[-20:], "never a clear word"
        await until(lambda: not stage.listener.sessions)
        assert stage.refusals == {"tls-handshake": 1}


@pytest.mark.parametrize("mode", [FrontTlsMode.STARTTLS, IMPLICIT])
@pytest.mark.parametrize("part", [0, 1, 100])
@pytest.mark.parametrize("how", ["close", "reset", "hang"])
async def test_a_handshake_that_stops_leaves_nothing_behind(mode: FrontTlsMode, part: int, how: str) -> None:
    async with front(tls=tls(mode)) as stage:
        client = await stage.connect()
        if mode is not IMPLICIT:
            await client.greeted()
            assert (await client.ask("STARTTLS")).startswith("220")
        client.send_raw(client.client_hello(certs.client(), MX)[:part])
        await settle()
        assert len(stage.listener.sessions) == 1
        if how == "hang":
            stage.pass_time(31.0)
            await client.gone()
        else:
            getattr(client, how)()
        await until(lambda: not stage.listener.sessions)


async def test_draining_lets_a_handshake_come_to_its_end() -> None:
    async with front(tls=tls(IMPLICIT)) as stage:
        client = await stage.connect()
        hello = client.client_hello(certs.client(), MX)
        client.send_raw(hello[:50])
        await settle()
        stage.worker.receive(DrainSessions(60.0))
        client.send_raw(hello[50:])
        assert (await client.reply()).startswith("421 4.3.2")
        await client.nothing_more()


# -- the end of TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("how", ["close_notify", "eof", "reset", "garbage"])
async def test_the_end_of_tls_inside_a_message_is_the_end_of_the_session(chunked: bool, how: str) -> None:
    """CVE-2026-45185: nothing is delivered, and nothing in clear is read on."""
    a = Mta("a", *FULL)
    async with front(a) as stage:
        client = await secured(stage)
        await client.ask("EHLO x")
        await client.envelope()
        if chunked:
            client.send(b"BDAT 100 LAST\r\nhalf of ")
        else:
            assert (await client.ask("DATA")).startswith("354")
            client.send(b"half of ")
        await until(lambda: a.sessions[0].lines[-1].startswith(("DATA", "BDAT")))
        clear = b"it\r\n" + b"x" * 100 + b"\r\n.\r\nMAIL FROM:<evil@a.test>\r\n"
        if how == "close_notify":
            client.send_raw(client.close_notify() + clear)
        elif how == "eof":
            client.eof()
        elif how == "reset":
            client.reset()
        else:
            client.send_raw(clear)
        await until(lambda: not stage.listener.sessions, "the session ends")
        await until(lambda: not a.open, "the backend was cut off")
        assert not a.taken
        assert stage.outcomes == ["aborted"]
        assert not any("evil" in line for line in a.lines)


async def test_close_notify_behind_a_whole_message_still_gets_the_answer() -> None:
    a = Mta("a", says={"FINAL": "!silent"})
    async with front(a) as stage:
        client = await secured(stage)
        await client.ask("EHLO x")
        await client.envelope()
        assert (await client.ask("DATA")).startswith("354")
        client.send_raw(client.sealed(b"hello\r\n.\r\n") + client.close_notify())
        await until(lambda: a.sessions[0]._mode == "command")
        for _ in range(20):  # and whatever follows is neither read nor kept
            client.send_raw(b"x" * 100_000)
            await settle(5)
        stream = next(iter(stage.listener.sessions))._transport
        assert stream._incoming.pending < 100_000  # type: ignore[union-attr]
        a.sessions[0].say("250 2.0.0 queued")
        assert (await client.reply()).startswith("250")
        await client.gone()


async def test_a_broken_record_ends_the_session() -> None:
    async with front() as stage:
        client = await secured(stage)
        record = bytearray(client.sealed(b"NOOP\r\n"))
        record[-1] ^= 1
        client.send_raw(bytes(record) + client.sealed(b"NOOP\r\n"))
        await client.gone()
        await until(lambda: not stage.listener.sessions)


async def test_a_proxy_header_and_a_client_hello_may_share_a_segment() -> None:
    """uvloop issue 707."""
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 465\r\n"
    settings = {"proxy_protocol_from": (ip_network("127.0.0.0/8"),)}
    async with front(tls=tls(IMPLICIT), **settings) as stage:
        fronts = header + Client().client_hello(certs.client(), MX)
        for at in [*range(len(header) + 8), len(fronts) - 1]:
            client = await stage.connect()
            both = header + client.client_hello(certs.client(), MX)
            client.send_raw(both[:at])
            await settle(2)
            client.send_raw(both[at:])
            assert (await client.reply()).startswith("220")
            assert [s.client_text for s in stage.listener.sessions] == ["192.0.2.7"]
            client.reset()
            await until(lambda: not stage.listener.sessions)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("record_bytes", [1, 7, 16384])
async def test_large_bodies_arrive_whatever_the_size_of_records(chunked: bool, record_bytes: int) -> None:
    body = bytes(range(32, 126)) * 3 + b"\r\n"
    body *= {1: 300, 7: 1000, 16384: 15_000}[record_bytes]  # 85 KB, 280 KB, 4 MB
    a = Mta("a", *FULL)
    async with front(a) as stage:
        client = await secured(stage)
        await client.ask("EHLO x")
        await client.envelope()
        if chunked:
            client.send_raw(client.sealed(b"BDAT %d LAST\r\n" % len(body) + body, record_bytes))
        else:
            assert (await client.ask("DATA")).startswith("354")
            client.send_raw(client.sealed(body + b".\r\n", record_bytes))
        assert (await client.reply()).startswith("250")
        assert a.taken[0].content == body
        assert len(a.sessions[0].segments) < 1000, "small records are not small writes to the backend"


async def test_a_session_may_come_byte_by_byte() -> None:
    a = Mta("a")
    async with front(a) as stage:
        client = await secured(stage)
        words = b"EHLO x\r\nMAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n"
        for at, octet in enumerate(client.sealed(words) + client.sealed(b"hello\r\n.\r\nQUIT\r\n")):
            client.send_raw(bytes([octet]))
            if at % 3 == 0:
                await settle(1)
        assert [r[:3] for r in await client.replies(6)] == ["250", "250", "250", "354", "250", "221"]
        assert a.taken[0].content == b"hello\r\n"
