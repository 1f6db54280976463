"""What a client says between connect and QUIT, command by command, and the state that the protocol gives it.

Owns HELO/EHLO state, the order of commands, the present transaction or AUTH exchange, the octets of chunks, and who may send
what to where (relay guard, routes, rates). Does not own the socket, the order of replies or deadlines (session.py), nor a
message's way (transaction.py).
Invariant: each command line gets exactly one reply, through the channel, in the order of the lines.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from smtplb.dataplane.attempt import ReplySlot
from smtplb.dataplane.authentication import Authentication
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.identity import Identity
from smtplb.dataplane.router import Target
from smtplb.dataplane.transaction import Client, Transaction
from smtplb.policy import refusal, routing
from smtplb.policy.refusal import Refusal
from smtplb.settings import AuthMode, OtherRoute, RefuseReply
from smtplb.smtp import verbs
from smtplb.smtp.address import is_postmaster
from smtplb.smtp.commands import (
    MAX_AUTH_LINE_BYTES,
    MAX_COMMAND_LINE_BYTES,
    SyntaxFault,
    is_auth_response,
    parse_auth,
    parse_bdat,
    parse_hello,
    parse_mail,
    parse_rcpt,
    split_line,
)
from smtplb.smtp.extensions import Parameters
from smtplb.smtp.identity import XCLIENT_NAMES, parse_attributes
from smtplb.smtp.verbs import FOREIGN, NOT_IMPLEMENTED, VERBS, Verb

# In one transaction, beyond as many as may be taken. 5xx ends the session before; 4xx (greylisting) may go on and on.
MAX_REFUSED_RECIPIENTS: Final = 1000

_FAULT_REFUSALS: Final = {
    SyntaxFault.ARGUMENTS: Refusal.BAD_ARGUMENTS,
    SyntaxFault.PARAMETER: Refusal.UNKNOWN_PARAMETER,
    SyntaxFault.PARAMETER_VALUE: Refusal.BAD_ARGUMENTS,
    SyntaxFault.NEEDS_SMTPUTF8: Refusal.NEEDS_SMTPUTF8,
}
# What may be said before STARTTLS where it is required (RFC 3207 4).
_BEFORE_TLS: Final = frozenset(
    {verbs.HELO, verbs.EHLO, verbs.STARTTLS, verbs.NOOP, verbs.RSET, verbs.QUIT, verbs.XCLIENT}
)
# What carries no mail. After so many without a message between, each counts as an error (Postfix smtpd_junk_command_limit).
_WITHOUT_MAIL: Final = frozenset({verbs.HELO, verbs.EHLO, verbs.NOOP, verbs.RSET, verbs.VRFY, verbs.HELP})
MAX_WITHOUT_MAIL: Final = 100
_VERBS_OF_CHUNKS: Final = frozenset({verbs.BDAT, verbs.RSET, verbs.NOOP, verbs.QUIT, verbs.HELP, verbs.VRFY})


class Channel(Client):
    """The session, as the dialogue sees it."""

    __slots__ = ("client",)

    def __init__(self, session_id: str, binding: Binding) -> None:
        super().__init__(session_id, binding)
        self.client: routing.ClientAddress | None = None

    @property
    @abstractmethod
    def tls(self) -> bool: ...

    @property
    @abstractmethod
    def trusted_front(self) -> bool:
        """It may say XCLIENT."""

    @property
    @abstractmethod
    def closing(self) -> bool:
        """Its last reply was given; nothing more is read."""

    @abstractmethod
    def answer(self, wire: bytes) -> None:
        """A reply of ours, behind those that are due."""

    @abstractmethod
    def refuse(self, row: Refusal) -> None:
        """An error reply of ours, counted."""

    @abstractmethod
    def count_error(self) -> None:
        """As an error reply would; the session may be over then."""

    @abstractmethod
    def await_reply(self, slot: ReplySlot, *, barrier: bool) -> None:
        """A reply that comes now or later; behind a barrier nothing is read until it was given out."""

    @abstractmethod
    def close(self, reason: str) -> None:
        """What was answered is written, then the session ends."""

    @abstractmethod
    def close_with(self, row: Refusal) -> None:
        """421 and the end."""

    @abstractmethod
    def start_tls(self) -> None:
        """220, then the handshake; what was already read behind the command is dropped."""

    @abstractmethod
    def rebind(self, identity: Identity, *, same_client: bool) -> None:
        """Facts of the client changed: a new binding, with none of the connections that carry the old ones."""

    @abstractmethod
    def identified(self, client: routing.ClientAddress | None, text: str) -> bool:
        """A trusted front said who the client is. False: it may not be here, and was told so."""

    @abstractmethod
    def take_up(self) -> bool:
        """The settings of the latest reload. False: this session cannot go on with them, and was told so."""

    @abstractmethod
    def takes_message(self) -> bool:
        """The client's rate of messages allows one more."""

    @abstractmethod
    def takes_recipient(self) -> bool: ...


class Dialogue:
    """See the module."""

    __slots__ = (
        "_auth",
        "_channel",
        "_chunk_due",
        "_chunk_last",
        "_chunk_left",
        "_chunk_octets",
        "_chunk_refusal",
        "_context",
        "_greeted",
        "_may_auth",
        "_tls_required",
        "_told_helo",
        "_without_mail",
        "authenticated",
        "data_asked",
        "front_unproven",
        "helo",
        "transaction",
        "transactions",
    )

    __deletable__ = ("_channel",)  # for mypyc; detach()

    def __init__(self, context: ListenerContext, channel: Channel) -> None:
        self._context = context
        self._channel = channel
        self.helo = b""
        self._greeted = False
        self._told_helo = False  # XCLIENT had the client's name
        self.authenticated = False
        self.front_unproven = False  # PROXY LOCAL or UNKNOWN: whose mail is it?
        self.transaction: Transaction | None = None
        self.transactions = 0
        self.data_asked = False  # the last line was DATA, and no content followed it yet
        self._without_mail = 0  # commands since the last message
        self._auth: Authentication | None = None
        self._may_auth = context.relays_auth
        self._tls_required = context.tls_required
        # the BDAT chunk under way
        self._chunk_left = 0
        self._chunk_octets = 0
        self._chunk_last = False
        self._chunk_due = False  # it has no octets, and waits for the backend's leave all the same
        self._chunk_refusal: Refusal | None = None  # its octets are read and thrown away

    # -- for the session ----------------------------------------------------------------------------

    @property
    def in_body(self) -> bool:
        """What comes next is content, not a command."""
        transaction = self.transaction
        if transaction is None or transaction.chunked:
            return self._chunk_left > 0
        return transaction.in_body or self._chunk_left > 0

    @property
    def between_transactions(self) -> bool:
        return self.transaction is None and self._auth is None and not self._chunk_left

    def take_up(self, context: ListenerContext) -> None:
        """After a reload, between transactions."""
        self._context = context

    @property
    def answer_under_way(self) -> bool:
        """Some backend is being asked; else no reply would ever come."""
        return self._auth is not None or (self.transaction is not None and self.transaction.under_way)

    @property
    def in_message(self) -> bool:
        """Content, or between two chunks of it."""
        return self._chunk_left > 0 or (self.transaction is not None and self.transaction.in_body)

    @property
    def max_line_bytes(self) -> int:
        """RFC 4954 4: lines of an AUTH exchange are long."""
        return MAX_AUTH_LINE_BYTES if self._may_auth and not self.authenticated else MAX_COMMAND_LINE_BYTES

    def line(self, line: bytes) -> None:
        """One command line, without its line end."""
        if self._auth is not None:
            self._auth_response(self._auth, line)
            return
        token, argument = split_line(line)
        verb = VERBS.get(token)
        self.data_asked = verb is verbs.DATA
        if verb is None:
            self._unknown(token)
        elif verb is verbs.BDAT:  # its octets follow, whatever is to be said about it
            self._bdat(argument)
        elif len(line) >= MAX_COMMAND_LINE_BYTES and verb is not verbs.AUTH:
            self._channel.refuse(Refusal.LINE_TOO_LONG)
        elif not verb.may_have_argument if argument else verb.needs_argument:
            self._channel.refuse(Refusal.BAD_ARGUMENTS)
        elif self._tls_required and self._needs_tls(verb):
            self._channel.refuse(Refusal.NEEDS_TLS)
        elif self._out_of_order(verb):
            nested = verb is verbs.MAIL and self.transaction is not None
            self._channel.refuse(Refusal.NESTED_MAIL if nested else Refusal.WRONG_ORDER)
        elif verb is verbs.MAIL:  # these by name: they are most of all lines
            self._mail(argument)
        elif verb is verbs.RCPT:
            self._rcpt(argument)
        elif verb is verbs.DATA:
            self._data()
        elif verb not in _WITHOUT_MAIL or self._may_go_on_without_mail():
            _HANDLERS[verb](self, argument)

    def _may_go_on_without_mail(self) -> bool:
        self._without_mail += 1
        if self._without_mail <= MAX_WITHOUT_MAIL:
            return True
        self._channel.count_error()
        return not self._channel.closing

    def unreadable(self, line: bytes, row: Refusal) -> None:
        """A line that is not taken, whatever it says. It ends an exchange (RFC 4954 4); behind BDAT nobody knows what follows."""
        auth, self._auth = self._auth, None
        if auth is not None:
            auth.abandon()
            row = Refusal.AUTH_LINE_TOO_LONG if row is Refusal.LINE_TOO_LONG else row
        self._channel.refuse(row)
        if auth is None and split_line(line)[0] == b"BDAT":
            self._channel.close("unreadable BDAT")

    def body(self, data: bytes) -> bytes:
        """Message content; what is behind it is given back."""
        self.data_asked = False
        if self._chunk_left:
            return self._chunk(data)
        transaction = self.transaction
        assert transaction is not None
        rest = transaction.body(data)
        if not transaction.in_body:
            self._channel.await_reply(transaction.slot, barrier=True)
        return rest

    def settle(self) -> None:
        """Every reply was given out: a transaction or an exchange that has ended is over for the client, too."""
        if self._chunk_due:
            self._chunk_due = False
            self._chunk_done()
            return
        if self.transaction is not None and self.transaction.ended:
            self.transaction = None
            self._without_mail = 0
        auth = self._auth
        if auth is not None and auth.over:
            self._auth = None
            self.authenticated = self._channel.binding.identity.authenticated = auth.succeeded
        if self.transaction is None and self._pinned_lost:
            self._channel.close_with(Refusal.PINNED_LOST)

    def forget(self, cause: str, identity: Identity, *, same_client: bool) -> None:
        """Nothing counts that was said before a TLS handshake (RFC 3207 4.2) or by another client (XCLIENT_README)."""
        self._reset(cause)
        self.helo = b""
        self._greeted = False
        self.authenticated = identity.authenticated = False
        self._channel.rebind(identity, same_client=same_client)

    def flush(self) -> None:
        """The turn is over: what it has for a backend is written."""
        if self.transaction is not None:
            self.transaction.flush()

    def client_gone(self, cause: str) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.client_gone(cause)
        auth, self._auth = self._auth, None
        if auth is not None:
            auth.abandon()

    def detach(self) -> None:
        """The session is over; it asks for nothing any more that would need the channel."""
        self._auth = None
        del self._channel

    def cut(self) -> bool:
        """End the transaction because we stop; False if its terminator has left and it may go on."""
        transaction = self.transaction
        if transaction is not None:
            if transaction.terminator_left:
                return False
            transaction.cut()
            self.transaction = None
        return True

    # -- order --------------------------------------------------------------------------------------

    def _needs_tls(self, verb: Verb) -> bool:
        return self._tls_required and not self._channel.tls and verb not in _BEFORE_TLS

    def _out_of_order(self, verb: Verb) -> bool:
        transaction = self.transaction
        if transaction is None:
            phase = verbs.READY if self._greeted else verbs.GREETED
        else:
            phase = verbs.IN_RCPT if transaction.recipients else verbs.IN_MAIL
            if transaction.chunked and verb not in _VERBS_OF_CHUNKS:
                return verb not in (verbs.HELO, verbs.EHLO)
        return not phase & verb.phases

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

    # -- HELO, EHLO, STARTTLS, XCLIENT --------------------------------------------------------------

    def _hello(self, argument: bytes, wire: bytes, *, esmtp: bool) -> None:
        name = parse_hello(argument)
        if isinstance(name, SyntaxFault):
            self._channel.refuse(Refusal.BAD_ARGUMENTS)
            return
        self._reset("new HELO or EHLO")
        self.helo = name
        self._identify(name, esmtp=esmtp)
        self._greeted = True
        self._channel.answer(wire)

    def _identify(self, name: bytes, *, esmtp: bool) -> None:
        """A name that a front told of its client stands; one that changes is told anew, but where a login would be lost."""
        binding = self._channel.binding
        identity = binding.identity
        if self._told_helo:
            name = identity.helo
        if identity.helo not in (b"", name) and binding.pinned is None:
            identity = identity.copy()
            self._channel.rebind(identity, same_client=True)
        identity.helo, identity.esmtp = name, esmtp

    def _helo(self, argument: bytes) -> None:
        self._hello(argument, self._context.hello_wire, esmtp=False)

    def _ehlo(self, argument: bytes) -> None:
        channel = self._channel
        wire = self._context.ehlo_wire(
            tls=channel.tls, authenticated=self.authenticated, xclient=channel.trusted_front
        )
        self._hello(argument, wire, esmtp=True)

    def _starttls(self, argument: bytes) -> None:
        certificates = self._context.certificates
        if certificates is None:
            self._channel.refuse(Refusal.NOT_IMPLEMENTED)
        elif self._channel.tls:
            self._channel.refuse(Refusal.WRONG_ORDER)
        elif certificates.context is None:
            self._channel.refuse(Refusal.TLS_NOT_NOW)
        else:
            self._channel.start_tls()

    def _xclient(self, argument: bytes) -> None:
        channel = self._channel
        if not channel.trusted_front:
            channel.refuse(Refusal.XCLIENT_DENIED)
            return
        attributes = parse_attributes(argument, XCLIENT_NAMES)
        identity = channel.binding.identity.copy()
        if attributes is None or not identity.take_xclient(attributes):
            channel.refuse(Refusal.BAD_ARGUMENTS)
            return
        self.forget("XCLIENT", identity, same_client=False)
        self._told_helo = bool(identity.helo)
        self.front_unproven = identity.client is None
        if channel.identified(identity.client, identity.client_text or "unknown"):
            channel.answer(self._context.greeting_wire)

    # -- AUTH ---------------------------------------------------------------------------------------

    def _authenticate(self, argument: bytes) -> None:
        context, channel = self._context, self._channel
        if context.settings.auth is AuthMode.OFF:
            channel.refuse(Refusal.NOT_IMPLEMENTED)
            return
        if self.authenticated:
            channel.refuse(Refusal.AUTH_ONCE)
            return
        if not channel.tls and not context.settings.auth_without_tls:
            channel.refuse(Refusal.AUTH_NEEDS_TLS)
            return
        parsed = parse_auth(argument)
        if parsed is None:
            channel.refuse(Refusal.AUTH_MALFORMED)
            return
        mechanism, response = parsed
        if mechanism not in context.mechanisms(tls=channel.tls):
            channel.refuse(Refusal.AUTH_MECHANISM)
            return
        # Judged as it will be once it has succeeded: the session stays with the backend chosen now.
        where = context.decide(self._facts(b"", b"", 0, auth=True))
        if isinstance(where, RefuseReply):
            channel.answer(_reply(where))
            return
        slot = ReplySlot()
        line = b"AUTH " + mechanism + (b" " + response if response is not None else b"")
        self._auth = Authentication(context, channel, channel.binding, where, line, slot)
        self._auth.start()
        channel.await_reply(slot, barrier=True)

    def _auth_response(self, auth: Authentication, line: bytes) -> None:
        if not is_auth_response(line):
            self.unreadable(line, Refusal.AUTH_MALFORMED)
            return
        slot = ReplySlot()
        auth.respond(line, slot)
        self._channel.await_reply(slot, barrier=True)

    @property
    def _pinned_lost(self) -> bool:
        return self._channel.binding.pinned_lost

    # -- MAIL and RCPT ------------------------------------------------------------------------------

    def _mail(self, argument: bytes) -> None:
        if self._context.successor is not None and not self._channel.take_up():
            return
        context, channel = self._context, self._channel
        offered = context.offered if channel.tls else context.offered_in_clear
        parsed = parse_mail(argument, offered)
        if isinstance(parsed, SyntaxFault):
            channel.refuse(_FAULT_REFUSALS.get(parsed, Refusal.BAD_SENDER))
            return
        sender, parameters = parsed
        limit = context.message_size_limit_bytes
        size = parameters.get(b"SIZE")
        if limit is not None and size is not None and int(size) > limit:
            channel.refuse(Refusal.TOO_LARGE)
        elif self.front_unproven:
            channel.refuse(Refusal.FRONT_UNPROVEN)
        elif self._pinned_lost:
            channel.close_with(Refusal.PINNED_LOST)
        elif not channel.takes_message():
            channel.refuse(Refusal.TOO_MANY_MESSAGES)
        else:
            self.transactions += 1
            self.transaction = Transaction(context, channel, self.helo, self.transactions, sender, parameters)
            channel.answer(refusal.OK_SENDER)

    def _rcpt(self, argument: bytes) -> None:
        transaction, channel = self.transaction, self._channel
        assert transaction is not None
        parsed = parse_rcpt(argument, self._context.offered, smtputf8=b"SMTPUTF8" in transaction.parameters)
        if isinstance(parsed, SyntaxFault):
            channel.refuse(_FAULT_REFUSALS.get(parsed, Refusal.BAD_RECIPIENT))
            return
        path, parameters = parsed
        most = self._context.max_recipients
        taken = len(transaction.recipients) - transaction.refused
        if taken >= most or transaction.refused >= most + MAX_REFUSED_RECIPIENTS:
            self._deny(transaction, path, Refusal.TOO_MANY_RECIPIENTS)
        elif not channel.takes_recipient():
            self._deny(transaction, path, Refusal.TOO_MANY_RCPTS_A_MINUTE)
        else:
            self._guard_and_route(transaction, path, parameters)

    def _guard_and_route(self, transaction: Transaction, path: bytes, parameters: Parameters) -> None:
        context, channel = self._context, self._channel
        if context.judges_recipients:
            facts = self._facts(transaction.sender, path, transaction.size_bytes)
            if not routing.accepts(context.settings.accept, facts):
                self._deny(transaction, path, Refusal.NOT_ACCEPTED)
                return
            where = context.decide(facts)
        else:
            where = context.targets[0]
        if isinstance(where, RefuseReply):
            context.refused("route")
            channel.answer(_reply(where))
            transaction.recipient_denied(path, _reply(where))
        elif self._other_way(transaction, where, path):
            self._deny(transaction, path, Refusal.OTHER_ROUTE)
        elif transaction.size_bytes and where.too_large(transaction.size_bytes):
            self._deny(transaction, path, Refusal.TOO_LARGE)
        else:
            slot = ReplySlot()
            transaction.recipient(path, parameters, where, slot)
            channel.await_reply(slot, barrier=False)

    def _deny(self, transaction: Transaction, path: bytes, row: Refusal) -> None:
        self._channel.refuse(row)
        if (
            self.transaction is transaction
        ):  # one error too many ends the session, and with it the transaction
            transaction.recipient_denied(path, row.wire)

    def _other_way(self, transaction: Transaction, where: Target, path: bytes) -> bool:
        """A recipient of another route than the transaction's (design 5)."""
        if transaction.target is None or transaction.target is where or transaction.target_open:
            return False
        if is_postmaster(path):
            return False  # every mail system has one: it goes where the others go
        return self._context.settings.other_route is OtherRoute.DEFER

    def _facts(
        self, sender: bytes, recipient: bytes, size_bytes: int, *, auth: bool | None = None
    ) -> routing.Facts:
        channel = self._channel
        return routing.Facts(
            channel.client,
            self.helo,
            sender,
            recipient,
            size_bytes or None,
            tls=channel.tls,
            auth=self.authenticated if auth is None else auth,
        )

    # -- DATA and BDAT ------------------------------------------------------------------------------

    def _data(self) -> None:
        transaction = self.transaction
        assert transaction is not None
        if transaction.declared_binary:
            self._channel.refuse(Refusal.BINARY_NEEDS_BDAT)  # RFC 3030 3
            return
        slot = ReplySlot()
        transaction.data(slot)
        self._channel.await_reply(slot, barrier=True)

    def _bdat(self, argument: bytes) -> None:
        """RFC 3030 2: the octets follow at once and are read whatever comes of it."""
        parsed = parse_bdat(argument)
        if parsed is None:
            # Where the next command begins nobody can know: reading on would be a guess.
            self._channel.refuse(Refusal.CHUNK_UNREADABLE)
            self._channel.close("unreadable BDAT")
            return
        self._chunk_octets, self._chunk_last = parsed
        self._chunk_left = self._chunk_octets
        transaction = self.transaction
        self._chunk_refusal = None
        waits = False
        if self._needs_tls(verbs.BDAT):
            self._chunk_refusal = Refusal.NEEDS_TLS
        elif transaction is None or not transaction.recipients:
            self._chunk_refusal = Refusal.WRONG_ORDER
        elif not transaction.chunked:
            slot = ReplySlot()
            transaction.open_chunks(slot)
            waits = slot.wire is None
            self._channel.await_reply(slot, barrier=True)
        if not self._chunk_left:
            if waits:
                self._chunk_due = True
            else:
                self._chunk_done()

    def _chunk(self, data: bytes) -> bytes:
        octets = data[: self._chunk_left] if len(data) > self._chunk_left else data
        self._chunk_left -= len(octets)
        if self._chunk_refusal is None:
            assert self.transaction is not None
            self.transaction.chunk(octets)
        if not self._chunk_left:
            self._chunk_done()
        return data[len(octets) :]

    def _chunk_done(self) -> None:
        if self._chunk_refusal is not None:
            self._channel.refuse(self._chunk_refusal)
            return
        assert self.transaction is not None
        slot = ReplySlot()
        self.transaction.chunk_ended(slot, self._chunk_octets, last=self._chunk_last)
        self._channel.await_reply(slot, barrier=True)

    # -- the rest -----------------------------------------------------------------------------------

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


def _reply(row: RefuseReply) -> bytes:
    return f"{row.code} {row.enhanced} {row.text}\r\n".encode("ascii")


_HANDLERS: Final = {
    verbs.HELO: Dialogue._helo,
    verbs.EHLO: Dialogue._ehlo,
    verbs.STARTTLS: Dialogue._starttls,
    verbs.XCLIENT: Dialogue._xclient,
    verbs.AUTH: Dialogue._authenticate,
    verbs.RSET: Dialogue._rset,
    verbs.NOOP: Dialogue._noop,
    verbs.VRFY: Dialogue._vrfy,
    verbs.HELP: Dialogue._help,
    verbs.QUIT: Dialogue._quit,
}
