"""What a TLS session costs while it idles: measured in a process that holds nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from smtplb.settings import FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.client import Client
from tests.protocol.host import Hosted
from tests.protocol.mta import Mta
from tests.protocol.stage import pool

SESSIONS = 300
BODY = b"Subject: x\r\n\r\n" + (b"x" * 78 + b"\r\n") * 1500  # 120 KB
AT_REST_KIB = 24
AFTER_A_MESSAGE_KIB = 48


@pytest.mark.measured
async def test_an_idle_tls_session_stays_small(record_property: Callable[[str, object], None]) -> None:
    a = Mta("a")
    tls = FrontTlsSettings(FrontTlsMode.STARTTLS, (certs.pair("mx.test"),))
    listener = {"tls": tls, "limits": {"sessions": 2 * SESSIONS}}
    async with Hosted(pool(a), listener=listener) as hosted:

        async def session() -> Client:
            client = await (await hosted.connect()).greeted()
            await client.starttls(certs.client(), "mx.test")
            await client.ask("EHLO x")
            return client

        for client in [await session() for _ in range(20)]:  # what is made once is made
            assert (await client.message(body=BODY)).startswith("250")
            await client.leave()
        before = await hosted.rss_kib()
        clients = [await session() for _ in range(SESSIONS)]
        idle = (await hosted.rss_kib() - before) / SESSIONS
        for client in clients:
            assert (await client.message(body=BODY)).startswith("250")
        used = (await hosted.rss_kib() - before) / SESSIONS
        print(f"\nTLS session: {idle:.1f} KiB after the handshake, {used:.1f} KiB after a message of 120 KB")  # noqa: T201
        record_property("idle_kib", idle)
        record_property("used_kib", used)
        assert idle <= AT_REST_KIB
        assert used <= AFTER_A_MESSAGE_KIB
        assert len(a.taken) == SESSIONS + 20
        for client in clients:
            client.reset()
        async with asyncio.timeout(10):
            while await hosted.sessions():
                pass
