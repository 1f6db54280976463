"""The log of Postfix names the client, not us: its address, its name and its HELO."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.balancer import Smtplb, pool
from tests.e2e.client import Client, new_message_id
from tests.e2e.conftest import Begin
from tests.identity.parties import CLIENT, OURS, visit
from tests.lab import Postfix, wait_until
from tests.lab.fixtures import Lab

NOTHING: Mapping[str, str] = {}
MODES = ["xforward", "xclient", "proxy-v1", "proxy-v2"]
# cleanup logs this header with all that it was told of the client: client, protocol and HELO.
LOG_THE_CLIENT = {
    "header_checks": "regexp:{ { /^Message-ID:/ INFO } }",
    "relay_domains": "b.test",  # also for clients that are not of mynetworks
}
NOT_YOU = f"check_client_access inline:{{ {{ {CLIENT} = 554 5.7.1 not you }} }}"
INFO = re.compile(
    r"info: header Message-ID: .* from (?P<client>\S+); .* proto=(?P<proto>\S+) helo=<(?P<helo>\S+)>"
)


def postfix(mode: str, main_cf: Mapping[str, str]) -> Postfix:
    return Postfix(
        xclient_hosts="127.0.0.0/8",
        proxy_protocol=mode.startswith("proxy"),
        main_cf={**LOG_THE_CLIENT, **main_cf},
    )


async def balanced(
    lab: Lab, begin: Begin, mode: str, *, main_cf: Mapping[str, str] = NOTHING, **listener: Any
) -> tuple[Smtplb, Postfix]:
    server = await asyncio.to_thread(lab.start, postfix(mode, main_cf))
    balancer = Smtplb({"relays": pool(server, identity=mode)}, listener=listener)
    return await asyncio.to_thread(begin, balancer), server


async def send(client: Client, server: Postfix) -> tuple[str, str, str]:
    """The client of one message as cleanup logs it: name and address, protocol, HELO."""
    message_id = new_message_id()
    assert (await client.send(message_id)).startswith("250")
    logged = lambda: any(message_id in line for line in server.log_lines("info: header"))  # noqa: E731
    await asyncio.to_thread(wait_until, logged, "the header is logged")
    (line,) = (line for line in server.log_lines("info: header") if message_id in line)
    match = INFO.search(line)
    assert match, line
    return match["client"], match["proto"], match["helo"]


def arrivals(server: Postfix) -> list[str]:
    """Lines of smtpd, from their `client=` on."""
    return [line.partition(": client=")[2] for line in server.log_lines(": client=")]


@pytest.mark.parametrize("mode", MODES)
async def test_the_log_shows_address_and_helo_of_each_client(lab: Lab, begin: Begin, mode: str) -> None:
    """The name is unknown: nobody here asks a name server."""
    balancer, server = await balanced(lab, begin, mode)
    async with (
        visit(balancer.port, source=CLIENT, hello="one.client.test") as one,
        visit(balancer.port, source="127.6.7.8", hello="two.client.test") as two,
    ):
        for _ in range(2):  # in turn: under xforward over the same connection
            assert await send(one, server) == (f"unknown[{CLIENT}]", "ESMTP", "one.client.test")
            assert await send(two, server) == ("unknown[127.6.7.8]", "ESMTP", "two.client.test")
        for client in (one, two):
            assert (await client.quit()).startswith("221")
    clients = arrivals(server)
    assert len(clients) == 4
    if mode == "xforward":
        assert all(
            re.fullmatch(r"\S+\[127.0.0.1\], orig_queue_id=\S+, orig_client=\S+", line) for line in clients
        )
        clients = [line.partition("orig_client=")[2] for line in clients]
    assert clients == [f"unknown[{CLIENT}]", "unknown[127.6.7.8]"] * 2
    assert server.log_lines("warning") == []


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_trusted_front_says_of_its_client_is_what_postfix_logs(
    lab: Lab, begin: Begin, mode: str
) -> None:
    """A PROXY header has no place for a name. What XCLIENT told stands, whatever the front says in EHLO."""
    balancer, server = await balanced(
        lab, begin, mode, xclient_from=[OURS], accept=[{"recipient_domain": ["b.test"]}]
    )
    async with visit(balancer.port, hello="front.test") as front:
        told = await front.say("XCLIENT NAME=mail.sender.test ADDR=192.0.2.7 PORT=1025 HELO=told.test")
        assert told.startswith("220")
        assert (await front.say("EHLO front.test")).startswith("250")
        name = "unknown" if mode.startswith("proxy") else "mail.sender.test"
        assert await send(front, server) == (f"{name}[192.0.2.7]", "ESMTP", "told.test")
    (client,) = arrivals(server)
    assert client.endswith(f"{name}[192.0.2.7]")
    assert server.log_lines("warning") == []


@pytest.mark.parametrize("mode", ["xclient", "proxy-v2"])
async def test_refusals_are_of_the_client_and_logged_with_its_name_address_and_helo(
    lab: Lab, begin: Begin, mode: str
) -> None:
    balancer, server = await balanced(
        lab, begin, mode, main_cf={"smtpd_client_restrictions": NOT_YOU, "smtpd_delay_reject": "yes"}
    )
    async with visit(balancer.port, source=CLIENT) as client:
        reply = await client.send()
        assert reply.startswith("554 5.7.1 ")
        assert "not you" in reply
    async with visit(balancer.port) as client:
        assert (await client.send()).startswith("250")
    (line,) = server.log_lines("NOQUEUE: reject: RCPT")
    assert f"from unknown[{CLIENT}]: 554 5.7.1" in line
    assert line.endswith("proto=ESMTP helo=<mail.client.test>")
