"""Binding: all or nothing, with words that name the listener."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from smtplb.controlplane.sockets import BindError, bind_listeners
from smtplb.settings import Address
from tests.controlplane.things import listener

LOOPBACK = Address("127.0.0.1", 0)


def test_port_zero_becomes_a_port_that_accepts() -> None:
    sockets = bind_listeners([listener("mx", "p", LOOPBACK, LOOPBACK)])
    first, second = sockets.bound["mx"]
    assert first.port != second.port
    with socket.create_connection((first.host, first.port), timeout=5):
        pass
    sockets.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((first.host, first.port), timeout=5)


def test_an_address_in_use_is_told_with_its_listener_and_nothing_stays_bound(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        other = free.getsockname()[1]
    path = str(tmp_path / "mx.sock")
    binds = (Address("127.0.0.1", other), Address(path=path), Address("127.0.0.1", port))
    with pytest.raises(BindError) as raised:
        bind_listeners([listener("mx", "p", *binds)])
    assert str(raised.value) == f"listener mx: 127.0.0.1:{port}: address already in use"
    assert not Path(path).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", other), timeout=5)
    taken.close()


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(BindError, match=r"listener mx: 192\.0\.2\.1:2525: cannot assign requested address"):
        bind_listeners([listener("mx", "p", Address("192.0.2.1", 2525))])


def test_one_port_twice_in_one_configuration_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BindError, match="address already in use"):
        bind_listeners(
            [listener("a", "p", Address("127.0.0.1", port)), listener("b", "p", Address("127.0.0.1", port))]
        )


def test_a_restart_may_bind_while_old_connections_linger() -> None:
    sockets = bind_listeners([listener("mx", "p", LOOPBACK)])
    (address,) = sockets.bound["mx"]
    client = socket.create_connection((address.host, address.port), timeout=5)
    (listening,) = sockets.by_listener["mx"]
    listening.setblocking(True)
    accepted, _ = listening.accept()
    sockets.close()
    accepted.close()  # ours first: the address is in TIME_WAIT
    client.close()
    bind_listeners([listener("mx", "p", address)]).close()


def test_ipv6_takes_no_ipv4_clients_so_that_both_may_be_bound() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        sockets = bind_listeners([listener("mx", "p", Address("::1", 0))])
    except BindError as error:
        pytest.skip(f"no IPv6 here: {error}")
    (sock,) = sockets.by_listener["mx"]
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    assert str(sockets.bound["mx"][0]).startswith("[::1]:")
    sockets.close()


def test_both_families_on_a_host_without_ipv6_bind_the_one_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *rest: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest)

    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    both = (Address("0.0.0.0", port), Address("::", port))
    sockets = bind_listeners([listener("mx", "p", *both)])
    assert sockets.bound["mx"] == [both[0]]
    sockets.close()
    with pytest.raises(BindError, match="address family not supported"):
        bind_listeners([listener("mx", "p", both[1])])


class TestUnixSockets:
    def test_the_file_is_there_while_bound_and_gone_after(self, tmp_path: Path) -> None:
        path = tmp_path / "mx.sock"
        sockets = bind_listeners([listener("mx", "p", Address(path=str(path)))])
        assert sockets.bound["mx"] == [Address(path=str(path))]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        sockets.close()
        assert not path.exists()

    def test_a_file_left_by_a_dead_process_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "mx.sock"
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(path))
        dead.close()
        assert path.exists()
        bind_listeners([listener("mx", "p", Address(path=str(path)))]).close()

    def test_one_that_is_served_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "mx.sock"
        first = bind_listeners([listener("mx", "p", Address(path=str(path)))])
        with pytest.raises(BindError, match="address already in use"):
            bind_listeners([listener("mx", "p", Address(path=str(path)))])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        first.close()

    def test_a_file_that_is_no_socket_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "mx.sock"
        path.write_text("precious")
        with pytest.raises(BindError, match="a file that is not a socket is in the way"):
            bind_listeners([listener("mx", "p", Address(path=str(path)))])
        assert path.read_text() == "precious"

    def test_a_successors_file_is_not_taken_away(self, tmp_path: Path) -> None:
        path = tmp_path / "mx.sock"
        first = bind_listeners([listener("mx", "p", Address(path=str(path)))])
        path.rename(tmp_path / "kept")  # keeps the inode in use
        second = bind_listeners([listener("mx", "p", Address(path=str(path)))])
        first.close()
        assert path.exists()
        second.close()
