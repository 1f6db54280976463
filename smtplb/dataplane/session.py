"""One client connection from accept to close: PROXY header, TLS, its input, the order of its replies, its deadline.

Owns the transport, the stages before the greeting, the input that was not looked at yet, the reply slots, the error count.
Does not own what commands mean (dialogue.py), a message's way (transaction.py), or admission (listener.py).
Invariant: replies leave in the order of the commands, one write per turn; while a reply is due, only RCPT and DATA lines are
looked at, and behind DATA and the end of data nothing is; input held meanwhile is bounded.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Final, cast

from smtplb.dataplane.attempt import ReplySlot
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import NEVER
from smtplb.dataplane.dialogue import Channel, Dialogue
from smtplb.dataplane.identity import Identity, read_address
from smtplb.dataplane.outbox import Speaker
from smtplb.dataplane.tls import TlsStream
from smtplb.observe.ended import SessionEnded
from smtplb.policy.refusal import READY_FOR_TLS, Refusal
from smtplb.policy.routing import ClientAddress, matches_network
from smtplb.smtp.proxy_header import Malformed, read_header
from smtplb.smtp.scan import line_end

# Functions from outside what is compiled are looked up by name each time: here once.
_line_end: Final = line_end

MAX_HELD_BYTES: Final = 64 * 1024  # input kept while a reply is due; then the socket is not read
MAX_SLOTS: Final = 1000  # replies due at once; more pipelined RCPTs wait in the input
MAX_REPLIES_A_TURN: Final = (
    100  # of one read of short commands; the next turn shows whether the client reads them
)
LINGER_S: Final = 30.0  # for a client to read our last words
PROXY_HEADER_TIMEOUT_S: Final = 5.0  # proxy-protocol.txt 2: at least 3 s; Postfix 5 s
HANDSHAKE_TIMEOUT_S: Final = 30.0  # Postfix smtpd_starttls_timeout 300 s, 10 s under stress


class Stage(Enum):
    """What has to be over before commands are read."""

    PROXY = auto()  # a trusted front owes its PROXY header
    HANDSHAKE = auto()
    DELAY = auto()  # the greeting is held back; who speaks now is no mail client
    OPEN = auto()


class House(ABC):
    """The listener, as a session sees it."""

    __slots__ = ("context",)

    def __init__(self, context: ListenerContext) -> None:
        self.context = context

    @abstractmethod
    def arrived(self, session: Session) -> None:
        """A connection was accepted; it counts from now on."""

    @abstractmethod
    def admit(self, session: Session) -> Refusal | None:
        """The client is known: a refusal is the session's greeting and its end."""

    @abstractmethod
    def takes_message(self, session: Session) -> bool: ...

    @abstractmethod
    def takes_recipient(self, session: Session) -> bool: ...

    @abstractmethod
    def session_over(self, session: Session) -> None: ...


class Session(Channel, Speaker):
    """See the module. An asyncio.Protocol in all but its base class, which compiled classes cannot have."""

    __slots__ = (
        "_backend_paused",
        "_barrier",
        "_closing",
        "_context",
        "_dialogue",
        "_end_reason",
        "_errors",
        "_held",
        "_house",
        "_message_until_s",
        "_named",
        "_out",
        "_out_due",
        "_peer",
        "_reading_paused",
        "_skipped",
        "_slots",
        "_stage",
        "_started_s",
        "_tls_due",
        "_transport",
        "_turn_due",
        "_writing_paused",
        "draining",
    )

    def __init__(self, house: House) -> None:
        session_id = house.context.runtime.new_session_id()
        super().__init__(session_id, Binding(Identity(session_id)))
        # for life
        self._house = house
        self._context = house.context
        self._dialogue = Dialogue(house.context, self)
        self._transport: asyncio.Transport | TlsStream | None = None
        self._stage = Stage.OPEN
        self._tls_due = False  # 220 to STARTTLS is about to be written
        self._peer: ClientAddress | None = (
            None  # who speaks: the client, or a front that tells whose mail it is
        )
        self._named = False  # a front said who the client is
        self._started_s = 0.0
        self._errors = 0
        self._end_reason = ""
        self.draining = False
        self._closing = False  # the last reply was given; nothing more is read
        # of input and output
        self._held = b""
        self._turn_due = False  # more of what is held may be looked at, in the next turn
        self._skipped = b""  # how the line began that is too long, while the rest of it is awaited
        self._slots: list[ReplySlot] | None = None
        self._barrier = False  # a slot is due behind which nothing is read
        self._out: list[bytes] = []
        self._out_due = False
        self._reading_paused = False  # for one of the reasons of _set_reading()
        self._writing_paused = False  # the client does not take our replies
        self._backend_paused = False  # the backend does not take the body
        self._message_until_s = NEVER  # when all of the message must have come

    # -- transport callbacks -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self._context
        stream = self._transport = cast("asyncio.Transport", transport)
        self._started_s = context.runtime.deadlines.clock()
        context.counters.sessions_total += 1
        self._house.arrived(self)
        self._set_peer(stream.get_extra_info("peername"), stream.get_extra_info("sockname"))
        try:
            if matches_network(context.settings.proxy_protocol_from, self._peer):
                self._stage = Stage.PROXY
                self._wait(PROXY_HEADER_TIMEOUT_S)
            else:
                self._client_known()
            self._flush()
        except Exception as error:
            self._bug(error)

    def _set_peer(self, peername: object, sockname: object) -> None:
        """Pairs of address and port, with more behind them for IPv6; of a unix socket something else."""
        if isinstance(peername, tuple) and isinstance(sockname, tuple):
            identity = self.binding.identity
            self._peer, self.client_text = read_address(peername[0])
            self.client = self._peer
            identity.met(self._peer, peername[1], self.client_text)
            identity.local, identity.local_port = read_address(sockname[0])[0], sockname[1]
        else:
            self.client_text = "unix"

    # -- before the greeting ------------------------------------------------------------------------

    def _client_known(self, received: bytes = b"") -> None:
        """Whose session it is was settled: admit it, then TLS where it is implicit, then the greeting."""
        refused = Refusal.SHUTTING_DOWN if self.draining else self._house.admit(self)
        certificates = self._context.certificates
        if certificates is not None and self._context.tls_implicit:
            if refused is not None or certificates.context is None:
                self._context.refused((refused or Refusal.TLS_NOT_NOW).label)
                self.close(
                    (refused or Refusal.TLS_NOT_NOW).label
                )  # without TLS there is nothing we could say
            else:
                self._handshake(received)
        elif refused is not None:
            self.close_with(refused)
        else:
            self._greet_later()
            if received:
                self.data_received(received)

    def _greet_later(self) -> None:
        delay_s = self._context.settings.greeting_delay_s
        if delay_s:
            self._stage = Stage.DELAY
            self._wait(delay_s)
        else:
            self._greet()

    def _greet(self) -> None:
        self._stage = Stage.OPEN
        self._out.append(self._context.greeting_wire)
        self._expect_input()

    def _proxy_header(self, data: bytes) -> None:
        header = read_header(data)
        if header is None:
            self._held = data  # bounded: read_header gives up on what is longer than a header
        elif isinstance(header, Malformed):
            self._context.refused("proxy-header")
            self.close("malformed PROXY header")
        else:
            identity = self.binding.identity
            identity.take_proxy(header)
            self._dialogue.front_unproven = header.source is None
            self._named = header.source is not None
            if header.source is not None:
                self._peer = (
                    header.source
                )  # what follows are its words: the front's right to XCLIENT is not its own
            self.client = identity.client
            self.client_text = identity.client_text or self.client_text
            self._stage = Stage.OPEN
            self._client_known(data[header.size_bytes :])

    # -- TLS ----------------------------------------------------------------------------------------

    @property
    def tls(self) -> bool:
        return isinstance(self._transport, TlsStream)

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def trusted_front(self) -> bool:
        return matches_network(self._context.settings.xclient_from, self._peer)

    @property
    def speaks_for_nobody(self) -> bool:
        """A front that did not say yet, or cannot, whose session it is: limits and lists are about clients."""
        return (self._dialogue.front_unproven or self.trusted_front) and not self._named

    def start_tls(self) -> None:
        """220 leaves with this turn; what the client sent behind STARTTLS in clear is an injection and dropped (CVE-2011-0411)."""
        self._out.append(READY_FOR_TLS)
        self._tls_due = True

    def _handshake(self, received: bytes = b"") -> None:
        raw, certificates = self._transport, self._context.certificates
        assert certificates is not None and certificates.context is not None
        assert raw is not None and not isinstance(raw, TlsStream)
        self._stage = Stage.HANDSHAKE
        self._wait(HANDSHAKE_TIMEOUT_S)
        self._held = b""
        stream = TlsStream(self._context.runtime.loop, raw, self, certificates.context, server_side=True)
        self._transport = stream
        stream.start(received)

    def tls_established(self) -> None:
        try:
            stream, identity = self._transport, self.binding.identity.copy()
            assert isinstance(stream, TlsStream)
            identity.tls_version, identity.tls_cipher = stream.version, stream.cipher
            self._dialogue.forget("STARTTLS", identity, same_client=True)
            if self.draining:
                self.close_with(Refusal.SHUTTING_DOWN)
            elif self._context.tls_implicit:
                self._greet_later()
            else:
                self._stage = Stage.OPEN
                self._expect_input()
            self._flush()
        except Exception as error:
            self._bug(error)

    def tls_failed(self, words: bytes) -> None:
        self._context.refused("tls-handshake")
        self.close(f"TLS handshake failed: {words.decode('ascii', 'replace')}")

    # -- transport callbacks ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            if self._closing:
                return
            if self._held:
                data = self._held + data
                self._held = b""
            if self._stage is Stage.OPEN:
                self._read(data)
            elif self._stage is Stage.PROXY:
                self._proxy_header(data)
            elif self._stage is Stage.DELAY:
                self.close_with(Refusal.EARLY_TALKER)
            self._flush(grouped=True)
        except Exception as error:
            self._bug(error)

    def eof_received(self) -> bool:
        """The client has sent all it will. What came before is still answered (design 4.6)."""
        self.half_closed = True
        if self._stage is not Stage.OPEN and not self._closing:
            self.close("client closed")
        self.turn()
        if self._closing:
            # Now: whoever called this closes the transport next.
            self._context.runtime.outbox.write_now(self)
        return not self._closing

    def connection_lost(self, error: Exception | None) -> None:
        context = self._context
        context.runtime.deadlines.disarm(self)
        if not self._closing:
            self._end_reason = "client lost"
            self._closing = True
        try:
            self._dialogue.client_gone("client lost")
        except Exception as bug:
            context.runtime.bug("session", bug)
        self.binding.end()
        self._house.session_over(self)
        # No cycle is left to the garbage collector: TLS buffers would wait for it.
        self._transport = None
        self._dialogue.detach()
        context.runtime.log(
            SessionEnded(
                listener=context.name,
                session_id=self.id,
                client=self.client_text,
                reason=self._end_reason,
                transactions=self._dialogue.transactions,
                duration_s=context.runtime.deadlines.clock() - self._started_s,
            )
        )

    def pause_writing(self) -> None:
        """The client does not read its replies: no further command is looked at until it does."""
        self._writing_paused = True
        self._set_reading()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self.turn()

    def deadline_passed(self, now: float) -> None:
        try:
            self._time_over()
            self._flush()
        except Exception as error:
            self._bug(error)

    def _time_over(self) -> None:
        if self._closing:
            self.abort()  # the client never read our last words
        elif self._stage is Stage.DELAY:
            self._greet()
        elif self._stage is not Stage.OPEN:
            # A front without its header (a TCP check, say), or a handshake that hangs: there is nobody to talk to.
            self.close("no PROXY header" if self._stage is Stage.PROXY else "TLS handshake timeout")
        elif self._reply_due and not self._writing_paused:
            assert self._dialogue.answer_under_way, "a reply is due and nobody is asked for it"
            self._message_until_s = NEVER  # the time that a backend takes is not the client's
            self._expect_input()
        else:
            slow = self._context.runtime.deadlines.clock() >= self._message_until_s
            self.close_with(Refusal.TOO_SLOW if slow else Refusal.IDLE)

    # -- what transaction and listener ask ---------------------------------------------------------

    def turn(self) -> None:
        """A transaction filled slots, or wants the body: write, and go on reading."""
        if self._transport is None:
            return  # the client is gone
        try:
            self._advance()
            self._flush()
        except Exception as error:
            self._bug(error)

    def backend_writable(self, writable: bool) -> None:
        """Flow control for the body: coupled, so that nobody's memory holds what the other cannot take."""
        self._backend_paused = not writable
        self._set_reading()

    def has_reset(self) -> bool:
        if self._transport is None:
            return False
        sock = cast("socket.socket | None", self._transport.get_extra_info("socket"))
        return sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def drain(self) -> None:
        """End between transactions: now, or when the present one has its final reply (design 4.9)."""
        self.draining = True
        if self._stage in (Stage.PROXY, Stage.HANDSHAKE):
            return  # nothing can be said now; said as soon as it can
        if self._dialogue.transaction is None and not self._closing and not self._slots:
            self.close_with(Refusal.SHUTTING_DOWN)
            self._flush()

    def reloaded(self) -> None:
        """The listener has other settings: taken up now if that can be, else with the next transaction."""
        if not self._closing and not self._slots and self._dialogue.between_transactions:
            self.take_up()
            self._flush()

    def take_up(self) -> bool:
        """Between transactions: the listener's present settings. False: they cannot be had in this session, and 421 ends it."""
        context = self._house.context
        if self._context.settings.met_like(context.settings):
            self._context = context
            self._dialogue.take_up(context)
            return True
        if self._stage is Stage.OPEN:  # else it hears so once it can hear
            self.close_with(Refusal.RECONFIGURED)
        return False

    def cut(self) -> None:
        """The time for transactions is over; one whose terminator left may still get its reply."""
        if self._stage in (Stage.PROXY, Stage.HANDSHAKE):
            self.close("shutdown")
            self._flush()
        elif not self._closing and self._dialogue.cut():
            self.close_with(Refusal.SHUTTING_DOWN)
            self._flush()

    def abort(self) -> None:
        """End at once, without a word."""
        if self._transport is not None:
            self._transport.abort()

    # -- reading -----------------------------------------------------------------------------------

    @property
    def _reply_due(self) -> bool:
        """It waits for us, not we for it."""
        return bool(self._slots) or self._body_stopped

    @property
    def _body_stopped(self) -> bool:
        return self._backend_paused and self._dialogue.in_message

    def _read(self, data: bytes) -> None:
        """Take input apart as far as it may be looked at now; hold the rest."""
        at = 0
        read = False
        dialogue = self._dialogue
        while at < len(data) and not (
            self._barrier or self._closing or self._writing_paused or self._tls_due
        ):
            if len(self._out) >= MAX_REPLIES_A_TURN:
                self._go_on_later()
                break
            if dialogue.in_body:
                data, at = dialogue.body(data[at:] if at else data), 0
                read = True
                continue
            if dialogue.data_asked:
                if self._slots:
                    break  # the answers first
                # Refused, and the client did not wait for it: what it takes for content would be commands (RFC 2920 3.1).
                self.close_with(Refusal.OUT_OF_TURN)
                return
            end = _line_end(data, at)
            if end < 0:
                if len(data) - at >= dialogue.max_line_bytes:
                    self._skipped = self._skipped or data[at : at + 8]
                    at = len(data)
                break
            if self._slots and not (
                len(self._slots) < MAX_SLOTS and data[at : at + 4].upper() in (b"RCPT", b"DATA")
            ):
                break  # only these may follow a RCPT whose reply is due
            line_at, at = at, end + 1
            read = True
            if end > line_at and data[end - 1] == 0x0D:
                self._line(data[line_at : end - 1], bare=False)
            else:
                self._line(data[line_at:end], bare=True)
        if read and not self._closing and not self._slots:  # else the time begins when the replies were given
            self._expect_input()
        if self._tls_due:
            if at < len(data):
                self._context.refused("starttls-injection")
        elif not self._closing:
            self._held = data[at:] if at else data
            self._set_reading()

    def _go_on_later(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._context.runtime.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_due = False
        self.turn()

    def _line(self, line: bytes, *, bare: bool) -> None:
        """`bare`: it ended with an LF alone."""
        if self._skipped or len(line) + (not bare) >= self._dialogue.max_line_bytes:
            began, self._skipped = self._skipped or line, b""
            self._dialogue.unreadable(began, Refusal.LINE_TOO_LONG)
        elif bare and self._context.rejects_bare_newline:
            self._dialogue.unreadable(line, Refusal.BARE_NEWLINE_COMMAND)
        else:
            self._dialogue.line(line)
        if self.draining and not self._closing:
            self._end_if_draining()

    # -- replies (Channel) -------------------------------------------------------------------------

    def answer(self, wire: bytes) -> None:
        """A reply of ours: at once, or behind those that are due."""
        if self._slots:
            self._slots.append(ReplySlot(wire))
        else:
            self._give(wire)

    def refuse(self, row: Refusal) -> None:
        self._context.refused(row.label)
        self.answer(row.wire)

    def await_reply(self, slot: ReplySlot, *, barrier: bool) -> None:
        if slot.wire is not None and not self._slots:
            self._give(slot.wire)
            self._settle()
            return
        if self._slots is None:
            self._slots = []
        self._slots.append(slot)
        self._barrier = barrier

    def _give(self, wire: bytes) -> None:
        """Write it at the end of the turn; errors are counted here, the backends' as well as ours."""
        self._out.append(wire)
        if wire and wire[0] == 0x35:
            self.count_error()

    def count_error(self) -> None:
        self._errors += 1
        if self._errors >= self._context.settings.limits.errors and not self._dialogue.in_body:
            self.close_with(Refusal.TOO_MANY_ERRORS)

    def _advance(self) -> None:
        """After something was filled, resumed or ended: give out replies, then read on from what was held."""
        if self._closing:
            return
        slots = self._slots
        if slots:
            given = 0
            while given < len(slots) and (wire := slots[given].wire) is not None and not self._closing:
                given += 1
                self._give(wire)
            if given < len(slots):
                del slots[:given]
            else:
                self._slots = None
                self._barrier = False
                self._settle()
        if self._held and not self._barrier:
            held, self._held = self._held, b""
            self._read(held)
        else:
            self._set_reading()
        # What it does not read yet holds up what it said last: that is looked at when it reads on.
        if self.half_closed and not (self._reply_due or self._turn_due or self._writing_paused):
            self._client_left()

    def _settle(self) -> None:
        """Every reply was given out."""
        self._dialogue.settle()
        if self._closing:
            return
        if self._dialogue.transaction is None:
            self._backend_paused = False
        self._expect_input()
        self._end_if_draining()

    def _end_if_draining(self) -> None:
        """Between transactions: after a final reply, and after RSET or EHLO, too."""
        if self.draining and self._dialogue.transaction is None and not self._slots:
            self.close_with(Refusal.SHUTTING_DOWN)

    def _flush(self, *, grouped: bool = False) -> None:
        """The turn is over: one write in each direction.

        `grouped`: the client has just spoken. If it said all up to DATA at once, it can go on with nothing less than the answer to
        that, so those before it may wait for the first that a backend gives (RFC 2920 3.2).
        """
        self._dialogue.flush()
        if not self._slots and not self._held:
            # The client hears the answer: what it says from now on it says knowing it.
            self._dialogue.data_asked = False
        held_back = grouped and self._barrier and self._slots and self._dialogue.data_asked
        if not self._out_due and (self._closing or (self._out and not held_back)):
            self._out_due = True
            self._context.runtime.outbox.add(self)
        if self._tls_due:
            self._tls_due = False
            if not self._closing:
                self.write_out()
                self._handshake()

    def write_out(self) -> None:
        """With the end of the turn, or before a handshake; then close, if that was the last."""
        self._out_due = False
        out, transport = self._out, self._transport
        if transport is None:
            return  # the client is gone
        if out:  # a transport that was aborted takes it and does nothing
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._closing:
            transport.close()

    def write_failed(self, error: Exception) -> None:
        self._context.runtime.bug("session, writing", error)
        self.abort()

    # -- flow and time -----------------------------------------------------------------------------

    def _set_reading(self) -> None:
        """Read the socket unless what is held is enough, the client does not read us, or the backend not the body."""
        transport = self._transport
        if transport is None or self._closing:
            return
        pause = self._writing_paused or len(self._held) > MAX_HELD_BYTES or self._body_stopped
        if pause is not self._reading_paused and not transport.is_closing():
            self._reading_paused = pause
            (transport.pause_reading if pause else transport.resume_reading)()

    def _expect_input(self) -> None:
        """The client has idle_timeout for its next command, or more of its message; body_timeout for all of the message."""
        context = self._context
        deadlines = context.runtime.deadlines
        now = deadlines.clock()
        until_s = now + context.idle_timeout_s
        if self._dialogue.in_message:
            if self._message_until_s == NEVER:
                self._message_until_s = now + context.body_timeout_s
            until_s = min(until_s, self._message_until_s)
        else:
            self._message_until_s = NEVER
        deadlines.set(self, until_s)

    def _wait(self, seconds: float) -> None:
        deadlines = self._context.runtime.deadlines
        deadlines.set(self, deadlines.clock() + seconds)

    # -- ending ------------------------------------------------------------------------------------

    def _client_left(self) -> None:
        """Half-closed, and all that came was answered."""
        if not self._closing:
            self._dialogue.client_gone("client closed")
            self.close("client closed")

    def close_with(self, row: Refusal) -> None:
        """421 and the end (RFC 5321 3.8). An open transaction is given up."""
        if self._closing:
            return
        self._dialogue.client_gone(row.label)
        self._context.refused(row.label)
        self._out.append(row.wire)
        self.close(row.label)

    def close(self, reason: str) -> None:
        self._closing = True
        self._slots = None
        self._held = b""
        self._end_reason = reason
        self._wait(LINGER_S)

    def identified(self, client: ClientAddress | None, text: str) -> bool:
        """XCLIENT: from here on it is this client's session, for limits, lists and logs, too."""
        self.client, self.client_text = client, text
        self._named = client is not None
        refused = self._house.admit(self)
        if refused is not None:
            self.close_with(refused)
        return refused is None

    def rebind(self, identity: Identity, *, same_client: bool) -> None:
        """Facts of the client changed: no connection that was told the old ones is used again."""
        old, self.binding = self.binding, Binding(identity)
        if same_client:
            self.binding.sticky, self.binding.verdict = old.sticky, old.verdict
        old.end()

    def takes_message(self) -> bool:
        return self._house.takes_message(self)

    def takes_recipient(self) -> bool:
        return self._house.takes_recipient(self)

    def _bug(self, error: Exception) -> None:
        """Ours: told to the log in full, to the client as 421 without a reason (design 4.8)."""
        self._context.runtime.bug("session", error)
        try:
            self.close_with(Refusal.OUR_BUG)
            self._flush()
        except Exception as second:
            self._context.runtime.bug("session, ending it", second)
            self.abort()
