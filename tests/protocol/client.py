"""A client in a test's hands.

Owns cutting what comes into replies. Invariant: a reply is handed out once, in order.
"""

from __future__ import annotations

import asyncio
import ssl

from tests.protocol.wire import PATIENCE_S, Wire


class Client(Wire):
    """Replies are texts: lines without CRLF, joined by a newline."""

    def __init__(self) -> None:
        super().__init__()
        self.everything = b""
        self._buffer = b""

    def heard(self, data: bytes) -> None:
        self.everything += data
        self._buffer += data

    def take_reply(self) -> str | None:
        """A whole reply that has come, else None."""
        at = 0
        while True:
            end = self._buffer.find(b"\r\n", at)
            if end < 0:
                return None
            line = self._buffer[at:end]
            assert line[:3].isdigit(), f"no reply line: {line!r}"
            assert b"\n" not in line, f"no reply line: {line!r}"
            at = end + 2
            if line[3:4] != b"-":
                break
        text = self._buffer[: at - 2].decode("latin-1").replace("\r\n", "\n")
        self._buffer = self._buffer[at:]
        return text

    async def reply(self) -> str:
        while (text := self.take_reply()) is None:
            assert not self.over, (
                f"ended ({self.over} {self.tls_error}) before a reply: {self.everything[-300:]!r}"
            )
            try:
                await self.changed()
            except TimeoutError:
                raise AssertionError(
                    f"no reply in {PATIENCE_S} s; so far {self.everything[-300:]!r}"
                ) from None
        return text

    async def replies(self, count: int) -> list[str]:
        return [await self.reply() for _ in range(count)]

    async def ask(self, line: str | bytes) -> str:
        """One command, its reply."""
        self.send((line if isinstance(line, bytes) else line.encode("latin-1")) + b"\r\n")
        return await self.reply()

    async def ask_all(self, *lines: str) -> list[str]:
        """Commands in one segment, their replies."""
        self.send("".join(line + "\r\n" for line in lines).encode("latin-1"))
        return await self.replies(len(lines))

    async def gone(self) -> str:
        """Wait for the other side's end; how it came."""
        while not self.over:
            await self.changed()
        return self.over

    async def nothing_more(self) -> None:
        """The other side ended and said nothing that was not taken."""
        await self.gone()
        assert not self._buffer, self._buffer

    async def greeted(self, name: str = "client.test") -> Client:
        """Past greeting and EHLO."""
        greeting = await self.reply()
        assert greeting.startswith("220 "), greeting
        hello = await self.ask(f"EHLO {name}")
        assert hello.startswith("250"), hello
        return self

    async def secure(self, context: ssl.SSLContext, name: str | None = None) -> None:
        """A handshake; fails the test if it fails."""
        self.begin_tls(context, name=name)
        while not self.handshaken:
            failed = self.tls_error or self.over
            assert not failed, f"handshake: {failed}"
            await self.changed()

    async def starttls(self, context: ssl.SSLContext, name: str | None = None) -> None:
        answer = await self.ask("STARTTLS")
        assert answer.startswith("220"), answer
        await self.secure(context, name)

    async def keywords(self, name: str = "client.test") -> dict[str, str]:
        """EHLO: keywords with their parameters."""
        lines = (await self.ask(f"EHLO {name}")).split("\n")
        assert all(line.startswith("250") for line in lines)
        return {word: rest for word, _, rest in (line[4:].partition(" ") for line in lines[1:])}

    async def envelope(self, *recipients: str, mail: str = "<s@a.test>") -> list[str]:
        """MAIL and RCPTs in one segment; their replies."""
        return await self.ask_all(
            f"MAIL FROM:{mail}", *(f"RCPT TO:{r}" for r in recipients or ("<r@b.test>",))
        )

    async def data(self, body: bytes = b"Subject: x\r\n\r\nhello\r\n") -> str:
        """DATA and the body; the final reply, or the one to DATA if it is no 354."""
        answer = await self.ask("DATA")
        if not answer.startswith("354"):
            return answer
        self.send(body + b".\r\n")
        return await self.reply()

    async def chunk(self, octets: bytes, *, last: bool = False) -> str:
        """One BDAT; its reply."""
        self.send(b"BDAT %d%s\r\n%s" % (len(octets), b" LAST" if last else b"", octets))
        return await self.reply()

    async def bdat(self, *chunks: bytes) -> list[str]:
        """All chunks in one segment, the last one LAST; their replies."""
        out = b""
        for at, chunk in enumerate(chunks):
            out += b"BDAT %d%s\r\n%s" % (len(chunk), b" LAST" if at == len(chunks) - 1 else b"", chunk)
        self.send(out)
        return await self.replies(len(chunks))

    async def message(
        self, *recipients: str, mail: str = "<s@a.test>", body: bytes = b"Subject: x\r\n\r\nhello\r\n"
    ) -> str:
        """A whole transaction; the final reply, or the last one before it that was no 2xx."""
        answers = await self.envelope(*recipients, mail=mail)
        if not answers[-1].startswith("2"):
            if answers[0].startswith("2"):
                await self.ask("RSET")
            return answers[-1]
        return await self.data(body)

    async def leave(self) -> None:
        assert (await self.ask("QUIT")).startswith("221")
        await self.gone()
        self.close()


async def settle(turns: int = 10) -> None:
    """What is on its way on loopback arrives."""
    for _ in range(turns):
        await asyncio.sleep(0)
