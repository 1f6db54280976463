"""TLS between a raw transport and a session or connection: one layer for both ends, both roles.

Owns the TLS engine, the order of handshake, data and close_notify, and flow control through it. Does not own contexts
(certificates.py), deadlines, or what to do when a handshake fails.
Invariant: bytes that came before the handshake never reach the user as if they came through it, and none that come after
the end of TLS reach it at all. Everything that is written in one turn leaves in one write.

Our own over ssl.MemoryBIO rather than loop.start_tls: that one keeps about 150 KiB for each session after a large message,
awaits in a task, and leaves plaintext buffered behind STARTTLS to be found; this one keeps about 17 KiB and has no task.
The PROXY header is read below it, so a header and a ClientHello in one segment work (uvloop issue 707).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Protocol, cast

SLICE_BYTES: Final = (
    16 * 1024
)  # a TLS record. The engine's buffers keep the size of the largest piece they ever held
READ_BYTES: Final = 64 * 1024  # handed on at a time, about


class User(Protocol):
    """Session or connection: an asyncio protocol that also hears of the handshake."""

    def tls_established(self) -> None:
        """The handshake is done; what is written from now on is protected."""

    def tls_failed(self, words: bytes) -> None:
        """The handshake failed; the raw transport is closed by the layer. connection_lost follows."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, error: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class _Nobody:
    """The user of a stream that is over: hears nothing."""

    def tls_established(self) -> None: ...

    def tls_failed(self, words: bytes) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, error: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


_NOBODY: Final = _Nobody()


class TlsStream:
    """A transport to its user, a protocol to the raw transport. Only what the data path uses of asyncio.Transport is here."""

    __slots__ = (
        "_at_eof",
        "_closing",
        "_deaf",
        "_ended",
        "_engine",
        "_established",
        "_incoming",
        "_loop",
        "_outgoing",
        "_paused",
        "_pumping",
        "_raw",
        "_turn",
        "_user",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: asyncio.Transport,
        user: User,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        self._loop = loop
        self._raw = raw
        self._user: User = user
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._engine = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._established = False
        self._at_eof = False  # of what is below; the engine may still hold what came before
        self._ended = False  # close_notify or EOF came, and the user was told
        self._deaf = False  # nothing that comes is of interest any more
        self._closing = False
        self._paused = False
        self._pumping = False  # a look at what the engine holds is due
        self._turn: list[bytes] | None = None  # records of this turn, while one is under way

    def start(self, already_received: bytes = b"") -> None:
        """Take over the raw transport and begin the handshake. `already_received` came behind what ended the clear part by
        design (a PROXY header), never behind STARTTLS."""
        self._raw.set_protocol(cast("asyncio.BaseProtocol", self))
        self._turn = []
        try:
            if already_received:
                self._take(already_received)
            else:
                self._handshake()
        finally:
            self._end_turn()

    # -- for the user: a transport -----------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Protect and send; in one write with all else of this turn."""
        if self._closing or not data:
            return
        alone = self._turn is None
        if alone:
            self._turn = []
        try:
            view = memoryview(data)
            for at in range(0, len(data), SLICE_BYTES):
                self._engine.write(view[at : at + SLICE_BYTES])
                self._drain_engine()
        except ssl.SSLError:
            self.abort()
        if alone:
            self._end_turn()

    def writelines(self, pieces: list[bytes]) -> None:
        """As one write: a record holds 16 KiB at the most, whoever joins the pieces."""
        self.write(b"".join(pieces))

    def close(self) -> None:
        """close_notify, then close what is below once it was sent."""
        if self._closing:
            return
        self._closing = True
        self._deaf = True
        if self._established:
            try:
                self._engine.unwrap()
            except ssl.SSLError:
                pass  # wants the other side's close_notify, which nobody waits for
            self._drain_engine()
        turn, self._turn = self._turn, None
        if turn:
            self._raw.write(turn[0] if len(turn) == 1 else b"".join(turn))
            self._turn = []
        self._raw.close()

    def abort(self) -> None:
        self._closing = self._deaf = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._raw.resume_reading()
            if not self._pumping:
                # Never inside the user's call: it would be handed data while it still handles the last.
                self._pumping = True
                self._loop.call_soon(self._pump)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._raw.get_extra_info(name, default)

    @property
    def version(self) -> str:
        """ "TLSv1.3" """
        return self._engine.version() or ""

    @property
    def cipher(self) -> str:
        cipher = self._engine.cipher()
        return cipher[0] if cipher is not None else ""

    def peer_certificate(self) -> bytes | None:
        """The other side's certificate in DER, if it showed one."""
        return self._engine.getpeercert(binary_form=True)

    # -- for the raw transport: a protocol ---------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._ended:
            return
        self._turn = []
        try:
            self._take(data)
        finally:
            self._end_turn()

    def eof_received(self) -> bool:
        """EOF without close_notify ends TLS just the same: nothing behind it is read."""
        if not self._established or self._deaf:
            return False
        self._at_eof = True
        self._turn = []
        try:
            self._read()
        finally:
            self._end_turn()
        return not self._closing

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = self._deaf = True
        # The user knows its transport, and may go on asking it for version and cipher: were it known here as well, both
        # would stay, with the engine's buffers, until the garbage collector comes by.
        user, self._user = self._user, _NOBODY
        user.connection_lost(error)

    def pause_writing(self) -> None:
        self._user.pause_writing()

    def resume_writing(self) -> None:
        self._user.resume_writing()

    # -- inside ------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """Feed the engine piece by piece, so that its buffers stay small."""
        if len(data) <= SLICE_BYTES:
            self._incoming.write(data)
            self._advance()
            return
        view = memoryview(data)
        for at in range(0, len(data), SLICE_BYTES):
            self._incoming.write(view[at : at + SLICE_BYTES])
            self._advance()

    def _advance(self) -> None:
        if not self._established:
            self._handshake()
        if self._established:
            self._read()

    def _handshake(self) -> None:
        if self._deaf:
            return
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            self._drain_engine()
            return
        except (ssl.SSLError, ssl.CertificateError, OSError) as error:
            self._deaf = True
            self._drain_engine()  # the alert
            self._end_turn()
            self._user.tls_failed(_words(error))
            self._closing = True
            self._raw.close()
            return
        self._established = True
        self._drain_engine()
        self._user.tls_established()

    def _read(self) -> None:
        """Hand on what the engine has, until it has no more or the user wants no more."""
        while not (self._paused or self._deaf or self._ended):
            data, at_end = self._gather()
            if data:
                self._user.data_received(data)
            elif at_end:
                self._ended = True
                self._tell_end()
            else:
                break
        self._drain_engine()  # TLS 1.3: session tickets, key updates

    def _gather(self) -> tuple[bytes, bool]:
        """(what the engine holds, up to about READ_BYTES; the end came behind it). A record may hold a single octet: each handed
        on by itself would cost a write to the backend."""
        pieces: list[bytes] = []
        size = 0
        try:
            # No more than a record: read() makes room for all that it may give, and cutting that down leaves the heap in pieces.
            while size < READ_BYTES and (data := self._engine.read(SLICE_BYTES)):
                pieces.append(data)
                size += len(data)
            at_end = size < READ_BYTES
        except ssl.SSLWantReadError:
            at_end = self._at_eof
        except (
            ssl.SSLError
        ):  # includes close_notify (SSLZeroReturnError) and a broken record; it will say so again
            at_end = True
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), at_end

    def _tell_end(self) -> None:
        if not self._user.eof_received():
            self.close()

    def _pump(self) -> None:
        """After a pause: what the engine already holds."""
        self._pumping = False
        if self._deaf or not self._established:
            return
        self._turn = []
        try:
            self._read()
        finally:
            self._end_turn()

    def _drain_engine(self) -> None:
        if self._outgoing.pending:
            record = self._outgoing.read()
            if self._turn is not None:
                self._turn.append(record)
            else:
                self._raw.write(record)

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn:
            self._raw.write(turn[0] if len(turn) == 1 else b"".join(turn))


def _words(error: BaseException) -> bytes:
    """The engine's words, for logs and views only."""
    text = str(getattr(error, "reason", None) or error)
    if text.isupper():  # OpenSSL's names of reasons
        text = text.replace("_", " ").lower()
    why = getattr(error, "verify_message", None)
    return (f"{text}: {why}" if why else text).encode("ascii", "replace")[:200]
