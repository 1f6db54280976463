"""The kernel's table of TCP sockets (proc(5), /proc/net/tcp): of all processes in this network namespace.

Owns its form. Does not own what a test wants to know of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED, LISTEN = "01", "0A"  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class TcpSocket:
    local: str  # hexadecimal ADDRESS:PORT
    remote: str
    state: str
    is_drained: bool  # nothing waits in the kernel, to be sent or to be read
    name: str  # as it stands in /proc/PID/fd

    @property
    def port(self) -> int:
        return _port(self.local)

    @property
    def ports(self) -> tuple[int, int]:
        """Of both ends."""
        return _port(self.local), _port(self.remote)


def tcp_sockets() -> Iterator[TcpSocket]:
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:  # IPv6 is switched off
            continue
        for row in rows:
            _, local, remote, state, queues, _, _, _, _, inode, *_ = row.split()
            yield TcpSocket(local, remote, state, queues == "00000000:00000000", f"socket:[{inode}]")


def sockets_of(pid: int) -> list[TcpSocket]:
    """Those that a process has open."""
    names = set()
    for descriptor in Path("/proc").glob(f"{pid}/fd/*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            names.add(os.readlink(descriptor))
    return [sock for sock in tcp_sockets() if sock.name in names]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
