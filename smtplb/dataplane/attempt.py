"""One try of a transaction at one backend: the lease, the commands sent on it, and what its replies mean.

Owns the connection while it is leased, and the step reached at that backend. Does not own what follows a failure
(transaction.py) nor how the body is read (relay.py).
Invariant: once `over`, the connection was given back, retired or aborted, and the trial hears nothing more of this attempt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Final

from smtplb.dataplane.backend import Backend, Seeker
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection, Failure
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import NEVER
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import (
    EARLY_REPLY,
    GARBLED_REPLY,
    IDENTITY_REFUSED,
    IDLE_LOSS,
    OPENING_CUT,
    Command,
    Decision,
    Elsewhere,
    Reason,
    classify_loss,
    classify_opening,
    classify_reply,
)
from smtplb.policy.retry import attempt_deadline_s
from smtplb.smtp.extensions import Parameters
from smtplb.smtp.identity import XFORWARD_NAMES, build_commands
from smtplb.smtp.replies import Reply

# Members of an enumeration of strings are looked up by name each time, compiled, too: here once.
_MAIL: Final = Phase.MAIL
_RCPT: Final = Phase.RCPT
_DATA: Final = Phase.DATA
_BLOCK: Final = Phase.BLOCK
_FINAL: Final = Phase.FINAL

_DATA_LINE: Final = b"DATA\r\n"


class ReplySlot:
    """The place of one reply in the client's order; filled once (`wire` includes CRLF)."""

    __slots__ = ("wire",)

    def __init__(self, wire: bytes | None = None) -> None:
        self.wire = wire

    def fill(self, wire: bytes) -> None:
        assert self.wire is None
        self.wire = wire


class Recipient:
    """One RCPT. `slot` is filled once it was answered; `accepted` then tells how. Also the token of the command."""

    __slots__ = ("accepted", "parameters", "path", "slot")

    def __init__(self, path: bytes, parameters: Parameters, slot: ReplySlot) -> None:
        self.path = path
        self.parameters = parameters
        self.slot = slot
        self.accepted = False

    def line_for(self, connection: Connection) -> bytes:
        if not self.parameters:
            return b"RCPT TO:<%s>\r\n" % self.path
        return b"RCPT TO:<%s>%s\r\n" % (self.path, connection.capabilities.rcpt_parameters(self.parameters))


class Step(Enum):
    __hash__ = object.__hash__  # Enum's own is a Python call; members are singletons

    SEEKING = auto()  # waiting for a connection
    ENVELOPE = auto()  # MAIL and RCPT
    DATA = auto()  # DATA sent, no answer yet
    BODY = auto()  # 354 came
    FINAL = auto()  # the terminator left
    OVER = auto()


_PHASE_OF: Final[dict[object, Phase]] = {
    Command.IDENTITY: _MAIL,  # XFORWARD goes out with MAIL
    Command.MAIL: _MAIL,
    Command.DATA: _DATA,
    Command.BODY: _BLOCK,
    Command.FINAL: _FINAL,
}


class Trouble:
    """A failed attempt: what was asked, what came, what policy says about it."""

    __slots__ = ("command", "decision", "detail", "phase", "reply")

    def __init__(
        self, command: object, decision: Decision, phase: Phase, detail: bytes, reply: Reply | None
    ) -> None:
        self.command = command
        self.decision = decision
        self.phase = phase
        self.detail = detail
        self.reply = reply


class Trial(ABC):
    """The transaction, as an attempt sees it. None of these is called inside a call that the transaction makes.

    chunked       the client sends BDAT
    trace_bytes   length of the line that goes in front of the body
    """

    __slots__ = ("binding", "chunked", "parameters", "recipients", "sender", "trace_bytes")

    def __init__(self, binding: Binding, sender: bytes, parameters: Parameters) -> None:
        self.binding = binding
        self.sender = sender
        self.parameters = parameters
        self.recipients: list[Recipient] = []
        self.chunked = False
        self.trace_bytes = 0

    @property
    @abstractmethod
    def declared_binary(self) -> bool:
        """BODY=BINARYMIME: the message can go by BDAT only."""

    @property
    @abstractmethod
    def data_asked(self) -> bool:
        """The client has said DATA along with RCPT, and nothing was promised to it yet."""

    @abstractmethod
    def suits(self, connection: Connection) -> bool:
        """The backend has all that this transaction uses."""

    @abstractmethod
    def answered_well(self, command: object) -> None:
        """2xx or 354 to `command` (Command.CONNECT: the connection came up)."""

    @abstractmethod
    def recipient_accepted(self, recipient: Recipient, reply: Reply) -> None: ...

    @abstractmethod
    def recipient_refused(self, recipient: Recipient, reply: Reply) -> None:
        """A verdict on one recipient; the attempt goes on."""

    @abstractmethod
    def envelope_answered(self) -> None:
        """Every RCPT sent so far was answered."""

    @abstractmethod
    def body_wanted(self, *, as_chunks: bool) -> None:
        """354, or a backend that takes chunks and needs none. The one call that may come inside begin_body()."""

    @abstractmethod
    def unsuitable(self) -> None:
        """The backend lacks an extension that this transaction uses. Nobody's fault; the attempt is left already."""

    @abstractmethod
    def attempt_failed(self, trouble: Trouble) -> None:
        """Before our terminator. The attempt is still to be left (`leave`)."""

    @abstractmethod
    def final_answered(self, reply: Reply) -> None:
        """2xx, 4xx or 5xx after our terminator."""

    @abstractmethod
    def final_missing(self, reason: Reason, detail: bytes) -> None:
        """No reply after our terminator: in doubt."""

    @abstractmethod
    def backend_writable(self, writable: bool) -> None: ...

    @abstractmethod
    def tell_client(self) -> None:
        """The turn is over: write what was filled."""


class Attempt(Seeker):
    """See the module. `others_left`: another backend could be asked; it halves the time this one gets (design 4.14)."""

    __slots__ = (
        "_context",
        "_cut_short",
        "_data_said",
        "_due",
        "_group",
        "_since_s",
        "_trial",
        "backend",
        "budget_end_s",
        "connection",
        "others_left",
        "step",
    )

    def __init__(
        self,
        context: ListenerContext,
        trial: Trial,
        backend: Backend,
        *,
        budget_end_s: float,
        others_left: bool,
        wants_fresh: bool,
    ) -> None:
        super().__init__(trial.binding, wants_fresh=wants_fresh)
        self._context = context
        self._trial = trial
        self.backend = backend
        self.budget_end_s = budget_end_s
        self.others_left = others_left
        self.connection: Connection | None = None
        self.step = Step.SEEKING
        self._group: list[tuple[object, bytes]] = []  # commands of this turn, not written yet
        self._due = 0  # RCPT replies owed
        self._data_said = False  # DATA goes out in the same group as RCPT
        self._since_s = 0.0
        self._cut_short = (
            False  # the client's budget bounds the wait for a connection, not the backend's timeouts
        )

    # -- the lease ---------------------------------------------------------------------------------

    def start(self) -> None:
        connection = self.backend.lease(self)
        if connection is not None:
            self._use(connection)
            return
        deadlines = self._context.runtime.deadlines
        timeouts = self.backend.settings.timeouts
        self._since_s = deadlines.clock()
        limit_s = timeouts.connect_s + 2 * timeouts.greeting_s
        end_s = attempt_deadline_s(self._since_s, limit_s, self.budget_end_s, others_left=self.others_left)
        self._cut_short = end_s < self._since_s + limit_s
        deadlines.set(self, end_s)

    def lease_granted(self, connection: Connection) -> None:
        deadlines = self._context.runtime.deadlines
        deadlines.disarm(self)
        self._context.router.lease_waited(self.backend.settings.pool, deadlines.clock() - self._since_s)
        if not connection.kept:
            self._trial.answered_well(Command.CONNECT)
        self._use(connection)
        self.flush()
        if self.step is Step.OVER:  # it does not suit, and that may have been the last one
            self._trial.tell_client()

    def lease_failed(self, failure: Failure) -> None:
        self._context.runtime.deadlines.disarm(self)
        self.step = Step.OVER
        self._opening_failed(failure)

    def deadline_passed(self, now: float) -> None:
        assert self.step is Step.SEEKING
        self.backend.cancel(self)
        self.step = Step.OVER
        failure = Failure(Phase.CONNECT, Reason.TIMEOUT, b"no connection in time")
        self._opening_failed(failure, OPENING_CUT if self._cut_short else None)

    def _opening_failed(self, failure: Failure, decision: Decision | None = None) -> None:
        if decision is None:
            decision = classify_opening(failure.reason, failure.reply, identity_sent=failure.identity_sent)
        # What a backend says before it was told of the client is no answer to the client: nothing to relay.
        words = failure.reply if failure.identity_sent and decision.elsewhere is Elsewhere.NO else None
        self._trial.attempt_failed(Trouble(Command.CONNECT, decision, failure.phase, failure.detail, words))
        self._trial.tell_client()

    # -- commands ----------------------------------------------------------------------------------

    def _use(self, connection: Connection) -> None:
        """MAIL and every recipient that is not refused, XFORWARD in front of them: in one write (design 4.2), at the end of
        the turn."""
        self.connection = connection
        self.step = Step.ENVELOPE
        trial = self._trial
        if not trial.suits(connection):
            self.leave(closing=False)
            trial.unsuitable()
            return
        group = self._group = self._xforward(connection)
        group.append(
            (Command.MAIL, b"MAIL FROM:<%s>%s\r\n" % (trial.sender, self._mail_parameters(connection)))
        )
        waiting = [r for r in trial.recipients if r.slot.wire is None or r.accepted]
        group.extend((r, r.line_for(connection)) for r in waiting)
        self._due = len(waiting)
        if trial.data_asked:
            self.data_follows()
        self._expect(_MAIL, self.backend.timeouts.mail_s)

    def _mail_parameters(self, connection: Connection) -> bytes:
        parameters = self._trial.parameters
        if not parameters:
            return b""
        size = parameters.get(b"SIZE")
        if size is not None and self._trial.trace_bytes:
            parameters = {**parameters, b"SIZE": b"%d" % (int(size) + self._trial.trace_bytes)}
        return connection.capabilities.mail_parameters(parameters)

    def _xforward(self, connection: Connection) -> list[tuple[object, bytes]]:
        """Before each MAIL: Postfix forgets the attributes at the end of each transaction (XFORWARD_README)."""
        if not self.backend.tells_by_xforward:
            return []
        offered = frozenset(connection.capabilities.keywords[b"XFORWARD"].upper().split()) & XFORWARD_NAMES
        commands = build_commands(b"XFORWARD", self.binding.identity.xforward(), offered)
        return [(Command.IDENTITY, command) for command in commands]

    def rcpt(self, recipient: Recipient) -> None:
        """One more recipient. While no connection is there yet, it goes out with the others."""
        if self.step is Step.SEEKING:
            return
        assert self.step is Step.ENVELOPE and self.connection is not None
        self._due += 1
        self._group.append((recipient, recipient.line_for(self.connection)))
        self._expect(_RCPT, self.backend.timeouts.rcpt_s)

    def data_follows(self) -> None:
        """The client said DATA without waiting for the answers to RCPT: so do we, where the backend allows it (RFC 2920 3.1).

        begin_body() is called all the same, once the recipients are answered and one was accepted; else the attempt is left.
        """
        connection = self.connection
        if self.step is Step.ENVELOPE and connection is not None and connection.capabilities.pipelining:
            self._data_said = True
            self._group.append((Command.DATA, _DATA_LINE))

    def flush(self) -> None:
        """The turn is over: write its commands."""
        group, connection = self._group, self.connection
        if group and connection is not None:
            self._group = []
            connection.transaction_open = True
            connection.send(group)

    @property
    def alive(self) -> bool:
        """It has a connection, or waits for one."""
        connection = self.connection
        return self.step is Step.SEEKING or (connection is not None and connection.holder is self)

    @property
    def awaits_recipients(self) -> bool:
        return self.step is Step.SEEKING or (self.step is Step.ENVELOPE and self._due > 0)

    def begin_body(self) -> None:
        """DATA, or, where client and backend both use chunks, nothing at all: the first BDAT needs no leave (RFC 3030 4.2)."""
        connection = self.connection
        assert self.step is Step.ENVELOPE and connection is not None and not self._due
        capabilities = connection.capabilities
        # Chunks follow each other without waiting for answers, which a backend without PIPELINING does not allow.
        if (
            self._trial.chunked
            and b"CHUNKING" in capabilities
            and (capabilities.pipelining or self._trial.declared_binary)
        ):
            self.step = Step.BODY
            connection.expect_until(_BLOCK, NEVER)
            self._trial.body_wanted(as_chunks=True)
            return
        self.step = Step.DATA
        if not self._data_said:
            connection.send([(Command.DATA, _DATA_LINE)])
        self._expect(_DATA, self.backend.timeouts.data_s)

    def terminator_leaves(self) -> None:
        """The relay is about to write the terminator: only `final` counts from here (design 4.14)."""
        assert self.step is Step.BODY and self.connection is not None
        self.step = Step.FINAL
        self._since_s = self._context.runtime.deadlines.clock()
        self.connection.expect_until(_FINAL, self._since_s + self.backend.timeouts.final_s)

    @property
    def final_wait_s(self) -> float:
        return self._context.runtime.deadlines.clock() - self._since_s

    def _expect(self, phase: Phase, timeout_s: float) -> None:
        assert self.connection is not None
        now = self._context.runtime.deadlines.clock()
        self.connection.expect_until(
            phase, attempt_deadline_s(now, timeout_s, self.budget_end_s, others_left=self.others_left)
        )

    # -- leaving -----------------------------------------------------------------------------------

    def leave(self, *, closing: bool) -> None:
        """Give the connection up as gently as the step allows; `closing`: it is of no further use.

        Once DATA went out nothing may be completed by accident: abort(), never RSET, QUIT or a dot (design 4.10). While the
        recipients in front of it are still to be answered, its refusal is likely, and the connection waits for that.
        """
        step, connection = self.step, self.connection
        self.step = Step.OVER
        self.connection = None
        if step is Step.SEEKING:
            self._context.runtime.deadlines.disarm(self)
            self.backend.cancel(self)
        elif connection is not None:
            if step in (Step.DATA, Step.BODY, Step.FINAL):
                self.backend.abort(connection)
            elif closing:
                self.backend.retire(connection)
            else:
                self.backend.release(connection)

    def done(self, *, closing: bool) -> None:
        """The final reply came: the connection is free."""
        connection = self.connection
        assert self.step is Step.FINAL and connection is not None
        self.step = Step.OVER
        self.connection = None
        # RFC 3030 4.2: after a refused chunk whose successors are still to be answered, RSET is due.
        connection.transaction_open = not connection.fifo_empty
        connection.resets = 0
        if closing:
            self.backend.retire(connection)
        else:
            self.backend.release(connection)

    # -- replies -----------------------------------------------------------------------------------

    def reply_received(self, connection: Connection, token: object, reply: Reply) -> None:
        if self.step is Step.OVER:
            return
        if isinstance(token, Recipient):
            self.backend.replies.rcpt.count(reply.code)
            self._recipient_answered(token, reply)
        elif token is Command.FINAL:
            self.backend.replies.final.count(reply.code)
            if 300 <= reply.code < 400:
                self._trial.final_missing(Reason.GARBLED, reply.text_line())
            else:
                self._trial.final_answered(reply)
        elif token is Command.DATA:
            self.backend.replies.data.count(reply.code)
            self._data_answered(reply)
        elif token is Command.MAIL:
            self.backend.replies.mail.count(reply.code)
            self._mail_answered(connection, reply)
        elif token is Command.BODY:
            if reply.code >= 300:
                self._chunk_refused(reply)
        elif token is Command.IDENTITY:
            if reply.code == 421:
                self._fail(token, self._decide(token, reply), _MAIL, reply, relayable=False)
            elif reply.code != 250:
                self._fail(Command.IDENTITY, IDENTITY_REFUSED, _MAIL, reply, relayable=False)
        else:
            self._spoke_unasked(reply)

    def _mail_answered(self, connection: Connection, reply: Reply) -> None:
        if reply.code < 300:
            self._trial.answered_well(Command.MAIL)
            return
        if reply.code >= 400:
            connection.transaction_open = False
        self._error_reply(Command.MAIL, Command.MAIL, reply)

    def _recipient_answered(self, recipient: Recipient, reply: Reply) -> None:
        self._due -= 1
        if reply.code < 300:
            self._trial.answered_well(recipient)
            if not recipient.accepted:
                self._trial.recipient_accepted(recipient, reply)
        else:
            decision = self._decide(Command.RCPT, reply)
            if decision.elsewhere is not Elsewhere.NO or recipient.accepted:
                # In a replay a refusal of an accepted recipient is the transaction's affair (design 4.5).
                self._fail(recipient, decision, _RCPT, reply)
                return
            self._trial.recipient_refused(recipient, reply)
        self.settle()

    def settle(self) -> None:
        """After an answer to a RCPT: when it was the last one due, the backend owes nothing and the client is next."""
        if self.step is not Step.ENVELOPE or self.connection is None:
            return
        if self._due:
            self._expect(_RCPT, self.backend.timeouts.rcpt_s)
        else:
            self.connection.expect_until(_RCPT, NEVER)
            self._trial.envelope_answered()

    def _data_answered(self, reply: Reply) -> None:
        if reply.code == 354:
            assert self.connection is not None
            self.step = Step.BODY
            self.connection.expect_until(_BLOCK, NEVER)
            self._trial.answered_well(Command.DATA)
            self._trial.body_wanted(as_chunks=False)
        elif reply.code < 400:
            self._fail(Command.DATA, EARLY_REPLY, _DATA, reply)
        else:
            self.step = Step.ENVELOPE  # nothing was begun: RSET is possible again
            self._error_reply(Command.DATA, Command.DATA, reply)

    def _error_reply(self, command: object, kind: Command, reply: Reply) -> None:
        self._fail(command, self._decide(kind, reply), Phase(kind.value), reply)

    def _chunk_refused(self, reply: Reply) -> None:
        """A chunk was not taken. If the last one is out already, this is the answer to the message: its own must follow suit."""
        if self.step is Step.FINAL:
            if reply.code < 400:
                self._trial.final_missing(Reason.GARBLED, reply.text_line())
            else:
                self._trial.final_answered(reply)
        else:
            self._spoke_unasked(reply)

    def _spoke_unasked(self, reply: Reply) -> None:
        """A reply to nothing: before our terminator (design 4.6), or between commands (a 421, most of the time)."""
        if self.step is Step.BODY:
            if reply.code >= 400:
                # 5xx is the verdict; 4xx may send us elsewhere. The rest of the body cannot go there either way.
                self._fail(Command.BODY, self._decide(Command.BODY, reply), _BLOCK, reply)
            else:
                self._fail(Command.BODY, EARLY_REPLY, _BLOCK, reply)
        elif reply.code == 421:
            self._fail(Command.BODY, IDLE_LOSS, _RCPT, reply, relayable=False)
        else:
            self._fail(Command.BODY, EARLY_REPLY, _RCPT, reply)

    def _decide(self, kind: Command, reply: Reply) -> Decision:
        if reply.code < 400:  # 3xx where none belongs: out of step
            return GARBLED_REPLY
        connection = self.connection
        assert connection is not None
        return classify_reply(
            kind,
            reply,
            first_on_kept=connection.kept and connection.first_answer_due,
            errors_before=connection.errors - 1,
            enhanced_offered=b"ENHANCEDSTATUSCODES" in connection.capabilities,
        )

    def _fail(
        self, command: object, decision: Decision, phase: Phase, reply: Reply, *, relayable: bool = True
    ) -> None:
        """Only an error reply can ever be the client's answer: a 2xx or 3xx that does not belong here is a fault."""
        relayable = relayable and reply.code >= 400
        self._trial.attempt_failed(
            Trouble(command, decision, phase, reply.text_line(), reply if relayable else None)
        )

    # -- the connection's other words --------------------------------------------------------------

    def connection_broken(self, connection: Connection, failure: Failure) -> None:
        self.connection = None
        if self.step is Step.FINAL:
            self._trial.final_missing(failure.reason, failure.detail)
        elif self.step is Step.BODY:
            decision = classify_loss(failure.reason, first_on_kept=False, errors_before=connection.errors)
            self._trial.attempt_failed(Trouble(Command.BODY, decision, _BLOCK, failure.detail, None))
        elif failure.token is None:
            # It owed nothing: a client that takes its time outlasts a backend's patience. Nobody's fault.
            self._trial.attempt_failed(Trouble(Command.RCPT, IDLE_LOSS, _RCPT, failure.detail, None))
        else:
            decision = classify_loss(
                failure.reason,
                first_on_kept=connection.kept and connection.first_answer_due,
                errors_before=connection.errors,
            )
            token = failure.token  # what was asked first names the phase, not what was asked last
            phase = _PHASE_OF.get(token, _RCPT)
            self._trial.attempt_failed(Trouble(token, decision, phase, failure.detail, None))
        self._trial.tell_client()

    def replies_done(self) -> None:
        self._trial.tell_client()

    def backend_writable(self, writable: bool) -> None:
        connection = self.connection
        if self.step is Step.BODY and connection is not None:
            now = self._context.runtime.deadlines.clock()
            block_s = self.backend.timeouts.block_s
            connection.expect_until(_BLOCK, NEVER if writable else now + block_s)
            self._trial.backend_writable(writable)
