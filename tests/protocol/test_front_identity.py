"""PROXY and XCLIENT in front: taken from trusted fronts only, and from then on the client is who they say."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from smtplb.settings import ClientRules, IdentityMode, ReceivedMode
from smtplb.smtp.proxy_header import build_v1, build_v2, build_v2_local
from tests.protocol.client import Client, settle
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

LOOPBACK = (ip_network("127.0.0.0/8"),)
XCLIENT_OFFER = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 25\r\n"
V2 = build_v2(ip_address("2001:db8::7"), 40000, ip_address("2001:db8::1"), 25, unique_id=b"front-1")
NOBODY = {
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v2 LOCAL": build_v2_local(),
    "v2 unix": build_v2_local()[:12] + b"\x21\x31\x00\x02xx",
}


def proxied(mta: Mta, **listener: Any) -> Stage:
    return Stage(pool(mta), listener={"proxy_protocol_from": LOOPBACK, **listener})


def xcliented(*mtas: Mta, **listener: Any) -> Stage:
    return Stage(pool(*mtas), listener={"xclient_from": LOOPBACK, **listener})


def clients(stage: Stage) -> list[str]:
    return [session.client_text for session in stage.listener.sessions]


@pytest.mark.parametrize(("header", "name"), [(V1, "192.0.2.7"), (V2, "2001:db8::7")], ids=["v1", "v2"])
async def test_the_client_is_who_the_header_says(header: bytes, name: str) -> None:
    a = Mta("a")
    async with proxied(a) as stage:
        client = await stage.connect()
        await settle()
        assert not client.everything, "not a word before the header"
        client.send(header + b"EHLO client.test\r\n")
        assert (await client.reply()).startswith("220")
        assert (await client.reply()).startswith("250")
        assert clients(stage) == [name]
        assert (await client.message()).startswith("250")
        assert stage.ends[0].client == name


async def test_an_ipv4_client_is_one_however_its_front_writes_it() -> None:
    """HAProxy with `bind :::25 v4v6` writes mapped addresses: a backend's lists and ours are about the plain ones."""
    b = Mta("b", *OFFERS, proxy=True)
    trusted: dict[str, Any] = {"proxy_protocol_from": LOOPBACK}
    async with Stage(pool(b, identity=IdentityMode.PROXY_V1), listener=trusted) as stage:
        client = await stage.connect()
        client.send(b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 40000 25\r\n")
        await client.greeted()
        assert clients(stage) == ["192.0.2.7"]
        assert (await client.message()).startswith("250")
        assert stage.ends[0].client == "192.0.2.7"
        assert b.sessions[0].segments[0] == V1
    a = Mta("a", *OFFERS, XCLIENT_OFFER)
    async with Stage(pool(a, identity=IdentityMode.XCLIENT), listener={"xclient_from": LOOPBACK}) as stage:
        client = await stage.client("front.test")
        assert (await client.ask("XCLIENT ADDR=IPV6:::ffff:192.0.2.7 PORT=40000")).startswith("220")
        assert clients(stage) == ["192.0.2.7"]
        await client.keywords()
        assert (await client.message()).startswith("250")
        assert any(line.startswith("XCLIENT ADDR=192.0.2.7 PORT=40000 ") for line in a.lines)


@pytest.mark.parametrize("header", [V1, V2, *NOBODY.values()], ids=["v1", "v2", *NOBODY])
async def test_a_header_may_come_in_any_two_pieces(header: bytes) -> None:
    async with proxied(Mta("a")) as stage:
        for at in range(1, len(header) + 1):
            client = await stage.connect()
            client.send(header[:at])
            await settle(3)
            client.send(header[at:] + b"EHLO x\r\n")
            assert [r[:3] for r in await client.replies(2)] == ["220", "250"]
            client.reset()


@pytest.mark.parametrize("header", NOBODY.values(), ids=NOBODY)
async def test_mail_of_nobody_is_not_taken(header: bytes) -> None:
    a = Mta("a")
    allow = ClientRules(allow=(ip_network("192.0.2.0/24"),))
    async with proxied(a, clients=allow) as stage:
        client = await stage.connect()
        client.send(header)
        await client.greeted()
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("451 4.7.1")
        assert (await client.ask("NOOP")).startswith("250")
        assert not a.sessions


@pytest.mark.parametrize(
    "said",
    [
        b"EHLO x\r\n",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"\r\n\r\n\x00\r\nQUITx",
        V2[:12] + b"\x21\x11\x00\x01x",
        b"\x16\x03\x01",
        b"x" * 300,
    ],
)
async def test_a_front_that_sends_something_else_is_left_without_a_word(said: bytes) -> None:
    async with proxied(Mta("a")) as stage:
        client = await stage.connect()
        client.send(said)
        await client.nothing_more()
        assert stage.refusals["proxy-header"] == 1


async def test_a_front_that_sends_no_header_is_left_without_a_word() -> None:
    async with proxied(Mta("a")) as stage:
        client = await stage.connect()
        client.send(V1[:10])
        await settle()
        stage.pass_time(4.0)
        await settle()
        assert not client.over, "proxy-protocol.txt 2: at least 3 s"
        stage.pass_time(2.0)
        await client.nothing_more()
        assert stage.session_reasons == ["no PROXY header"]
        check = await stage.connect()  # a TCP check
        check.close()
        await until(lambda: not stage.listener.sessions)


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_from_anybody_else_a_header_is_refused_and_never_taken(header: bytes) -> None:
    a = Mta("a")
    async with Stage(pool(a), listener={"proxy_protocol_from": (ip_network("127.0.0.99/32"),)}) as stage:
        client = await stage.connect()
        assert (await client.reply()).startswith("220")
        client.send(header + b"NOOP\r\n")
        assert (await client.reply()).startswith("500")
        if header is V1:
            assert clients(stage) == ["127.0.0.1"]
        front = await stage.connect(source="127.0.0.99")
        front.send(header)
        assert (await front.reply()).startswith("220")


async def test_lists_judge_the_client_and_not_the_front() -> None:
    async with proxied(Mta("a"), clients=ClientRules(deny=(ip_network("192.0.2.0/24"),))) as stage:
        client = await stage.connect()
        client.send(V1)
        assert (await client.reply()).startswith("554 5.7.1")
        other = await stage.connect()
        other.send(V2)
        assert (await other.reply()).startswith("220")
    async with proxied(Mta("a"), clients=ClientRules(allow=(ip_network("192.0.2.0/24"),))) as stage:
        client = await stage.connect()
        client.send(V1)
        assert (await client.reply()).startswith("220")
        client = await stage.connect()
        client.send(V2)
        assert (await client.reply()).startswith("554 5.7.1")


def v1(client: str) -> bytes:
    return build_v1(ip_address(client), 1, ip_address("198.51.100.1" if "." in client else "2001:db8::1"), 25)


async def test_limits_count_the_client_and_not_the_front() -> None:
    limits = {"sessions_per_client": 2, "sessions_per_network": 3}
    async with proxied(Mta("a"), limits=limits) as stage:

        async def greeting(address: str) -> str:
            client = await stage.connect()
            client.send(v1(address))
            return (await client.reply())[:9]

        assert [await greeting("192.0.2.7") for _ in range(3)] == ["220 lb.te"] * 2 + ["421 4.7.0"]
        assert [await greeting(f"192.0.2.{n}") for n in (8, 9)] == ["220 lb.te", "421 4.7.0"], "a /24"
        assert await greeting("::ffff:192.0.2.7") == "421 4.7.0", "mapped is the same client"
        assert [await greeting(f"2001:db8::{n}") for n in (1, 2, 3)] == ["220 lb.te"] * 2 + ["421 4.7.0"], (
            "a /64"
        )
        assert await greeting("198.51.100.7") == "220 lb.te"
        for client in stage.clients:
            client.reset()
        await until(lambda: not stage.listener.sessions)
        assert await greeting("192.0.2.7") == "220 lb.te", "who left is not counted"


# -- XCLIENT ---------------------------------------------------------------------------------------------


async def test_only_a_trusted_front_may_say_xclient() -> None:
    a = Mta("a")
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        assert "XCLIENT" not in await client.keywords()
        assert (await client.ask("XCLIENT ADDR=192.0.2.7")).startswith("550 5.7.0")
        assert clients(stage) == ["127.0.0.1"]
        assert (await client.message()).startswith("250")


async def test_a_client_behind_a_proxy_header_may_not_say_xclient_whoever_its_front_is() -> None:
    """Such a front passes on whatever its client says: its trust does not extend to that."""
    a = Mta("a")
    async with proxied(a, xclient_from=LOOPBACK) as stage:
        client = await stage.connect()
        client.send(V1)
        await client.greeted()
        assert "XCLIENT" not in await client.keywords()
        assert (await client.ask("XCLIENT ADDR=198.51.100.9")).startswith("550 5.7.0")
        assert clients(stage) == ["192.0.2.7"]
        assert (await client.message()).startswith("250")
        assert stage.ends[0].client == "192.0.2.7"
        own = await stage.connect()  # the front's own word
        own.send(NOBODY["v2 LOCAL"])
        await own.greeted()
        assert (await own.ask("XCLIENT ADDR=198.51.100.9")).startswith("220")
        assert sorted(clients(stage)) == ["192.0.2.7", "198.51.100.9"]
    async with proxied(a, xclient_from=(*LOOPBACK, ip_network("192.0.2.0/24"))) as stage:
        client = await stage.connect()
        client.send(V1)
        await client.greeted()
        assert (await client.ask("XCLIENT ADDR=198.51.100.9")).startswith("220"), "it is trusted itself"


async def test_xclient_starts_the_session_anew() -> None:
    async with xcliented(Mta("a")) as stage:
        client = await stage.client("front.test")
        assert "XCLIENT " + (await client.keywords())["XCLIENT"] == XCLIENT_OFFER
        assert (await client.ask("XCLIENT ADDR=192.0.2.7 PORT=40000")).startswith("220 lb.test")
        assert clients(stage) == ["192.0.2.7"]
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("503"), "EHLO is forgotten"
        assert (await client.ask("EHLO client.test")).startswith("250")
        assert (await client.message()).startswith("250")
        assert (stage.ends[0].client, stage.ends[0].helo) == ("192.0.2.7", b"client.test")
        await client.ask("MAIL FROM:<s@a.test>")
        assert (await client.ask("XCLIENT ADDR=192.0.2.8")).startswith("503"), "not in a transaction"


@pytest.mark.parametrize(
    "said",
    [
        "ADDR=1.2.3",
        "WHAT=x",
        "ADDR=1.2.3.4 ADDR=1.2.3.4",
        "PORT=65536",
        "HELO=a+0D+0Ab",
        "ADDR",
        "ADDR=IPV6:fe80::1%+20x",
    ],
)
async def test_malformed_attributes_are_501_and_change_nothing(said: str) -> None:
    async with xcliented(Mta("a")) as stage:
        client = await stage.client()
        assert (await client.ask(f"XCLIENT {said}")).startswith("501 5.5.4")
        assert clients(stage) == ["127.0.0.1"]
        assert (await client.message()).startswith("250"), "EHLO still holds"


async def test_who_it_names_is_judged_like_one_who_connects() -> None:
    denied = ClientRules(allow=(ip_network("192.0.2.0/24"),), deny=(ip_network("192.0.2.66/32"),))
    limits = {"sessions_per_client": 1, "connections_per_minute": 2}
    async with xcliented(Mta("a"), clients=denied, limits=limits) as stage:

        async def xclient(address: str) -> Client:
            client = await stage.client("front.test")
            client.send(f"XCLIENT ADDR={address}\r\n".encode())
            return client

        client = await xclient("192.0.2.66")
        assert (await client.reply()).startswith("554 5.7.1")
        await client.nothing_more()
        client = await xclient("198.51.100.1")
        assert (await client.reply()).startswith("554 5.7.1")
        client = await xclient("192.0.2.7")
        assert (await client.reply()).startswith("220")
        again = await xclient("192.0.2.7")
        assert (await again.reply()).startswith("421 4.7.0")
        assert (await (await xclient("192.0.2.8")).reply()).startswith("220")


async def test_an_unnamed_client_gets_451() -> None:
    async with xcliented(Mta("a")) as stage:
        client = await stage.client()
        assert (await client.ask("XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE]")).startswith("220")
        await client.ask("EHLO x")
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("451 4.7.1")


def told(mta: Mta) -> list[tuple[str, str, str, str]]:
    return [(t.xclient["ADDR"], t.xclient["NAME"], t.xclient["HELO"], t.ehlo) for t in mta.taken]


async def test_another_client_on_the_same_front_session_gets_connections_of_its_own() -> None:
    a = Mta("a", *OFFERS, XCLIENT_OFFER)
    stage = Stage(pool(a, identity=IdentityMode.XCLIENT), listener={"xclient_from": LOOPBACK})
    async with stage:
        client = await stage.client("front.test")
        await client.ask("XCLIENT ADDR=192.0.2.7 PORT=1 NAME=one.test HELO=helo-one.test")
        await client.ask("EHLO helo-one.test")
        assert (await client.message(mail="<one@a.test>")).startswith("250")
        assert (await client.message(mail="<one@a.test>")).startswith("250")
        await client.envelope()
        client.send(
            b"RSET\r\nXCLIENT ADDR=192.0.2.8 PORT=2\r\nEHLO two.test\r\n"
        )  # the RSET to `a` is under way
        assert [r[:3] for r in await client.replies(3)] == ["250", "220", "250"]
        assert (await client.message(mail="<two@a.test>")).startswith("250")
        assert told(a) == [
            ("192.0.2.7", "one.test", "helo-one.test", "helo-one.test"),
            ("192.0.2.7", "one.test", "helo-one.test", "helo-one.test"),
            ("192.0.2.8", "[UNAVAILABLE]", "two.test", "two.test"),
        ]
        await until(lambda: len(a.open) == 1, "what carries the first client has ended")


async def test_attributes_may_come_in_several_commands() -> None:
    a = Mta("a", *OFFERS, XCLIENT_OFFER)
    stage = Stage(pool(a, identity=IdentityMode.XCLIENT), listener={"xclient_from": LOOPBACK})
    async with stage:
        client = await stage.client("front.test")
        await client.ask("XCLIENT NAME=one.test ADDR=IPV6:2001:db8::7 PORT=1 DESTADDR=192.0.2.1 DESTPORT=587")
        await client.ask("XCLIENT HELO=helo.test PROTO=ESMTP LOGIN=me+40a.test")
        await client.ask("EHLO front.test")
        assert (await client.message()).startswith("250")
        assert a.taken[0].xclient == {
            "NAME": "one.test",
            "ADDR": "IPV6:2001:db8::7",
            "PORT": "1",
            "HELO": "helo.test",
            "PROTO": "ESMTP",
            "LOGIN": "me@a.test",
            "DESTADDR": "192.0.2.1",
            "DESTPORT": "587",
        }
        assert a.taken[0].ehlo == "helo.test"


async def test_a_helo_that_is_no_word_is_unknown_and_never_a_command() -> None:
    a = Mta("a", *OFFERS, XCLIENT_OFFER)
    stage = Stage(pool(a, identity=IdentityMode.XCLIENT), listener={"xclient_from": LOOPBACK})
    async with stage:
        client = await stage.client("front.test")
        await client.ask("XCLIENT ADDR=192.0.2.7 PORT=1 HELO=two+20words")
        await client.ask("EHLO client.test")
        assert (await client.message()).startswith("250")
        assert a.taken[0].xclient["HELO"] == "client.test"
        assert all(" " not in line.removeprefix("EHLO ") for line in a.lines if line.startswith("EHLO"))


async def test_a_new_ehlo_name_is_told_too() -> None:
    a = Mta("a", *OFFERS, XCLIENT_OFFER)
    async with Stage(pool(a, identity=IdentityMode.XCLIENT)) as stage:
        client = await stage.client("one.test")
        assert (await client.message()).startswith("250")
        await client.ask("EHLO one.test")
        assert (await client.message()).startswith("250")
        assert len(a.sessions) == 1
        await client.ask("EHLO two.test")
        assert (await client.message()).startswith("250")
        assert [t.ehlo for t in a.taken] == ["one.test", "one.test", "two.test"]
        assert [t.xclient["HELO"] for t in a.taken] == ["one.test", "one.test", "two.test"]


async def test_an_ipv4_client_of_a_socket_for_both_families_is_an_ipv4_client() -> None:
    """For lists, limits, logs and what backends are told, alike."""
    a = Mta("a")
    allowed = ClientRules(allow=(ip_network("127.0.0.0/8"),))
    async with Stage(
        pool(a, received=ReceivedMode.ALWAYS), listener={"clients": allowed}, dual_stack=True
    ) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        assert [end.client for end in stage.ends] == ["127.0.0.1"]
        assert b"([127.0.0.1])" in a.taken[0].content
