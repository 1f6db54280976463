"""How a connection to a backend comes up: PROXY header, TLS, greeting, EHLO, STARTTLS, XCLIENT, in the order of the RFCs.

Owns the steps until the connection can be used, and what each answer in them means. Does not own the transport or its
deadline (connection.py). Lives only until the connection is ready or has failed.
Invariant: mail never goes on without the configured TLS and identity (design 4.11); plaintext that came before a handshake
is forgotten with everything learned from it (RFC 3207 4.2).
"""

from __future__ import annotations

import ssl
from enum import Enum, auto
from typing import Final, Protocol

from smtplb.dataplane.certificates import client_context
from smtplb.dataplane.identity import Identity
from smtplb.policy.outcome import Reason
from smtplb.settings import BackendSettings, BackTlsMode, IdentityMode
from smtplb.smtp.extensions import Capabilities
from smtplb.smtp.identity import XCLIENT_NAMES, build_commands
from smtplb.smtp.proxy_header import build_v2_local
from smtplb.smtp.replies import Reply


class Line(Protocol):
    """The connection, as its opening sees it."""

    def write(self, data: bytes) -> None: ...

    def endpoints(self) -> tuple[tuple[str, int], tuple[str, int]] | None:
        """(our address, the backend's) of the socket; None for a unix socket."""

    def begin_tls(self, context: ssl.SSLContext, server_name: str | None) -> None:
        """Forget what was read and begin the handshake; tls_established follows."""

    def in_step(self) -> bool:
        """Nothing came behind the last reply; else the connection has failed."""

    def hello_sent(self) -> None:
        """The greeting was good: from here on EHLO's timeout counts."""

    def opened(self) -> None: ...

    def not_opened(self, reason: Reason, detail: bytes, reply: Reply | None) -> None: ...


class _Awaiting(Enum):
    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    STARTTLS = auto()
    HANDSHAKE = auto()
    XCLIENT = auto()


# What an MTA says to a line that it takes for an unknown command, or for one out of order.
_TO_A_COMMAND: Final = frozenset({221, 500, 502, 503})


class Opening:
    """See the module. `identity` None: a check, which speaks for nobody. `clear`: TLS is opportunistic and failed lately."""

    __slots__ = (
        "_awaiting",
        "_clear",
        "_identity",
        "_line",
        "_own_hello",
        "_settings",
        "_tls_done",
        "_xclient",
        "_xclient_done",
        "capabilities",
        "greeting",
        "hello_reply",
        "identity_sent",
    )

    def __init__(
        self, line: Line, settings: BackendSettings, hello: bytes, identity: Identity | None, *, clear: bool
    ) -> None:
        self._line = line
        self._settings = settings
        self._identity = identity if settings.identity.binds else None
        self._own_hello = hello
        self._clear = clear
        self._awaiting = _Awaiting.GREETING
        self._tls_done = False
        self._xclient: list[bytes] = []
        self._xclient_done = False
        self.greeting: Reply | None = None
        self.hello_reply: Reply | None = None
        self.capabilities = Capabilities()
        self.identity_sent = False  # from here on an error reply is a verdict on the client

    def connected(self) -> None:
        """The PROXY header goes first and in one write; then TLS where it is implicit."""
        if self._told_by_proxy:
            header = self._proxy_header()
            if header is None:
                self._line.not_opened(Reason.IDENTITY, b"no client address to tell", None)
                return
            self.identity_sent = self._identity is not None
            self._line.write(header)
        if self._settings.tls.mode is BackTlsMode.IMPLICIT:
            self._begin_tls()

    @property
    def _told_by_proxy(self) -> bool:
        return self._settings.identity in (IdentityMode.PROXY_V1, IdentityMode.PROXY_V2)

    @property
    def in_handshake(self) -> bool:
        return self._awaiting is _Awaiting.HANDSHAKE

    def _proxy_header(self) -> bytes | None:
        mode = self._settings.identity
        if self._identity is not None:
            return self._identity.proxy_header(mode)
        if mode is IdentityMode.PROXY_V2:
            return build_v2_local()
        endpoints = (
            self._line.endpoints()
        )  # Postfix refuses UNKNOWN: a check tells the socket's real addresses
        return Identity.of_own("check", *endpoints).proxy_header(mode) if endpoints is not None else None

    def reply(self, reply: Reply) -> None:
        """The next reply of the backend."""
        match self._awaiting:
            case _Awaiting.GREETING:
                self._greeted(reply)
            case _Awaiting.EHLO | _Awaiting.HELO:
                self._hello_answered(reply)
            case _Awaiting.STARTTLS:
                self._starttls_answered(reply)
            case _Awaiting.XCLIENT:
                self._xclient_answered(reply)
            case _Awaiting.HANDSHAKE:
                raise AssertionError("a reply during the handshake")

    def tls_established(self) -> None:
        self._tls_done = True
        if self._settings.tls.mode is BackTlsMode.IMPLICIT:
            self._awaiting = _Awaiting.GREETING
        else:
            self._send_ehlo()

    # -- steps -------------------------------------------------------------------------------------

    def _greeted(self, reply: Reply) -> None:
        self.greeting = reply
        if reply.code != 220:
            self._line.not_opened(Reason.GREETING, reply.text_line(), reply)
            return
        self._line.hello_sent()
        self._send_ehlo()

    def _send_ehlo(self) -> None:
        self._say(_Awaiting.EHLO, b"EHLO %s\r\n" % self._hello)

    @property
    def _hello(self) -> bytes:
        """Once a backend was told of the client it hears the client's name, which it checks and logs; before that ours: it
        would be blamed for what it thinks of a name that a client chose."""
        identity = self._identity
        return (identity.helo if identity is not None and self.identity_sent else b"") or self._own_hello

    def _say(self, awaiting: _Awaiting, line: bytes) -> None:
        """One command. What came before it was said cannot be the answer to it."""
        if self._line.in_step():
            self._awaiting = awaiting
            self._line.write(line)

    def _hello_answered(self, reply: Reply) -> None:
        self.hello_reply = reply
        if reply.code == 250:
            self.capabilities = Capabilities(reply if self._awaiting is _Awaiting.EHLO else None)
            self._after_hello()
        elif self._told_by_proxy and (reply.code in _TO_A_COMMAND):
            # It read the header as a command: every further reply would be one late, and the client unknown.
            self.identity_sent = False
            self._line.not_opened(
                Reason.IDENTITY, b"does not take the PROXY header: " + reply.text_line(), None
            )
        elif self._awaiting is _Awaiting.EHLO and reply.code in (500, 502, 504):  # RFC 5321 3.2
            self._say(_Awaiting.HELO, b"HELO %s\r\n" % self._hello)
        else:
            self._line.not_opened(Reason.GREETING, reply.text_line(), reply)

    def _after_hello(self) -> None:
        """What is still missing: TLS, then the identity."""
        mode = self._settings.tls.mode
        if (
            mode in (BackTlsMode.REQUIRED, BackTlsMode.OPPORTUNISTIC)
            and not self._tls_done
            and not self._clear
        ):
            if b"STARTTLS" in self.capabilities:
                self._say(_Awaiting.STARTTLS, b"STARTTLS\r\n")
                return
            if mode is BackTlsMode.REQUIRED:
                self._line.not_opened(Reason.TLS, b"does not offer STARTTLS", None)
                return
        if self._identity_settled():
            self._line.opened()

    def _starttls_answered(self, reply: Reply) -> None:
        if reply.code == 220:
            self._begin_tls()
        elif self._settings.tls.mode is BackTlsMode.OPPORTUNISTIC:
            self._clear = True  # 454 and the like: on in clear
            self._after_hello()
        else:
            self._line.not_opened(Reason.TLS, reply.text_line(), None)

    def _begin_tls(self) -> None:
        self._awaiting = _Awaiting.HANDSHAKE
        self.capabilities = Capabilities()
        tls = self._settings.tls
        try:
            context = client_context(tls)
        except (OSError, ssl.SSLError) as error:
            self._line.not_opened(Reason.TLS, f"CA file: {error}".encode("ascii", "replace")[:200], None)
            return
        try:
            self._line.begin_tls(context, tls.server_name or self._settings.address.host or None)
        except ValueError as error:  # a name that cannot be asked for, or none where one is to be verified
            self._line.not_opened(Reason.TLS, f"server name: {error}".encode("ascii", "replace")[:200], None)

    # -- identity ----------------------------------------------------------------------------------

    def _identity_settled(self) -> bool:
        """True if nothing is left to do; else the next step was taken."""
        mode = self._settings.identity
        if mode not in (IdentityMode.XCLIENT, IdentityMode.XFORWARD) or self._xclient_done:
            return True
        verb = mode.value.upper().encode("ascii")
        offered = self.capabilities.keywords.get(verb)
        if offered is None:
            self._line.not_opened(Reason.IDENTITY, b"does not offer " + verb, None)
            return False
        names = frozenset(offered.upper().split()) & XCLIENT_NAMES
        if b"ADDR" not in names:
            self._line.not_opened(Reason.IDENTITY, verb + b" without ADDR", None)
            return False
        if self._identity is None or mode is IdentityMode.XFORWARD:
            return True  # a check speaks for nobody; XFORWARD goes before each MAIL
        self._xclient = build_commands(b"XCLIENT", self._identity.xclient(), names)
        self.identity_sent = True
        self._send_xclient()
        return False

    def _send_xclient(self) -> None:
        self._say(_Awaiting.XCLIENT, self._xclient.pop(0))

    def _xclient_answered(self, reply: Reply) -> None:
        if reply.code == 220:
            if self._xclient:
                self._send_xclient()
            else:
                # XCLIENT_README: the session is as it was after the greeting.
                self._xclient_done = True
                self._send_ehlo()
        elif reply.code in (500, 501, 502, 503, 504, 550):
            self.identity_sent = (
                False  # about us (550 5.7.0: "insufficient authorization"), not about the client
            )
            self._line.not_opened(Reason.IDENTITY, reply.text_line(), None)
        else:
            self._line.not_opened(Reason.GREETING, reply.text_line(), reply)
