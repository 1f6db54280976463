"""One connection to a backend: from connect to close, and what it owes to whom.

Owns the transport, the FIFO of commands whose replies are due, RSET and QUIT, the deadline of the phase. Does not own how it
comes up (opening.py), which transaction uses it (backend.py hands it out), nor what a reply means (policy/outcome.py).
Invariant: one FIFO entry per command sent, in order (design 4.10); while IDLE the FIFO is empty and no transaction is open.
After it has ended it calls nobody.
"""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol, cast

from smtplb.compiled import mypyc_attr
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.deadlines import NEVER, Deadlines, Waiter
from smtplb.dataplane.opening import Opening
from smtplb.dataplane.outbox import KEPT_BYTES, Outbox, Speaker
from smtplb.dataplane.tls import TlsStream
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import Command, Reason
from smtplb.settings import BackendSettings
from smtplb.smtp.extensions import Capabilities
from smtplb.smtp.replies import Garbled, Reply, ReplyReader

RSET_TIMEOUT_S: Final = 30.0  # a backend that needs longer for RSET is not worth keeping
QUIT_TIMEOUT_S: Final = 5.0  # for the 221; then the connection is closed without it
HIGH_WATER_BYTES: Final = 256 * 1024  # unsent body towards a backend above which the client is not read


class State(Enum):
    """Containers of backend.py are named after these."""

    CONNECTING = auto()  # until the reply to EHLO or HELO
    IDLE = auto()
    BOUND = auto()  # idle, and of one session for life (Binding.kept)
    LEASED = auto()
    RESETTING = auto()  # swallowing what a former holder left behind, then RSET
    QUITTING = auto()
    CLOSED = auto()


class Failure:
    """How a connection ended before its time.

    `reply` is what the backend said, if that was it; `token` that of the oldest command of the holder without an answer.
    """

    __slots__ = ("detail", "identity_sent", "phase", "reason", "reply", "token")

    def __init__(
        self,
        phase: Phase,
        reason: Reason,
        detail: bytes,
        reply: Reply | None = None,
        token: object = None,
        *,
        identity_sent: bool = False,
    ) -> None:
        self.phase = phase
        self.reason = reason
        self.detail = detail
        self.reply = reply
        self.token = token
        self.identity_sent = identity_sent


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


@mypyc_attr(allow_interpreted_subclasses=True)
class Holder(Waiter, ABC):
    """Who leases the connection."""

    __slots__ = ()

    @abstractmethod
    def reply_received(self, connection: Connection, token: object, reply: Reply) -> None:
        """The reply to the command sent with `token`; token None: the backend spoke without being asked."""

    @abstractmethod
    def replies_done(self) -> None:
        """All replies that came in this turn were told: the time to write to the client. Told even if the lease is over."""

    @abstractmethod
    def connection_broken(self, connection: Connection, failure: Failure) -> None:
        """It ended while leased; the lease is over. replies_done() does not follow."""

    @abstractmethod
    def backend_writable(self, writable: bool) -> None:
        """Flow control: the backend does, or does not, take more."""


class _Own(Enum):
    """Tokens of the connection's own commands."""

    RSET = auto()
    QUIT = auto()


class Connection(Waiter, Speaker):
    """See the module. An asyncio.Protocol but for the base class, which compiled classes cannot have.

    `token` objects of a holder are opaque; they must not be None."""

    __slots__ = (
        "_connecting",
        "_deadlines",
        "_fifo",
        "_loop",
        "_opening",
        "_out",
        "_out_bytes",
        "_outbox",
        "_phase",
        "_reader",
        "_transport",
        "_unsent",
        "binding",
        "born_s",
        "capabilities",
        "clear",
        "errors",
        "greeting",
        "hello_reply",
        "holder",
        "owner",
        "replies",
        "resets",
        "rested",
        "settings",
        "state",
        "transaction_open",
        "transactions",
        "when_gone",
        "writable",
    )

    def __init__(
        self,
        settings: BackendSettings,
        *,
        hello: bytes,
        deadlines: Deadlines,
        outbox: Outbox,
        owner: Owner,
        binding: Binding | None = None,
        clear: bool = False,
    ) -> None:
        """`binding`: the one session it will carry the identity of; `clear`: do without opportunistic TLS."""
        super().__init__()
        # for life
        self.settings = settings
        self.owner = owner
        self.binding = binding
        self.clear = clear
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines = deadlines
        self._outbox = outbox
        self._transport: asyncio.Transport | TlsStream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reader = ReplyReader()
        self._out: list[bytes] = []  # to be written with the end of the turn
        self._out_bytes = 0
        self._fifo: deque[object] = deque()
        self._unsent: deque[tuple[object, bytes]] = (
            deque()
        )  # commands that wait, at a backend without PIPELINING
        self.state = State.CONNECTING
        self.when_gone: Callable[[], None] | None = None
        self._phase = Phase.CONNECT
        self.born_s = deadlines.clock()
        # coming up
        identity = binding.identity if binding is not None else None
        self._opening: Opening | None = Opening(self, settings, hello, identity, clear=clear)
        self.greeting: Reply | None = None
        self.hello_reply: Reply | None = None
        self.capabilities = Capabilities()
        # counts
        self.transactions = 0  # leases so far, the present one included
        self.errors = 0  # 4xx and 5xx replies
        self.rested = False  # it was IDLE or BOUND for a time, and may have grown stale in it
        self.resets = 0  # RSETs since the last message
        # for a lease
        self.holder: Holder | None = None
        self.replies = 0  # replies in this lease
        self.transaction_open = False  # MAIL was sent and not yet refused, ended or reset
        self.writable = True  # it takes what is sent; flow control says otherwise

    # -- coming up ---------------------------------------------------------------------------------

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start connecting. connection_ready or connection_failed follows, never inside this call."""
        self._loop = loop
        self._deadlines.set(self, self.born_s + self.settings.timeouts.connect_s)
        self._connecting = loop.create_task(self._connect(loop))

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        address = self.settings.address
        try:
            if address.path is not None:
                await loop.create_unix_connection(self._as_protocol, address.path)
            else:
                source = (self.settings.source, 0) if self.settings.source else None
                await loop.create_connection(self._as_protocol, address.host, address.port, local_addr=source)
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded for the DNS
            self._connecting = None
            self._fail(Reason.CONNECT, _words(error))

    def _as_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connecting = None
        stream = cast("asyncio.Transport", transport)
        if self.state is State.CLOSED:  # given up while the connect was under way
            stream.abort()
            return
        self._transport = stream
        stream.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._enter(Phase.GREETING, self.settings.timeouts.greeting_s)
        assert self._opening is not None
        self._opening.connected()

    def endpoints(self) -> tuple[tuple[str, int], tuple[str, int]] | None:
        assert self._transport is not None
        if self.settings.address.path is not None:
            return None
        own = cast("tuple[str, int]", self._transport.get_extra_info("sockname"))
        other = cast("tuple[str, int]", self._transport.get_extra_info("peername"))
        return own[:2], other[:2]

    def begin_tls(self, context: ssl.SSLContext, server_name: str | None) -> None:
        """What was read in clear behind the 220 is dropped (RFC 3207 4.2; CVE-2011-0411 at the other end)."""
        raw = self._transport
        assert self._loop is not None and raw is not None and not isinstance(raw, TlsStream)
        self._reader.clear()
        stream = TlsStream(
            self._loop,
            raw,
            self,
            context,
            server_side=False,
            server_hostname=server_name,
        )
        self._transport = stream
        stream.start()

    def tls_established(self) -> None:
        if self._opening is not None and self.state is State.CONNECTING:
            self._opening.tls_established()

    def tls_failed(self, words: bytes) -> None:
        self._fail(Reason.TLS, words)

    def hello_sent(self) -> None:
        self._enter(Phase.HELLO, self.settings.timeouts.greeting_s)

    def opened(self) -> None:
        opening = self._opening
        assert opening is not None
        if not self.in_step():
            return
        self._opening = None
        self.greeting, self.hello_reply = opening.greeting, opening.hello_reply
        self.capabilities = opening.capabilities
        self._deadlines.set(self, NEVER)
        self.owner.connection_ready(self)

    def not_opened(self, reason: Reason, detail: bytes, reply: Reply | None) -> None:
        opening = self._opening
        assert opening is not None
        self.greeting, self.hello_reply = opening.greeting, opening.hello_reply
        self.capabilities = opening.capabilities
        self._fail(reason, detail, reply)

    def write(self, data: bytes) -> None:
        """Of the opening, which may go over to TLS in the same turn: at once."""
        assert self._transport is not None
        self._transport.write(data)

    @property
    def tls_version(self) -> str:
        """ "" in clear."""
        return self._transport.version if isinstance(self._transport, TlsStream) else ""

    @property
    def _closed(self) -> bool:
        return self.state is State.CLOSED

    # -- leases ------------------------------------------------------------------------------------

    @property
    def kept(self) -> bool:
        """It served another transaction before this one, or waited for one."""
        return self.rested or self.transactions > 1

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

    def drop_unsent(self) -> None:
        """Forget commands that were not written yet: nobody owes an answer to them."""
        self._unsent.clear()

    def write_body(self, data: bytes) -> None:
        """Message content, after a 354."""
        self._write(data)

    def write_chunk(self, data: bytes) -> None:
        """A BDAT command with its octets, not the last one; its reply carries Command.BODY."""
        self._fifo.append(Command.BODY)
        self._write(data)

    def write_end(self, pieces: list[bytes], token: object) -> None:
        """The last of the message content, terminator included, in one gathering write; its reply carries `token`."""
        self._fifo.append(token)
        first = not self._out
        self._out.extend(pieces)
        self._out_bytes += sum([len(piece) for piece in pieces])
        self._leave(first)

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
            self.resets += 1
            self._command(_Own.RSET, b"RSET\r\n")
        self._enter(Phase.RSET, RSET_TIMEOUT_S)

    def keep_until(self, deadline_s: float) -> None:
        """It is IDLE; connection_expired follows when the deadline passes."""
        assert self.owes_nothing
        self.rested = True
        self._deadlines.set(self, deadline_s)

    @property
    def fifo_empty(self) -> bool:
        """No reply is due."""
        return not self._fifo

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

    def no_longer_wanted(self) -> None:
        """The session that it belongs to is over."""
        if self.state is State.BOUND:
            self.owner.connection_expired(self)

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
        self._out.clear()
        self._out_bytes = 0
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
            if was is State.CONNECTING and phase is not Phase.CONNECT and self._may_say_quit(reason):
                # Refused while coming up: leave as RFC 5321 3.8 asks, so that the backend logs no lost connection.
                transport.write(b"QUIT\r\n")
                self._enter(Phase.QUIT, QUIT_TIMEOUT_S)
            else:
                transport.abort()
        opening, self._opening = self._opening, None
        if opening is not None:
            self.greeting, self.hello_reply = opening.greeting, opening.hello_reply
        failure = Failure(
            phase, reason, detail, reply, token, identity_sent=opening is not None and opening.identity_sent
        )
        if was is State.CONNECTING:
            self.owner.connection_failed(self, failure)
            return
        self.owner.connection_closed(self)
        if holder is not None:
            holder.connection_broken(self, failure)

    @property
    def leaving(self) -> bool:
        """It failed while coming up, and its QUIT is not answered yet: `when_gone` is called when the backend is rid of it."""
        transport = self._transport
        return self.state is State.CLOSED and transport is not None and not transport.is_closing()

    def _may_say_quit(self, reason: Reason) -> bool:
        """It speaks SMTP and is in step: also where it does not offer STARTTLS, but not after a failed handshake."""
        return reason in _POLITE or (reason is Reason.TLS and not self._in_handshake)

    @property
    def _in_handshake(self) -> bool:
        return self._opening is not None and self._opening.in_handshake

    def deadline_passed(self, now: float) -> None:
        if self.state is State.CLOSED:
            if self._transport is not None:
                self._transport.abort()
            return
        if self.state in (State.IDLE, State.BOUND):
            self.owner.connection_expired(self)
            return
        words = b"no answer in phase %s" % self._phase.encode()
        self._fail(Reason.TLS if self._in_handshake else Reason.TIMEOUT, words)

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
        if self.state in (State.IDLE, State.BOUND):
            self.in_step()
        if holder is not None:
            holder.replies_done()

    def eof_received(self) -> bool:
        return False  # SMTP servers do not half-close; connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self._deadlines.disarm(self)
        if self.when_gone is not None:
            self.when_gone()
        if self.state is State.QUITTING:
            self._end()
            self.owner.connection_closed(self)
            return
        if error is not None and not isinstance(error, OSError):
            # An exception of ours out of a callback: the loop has told it in full. It is not the backend's fault.
            self._fail(Reason.BUG, b"local error")
            return
        words = _words(error) if error is not None else b"connection closed by the backend"
        self._fail(Reason.TLS if self._in_handshake else Reason.LOST, words)

    def pause_writing(self) -> None:
        self.writable = False
        if self.holder is not None:
            self.holder.backend_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        if self.holder is not None:
            self.holder.backend_writable(True)

    # -- inside ------------------------------------------------------------------------------------

    def _reply(self, reply: Reply) -> None:
        if self._opening is not None:
            self._opening.reply(reply)
            return
        token = self._fifo.popleft() if self._fifo else None
        if reply.code >= 400:
            self.errors += 1
        if isinstance(token, _Own):
            self._own_answered(token, reply)
        elif (holder := self.holder) is not None:
            holder.reply_received(self, token, reply)
            if self.holder is holder:  # else it belongs to the next one already
                self.replies += 1
        elif token is None:
            # Spoken to nobody: an idle connection that is being closed (421), or a backend out of step.
            self._fail(Reason.LOST, reply.text_line(), reply)
        elif token is Command.DATA and reply.code < 400:
            # DATA had been sent along with RCPT, and its holder left: from here only an end without a dot completes nothing.
            self._fail(Reason.LOST, reply.text_line(), reply)
        elif self.state is State.RESETTING and not self._fifo and not self._unsent:
            self._cleared()
        if self._unsent and not self._fifo and self.in_step():
            self._send_next()

    def _own_answered(self, token: _Own, reply: Reply) -> None:
        if token is _Own.QUIT:
            self._end()
            if self._transport is not None:
                self._transport.close()
            self.owner.connection_closed(self)
        elif reply.code != 250:
            self._fail(Reason.GARBLED, reply.text_line(), reply)
        else:
            self._cleared()

    def _cleared(self) -> None:
        if not self.in_step():
            return
        self._deadlines.set(self, NEVER)
        self.owner.connection_cleared(self)

    def in_step(self) -> bool:
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
        """RSET and QUIT may follow what is still due at a backend with PIPELINING; at others they wait. Behind DATA they wait
        everywhere: after a 354 they would be content."""
        self._unsent.append((token, line))
        if self.capabilities.pipelining and Command.DATA not in self._fifo:
            while self._unsent:
                token_due, line_due = self._unsent.popleft()
                self._fifo.append(token_due)
                self._write(line_due)
        else:
            self._send_next()

    def _write(self, data: bytes) -> None:
        first = not self._out
        self._out.append(data)
        self._out_bytes += len(data)
        self._leave(first)

    def _leave(self, first: bool) -> None:
        """With the end of the turn; what is large at once. `first`: nothing was waiting to leave."""
        if self._out_bytes >= KEPT_BYTES:
            self.write_out()
        elif first:
            self._outbox.add(self)

    def write_out(self) -> None:
        out, transport = self._out, self._transport
        if not out:
            return  # it was large, and did not wait for the end of the turn; or the connection has ended
        assert transport is not None
        self._out = []
        self._out_bytes = 0
        # A transport that was aborted takes it and does nothing; one that is being closed, behind what it was given before.
        if len(out) == 1:
            transport.write(out[0])
        else:
            transport.writelines(out)

    def write_failed(self, error: Exception) -> None:
        """As for any other exception out of a callback: the loop tells it in full, and it is not the backend's fault."""
        assert self._loop is not None
        self._loop.call_exception_handler({"message": "bug in connection, writing", "exception": error})
        self._fail(Reason.BUG, b"local error")

    def _enter(self, phase: Phase, timeout_s: float) -> None:
        self._phase = phase
        self._deadlines.set(self, self._deadlines.clock() + timeout_s)


_POLITE: Final = frozenset({Reason.GREETING, Reason.IDENTITY})


def _words(error: BaseException) -> bytes:
    """The system's words for an error, printable, for logs and views only."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.encode("ascii", "replace")[:200]
