"""A backend inside this process, on aiosmtpd's SMTP class: for `sink`, `demo` and tests.

Owns one listening socket, the connections accepted on it, their counts and the faults it was told to commit.
Does not own what becomes of a message: the body is thrown away as it comes, `on_message` gets a record of it.
Invariant: a message is recorded at most once, and before the 250 for it is written, as an MTA commits to its
queue before it answers. A backend killed in between leaves its client in doubt, as an MTA would.

No threads: everything runs on the loop that called start(). Nothing here is part of the balancer's data path.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, cast

from aiosmtpd.smtp import MISSING, SMTP, Envelope, Session

STREAM_LIMIT_BYTES = 65536  # of a body looked at in one piece; aiosmtpd's own 1001 costs a wake-up per 2 KB
MAX_COMMAND_LINE_BYTES = 2048  # without CRLF. RFC 5321 4.5.3.1.4: 512; Postfix line_length_limit 2048
DEFAULT_ID_HEADER = "X-Smtplb-Id"
CLOSE_WITHIN_S = 1.0  # for what is left to write; a client that does not read is cut then
_MAX_HEADER_BYTES = 102400  # the id header is looked for in these. Postfix header_size_limit 102400
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_REPLY = re.compile(r"[2345][0-9][0-9](?: [\x20-\x7e]*)?")  # RFC 5321 4.2: Reply-line, one line


class Verb(StrEnum):
    """Where a backend can be told to misbehave. CONNECT: its greeting. FINAL: behind the terminator."""

    CONNECT = "connect"
    EHLO = "ehlo"
    HELO = "helo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"  # once the first line of it was read
    FINAL = "final"
    RSET = "rset"
    QUIT = "quit"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at a verb: first the delay, then the drop (connection cut, nothing said) or the reply.

    `reply`: code and text without CRLF, given instead of the usual one; a 2xx (DATA: 3xx) still accepts.
    A reply at CONNECT or BODY ends the connection.
    `times`: only the first so many, then all is well again; None: always.
    """

    reply: str | None = None
    delay_s: float = 0.0
    drop: bool = False
    times: int | None = None

    def __post_init__(self) -> None:
        if self.reply is not None and not _REPLY.fullmatch(self.reply):
            raise ValueError(f'"{self.reply}" is no reply (a code from 200 to 599, a space, printable ASCII)')
        if self.delay_s < 0:
            raise ValueError("a delay cannot be negative")


NO_FAULT = Fault()


@dataclass(frozen=True, slots=True)
class Taken:
    """A message this backend took. `message_id` is the value of the id header, "" where there was none."""

    backend: str
    message_id: str
    sender: str
    recipients: tuple[str, ...]
    message_bytes: int  # as received, dots still doubled, without the terminator


@dataclass(slots=True)
class BackendCounts:
    """Since the first start(); they survive stop() and kill(). `connections_open` is as of now."""

    connections_total: int = 0
    connections_open: int = 0
    messages: int = 0
    message_bytes: int = 0
    dropped: int = 0  # connections cut on request
    refused: Counter[tuple[Verb, str]] = field(default_factory=Counter)  # replies given on request, by code


class EmbeddedBackend:
    """An SMTP backend on `host`:`port` (0: any free port, kept from the first start() on).

    `faults` may be changed at any time: it is looked at afresh at each verb.
    `bugs` collects what `on_message` or a dialogue raised; the client of it heard 451.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        name: str = "",
        faults: Mapping[Verb, Fault] | None = None,
        on_message: Callable[[Taken], None] | None = None,
        id_header: str = DEFAULT_ID_HEADER,
        message_size_bytes: int | None = None,
        extensions: tuple[str, ...] = ("PIPELINING",),
    ) -> None:
        self.host = host
        self.port = port
        self.name = name
        self.faults: dict[Verb, Fault] = dict(faults or {})
        self.on_message = on_message
        self.id_header = id_header.lower().encode() + b":"
        self.message_size_bytes = message_size_bytes
        self.extensions = extensions
        self.counts = BackendCounts()
        self.bugs: list[Exception] = []
        self.dialogues: set[Dialogue] = set()
        self._committed: Counter[Verb] = Counter()
        self._listening: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def listening(self) -> bool:
        return self._listening is not None

    async def start(self) -> None:
        """Listens. OSError when the address cannot be had; nothing is left behind then."""
        assert self._listening is None, "started twice"
        # aiosmtpd logs each dialogue, lost connections with tracebacks; what matters is in counts and bugs.
        logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)
        listening = _listening_socket(self.host, self.port)
        self.port = listening.getsockname()[1]
        self.name = self.name or self.address
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Dialogue(self, loop), sock=listening, backlog=1024)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Closes the port, leaves connections `grace_s` to end by themselves, then closes them.

        What was written still goes out. Harmless when nothing was started.
        """
        self._close_port()
        await self._all_ended(grace_s)
        for dialogue in list(self.dialogues):
            dialogue.cut(abort=False)
        await self._all_ended(CLOSE_WITHIN_S)
        await self.kill()

    async def kill(self) -> None:
        """Like a crash: the port is closed and every connection cut at once, nothing unsent is sent."""
        self._close_port()
        for dialogue in list(self.dialogues):
            dialogue.cut(abort=True)
        await self._all_ended(None)

    def _close_port(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def _all_ended(self, within_s: float | None) -> None:
        if self.dialogues:
            await asyncio.wait([dialogue.ended for dialogue in self.dialogues], timeout=within_s)

    def fault_at(self, verb: Verb) -> Fault:
        """The fault to commit now. Asking counts: call once per verb met."""
        fault = self.faults.get(verb, NO_FAULT)
        if fault is NO_FAULT:
            return fault
        if fault.times is not None and self._committed[verb] >= fault.times:
            return NO_FAULT
        self._committed[verb] += 1
        return fault

    def record(self, taken: Taken) -> None:
        self.counts.messages += 1
        self.counts.message_bytes += taken.message_bytes
        if self.on_message is not None:
            self.on_message(taken)


class Dialogue(SMTP):
    """One connection to an embedded backend: aiosmtpd's parser and states, our faults, our body."""

    line_length_limit = STREAM_LIMIT_BYTES

    def __init__(self, backend: EmbeddedBackend, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self.ended: asyncio.Future[None] = loop.create_future()
        # hostname: without one aiosmtpd asks the resolver, which may block. ident: behind it in the greeting.
        super().__init__(
            _Hooks(backend),
            data_size_limit=backend.message_size_bytes,
            hostname=backend.name if _HOSTNAME.fullmatch(backend.name) else "sink",
            ident="ESMTP smtplb sink",
            loop=loop,
        )
        # An own one: aiosmtpd shares this table between all connections and grows it with each EHLO.
        self.command_size_limits = defaultdict(lambda: MAX_COMMAND_LINE_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        counts = self._backend.counts
        counts.connections_total += 1
        counts.connections_open += 1
        self._backend.dialogues.add(self)
        super().connection_made(transport)
        assert self._handler_coroutine is not None
        self._handler_coroutine.add_done_callback(self._gone)

    def _gone(self, dialogue: asyncio.Task[None]) -> None:
        self._backend.counts.connections_open -= 1
        self._backend.dialogues.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)
        if not dialogue.cancelled() and (error := dialogue.exception()) is not None:
            self._backend.bugs.append(RuntimeError(f"dialogue ended by {error!r}"))

    def cut(self, *, abort: bool) -> None:
        # cast: uvloop's transports are no subclasses of asyncio's, so isinstance would say no.
        transport = cast("asyncio.Transport | None", self.transport)
        if transport is None:
            return
        if abort:
            transport.abort()
            # Else what was due in this turn of the loop would still be recorded, after the crash.
            task = self._handler_coroutine
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        else:
            transport.close()

    async def _handle_client(self) -> None:
        # aiosmtpd lets a lost connection escape from its task; asyncio then reports it as never retrieved.
        with suppress(ConnectionError):
            try:
                if reply := await self.commit_fault(Verb.CONNECT):
                    await self._say_and_close(reply)
                await super()._handle_client()
            finally:
                self.cut(abort=False)  # the client's EOF only cancels us: the other half is still open

    async def _say_and_close(self, reply: str) -> NoReturn:
        await self.push(reply)
        self.cut(abort=False)
        raise ConnectionResetError("ended on request")

    async def commit_fault(self, verb: Verb) -> str | None:
        """Delays, drops, or returns the reply to give instead of the usual one.

        ConnectionResetError after a drop: aiosmtpd's loop ends at it without a further word.
        """
        fault = self._backend.fault_at(verb)
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        return self._drop_or_reply(verb, fault)

    def _drop_or_reply(self, verb: Verb, fault: Fault) -> str | None:
        if fault.drop:
            self._backend.counts.dropped += 1
            self.cut(abort=True)
            raise ConnectionResetError("dropped on request")
        if fault.reply is not None:
            self._backend.counts.refused[verb, fault.reply[:3]] += 1
        return fault.reply

    async def smtp_DATA(self, arg: str | None) -> None:
        """Replaces aiosmtpd's, which keeps every line of a message in memory until its end."""
        if await self.check_helo_needed():
            return
        envelope = self.envelope
        assert envelope is not None
        if not envelope.rcpt_tos:
            await self.push("503 5.5.1 need RCPT command")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        reply = await self.commit_fault(Verb.DATA)
        await self.push(reply or "354 End data with <CR><LF>.<CR><LF>")
        if reply is not None and not reply.startswith("3"):
            return
        message_id, message_bytes = await self._read_message()
        await self.push(await self._final_reply(envelope, message_id, message_bytes))
        self.envelope = self._create_envelope()

    async def _final_reply(self, envelope: Envelope, message_id: str, message_bytes: int) -> str:
        limit = self._backend.message_size_bytes
        if limit is not None and message_bytes > limit:
            return "552 5.3.4 message too big"
        fault = self._backend.fault_at(Verb.FINAL)
        # Half of the time before the message is on record, half after: a kill meets both kinds of doubt.
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s / 2)
        reply = self._drop_or_reply(Verb.FINAL, fault) or "250 2.0.0 taken and thrown away"
        if reply.startswith("2"):
            sender = "" if envelope.mail_from == "<>" else envelope.mail_from or ""
            recipients = tuple(envelope.rcpt_tos)
            self._backend.record(Taken(self._backend.name, message_id, sender, recipients, message_bytes))
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s / 2)
        return reply

    async def _read_message(self) -> tuple[str, int]:
        """Reads to the terminator. The id header's value and the octets before the terminator."""
        message_id = ""
        message_bytes = 0
        in_header = True
        tail = b"\r\n"  # the last octets before the piece in hand; the CRLF behind DATA counts
        while True:
            # Behind the header a piece ends at each `.CRLF`: far fewer than lines, and one is the terminator.
            piece = await self._read_to(b"\r\n" if in_header else b".\r\n")
            if (tail + piece[-5:]).endswith(b"\r\n.\r\n"):
                return message_id, message_bytes + len(piece) - 3
            if not message_bytes and (reply := await self.commit_fault(Verb.BODY)):
                await self._say_and_close(reply)
            message_bytes += len(piece)
            if in_header and tail == b"\r\n":
                in_header = piece != b"\r\n" and message_bytes <= _MAX_HEADER_BYTES
                if not message_id and piece.lower().startswith(self._backend.id_header):
                    message_id = piece[len(self._backend.id_header) :].strip().decode("ascii", "replace")
            tail = (tail + piece[-2:])[-2:]

    async def _read_to(self, separator: bytes) -> bytes:
        """Up to and with `separator`; less where that is further off than the stream's limit."""
        try:
            return await self._reader.readuntil(separator)
        except asyncio.LimitOverrunError as error:
            return await self._reader.read(error.consumed)


class _Hooks:
    """What aiosmtpd asks at each verb, after its own checks of syntax and order."""

    def __init__(self, backend: EmbeddedBackend) -> None:
        self._backend = backend

    async def handle_HELO(
        self, dialogue: Dialogue, session: Session, envelope: Envelope, hostname: str
    ) -> str:
        reply = await dialogue.commit_fault(Verb.HELO) or f"250 {dialogue.hostname}"
        if reply.startswith("2"):
            session.host_name = hostname
        return reply

    async def handle_EHLO(
        self, dialogue: Dialogue, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        reply = await dialogue.commit_fault(Verb.EHLO)
        if reply is not None and not reply.startswith("2"):
            return [reply]
        session.host_name = hostname
        lines = [reply[4:] if reply else responses[0][4:]]
        lines += [line[4:] for line in responses[1:-1]]  # the last one is HELP
        lines += self._backend.extensions
        # As one piece: aiosmtpd writes each element on its own.
        return ["\r\n".join([f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"])]

    async def handle_MAIL(
        self, dialogue: Dialogue, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await dialogue.commit_fault(Verb.MAIL) or "250 2.1.0 OK"
        if reply.startswith("2"):
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply

    async def handle_RCPT(
        self, dialogue: Dialogue, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await dialogue.commit_fault(Verb.RCPT) or "250 2.1.5 OK"
        if reply.startswith("2"):
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
        return reply

    async def handle_RSET(self, dialogue: Dialogue, session: Session, envelope: Envelope) -> Any:
        return await dialogue.commit_fault(Verb.RSET) or MISSING

    async def handle_QUIT(self, dialogue: Dialogue, session: Session, envelope: Envelope) -> Any:
        return await dialogue.commit_fault(Verb.QUIT) or MISSING

    async def handle_exception(self, error: Exception) -> str:
        self._backend.bugs.append(error)
        return "451 4.3.0 the embedded backend has a bug"


def _listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A backend that was killed must get its port back although connections of it are in TIME_WAIT.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening
