"""A client's connection: says something, counts the replies, tells when all are there. Opens itself up to EHLO, with STARTTLS.

Owns one socket. Does not own what is said when: that is traffic.py's and holder.py's.
Invariant: one `say` at a time, and each ends in exactly one call: `then`, or `failed` of the session.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from bench.wire import TlsLayer

EHLO = b"EHLO load.bench.test\r\n"
Then = Callable[[], None]


class Session(asyncio.Protocol):
    __slots__ = (
        *("_buffer", "_context", "_failed", "_is_over", "_layer", "_opened", "_then", "_transport"),
        *("_replies_due",),
    )

    def __init__(
        self, context: ssl.SSLContext | None, opened: Callable[[Session], None], failed: Callable[[str], None]
    ) -> None:
        self._context = context  # None: without TLS
        self._opened = opened
        self._failed = failed
        self._layer: TlsLayer | None = None
        self._buffer = b""
        self._replies_due = 1
        self._then: Then = self._greeted
        self._is_over = False

    def say(self, data: bytes, replies: int, then: Then) -> None:
        """`then` is called when so many replies have come, each 2xx or 3xx."""
        self._replies_due = replies
        self._then = then
        self._write(data)

    def quit(self, then: Then) -> None:
        """`then` once it is answered. The connection is closed."""
        self.say(b"QUIT\r\n", 1, lambda: self._end(then))

    def close(self) -> None:
        self._is_over = True
        self._transport.abort()

    # -- opening

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def _greeted(self) -> None:
        self.say(EHLO, 1, self._ready if self._context is None else self._ask_for_tls)

    def _ask_for_tls(self) -> None:
        self.say(b"STARTTLS\r\n", 1, self._shake_hands)

    def _shake_hands(self) -> None:
        assert self._context is not None
        self._layer = TlsLayer(self._context, server_side=False)
        self._flush(self._layer)

    def _ready(self) -> None:
        self._opened(self)

    # -- octets

    def _write(self, data: bytes) -> None:
        if self._layer is None:
            self._transport.write(data)
        else:
            self._layer.seal(data)
            self._flush(self._layer)

    def _flush(self, layer: TlsLayer) -> None:
        data = layer.outgoing()
        if data:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        layer = self._layer
        if layer is not None:
            was_established = layer.is_established
            try:
                data = layer.receive(data)
            except ssl.SSLError as error:
                self._fail(f"TLS: {error.reason}")
                return
            self._flush(layer)
            if layer.is_established and not was_established:
                self.say(EHLO, 1, self._ready)
            if not data:
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        *lines, self._buffer = data.split(b"\r\n")
        for line in lines:
            if line[3:4] == b"-":
                continue
            if line[:1] not in (b"2", b"3"):
                self._fail(line.decode("ascii", "replace"))
                return
            self._replies_due -= 1
            if self._replies_due == 0:
                self._then()

    # -- its end

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection lost")

    def _fail(self, reason: str) -> None:
        if not self._is_over:
            self.close()
            self._failed(reason)

    def _end(self, then: Then) -> None:
        self._is_over = True
        self._transport.close()
        then()
