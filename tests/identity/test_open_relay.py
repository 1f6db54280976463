"""A foreign client, a public listener, and a Postfix that relays for everybody on this host: never a relay.

Either the configuration is refused before the start, or we refuse the recipient, or Postfix does, which sees the client.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.e2e.balancer import Smtplb, call, pool
from tests.e2e.client import LOST
from tests.e2e.conftest import Begin
from tests.identity.parties import CLIENT, FOREIGN, OURS, Visitor, arrive, envelope, named, visit
from tests.lab import LabError, Postfix, free_port, is_listening
from tests.lab.fixtures import Lab

OWN, ELSEWHERE = "own.test", "elsewhere.test"
OWNER = f"user@{OWN}"
ABROAD = [f"someone@{ELSEWHERE}", f"someone%{ELSEWHERE}@{OWN}", f"@{OWN}:someone@{ELSEWHERE}"]
TRUSTING, BINDING = ["none", "xforward"], ["xclient", "proxy-v1", "proxy-v2"]
FRONT = {"proxy_protocol_from": [OURS]}


def relay(mode: str, *, identity: bool = True) -> Postfix:
    """mynetworks = 127.0.0.0/8, as of the lab."""
    return Postfix(
        xclient_hosts=OURS if identity else "",
        proxy_protocol=identity and mode.startswith("proxy"),
        main_cf=[f"relay_domains = {OWN}"],
    )


def public(server: Postfix, mode: str, **listener: Any) -> Smtplb:
    port = free_port()
    balancer = Smtplb(
        {"relays": pool(server, identity=mode)}, listener={"bind": f"0.0.0.0:{port}", **FRONT, **listener}
    )
    balancer.port = port
    return balancer


def sent_on(server: Postfix) -> set[str]:
    """Recipients of whom Postfix knows for anything but a refusal."""
    return {to for message in server.messages().values() for to, _, _ in message.deliveries}


def test_without_accept_it_is_an_error_before_the_start() -> None:
    """On loopback too, since a front brings clients from elsewhere."""
    pools = {
        mode: pool({"name": mode, "address": f"{OURS}:{free_port()}", "identity": mode}) for mode in TRUSTING
    }
    listeners = [
        {"name": f"{kind}-{mode}", "bind": f"{address}:{free_port()}", "to": mode, **FRONT}
        for kind, address in (("public", "0.0.0.0"), ("fronted", OURS))
        for mode in TRUSTING
    ]
    balancer = Smtplb(pools, sections={"listeners": listeners})
    try:
        with pytest.raises(LabError, match="ended at once with 1: ") as failed:
            balancer.start()
        assert ".accept: missing" in str(failed.value)
        assert not is_listening(balancer.admin_port)
        validated = call("validate", str(balancer.file))
        assert validated.returncode == 1
        for listener in listeners:
            assert f"listeners.{listener['name']}.accept: missing" in validated.stderr
    finally:
        balancer.close()


def test_one_trusting_backend_among_others_is_enough_for_the_error() -> None:
    entries = [
        {"name": mode, "address": f"{OURS}:{free_port()}", "identity": mode} for mode in [*BINDING, "none"]
    ]
    balancer = Smtplb({"relays": pool(*entries)}, listener=FRONT)
    try:
        with pytest.raises(LabError, match=r"listeners\.mx\.accept: missing"):
            balancer.start()
    finally:
        balancer.close()


@pytest.mark.parametrize("mode", TRUSTING)
async def test_with_accept_we_refuse_and_postfix_hears_of_no_foreign_recipient(
    lab: Lab, begin: Begin, mode: str
) -> None:
    server = await asyncio.to_thread(lab.start, relay(mode))
    accept = [{"recipient_domain": [OWN]}, {"client": ["loopback"]}]
    balancer = await asyncio.to_thread(begin, public(server, mode, accept=accept))
    async with visit(balancer.port, first=named(FOREIGN)) as client:
        replies = await envelope(client, [*ABROAD, OWNER])
        # A local part that names the next station is refused, too: to Postfix that is where it goes.
        assert all(reply.startswith("550 5.7.1 ") for reply in replies[:-1]), replies
        assert replies[-1].startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say("Subject: x\r\n\r\nhello\r\n.")).startswith("250")
    # The same words of a client of ours go out: nothing but its address made the difference.
    async with visit(balancer.port, first=named(CLIENT)) as client:
        assert (await client.send(recipient="ours@elsewhere.test")).startswith("250")
    await asyncio.to_thread(server.wait_accepted, 2)
    assert server.log_lines("someone") == []


@pytest.mark.parametrize("mode", BINDING)
async def test_a_binding_identity_needs_no_accept_since_postfix_sees_the_foreign_address(
    lab: Lab, begin: Begin, mode: str
) -> None:
    server = await asyncio.to_thread(lab.start, relay(mode))
    balancer = await asyncio.to_thread(begin, public(server, mode))
    async with visit(balancer.port, first=named(FOREIGN)) as client:
        replies = await envelope(client, [*ABROAD, OWNER])
        assert all(reply[:3] in ("454", "550", "554") for reply in replies[:-1]), replies
        assert replies[-1].startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say("Subject: x\r\n\r\nhello\r\n.")).startswith("250")
    rejected = server.log_lines("NOQUEUE: reject: RCPT") + server.log_lines(": reject: RCPT")
    assert rejected
    assert all(f"from unknown[{FOREIGN}]: " in line for line in rejected)
    assert any("Relay access denied" in line for line in rejected)
    # A client of mynetworks may: behind one of them no connection of another is used.
    async with visit(balancer.port, first=named(CLIENT)) as client:
        assert (await client.send(recipient="ours@elsewhere.test")).startswith("250")
    async with visit(balancer.port, first=named(FOREIGN)) as client:
        assert (await client.send(recipient=ABROAD[0]))[:3] in ("454", "554")
    await asyncio.to_thread(server.wait_accepted, 2)
    assert not any("someone" in recipient for recipient in sent_on(server))


@pytest.mark.parametrize("check", [{}, {"check": {"level": "off"}}], ids=["checked", "unchecked"])
async def test_a_postfix_that_was_not_told_of_the_identity_gets_nothing_it_could_relay(
    lab: Lab, begin: Begin, check: dict[str, Any]
) -> None:
    server = await asyncio.to_thread(lab.start, relay("none", identity=False))
    entries = [{"name": mode, "address": server.address, "identity": mode} for mode in BINDING]
    balancer = Smtplb({"relays": pool(*entries, **check)}, listener=FRONT)
    await asyncio.to_thread(begin, balancer)
    for _ in range(2 * len(BINDING)):
        client = await arrive(balancer.port, first=named(FOREIGN))
        if client.greeting.startswith("220"):
            assert (await client.say("EHLO foreign.test")).startswith("250")
            assert (await client.send(recipient=ABROAD[0])).startswith("451 4.")
        else:
            assert client.greeting.startswith("421 4.3.2 ")
        client.close()
    assert server.log_lines(": client=") == []
    assert server.log_lines("someone") == []


@pytest.mark.parametrize("mode", ["xclient", "proxy-v1"])
async def test_no_client_can_give_itself_an_address_of_ours(lab: Lab, begin: Begin, mode: str) -> None:
    server = await asyncio.to_thread(lab.start, relay(mode))
    balancer = await asyncio.to_thread(begin, public(server, mode))

    async def is_not_relayed(client: Visitor) -> None:
        reply = await client.send(recipient=ABROAD[0])
        assert reply[:1] in ("4", "5", LOST), reply

    # XCLIENT, XFORWARD and a second header, inside a session.
    for lie in (f"XCLIENT ADDR={OURS} PORT=1", f"XFORWARD ADDR={OURS}", named(OURS).decode().strip()):
        async with visit(balancer.port, first=named(FOREIGN)) as client:
            assert (await client.say(lie))[:1] in ("4", "5")
            await is_not_relayed(client)
    # In the name: what is not lawful there never gets behind us.
    for hello in (f"x\rXCLIENT ADDR={OURS}", f"x ADDR={OURS} PORT=1", f"[{OURS}]"):
        client = await arrive(balancer.port, first=named(FOREIGN))
        await client.say(f"EHLO {hello}")
        await is_not_relayed(client)
        client.close()
    # Headers that name nobody: we do not lend such a client our own address.
    for nobody in (b"PROXY UNKNOWN\r\n", b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"):
        client = await arrive(balancer.port, first=nobody)
        await client.say("EHLO x.test")
        await is_not_relayed(client)
        client.close()
    # A header of one who is no front.
    client = await arrive(balancer.port, source=CLIENT, first=named("127.9.9.9"))
    assert client.greeting.startswith("220")
    assert (await client.reply())[:1] in ("4", "5")
    client.close()
    assert not any("someone" in recipient for recipient in sent_on(server))
    assert server.accepted() == []
    assert not [line for line in server.log_lines() if "127.9.9.9" in line]
