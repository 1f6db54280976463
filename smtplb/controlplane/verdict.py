"""What one check found: from a connection that came up, or did not, to a result in words.

Owns what a level takes for success, what the configured identity and TLS have to do with it, and the words.
Does not own when checks run (prober.py), nor what results in a row mean (policy/health.py).
Invariant: a connection that lacks the configured identity never passes, whatever the level (design 4.11).

A level says how far a backend must come: TLS that fails is a failure only for a level that needs it (`banner`
under implicit TLS, `ehlo` always). The identity counts at every level: without it no message could be sent.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from smtplb.controlplane.registry import CheckResult, Seen
from smtplb.controlplane.x509 import not_after
from smtplb.dataplane.connection import Connection, Failure
from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.outbox import Outbox
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import Reason
from smtplb.settings import BackendSettings, BackTlsMode, CheckLevel, IdentityMode
from smtplb.smtp.extensions import Capabilities
from smtplb.smtp.replies import Reply

MAX_TEXT: Final = 200  # characters of a result's text; a reply line may have 12,294 octets

# How far a backend must have come when a connection fails, for the level to pass all the same.
_PASSED_IF_FAILED_IN: Final[dict[CheckLevel, tuple[Phase, ...]]] = {
    CheckLevel.TCP: (Phase.GREETING, Phase.HELLO),
    CheckLevel.BANNER: (Phase.HELLO,),
    CheckLevel.EHLO: (),
}

# Our words where the backend had none. {hello}: the steps that a check takes behind the greeting.
_TEXTS: Final[dict[tuple[Reason, Phase], str]] = {
    (Reason.TIMEOUT, Phase.CONNECT): "no connection within {seconds} s",
    (Reason.TIMEOUT, Phase.GREETING): "no greeting within {seconds} s",
    (Reason.TIMEOUT, Phase.HELLO): "no answer to {hello} within {seconds} s",
    (Reason.LOST, Phase.GREETING): "connection closed before the greeting",
    (Reason.LOST, Phase.HELLO): "connection closed before the answer to {hello}",
    (Reason.GARBLED, Phase.GREETING): "the greeting is not SMTP: {detail}",
    (Reason.GARBLED, Phase.HELLO): "the answer to {hello} is not SMTP: {detail}",
}
_PROXY_MODES: Final = (IdentityMode.PROXY_V1, IdentityMode.PROXY_V2)
# How the header is answered where it is read as commands: v1 is one unknown command, v2 begins with empty
# lines and QUIT (specification 2.2). Not 501 and 504: those judge the name in EHLO.
_TO_A_COMMAND: Final = frozenset({221, 500, 502, 503})
_OPENSSL_NAME: Final = re.compile(r"[A-Z0-9]+(?:_[A-Z0-9]+)+\Z")  # CERTIFICATE_VERIFY_FAILED


class ProbeConnection(Protocol):
    """What a check needs of dataplane.connection.Connection; `greeted` and `answered` also before it is up."""

    @property
    def phase(self) -> Phase: ...
    @property
    def greeted(self) -> Reply | None:
        """The greeting, once it has come."""

    @property
    def answered(self) -> Reply | None:
        """The last answer to EHLO or HELO so far."""

    @property
    def offered(self) -> Capabilities: ...
    @property
    def tls_version(self) -> str: ...
    def peer_certificate(self) -> bytes | None: ...


class CheckConnection(Connection):
    """A connection that nobody leases, and that can be looked at while it comes up."""

    __slots__ = ("_steps",)

    def __init__(
        self,
        settings: BackendSettings,
        *,
        hello: bytes,
        deadlines: Deadlines,
        outbox: Outbox,
        owner: object,
        clear: bool,
    ) -> None:
        # The owner of checks takes CheckConnections alone, which is what it gets.
        super().__init__(settings, hello=hello, deadlines=deadlines, outbox=outbox, owner=owner, clear=clear)  # type: ignore[arg-type]
        assert self._opening is not None
        self._steps = self._opening

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def greeted(self) -> Reply | None:
        return self._steps.greeting

    @property
    def answered(self) -> Reply | None:
        return self._steps.hello_reply

    @property
    def offered(self) -> Capabilities:
        return self._steps.capabilities

    def peer_certificate(self) -> bytes | None:
        """In DER, once there is TLS."""
        read = getattr(self._transport, "peer_certificate", None)
        return read() if read is not None and self.tls_version else None


def printable(words: bytes) -> str:
    """What a backend or the system said, fit for logs and views."""
    text = words[:MAX_TEXT].decode("ascii", "backslashreplace")
    return "".join(char if " " <= char <= "~" else " " for char in text)


def ready(settings: BackendSettings, connection: ProbeConnection, duration_s: float) -> CheckResult:
    """It came up, TLS and identity included."""
    if settings.identity in _PROXY_MODES and not connection.offered.keywords:
        # EHLO was refused and HELO taken: in truth the header was refused, and every answer is one late.
        return _no_proxy(duration_s)
    reached = {
        CheckLevel.TCP: None,
        CheckLevel.BANNER: connection.greeted,
        CheckLevel.EHLO: connection.answered,
    }[settings.check.level]
    text = printable(reached.text_line()) if reached else "connected"
    return CheckResult(True, text, duration_s, identity=True, seen=_seen(connection))


def failed(
    settings: BackendSettings, connection: ProbeConnection, failure: Failure, duration_s: float
) -> CheckResult:
    """It did not come up, or not in time."""
    if failure.reason is Reason.IDENTITY:
        hello = connection.answered
        seen = _seen(connection) if hello is not None and hello.code == 250 else None
        return CheckResult(False, f"identity: {printable(failure.detail)}", duration_s, False, seen)
    if settings.identity in _PROXY_MODES and _reads_header_as_command(connection, failure):
        return _no_proxy(duration_s, failure.reply)
    level = settings.check.level
    if failure.phase in _PASSED_IF_FAILED_IN[level]:
        greeting = connection.greeted if level is CheckLevel.BANNER else None
        return CheckResult(True, printable(greeting.text_line()) if greeting else "connected", duration_s)
    connected = failure.phase is not Phase.CONNECT
    return CheckResult(False, _words(settings, failure, duration_s), duration_s, connected=connected)


def _reads_header_as_command(connection: ProbeConnection, failure: Failure) -> bool:
    """It greeted, and then said something that answers neither the greeting's end nor EHLO."""
    if connection.greeted is None or connection.greeted.code != 220:
        return False
    if failure.reply is not None:
        return failure.reply.code in _TO_A_COMMAND
    return failure.reason is Reason.GARBLED


def _no_proxy(duration_s: float, reply: Reply | None = None) -> CheckResult:
    said = "" if reply is None else f" ({printable(reply.text_line())})"
    return CheckResult(False, f"identity: does not take the PROXY header{said}", duration_s, identity=False)


def _words(settings: BackendSettings, failure: Failure, duration_s: float) -> str:
    if failure.reason is Reason.TLS:
        detail = printable(failure.detail)
        if _OPENSSL_NAME.match(detail):
            detail = detail.replace("_", " ").lower()
        return f"TLS: {detail}"
    if failure.reply is not None:
        return printable(failure.reply.text_line())
    text = _TEXTS.get((failure.reason, failure.phase), "{detail}")
    return text.format(
        seconds=f"{duration_s:.0f}" if duration_s >= 2 else f"{duration_s:.1f}",
        hello="EHLO" if settings.tls.mode in (BackTlsMode.OFF, BackTlsMode.IMPLICIT) else "EHLO and STARTTLS",
        detail=printable(failure.detail),
    )


def _seen(connection: ProbeConnection) -> Seen:
    der = connection.peer_certificate()
    expires = None
    if der is not None:
        try:
            expires = not_after(der)
        except ValueError:
            pass  # OpenSSL took it, we cannot read it: nothing is known of its end
    return Seen(connection.offered.keywords, connection.tls_version, expires)
