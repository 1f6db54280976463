"""Clients that provoke errors: no backend suffers for it, and a balancer is no way to make more of them than a backend allows."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import LOST, Client, session
from tests.e2e.conftest import Begin
from tests.lab import Postfix
from tests.lab.fixtures import Lab

HARD_LIMIT = 20  # smtpd_hard_error_limit, and limits.errors of a listener
WANTED = 3 * HARD_LIMIT
MAIN_CF = {
    "smtpd_error_sleep_time": "0",
    "smtpd_hard_error_limit": str(HARD_LIMIT),
    "smtpd_recipient_restrictions": "check_recipient_access inline:{ {bad.test = 550 5.1.1 nobody}, "
    "{grey.test = 450 4.2.0 come again} }, permit_mynetworks, reject",
}
DEBUG_LOG = {"log": {"format": "ecs", "level": "debug", "destination": "./smtplb.log"}}


async def two_postfix(lab: Lab, begin: Begin, **listener: object) -> tuple[list[Postfix], Smtplb]:
    servers = [await asyncio.to_thread(lab.start, Postfix(name, main_cf=MAIN_CF)) for name in ("one", "two")]
    balancer = Smtplb({"relays": pool(*servers)}, listener=listener, sections=DEBUG_LOG)
    return servers, await asyncio.to_thread(begin, balancer)


async def hear_out(client: Client) -> list[str]:
    """Every reply until the session ends."""
    heard = []
    while (reply := await client.reply()) != LOST:
        heard.append(reply)
    return heard


def rejects(servers: list[Postfix]) -> int:
    return sum(len(server.log_lines("NOQUEUE: reject: RCPT")) for server in servers)


async def assert_nobody_suffered(balancer: Smtplb) -> None:
    assert set((await asyncio.to_thread(balancer.states)).values()) == {"up"}
    assert balancer.records("backend-blamed") == []
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("250"), "others are served as ever"


def commands(how: str, domain: str) -> list[str]:
    bad = [f"RCPT TO:<u{number}@{domain}>" for number in range(WANTED)]
    if how == "new transactions":
        return [
            line for at in range(0, WANTED, 5) for line in ("RSET", "MAIL FROM:<a@a.test>", *bad[at : at + 5])
        ]
    return ["MAIL FROM:<a@a.test>", *bad]


@pytest.mark.parametrize("how", ["one by one", "in one segment", "new transactions"])
async def test_twenty_bad_recipients_end_the_session_however_they_are_said(
    lab: Lab, begin: Begin, how: str
) -> None:
    servers, balancer = await two_postfix(lab, begin)
    client = await Client.connect(balancer.port)
    assert (await client.say("EHLO client.test")).startswith("250")
    if how == "in one segment":
        client._writer.write("".join(line + "\r\n" for line in commands(how, "bad.test")).encode())
        heard = await hear_out(client)
    else:
        heard = []
        for line in commands(how, "bad.test"):
            heard.append(await client.say(line))
            if heard[-1].startswith("550") and Counter(reply[:3] for reply in heard)["550"] == HARD_LIMIT:
                break
        heard += await hear_out(client)
    client.close()
    counts = Counter(reply[:3] for reply in heard)
    assert counts["550"] == HARD_LIMIT
    assert heard[-1] == "421 4.7.0 Too many errors"
    assert set(counts) <= {"250", "550", "421"}
    assert rejects(servers) == HARD_LIMIT
    await assert_nobody_suffered(balancer)
    FIGURES.info("%s: %s, rejects in the logs: %d", how, dict(counts), rejects(servers))


@pytest.mark.parametrize("domain", ["bad.test", "grey.test"])
async def test_a_backend_that_has_had_enough_of_a_client_is_asked_once_more_and_its_word_passed_on(
    lab: Lab, begin: Begin, domain: str
) -> None:
    """With limits.errors above what backends allow, and for 4xx, which the listener does not count: 421 4.7.0 is an answer
    to what other clients did on that connection as well, so a fresh one is tried. Once for a transaction, and nobody is blamed.
    """
    servers, balancer = await two_postfix(lab, begin, limits={"errors": 1000})
    async with session(balancer.port) as client:
        heard = Counter(reply[:9] for reply in await client.ask(*commands("in one segment", domain)))
        assert (await client.say("RSET")).startswith("250"), "the session lives on"
    word = "550 5.1.1" if domain == "bad.test" else "450 4.2.0"
    assert heard[word] == 2 * HARD_LIMIT
    assert heard["451 4.7.0"] == WANTED - 2 * HARD_LIMIT
    assert sum(heard.values()) == WANTED + 1
    assert rejects(servers) == 2 * HARD_LIMIT
    assert min(rejects([server]) for server in servers) == 0, "no second backend was bothered with it"
    await assert_nobody_suffered(balancer)
