"""`python -m bench.sink PORT CERTIFICATE KEY`: takes every message, with STARTTLS, which smtp-sink has not.

Owns one port. `XCOUNT` answers how many messages it took. Slower than smtp-sink, so only for what needs TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from typing import cast

import uvloop

from bench.wire import TlsLayer, server_context

END = b"\r\n.\r\n"
OFFER = b"250-sink.bench.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n"
ANSWERS = {b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}
OK = b"250 2.0.0 ok\r\n"


class Sink:
    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.messages = 0


class Taker(asyncio.Protocol):
    """A connection. In a body it looks for nothing but the end."""

    __slots__ = ("_buffer", "_in_body", "_layer", "_sink", "_tail", "_transport")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._layer: TlsLayer | None = None
        self._buffer = b""
        self._tail = b""  # the last octets of the body so far
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._transport.write(b"220 sink.bench.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        layer = self._layer
        if layer is None:
            self._write(self._take(data))
            return
        try:
            plain = layer.receive(data)
        except ssl.SSLError:
            self._transport.abort()
            return
        if plain:
            self._write(self._take(plain))
        else:
            self._flush(layer)

    def _write(self, data: bytes) -> None:
        layer = self._layer
        if layer is None or data == b"220 go ahead\r\n":
            self._transport.write(data)
        else:
            if data:
                layer.seal(data)
            self._flush(layer)

    def _flush(self, layer: TlsLayer) -> None:
        data = layer.outgoing()
        if data:
            self._transport.write(data)

    def _take(self, data: bytes) -> bytes:
        """What is answered."""
        replies = []
        while data:
            if self._in_body:
                joined = self._tail + data
                end = joined.find(END)
                if end < 0:
                    self._tail = joined[-4:]
                    break
                data, self._tail, self._in_body = joined[end + len(END) :], b"", False
                self._sink.messages += 1
                replies.append(OK)
                continue
            line, newline, data = (self._buffer + data).partition(b"\r\n")
            if not newline:
                self._buffer = line
                break
            self._buffer = b""
            replies.append(self._answer(line[:8].upper().split(b" ")[0]))
        return b"".join(replies)

    def _answer(self, verb: bytes) -> bytes:
        if verb == b"DATA":
            self._in_body, self._tail = True, b"\r\n"
        elif verb == b"EHLO":
            return OFFER + (b"250-STARTTLS\r\n" if self._layer is None else b"") + b"250 SIZE 0\r\n"
        elif verb == b"STARTTLS":
            self._layer = TlsLayer(self._sink.context, server_side=True)
            return b"220 go ahead\r\n"
        elif verb == b"XCOUNT":
            return b"250 %d\r\n" % self._sink.messages
        return ANSWERS.get(verb, OK)


async def _serve(port: int, context: ssl.SSLContext) -> None:
    sink = Sink(context)
    server = await asyncio.get_running_loop().create_server(
        lambda: Taker(sink), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("certificate")
    parser.add_argument("key")
    options = parser.parse_args()
    uvloop.run(_serve(options.port, server_context(options.certificate, options.key)))


if __name__ == "__main__":
    main()
