"""A backend that does not take the identity gets no mail, and status says why."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.e2e.balancer import Smtplb, pool
from tests.e2e.client import session, turned_away
from tests.e2e.conftest import Begin
from tests.identity.parties import CLIENT, visit
from tests.lab import Postfix
from tests.lab.fixtures import Lab

PROBLEMS = Path(__file__).parents[2] / "docs" / "problems.md"
WHY = {
    "xclient": "identity: does not offer XCLIENT",
    "xforward": "identity: does not offer XFORWARD",
    "proxy-v1": "identity: does not take the PROXY header",
    "proxy-v2": "identity: does not take the PROXY header",
}


@pytest.mark.parametrize("mode", WHY)
async def test_the_only_backend_gets_no_mail_and_status_says_why(lab: Lab, begin: Begin, mode: str) -> None:
    lacking = await asyncio.to_thread(lab.start, Postfix("lacking"))
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(lacking, identity=mode)}))
    await asyncio.to_thread(balancer.wait_state, "lacking", "unproven")
    for _ in range(3):
        assert (await turned_away(balancer.port)).startswith("421 4.3.2 ")
    backend = balancer.backends()["lacking"]
    assert not backend["usable"]
    assert backend["reason"].startswith(WHY[mode])
    problems = {each["where"]: each for each in balancer.status()["problems"]}
    assert problems["relays/lacking"]["anchor"] == "identity-unproven"
    assert WHY[mode] in problems["relays/lacking"]["text"]
    assert problems["mx"]["anchor"] == "listener-unusable"
    assert re.search(r"^## identity-unproven$", PROBLEMS.read_text(), re.MULTILINE)
    shown = await asyncio.to_thread(balancer.call, "status")
    assert shown.returncode == 1  # failing
    assert WHY[mode] in " ".join(shown.stdout.split())  # over the ends of lines
    assert "identity-unproven" in shown.stdout
    assert lacking.log_lines(": client=") == []
    assert lacking.accepted() == []


async def test_without_checks_the_first_message_finds_out_and_is_deferred(lab: Lab, begin: Begin) -> None:
    lacking = await asyncio.to_thread(lab.start, Postfix("lacking"))
    entries = [{"name": mode, "address": lacking.address, "identity": mode} for mode in WHY]
    pools = {str(entry["name"]): pool(entry, check={"level": "off"}) for entry in entries}
    rules = [{"when": {"recipient_domain": [f"{mode}.test"]}, "to": mode} for mode in WHY]
    balancer = Smtplb(
        pools, listener={"to": "all"}, sections={"routes": {"all": [*rules, {"to": "xclient"}]}}
    )
    await asyncio.to_thread(begin, balancer)
    for mode in WHY:
        async with session(balancer.port) as client:
            reply = await client.send(recipient=f"b@{mode}.test")
            assert reply.startswith("451 4."), reply
            assert "xclient" not in reply.lower()  # how we are built is no client's business
    assert lacking.log_lines(": client=") == []


async def test_mail_goes_to_the_one_that_offers_it(lab: Lab, begin: Begin) -> None:
    lacking, offering = Postfix("lacking"), Postfix("offering", xclient_hosts="127.0.0.0/8")
    for server in (lacking, offering):
        await asyncio.to_thread(lab.start, server)
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(lacking, offering, identity="xclient")}))
    for _ in range(4):
        async with visit(balancer.port, source=CLIENT) as client:
            assert (await client.send()).startswith("250")
            assert (await client.quit()).startswith("221")
    await asyncio.to_thread(offering.wait_accepted, 4)
    assert balancer.states() == {"lacking": "unproven", "offering": "up"}
    assert lacking.log_lines(": client=") == []
    assert {message.client for message in offering.messages().values()} == {f"unknown[{CLIENT}]"}
