"""Faults that were found while checks learned about TLS and identity; each was a failing test first."""

from __future__ import annotations

import asyncio
import ssl

import trustme

from smtplb.dataplane.certificates import FrontCertificates, client_context, reload_client_contexts
from smtplb.dataplane.connection import Connection
from smtplb.dataplane.deadlines import Deadlines
from smtplb.settings import *
from tests.controlplane.test_registry import MX1, MX2, opened
from tests.controlplane.things import backend


class Owner:
    def __init__(self):
        self.done = asyncio.get_running_loop().create_future()

    def connection_ready(self, c):
        self.done.set_result(("ready", c))

    def connection_failed(self, c, f):
        self.done.set_result((f.reason.value, f))

    def connection_closed(self, c):
        pass


async def up(script, clear=False, **kw):
    async def serve(r, w):
        try:
            await script(r, w)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            w.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    d = Deadlines.of(loop)
    o = Owner()
    c = Connection(backend("p", "a", port=port, **kw), hello=b"lb1.test", deadlines=d, owner=o, clear=clear)
    c.open(loop)
    async with asyncio.timeout(10):
        got = await o.done
    c.abort()
    server.close()
    d.close()
    return got


async def test_a_backend_that_reads_proxy_v1_as_a_command_is_not_ready():
    async def script(r, w):
        w.write(b"220 mx\r\n")
        assert (await r.readline()).startswith(b"PROXY")
        await r.readline()  # EHLO is there
        w.write(b"502 what?\r\n")
        w.write(b"250-mx\r\n250 PIPELINING\r\n")
        await r.read()

    async def one_by_one(r, w):
        w.write(b"220 mx\r\n")
        await r.readline()
        await r.readline()
        w.write(b"502 what?\r\n")
        await r.readline()  # HELO
        w.write(b"250-mx\r\n250 PIPELINING\r\n")
        await r.read()

    for s in (script, one_by_one):
        reason, _ = await up(s, identity=IdentityMode.PROXY_V1)
        assert reason == "identity", s


async def test_xclient_without_addr_fails_a_check():
    async def script(r, w):
        w.write(b"220 mx\r\n")
        await r.readline()
        w.write(b"250-mx\r\n250 XCLIENT NAME PROTO\r\n")
        await r.read()

    assert (await up(script, identity=IdentityMode.XCLIENT))[0] == "identity"


async def test_a_connection_closed_in_the_handshake_is_a_tls_failure():
    async def script(r, w):
        w.write(b"220 mx\r\n")
        await r.readline()
        w.write(b"250-mx\r\n250 STARTTLS\r\n")
        await r.readline()
        w.write(b"220 go\r\n")
        await r.read(10)

    assert (await up(script, tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC)))[0] == "tls"


async def test_words_of_a_failed_verification(tmp_path):
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.issue_cert("mx1.test").configure_cert(ctx)

    async def script(r, w):
        w.write(b"220 mx\r\n")
        await r.readline()
        w.write(b"250-mx\r\n250 STARTTLS\r\n")
        await r.readline()
        w.write(b"220 go\r\n")
        try:
            await w.start_tls(ctx)
        except ssl.SSLError:
            pass

    reason, f = await up(
        script, tls=BackTlsSettings(BackTlsMode.REQUIRED, ca=str(tmp_path / "ca.pem"), server_name="mx1.test")
    )
    assert reason == "tls"
    assert b"unable to get local issuer certificate" in f.detail, f.detail


async def test_no_starttls_where_required_says_quit():
    heard = []
    over = asyncio.Event()

    async def script(r, w):
        w.write(b"220 mx\r\n")
        heard.append(await r.readline())
        w.write(b"250 mx\r\n")
        heard.append(await r.readline())
        over.set()

    reason, _ = await up(script, tls=BackTlsSettings(BackTlsMode.REQUIRED))
    await over.wait()
    assert heard[1] == b"QUIT\r\n", heard


async def test_greeting_is_known_when_the_connection_is_lost_behind_it():
    async def script(r, w):
        w.write(b"220 mx\r\n")
        await r.readline()

    async def serve(r, w):
        await script(r, w)
        w.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    d = Deadlines.of(asyncio.get_running_loop())
    o = Owner()
    c = Connection(backend("p", "a", port=port), hello=b"x.test", deadlines=d, owner=o)
    c.open(asyncio.get_running_loop())
    await o.done
    server.close()
    d.close()
    assert c.greeting is not None


def issue(ca, folder, name):
    leaf = ca.issue_cert(f"{name}.test")
    (folder / f"{name}.pem").write_bytes(b"".join(b.bytes() for b in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))


def test_a_broken_first_certificate_leaves_the_one_before_in_use(tmp_path):
    ca = trustme.CA()
    issue(ca, tmp_path, "a")
    issue(ca, tmp_path, "b")
    pairs = tuple(CertificateSettings(f"{tmp_path}/{n}.pem", f"{tmp_path}/{n}.key") for n in "ab")
    certs = FrontCertificates(FrontTlsSettings(FrontTlsMode.STARTTLS, pairs))
    before = certs.context
    (tmp_path / "a.key").write_text("junk")
    certs.load()
    shown = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    s = certs.context.wrap_bio(a, b, server_side=True)
    c = client.wrap_bio(b, a, server_hostname="a.test")
    for _ in range(5):
        for e in (c, s):
            try:
                e.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert c.getpeercert()["subjectAltName"] == (("DNS", "a.test"),)


def test_a_ca_file_that_breaks_leaves_the_one_before_in_use(tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    s = BackTlsSettings(BackTlsMode.REQUIRED, ca=str(tmp_path / "ca.pem"))
    client_context(s)
    (tmp_path / "ca.pem").write_text("junk")
    reload_client_contexts()
    client_context(s)


def test_failback_waits_after_an_identity_came_back():
    desk = opened()
    desk.lacks_identity(MX1)
    desk.lacks_identity(MX2)
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}
    desk.go(5)
    desk.offers(MX1)
    desk.offers(MX2)
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}  # failback delay 60 s


def test_an_encrypted_key_asks_nobody(tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as S

    ca = trustme.CA()
    issue(ca, tmp_path, "a")
    k = S.load_pem_private_key((tmp_path / "a.key").read_bytes(), None)
    (tmp_path / "a.key").write_bytes(
        k.private_bytes(S.Encoding.PEM, S.PrivateFormat.PKCS8, S.BestAvailableEncryption(b"x"))
    )
    import subprocess
    import sys

    code = f"from smtplb.dataplane.certificates import FrontCertificates; from smtplb.settings import *; print(FrontCertificates(FrontTlsSettings(FrontTlsMode.STARTTLS,(CertificateSettings('{tmp_path}/a.pem','{tmp_path}/a.key'),))).problems)"
    out = subprocess.run(
        ["script", "-qec", f'{sys.executable} -c "{code}"', "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "pass phrase" not in out.stdout, out.stdout
