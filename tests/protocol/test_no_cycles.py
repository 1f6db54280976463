"""What a session and a connection leave on real sockets, in clear and with TLS at both ends: nothing that waits for the collector.

The buffers of a TLS engine are tens of KiB; left in a cycle they stay until the collector comes by, and memory grows by the rate.
"""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest

from smtplb.dataplane.attempt import Attempt
from smtplb.dataplane.connection import Connection
from smtplb.dataplane.course import Course
from smtplb.dataplane.dialogue import Dialogue
from smtplb.dataplane.opening import Opening
from smtplb.dataplane.relay import Relay
from smtplb.dataplane.session import Session
from smtplb.dataplane.tls import TlsStream
from smtplb.settings import BackTlsMode, BackTlsSettings, ConnectionSettings, FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

KINDS = (Attempt, Connection, Course, Dialogue, Opening, Relay, Session, TlsStream)
MX = "mx.test"
ROUNDS = 4


def alive() -> Counter[str]:
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, KINDS))


async def one_session(stage: Stage, how: str, *, secured: bool) -> None:
    client = await stage.client()
    if secured:
        await client.starttls(certs.client(), MX)
        await client.ask("EHLO c.test")
    assert (await client.message()).startswith("250")
    if how == "quit":
        await client.leave()
    else:
        assert client.transport is not None
        client.transport.abort()
    stage.clients.remove(client)
    await until(lambda: not stage.listener.sessions, "the session is over")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["quit", "cut"])
@pytest.mark.parametrize("secured", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
async def test_sessions_and_connections_go_with_their_last_reference(
    secured: bool, how: str, kept: bool
) -> None:
    options: dict[str, Any] = {} if kept else {"connections": ConnectionSettings(idle=0)}
    a = Mta("a", *OFFERS, "STARTTLS", tls=certs.server()) if secured else Mta("a")
    if secured:
        options["tls"] = BackTlsSettings(BackTlsMode.REQUIRED, ca=certs.authority_file("good"))
    front = {"tls": FrontTlsSettings(FrontTlsMode.STARTTLS, (certs.pair(MX),))} if secured else {}
    async with Stage(pool(a, **options), listener=front) as stage:
        await one_session(stage, how, secured=secured)
        before = alive()
        for _ in range(ROUNDS):
            await one_session(stage, how, secured=secured)
        await until(lambda: kept or not a.open, "connections are over")
        assert alive() == before


@pytest.mark.usefixtures("no_collector")
async def test_handshakes_that_fail_leave_nothing() -> None:
    """In front, where the client speaks no TLS, and behind, where the certificate is of nobody we know."""
    a = Mta("a", *OFFERS, "STARTTLS", tls=certs.server())
    behind = BackTlsSettings(BackTlsMode.REQUIRED, ca=certs.authority_file("other"))
    front = FrontTlsSettings(FrontTlsMode.STARTTLS, (certs.pair(MX),))

    async def both(stage: Stage) -> None:
        client = await stage.client()
        assert (await client.message()).startswith("451")
        assert (await client.ask("STARTTLS")).startswith("220")
        client.send(b"this is no ClientHello\r\n" * 10)
        await client.gone()
        assert client.transport is not None
        client.transport.abort()
        await until(lambda: not stage.listener.sessions, "the session is over")
        stage.clients.remove(client)

    async with Stage(pool(a, tls=behind), listener={"tls": front}) as stage:
        await both(stage)
        before = alive()
        for _ in range(ROUNDS):
            await both(stage)
        await until(lambda: not a.open, "connections are over")
        assert alive() == before
