"""Routes: which target a recipient has, and what becomes of one that has another than those before it (design 5)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from smtplb.settings import (
    AuthMode,
    Condition,
    Domains,
    FrontTlsMode,
    FrontTlsSettings,
    OtherRoute,
    RefuseReply,
    RouteSettings,
    Rule,
)
from tests.protocol import certificates as certs
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

NOT_HERE = RefuseReply(550, "5.7.1", "not here")
LAB = Domains(exact=frozenset({"lab.test"}), suffixes=frozenset({"lab.test"}))
SITE = Domains(exact=frozenset({"site.test", "b.test"}))


def routed(*rules: Rule, **listener: Any) -> tuple[Stage, Mta, Mta]:
    """To "lab" or to "site", each a pool of one backend of that name."""
    lab, site = Mta("lab"), Mta("site")
    route = RouteSettings("in", rules)
    stage = Stage(
        pool(lab, name="lab"),
        pool(site, name="site"),
        listener={"target": "in", **listener},
        routes=(route,),
    )
    return stage, lab, site


BY_DOMAIN = (
    Rule(Condition(recipient_domain=LAB), target="lab"),
    Rule(Condition(recipient_domain=SITE), target="site"),
    Rule(None, refuse=NOT_HERE),
)


@pytest.mark.parametrize(
    ("recipient", "where"),
    [
        ("<x@lab.test>", "lab"),
        ("<x@LAB.Test>", "lab"),
        ("<x@lab.test.>", "lab"),
        ("<x@deep.er.lab.test>", "lab"),
        ("<x@notlab.test>", ""),
        ("<x@site.test>", "site"),
        ("<x@sub.site.test>", ""),
        ("<@lab.test:x@site.test>", "site"),
        ("<@lab.test,@b.test:x@site.test>", "site"),
        ('<"a@lab.test"@site.test>', "site"),
        ("<x@[192.0.2.1]>", ""),
        ("<x>", ""),
        ("<postmaster>", "site"),
        ("<PostMaster>", "site"),
        ("<postmaster@lab.test>", "lab"),
        ("<postmaster@elsewhere.test>", ""),
    ],
)
async def test_a_recipient_goes_by_its_final_domain(recipient: str, where: str) -> None:
    stage, lab, site = routed(*BY_DOMAIN)
    async with stage:
        client = await stage.client()
        answer = await client.message(recipient)
        if where:
            assert answer.startswith("250")
            assert [len(lab.taken), len(site.taken)] == [int(where == "lab"), int(where == "site")]
            taken = (lab.taken + site.taken)[0]
            assert taken.rcpts == [f"TO:{recipient}"], "and is passed on as it was written"
        else:
            assert answer == "550 5.7.1 not here"
            assert stage.refusals["route"] == 1


async def test_rules_know_sender_client_helo_tls_auth_and_size() -> None:
    lab, site = Mta("lab", *OFFERS, "AUTH PLAIN"), Mta("site", *OFFERS, "AUTH PLAIN")
    conditions = [
        Condition(sender=frozenset({"vip@a.test"})),
        Condition(sender_domain=Domains(exact=frozenset({"vip.test"}))),
        Condition(sender=frozenset({""})),
        Condition(helo=Domains(exact=frozenset({"vip"}))),
        Condition(client=(ip_network("127.0.0.9/32"),)),
        Condition(size_over_bytes=1000),
        Condition(tls=True, negated=Condition(auth=False)),
    ]
    route = RouteSettings("in", (*(Rule(c, target="lab") for c in conditions), Rule(None, target="site")))
    tls = FrontTlsSettings(FrontTlsMode.STARTTLS, (certs.pair("mx.test"),))
    listener = {"target": "in", "tls": tls, "auth": AuthMode.RELAY}
    async with Stage(
        pool(lab, name="lab"), pool(site, name="site"), listener=listener, routes=(route,)
    ) as stage:

        async def goes(mail: str = "<s@a.test>", name: str = "x", source: str = "127.0.0.1") -> str:
            before = len(lab.taken)
            client = await stage.client(name, source)
            assert (await client.message(mail=mail)).startswith("250")
            return "lab" if len(lab.taken) > before else "site"

        assert await goes() == "site"
        assert await goes("<VIP@A.test>") == "lab"
        assert await goes("<x@vip.test>") == "lab"
        assert await goes("<x@sub.vip.test>") == "site"
        assert await goes("<>") == "lab"
        assert await goes(name="VIP") == "lab"
        assert await goes(source="127.0.0.9") == "lab"
        assert await goes("<s@a.test> SIZE=1000") == "site"
        assert await goes("<s@a.test> SIZE=1001") == "lab"
        client = await stage.client()
        await client.starttls(certs.client(), "mx.test")
        await client.ask("EHLO x")
        assert (await client.message()).startswith("250")
        assert len(site.taken) == 4, "TLS alone is not enough"
        assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235")
        assert (await client.message()).startswith("250")
        assert lab.taken[-1].session.login == ["AGEAYg=="], "chosen at AUTH as the session it became"


async def test_a_recipient_of_another_route_is_deferred() -> None:
    stage, lab, site = routed(*BY_DOMAIN)
    async with stage:
        client = await stage.client()
        assert (await client.keywords())["LIMITS"] == "RCPTMAX=1000 RCPTDOMAINMAX=1"
        replies = await client.envelope(
            "<a@lab.test>", "<b@site.test>", "<c@lab.test>", "<postmaster>", "<d@elsewhere.test>"
        )
        assert [r[:9] for r in replies[1:]] == [
            "250 2.1.5",
            "452 4.5.3",
            "250 2.1.5",
            "250 2.1.5",
            "550 5.7.1",
        ]
        assert (await client.data()).startswith("250")
        assert lab.taken[0].rcpts == ["TO:<a@lab.test>", "TO:<c@lab.test>", "TO:<postmaster>"]
        assert not site.taken
        assert (await client.message("<b@site.test>")).startswith("250"), "in a further transaction"


async def test_or_follows_where_that_is_the_rule() -> None:
    stage, lab, site = routed(*BY_DOMAIN, other_route=OtherRoute.FOLLOW)
    async with stage:
        client = await stage.client()
        assert "LIMITS" not in await client.keywords()
        replies = await client.envelope("<a@lab.test>", "<b@site.test>", "<d@elsewhere.test>")
        assert [r[:3] for r in replies[1:]] == ["250", "250", "550"]
        assert (await client.data()).startswith("250")
        assert lab.taken[0].rcpts == ["TO:<a@lab.test>", "TO:<b@site.test>"]
        assert not site.sessions


async def test_only_an_accepted_recipient_fixes_the_target() -> None:
    stage, lab, site = routed(*BY_DOMAIN)
    lab.says["RCPT"] = "550 5.1.1 nobody"
    async with stage:
        client = await stage.client()
        await client.ask("MAIL FROM:<s@a.test>")
        assert (await client.ask("RCPT TO:<a@lab.test>")).startswith("550")
        assert (await client.ask("RCPT TO:<b@site.test>")).startswith("250")
        assert (await client.ask("RCPT TO:<c@lab.test>")).startswith("452 4.5.3")
        assert (await client.data()).startswith("250")
        assert site.taken[0].rcpts == ["TO:<b@site.test>"]
        await until(lambda: lab.sessions[0].lines[-1] == "RSET", "the first was left as it should be")


async def test_also_after_nobody_could_be_asked_there() -> None:
    stage, lab, _ = routed(*BY_DOMAIN)
    async with stage:
        lab.stop()
        client = await stage.client()
        await client.ask("MAIL FROM:<s@a.test>")
        assert (await client.ask("RCPT TO:<a@lab.test>")).startswith("451 4.4.1")
        assert (await client.ask("RCPT TO:<b@site.test>")).startswith("250")
        assert (await client.data()).startswith("250")


async def test_while_the_first_is_being_asked_the_next_of_another_route_waits_for_nothing() -> None:
    """Pipelined: the target is about to be fixed, so the second is deferred whatever the first becomes."""
    stage, lab, site = routed(*BY_DOMAIN)
    async with stage:
        client = await stage.client()
        replies = await client.envelope("<a@lab.test>", "<b@site.test>")
        assert [r[:3] for r in replies] == ["250", "250", "452"]
        await client.ask("RSET")
        lab.says["RCPT"] = "550 5.1.1 nobody"
        replies = await client.envelope("<a@lab.test>", "<b@site.test>")
        assert replies[1].startswith("550")
        assert replies[2][:3] in ("250", "452")
        if replies[2].startswith("250"):
            assert (await client.data()).startswith("250")
            assert site.taken[0].rcpts == ["TO:<b@site.test>"]
            assert not lab.taken


# -- the relay guard -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("<x@b.test>", "250"),
        ("<x@evil.test>", "550"),
        ("<x%evil.test@b.test>", "550"),
        ("<evil.test!x@b.test>", "550"),
        ('<"x@evil.test"@b.test>', "550"),
        ("<@evil.test:x@b.test>", "550"),  # Sendmail can be told to follow it
        ("<@b.test:x@evil.test>", "550"),
        ("<x@b.test@evil.test>", "501"),
        ("<postmaster>", "250"),
        ("<x>", "550"),
        ("<x@b.test\0evil.test>", "501"),
    ],
)
async def test_who_may_send_where_is_judged_by_the_domain_that_counts(recipient: str, code: str) -> None:
    accept = (Condition(recipient_domain=SITE),)
    a = Mta("a")
    async with Stage(pool(a), listener={"accept": accept}) as stage:
        client = await stage.client()
        assert (await client.envelope(recipient))[1][:3] == code
        if code == "550":
            assert stage.refusals["accept"] == 1
