"""A backend that keeps what it takes: an aiosmtpd that offers AUTH PLAIN and LOGIN, in a thread of its own.

Owns its port, its one account and the messages it took. Does not own what clients are told by the balancer.
Invariant: a message is kept before the 250 for it is written, octet for octet as it was before dots were doubled.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from email import message_from_bytes
from types import TracebackType
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.clients.mail import Login, Mail
from tests.lab import free_port, wait_until

ARRIVES_WITHIN_S = 15.0  # behind a mail server with a queue of its own


@dataclass(frozen=True, slots=True)
class Kept:
    """A message as the backend took it."""

    login: str  # who authenticated, "" for nobody
    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def message_id(self) -> str:
        return str(message_from_bytes(self.content)["Message-ID"])

    @property
    def body(self) -> bytes:
        return self.content.partition(b"\r\n\r\n")[2]

    def received(self) -> str:
        """Our Received line: the youngest of a message that no other server took in between."""
        lines = message_from_bytes(self.content).get_all("Received", [])
        return next(" ".join(line.split()) for line in lines if " (smtplb) " in line)


class _Controller(Controller):
    """aiosmtpd's own stop leaves connections open that clients keep."""

    def __init__(self, handler: Any, **options: Any) -> None:
        super().__init__(handler, **options)
        self._dialogues: list[SMTP] = []

    def factory(self) -> SMTP:
        dialogue: SMTP = super().factory()  # type: ignore[no-untyped-call]
        self._dialogues.append(dialogue)
        return dialogue

    def hang_up(self) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self.loop).result(ARRIVES_WITHIN_S)

    async def _hang_up(self) -> None:
        for dialogue in self._dialogues:
            if dialogue.transport is not None:
                dialogue.transport.close()
        tasks = [task for dialogue in self._dialogues if (task := dialogue._handler_coroutine) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


class Store:
    def __init__(self, account: Login) -> None:
        self.kept: list[Kept] = []
        self._account = account
        self._controller = _Controller(
            self,
            hostname="127.0.0.1",
            port=free_port(),
            server_hostname="store.test",
            enable_SMTPUTF8=True,
            authenticator=self._judge,
            auth_require_tls=False,  # the balancer in front asks for TLS
            auth_exclude_mechanism=(),
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._controller.port}"

    @property
    def port(self) -> int:
        return int(self._controller.port)

    def __enter__(self) -> Self:
        logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)  # it logs each dialogue
        self._controller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.hang_up()
        self._controller.stop()

    def of(self, mail: Mail) -> list[Kept]:
        return [kept for kept in list(self.kept) if kept.message_id == mail.message_id]

    def only(self, mail: Mail) -> Kept:
        """The message, once it is here: exactly once, for its recipient, with its body."""
        wait_until(lambda: bool(self.of(mail)), f"{mail.message_id} is at the backend", ARRIVES_WITHIN_S)
        (kept,) = self.of(mail)
        assert (kept.sender, kept.recipients) == (mail.sender, (mail.recipient,))
        assert kept.body == mail.body
        return kept

    # -- what aiosmtpd asks

    def _judge(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        sound = (data.login.decode(), data.password.decode()) == (self._account.user, self._account.password)
        return AuthResult(success=sound, handled=False, auth_data=data.login.decode())

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        login = str(session.auth_data) if session.authenticated else ""
        content = envelope.content
        assert isinstance(content, bytes)
        self.kept.append(Kept(login, envelope.mail_from or "", tuple(envelope.rcpt_tos), content))
        return "250 2.0.0 kept"
