"""Postfix that insists on TLS, and authorities of our own."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.balancer import QUICK_CHECK, Section, Smtplb, pool
from tests.e2e.client import session
from tests.e2e.conftest import Begin
from tests.identity.parties import Authorities
from tests.lab import Postfix
from tests.lab.fixtures import Lab

LOG_TLS = ["smtpd_tls_loglevel = 1"]
MESSAGES = 6
CHECKS = [QUICK_CHECK, {"level": "off"}]


def insisting(name: str, authorities: Authorities) -> Postfix:
    return Postfix(name, tls=authorities.server, tls_level="encrypt", main_cf=LOG_TLS)


async def test_required_and_verified_delivers(lab: Lab, begin: Begin, authorities: Authorities) -> None:
    server = await asyncio.to_thread(lab.start, insisting("mx1", authorities))
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(server, tls=authorities.tls())}))
    async with session(balancer.port) as client:
        for _ in range(2):
            assert (await client.send()).startswith("250")
    await asyncio.to_thread(server.wait_accepted, 2)
    assert server.log_lines("TLS connection established from")
    assert server.log_lines("Must issue a STARTTLS") == []
    assert server.log_lines("warning") == []


@pytest.mark.parametrize("check", CHECKS)
async def test_a_wrong_authority_is_a_4xx_and_no_mail(
    lab: Lab, begin: Begin, authorities: Authorities, check: Section
) -> None:
    """With checks, which see it and tell; the only backend is tried all the same. And without."""
    server = await asyncio.to_thread(lab.start, insisting("mx1", authorities))
    wrong = authorities.tls(wrong=True)
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(server, tls=wrong, check=check)}))
    if check is QUICK_CHECK:
        backend = await asyncio.to_thread(balancer.wait_state, "mx1", "down")
        assert "TLS: certificate verify failed" in backend["reason"]
        problems = balancer.status()["problems"]
        assert ("relays/mx1", "tls-backend") in [(each["where"], each["anchor"]) for each in problems]
    async with session(balancer.port) as client:
        for _ in range(2):
            assert (await client.send()).startswith("451 4.")
            assert (await client.say("RSET")).startswith("250")
    assert server.log_lines(": client=") == []


@pytest.mark.parametrize("check", CHECKS)
async def test_a_wrong_authority_takes_out_that_backend_alone_and_the_other_takes_all(
    lab: Lab, begin: Begin, authorities: Authorities, check: Section
) -> None:
    """Without checks each message may meet the bad one first."""
    bad, good = insisting("bad", authorities), insisting("good", authorities)
    for server in (bad, good):
        await asyncio.to_thread(lab.start, server)
    entries = [
        {"name": "bad", "address": bad.address, "tls": authorities.tls(wrong=True)},
        {"name": "good", "address": good.address, "tls": authorities.tls()},
    ]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries, check=check)}))
    if check is QUICK_CHECK:
        await asyncio.to_thread(balancer.wait_state, "bad", "down")
    for number in range(MESSAGES):
        async with session(balancer.port) as client:
            assert (await client.send(sender=f"s{number}@a.test")).startswith("250")
            assert (await client.quit()).startswith("221")
    await asyncio.to_thread(good.wait_accepted, MESSAGES)
    assert len(good.accepted()) == MESSAGES
    assert bad.log_lines(": client=") == []
    backend = balancer.backends()["good"]
    assert backend["usable"]
    changes = [
        each["smtplb.state.new"] for each in balancer.records("backend-changed") if "good" in str(each)
    ]
    assert changes == (["up"] if check is QUICK_CHECK else [])
