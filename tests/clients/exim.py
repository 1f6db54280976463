"""Exim as client: run once for a message, which it delivers at once.

Owns its configuration and the reading of its log. Invariant: it delivers with CHUNKING wherever that is offered, and under TLS,
verified, wherever the door has TLS.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.clients.front import HOST, Door, Tls
from tests.clients.mail import Mail
from tests.clients.programs import run
from tests.lab.exim import BINARY, USER, Exim
from tests.lab.process import LAB_DIR, wait_until

_CONFIG = """\
primary_hostname = exim-client.lab.test
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
exim_path = {binary}
exim_user = {user}
exim_group = {user}
keep_environment =
host_lookup =
queue_only = false
trusted_users = root

begin routers
all:
  driver = manualroute
  route_list = * {host}
  self = send
  transport = front

begin transports
front:
  driver = smtp
  port = {port}
  allow_localhost
  hosts_try_chunking = *
{tls}

begin retry
* * F,1h,10m
"""


class EximClient:
    """A context manager: its directory is gone behind it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._directory = Path()

    @classmethod
    def available(cls) -> str | None:
        return Exim.available()

    def __enter__(self) -> Self:
        # Not below a private folder: Exim changes to a user of its own, who must be able to get here.
        self._directory = Path(tempfile.mkdtemp(prefix="exim-client-", dir=LAB_DIR))
        self._directory.chmod(0o755)
        for folder in ("spool", "log"):
            (self._directory / folder).mkdir()
            shutil.chown(self._directory / folder, USER, USER)
        ca = self._directory / "ca.pem"
        shutil.copyfile(self._door.ca, ca)
        lines = {
            Tls.NONE: ["hosts_avoid_tls = *"],
            Tls.STARTTLS: ["hosts_require_tls = *"],
            Tls.IMPLICIT: ["hosts_require_tls = *", "protocol = smtps"],
        }[self._door.tls]
        if self._door.tls is not Tls.NONE:
            # Its name in the certificate is its address.
            lines += [
                f"tls_verify_certificates = {ca}",
                "tls_verify_hosts = *",
                "tls_verify_cert_hostnames =",
            ]
        config = _CONFIG.format(
            directory=self._directory,
            binary=BINARY,
            user=USER,
            host=HOST,
            port=self._door.port,
            tls="\n".join(f"  {line}" for line in lines),
        )
        self._config.write_text(config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _config(self) -> Path:
        return self._directory / "exim.conf"

    def send(self, mail: Mail) -> None:
        """Returns when the first attempt is over; `delivery` tells how it went."""
        command = [str(BINARY), "-C", str(self._config), "-odi", "-oi", "-f", mail.sender]
        run([*command, mail.recipient], mail.text)

    def delivery(self) -> str:
        """The line of the only message's delivery: `=>` delivered, `==` put off, `**` given up; K: in chunks."""
        log = self._directory / "log" / "mainlog"

        def lines() -> list[str]:
            found = log.read_text().splitlines() if log.exists() else []
            return [line for line in found if any(sign in line for sign in (" => ", " == ", " ** "))]

        wait_until(lambda: bool(lines()), "Exim has written down what became of the message")
        (line,) = lines()
        return line
