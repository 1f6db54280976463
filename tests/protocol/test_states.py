"""Every command in every state that TLS, AUTH, HELO and a trusted front make; the others are in tests/dataplane/test_commands.py.

Both sides are enumerated: a verb or a state without an expectation fails here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import pytest

from smtplb.settings import AuthMode, FrontTlsMode, FrontTlsSettings
from smtplb.smtp.verbs import VERBS
from tests.protocol import certificates
from tests.protocol.client import Client
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool

LINES = {
    "HELO": "HELO c.test",
    "EHLO": "EHLO c.test",
    "MAIL": "MAIL FROM:<s@a.test>",
    "RCPT": "RCPT TO:<r@b.test>",
    "DATA": "DATA",
    "BDAT": "BDAT 4 LAST\r\nhi",  # its octets: hi CRLF
    "STARTTLS": "STARTTLS",
    "AUTH": "AUTH PLAIN AGEAYg==",
    "XCLIENT": "XCLIENT ADDR=192.0.2.9",
    "RSET": "RSET",
    "NOOP": "NOOP",
    "VRFY": "VRFY someone",
    "HELP": "HELP",
    "QUIT": "QUIT",
}


async def secured(client: Client) -> None:
    await client.starttls(certificates.client(), "mx.test")


async def clear(client: Client) -> None:
    """Between transactions, where TLS is required and was not asked for."""


async def after_handshake(client: Client) -> None:
    await secured(client)


async def in_tls(client: Client) -> None:
    await secured(client)
    await client.keywords()


async def in_tls_mail(client: Client) -> None:
    await in_tls(client)
    assert (await client.ask(LINES["MAIL"])).startswith("250")


async def in_tls_rcpt(client: Client) -> None:
    await in_tls_mail(client)
    assert (await client.ask(LINES["RCPT"])).startswith("250")


async def after_helo(client: Client) -> None:
    await secured(client)
    assert (await client.ask("HELO c.test")).startswith("250")


async def in_exchange(client: Client) -> None:
    await in_tls(client)
    assert (await client.ask("AUTH LOGIN")).startswith("334")


async def after_cancel(client: Client) -> None:
    await in_exchange(client)
    assert (await client.ask("*")).startswith("501")


async def authenticated(client: Client) -> None:
    await in_tls(client)
    assert (await client.ask(LINES["AUTH"])).startswith("235")


async def authenticated_rcpt(client: Client) -> None:
    await authenticated(client)
    assert [reply[:3] for reply in await client.envelope()] == ["250", "250"]


async def front(client: Client) -> None:
    """One that may say XCLIENT, and has not."""
    await in_tls(client)


async def front_mail(client: Client) -> None:
    await in_tls_mail(client)


async def after_xclient(client: Client) -> None:
    await in_tls(client)
    assert (await client.ask(LINES["XCLIENT"])).startswith("220")


STATES: dict[str, Callable[[Client], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        clear, after_handshake, in_tls, in_tls_mail, in_tls_rcpt, after_helo, in_exchange, after_cancel, authenticated,
        authenticated_rcpt, front, front_mail, after_xclient,
    )
}  # fmt: skip
FRONTS = {"front", "front_mail", "after_xclient"}

ORDER, TLS_FIRST, RESPONSE, NO_RESPONSE = "503 5.5.1", "530 5.7.0", "334 ", "501 5.5.2"
ANYWHERE = {
    "HELO": "250 lb.test", "EHLO": "250-lb.test", "RSET": "250 2.0.0", "NOOP": "250 2.0.0", "VRFY": "252 2.5.0",
    "HELP": "214 2.0.0", "QUIT": "221 2.0.0",
}  # fmt: skip
# Which of the rest is in order there, and what else is not as anywhere.
READY = {"MAIL": "250 2.1.0", "AUTH": "235 2.7.0"}
UNTRUSTED = {"XCLIENT": "550 5.7.0"}
IN_MAIL, IN_RCPT = {"RCPT": "250 2.1.5"}, {"RCPT": "250 2.1.5", "DATA": "354", "BDAT": "250 2.0.0"}
EXPECTED: dict[str, dict[str, str]] = {
    # "NOOP" is base64: in an exchange every line is a response, whatever it looks like (RFC 4954 4).
    "clear": dict.fromkeys(("MAIL", "RCPT", "DATA", "BDAT", "AUTH", "VRFY", "HELP"), TLS_FIRST)
    | UNTRUSTED | {"STARTTLS": "220 2.0.0"},
    "after_handshake": UNTRUSTED,
    "in_tls": READY | UNTRUSTED,
    "in_tls_mail": IN_MAIL,
    "in_tls_rcpt": IN_RCPT,
    "after_helo": READY | UNTRUSTED,
    "in_exchange": dict.fromkeys(("DATA", "STARTTLS", "RSET", "NOOP", "HELP", "QUIT"), RESPONSE)
    | dict.fromkeys(("HELO", "EHLO", "MAIL", "RCPT", "BDAT", "AUTH", "XCLIENT", "VRFY"), NO_RESPONSE),
    "after_cancel": READY | UNTRUSTED,
    "authenticated": {"MAIL": "250 2.1.0"} | UNTRUSTED,
    "authenticated_rcpt": IN_RCPT,
    "front": READY | {"XCLIENT": "220 lb.test"},
    "front_mail": IN_MAIL,
    "after_xclient": {"XCLIENT": "220 lb.test"},
}  # fmt: skip


def stage_for(state: str) -> tuple[Stage, Mta]:
    a = Mta("a", *OFFERS, "AUTH PLAIN LOGIN")
    a.challenges = {"PLAIN": [""], "LOGIN": ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"]}
    listener: dict[str, Any] = {
        "auth": AuthMode.RELAY,
        "tls": FrontTlsSettings(FrontTlsMode.STARTTLS_REQUIRED, (certificates.pair("mx.test"),)),
        "xclient_from": (ip_network("127.0.0.0/8"),) if state in FRONTS else (),
    }
    return Stage(pool(a), listener=listener), a


async def in_step(client: Client, a: Mta, state: str) -> None:
    """Whatever was before: a message with the replies that belong to it."""
    if state == "clear":
        assert (await client.ask("NOOP")).startswith("250")
        return
    await client.keywords()
    taken = len(a.taken)
    assert (await client.message("<in.step@b.test>")).startswith("250 2.0.0")
    assert len(a.taken) == taken + 1
    assert "in.step@b.test" in a.taken[-1].rcpts[0]


def test_the_table_is_whole() -> None:
    assert {verb.decode() for verb in VERBS} == set(LINES)
    assert set(EXPECTED) == set(STATES)
    assert set(ANYWHERE) | {"MAIL", "RCPT", "DATA", "BDAT", "STARTTLS", "AUTH", "XCLIENT"} == set(LINES)


@pytest.mark.parametrize("verb", LINES)
@pytest.mark.parametrize("state", STATES)
async def test_command_in_state(state: str, verb: str) -> None:
    stage, a = stage_for(state)
    async with stage:
        client = await stage.client()
        await STATES[state](client)
        expected = EXPECTED[state].get(verb, ANYWHERE.get(verb, ORDER))
        reply = await client.ask(LINES[verb])
        assert reply.startswith(expected), reply
        if state == "in_exchange":
            if expected == RESPONSE:
                assert a.auth_lines == [LINES[verb]]
                assert (await client.ask("*")).startswith("501")
            elif verb == "BDAT":
                assert (await client.reply()).startswith("500 5.5.2"), "no chunk was announced"
        elif verb == "QUIT":
            await client.nothing_more()
            return
        elif verb == "STARTTLS" and expected.startswith("220"):
            await client.secure(certificates.client(), "mx.test")
            state = "in_tls"
        elif expected == "354":
            client.send(b"hi\r\n.\r\n")
            assert (await client.reply()).startswith("250 2.0.0")
        await in_step(client, a, state)
