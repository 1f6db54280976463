"""Free ports on the loopback interface.

Owns the choice of a port number. Does not hold the port: whoever asked binds it next.
Invariant: while the process lives that asked for a port, neither it nor another test run gets the same one, and none lies where
the kernel picks ports for outgoing connections.
"""

from __future__ import annotations

import random
import socket
import struct

from tests.lab.tcp_table import LISTEN, tcp_sockets

LOOPBACK = "127.0.0.1"
FIRST_PORT, LAST_PORT = (
    20_000,
    31_999,
)  # below Linux' ip_local_port_range (32768 on), above anything privileged

# include/uapi/linux/netlink.h, sock_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_DONE = 0x1, 0x300, 3
_rng = random.SystemRandom()  # several test runs at once must not walk the same row of ports
_claims: list[socket.socket] = []  # one for each port that was handed out; the end of the process ends them


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that nobody who asks here is about to."""
    for _ in range(1000):
        port = _rng.randint(FIRST_PORT, LAST_PORT)
        if _claimed(port) and _bindable(port):
            return port
    raise RuntimeError(f"no free port between {FIRST_PORT} and {LAST_PORT}")


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def is_listening(port: int) -> bool:
    """Whether a socket of this machine listens on the TCP port, whichever its address.

    Asked of the kernel rather than tried: a connection would stand in the program's log and counters as a lost one.
    """
    try:
        return any(_diagnosed(port, family) for family in (socket.AF_INET, socket.AF_INET6))
    except OSError:  # a kernel without sock_diag(7)
        return _tabled(port)


def _diagnosed(port: int, family: int) -> bool:
    """By sock_diag(7), which looks at listeners only: in the tables stand thousands that tests have left in TIME_WAIT, and this
    is asked a hundred times a second.
    """
    header = struct.pack("=IHHII", 72, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0)
    wanted = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 1 << int(LISTEN, 16))
    source = struct.pack("!H46x", port)  # its port; whatever else an address has
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + wanted + source)
        _, kind = struct.unpack_from("=IH", kernel.recv(65536))
    if kind not in (_SOCK_DIAG_BY_FAMILY, _NLMSG_DONE):
        raise OSError(f"sock_diag: message of type {kind}")
    return bool(kind == _SOCK_DIAG_BY_FAMILY)


def _tabled(port: int) -> bool:
    return any(sock.state == LISTEN and sock.port == port for sock in tcp_sockets())


def _claimed(port: int) -> bool:
    """Whether the port is ours now. A name in the abstract namespace leaves nothing behind, whoever is killed, and is known
    just as far as the port is: in this network namespace, to all users.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0smtplb-test-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
