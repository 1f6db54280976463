"""One client connection from accept to close: its input, the order of its replies, its deadline.

Owns the transport, the input that was not looked at yet, the reply slots, the error count. Does not own what commands mean
(dialogue.py), a message's way (transaction.py), or admission (listener.py).
Invariant: replies leave in the order of the commands, one write per turn; while a reply is due, only RCPT lines are looked at,
and behind DATA and the end of data nothing is; input held meanwhile is bounded.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Protocol, cast

from smtplb.dataplane.attempt import ReplySlot
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import NEVER
from smtplb.dataplane.dialogue import Dialogue
from smtplb.observe.events import SessionEnded
from smtplb.policy.refusal import Refusal
from smtplb.policy.routing import ClientAddress
from smtplb.smtp.commands import MAX_COMMAND_LINE_BYTES

MAX_HELD_BYTES = 64 * 1024  # input kept while a reply is due; then the socket is not read
MAX_SLOTS = 1000  # replies due at once; more pipelined RCPTs wait in the input
LINGER_S = 30.0  # for a client to read our last words


class House(Protocol):
    """The listener, as a session sees it."""

    context: ListenerContext

    def admit(self, session: Session) -> Refusal | None:
        """A new session; a refusal is its greeting and its end."""

    def session_over(self, session: Session) -> None: ...


class Session(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_barrier",
        "_closing",
        "_context",
        "_dialogue",
        "_end_reason",
        "_errors",
        "_held",
        "_house",
        "_out",
        "_reading_paused",
        "_skipping_line",
        "_slots",
        "_started_s",
        "_transport",
        "_writing_paused",
        "client",
        "client_text",
        "deadline_bucket",
        "deadline_s",
        "draining",
        "half_closed",
        "id",
    )

    def __init__(self, house: House) -> None:
        # for life
        self._house = house
        self._context = house.context
        self._dialogue = Dialogue(house.context, self)
        self._transport: asyncio.Transport | None = None
        self.client: ClientAddress | None = None
        self.client_text = ""
        self.id = ""
        self._started_s = 0.0
        self._errors = 0
        self._end_reason = ""
        self.draining = False
        self._closing = False  # the last reply was given; nothing more is read
        # of input and output
        self._held = b""
        self._skipping_line = False
        self._slots: list[ReplySlot] | None = None
        self._barrier = False  # a slot is due behind which nothing is read
        self._out: list[bytes] = []
        self.half_closed = False
        self._reading_paused = False
        self._writing_paused = False
        self.deadline_s = NEVER
        self.deadline_bucket = 0

    # -- transport callbacks -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self._context
        stream = self._transport = cast("asyncio.Transport", transport)
        sock = stream.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._set_client(stream.get_extra_info("peername"))
        else:
            self.client_text = "unix"
        self.id = context.runtime.new_session_id()
        self._started_s = context.runtime.deadlines.clock()
        context.sessions_total += 1
        refused = self._house.admit(self)
        if refused is not None:
            self.close_with(refused)
        else:
            self._out.append(context.greeting_wire)
            self._expect_input()
        self._flush()

    def _set_client(self, peername: tuple[str, int] | None) -> None:
        if peername:
            host = peername[0].partition("%")[0]  # a scope is not part of the address
            self.client = ip_address(host)
            self.client_text = host

    def data_received(self, data: bytes) -> None:
        try:
            if self._closing:
                return
            if self._held:
                data = self._held + data
                self._held = b""
            self._read(data)
            self._flush()
        except Exception as error:
            self._bug(error)

    def eof_received(self) -> bool:
        """The client has sent all it will. What came before is still answered (design 4.6)."""
        self.half_closed = True
        self.turn()
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
        self._house.session_over(self)
        context.runtime.emit(
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
        if self._closing:
            self.abort()  # the client never read our last words
        elif self._reply_due and not self._writing_paused:
            self._expect_input()  # it waits for us, not we for it
        else:
            self.close_with(Refusal.IDLE)
            self._flush()

    # -- what transaction and listener ask ---------------------------------------------------------

    def turn(self) -> None:
        """A transaction filled slots, or wants the body: write, and go on reading."""
        try:
            self._advance()
            self._flush()
        except Exception as error:
            self._bug(error)

    def backend_writable(self, writable: bool) -> None:
        """Flow control for the body: coupled, so that nobody's memory holds what the other cannot take."""
        if self._transport is not None and writable is self._reading_paused and self._dialogue.in_body:
            self._reading_paused = not writable
            (self._transport.resume_reading if writable else self._transport.pause_reading)()

    def drain(self) -> None:
        """End between transactions: now, or when the present one has its final reply (design 4.9)."""
        self.draining = True
        if self._dialogue.transaction is None and not self._closing and not self._slots:
            self.close_with(Refusal.SHUTTING_DOWN)
            self._flush()

    def cut(self) -> None:
        """The time for transactions is over; one whose terminator left may still get its reply."""
        if not self._closing and self._dialogue.cut():
            self.close_with(Refusal.SHUTTING_DOWN)
            self._flush()

    def abort(self) -> None:
        """End at once, without a word."""
        if self._transport is not None:
            self._transport.abort()

    # -- reading -----------------------------------------------------------------------------------

    @property
    def _reply_due(self) -> bool:
        return bool(self._slots) or (self._reading_paused and self._dialogue.in_body)

    def _read(self, data: bytes) -> None:
        """Take input apart as far as it may be looked at now; hold the rest."""
        at = 0
        while at < len(data) and not self._barrier and not self._closing and not self._writing_paused:
            if self._dialogue.in_body:
                data, at = self._dialogue.body(data[at:] if at else data), 0
                self._expect_input()
                continue
            end = data.find(b"\n", at)
            if end < 0:
                if len(data) - at >= MAX_COMMAND_LINE_BYTES:
                    self._skipping_line = True
                    at = len(data)
                break
            if self._slots and not (len(self._slots) < MAX_SLOTS and data[at : at + 4].upper() == b"RCPT"):
                break  # only RCPT may follow a RCPT whose reply is due
            line = data[at:end]
            at = end + 1
            self._line(line)
        if not self._closing:
            self._held = data[at:] if at else data
            self._set_reading()

    def _line(self, line: bytes) -> None:
        if self._skipping_line or len(line) >= MAX_COMMAND_LINE_BYTES:
            self._skipping_line = False
            self.refuse(Refusal.LINE_TOO_LONG)
        elif line.endswith(b"\r"):
            self._dialogue.line(line[:-1])
        elif self._context.rejects_bare_newline:
            self.refuse(Refusal.BARE_NEWLINE_COMMAND)
        else:
            self._dialogue.line(line)
        if not self._closing:
            self._expect_input()

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
        if wire[:1] == b"5":
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
        if self.half_closed and not self._reply_due:
            self._client_left()

    def _settle(self) -> None:
        """Every reply was given out."""
        self._dialogue.settle()
        if self._closing:
            return
        if self.draining and self._dialogue.transaction is None:
            self.close_with(Refusal.SHUTTING_DOWN)
        else:
            self._expect_input()

    def _flush(self) -> None:
        """The turn is over: one write in each direction."""
        transport = self._transport
        assert transport is not None
        self._dialogue.flush()
        out = self._out
        if out:
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._closing and not transport.is_closing():
            transport.close()

    # -- flow and time -----------------------------------------------------------------------------

    def _set_reading(self) -> None:
        """Read the socket unless what is held is enough, or the client does not read us."""
        transport = self._transport
        if transport is None or self._closing or (self._dialogue.in_body and not self._barrier):
            return
        pause = self._writing_paused or len(self._held) > MAX_HELD_BYTES
        if pause is not self._reading_paused and not transport.is_closing():
            self._reading_paused = pause
            (transport.pause_reading if pause else transport.resume_reading)()

    def _expect_input(self) -> None:
        deadlines = self._context.runtime.deadlines
        deadlines.set(self, deadlines.clock() + self._context.settings.limits.idle_timeout_s)

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
        deadlines = self._context.runtime.deadlines
        deadlines.set(self, deadlines.clock() + LINGER_S)

    def _bug(self, error: Exception) -> None:
        """Ours: told to the log in full, to the client as 421 without a reason (design 4.8)."""
        self._context.runtime.bug("session", error)
        try:
            self.close_with(Refusal.OUR_BUG)
            self._flush()
        except Exception as second:
            self._context.runtime.bug("session, ending it", second)
            self.abort()
