"""What a client says between connect and QUIT, command by command, and the state that the protocol gives it.

Owns HELO/EHLO state, the order of commands, the present transaction, and who may send what (the relay guard).
Does not own the socket, the order of replies or deadlines (session.py), nor a message's way (transaction.py).
Invariant: each command line gets exactly one reply, through the channel, in the order of the lines.
"""

from __future__ import annotations

from typing import Protocol

from smtplb.dataplane.attempt import ReplySlot
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.transaction import Client, Transaction
from smtplb.policy import refusal, routing
from smtplb.policy.refusal import Refusal
from smtplb.smtp.commands import (
    FOREIGN,
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

_FAULT_REFUSALS = {
    SyntaxFault.ARGUMENTS: Refusal.BAD_ARGUMENTS,
    SyntaxFault.PARAMETER: Refusal.UNKNOWN_PARAMETER,
    SyntaxFault.PARAMETER_VALUE: Refusal.BAD_ARGUMENTS,
}


class Channel(Client, Protocol):
    """The session, as the dialogue sees it."""

    client: routing.ClientAddress | None

    def answer(self, wire: bytes) -> None:
        """A reply of ours, behind those that are due."""

    def refuse(self, row: Refusal) -> None:
        """An error reply of ours, counted."""

    def await_reply(self, slot: ReplySlot, *, barrier: bool) -> None:
        """A reply that comes now or later; behind a barrier nothing is read until it was given out."""

    def close(self, reason: str) -> None:
        """What was answered is written, then the session ends."""

    def close_with(self, row: Refusal) -> None:
        """421 and the end."""


class Dialogue:
    """See the module."""

    __slots__ = ("_channel", "_context", "_greeted", "helo", "transaction", "transactions")

    def __init__(self, context: ListenerContext, channel: Channel) -> None:
        self._context = context
        self._channel = channel
        self.helo = b""
        self._greeted = False
        self.transaction: Transaction | None = None
        self.transactions = 0

    @property
    def in_body(self) -> bool:
        return self.transaction is not None and self.transaction.in_body

    def line(self, line: bytes) -> None:
        """One command line, without its line end."""
        token, argument = split_line(line)
        verb = VERBS.get(token)
        if verb is None:
            self._unknown(token)
        elif (verb.argument == "forbidden" and argument) or (verb.argument == "required" and not argument):
            self._channel.refuse(Refusal.BAD_ARGUMENTS)
        elif self._phase not in verb.phases:
            nested = verb is Verb.MAIL and self.transaction is not None
            self._channel.refuse(Refusal.NESTED_MAIL if nested else Refusal.WRONG_ORDER)
        else:
            _HANDLERS[verb](self, argument)

    def body(self, data: bytes) -> bytes:
        """Message content; what is behind the end of data is given back."""
        transaction = self.transaction
        assert transaction is not None
        rest = transaction.body(data)
        if not transaction.in_body:
            self._channel.await_reply(transaction.slot, barrier=True)
        return rest

    def settle(self) -> None:
        """Every reply was given out: a transaction that has ended is over for the client, too."""
        if self.transaction is not None and self.transaction.ended:
            self.transaction = None

    def flush(self) -> None:
        """The turn is over: what it has for a backend is written."""
        if self.transaction is not None:
            self.transaction.flush()

    def client_gone(self, cause: str) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.client_gone(cause)

    def cut(self) -> bool:
        """End the transaction because we stop; False if its terminator has left and it may go on."""
        transaction = self.transaction
        if transaction is not None:
            if transaction.terminator_left:
                return False
            transaction.cut()
            self.transaction = None
        return True

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _phase(self) -> Phase:
        if self.transaction is not None:
            return Phase.RCPT if self.transaction.recipients else Phase.MAIL
        return Phase.READY if self._greeted else Phase.GREETED

    def _unknown(self, token: bytes) -> None:
        if token in FOREIGN:
            self._channel.close_with(Refusal.FOREIGN_PROTOCOL)
        elif token in NOT_IMPLEMENTED:
            self._channel.refuse(Refusal.NOT_IMPLEMENTED)
        else:
            self._channel.refuse(Refusal.UNKNOWN_COMMAND)

    def _reset(self, cause: str) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.reset(cause)

    def _hello(self, argument: bytes, wire: bytes) -> None:
        name = parse_hello(argument)
        if isinstance(name, SyntaxFault):
            self._channel.refuse(Refusal.BAD_ARGUMENTS)
            return
        self._reset("new HELO or EHLO")
        self.helo = name
        self._greeted = True
        self._channel.answer(wire)

    def _helo(self, argument: bytes) -> None:
        self._hello(argument, self._context.hello_wire)

    def _ehlo(self, argument: bytes) -> None:
        self._hello(argument, self._context.ehlo_wire)

    def _mail(self, argument: bytes) -> None:
        parsed = parse_mail(argument)
        if isinstance(parsed, SyntaxFault):
            self._channel.refuse(_FAULT_REFUSALS.get(parsed, Refusal.BAD_SENDER))
            return
        sender, parameters = parsed
        limit = self._context.message_size_limit_bytes
        size = parameters.get(b"SIZE")
        if limit is not None and size is not None and int(size) > limit:
            self._channel.refuse(Refusal.TOO_LARGE)
            return
        self.transactions += 1
        self.transaction = Transaction(
            self._context, self._channel, self.helo, self.transactions, sender, parameters
        )
        self._channel.answer(refusal.OK_SENDER)

    def _rcpt(self, argument: bytes) -> None:
        transaction = self.transaction
        assert transaction is not None
        path = parse_rcpt(argument)
        if isinstance(path, SyntaxFault):
            self._channel.refuse(_FAULT_REFUSALS.get(path, Refusal.BAD_RECIPIENT))
        elif not self._accepts(transaction, path):
            self._channel.refuse(Refusal.NOT_ACCEPTED)
        elif len(transaction.recipients) - transaction.refused >= self._context.settings.limits.recipients:
            self._channel.refuse(Refusal.TOO_MANY_RECIPIENTS)
        else:
            slot = ReplySlot()
            transaction.recipient(path, slot)
            self._channel.await_reply(slot, barrier=False)

    def _accepts(self, transaction: Transaction, path: bytes) -> bool:
        conditions = self._context.settings.accept
        if conditions is None:
            return True
        size = transaction.parameters.get(b"SIZE")
        return routing.accepts(
            conditions,
            routing.Facts(
                self._channel.client,
                self.helo,
                transaction.sender,
                path,
                int(size) if size is not None else None,
            ),
        )

    def _data(self, argument: bytes) -> None:
        transaction = self.transaction
        assert transaction is not None
        slot = ReplySlot()
        transaction.data(slot)
        self._channel.await_reply(slot, barrier=True)

    def _rset(self, argument: bytes) -> None:
        self._reset("RSET")
        self._channel.answer(refusal.OK_RSET)

    def _noop(self, argument: bytes) -> None:
        self._channel.answer(refusal.OK_NOOP)

    def _vrfy(self, argument: bytes) -> None:
        self._channel.answer(refusal.CANNOT_VRFY)

    def _help(self, argument: bytes) -> None:
        self._channel.answer(refusal.HELP)

    def _quit(self, argument: bytes) -> None:
        self._reset("QUIT")
        self._channel.answer(refusal.BYE)
        self._channel.close("QUIT")


_HANDLERS = {
    Verb.HELO: Dialogue._helo,
    Verb.EHLO: Dialogue._ehlo,
    Verb.MAIL: Dialogue._mail,
    Verb.RCPT: Dialogue._rcpt,
    Verb.DATA: Dialogue._data,
    Verb.RSET: Dialogue._rset,
    Verb.NOOP: Dialogue._noop,
    Verb.VRFY: Dialogue._vrfy,
    Verb.HELP: Dialogue._help,
    Verb.QUIT: Dialogue._quit,
}
