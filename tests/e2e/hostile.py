"""A backend that is well until a stage of its conversation, and then is not.

Owns the stages and the ways to misbehave. Invariant: it never answers 250 to a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum

LONG_LINE_BYTES = 200_000


class Stage(StrEnum):
    GREETING = "greeting"
    EHLO = "ehlo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    FINAL = "final"


class Act(StrEnum):
    LONG_LINE = "a line of 200 KB"
    ENDLESS_LINE = "a line without an end"
    ENDLESS_REPLY = "a reply of lines without an end"
    GARBAGE = "garbage"
    CLOSE = "close"
    SILENCE = "silence"


CODES = {Stage.GREETING: b"220", Stage.DATA: b"354"}


class Hostile:
    def __init__(self) -> None:
        self.port = 0
        self.stage = Stage.GREETING
        self.act = Act.CLOSE
        self.acted = 0
        self.octets = 0  # of misbehaviour that were taken from us

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._answer(Stage.GREETING, reader, writer)
        while line := await reader.readline():
            verb = line.split()[0].decode().lower()
            if verb == "quit":
                return
            if verb not in list(Stage):
                writer.write(b"250 2.0.0 ok\r\n")
                continue
            await self._answer(Stage(verb), reader, writer)
            if verb == "data":
                await reader.readuntil(b"\r\n.\r\n")
                await self._answer(Stage.FINAL, reader, writer)

    async def _answer(self, stage: Stage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        code = CODES.get(stage, b"250")
        if stage is self.stage:
            self.acted += 1
            await self._misbehave(code, reader, writer)
        writer.write(code + (b"-hostile\r\n250 PIPELINING\r\n" if stage is Stage.EHLO else b" 2.0.0 ok\r\n"))

    async def _misbehave(
        self, code: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        match self.act:
            case Act.LONG_LINE:
                await self._write(writer, code + b" " + b"x" * LONG_LINE_BYTES + b"\r\n")
                await reader.read()
            case Act.ENDLESS_LINE:
                while True:
                    await self._write(writer, code + b"x" * LONG_LINE_BYTES)
            case Act.ENDLESS_REPLY:
                while True:
                    await self._write(writer, (code + b"-" + b"x" * 500 + b"\r\n") * 400)
            case Act.GARBAGE:
                await self._write(writer, b"\x00\xff\x80 no reply at all\r\n")
                await reader.read()
            case Act.SILENCE:
                await reader.read()
        raise ConnectionResetError("on request")

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        self.octets += len(data)


@asynccontextmanager
async def hostile() -> AsyncIterator[Hostile]:
    backend = Hostile()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.port = server.sockets[0].getsockname()[1]
    try:
        yield backend
    finally:
        server.close()
