"""What stands beside smtplb, as instances of the lab: HAProxy with as much switched on as smtplb has, nginx mail, Haraka, the bare
relay; and the sink with TLS.

Owns their configurations. Each takes mail on `port` and relays it to `backends`, ports on loopback.
"""

from __future__ import annotations

import shutil
import smtplib
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.lab import HAProxy, Instance, TlsFiles, free_port
from tests.lab.process import LAB_DIR, missing_program

ROOT = Path(__file__).resolve().parent.parent


def module(name: str, *arguments: object) -> list[str]:
    """A module of this package as a program: instances have working directories of their own."""
    return [
        "/usr/bin/env",
        f"PYTHONPATH={ROOT}",
        sys.executable,
        "-m",
        name,
        *(str(argument) for argument in arguments),
    ]


class FairHAProxy(HAProxy):
    """HAProxy with what smtplb does by default as far as it can: a log line for each connection, checks that speak SMTP, counts
    for each client with a limit, and a limit for each server.

    Its log goes to a UDP socket on loopback that nobody reads, so that no syslog daemon shares the cores.
    """

    kind = "haproxy-fair"

    def __init__(self, backends: Sequence[int]) -> None:
        self._kept_open = ExitStack()
        log = self._kept_open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        log.bind(("127.0.0.1", 0))
        super().__init__(
            backends,
            server_options="check inter 10s maxconn 4000",
            lines=(
                f"log 127.0.0.1:{log.getsockname()[1]} local0",
                "option tcplog",
                "option smtpchk EHLO lb.lab.test",
                "stick-table type ip size 100k expire 10m store conn_cur,conn_rate(60s)",
                "tcp-request connection track-sc0 src",
                "tcp-request connection reject if { sc0_conn_cur gt 4000 }",
                "maxconn 8000",
            ),
        )

    def close(self) -> None:
        super().close()
        self._kept_open.close()


_NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log error;
load_module /usr/lib/nginx/modules/ngx_mail_module.so;
events {{ worker_connections 16384; }}
mail {{
    server_name lb.lab.test;
    auth_http 127.0.0.1:{auth_port}/auth;
    proxy_pass_error_message on;
    smtp_capabilities "SIZE 52428800" 8BITMIME;
    {tls}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        protocol smtp;
        smtp_auth none;
        xclient off;
    }}
}}
http {{
    access_log off;
    client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
    split_clients "$connection" $backend_port {{ 50% {backends[0]}; * {backends[1]}; }}
    server {{
        listen 127.0.0.1:{auth_port};
        location = /auth {{
            add_header Auth-Status OK; add_header Auth-Server 127.0.0.1; add_header Auth-Port $backend_port;
            return 204;
        }}
    }}
}}
"""


class Nginx(Instance):
    """nginx's mail proxy. It asks an HTTP server where each session goes: here a part of the same process."""

    kind = "nginx"
    BINARY = "/usr/sbin/nginx"

    def __init__(self, backends: Sequence[int], tls: TlsFiles | None = None) -> None:
        super().__init__()
        self._backends = backends
        self._auth_port = free_port()
        self._tls = tls

    @classmethod
    def available(cls) -> str | None:
        return missing_program(cls.BINARY, "nginx")

    def _prepare(self) -> None:
        tls = ""
        if self._tls is not None:
            tls = (
                f"starttls on; ssl_certificate {self._tls.certificate}; ssl_certificate_key {self._tls.key};"
            )
        (self.directory / "nginx.conf").write_text(
            _NGINX.format(
                directory=self.directory,
                port=self.port,
                auth_port=self._auth_port,
                backends=self._backends,
                tls=tls,
            )
        )

    def _command(self) -> list[str]:
        return [self.BINARY, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]

    def _ports(self) -> list[int]:
        return [self.port, self._auth_port]


class Haraka(Instance):
    """Haraka as a proxy: its smtp_proxy knows one backend only."""

    kind = "haraka"
    PACKAGE = LAB_DIR / "haraka" / "node_modules" / "Haraka"

    def __init__(self, backends: Sequence[int]) -> None:
        super().__init__()
        self._backend = backends[0]

    @classmethod
    def available(cls) -> str | None:
        if shutil.which("node") is None:
            return "node is not installed"
        return None if cls.PACKAGE.exists() else f"Haraka is not installed ({cls.PACKAGE}): scripts/peers"

    def _prepare(self) -> None:
        for folder in ("config", "plugins"):
            (self.directory / folder).mkdir()
        files = {
            "plugins/accept_all.js": "exports.hook_rcpt = (next) => next(OK)\n",
            "config/plugins": "accept_all\nqueue/smtp_proxy\n",
            "config/smtp.ini": f"listen=127.0.0.1:{self.port}\nnodes=0\n",
            "config/smtp_proxy.ini": f"host=127.0.0.1\nport={self._backend}\n",
            "config/log.ini": "[main]\nlevel=ERROR\n",
            "config/me": "lb.lab.test\n",
            "config/connection.ini": (self.PACKAGE / "config" / "connection.ini").read_text(),
        }
        for name, content in files.items():
            (self.directory / name).write_text(content)

    def _command(self) -> list[str]:
        return [str(shutil.which("node")), str(self.PACKAGE / "bin" / "haraka"), "-c", str(self.directory)]


class BareRelay(Instance):
    """bench/relay.py."""

    kind = "bare-relay"

    def __init__(self, backends: Sequence[int]) -> None:
        super().__init__()
        self._backends = backends

    @classmethod
    def available(cls) -> str | None:
        return None

    def _command(self) -> list[str]:
        return module("bench.relay", self.port, *self._backends)


class TlsSink(Instance):
    """bench/sink.py."""

    kind = "tls-sink"

    def __init__(self, name: str, tls: TlsFiles) -> None:
        super().__init__(name)
        self._tls = tls

    @classmethod
    def available(cls) -> str | None:
        return None

    def _command(self) -> list[str]:
        return module("bench.sink", self.port, self._tls.certificate, self._tls.key)

    def messages(self) -> int:
        with smtplib.SMTP("127.0.0.1", self.port) as client:
            return int(client.docmd("XCOUNT")[1])
