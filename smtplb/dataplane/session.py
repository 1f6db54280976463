"""One client connection from accept to close: its commands, the order of its replies, its deadline.

Owns the transport, the input that was not looked at yet, the reply slots, the error count. Does not own a message's way
(transaction.py), what the listener allows (listener.py), or the grammar (smtp/).
Invariant: replies leave in the order of the commands, one write per turn; while a reply other than to a RCPT is due, no
further command is looked at; input held meanwhile is bounded.
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum, auto
from ipaddress import ip_address
from typing import Protocol, cast

from smtplb.dataplane.attempt import ReplySlot
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import NEVER
from smtplb.dataplane.transaction import Transaction
from smtplb.observe.events import SessionEnded
from smtplb.policy import refusal, routing
from smtplb.policy.refusal import Refusal
from smtplb.smtp.commands import (
    FOREIGN,
    MAX_COMMAND_LINE_BYTES,
    NOT_IMPLEMENTED,
    VERBS,
    Phase,
    SyntaxFault,
    Verb,
    parse_hello,
    parse_mail,
    parse_rcpt,
    split_line,
)

MAX_HELD_BYTES = 64 * 1024  # input kept while a reply is due; then the socket is not read
MAX_SLOTS = 1000  # replies due at once; more pipelined RCPTs wait in the input

_FAULT_REFUSALS = {
    SyntaxFault.ARGUMENTS: Refusal.BAD_ARGUMENTS,
    SyntaxFault.PARAMETER: Refusal.UNKNOWN_PARAMETER,
    SyntaxFault.PARAMETER_VALUE: Refusal.BAD_ARGUMENTS,
}


class Mode(Enum):
    COMMANDS = auto()
    BODY = auto()
    WAITING = auto()  # for the answer to DATA or to the end of data
    CLOSING = auto()  # the last reply was written


class House(Protocol):
    """The listener, as a session sees it."""

    context: ListenerContext

    def admit(self, session: Session) -> Refusal | None:
        """A new session; a refusal is its greeting and its end."""

    def session_over(self, session: Session) -> None: ...


class Session(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_client",
        "_context",
        "_errors",
        "_greeted",
        "_held",
        "_house",
        "_mode",
        "_out",
        "_reading_paused",
        "_skipping_line",
        "_slots",
        "_started_s",
        "_transaction",
        "_transport",
        "_writing_paused",
        "client_text",
        "deadline_bucket",
        "deadline_s",
        "draining",
        "end_reason",
        "half_closed",
        "helo",
        "id",
        "transactions",
    )

    def __init__(self, house: House) -> None:
        # for life
        self._house = house
        self._context = house.context
        self._transport: asyncio.Transport | None = None
        self._client: routing.ClientAddress | None = None
        self.client_text = ""
        self.id = ""
        self._started_s = 0.0
        self._errors = 0
        self.transactions = 0
        self.end_reason = ""
        self.draining = False
        # of the protocol
        self.helo = b""
        self._greeted = False
        self._mode = Mode.COMMANDS
        self._transaction: Transaction | None = None
        # of input and output
        self._held = b""
        self._skipping_line = False
        self._slots: list[ReplySlot] | None = None
        self._out: list[bytes] = []
        self.half_closed = False
        self._reading_paused = False
        self._writing_paused = False
        self.deadline_s = NEVER
        self.deadline_bucket = 0

    # -- transport callbacks -----------------------------------------------------------------------------------------------

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
            self._end_with(refused)
        else:
            self._out.append(context.greeting_wire)
            self._flush()
            self._expect_input()

    def _set_client(self, peername: tuple[str, int] | None) -> None:
        if peername:
            host = peername[0].partition("%")[0]  # a scope is not part of the address
            self._client = ip_address(host)
            self.client_text = host

    def data_received(self, data: bytes) -> None:
        try:
            if self._mode is Mode.CLOSING:
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
        try:
            self.half_closed = True
            self._advance()
            self._flush()
        except Exception as error:
            self._bug(error)
        return self._mode is not Mode.CLOSING

    def connection_lost(self, error: Exception | None) -> None:
        transaction, self._transaction = self._transaction, None
        self._context.runtime.deadlines.disarm(self)
        was_closing = self._mode is Mode.CLOSING
        self._mode = Mode.CLOSING
        if transaction is not None:
            try:
                transaction.client_gone("client lost")
            except Exception as bug:
                self._context.runtime.bug("session", bug)
        if not was_closing:
            self.end_reason = "client lost"
        self._house.session_over(self)
        context = self._context
        context.runtime.emit(
            SessionEnded(
                listener=context.name,
                session_id=self.id,
                client=self.client_text,
                reason=self.end_reason,
                transactions=self.transactions,
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
        if self._mode is Mode.CLOSING:
            assert self._transport is not None
            self._transport.abort()  # the client never read our last words
        elif self._waits_for_us and not self._writing_paused:
            self._expect_input()
        else:
            self._close_with(Refusal.IDLE)
            self._flush()

    # -- what transaction and listener ask -----------------------------------------------------------------------------------

    def turn(self) -> None:
        """A transaction filled slots, or wants the body: write, and go on reading."""
        try:
            self._advance()
            self._flush()
        except Exception as error:
            self._bug(error)

    def backend_writable(self, writable: bool) -> None:
        """Flow control for the body: coupled, so that nobody's memory holds what the other cannot take."""
        assert self._transport is not None
        if self._mode is Mode.BODY and writable is self._reading_paused:
            self._reading_paused = not writable
            (self._transport.resume_reading if writable else self._transport.pause_reading)()

    def drain(self) -> None:
        """End between transactions: now, or when the present one has its final reply (design 4.9)."""
        self.draining = True
        if self._transaction is None and self._mode is Mode.COMMANDS:
            self._close_with(Refusal.SHUTTING_DOWN)
            self._flush()

    def cut(self) -> None:
        """The time for transactions is over; one whose terminator left may still get its reply."""
        transaction = self._transaction
        if self._mode is Mode.CLOSING or (transaction is not None and transaction.terminator_left):
            return
        if transaction is not None:
            transaction.cut()
            self._transaction = None
        self._slots = None
        self._close_with(Refusal.SHUTTING_DOWN)
        self._flush()

    def abort(self) -> None:
        """End at once, without a word: only when the process ends."""
        if self._transport is not None:
            self._transport.abort()

    # -- reading -------------------------------------------------------------------------------------------------------------

    @property
    def _closing(self) -> bool:
        return self._mode is Mode.CLOSING

    @property
    def _waits_for_us(self) -> bool:
        return self._mode is Mode.WAITING or bool(self._slots) or self._reading_paused

    def _read(self, data: bytes) -> None:
        """Take input apart as far as it may be looked at now; hold the rest."""
        at = 0
        while at < len(data):
            if self._mode is Mode.BODY:
                data, at = self._body(data[at:] if at else data), 0
                continue
            if self._mode is not Mode.COMMANDS or self._writing_paused:
                break
            end = data.find(b"\n", at)
            if end < 0:
                if len(data) - at >= MAX_COMMAND_LINE_BYTES:
                    self._skipping_line = True
                    at = len(data)
                break
            if self._slots and not self._may_overtake(data, at):
                break
            line = data[at:end]
            at = end + 1
            if self._skipping_line:
                self._skipping_line = False
                self._refuse(Refusal.LINE_TOO_LONG)
            elif len(line) >= MAX_COMMAND_LINE_BYTES:
                self._refuse(Refusal.LINE_TOO_LONG)
            else:
                self._line(line)
        if self._mode is not Mode.CLOSING:
            self._held = data[at:] if at else data
            self._set_reading()

    def _may_overtake(self, data: bytes, at: int) -> bool:
        """Only RCPT may follow a RCPT whose reply is due; everything else waits for what came before it."""
        slots = self._slots
        return slots is not None and len(slots) < MAX_SLOTS and data[at : at + 4].upper() == b"RCPT"

    def _body(self, data: bytes) -> bytes:
        transaction = self._transaction
        assert transaction is not None
        rest = transaction.body(data)
        if transaction.in_body:
            self._expect_input()
        else:
            self._mode = Mode.WAITING
            self._await(transaction.slot)
            self._advance_slots()
        return rest

    def _line(self, line: bytes) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        elif self._context.rejects_bare_newline:
            self._refuse(Refusal.BARE_NEWLINE_COMMAND)
            return
        token, argument = split_line(line)
        verb = VERBS.get(token)
        if verb is None:
            self._unknown(token)
            return
        if (verb.argument == "forbidden" and argument) or (verb.argument == "required" and not argument):
            self._refuse(Refusal.BAD_ARGUMENTS)
        elif self._phase not in verb.phases:
            self._out_of_order(verb)
        else:
            _HANDLERS[verb](self, argument)
        if self._mode is Mode.COMMANDS:
            self._expect_input()

    @property
    def _phase(self) -> Phase:
        if self._transaction is not None:
            return Phase.RCPT if self._transaction.recipients else Phase.MAIL
        return Phase.READY if self._greeted else Phase.GREETED

    def _unknown(self, token: bytes) -> None:
        if token in FOREIGN:
            self._close_with(Refusal.FOREIGN_PROTOCOL)
        elif token in NOT_IMPLEMENTED:
            self._refuse(Refusal.NOT_IMPLEMENTED)
        else:
            self._refuse(Refusal.UNKNOWN_COMMAND)

    def _out_of_order(self, verb: Verb) -> None:
        if verb is Verb.MAIL and self._transaction is not None:
            self._refuse(Refusal.NESTED_MAIL)
        else:
            self._refuse(Refusal.WRONG_ORDER)

    # -- commands ------------------------------------------------------------------------------------------------------------

    def _hello(self, argument: bytes, wire: bytes) -> None:
        name = parse_hello(argument)
        if isinstance(name, SyntaxFault):
            self._refuse(Refusal.BAD_ARGUMENTS)
            return
        self._reset("new HELO or EHLO")
        self.helo = name
        self._greeted = True
        self._answer(wire)

    def _helo(self, argument: bytes) -> None:
        self._hello(argument, self._context.hello_wire)

    def _ehlo(self, argument: bytes) -> None:
        self._hello(argument, self._context.ehlo_wire)

    def _mail(self, argument: bytes) -> None:
        parsed = parse_mail(argument)
        if isinstance(parsed, SyntaxFault):
            self._refuse(_FAULT_REFUSALS.get(parsed, Refusal.BAD_SENDER))
            return
        sender, parameters = parsed
        limit = self._context.message_size_limit_bytes
        size = parameters.get(b"SIZE")
        if limit is not None and size is not None and int(size) > limit:
            self._refuse(Refusal.TOO_LARGE)
            return
        self.transactions += 1
        self._transaction = Transaction(self._context, self, self.transactions, sender, parameters)
        self._answer(refusal.OK_SENDER)

    def _rcpt(self, argument: bytes) -> None:
        transaction = self._transaction
        assert transaction is not None
        path = parse_rcpt(argument)
        if isinstance(path, SyntaxFault):
            self._refuse(_FAULT_REFUSALS.get(path, Refusal.BAD_RECIPIENT))
        elif not self._accepts(transaction, path):
            self._refuse(Refusal.NOT_ACCEPTED)
        elif len(transaction.recipients) - transaction.refused >= self._context.settings.limits.recipients:
            self._refuse(Refusal.TOO_MANY_RECIPIENTS)
        else:
            slot = ReplySlot()
            transaction.recipient(path, slot)
            self._await(slot)
            self._advance_slots()

    def _accepts(self, transaction: Transaction, path: bytes) -> bool:
        conditions = self._context.settings.accept
        if conditions is None:
            return True
        size = transaction.parameters.get(b"SIZE")
        return routing.accepts(
            conditions,
            routing.Facts(
                self._client, self.helo, transaction.sender, path, int(size) if size is not None else None
            ),
        )

    def _data(self, argument: bytes) -> None:
        transaction = self._transaction
        assert transaction is not None
        slot = ReplySlot()
        self._mode = Mode.WAITING
        transaction.data(slot)
        self._await(slot)
        self._advance_slots()

    def _rset(self, argument: bytes) -> None:
        self._reset("RSET")
        self._answer(refusal.OK_RSET)

    def _noop(self, argument: bytes) -> None:
        self._answer(refusal.OK_NOOP)

    def _vrfy(self, argument: bytes) -> None:
        self._answer(refusal.CANNOT_VRFY)

    def _help(self, argument: bytes) -> None:
        self._answer(refusal.HELP)

    def _quit(self, argument: bytes) -> None:
        self._reset("QUIT")
        self._answer(refusal.BYE)
        self._close("QUIT")

    def _reset(self, cause: str) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.reset(cause)

    # -- replies -------------------------------------------------------------------------------------------------------------

    def _answer(self, wire: bytes) -> None:
        """A reply of ours: at once, or behind those that are due."""
        if self._slots:
            self._slots.append(ReplySlot(wire))
        else:
            self._out.append(wire)

    def _refuse(self, row: Refusal) -> None:
        self._context.refused(row.label)
        self._answer(row.wire)
        if not self._slots:
            self._count_error()

    def _await(self, slot: ReplySlot) -> None:
        if self._slots is None:
            self._slots = []
        self._slots.append(slot)

    def _advance(self) -> None:
        """After something was filled, resumed or ended: give out replies, then read on from what was held."""
        if self._mode is Mode.CLOSING:
            return
        self._advance_slots()
        if self._held and not self._waits_for_us:
            held, self._held = self._held, b""
            self._read(held)
        else:
            self._set_reading()
        if self.half_closed and not self._closing and not self._waits_for_us:
            self._client_left()

    def _advance_slots(self) -> None:
        """Give out what is filled, in order; then see what the transaction wants."""
        slots = self._slots
        if slots is None:
            return
        given = 0
        for slot in slots:
            if slot.wire is None:
                break
            self._out.append(slot.wire)
            if slot.wire[:1] == b"5":
                self._errors += 1
            given += 1
        if given == len(slots):
            self._slots = None
            self._settle()
        elif given:
            del slots[:given]

    def _settle(self) -> None:
        """Every reply was given out."""
        transaction = self._transaction
        if transaction is not None and transaction.ended:
            self._transaction = transaction = None
        if transaction is not None and transaction.in_body:
            self._mode = Mode.BODY
        elif self._mode is Mode.WAITING:
            self._mode = Mode.COMMANDS
        self._count_error(0)
        if self._mode is Mode.COMMANDS and self.draining and self._transaction is None:
            self._close_with(Refusal.SHUTTING_DOWN)
        if self._mode is not Mode.CLOSING:
            self._expect_input()

    def _count_error(self, more: int = 1) -> None:
        self._errors += more
        if self._errors >= self._context.settings.limits.errors and self._mode is Mode.COMMANDS:
            self._close_with(Refusal.TOO_MANY_ERRORS)

    def _flush(self) -> None:
        """One write per turn."""
        out = self._out
        if out:
            assert self._transport is not None
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._mode is Mode.CLOSING and self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    # -- flow and time -------------------------------------------------------------------------------------------------------

    def _set_reading(self) -> None:
        """Read the socket unless what is held is enough, or the client does not read us."""
        transport = self._transport
        if transport is None or self._mode in (Mode.BODY, Mode.CLOSING):
            return
        pause = self._writing_paused or len(self._held) > MAX_HELD_BYTES
        if pause is not self._reading_paused and not transport.is_closing():
            self._reading_paused = pause
            (transport.pause_reading if pause else transport.resume_reading)()

    def _expect_input(self) -> None:
        runtime = self._context.runtime
        runtime.deadlines.set(self, runtime.deadlines.clock() + self._context.settings.limits.idle_timeout_s)

    # -- ending --------------------------------------------------------------------------------------------------------------

    def _client_left(self) -> None:
        """Half-closed, and all that came was answered."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.client_gone("client closed")
        self._close("client closed")

    def _end_with(self, row: Refusal) -> None:
        self._context.refused(row.label)
        self._out.append(row.wire)
        self._close(row.label)
        self._flush()

    def _close_with(self, row: Refusal) -> None:
        """421 and the end (RFC 5321 3.8). An open transaction is given up."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.client_gone(row.label)
        self._context.refused(row.label)
        self._out.append(row.wire)
        self._close(row.label)

    def _close(self, reason: str) -> None:
        self._mode = Mode.CLOSING
        self._slots = None
        self._held = b""
        self.end_reason = reason
        runtime = self._context.runtime
        runtime.deadlines.set(self, runtime.deadlines.clock() + LINGER_S)

    def _bug(self, error: Exception) -> None:
        """Ours: told to the log in full, to the client as 421 without a reason (design 4.8)."""
        self._context.runtime.bug("session", error)
        if self._mode is not Mode.CLOSING and self._transport is not None:
            try:
                self._close_with(Refusal.OUR_BUG)
                self._flush()
            except Exception as second:
                self._context.runtime.bug("session, ending it", second)
                self._transport.abort()


LINGER_S = 30.0  # for a client to read our last words

_HANDLERS = {
    Verb.HELO: Session._helo,
    Verb.EHLO: Session._ehlo,
    Verb.MAIL: Session._mail,
    Verb.RCPT: Session._rcpt,
    Verb.DATA: Session._data,
    Verb.RSET: Session._rset,
    Verb.NOOP: Session._noop,
    Verb.VRFY: Session._vrfy,
    Verb.HELP: Session._help,
    Verb.QUIT: Session._quit,
}
