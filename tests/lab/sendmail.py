"""Sendmail, unpacked beside the system's packages by scripts/mtas. Mail is queued and stays there.

Owns configuration and queue reading. Sendmail logs to syslog only, so what it accepted is read from its queue files.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.lab.mta import AcceptedMessage, Mta
from tests.lab.process import LAB_DIR, LabError, missing_program

ROOT = LAB_DIR / "sendmail"
BINARY = ROOT / "usr" / "libexec" / "sendmail" / "sendmail"
CF = ROOT / "usr" / "share" / "sendmail" / "cf"
SLOW_START_TIMEOUT_S = 90.0

_MC = """\
divert(-1)
define(`_CF_DIR_', `{cf}/')
include(`{cf}/m4/cf.m4')
divert(0)
OSTYPE(`linux')
define(`confDOMAIN_NAME', `{name}.lab.test')
define(`QUEUE_DIR', `{directory}/queue')
define(`confPID_FILE', `{directory}/pid')
define(`STATUS_FILE', `{directory}/statistics')
define(`confDELIVERY_MODE', `queueonly')
define(`confTO_IDENT', `0s')
define(`confQUEUE_LA', `999')
define(`confREFUSE_LA', `999')
define(`confDELAY_LA', `0')
FEATURE(`no_default_msa')
FEATURE(`nocanonify')
FEATURE(`accept_unresolvable_domains')
FEATURE(`promiscuous_relay')
{mc}
DAEMON_OPTIONS(`Port={port}, Addr=127.0.0.1, Name=MTA, Listen=1024')
MAILER(`local')
MAILER(`smtp')
{rules}
"""

# Before it reads its configuration Sendmail asks DNS for the name of its host and of every interface, and sleeps for a
# minute if that gives no dotted name. So it gets a host name and a /etc without DNS of its own, in namespaces. Where the
# kernel does not allow that, it starts all the same, slowly.
_OWN_WORLD = """\
name=$1.lab.test
shift
hostname "$name"
for file in hosts nsswitch.conf resolv.conf; do
    if [ -e "/etc/$file" ]; then mount --bind "etc-$file" "/etc/$file"; fi
done
exec "$@"
"""
_OWN_ETC = {
    "hosts": "127.0.0.1 {name}.lab.test {name} localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
}

_MESSAGE_ID = re.compile(r"^H\?[^?]*\?message-id: *(<[^>]*>)", re.IGNORECASE)


class Sendmail(Mta):
    """One Sendmail.

    mc           more lines for the .mc file, before the mailers
    rules        more lines behind the mailers: LOCAL_RULESETS and the like
    transcript   record every conversation (`transcript_text`)
    """

    kind = "sendmail"

    def __init__(
        self,
        name: str | None = None,
        *,
        port: int | None = None,
        mc: Iterable[str] = (),
        rules: Iterable[str] = (),
        transcript: bool = False,
    ) -> None:
        super().__init__(name, port)
        self._mc = list(mc)
        self._rules = list(rules)
        self._transcript = transcript

    @classmethod
    def available(cls) -> str | None:
        return missing_program(BINARY, "Sendmail", needs_root=True) or missing_program("/usr/bin/m4", "m4")

    def _prepare(self) -> None:
        (self.directory / "queue").mkdir(mode=0o700)
        for name, text in _OWN_ETC.items():
            (self.directory / f"etc-{name}").write_text(text.format(name=self.name))
        source = self.directory / "sendmail.mc"
        source.write_text(
            _MC.format(
                cf=CF,
                name=self.name,
                directory=self.directory,
                port=self.port,
                mc="\n".join(self._mc),
                rules="\n".join(self._rules),
            )
        )
        made = subprocess.run(["m4", str(source)], capture_output=True, check=False)
        if made.returncode != 0:
            raise LabError(f"m4 failed: {made.stderr.decode(errors='replace')}")
        (self.directory / "sendmail.cf").write_bytes(made.stdout)

    def _command(self) -> list[str]:
        command = [str(BINARY), "-C", str(self.directory / "sendmail.cf"), "-bD"]
        if self._transcript:
            command += ["-X", str(self.directory / "transcript")]
        return (
            ["unshare", "--uts", "--mount", "sh", "-c", _OWN_WORLD, "sh", self.name, *command]
            if _may_unshare()
            else command
        )

    def _start_timeout_s(self) -> float:
        return SLOW_START_TIMEOUT_S

    # -- looking at it

    def transcript_text(self) -> str:
        path = self.directory / "transcript"
        return path.read_text(errors="replace") if path.exists() else ""

    def accepted(self) -> list[AcceptedMessage]:
        """A queue file is named qf... only once the message is complete and safe."""
        files = sorted((self.directory / "queue").glob("qf*"), key=lambda path: path.stat().st_mtime_ns)
        return [_read_queue_file(path) for path in files]


def _may_unshare() -> bool:
    return (
        subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode
        == 0
    )


def _read_queue_file(path: Path) -> AcceptedMessage:
    sender, message_id, recipients = "", "", []
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("S"):
            sender = line[1:].strip("<>")
        elif line.startswith("R"):
            recipients.append(line.rpartition(":")[2].strip("<>"))
        elif match := _MESSAGE_ID.match(line):
            message_id = match[1]
    return AcceptedMessage(path.name[2:], message_id, sender, tuple(recipients))
