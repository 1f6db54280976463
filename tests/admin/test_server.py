"""The sockets of the admin server: bound whole or not at all, shut to strangers, and never a burden to mail."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from smtplb.admin import server as server_module
from smtplb.admin.server import AdminBindError, AdminServer
from smtplb.observe.events import Notice
from smtplb.settings import Address
from tests.admin.control import LOOPBACK, FakeControl, Running, running, settings


async def say(admin: Running, sent: bytes) -> bytes:
    """All that comes back until the connection ends; nothing if it is cut."""
    assert admin.server.bound is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.server.bound.port)
    try:
        writer.write(sent)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_port_in_use_is_said_with_setting_and_address_and_leaves_nothing_bound(
    tmp_path: Path,
) -> None:
    path = tmp_path / "admin.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = AdminServer(
            FakeControl(), settings(socket=str(path), probes_bind=Address(host="127.0.0.1", port=port))
        )
        with pytest.raises(AdminBindError) as caught:
            await server.start()
    assert str(caught.value) == f"[Errno 98] probes.bind: 127.0.0.1:{port}: Address already in use"
    assert caught.value.strerror == f"probes.bind: 127.0.0.1:{port}: Address already in use"
    assert caught.value.errno == errno.EADDRINUSE
    assert server.bound is None
    assert not path.exists()


@pytest.mark.parametrize(
    "address", [Address(host="192.0.2.1", port=0), Address(host="no.such.host.invalid", port=1)]
)
async def test_an_address_that_is_not_ours_is_a_bind_error(address: Address) -> None:
    with pytest.raises(AdminBindError, match=r"admin\.bind: "):
        await AdminServer(FakeControl(), settings(bind=address)).start()


async def test_after_stop_the_port_is_free_again() -> None:
    async with running() as admin:
        bound = admin.server.bound
        assert isinstance(bound, Address)
    async with running(bind=bound) as admin:
        assert (await admin.get("/livez"))[0] == 200


async def test_both_families_are_served_where_no_host_is_given() -> None:
    async with running(bind=Address(port=0)) as admin:
        assert (await admin.get("/livez"))[0] == 200


async def test_the_log_says_where_to_ask(tmp_path: Path) -> None:
    control, path = FakeControl(), tmp_path / "admin.sock"
    server = AdminServer(control, settings(socket=str(path), probes_bind=LOOPBACK))
    await server.start()
    told = [event.text for event in control.events if isinstance(event, Notice)]
    assert told == [f"admin on {server.bound}", f"admin socket on {path}", f"probes on {server.probes_bound}"]
    await server.stop()


async def test_nothing_asked_for_is_nothing_bound() -> None:
    async with running(bind=None) as admin:
        assert admin.server.bound is None
        assert admin.server.probes_bound is None


# -- the unix socket --------------------------------------------------------------------------------------


async def test_the_unix_socket_is_for_our_own_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    before = os.umask(0)
    os.umask(before)
    async with running(socket=str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(before) == before
    assert not path.exists()


async def test_a_socket_left_from_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with running(socket=str(path)):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.0 200 OK")
        writer.close()


async def test_a_socket_in_use_and_a_file_are_left_alone(tmp_path: Path) -> None:
    path, file = tmp_path / "admin.sock", tmp_path / "precious"
    file.write_text("data")
    async with running(socket=str(path)) as admin:
        with pytest.raises(AdminBindError, match="Address already in use"):
            await AdminServer(FakeControl(), settings(bind=None, socket=str(path))).start()
        assert (await admin.get("/livez"))[0] == 200
        assert path.exists()
    with pytest.raises(AdminBindError, match="no socket"):
        await AdminServer(FakeControl(), settings(bind=None, socket=str(file))).start()
    assert file.read_text() == "data"


async def test_a_socket_that_a_successor_put_there_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with running(bind=None, socket=str(path)):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


# -- what clients may do to us ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"EHLO client.test\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Sec\x00ret: 1\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem_that_repeats_nothing(sent: bytes) -> None:
    async with running() as admin:
        head, _, body = (await say(admin, sent)).partition(b"\r\n\r\n")
        assert b" 400 " in head.splitlines()[0]
        assert b"application/problem+json" in head
        assert json.loads(body)["detail"] == "this is not a request in HTTP/1.1"


async def test_a_client_that_says_nothing_or_half_a_request_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "SILENCE_S", 0.02)
    async with running() as admin:
        assert await say(admin, b"") == b""
        assert await say(admin, b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: ") == b""


async def test_more_clients_than_there_is_room_for_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    async with running(probes_bind=LOOPBACK) as admin:
        bound, probes = admin.server.bound, admin.server.probes_bound
        assert bound is not None
        assert probes is not None
        held = [await asyncio.open_connection("127.0.0.1", bound.port) for _ in range(2)]
        for _, writer in held:  # both are known to be served
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reader, _ in held:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await say(admin, b"GET /livez HTTP/1.0\r\n\r\n") == b""
        async with admin.client.get(f"http://{probes}/livez") as response:  # probes have room of their own
            assert response.status == 200
        for _, writer in held:
            writer.close()


async def test_stop_does_not_wait_for_clients_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as admin:
        assert admin.server.bound is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.server.bound.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.wait_for(admin.server.stop(), 1.0)
        await asyncio.wait_for(reader.read(), 1.0)
        writer.close()


async def test_a_compressed_body_is_not_unpacked() -> None:
    async with running() as admin:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        bomb = gzip.compress(b" " * 50_000_000)
        path = "/api/v1/pools/east/backends/mx1"
        status, _ = await admin.change("PATCH", path, data=bomb[: 60 * 1024], headers=headers)
        assert status == 400


# -- from another host ------------------------------------------------------------------------------------


def own_address() -> str | None:
    """An address of this host that is not loopback. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


async def test_off_loopback_reading_needs_the_token_and_probes_do_not() -> None:
    host = own_address()
    if host is None or host.startswith("127."):
        pytest.skip("this host has no address but loopback")
    async with running(bind=Address(host=host, port=0)) as admin:
        bound = admin.server.bound
        codes = {}
        for path in ("/livez", "/readyz", "/metrics", "/", "/api/v1/status"):
            async with admin.client.get(f"http://{bound}{path}") as response:
                codes[path] = response.status
        assert codes == {"/livez": 200, "/readyz": 200, "/metrics": 200, "/": 401, "/api/v1/status": 401}
        headers = {"Authorization": "Bearer correct-horse", "Host": "mgmt.example.net"}
        async with admin.client.get(f"http://{bound}/api/v1/status", headers=headers) as response:
            assert response.status == 200
