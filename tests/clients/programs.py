"""Real clients, each with the same two verbs: whether it can run here, and send.

Owns their options. Does not own what arrives. Invariant: wherever TLS is spoken the client verifies the certificate.
"""

from __future__ import annotations

import json
import smtplib
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tests.clients.front import HOST, Door, Tls
from tests.clients.mail import Login, Mail
from tests.lab.process import LAB_DIR, missing_program

HELO = "client.test"
TIMEOUT_S = 20.0
PROXY_SOURCE, PROXY_PORT = "192.0.2.7", 4711  # what swaks says in a PROXY header

NODE_MODULES = LAB_DIR / "nodemailer" / "node_modules"  # as in scripts/mtas


class Refused(Exception):
    """The client did not get rid of the message; its own words."""


class Client(Protocol):
    name: ClassVar[str]
    sends_header: ClassVar[bool]  # speaks the PROXY protocol itself

    def available(self) -> str | None:
        """Why it cannot run here, None if it can."""

    def send(self, door: Door, mail: Mail, login: Login | None = None, mechanism: str = "PLAIN") -> None:
        """Returns once the client was told that the message was taken; Refused if it was not."""


def run(
    command: Sequence[str], standard_input: bytes = b"", environment: Mapping[str, str] | None = None
) -> str:
    ended = subprocess.run(
        command,
        input=standard_input,
        capture_output=True,
        check=False,
        timeout=TIMEOUT_S,
        env=dict(environment) if environment is not None else None,
    )
    output = (ended.stdout + ended.stderr).decode(errors="replace")
    if ended.returncode != 0:
        raise Refused(f"{command[0]} ended with {ended.returncode}: {output}")
    return output


class Smtplib:
    """Python's own."""

    name: ClassVar[str] = "smtplib"
    sends_header: ClassVar[bool] = False

    def available(self) -> str | None:
        return None

    def send(self, door: Door, mail: Mail, login: Login | None = None, mechanism: str = "PLAIN") -> None:
        context = ssl.create_default_context(cafile=door.ca)
        try:
            with self._connected(door, context) as client:
                if door.tls is Tls.STARTTLS:
                    client.starttls(context=context)
                if login is not None:
                    client.ehlo()
                    client.user, client.password = login.user, login.password
                    client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))
                client.sendmail(mail.sender, [mail.recipient], mail.content)
        except (OSError, smtplib.SMTPException) as error:  # the former: also of TLS
            raise Refused(str(error)) from error

    def _connected(self, door: Door, context: ssl.SSLContext) -> smtplib.SMTP:
        if door.tls is Tls.IMPLICIT:
            return smtplib.SMTP_SSL(HOST, door.port, local_hostname=HELO, timeout=TIMEOUT_S, context=context)
        return smtplib.SMTP(HOST, door.port, local_hostname=HELO, timeout=TIMEOUT_S)


class Swaks:
    name: ClassVar[str] = "swaks"
    sends_header: ClassVar[bool] = True

    def available(self) -> str | None:
        return missing_program("/usr/bin/swaks", "swaks")

    def send(self, door: Door, mail: Mail, login: Login | None = None, mechanism: str = "PLAIN") -> None:
        command = ["/usr/bin/swaks", "--server", HOST, "--port", str(door.port), "--helo", HELO]
        command += ["--from", mail.sender, "--to", mail.recipient, "--data", "-", "--timeout", "15"]
        if door.tls is not Tls.NONE:
            command += ["--tls" if door.tls is Tls.STARTTLS else "--tls-on-connect"]
            command += ["--tls-verify", "--tls-ca-path", door.ca]
        if login is not None:
            command += ["--auth", mechanism, "--auth-user", login.user, "--auth-password", login.password]
        if door.header:
            command += ["--proxy-version", "2", "--proxy-family", "AF_INET"]
            command += ["--proxy-source", PROXY_SOURCE, "--proxy-source-port", str(PROXY_PORT)]
            command += ["--proxy-dest", HOST, "--proxy-dest-port", str(door.port)]
        run(command, mail.text.removesuffix(b"\n"))  # it puts a line end behind whatever it is given


class Curl:
    name: ClassVar[str] = "curl"
    sends_header: ClassVar[bool] = False

    def available(self) -> str | None:
        return missing_program("/usr/bin/curl", "curl")

    def send(self, door: Door, mail: Mail, login: Login | None = None, mechanism: str = "PLAIN") -> None:
        scheme = "smtps" if door.tls is Tls.IMPLICIT else "smtp"
        command = ["/usr/bin/curl", "--disable", "--silent", "--show-error", "--verbose"]
        command += ["--url", f"{scheme}://{HOST}:{door.port}/{HELO}", "--noproxy", "*"]
        command += ["--mail-from", mail.sender, "--mail-rcpt", mail.recipient, "--upload-file", "-"]
        if door.tls is not Tls.NONE:
            command += ["--ssl-reqd", "--cacert", door.ca]
        if login is not None:
            command += ["--user", f"{login.user}:{login.password}", "--login-options", f"AUTH={mechanism}"]
        run(command, mail.content)


class Msmtp:
    name: ClassVar[str] = "msmtp"
    sends_header: ClassVar[bool] = False

    def available(self) -> str | None:
        return missing_program("/usr/bin/msmtp", "msmtp")

    def send(self, door: Door, mail: Mail, login: Login | None = None, mechanism: str = "PLAIN") -> None:
        # With --host no configuration file of the user or the system is read.
        command = ["/usr/bin/msmtp", f"--host={HOST}", f"--port={door.port}", f"--domain={HELO}"]
        command += [f"--from={mail.sender}", "--timeout=15"]
        if door.tls is not Tls.NONE:
            command += ["--tls=on", f"--tls-trust-file={door.ca}"]
            command += [f"--tls-starttls={'on' if door.tls is Tls.STARTTLS else 'off'}"]
        if login is not None:
            command += [f"--auth={mechanism.lower()}", f"--user={login.user}"]
            command += [f"--passwordeval=printf %s {login.password}"]
        run([*command, "--", mail.recipient], mail.text)


_NODE = """
const nodemailer = require('nodemailer');
const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
nodemailer.createTransport(given.transport).sendMail(given.mail).then(
    () => process.exit(0),
    (error) => { console.error(String(error)); process.exit(1); },
);
"""


class Nodemailer:
    name: ClassVar[str] = "nodemailer"
    sends_header: ClassVar[bool] = False

    def available(self) -> str | None:
        missing = missing_program(_node(), "node")
        if missing is None and not (NODE_MODULES / "nodemailer" / "package.json").exists():
            missing = f"nodemailer is not installed ({NODE_MODULES}; it comes by npm, where there is one)"
        return missing

    def send(self, door: Door, mail: Mail, login: Login | None = None, mechanism: str = "PLAIN") -> None:
        transport: dict[str, Any] = {
            "host": HOST,
            "port": door.port,
            "name": HELO,
            "secure": door.tls is Tls.IMPLICIT,
            "requireTLS": door.tls is Tls.STARTTLS,
            "ignoreTLS": door.tls is Tls.NONE,
            "tls": {"ca": [Path(door.ca).read_text()]},
        }
        if login is not None:
            transport |= {"auth": {"user": login.user, "pass": login.password}, "authMethod": mechanism}
        message = {
            "envelope": {"from": mail.sender, "to": [mail.recipient]},
            "raw": mail.text.decode(),
        }
        given = json.dumps({"transport": transport, "mail": message}).encode()
        run([_node(), "-e", _NODE], given, {"NODE_PATH": str(NODE_MODULES), "PATH": "/usr/bin:/bin"})


def _node() -> str:
    places = [Path("/usr/bin/node"), Path("/usr/local/bin/node")]
    return str(next((place for place in places if place.exists()), places[0]))


CLIENTS: list[Client] = [Smtplib(), Swaks(), Curl(), Msmtp(), Nodemailer()]
