"""What the tests of the command line share: a client lane for dialogues, and commands as processes."""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PATIENCE_S = 20.0  # before a test gives up; never waited for when all is well


class Talk:
    """The client lane. `say` writes and reads one reply for each that is expected."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def reply(self) -> str:
        """The next reply, lines joined by a blank; "" at the end of the connection."""
        lines = []
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    line = await self._reader.readline()
                except ConnectionError:
                    return ""
                lines.append(line.decode().rstrip("\r\n"))
                if line[3:4] != b"-":
                    return " ".join(lines)

    async def say(self, text: str | bytes, replies: int = 1) -> str:
        """The last of so many replies."""
        self._writer.write(text.encode() + b"\r\n" if isinstance(text, str) else text)
        reply = ""
        for _ in range(replies):
            reply = await self.reply()
        return reply

    async def start_message(self) -> None:
        """EHLO to 354."""
        await self.say("EHLO client.test")
        await self.open_transaction()

    async def open_transaction(self) -> None:
        reply = await self.say("MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA", 3)
        assert reply.startswith("354"), reply

    def vanish(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def talking(port: int, *, greeting: str = "220") -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    talk = Talk(reader, writer)
    try:
        assert (await talk.reply()).startswith(greeting)
        yield talk
    finally:
        talk.vanish()


async def accepted(port: int) -> None:
    """Returns once a connection gets its greeting. Where nothing else tells that a process is there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with talking(port):
                    return
            except ConnectionRefusedError:
                continue


async def get(url: str) -> tuple[int, bytes]:
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class Running:
    """A command as a process of its own. Its output is read by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, words: str) -> str:
        """The first line with `words` from here on."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line)
                if words in line:
                    return line
        raise AssertionError(f"ended without {words!r}: {self.lines}")

    async def end(self) -> int:
        """Waits for it; the rest of its output is in `lines`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            self.lines += (await self.process.stdout.read()).decode().splitlines(keepends=True)
            return await self.process.wait()

    @property
    def text(self) -> str:
        return "".join(self.lines)


@asynccontextmanager
async def smtplb(*arguments: str, environment: dict[str, str] | None = None) -> AsyncIterator[Running]:
    """`smtplb ARGUMENTS`, stderr among stdout. Killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "smtplb.cli.main",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **(environment or {})},
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
