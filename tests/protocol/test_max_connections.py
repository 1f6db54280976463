"""max_connections as a backend sees it: never one more, whatever the sessions, identities and faults behind it."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from smtplb.settings import AuthMode, BackTlsMode, BackTlsSettings, IdentityMode
from tests.effort import seeds
from tests.protocol import certificates as certs
from tests.protocol.client import Client, settle
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

XCLIENT = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"


def limited(*mtas: Mta, limit: int = 1, listener: dict[str, Any] | None = None, **options: Any) -> Stage:
    return Stage(pool(*mtas, max_connections=limit, **options), listener=listener)


async def asks(stage: Stage) -> Client:
    """A client that said RCPT and has no answer yet."""
    client = await stage.client()
    client.send(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n")
    assert (await client.reply()).startswith("250")
    await settle()
    return client


@pytest.mark.parametrize("mode", [IdentityMode.NONE, IdentityMode.XCLIENT, IdentityMode.PROXY_V1])
async def test_who_comes_first_is_served_first(mode: IdentityMode) -> None:
    a = Mta("a", *OFFERS, XCLIENT, proxy=mode is IdentityMode.PROXY_V1)
    async with limited(a, limit=2, identity=mode) as stage:
        clients = [await asks(stage) for _ in range(8)]
        for number, client in enumerate(clients):
            assert (await client.reply()).startswith("250")
            await settle()
            assert all(not other._buffer for other in clients[number + 2 :]), "in order"
            assert (await client.data()).startswith("250")
        assert a.most_open == 2
        assert len(a.taken) == 8


async def test_idle_connections_of_others_make_room() -> None:
    a = Mta("a", *OFFERS, XCLIENT)
    async with limited(a, identity=IdentityMode.XCLIENT) as stage:
        one, two = await stage.client("one.test"), await stage.client("two.test")
        for _ in range(3):
            assert (await one.message()).startswith("250")
            assert (await two.message()).startswith("250")
        assert [t.ehlo for t in a.taken] == ["one.test", "two.test"] * 3
        assert a.most_open == 1
        assert {s.lines[-1] for s in a.sessions if s.gone} == {"QUIT"}


async def test_an_authenticated_connection_is_in_nobodys_way_but_counts() -> None:
    a = Mta("a", *OFFERS, "AUTH PLAIN")
    listener = {"auth": AuthMode.RELAY, "auth_without_tls": True}
    async with limited(a, limit=2, listener=listener, queue={"timeout_s": 10.0}) as stage:
        one, two = await stage.client(), await stage.client()
        assert (await one.ask("AUTH PLAIN AGEAYg==")).startswith("235")
        assert (await two.ask("AUTH PLAIN AGEAYg==")).startswith("235")
        third = await asks(stage)
        await settle()
        assert not third._buffer
        assert (await one.message()).startswith("250")
        assert (await two.message()).startswith("250")
        await two.leave()
        assert (await third.reply()).startswith("250"), "the end of a session makes room"
        assert (await third.data()).startswith("250")
        assert (await one.message()).startswith("250")
        assert a.most_open == 2


async def test_an_exchange_waits_for_a_connection_of_its_own() -> None:
    a = Mta("a", *OFFERS, "AUTH PLAIN")
    async with limited(a, listener={"auth": AuthMode.RELAY, "auth_without_tls": True}) as stage:
        one, two = await stage.client(), await stage.client()
        await one.envelope()
        two.send(b"AUTH PLAIN AGEAYg==\r\n")
        await settle()
        assert not two._buffer
        assert (await one.data()).startswith("250")
        assert (await two.reply()).startswith("235"), "the connection that became idle gives way"
        assert a.most_open == 1


@pytest.mark.parametrize("fault", ["554 5.3.2 not today", "421 4.3.2 busy"])
async def test_a_refusal_that_is_still_being_said_goodbye_to_counts(fault: str) -> None:
    a = Mta("a", says={"CONNECT": fault})
    a.answer = lambda session, line: "!hang" if line == "QUIT" else None
    async with limited(a) as stage:
        clients = [await asks(stage) for _ in range(4)]
        await settle(50)
        stage.pass_time(6.0)  # QUIT_TIMEOUT_S
        for _ in range(4):
            await settle(50)
            stage.pass_time(6.0)
        for client in clients:
            assert (await client.reply()).startswith("451")
        assert a.most_open == 1


async def test_a_full_queue_and_a_long_wait_are_451() -> None:
    a = Mta("a")
    async with limited(a, queue={"length": 1, "timeout_s": 10.0}) as stage:
        held = await asks(stage)
        assert (await held.reply()).startswith("250")
        waits, late = await asks(stage), await asks(stage)
        assert (await late.reply()).startswith("451 4.3.2")
        stage.pass_time(10.5)
        assert (await waits.reply()).startswith("451 4.3.2")
        assert stage.refusals == {"queue-full": 1, "queue-timeout": 1}
        assert (await held.data()).startswith("250")
        assert (await waits.data()).startswith("451")
        assert (await late.ask("RSET")).startswith("250")
        assert (await late.message()).startswith("250")


@pytest.mark.campaign
@pytest.mark.parametrize("seed", seeds(3))
async def test_in_a_crowd_with_faults_there_is_never_one_more(seed: int) -> None:
    random = Random(seed)
    limit = random.choice((1, 2, 5))
    mode = random.choice((IdentityMode.NONE, IdentityMode.XCLIENT, IdentityMode.PROXY_V2))
    tls = BackTlsSettings(random.choice((BackTlsMode.OFF, BackTlsMode.REQUIRED)), verify=False)
    faults = ["", "", "", "", "", "", "!abort", "421 4.3.2 busy", "!close"]
    mtas = [
        Mta(
            name,
            *OFFERS,
            XCLIENT,
            *["STARTTLS"] * (tls.mode is BackTlsMode.REQUIRED),
            proxy=mode is IdentityMode.PROXY_V2,
            tls=certs.server(),
            says={verb: random.choices(faults, k=300) for verb in ("MAIL", "RCPT", "DATA", "FINAL", "RSET")},
        )
        for name in "ab"
    ]
    async with limited(*mtas, limit=limit, identity=mode, tls=tls, queue={"timeout_s": 1000.0}) as stage:

        async def live(number: int) -> None:
            client = await stage.client(f"h{number}.test")
            for _ in range(8):
                chance = random.random()
                replies = await client.envelope()
                if chance < 0.2 or not replies[1].startswith("250"):
                    assert (await client.ask("RSET")).startswith("250")
                else:
                    assert (await client.data())[0] in "24"
            await client.leave()

        await asyncio.wait_for(asyncio.gather(*(live(number) for number in range(25))), 60)
        assert all(mta.most_open <= limit for mta in mtas), [mta.most_open for mta in mtas]
        await until(lambda: not stage.listener.sessions)
