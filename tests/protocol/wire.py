"""One end of a connection in a test's hands: bytes, TLS on demand, and waiting for what must come.

Owns the transport and, once begun, a TLS engine over memory buffers, so that a test decides which bytes leave in which
segment. Does not own what is said.
Invariant: nothing waits for a fixed time; what does not come within PATIENCE_S fails the test.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")
PATIENCE_S = 10.0
_POLL_S = 0.005


async def until(ready: Callable[[], T | None], what: str = "") -> T:
    """The first answer of `ready` that is true."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PATIENCE_S
    turns = 0
    while True:
        answer = ready()
        if answer:
            return answer
        assert loop.time() < give_up_at, f"waited in vain: {what}"
        turns += 1
        await asyncio.sleep(0 if turns < 50 else _POLL_S)


class Wire(asyncio.Protocol):
    """See the module. Subclasses take what comes by heard(), and are told of the end by ended()."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.segments: list[bytes] = []  # as they came from the socket
        self.over = ""  # "close_notify", "eof" or "lost" once the other side has ended
        self.engine: ssl.SSLObject | None = None
        self.handshaken = False
        self.tls_error = ""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._changed = asyncio.Event()

    # -- for subclasses ------------------------------------------------------------------------------

    def connected(self) -> None: ...

    def heard(self, data: bytes) -> None: ...

    def secured(self) -> None: ...

    def ended(self) -> None: ...

    # -- transport callbacks -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connected()

    def data_received(self, data: bytes) -> None:
        self.segments.append(data)
        if self.engine is None:
            self.heard(data)
        else:
            self._incoming.write(data)
            self._turn_engine()
        self._changed.set()

    def eof_received(self) -> bool:
        self._end("eof")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._end("lost")

    def _end(self, how: str) -> None:
        if not self.over:
            self.over = how
            self.ended()
        self._changed.set()

    # -- TLS -----------------------------------------------------------------------------------------

    def begin_tls(
        self, context: ssl.SSLContext, *, server_side: bool = False, name: str | None = None
    ) -> None:
        """From here on everything goes through TLS; a client says its ClientHello at once."""
        self.engine = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=name or None
        )
        self._turn_engine()

    def client_hello(self, context: ssl.SSLContext, name: str | None = None) -> bytes:
        """begin_tls(), but the ClientHello is the caller's to send."""
        self.engine = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        try:
            self.engine.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def _turn_engine(self) -> None:
        engine = self.engine
        assert engine is not None
        try:
            if not self.handshaken:
                engine.do_handshake()
                self.handshaken = True
                self._flush_engine()
                self.secured()
            while data := engine.read(65536):
                self.heard(data)
            self._end("close_notify")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if isinstance(error, ssl.SSLZeroReturnError):
                self._end("close_notify")
            else:
                self.tls_error = error.reason or str(error)
        self._flush_engine()

    def _flush_engine(self) -> None:
        if self._outgoing.pending:
            self.send_raw(self._outgoing.read())

    def sealed(self, data: bytes, record_bytes: int = 16384) -> bytes:
        """`data` as TLS records of at most `record_bytes` octets each, not sent yet."""
        assert self.engine is not None
        for at in range(0, len(data), record_bytes):
            self.engine.write(data[at : at + record_bytes])
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Not sent yet."""
        assert self.engine is not None
        try:
            self.engine.unwrap()
        except ssl.SSLError:
            pass
        return self._outgoing.read()

    # -- sending -------------------------------------------------------------------------------------

    def send_raw(self, data: bytes) -> None:
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.write(data)

    def send(self, data: bytes) -> None:
        self.send_raw(data if self.engine is None else self.sealed(data))

    def eof(self) -> None:
        assert self.transport is not None
        self.transport.write_eof()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """End the connection with RST."""
        if self.transport is not None and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def stop_reading(self) -> None:
        assert self.transport is not None
        self.transport.pause_reading()

    def read_on(self) -> None:
        assert self.transport is not None
        self.transport.resume_reading()

    async def changed(self) -> None:
        """Something came, or ended."""
        self._changed.clear()
        await asyncio.wait_for(self._changed.wait(), PATIENCE_S)
