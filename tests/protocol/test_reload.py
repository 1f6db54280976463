"""A reload inside a worker: what is under way ends as it began, what begins is by the new settings, counters go on."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from smtplb.messages import BackendsAnswered
from smtplb.observe.outcomes import AttemptOutcome
from smtplb.settings import (
    AuthMode,
    BackTlsMode,
    BackTlsSettings,
    Condition,
    ConnectionSettings,
    Domains,
    IdentityMode,
    OtherRoute,
    Policy,
    RouteSettings,
    Rule,
)
from tests.effort import seeds
from tests.protocol import certificates as certs
from tests.protocol.client import Client, settle
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

XCLIENT = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"


async def test_a_transaction_under_way_ends_where_it_began_and_the_next_is_by_the_new_settings() -> None:
    a, b = Mta("a"), Mta("b")
    async with Stage(pool(a)) as stage:
        one, two = await stage.client(), await stage.client()
        assert (await one.envelope())[-1].startswith("250")
        assert (await two.message()).startswith("250")
        await stage.reload(pool(b))
        assert (await one.ask("RCPT TO:<another@b.test>")).startswith("250")
        assert (await one.data()).startswith("250")
        assert len(a.taken) == 2
        assert (await one.message()).startswith("250")
        assert (await two.message()).startswith("250")
        assert (len(a.taken), len(b.taken)) == (2, 2)
        await until(lambda: not a.open, "a was left")
        assert {session.lines[-1] for session in a.sessions} == {"QUIT"}


async def test_a_fail_over_under_way_goes_to_what_is_there_now() -> None:
    a, b, c = Mta("a", says={"DATA": "421 4.3.2 busy"}), Mta("b"), Mta("c")
    async with Stage(pool(a, b)) as stage:
        client = await stage.client()
        assert (await client.envelope())[-1].startswith("250")
        began = a if a.open else b
        assert began is a
        await stage.reload(pool(a, c))
        assert (await client.data()).startswith("250")
        assert (len(b.taken), len(c.taken)) == (0, 1)


async def test_a_fault_of_a_backend_that_is_gone_is_told_like_any_other() -> None:
    a, b, c = Mta("a", says={"DATA": "!abort"}), Mta("b"), Mta("c")
    async with Stage(pool(a, b)) as stage:
        client = await stage.client()
        assert (await client.envelope())[-1].startswith("250")
        assert a.open, "it began there"
        await stage.reload(pool(c, name="q"), listener={"target": "q"})
        assert (await client.data()).startswith("250")
        assert (len(b.taken), stage.blamed) == (1, ["a"])
        assert (await client.message()).startswith("250")
        assert len(c.taken) == 1


async def test_warm_connections_are_as_many_as_the_present_settings_say() -> None:
    a = Mta("a")

    async with Stage(pool(a)) as stage:
        for count in (2, 4):
            await stage.reload(pool(a, connections=ConnectionSettings(warm=count)))
            for _ in range(6):
                stage.worker.deadline_passed(stage.deadlines.clock())
                await settle()
            assert len(a.open) == count
        await stage.reload(pool(a))


async def test_settings_that_do_not_change_the_way_leave_connections_alone() -> None:
    a = Mta("a")
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        for number in range(5):
            await stage.reload(
                pool(
                    a,
                    of_pool={"policy": [Policy.WEIGHTED, Policy.LEAST_CONNECTION][number % 2]},
                    max_connections=3 + number,
                )
            )
            assert (await client.message()).startswith("250")
        assert len(a.sessions) == 1
        assert stage.backend("a").reuse == {"new": 1, "reused": 4, "stale": 0}


async def test_tls_that_is_required_now_gets_a_connection_of_its_own() -> None:
    a = Mta("a", *OFFERS, "STARTTLS", tls=certs.server())
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        await stage.reload(pool(a, tls=BackTlsSettings(BackTlsMode.REQUIRED, verify=False)))
        assert (await client.message()).startswith("250")
        assert [taken.session.handshaken for taken in a.taken] == [False, True]
        assert stage.backend("a").attempts[AttemptOutcome.OK] == 2, "counted under one name"


async def test_more_room_is_given_to_those_who_wait() -> None:
    a = Mta("a")
    async with Stage(pool(a, max_connections=1, queue={"timeout_s": 100.0})) as stage:
        held, waits = await stage.client(), await stage.client()
        assert (await held.envelope())[-1].startswith("250")
        waits.send(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n")
        assert (await waits.reply()).startswith("250")
        await settle()
        assert not waits._buffer
        await stage.reload(pool(a, max_connections=2, queue={"timeout_s": 100.0}))
        assert (await waits.reply()).startswith("250")
        assert (await waits.data()).startswith("250")
        assert (await held.data()).startswith("250")


async def test_who_waits_for_a_pool_that_is_gone_is_served_by_it() -> None:
    a, b = Mta("a"), Mta("b")
    limited = pool(a, max_connections=1, queue={"timeout_s": 100.0})
    async with Stage(limited) as stage:
        held, waits, late = [await stage.client() for _ in range(3)]
        assert (await held.envelope())[-1].startswith("250")
        for client in (waits, late):
            client.send(b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\n")
            assert (await client.reply()).startswith("250")
        await settle()
        await stage.reload(pool(b, name="q"), listener={"target": "q"})
        assert (await held.data()).startswith("250")
        assert (await waits.reply()).startswith("250")
        assert (await waits.data()).startswith("250")
        assert (await late.reply()).startswith("250")
        assert (await late.data()).startswith("250")
        assert (a.most_open, len(a.taken), len(b.taken)) == (1, 3, 0)
        assert (await late.message()).startswith("250")
        assert len(b.taken) == 1


async def test_recipients_of_a_transaction_follow_the_routes_with_which_it_began() -> None:
    a, b = Mta("a"), Mta("b")
    pools = (pool(a, name="pa"), pool(b, name="pb"))

    def route(first: str, second: str) -> tuple[RouteSettings, ...]:
        when = Condition(recipient_domain=Domains(frozenset({"b.test"})))
        return (RouteSettings("r", (Rule(when, first), Rule(None, second))),)

    listener = {"target": "r", "other_route": OtherRoute.DEFER}
    async with Stage(*pools, routes=route("pa", "pb"), listener=listener) as stage:
        client = await stage.client()
        assert (await client.envelope())[-1].startswith("250")
        await stage.reload(*pools, routes=route("pb", "pa"))
        assert (await client.ask("RCPT TO:<two@b.test>")).startswith("250"), "not 452: it goes the same way"
        assert (await client.ask("RCPT TO:<x@c.test>")).startswith("452 4.5.3")
        assert (await client.data()).startswith("250")
        assert (await client.message()).startswith("250")
        assert (len(a.taken), len(b.taken)) == (1, 1)


async def test_an_authenticated_session_never_goes_on_at_another_backend_of_the_same_name() -> None:
    a, other = Mta("a", *OFFERS, "AUTH PLAIN"), Mta("a", *OFFERS, "AUTH PLAIN")
    listener = {"auth": AuthMode.RELAY, "auth_without_tls": True}
    async with Stage(pool(a), listener=listener) as stage:
        idle, busy = await stage.client(), await stage.client()
        for client in (idle, busy):
            assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235")
        assert (await busy.envelope())[-1].startswith("250")
        await stage.reload(pool(other))
        assert (await idle.ask("MAIL FROM:<s@a.test>")).startswith("421 4.4.2")
        assert (await busy.data()).startswith("250"), "where it began"
        assert (await busy.ask("MAIL FROM:<s@a.test>")).startswith("421 4.4.2")
        assert (len(a.taken), len(other.taken)) == (1, 0)
        await until(lambda: not a.open, "a was left")


async def test_an_exchange_under_way_ends_where_it_began() -> None:
    a, b = Mta("a", *OFFERS, "AUTH LOGIN"), Mta("b", *OFFERS, "AUTH LOGIN")
    for mta in (a, b):
        mta.challenges = {"LOGIN": ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"]}
    async with Stage(pool(a), listener={"auth": AuthMode.RELAY, "auth_without_tls": True}) as stage:
        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        await stage.reload(pool(b))
        assert (await client.ask("dXNlcg==")).startswith("334")
        assert (await client.ask("c2VjcmV0")).startswith("235")
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("421 4.4.2"), "nobody else knows it"


async def test_a_listener_whose_beginning_changed_ends_its_sessions_between_transactions() -> None:
    a = Mta("a")
    async with Stage(pool(a)) as stage:
        idle, busy = await stage.client(), await stage.client()
        assert (await busy.envelope())[-1].startswith("250")
        await stage.reload(pool(a), listener={"auth": AuthMode.RELAY, "auth_without_tls": True})
        assert (await idle.reply()).startswith("421 4.3.2 Service configuration changed")
        assert (await busy.data()).startswith("250")
        assert (await busy.ask("MAIL FROM:<s@a.test>")).startswith("421 4.3.2 Service configuration changed")
        assert stage.refusals["reconfigured"] == 2


async def test_counters_stay_with_a_name_and_come_back_with_it() -> None:
    a, b = Mta("a"), Mta("b")
    async with Stage(pool(a), pool(b, name="q")) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        stage.pass_time(1.0)
        await stage.reload(pool(b, name="q"), listener={"target": "q"})
        assert (await client.message()).startswith("250")
        stage.pass_time(1.0)
        await stage.reload(pool(a), pool(b, name="q"), listener={"target": "p"})
        assert (await client.message()).startswith("250")
        stage.pass_time(1.0)
        assert stage.backend("a").attempts[AttemptOutcome.OK] == 2
        report = stage.worker._report(1)
        assert [(each.sessions_total, each.transactions) for each in report.listeners] == [
            (1, {("p", "ok"): 2, ("q", "ok"): 1})
        ]
        told = [m.counts for m in stage.messages if isinstance(m, BackendsAnswered)]
        assert told == [{("p", "a"): 1}, {("q", "b"): 1}, {("p", "a"): 1}], "each answer once, none below 0"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", seeds(3))
async def test_in_a_crowd_with_reloads_everybody_hears_250(seed: int) -> None:
    """Backends come, go, change their identity and their place in pools while sessions go on."""
    random = Random(seed)
    mtas = [Mta(name, *OFFERS, XCLIENT) for name in "abcd"]
    queue = {"timeout_s": 1000.0, "length": 100}

    def choice() -> tuple[list[Mta], dict[str, Any]]:
        some = random.sample(mtas, random.randint(1, 4))
        mode = random.choice((IdentityMode.NONE, IdentityMode.XCLIENT))
        return some, {"queue": queue, "identity": mode, "max_connections": random.choice((2, 3, None))}

    some, more = choice()
    async with Stage(pool(*some, **more)) as stage:
        going = 20

        async def live(number: int) -> None:
            nonlocal going
            client: Client = await stage.client(f"h{number}.test")
            for _ in range(10):
                assert (await client.message()).startswith("250")
            await client.leave()
            going -= 1

        async def change() -> None:
            while going:
                some, more = choice()
                name = random.choice(("p", "q"))
                await stage.reload(pool(*some, name=name, **more), listener={"target": name})
                await settle(random.randint(1, 60))

        await asyncio.wait_for(asyncio.gather(change(), *(live(number) for number in range(20))), 60)
        assert sum(len(mta.taken) for mta in mtas) == 200
        assert stage.outcomes == ["ok"] * 200
