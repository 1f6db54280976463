"""Free ports on the loopback interface.

Owns the choice of a port number. Does not hold the port: whoever asked binds it next.
Invariant: while the process lives that asked for a port, neither it nor another test run gets the same one, and none lies where
the kernel picks ports for outgoing connections.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
FIRST_PORT, LAST_PORT = (
    20_000,
    31_999,
)  # below Linux' ip_local_port_range (32768 on), above anything privileged

_TCP_LISTEN = "0A"  # connection state in /proc/net/tcp: include/net/tcp_states.h
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

    Read from the kernel rather than tried: a connection would stand in the program's log and counters as a lost one.
    """
    wanted = f":{port:04X}"
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:  # IPv6 is switched off
            continue
        for row in rows:
            _, local, _, state, *_ = row.split()
            if state == _TCP_LISTEN and local.endswith(wanted):
                return True
    return False


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
