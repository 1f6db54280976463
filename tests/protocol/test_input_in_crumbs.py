"""Input that comes one octet at a time takes no more memory, writes and chunks than input in large pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smtplb.settings import FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.client import settle
from tests.protocol.host import Hosted
from tests.protocol.mta import FULL, Mta
from tests.protocol.stage import pool
from tests.protocol.wire import until

pytestmark = pytest.mark.measured


async def test_input_in_crumbs_costs_no_more(record_property: Callable[[str, object], None]) -> None:
    """TLS records of one octet: each must not become an object, a write or a chunk of its own."""
    a = Mta("a", *FULL)
    tls = FrontTlsSettings(FrontTlsMode.IMPLICIT, (certs.pair("mx.test"),))
    async with Hosted(pool(a), listener={"tls": tls}) as hosted:
        client = await hosted.connect()
        await client.secure(certs.client(), "mx.test")
        await client.greeted()
        await client.envelope()
        before = await hosted.rss_kib()
        size = 100_000
        client.send_raw(client.sealed(b"BDAT %d LAST\r\n" % (size + 1)))
        for _ in range(10):
            client.send_raw(client.sealed(b"x" * (size // 10), 1))
            await settle()
        await until(lambda: len(a.sessions[0]._chunks or b"") > size // 2)
        used = await hosted.rss_kib() - before
        record_property("crumbs_kib", used)
        assert used < 8000
        client.send(b"\n")
        assert (await client.reply()).startswith("250")
        assert len(a.sessions[0].segments) < 2000
