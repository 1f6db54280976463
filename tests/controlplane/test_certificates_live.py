"""A certificate that is renewed under a running balancer: the next session sees it, sessions under way go on."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from smtplb.controlplane import certificate_watch
from smtplb.controlplane.supervisor import Supervisor
from smtplb.controlplane.x509 import not_after
from smtplb.observe.events import Event, Notice
from smtplb.settings import (
    Address,
    CertificateSettings,
    FrontTlsMode,
    FrontTlsSettings,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)
from tests.controlplane.test_with_worker import Mta
from tests.controlplane.things import backend, listener, pool

AUTHORITY = trustme.CA()
SOON = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
LATER = dt.datetime(2041, 1, 1, tzinfo=dt.UTC)


def issue(folder: Path, ends: dt.datetime) -> None:
    leaf = AUTHORITY.issue_cert("lb1.test", not_after=ends)
    (folder / "mx.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    (folder / "mx.key").write_bytes(leaf.private_key_pem.bytes())
    (folder / "mx.key").chmod(0o600)


class Client:
    """One that says STARTTLS and verifies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def secured(cls, address: Address) -> Client:
        client = cls(*await asyncio.open_connection(address.host, address.port))
        await client.reply()
        assert "STARTTLS" in await client.say("EHLO c.test")
        assert (await client.say("STARTTLS")).startswith("220")
        context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
        await client._writer.start_tls(context, server_hostname="lb1.test")
        return client

    @property
    def certificate_ends(self) -> float:
        engine: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        der = engine.getpeercert(binary_form=True)
        assert der is not None
        return not_after(der)

    async def reply(self) -> str:
        text = ""
        async with asyncio.timeout(5):
            while not text or text.splitlines()[-1][3:4] == "-":
                line = await self._reader.readline()
                if not line:
                    raise ConnectionResetError
                text += line.decode()
        return text

    async def say(self, line: str) -> str:
        self._writer.write(line.encode() + b"\r\n")
        return await self.reply()

    def close(self) -> None:
        self._writer.transport.abort()


class Running:
    def __init__(self, traffic: TrafficSettings) -> None:
        self.notices: list[Notice] = []
        self.told = asyncio.Event()
        self.supervisor = Supervisor(
            Settings(traffic, shutdown=ShutdownSettings(delay_s=0, drain_s=0)), emit=self._emit
        )

    def _emit(self, event: Event) -> None:
        if isinstance(event, Notice) and event.what == "certificate":
            self.notices.append(event)
            self.told.set()

    async def notice(self) -> Notice:
        async with asyncio.timeout(10):
            await self.told.wait()
        self.told.clear()
        return self.notices.pop()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Running]:
    mta = Mta()
    await mta.up()
    pair = CertificateSettings(f"{folder}/mx.pem", f"{folder}/mx.key")
    mx = replace(listener("mx", "p"), tls=FrontTlsSettings(FrontTlsMode.STARTTLS, (pair,)))
    it = Running(TrafficSettings("lb1.test", (mx,), (pool("p", backend("p", "a", port=mta.port)),)))
    await it.supervisor.start()
    try:
        yield it
    finally:
        await it.supervisor.stop(0)
        await mta.down()


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_watch, "LOOK_S", 0.1)


async def test_a_renewed_certificate_is_shown_to_the_next_client(tmp_path: Path) -> None:
    issue(tmp_path, SOON)
    async with running(tmp_path) as it:
        address = it.supervisor.bound["mx"][0]
        old = await Client.secured(address)
        assert old.certificate_ends == SOON.timestamp()
        issue(tmp_path, LATER)
        assert "is read again" in (await it.notice()).text
        new = await Client.secured(address)
        assert new.certificate_ends == LATER.timestamp()
        assert (await old.say("EHLO c.test")).startswith("250")
        (view,) = (await it.supervisor.listeners())[0].certificates
        assert (view.expires, view.problem) == (LATER.timestamp(), "")
        old.close()
        new.close()


async def test_a_broken_one_leaves_the_old_one_in_use_and_status_says_so(tmp_path: Path) -> None:
    issue(tmp_path, SOON)
    async with running(tmp_path) as it:
        (tmp_path / "mx.key").write_bytes(b"junk")
        assert (await it.notice()).level == "error"
        client = await Client.secured(it.supervisor.bound["mx"][0])
        assert client.certificate_ends == SOON.timestamp()
        status = await it.supervisor.status()
        assert [(each.where, each.anchor, each.severity) for each in status.problems] == [
            ("mx", "certificate", "degraded")
        ]
        client.close()
