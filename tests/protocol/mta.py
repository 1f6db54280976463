"""A scripted backend: exact about SMTP, and made to misbehave where a test says so.

Owns what it was told (every command line, every identity) and what it took. Does not own the balancer's settings.
Invariant: a message is in `taken` if and only if all of it came and it was answered 250; what the balancer must never do
is in `broken`, which the stage looks at when a test ends.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.protocol.wire import Wire

OFFERS = ("PIPELINING", "SIZE 100000000", "8BITMIME", "ENHANCEDSTATUSCODES")
FULL = (*OFFERS, "CHUNKING", "BINARYMIME", "SMTPUTF8", "DSN")
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PATH = re.compile(r"<([^>]*)>")


@dataclass
class Taken:
    """A message with everything that was known of its client when it came."""

    backend: str
    mail: str  # the argument of MAIL
    rcpts: list[str]  # accepted ones, the arguments of RCPT
    raw: bytes  # as it came: dots still doubled; chunks joined
    content: bytes  # the message itself
    how: str  # DATA or BDAT
    session: Session = field(repr=False)
    ehlo: str = ""
    proxy: bytes = b""
    xclient: dict[str, str] = field(default_factory=dict)
    xforward: dict[str, str] = field(default_factory=dict)

    @property
    def sender(self) -> str:
        found = _PATH.search(self.mail)
        return found[1] if found else self.mail


class Mta:
    """See the module. `says`: replies by verb (CONNECT, EHLO, MAIL, .., FINAL, BDAT) instead of the usual ones; a list is used
    up from the front, and an empty text stands for the usual one. "!abort", "!close", "!hang" instead of a reply do that."""

    def __init__(
        self,
        name: str,
        *offers: str,
        helo_only: bool = False,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        proxy: bool = False,
        says: dict[str, str | list[str]] | None = None,
    ) -> None:
        self.name = name
        self.offers = offers or OFFERS
        self.helo_only = helo_only
        self.tls = tls
        self.implicit = implicit
        self.proxy = proxy
        self.says = says or {}
        self.answer: Callable[[Session, str], str | None] = lambda session, line: None
        self.challenges: dict[str, list[str]] = {}  # mechanism -> texts of 334s
        self.garbage = b""  # the answer to a ClientHello, and the last word
        self.behind_starttls = b""  # said in clear behind the 220
        self.tls_offers: tuple[str, ...] | None = None  # offered inside TLS instead of `offers`
        self.dies_after: int | None = None  # octets of a body
        self.reads_body = True
        self.find_end: Callable[[bytes], tuple[int, int] | None] = strict_end
        self.sessions: list[Session] = []
        self.taken: list[Taken] = []
        self.broken: list[str] = []
        self.auth_lines: list[str] = []
        self.most_open = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def keywords(self) -> dict[bytes, bytes]:
        """As a check would have seen them."""
        if self.helo_only:
            return {}
        offers = self.tls_offers if self.tls_offers is not None else self.offers
        words = (offer.encode().partition(b" ") for offer in offers)
        return {name: rest for name, _, rest in words}

    @property
    def open(self) -> list[Session]:
        return [session for session in self.sessions if not session.gone]

    @property
    def lines(self) -> list[str]:
        """Command lines of all connections, in order of connections."""
        return [line for session in self.sessions for line in session.lines]

    def verdict(self, verb: str) -> str:
        said = self.says.get(verb, "")
        if isinstance(said, list):
            return said.pop(0) if said else ""
        return said

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._session, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _session(self) -> Session:
        session = Session(self)
        self.sessions.append(session)
        return session

    def stop(self) -> None:
        """No port any more."""
        if self._server is not None:
            self._server.close()
            self._server = None


def strict_end(buffer: bytes) -> tuple[int, int] | None:
    """(end of the body, begin of what follows)."""
    if buffer.startswith(b".\r\n"):
        return 0, 3
    at = buffer.find(b"\r\n.\r\n")
    return (at + 2, at + 5) if at >= 0 else None


class Session(Wire):
    """One connection to an Mta."""

    def __init__(self, mta: Mta) -> None:
        super().__init__()
        self.mta = mta
        self.lines: list[str] = []
        self.clear_lines = 0  # how many of them came in clear
        self.proxy = b""
        self.ehlo = ""
        self.xclient: dict[str, str] = {}
        self.xforward: dict[str, str] = {}
        self.gone = False
        self.aborted = False
        self.login: list[str] = []
        self._buffer = bytearray()
        self._mode = "proxy" if mta.proxy else "command"
        self._mail: str | None = None
        self._rcpts: list[str] = []
        self._looked_at = 0  # how far the body has no end
        self._chunk_left = 0
        self._chunk_last = False
        self._chunks: bytearray | None = None
        self._chunks_refused = False
        self._challenges: list[str] = []
        self._trusted = True

    # -- the connection ------------------------------------------------------------------------------

    def connected(self) -> None:
        mta = self.mta
        mta.most_open = max(mta.most_open, len(mta.open))
        if not mta.reads_body:  # so that the kernel holds little of it
            assert self.transport is not None
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        if not mta.proxy:
            self._begin()

    def _begin(self) -> None:
        if self.mta.implicit:
            assert self.mta.tls is not None
            self.begin_tls(self.mta.tls, server_side=True)
        else:
            self._greet()

    def secured(self) -> None:
        if self.mta.implicit:
            self._greet()

    def _greet(self) -> None:
        self.reply("CONNECT", f"220 {self.mta.name} ESMTP")

    def ended(self) -> None:
        self.gone = True
        if self.transport is not None:
            self.transport.close()

    def eof_received(self) -> bool:
        super().eof_received()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.aborted = isinstance(error, ConnectionResetError)
        self.gone = True
        super().connection_lost(error)

    # -- input ---------------------------------------------------------------------------------------

    def heard(self, data: bytes) -> None:
        if self._mode == "hang":
            return
        self._buffer += data
        while self._buffer and self._mode != "hang" and not self.gone:
            if not self._step():
                break

    def _step(self) -> bool:
        """One thing of the buffer; False if more is needed."""
        if self._mode == "garbage":
            self.send(self.mta.garbage)
            self._mode = "hang"
            return False
        if self._mode == "proxy":
            return self._read_proxy()
        if self._chunk_left:
            return self._read_chunk()
        if self._mode == "body":
            return self._read_body()
        at = self._buffer.find(b"\n")
        if at < 0:
            return False
        line = bytes(self._buffer[: at + 1])
        del self._buffer[: at + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2] or b"\0" in line or len(line) > 12290:
            self.mta.broken.append(f"command line {line[:100]!r}")
        self._command(line.rstrip(b"\r\n").decode("latin-1"))
        return True

    def _read_proxy(self) -> bool:
        buffer = bytes(self._buffer)
        if buffer.startswith(V2_SIGNATURE):
            size = 16 + int.from_bytes(buffer[14:16], "big") if len(buffer) >= 16 else 1 << 20
        else:
            size = buffer.find(b"\r\n") + 2 if b"\r\n" in buffer else 1 << 20
        if len(buffer) < size:
            # Postfix looks at it once: a header in pieces is refused.
            self.mta.broken.append(f"a PROXY header in pieces: {buffer!r}")
            return False
        self.proxy = buffer[:size]
        del self._buffer[:size]
        self._mode = "command"
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._begin()
        if rest:
            self.data_received(rest)
        return True

    # -- replies -------------------------------------------------------------------------------------

    def reply(self, verb: str, usual: str) -> bool:
        """Say it, or what `says` has instead; True if a 2xx or 3xx was said."""
        text = self.mta.verdict(verb) or usual
        if text.startswith("!"):
            self._misbehave(text)
            return False
        self.say(text)
        if text.startswith("421"):
            self._mode = "hang"
            self.close()
        return text[0] in "23"

    def say(self, text: str) -> None:
        lines = text.split("\n")
        out = "".join(
            f"{line[:3]}{'-' if at < len(lines) - 1 else ' '}{line[4:]}\r\n" for at, line in enumerate(lines)
        )
        self.send(out.encode("latin-1"))

    def _misbehave(self, what: str) -> None:
        if what == "!abort":
            self._mode = "hang"
            self.reset()
        elif what == "!close":
            self._mode = "hang"
            self.close()
        elif what == "!hang":
            self._mode = "hang"
        else:
            assert what == "!silent", what

    # -- commands ------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        if self._mode == "auth":
            self.mta.auth_lines.append(line)
            self.login.append(line)
            self._auth_answered(line)
            return
        self.lines.append(line)
        if self.engine is None:
            self.clear_lines += 1
        special = self.mta.answer(self, line)
        if special is not None:
            self._misbehave(special) if special.startswith("!") else self.say(special)
            return
        verb, _, argument = line.partition(" ")
        handler = getattr(self, f"_on_{verb.lower()}", None)
        if handler is None:
            self.mta.broken.append(f"unknown command {line!r}")
            self.say("500 5.5.2 what?")
        else:
            handler(argument)
        if self._buffer and "PIPELINING" not in self._offers():
            self.mta.broken.append(f"pipelined without leave behind {line!r}: {bytes(self._buffer[:60])!r}")

    def _offers(self) -> list[str]:
        mta = self.mta
        if mta.helo_only:
            return []
        offers = list(mta.offers)
        if self.engine is not None and mta.tls_offers is not None:
            offers = list(mta.tls_offers)
        if self.engine is not None:
            offers = [offer for offer in offers if offer != "STARTTLS"]
        if not self._trusted:
            offers = [offer for offer in offers if not offer.startswith("XCLIENT")]
        return offers

    def _has(self, keyword: str) -> bool:
        return any(offer.split(" ")[0] == keyword for offer in self._offers())

    def _on_ehlo(self, name: str) -> None:
        if self.mta.helo_only:
            self.say("502 5.5.1 HELO, please")
            return
        self._reset()
        if self.reply("EHLO", "\n".join(["250 " + self.mta.name, *("250 " + o for o in self._offers())])):
            self.ehlo = name

    def _on_helo(self, name: str) -> None:
        self._reset()
        if self.reply("HELO", "250 " + self.mta.name):
            self.ehlo = name

    def _on_starttls(self, argument: str) -> None:
        if not self._has("STARTTLS"):
            self.mta.broken.append("STARTTLS, not offered")
        if self.reply("STARTTLS", "220 2.0.0 go ahead") and self.mta.tls is not None:
            if self.mta.behind_starttls:
                self.send(self.mta.behind_starttls)
            if self._buffer:
                self.mta.broken.append(f"bytes behind STARTTLS: {bytes(self._buffer)!r}")
            self.ehlo = ""
            if self.mta.garbage:
                self._mode = "garbage"
            else:
                self.begin_tls(self.mta.tls, server_side=True)

    def _on_xclient(self, argument: str) -> None:
        attributes = _attributes(argument)
        offered = next((o.split(" ")[1:] for o in self._offers() if o.startswith("XCLIENT")), [])
        if not self._trusted or not set(attributes) <= set(offered):
            self.mta.broken.append(f"XCLIENT {argument!r}, offered {offered}")
        if len(argument) + 10 > 512:
            self.mta.broken.append("XCLIENT longer than 512")
        if self.reply("XCLIENT", "220 " + self.mta.name):
            self.xclient.update(attributes)
            self.ehlo = ""
            self._reset()
            if "ADDR" in attributes:
                self._trusted = False  # XCLIENT_README: once ADDR is sent, usually no longer authorized

    def _on_xforward(self, argument: str) -> None:
        if self._mail is not None:
            self.mta.broken.append("XFORWARD inside a transaction")
        if self.reply("XFORWARD", "250 2.0.0 Ok"):
            if not self.xforward:
                self.xforward = dict.fromkeys(("NAME", "ADDR", "PORT", "PROTO", "HELO"), "[UNAVAILABLE]")
            self.xforward.update(_attributes(argument))

    def _on_auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        self._challenges = list(self.mta.challenges.get(mechanism, []))
        if initial:
            self.mta.auth_lines.append(initial)
            self.login.append(initial)
            if self._challenges and self._challenges[0] == "":
                self._challenges.pop(0)  # a mechanism in which the client speaks first
        self._auth_goes_on()

    def _auth_answered(self, line: str) -> None:
        if line == "*":
            self._mode = "command"
            self.say("501 5.7.0 cancelled")
        else:
            self._auth_goes_on()

    def _auth_goes_on(self) -> None:
        if self._challenges:
            self._mode = "auth"
            self.reply("CHALLENGE", "334 " + self._challenges.pop(0))
        else:
            self._mode = "command"
            self.reply("AUTH", "235 2.7.0 authenticated")

    def _on_mail(self, argument: str) -> None:
        if self._mail is not None or not self.ehlo:
            self.mta.broken.append(f"MAIL {argument!r} out of order")
        for needed, keyword in _PARAMETERS.items():
            if f" {needed}" in argument and not self._has(keyword):
                self.mta.broken.append(f"MAIL {argument!r} without {keyword}")
        if self.reply("MAIL", "250 2.1.0 sender ok"):
            self._mail = argument
            self._rcpts = []

    def _on_rcpt(self, argument: str) -> None:
        if self._mail is None:
            self.say("503 5.5.1 MAIL first")
        elif self.reply("RCPT", "250 2.1.5 recipient ok"):
            self._rcpts.append(argument)

    def _on_rset(self, argument: str) -> None:
        self._reset()
        self.reply("RSET", "250 2.0.0 reset")

    def _on_quit(self, argument: str) -> None:
        self.reply("QUIT", "221 2.0.0 bye")
        self.close()

    def _reset(self) -> None:
        self._mail = None
        self._rcpts = []
        self.xforward = {}
        self._chunks = None
        self._chunks_refused = False

    # -- bodies --------------------------------------------------------------------------------------

    def _on_data(self, argument: str) -> None:
        if self._buffer:
            self.mta.broken.append(f"bytes behind DATA before 354: {bytes(self._buffer[:60])!r}")
        if not self._rcpts:
            self.say("503 5.5.1 no valid recipients")
        elif self.reply("DATA", "354 go on"):
            self._mode = "body"
            self._seek_stop()

    def _seek_stop(self) -> None:
        if not self.mta.reads_body:
            self.stop_reading()

    def _read_body(self) -> bool:
        mta = self.mta
        if mta.dies_after is not None and len(self._buffer) >= mta.dies_after:
            self._mode = "hang"
            self.reset()
            return False
        found = self._find_end()
        if found is None:
            return False
        end, following = found
        raw = bytes(self._buffer[:end])
        del self._buffer[:following]
        self._mode = "command"
        content = (b"\r\n" + raw).replace(b"\r\n.", b"\r\n")[2:]
        self._message("FINAL", raw, content, "DATA")
        return True

    def _find_end(self) -> tuple[int, int] | None:
        if self.mta.find_end is not strict_end:
            return self.mta.find_end(bytes(self._buffer))
        buffer, looked_at = self._buffer, self._looked_at
        if buffer.startswith(b".\r\n"):
            return 0, 3
        at = buffer.find(b"\r\n.\r\n", looked_at)
        self._looked_at = max(len(buffer) - 4, 0) if at < 0 else 0
        return (at + 2, at + 5) if at >= 0 else None

    def _on_bdat(self, argument: str) -> None:
        size, _, last = argument.partition(" ")
        if not self._has("CHUNKING"):
            self.mta.broken.append("BDAT, not offered")
        self._chunk_left, self._chunk_last = int(size), last == "LAST"
        if self._chunks is None:
            self._chunks = bytearray()
            self._chunks_refused = not self._rcpts
            self._seek_stop()
        if not self._chunk_left:
            self._chunk_done()

    def _read_chunk(self) -> bool:
        octets = bytes(self._buffer[: self._chunk_left])
        del self._buffer[: len(octets)]
        self._chunk_left -= len(octets)
        assert self._chunks is not None
        self._chunks += octets
        if self.mta.dies_after is not None and len(self._chunks) >= self.mta.dies_after:
            self._mode = "hang"
            self.reset()
            return False
        if not self._chunk_left:
            self._chunk_done()
        return True

    def _chunk_done(self) -> None:
        content = self._chunks
        assert content is not None
        if self._chunks_refused:
            self.say("503 5.5.1 RSET first")
        elif self._chunk_last:
            self._chunks = None
            self._message("FINAL", bytes(content), bytes(content), "BDAT")
        elif not self.reply("BDAT", f"250 2.0.0 {len(content)} octets"):
            self._chunks_refused = True

    def _message(self, verb: str, raw: bytes, content: bytes, how: str) -> None:
        said = self.mta.verdict(verb) or "250 2.0.0 queued"
        if said.startswith("2"):
            self.mta.taken.append(
                Taken(
                    self.mta.name,
                    self._mail or "",
                    self._rcpts,
                    raw,
                    content,
                    how,
                    self,
                    self.ehlo,
                    self.proxy,
                    dict(self.xclient),
                    dict(self.xforward),
                )
            )
        self._reset()
        if said.startswith("!taken "):  # it has the message, and cannot say so
            said = said.removeprefix("!taken ")
            self.mta.taken.append(Taken(self.mta.name, "", [], raw, content, how, self))
        if said.startswith("!"):
            self._misbehave(said)
        else:
            self.say(said)
            if said.startswith("421"):
                self.close()


def _attributes(argument: str) -> dict[str, str]:
    words = (word.partition("=") for word in argument.split(" "))
    return {name: value for name, _, value in words}


_PARAMETERS = {
    "SIZE=": "SIZE",
    "BODY=BINARYMIME": "BINARYMIME",
    "BODY=8BITMIME": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "RET=": "DSN",
    "ENVID=": "DSN",
    "REQUIRETLS": "REQUIRETLS",
    "AUTH=": "AUTH",
}
