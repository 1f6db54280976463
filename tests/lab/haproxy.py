"""HAProxy in tcp mode: the connection-level balancer that figures are compared with, and a sender of PROXY headers.

Owns its configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from tests.lab.ports import free_port
from tests.lab.process import Instance, missing_program

BINARY = "/usr/sbin/haproxy"

_CONFIG = """\
global
    nbthread {threads}
    maxconn 8192
defaults
    mode tcp
    maxconn 8192
    timeout connect 5s
    timeout client 5m
    timeout server 5m
listen smtp
    bind 127.0.0.1:{port} backlog 4096
    balance {balance}
{lines}
"""


class HAProxy(Instance):
    """One HAProxy.

    servers       ports on loopback, or HOST:PORT
    send_proxy    put a PROXY header of that version in front of each connection
    server_options    words behind each server line, e.g. "check"
    lines         more lines of the listen section
    """

    kind = "haproxy"

    def __init__(
        self,
        servers: Sequence[int | str],
        name: str | None = None,
        *,
        port: int | None = None,
        balance: str = "roundrobin",
        send_proxy: Literal["v1", "v2"] | None = None,
        server_options: str = "",
        lines: Iterable[str] = (),
        threads: int = 1,
    ) -> None:
        super().__init__(name, port or free_port())
        self._addresses = [f"127.0.0.1:{server}" if isinstance(server, int) else server for server in servers]
        self._balance = balance
        self._server_options = (
            {None: "", "v1": "send-proxy", "v2": "send-proxy-v2"}[send_proxy] + " " + server_options
        )
        self._lines = list(lines)
        self._threads = threads

    @classmethod
    def available(cls) -> str | None:
        return missing_program(BINARY, "HAProxy")

    def _prepare(self) -> None:
        servers = [
            f"server s{number} {address} {self._server_options}".rstrip()
            for number, address in enumerate(self._addresses, 1)
        ]
        (self.directory / "haproxy.cfg").write_text(
            _CONFIG.format(
                threads=self._threads,
                port=self.port,
                balance=self._balance,
                lines="\n".join(f"    {line}" for line in [*self._lines, *servers]),
            )
        )

    def _command(self) -> list[str]:
        return [BINARY, "-db", "-f", str(self.directory / "haproxy.cfg")]
