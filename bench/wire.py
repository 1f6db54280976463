"""TLS over memory buffers, for the load and for the sinks: bytes in, bytes out.

Owns no socket. Written apart from smtplb's own layer, so that neither hides a mistake of the other.
"""

from __future__ import annotations

import ssl

_READ_BYTES = 65536


class TlsLayer:
    """One side of a TLS connection. Whatever `outgoing` returns must be written, in order."""

    __slots__ = ("_in", "_object", "_out", "is_established")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_side=server_side)
        self.is_established = False
        if not server_side:
            self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """Plain text that came with these octets; empty while hands are shaken."""
        self._in.write(data)
        if not self.is_established:
            self._shake_hands()
            if not self.is_established:
                return b""
        pieces = []
        try:
            while piece := self._object.read(_READ_BYTES):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        return b"".join(pieces)

    def seal(self, plain: bytes) -> None:
        self._object.write(plain)

    def outgoing(self) -> bytes:
        return self._out.read()

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.is_established = True


def client_context() -> ssl.SSLContext:
    """Believes anybody, and never resumes a session: each connection costs a whole handshake, as from ever new clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
