"""Who the client is, told to backends: exact bytes, in order, and never to a connection that told of another."""

from __future__ import annotations

from typing import Any

import pytest

from smtplb.settings import (
    BackTlsMode,
    BackTlsSettings,
    BalancePer,
    FrontTlsMode,
    FrontTlsSettings,
    IdentityMode,
)
from smtplb.smtp.proxy_header import ProxyHeader, read_header
from tests.protocol import certificates
from tests.protocol.client import settle
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

FULL_XCLIENT = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT REVERSE_NAME"
FULL_XFORWARD = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"
MODES = {
    IdentityMode.XCLIENT: (FULL_XCLIENT,),
    IdentityMode.PROXY_V1: (),
    IdentityMode.PROXY_V2: (),
    IdentityMode.XFORWARD: (FULL_XFORWARD,),
}
BINDING = [mode for mode in MODES if mode.binds]
HOSTILE = 'a+b=c;d(e)<f>\\"`$x'


def backend(mode: IdentityMode, name: str = "a", **options: Any) -> Mta:
    return Mta(name, *OFFERS, *MODES[mode], proxy=mode.value.startswith("proxy"), **options)


def stage_of(mode: IdentityMode, *mtas: Mta, listener: dict[str, Any] | None = None, **options: Any) -> Stage:
    return Stage(pool(*mtas, identity=mode, **options), listener=listener)


@pytest.mark.parametrize("mode", [IdentityMode.PROXY_V1, IdentityMode.PROXY_V2])
async def test_a_proxy_header_is_the_first_write_and_all_of_it(mode: IdentityMode) -> None:
    a = backend(mode)
    async with stage_of(mode, a) as stage:
        client = await stage.client("client.test")
        assert (await client.message()).startswith("250")
        session = a.sessions[0]
        assert session.segments[0] == session.proxy, "nothing with it"
        header = read_header(session.proxy)
        assert isinstance(header, ProxyHeader)
        assert client.transport is not None
        source = client.transport.get_extra_info("sockname")
        assert (str(header.source), header.source_port) == source
        assert (str(header.destination), header.destination_port) == ("127.0.0.1", stage.port)
        assert session.lines[0] == "EHLO client.test", "a backend that knows the client hears its name"
        if mode is IdentityMode.PROXY_V1:
            assert session.proxy == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (source[1], stage.port)


async def test_version_2_tells_the_clients_tls_and_the_session() -> None:
    a = backend(IdentityMode.PROXY_V2)
    tls = FrontTlsSettings(FrontTlsMode.STARTTLS, (certificates.pair("mx.test"),))
    async with stage_of(IdentityMode.PROXY_V2, a, listener={"tls": tls}) as stage:
        client = await stage.client()
        await client.starttls(certificates.client(), "mx.test")
        await client.ask("EHLO client.test")
        assert (await client.message()).startswith("250")
        assert b"\x21\x00\x07TLSv1.3" in a.sessions[0].proxy
        assert stage.ends[0].session_id.encode() in a.sessions[0].proxy


async def test_xclient_goes_once_with_what_was_offered_between_two_ehlos() -> None:
    a = backend(IdentityMode.XCLIENT)
    async with stage_of(IdentityMode.XCLIENT, a) as stage:
        client = await stage.client("client.test")
        assert client.transport is not None
        port = client.transport.get_extra_info("sockname")[1]
        assert (await client.message()).startswith("250")
        assert a.lines[:4] == [
            "EHLO lb.test",
            f"XCLIENT ADDR=127.0.0.1 PORT={port} NAME=[UNAVAILABLE] PROTO=ESMTP HELO=client.test"
            f" DESTADDR=127.0.0.1 DESTPORT={stage.port} LOGIN=[UNAVAILABLE]",
            "EHLO client.test",
            "MAIL FROM:<s@a.test>",
        ]


@pytest.mark.parametrize(
    ("offer", "told"),
    [
        ("XCLIENT ADDR PORT", ["ADDR", "PORT"]),
        ("XCLIENT PORT ADDR DESTADDR DESTPORT", ["ADDR", "PORT", "DESTADDR", "DESTPORT"]),
        ("xclient name addr helo proto", ["ADDR", "NAME", "PROTO", "HELO"]),
        ("XCLIENT LOGIN ADDR", ["ADDR", "LOGIN"]),
    ],
)
async def test_xclient_tells_no_attribute_that_was_not_offered(offer: str, told: list[str]) -> None:
    a = Mta("a", *OFFERS, offer)
    a.answer = lambda session, line: "220 a" if line.startswith("XCLIENT") else None
    async with stage_of(IdentityMode.XCLIENT, a) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        line = next(line for line in a.lines if line.startswith("XCLIENT"))
        assert [word.split("=")[0] for word in line.split(" ")[1:]] == told


async def test_a_hostile_helo_is_encoded() -> None:
    for mode in (IdentityMode.XCLIENT, IdentityMode.XFORWARD):
        a = backend(mode)
        async with stage_of(mode, a) as stage:
            client = await stage.client(HOSTILE)
            assert (await client.message()).startswith("250")
            line = next(line for line in a.lines if line.startswith("X"))
            assert ' HELO=a+2Bb+3Dc;d(e)<f>\\"`$x ' in line


async def test_xforward_goes_before_each_mail_in_its_segment() -> None:
    a = backend(IdentityMode.XFORWARD)
    async with stage_of(IdentityMode.XFORWARD, a) as stage:
        for name in ("one.test", "two.test"):
            client = await stage.client(name)
            assert (await client.message()).startswith("250")
            assert (await client.message()).startswith("250")
            await client.leave()
        assert len(a.sessions) == 1, "it may be shared: the backend forgets it with each transaction"
        assert a.lines[0] == "EHLO lb.test"
        assert [t.xforward["HELO"] for t in a.taken] == ["one.test"] * 2 + ["two.test"] * 2
        assert len({t.xforward["PORT"] for t in a.taken}) == 2
        assert {t.xforward["SOURCE"] for t in a.taken} == {"REMOTE"}
        segments = [s for s in a.sessions[0].segments if b"MAIL FROM" in s]
        assert all(s.startswith(b"XFORWARD ADDR=127.0.0.1 PORT=") for s in segments)


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [IdentityMode.XCLIENT, IdentityMode.XFORWARD])
async def test_a_backend_that_does_not_offer_it_gets_no_mail(mode: IdentityMode) -> None:
    a, b = Mta("a"), backend(mode, "b")
    async with stage_of(mode, a, b) as stage:
        client = await stage.client()
        for _ in range(2):
            assert (await client.message()).startswith("250")
        assert not any(line.startswith("MAIL") for line in a.lines)
        assert stage.failures[0] == "a fault hello identity"
        assert not stage.blamed, "what a backend offers is its operator's doing"


@pytest.mark.parametrize("mode", [IdentityMode.XCLIENT, IdentityMode.XFORWARD])
@pytest.mark.parametrize("names", ["", " NAME HELO"])
async def test_a_backend_that_cannot_be_told_the_address_gets_no_mail(mode: IdentityMode, names: str) -> None:
    a, b = Mta("a", *OFFERS, mode.value.upper() + names), backend(mode, "b")
    async with stage_of(mode, a, b) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert not any(line.startswith("MAIL") for line in a.lines)
        assert stage.failures == ["a fault hello identity"]


@pytest.mark.parametrize("reply", ["500 5.5.2 what", "501 5.5.4 bad", "503 no", "550 5.7.0 not you"])
async def test_a_backend_that_refuses_xclient_gets_no_mail(reply: str) -> None:
    a = backend(IdentityMode.XCLIENT, says={"XCLIENT": reply})
    async with stage_of(IdentityMode.XCLIENT, a) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("451 4.4.1")
        assert stage.failures == ["a fault hello identity"]
        assert not stage.blamed
        assert a.lines[-1] == "QUIT"


@pytest.mark.parametrize("reply", ["500 5.5.2 what", "451 4.3.0 later"])
async def test_a_backend_that_refuses_xforward_gets_no_mail(reply: str) -> None:
    a, b = backend(IdentityMode.XFORWARD, says={"XFORWARD": reply}), backend(IdentityMode.XFORWARD, "b")
    async with stage_of(IdentityMode.XFORWARD, a, b) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert not a.taken
        assert not stage.blamed


VERDICTS = ["554 5.7.1 you are listed", "450 4.7.1 greylisted", "421 4.7.0 too many of you"]


@pytest.mark.parametrize("mode", BINDING)
@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "XCLIENT"])
@pytest.mark.parametrize("reply", VERDICTS)
async def test_an_error_once_the_client_was_told_of_is_a_verdict_on_the_client(
    mode: IdentityMode, verb: str, reply: str
) -> None:
    """Given to every RCPT of the session; nobody is asked again, nobody is blamed (design 4.4)."""
    xclient = mode is IdentityMode.XCLIENT
    if (verb == "XCLIENT") is not xclient and verb != "EHLO":
        pytest.skip("not a step of this mode")
    a, b = backend(mode), backend(mode, "b")
    for mta in (a, b):
        mta.says[verb] = ["", reply] if xclient and verb == "EHLO" else reply
    async with stage_of(mode, a, b) as stage:
        client = await stage.client()
        wanted = reply.replace("421", "451")
        assert await client.envelope("<x@b.test>", "<y@b.test>") == ["250 2.1.0 Ok", wanted, wanted]
        await client.ask("RSET")
        assert (await client.envelope())[1] == wanted
        assert len(a.sessions) == 1
        assert not b.sessions
        assert not stage.blamed


@pytest.mark.parametrize("mode", BINDING)
@pytest.mark.parametrize("how", ["!abort", "!close", "!hang"])
async def test_a_loss_once_the_client_was_told_of_is_not_blamed_on_one_word(
    mode: IdentityMode, how: str
) -> None:
    verb = "XCLIENT" if mode is IdentityMode.XCLIENT else "CONNECT"
    a, b = backend(mode, says={verb: how}), backend(mode, "b", says={verb: how})
    async with stage_of(mode, a, b) as stage:
        client = await stage.client()
        client.send(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n")
        assert (await client.reply()).startswith("250")
        for mta in (a, b):
            await until(lambda mta=mta: mta.sessions)  # type: ignore[misc]
            await settle()
            if how == "!hang":
                stage.pass_time(31.0)
        assert (await client.reply()).startswith("451")
        assert not stage.blamed, "both alike: a fact about the client"


async def test_a_clients_name_in_ehlo_cannot_get_a_backend_blamed() -> None:
    """A backend that judges names is asked with ours until it was told whose they are."""
    a = backend(IdentityMode.XCLIENT)
    a.answer = lambda session, line: "550 5.7.1 bad name" if line == "EHLO evil" else None
    async with stage_of(IdentityMode.XCLIENT, a) as stage:
        client = await stage.client("evil")
        assert (await client.envelope())[1] == "550 5.7.1 bad name"
        assert not stage.blamed


@pytest.mark.parametrize("loses", ["!abort", "!close"])
async def test_a_loss_at_xforward_is_repaired(loses: str) -> None:
    a = backend(IdentityMode.XFORWARD, says={"XFORWARD": ["", loses]})
    async with stage_of(IdentityMode.XFORWARD, a) as stage:
        client = await stage.client()
        for _ in range(2):
            assert (await client.message()).startswith("250")
        assert len(a.sessions) == 2
        assert not stage.blamed


async def test_a_421_to_xforward_on_a_kept_connection_is_repaired() -> None:
    a = backend(IdentityMode.XFORWARD, says={"XFORWARD": ["", "421 4.4.2 idle for too long"]})
    async with stage_of(IdentityMode.XFORWARD, a) as stage:
        client = await stage.client()
        for _ in range(2):
            assert (await client.message()).startswith("250")
        assert not stage.blamed


# -- whose connection it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", BINDING)
async def test_a_connection_stays_with_its_session_and_ends_with_it(mode: IdentityMode) -> None:
    a = backend(mode)
    async with stage_of(mode, a) as stage:
        one, two = await stage.client("one.test"), await stage.client("two.test")
        for _ in range(3):
            assert (await one.message(mail="<one@a.test>")).startswith("250")
            assert (await two.message(mail="<two@a.test>")).startswith("250")
        assert len(a.sessions) == 2
        assert {(t.sender, t.ehlo) for t in a.taken} == {
            ("one@a.test", "one.test"),
            ("two@a.test", "two.test"),
        }
        await one.leave()
        await until(lambda: len(a.open) == 1, "it ends with the session")
        assert [s.lines[-1] for s in a.sessions if s.gone] == ["QUIT"]
        two.reset()
        await until(lambda: not a.open, "it ends with the session")
        assert [s.lines[-1] for s in a.sessions] == ["QUIT", "QUIT"]


@pytest.mark.parametrize("mode", BINDING)
async def test_an_idle_bound_connection_may_end_unseen(mode: IdentityMode) -> None:
    a = backend(mode)
    async with stage_of(mode, a) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        stage.pass_time(100.0)
        await until(lambda: not a.open, "idle_timeout")
        assert (await client.message()).startswith("250")
        assert [t.ehlo for t in a.taken] == ["client.test"] * 2


async def test_balance_per_session_stays_with_one_backend() -> None:
    mtas = [Mta(name) for name in "abc"]
    per_session = {"balance_per": BalancePer.SESSION}
    async with Stage(pool(*mtas, of_pool=per_session)) as stage:
        for _ in range(3):
            client = await stage.client()
            for _ in range(4):
                assert (await client.message()).startswith("250")
            await client.leave()
        assert [len(mta.taken) for mta in mtas] == [4, 4, 4]
    async with Stage(pool(*mtas, of_pool=per_session)) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        stuck = next(mta for mta in mtas if len(mta.taken) == 5)
        stuck.says["MAIL"] = "421 4.3.2 shutting down"
        for _ in range(3):
            assert (await client.message()).startswith("250")
        assert sorted(len(mta.taken) for mta in mtas) == [4, 5, 7], "to one other, and it stays there"


async def test_a_client_behind_a_unix_socket_has_no_address_to_tell(tmp_path: Any) -> None:
    a, b = backend(IdentityMode.PROXY_V2), Mta("b")
    path = str(tmp_path / "mx.sock")
    async with Stage(pool(a, identity=IdentityMode.PROXY_V2), unix=path) as stage:
        client = await stage.client()
        assert (await client.envelope())[1].startswith("451 4.4.1")
        assert stage.failures == ["a fault greeting identity"]
        assert not stage.blamed
    async with Stage(pool(b), unix=path) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")


async def test_identity_and_tls_come_in_the_order_of_the_rfcs() -> None:
    tls = BackTlsSettings(BackTlsMode.REQUIRED, ca=certificates.authority_file())
    a = backend(IdentityMode.XCLIENT, tls=certificates.server())
    a.offers = (*OFFERS, FULL_XCLIENT, "STARTTLS")
    async with stage_of(IdentityMode.XCLIENT, a, tls=tls) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert [line.split(" ")[0] for line in a.lines[:6]] == [
            "EHLO",
            "STARTTLS",
            "EHLO",
            "XCLIENT",
            "EHLO",
            "MAIL",
        ]
        assert a.sessions[0].clear_lines == 2, "the client is named inside TLS only"
    b = Mta("b", *OFFERS, tls=certificates.server(), implicit=True, proxy=True)
    tls = BackTlsSettings(BackTlsMode.IMPLICIT, ca=certificates.authority_file())
    async with stage_of(IdentityMode.PROXY_V2, b, tls=tls) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250"), "the header goes below TLS"
