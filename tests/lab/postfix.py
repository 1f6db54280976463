"""Postfix: any number of instances, each with its own configuration, queue, data and log.

Owns configuration and log reading. Invariant: the log is complete and in order over `kill_hard`, so that a message that was
answered 250 can be looked for in it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.mta import AcceptedMessage, Mta, TlsFiles
from tests.lab.process import LabError, missing_program, send_signal, wait_until

DAEMONS = Path("/usr/lib/postfix/sbin")

# queue_directory as `postfix start` would make it: name, mode, group. Made here, since its own first check takes 2.5 s.
_QUEUE_FOLDERS = [
    ("maildrop", 0o730, "postdrop"),
    ("public", 0o710, "postdrop"),
    ("private", 0o700, "root"),
    ("active", 0o700, "root"),
    ("bounce", 0o700, "root"),
    ("corrupt", 0o700, "root"),
    ("defer", 0o700, "root"),
    ("deferred", 0o700, "root"),
    ("flush", 0o700, "root"),
    ("hold", 0o700, "root"),
    ("incoming", 0o700, "root"),
    ("saved", 0o700, "root"),
    ("trace", 0o700, "root"),
]

_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
maillog_file = {log}
maillog_file_prefixes = {directory}
myhostname = {name}.lab.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
default_transport = {transport}
relay_transport = {transport}
local_recipient_maps =
alias_maps =
alias_database =
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
enable_long_queue_ids = yes
"""

_MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd{options}
cleanup    unix n - n - 0 cleanup
qmgr       unix n - n 300 1 qmgr
tlsmgr     unix - - n 1000 1 tlsmgr
rewrite    unix - - n - - trivial-rewrite
bounce     unix - - n - 0 bounce
defer      unix - - n - 0 bounce
trace      unix - - n - 0 bounce
verify     unix - - n - 1 verify
flush      unix n - n 1000 0 flush
proxymap   unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp       unix - - n - - smtp
relay      unix - - n - - smtp
showq      unix n - n - - showq
error      unix - - n - - error
retry      unix - - n - - error
discard    unix - - n - - discard
anvil      unix - - n - 1 anvil
scache     unix - - n - 1 scache
postlog    unix-dgram n - n - 1 postlogd
"""

_LINE = re.compile(
    r"^\w{3} [ \d]\d [\d:]{8} \S+ postfix/(?P<daemon>[\w-]+)\[\d+\]: (?P<queue_id>[0-9A-Za-z]{10,}): (?P<rest>.*)$"
)
# Complaints of cleanup about the clock of the machine that it runs on: they come when the clock is set or the machine is busy,
# whoever speaks to Postfix and whatever is said.
_OF_THE_CLOCK = ("warning: file system clock is ", "warning: resetting file time stamps")
_DELIVERY = re.compile(r"^to=<(?P<recipient>[^>]*)>,.* status=(?P<status>\w+) \((?P<text>.*)\)$")


@dataclass(slots=True)
class LoggedMessage:
    """One message in the log. `client` and `message_id` are empty if the crash came before their lines."""

    queue_id: str
    client: str = ""  # name[addr] as Postfix understood it
    message_id: str = ""
    sender: str = ""
    is_queued: bool = False  # the queue manager has taken it up: from then on it is safe over crashes
    is_removed: bool = False
    deliveries: list[tuple[str, str, str]] = field(
        default_factory=list
    )  # recipient, status (sent, deferred, ...), text


class Postfix(Mta):
    """One Postfix.

    transport        what happens to accepted mail: `discard:`, or `smtp:[127.0.0.1]:PORT` to see it arrive somewhere
    main_cf          more lines for main.cf (they win over ours), as text lines or as a mapping
    smtpd_options    `-o` options of the smtpd that listens, e.g. "smtpd_tls_wrappermode=yes"
    master_cf        more lines for master.cf
    xclient_hosts    networks that may send XCLIENT and XFORWARD, e.g. "127.0.0.0/8"
    proxy_protocol   the port demands a PROXY header (v1 or v2) before the greeting
    tls              offer STARTTLS with these files; `tls_level` "encrypt" demands it
    """

    kind = "postfix"

    def __init__(
        self,
        name: str | None = None,
        *,
        port: int | None = None,
        transport: str = "discard:",
        main_cf: Iterable[str] | Mapping[str, str] = (),
        smtpd_options: Sequence[str] = (),
        master_cf: Iterable[str] = (),
        xclient_hosts: str = "",
        proxy_protocol: bool = False,
        tls: TlsFiles | None = None,
        tls_level: str = "may",
    ) -> None:
        super().__init__(name, port)
        lines = (
            [f"{key} = {value}" for key, value in main_cf.items()]
            if isinstance(main_cf, Mapping)
            else list(main_cf)
        )
        if xclient_hosts:
            lines = [
                f"smtpd_authorized_xclient_hosts = {xclient_hosts}",
                f"smtpd_authorized_xforward_hosts = {xclient_hosts}",
                *lines,
            ]
        if tls:
            lines = [
                f"smtpd_tls_security_level = {tls_level}",
                f"smtpd_tls_cert_file = {tls.certificate}",
                f"smtpd_tls_key_file = {tls.key}",
                *lines,
            ]
        self._transport = transport
        self._main_cf = lines
        self._smtpd_options = [
            *smtpd_options,
            *(["smtpd_upstream_proxy_protocol=haproxy"] if proxy_protocol else []),
        ]
        self._master_cf = list(master_cf)

    @classmethod
    def available(cls) -> str | None:
        return missing_program(DAEMONS / "master", "Postfix", needs_root=True)

    @property
    def queue(self) -> Path:
        return self.directory / "queue"

    @property
    def config(self) -> Path:
        """The configuration directory: what `postfix -c`, `postqueue -c` and the like want."""
        return self.directory / "etc"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    # -- life

    def _prepare(self) -> None:
        for folder, mode, group in [(".", 0o755, "root"), *_QUEUE_FOLDERS]:
            path = self.queue / folder
            path.mkdir(exist_ok=True)
            if folder != ".":
                shutil.chown(path, "postfix", group)
            path.chmod(mode)
        (self.queue / "pid").mkdir()
        (self.directory / "data").mkdir()
        shutil.chown(self.directory / "data", "postfix", "root")
        self.config.mkdir()
        main_cf = _MAIN_CF.format(
            queue=self.queue,
            data=self.directory / "data",
            log=self.log,
            directory=self.directory,
            name=self.name,
            transport=self._transport,
        )
        self._write_config("main.cf", [main_cf.rstrip(), *self._main_cf])
        options = "".join(f"\n    -o {option}" for option in self._smtpd_options)
        master_cf = _MASTER_CF.format(port=self.port, options=options)
        self._write_config("master.cf", [master_cf.rstrip(), *self._master_cf])

    def _write_config(self, name: str, lines: list[str]) -> None:
        path = self.config / name
        path.write_text("\n".join([*lines, ""]))
        an_hour_ago = (
            time.time() - 3600
        )  # Postfix waits until its files are older than 2 s: somebody may be writing
        os.utime(path, (an_hour_ago, an_hour_ago))

    def _command(self) -> list[str]:
        (self.queue / "pid" / "master.pid").unlink(missing_ok=True)  # left by kill_hard
        # master itself, not `postfix start`: so it is our child, ready in milliseconds, and says by itself why it ends.
        return [str(DAEMONS / "master"), "-c", str(self.config)]

    def stop(self) -> None:
        """As `postfix stop`, but for the log writer, which here goes last."""
        if self._main is not None and self._main.poll() is None:
            self._end_children(signal.SIGTERM)
            self._main.terminate()
            self._main.send_signal(signal.SIGCONT)
        super().stop()

    def kill_hard(self) -> None:
        """As after a power cut: no process gets to say a word. The log keeps every line written until that moment."""
        if self._main is not None and self._main.poll() is None:
            self._end_children(signal.SIGKILL)
        super().kill_hard()

    def _end_children(self, number: signal.Signals) -> None:
        """All but master, which stands still from here on, and the log writer: what is in its socket gets written first.
        Lost lines would be the only trace of a message-id.
        """
        assert self._main is not None
        writer = self._log_writer()
        known = [pid for pid in self.pids() if pid not in (self.pid, writer)]
        self._main.send_signal(signal.SIGSTOP)  # or it would start new children for those that end
        # Listed before: the log writer tells master of each line, and stands still behind some 70 that master did not read.
        send_signal(known, number)
        children = [pid for pid in self.pids() if pid not in (self.pid, writer)]
        send_signal(children, number)
        wait_until(lambda: not set(children) & set(self.pids()), f"the children of {self.name} are gone")
        if writer is not None:
            self._flush_log()

    def _log_writer(self) -> int | None:
        for pid in self.pids():
            try:
                if os.readlink(f"/proc/{pid}/exe") == str(DAEMONS / "postlogd"):
                    return pid
            except OSError:
                continue
        return None

    def _flush_log(self) -> None:
        """Sends the log writer a line of ours behind all others and waits until it stands in the file."""
        marker = f"lab: {self.name} killed, mark {len(self.log_text())}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(5.0)  # rather an error than a test run that hangs
            sender.connect(str(self.queue / "public" / "postlog"))
            sender.send(marker.encode())
        try:
            wait_until(lambda: marker in self.log_text(), f"the log writer of {self.name} has caught up", 5.0)
        except LabError:  # then it had ended by itself
            pass

    # -- looking at it

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_lines(self, containing: str = "") -> list[str]:
        """Lines of the log with these words, but for what is not about mail: the clock of this machine."""
        return [
            line
            for line in self.log_text().splitlines()
            if containing in line and not any(words in line for words in _OF_THE_CLOCK)
        ]

    def messages(self) -> dict[str, LoggedMessage]:
        """All messages in the log by queue id, also such that were never queued (the client went away)."""
        found: dict[str, LoggedMessage] = {}
        for line in self.log_lines():
            match = _LINE.match(line)
            if not match or match["queue_id"] == "NOQUEUE":
                continue
            message = found.setdefault(match["queue_id"], LoggedMessage(match["queue_id"]))
            _note(message, match["daemon"], match["rest"])
        return found

    def accepted(self) -> list[AcceptedMessage]:
        return [
            AcceptedMessage(
                message.queue_id,
                message.message_id,
                message.sender,
                tuple(dict.fromkeys(recipient for recipient, _, _ in message.deliveries)),
            )
            for message in self.messages().values()
            if message.is_queued
        ]

    def delivered(self) -> dict[str, str]:
        """Queue id -> message-id of what was sent on to all of its recipients (`discard:` counts) and left the queue."""
        return {
            message.queue_id: message.message_id
            for message in self.messages().values()
            if message.is_removed
            and message.deliveries
            and all(status == "sent" for _, status, _ in message.deliveries)
        }


def _note(message: LoggedMessage, daemon: str, rest: str) -> None:
    if daemon == "smtpd" and rest.startswith("client="):
        message.client = rest.removeprefix("client=").split(",")[0]
    elif daemon == "cleanup" and rest.startswith("message-id="):
        message.message_id = rest.removeprefix("message-id=")
    elif daemon == "qmgr" and rest.startswith("from=<"):
        message.is_queued = True
        message.sender = rest.removeprefix("from=<").split(">")[0]
    elif daemon == "qmgr" and rest == "removed":
        message.is_removed = True
    elif delivery := _DELIVERY.match(rest):
        message.deliveries.append((delivery["recipient"], delivery["status"], delivery["text"]))
