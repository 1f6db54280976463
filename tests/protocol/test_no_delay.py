"""No octet waits for another: the loop sets TCP_NODELAY at both ends, and we rely on it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tests.protocol.mta import Mta
from tests.protocol.stage import Stage, pool


def no_delay(end: Any) -> bool:
    transport: asyncio.Transport = end._transport
    sock = transport.get_extra_info("socket")
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


async def test_client_and_backend_are_sent_to_without_delay() -> None:
    async with Stage(pool(Mta("a"))) as stage:
        client = await stage.client()
        assert (await client.message()).startswith("250")
        (session,) = stage.listener.sessions
        (connection,) = stage.backend("a")._idle
        assert no_delay(session)
        assert no_delay(connection)
