"""Exim, unpacked beside the system's packages by scripts/mtas. Mail is queued and stays there.

Owns configuration and log reading.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.lab.mta import AcceptedMessage, Mta, TlsFiles
from tests.lab.process import LAB_DIR, missing_program

BINARY = LAB_DIR / "exim" / "usr" / "sbin" / "exim4"
USER = "Debian-exim"  # compiled in by Debian

_CONFIG = """\
primary_hostname = {name}.lab.test
local_interfaces = 127.0.0.1
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
log_selector = +received_recipients +smtp_connection +smtp_incomplete_transaction +smtp_protocol_error +smtp_syntax_error
exim_path = {binary}
exim_user = {user}
exim_group = {user}
keep_environment =
host_lookup =
helo_lookup_domains =
queue_only = true
smtp_accept_max = 0
smtp_connect_backlog = 1024
acl_smtp_rcpt = acl_rcpt
{main}

begin acl
acl_rcpt:
{acl_rcpt}

begin routers
all:
  driver = accept
  transport = devnull

begin transports
devnull:
  driver = appendfile
  file = /dev/null
  user = {user}

begin retry
* * F,1h,10m
"""

_ARRIVAL = re.compile(
    r"^\S+ \S+ (?P<queue_id>[0-9A-Za-z]+-[0-9A-Za-z]+-[0-9A-Za-z]+) <= (?P<sender>\S+) (?P<rest>.*)$"
)


class Exim(Mta):
    """One Exim.

    main             more lines for the main part of the configuration
    acl_rcpt         the body of the ACL for RCPT; accepts everything by default
    proxy_protocol   the port demands a PROXY header before the greeting
    tls              offer STARTTLS with these files
    """

    kind = "exim"

    def __init__(
        self,
        name: str | None = None,
        *,
        port: int | None = None,
        main: Iterable[str] = (),
        acl_rcpt: Iterable[str] = ("accept",),
        proxy_protocol: bool = False,
        tls: TlsFiles | None = None,
    ) -> None:
        super().__init__(name, port)
        self._main_lines = list(main)
        self._acl_rcpt = list(acl_rcpt)
        self._proxy_protocol = proxy_protocol
        self._tls = tls

    @classmethod
    def available(cls) -> str | None:
        return missing_program(BINARY, "Exim", needs_root=True)

    def _prepare(self) -> None:
        for folder in ("spool", "log"):
            (self.directory / folder).mkdir()
            shutil.chown(self.directory / folder, USER, USER)
        lines = ["hosts_proxy = 127.0.0.1"] if self._proxy_protocol else []
        if self._tls:
            lines += ["tls_advertise_hosts = *", *self._own_tls_files(self._tls)]
        else:
            lines += ["tls_advertise_hosts ="]
        self._config.write_text(
            _CONFIG.format(
                name=self.name,
                directory=self.directory,
                binary=BINARY,
                user=USER,
                main="\n".join([*lines, *self._main_lines]),
                acl_rcpt="\n".join(f"  {line}" for line in self._acl_rcpt),
            )
        )

    def _own_tls_files(self, tls: TlsFiles) -> list[str]:
        """Copies, since Exim reads them as its own user, who may not get to the folder of a test."""
        lines = []
        for option, source in (("tls_certificate", tls.certificate), ("tls_privatekey", tls.key)):
            copy = self.directory / f"{option}.pem"
            shutil.copyfile(source, copy)
            shutil.chown(copy, USER, USER)
            copy.chmod(0o400)
            lines.append(f"{option} = {copy}")
        return lines

    @property
    def _config(self) -> Path:
        return self.directory / "exim.conf"

    def _command(self) -> list[str]:
        return [str(BINARY), "-C", str(self._config), "-bdf", "-oX", str(self.port)]

    # -- looking at it

    def log_lines(self, containing: str = "") -> list[str]:
        path = self.directory / "log" / "mainlog"
        text = path.read_text(errors="replace") if path.exists() else ""
        return [line for line in text.splitlines() if containing in line]

    def accepted(self) -> list[AcceptedMessage]:
        found = []
        for line in self.log_lines(" <= "):
            if not (match := _ARRIVAL.match(line)):
                continue
            fields, _, recipients = match["rest"].partition(" for ")
            message_id = next((word[3:] for word in fields.split() if word.startswith("id=")), "")
            sender = "" if match["sender"] == "<>" else match["sender"]
            found.append(
                AcceptedMessage(
                    match["queue_id"],
                    f"<{message_id}>" if message_id else "",
                    sender,
                    tuple(recipients.split()),
                )
            )
        return found
