"""One connection to a backend: from connect to close, and what it owes to whom.

Owns the transport, the FIFO of commands whose replies are due, the greeting and EHLO, RSET and QUIT, the deadline of the phase.
Does not own which transaction uses it (backend.py hands it out), nor what a reply means (policy/outcome.py).
Invariant: one FIFO entry per command sent, in order (design 4.10); while IDLE the FIFO is empty and no transaction is open.
After it has ended it calls nobody.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from enum import Enum, auto
from typing import Protocol, cast

from smtplb.dataplane.deadlines import NEVER, Deadlines
from smtplb.observe.events import Phase
from smtplb.policy.outcome import Reason
from smtplb.settings import BackendSettings
from smtplb.smtp.extensions import Capabilities
from smtplb.smtp.replies import Garbled, Reply, ReplyReader

RSET_TIMEOUT_S = 30.0  # a backend that needs longer for RSET is not worth keeping
QUIT_TIMEOUT_S = 5.0  # for the 221; then the connection is closed without it
HIGH_WATER_BYTES = 256 * 1024  # unsent body towards a backend above which the client is not read


class State(Enum):
    """Containers of backend.py are named after these."""

    CONNECTING = auto()  # until the reply to EHLO or HELO
    IDLE = auto()
    LEASED = auto()
    RESETTING = auto()  # swallowing what a former holder left behind, then RSET
    QUITTING = auto()
    CLOSED = auto()


class Failure:
    """How a connection ended before its time.

    `reply` is what the backend said, if that was it; `token` that of the oldest command of the holder without an answer.
    """

    __slots__ = ("detail", "phase", "reason", "reply", "token")

    def __init__(
        self, phase: Phase, reason: Reason, detail: bytes, reply: Reply | None = None, token: object = None
    ) -> None:
        self.phase = phase
        self.reason = reason
        self.detail = detail
        self.reply = reply
        self.token = token


class Owner(Protocol):
    """Who keeps the connection: a backend's containers, or a probe."""

    def connection_ready(self, connection: Connection) -> None:
        """Past EHLO. Told once, or connection_failed is."""

    def connection_failed(self, connection: Connection, failure: Failure) -> None:
        """It did not come up."""

    def connection_cleared(self, connection: Connection) -> None:
        """RSET was answered 250 and nothing is owed: it may be shared again."""

    def connection_expired(self, connection: Connection) -> None:
        """Its deadline passed while it was IDLE."""

    def connection_closed(self, connection: Connection) -> None:
        """It ended after having been ready, whoever ended it; not told after abort()."""


class Holder(Protocol):
    """Who leases the connection."""

    def reply_received(self, connection: Connection, token: object, reply: Reply) -> None:
        """The reply to the command sent with `token`; token None: the backend spoke without being asked."""

    def replies_done(self) -> None:
        """All replies that came in this turn were told: the time to write to the client. Told even if the lease is over."""

    def connection_broken(self, connection: Connection, failure: Failure) -> None:
        """It ended while leased; the lease is over. replies_done() does not follow."""

    def backend_writable(self, writable: bool) -> None:
        """Flow control: the backend does, or does not, take more."""


class _Own(Enum):
    """Tokens of the connection's own commands."""

    EHLO = auto()
    HELO = auto()
    RSET = auto()
    QUIT = auto()


class Connection(asyncio.Protocol):
    """See the module. `token` objects of a holder are opaque; they must not be None."""

    __slots__ = (
        "_connecting",
        "_deadlines",
        "_fifo",
        "_hello",
        "_phase",
        "_reader",
        "_transport",
        "_unsent",
        "born_s",
        "capabilities",
        "deadline_bucket",
        "deadline_s",
        "errors",
        "greeting",
        "hello_reply",
        "holder",
        "owner",
        "replies",
        "settings",
        "state",
        "transaction_open",
        "transactions",
    )

    def __init__(
        self, settings: BackendSettings, *, hello: bytes, deadlines: Deadlines, owner: Owner
    ) -> None:
        # for life
        self.settings = settings
        self.owner = owner
        self._hello = hello
        self._deadlines = deadlines
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reader = ReplyReader()
        self._fifo: deque[object] = deque()
        self._unsent: deque[tuple[object, bytes]] = (
            deque()
        )  # commands that wait, at a backend without PIPELINING
        self.state = State.CONNECTING
        self._phase = Phase.CONNECT
        self.deadline_s = NEVER
        self.deadline_bucket = 0
        self.born_s = deadlines.clock()
        # from greeting and EHLO
        self.greeting: Reply | None = None
        self.hello_reply: Reply | None = None
        self.capabilities = Capabilities()
        # counts
        self.transactions = 0  # leases so far, the present one included
        self.errors = 0  # 4xx and 5xx replies
        # for a lease
        self.holder: Holder | None = None
        self.replies = 0  # replies in this lease
        self.transaction_open = False  # MAIL was sent and not yet refused, ended or reset

    # -- coming up ---------------------------------------------------------------------------------

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start connecting. connection_ready or connection_failed follows, never inside this call."""
        self._deadlines.set(self, self.born_s + self.settings.timeouts.connect_s)
        self._connecting = loop.create_task(self._connect(loop))

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        address = self.settings.address
        try:
            if address.path is not None:
                await loop.create_unix_connection(lambda: self, address.path)
            else:
                source = (self.settings.source, 0) if self.settings.source else None
                await loop.create_connection(lambda: self, address.host, address.port, local_addr=source)
        except OSError as error:
            self._connecting = None
            self._fail(Reason.CONNECT, _words(error))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connecting = None
        stream = cast("asyncio.Transport", transport)
        if self.state is State.CLOSED:  # given up while the connect was under way
            stream.abort()
            return
        self._transport = stream
        stream.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        sock = stream.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._enter(Phase.GREETING, self.settings.timeouts.greeting_s)

    def _greeted(self, reply: Reply) -> None:
        self.greeting = reply
        if reply.code != 220:
            self._fail(Reason.GREETING, reply.text_line(), reply)
            return
        if not self._in_step():
            return
        self._enter(Phase.HELLO, self.settings.timeouts.greeting_s)
        self._command(_Own.EHLO, b"EHLO %s\r\n" % self._hello)

    def _hello_answered(self, token: _Own, reply: Reply) -> None:
        self.hello_reply = reply
        if reply.code == 250:
            if not self._in_step():
                return
            self.capabilities = Capabilities(reply if token is _Own.EHLO else None)
            self._deadlines.set(self, NEVER)
            self.owner.connection_ready(self)
        elif token is _Own.EHLO and reply.code in (500, 502, 504):  # RFC 5321 3.2: fall back to HELO
            if self._in_step():
                self._command(_Own.HELO, b"HELO %s\r\n" % self._hello)
        else:
            self._fail(Reason.GREETING, reply.text_line(), reply)

    @property
    def _closed(self) -> bool:
        return self.state is State.CLOSED

    # -- leases ------------------------------------------------------------------------------------

    @property
    def kept(self) -> bool:
        """It served another transaction before this one."""
        return self.transactions > 1

    @property
    def first_answer_due(self) -> bool:
        """No reply came in this lease yet."""
        return self.replies == 0

    def leased(self, holder: Holder) -> None:
        """Called by the backend when it hands the connection out."""
        assert self.state is State.LEASED and self.holder is None
        assert not self._fifo and not self.transaction_open
        self.holder = holder
        self.transactions += 1
        self.replies = 0

    def send(self, commands: list[tuple[object, bytes]]) -> None:
        """Send commands of the holder, each with the token its reply will carry: one write for all.

        A backend without PIPELINING gets them one by one (RFC 2920 3.1).
        """
        if self.capabilities.pipelining:
            self._fifo.extend(token for token, _ in commands)
            self._write(commands[0][1] if len(commands) == 1 else b"".join([line for _, line in commands]))
            return
        self._unsent.extend(commands)
        self._send_next()

    def drop_unsent(self) -> list[object]:
        """Forget commands that were not written yet; their tokens."""
        tokens = [token for token, _ in self._unsent]
        self._unsent.clear()
        return tokens

    def write_body(self, data: bytes) -> None:
        """Message content, after a 354."""
        self._write(data)

    def write_end(self, chunks: list[bytes], token: object) -> None:
        """The last of the message content, terminator included, in one gathering write; its reply carries `token`."""
        assert self._transport is not None
        self._fifo.append(token)
        if len(chunks) == 1:
            self._transport.write(chunks[0])
        else:
            self._transport.writelines(chunks)

    def expect_until(self, phase: Phase, deadline_s: float) -> None:
        """The holder's present phase and when it ends in a timeout; NEVER while the backend owes nothing."""
        self._phase = phase
        self._deadlines.set(self, deadline_s)

    def released(self) -> None:
        """The holder leaves. What it left behind is swallowed, an open transaction is reset; the backend hears of the outcome.

        After a 354 without a terminator there is no way back: the holder must abort() instead.
        """
        assert self.holder is not None
        self.holder = None
        self._unsent.clear()
        if self._transport is not None and self._transport.is_closing():
            return  # connection_lost is on its way
        if self.transaction_open:
            self.transaction_open = False
            self._command(_Own.RSET, b"RSET\r\n")
        self._enter(Phase.RSET, RSET_TIMEOUT_S)

    def keep_until(self, deadline_s: float) -> None:
        """It is IDLE; connection_expired follows when the deadline passes."""
        assert self.owes_nothing
        self._deadlines.set(self, deadline_s)

    @property
    def owes_nothing(self) -> bool:
        """No reply is due, no transaction is open, no half reply is held."""
        return not self._fifo and not self._unsent and not self.transaction_open and self._reader.empty

    # -- ending ------------------------------------------------------------------------------------

    def quit(self) -> None:
        """QUIT, wait for the 221 (bounded), close; then connection_closed. Replies still due are swallowed.

        RFC 5321 4.1.1.10: QUIT also ends an open transaction; but it must not follow a 354, where abort() is the only way.
        """
        self.state = State.QUITTING
        self.holder = None
        self.transaction_open = False
        self._unsent.clear()
        if self._transport is None or self._transport.is_closing():
            return
        self._enter(Phase.QUIT, QUIT_TIMEOUT_S)
        self._command(_Own.QUIT, b"QUIT\r\n")

    def abort(self) -> None:
        """End at once, unsent bytes thrown away; nobody is told.

        abort(), not close(): close() would flush half a message that a lenient server may accept.
        """
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        self.state = State.CLOSED
        self.holder = None
        self._deadlines.disarm(self)
        self._unsent.clear()
        self._fifo.clear()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _fail(self, reason: Reason, detail: bytes, reply: Reply | None = None) -> None:
        """It is of no further use; tell whoever must know."""
        if self.state is State.CLOSED:
            return
        was, holder, phase = self.state, self.holder, self._phase
        token = self._fifo[0] if self._fifo else self._unsent[0][0] if self._unsent else None
        transport = self._transport
        self._end()
        if transport is not None:
            if reply is not None and was is State.CONNECTING:
                # Refused at greeting or EHLO: leave as RFC 5321 3.8 asks, so that the backend logs no lost connection.
                transport.write(b"QUIT\r\n")
                self._enter(Phase.QUIT, QUIT_TIMEOUT_S)
            else:
                transport.abort()
        failure = Failure(phase, reason, detail, reply, token)
        if was is State.CONNECTING:
            self.owner.connection_failed(self, failure)
            return
        self.owner.connection_closed(self)
        if holder is not None:
            holder.connection_broken(self, failure)

    def deadline_passed(self, now: float) -> None:
        if self.state is State.CLOSED:
            if self._transport is not None:
                self._transport.abort()
            return
        if self.state is State.IDLE:
            self.owner.connection_expired(self)
            return
        self._fail(Reason.TIMEOUT, b"no answer in phase %s" % self._phase.encode())

    # -- transport callbacks -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.state is State.CLOSED:
            if self._transport is not None:  # the 221 to a refused backend's QUIT
                self._transport.close()
            return
        reader = self._reader
        reader.feed(data)
        holder = self.holder
        while (reply := reader.next_reply()) is not None:
            if isinstance(reply, Garbled):
                # Its replies so far are lost with it: what is broken now is decided once.
                self._fail(Reason.GARBLED, reply.detail)
                return
            self._reply(reply)
            if self._closed:
                break
        if self.state is State.IDLE:
            self._in_step()
        if holder is not None:
            holder.replies_done()

    def eof_received(self) -> bool:
        return False  # SMTP servers do not half-close; connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self._deadlines.disarm(self)
        if self.state is State.QUITTING:
            self._end()
            self.owner.connection_closed(self)
            return
        self._fail(Reason.LOST, _words(error) if error is not None else b"connection closed by the backend")

    def pause_writing(self) -> None:
        if self.holder is not None:
            self.holder.backend_writable(False)

    def resume_writing(self) -> None:
        if self.holder is not None:
            self.holder.backend_writable(True)

    # -- inside ------------------------------------------------------------------------------------

    def _reply(self, reply: Reply) -> None:
        if self.greeting is None:
            self._greeted(reply)
            return
        token = self._fifo.popleft() if self._fifo else None
        if reply.code >= 400:
            self.errors += 1
        if isinstance(token, _Own):
            self._own_answered(token, reply)
        elif self.holder is not None:
            self.holder.reply_received(self, token, reply)
            self.replies += 1
        elif token is None:
            # Spoken to nobody: an idle connection that is being closed (421), or a backend out of step.
            self._fail(Reason.LOST, reply.text_line(), reply)
        elif self.state is State.RESETTING and not self._fifo and not self._unsent:
            self._cleared()
        if self._unsent and not self._fifo and self._in_step():
            self._send_next()

    def _own_answered(self, token: _Own, reply: Reply) -> None:
        if token is _Own.QUIT:
            self._end()
            if self._transport is not None:
                self._transport.close()
            self.owner.connection_closed(self)
        elif token is _Own.RSET:
            if reply.code != 250:
                self._fail(Reason.GARBLED, reply.text_line(), reply)
            else:
                self._cleared()
        else:
            self._hello_answered(token, reply)

    def _cleared(self) -> None:
        if not self._in_step():
            return
        self._deadlines.set(self, NEVER)
        self.owner.connection_cleared(self)

    def _in_step(self) -> bool:
        """Nothing is owed and nothing more came: else its next words would be taken for answers to somebody's commands."""
        if not self._reader.empty:
            self._fail(Reason.GARBLED, b"spoke without being asked")
        return self._reader.empty

    def _send_next(self) -> None:
        if self._unsent and not self._fifo:
            token, line = self._unsent.popleft()
            self._fifo.append(token)
            self._write(line)

    def _command(self, token: _Own, line: bytes) -> None:
        """RSET and QUIT may follow what is still due at a backend with PIPELINING; at others they wait."""
        self._unsent.append((token, line))
        if self.capabilities.pipelining:
            while self._unsent:
                token_due, line_due = self._unsent.popleft()
                self._fifo.append(token_due)
                self._write(line_due)
        else:
            self._send_next()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _enter(self, phase: Phase, timeout_s: float) -> None:
        self._phase = phase
        self._deadlines.set(self, self._deadlines.clock() + timeout_s)


def _words(error: BaseException) -> bytes:
    """The system's words for an error, printable, for logs and views only."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.encode("ascii", "replace")[:200]
