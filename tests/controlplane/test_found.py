"""Faults that were found while checks learned about TLS and identity; each was a failing test first."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from smtplb.dataplane.certificates import FrontCertificates, client_context, reload_client_contexts
from smtplb.dataplane.connection import Connection, Failure
from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.outbox import Outbox
from smtplb.policy.outcome import Reason
from smtplb.settings import (
    BackTlsMode,
    BackTlsSettings,
    CertificateSettings,
    FrontTlsMode,
    FrontTlsSettings,
    IdentityMode,
    TrafficSettings,
)
from tests.controlplane.test_prober import Conversation, Script
from tests.controlplane.test_prober_identity import ca_file, required, server_context, starttls
from tests.controlplane.test_registry import MX1, MX2, opened
from tests.controlplane.test_with_worker import CHECK, Lab
from tests.controlplane.things import backend, listener, pool

OTHER_AUTHORITY = trustme.CA()


class Opened:
    """A connection to a backend, as its owner sees it: how coming up ended, and what the backend had heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.connection: Connection
        self.failure: Failure | None = None
        self._told = asyncio.Event()
        self._served = asyncio.Event()

    @property
    def reason(self) -> Reason | None:
        """Why it did not come up; None: it did."""
        return self.failure.reason if self.failure is not None else None

    def connection_ready(self, connection: Connection) -> None:
        self._told.set()

    def connection_failed(self, connection: Connection, failure: Failure) -> None:
        self.failure = failure
        self._told.set()

    def connection_cleared(self, connection: Connection) -> None:
        raise AssertionError("nobody leased it")

    def connection_expired(self, connection: Connection) -> None:
        raise AssertionError("it was not idle for so long")

    def connection_closed(self, connection: Connection) -> None:
        pass

    async def serve(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Conversation(reader, writer, self.heard, asyncio.Event()))
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._served.set()

    async def told(self) -> None:
        async with asyncio.timeout(10):
            await self._told.wait()

    async def served(self) -> None:
        """The backend's side is over, too."""
        async with asyncio.timeout(10):
            await self._served.wait()


async def opening(
    script: Script, *, tls: BackTlsSettings | None = None, identity: IdentityMode = IdentityMode.NONE
) -> Opened:
    """What came of a connection to a backend that follows `script`."""
    it = Opened()
    server = await asyncio.start_server(lambda r, w: it.serve(script, r, w), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    deadlines = Deadlines.of(loop)
    settings = backend("p", "a", port=port, tls=tls, identity=identity)
    it.connection = Connection(
        settings, hello=b"lb1.test", deadlines=deadlines, outbox=Outbox(loop.call_soon), owner=it
    )
    it.connection.open(loop)
    try:
        await it.told()
        if it.failure is None:
            it.connection.abort()
        await it.served()
    finally:
        it.connection.abort()
        deadlines.close()
        server.close()
        await server.wait_closed()
    return it


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "one by one"])
async def test_a_backend_that_reads_proxy_v1_as_a_command_is_not_ready(together: bool) -> None:
    async def script(client: Conversation) -> None:
        await client.say("220 mx1.test\r\n")
        assert (await client.hear()).startswith("PROXY ")
        assert (await client.hear()).startswith("EHLO ")
        if together:
            await client.say("502 what?\r\n250-mx1.test\r\n250 PIPELINING\r\n")
        else:
            await client.say("502 what?\r\n")
            if await client.hear() == "QUIT":
                return
            await client.say("250-mx1.test\r\n250 PIPELINING\r\n")
        await client.answer_quit()

    assert (await opening(script, identity=IdentityMode.PROXY_V1)).reason is Reason.IDENTITY


async def test_a_backend_whose_xclient_lacks_addr_is_not_ready() -> None:
    async def script(client: Conversation) -> None:
        await client.say("220 mx1.test\r\n")
        await client.hear()
        await client.say("250-mx1.test\r\n250 XCLIENT NAME PROTO\r\n")
        await client.hear()

    assert (await opening(script, identity=IdentityMode.XCLIENT)).reason is Reason.IDENTITY


async def test_a_connection_closed_in_the_handshake_is_a_tls_failure() -> None:
    async def script(client: Conversation) -> None:
        await client.say("220 mx1.test\r\n")
        await client.hear()
        await client.say("250-mx1.test\r\n250 STARTTLS\r\n")
        await client.hear()
        await client.say("220 go ahead\r\n")
        await client.octets(10)

    opened = await opening(script, tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC))
    assert opened.reason is Reason.TLS


async def test_a_failed_verification_says_what_failed(tmp_path: Path) -> None:
    theirs = server_context(OTHER_AUTHORITY)
    opened = await opening(starttls(theirs), tls=required(tmp_path))
    assert opened.failure is not None
    assert opened.reason is Reason.TLS
    assert b"unable to get local issuer certificate" in opened.failure.detail


async def test_where_starttls_is_required_and_missing_the_backend_hears_quit() -> None:
    async def script(client: Conversation) -> None:
        await client.say("220 mx1.test\r\n")
        await client.hear()
        await client.say("250 mx1.test\r\n")
        await client.answer_quit()

    opened = await opening(script, tls=BackTlsSettings(BackTlsMode.REQUIRED))
    assert opened.reason is Reason.TLS
    assert opened.heard == ["EHLO lb1.test", "QUIT"]


async def test_the_greeting_is_known_of_a_connection_that_was_lost_behind_it() -> None:
    async def script(client: Conversation) -> None:
        await client.say("220 mx1.test\r\n")
        await client.hear()

    opened = await opening(script)
    assert opened.reason is Reason.LOST
    assert opened.connection.greeting is not None
    assert opened.connection.greeting.code == 220


def issue(authority: trustme.CA, folder: Path, name: str) -> CertificateSettings:
    leaf = authority.issue_cert(f"{name}.test")
    pair = CertificateSettings(f"{folder}/{name}.pem", f"{folder}/{name}.key")
    Path(pair.certificate).write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(pair.key)
    return pair


def names_shown(context: ssl.SSLContext, authority: trustme.CA, asked: str) -> list[str]:
    """The names in the certificate that a client sees who asks for one name and trusts the authority."""
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=asked)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):  # more turns than any handshake takes
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    certificate = client.getpeercert()
    assert certificate is not None
    return [name for _, name in cast("tuple[tuple[str, str], ...]", certificate["subjectAltName"])]


def test_a_broken_first_certificate_leaves_the_one_before_in_use(tmp_path: Path) -> None:
    authority = trustme.CA()
    pairs = (issue(authority, tmp_path, "a"), issue(authority, tmp_path, "b"))
    certificates = FrontCertificates(FrontTlsSettings(FrontTlsMode.STARTTLS, pairs))
    Path(pairs[0].key).write_text("junk")
    certificates.load()
    assert len(certificates.problems) == 1
    assert certificates.context is not None
    assert names_shown(certificates.context, authority, "a.test") == ["a.test"]
    assert names_shown(certificates.context, authority, "b.test") == ["b.test"]


def test_a_ca_file_that_breaks_leaves_the_one_before_in_use(tmp_path: Path) -> None:
    settings = BackTlsSettings(BackTlsMode.REQUIRED, ca=ca_file(tmp_path))
    before = client_context(settings)
    (tmp_path / "ca.pem").write_text("junk")
    assert [problem for problem in reload_client_contexts() if str(tmp_path) in problem]
    assert client_context(settings) is before


def test_an_encrypted_key_asks_nobody_for_its_passphrase(tmp_path: Path) -> None:
    pair = issue(trustme.CA(), tmp_path, "a")
    key = load_pem_private_key(Path(pair.key).read_bytes(), password=None)
    Path(pair.key).write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    program = (
        "import sys\n"
        "from smtplb.dataplane.certificates import FrontCertificates\n"
        "from smtplb.settings import CertificateSettings, FrontTlsMode, FrontTlsSettings\n"
        "pair = CertificateSettings(*sys.argv[1:])\n"
        "print(len(FrontCertificates(FrontTlsSettings(FrontTlsMode.STARTTLS, (pair,))).problems))\n"
    )
    # Without a terminal OpenSSL asks on stderr.
    done = subprocess.run(
        [sys.executable, "-c", program, pair.certificate, pair.key],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_failback_waits_after_an_identity_came_back() -> None:
    desk = opened()
    desk.lacks_identity(MX1)
    desk.lacks_identity(MX2)
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}
    desk.go(5)
    desk.offers(MX1)
    desk.offers(MX2)
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}, "the delay of 60 s is not over"


@asynccontextmanager
async def before_one_backend(port: int) -> AsyncIterator[Lab]:
    """A balancer whose only backend is there, once checks have found it down."""
    traffic = TrafficSettings(
        "lb1.test", (listener("mx", "p"),), (pool("p", backend("p", "a", port=port, check=CHECK)),)
    )
    it = Lab(traffic, drain_s=5.0)
    await it.supervisor.start()
    try:
        await it.until(lambda: it.state("p", "a") == "down")
        yield it
        assert it.bugs() == []
    finally:
        await it.supervisor.stop(0)


async def test_a_listener_greets_while_its_only_backend_is_down_but_takes_connections() -> None:
    """It is tried all the same: one that only checks find wanting may take the mail."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx1.test\r\n")
        while line := await reader.readline():
            writer.write(b"221 bye\r\n" if line.startswith(b"QUIT") else b"550 5.7.1 not you\r\n")
            if line.startswith(b"QUIT"):
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with before_one_backend(server.sockets[0].getsockname()[1]) as it:
            client = await it.client()
            assert (await client.reply()).startswith("220 ")
            client.close()
    finally:
        server.close()
        await server.wait_closed()


async def test_a_listener_refuses_with_421_while_nobody_listens_behind_it() -> None:
    """The client does better to try its next MX at once."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with before_one_backend(port) as it:
        client = await it.client()
        assert (await client.reply()).startswith("421 4.3.2 ")
        client.close()
