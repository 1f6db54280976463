"""The course of a transaction among backends: one attempt gives way to the next, or to an answer.

Owns the envelope, the present attempt, whether another one follows, and the slots that its answers fill. Does not own what
the client may say when (transaction.py), what is said to a backend (attempt.py), who is asked (search.py), or what replies
mean (policy/).
Invariant: at most one attempt at a time; after the terminator left nothing is sent again, but for 452; every slot is filled
once, and a 250 for the message only from the backend that was given it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from smtplb.dataplane.attempt import Attempt, Recipient, ReplySlot, Step, Trial, Trouble
from smtplb.dataplane.backend import Backend
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import Waiter
from smtplb.dataplane.relay import Relay, Trace
from smtplb.dataplane.reporting import OUTCOME_OF_CLASS, Reporter
from smtplb.dataplane.router import Target
from smtplb.dataplane.search import Search
from smtplb.dataplane.waiting import Place
from smtplb.observe.outcomes import AttemptOutcome, Phase, TransactionOutcome
from smtplb.policy.affinity import TEMPFAIL_AGE_S
from smtplb.policy.outcome import Blame, Command, Reason, words_for_client
from smtplb.policy.refusal import START_BODY, Refusal
from smtplb.policy.retry import Attempts, Next
from smtplb.smtp.extensions import Parameters
from smtplb.smtp.replies import Reply


class Client(Waiter, ABC):
    """The session, as a transaction sees it. Never called inside a call that the session makes.

    half_closed   it has sent all it will
    """

    __slots__ = ("binding", "client_text", "half_closed", "id")

    def __init__(self, session_id: str, binding: Binding) -> None:
        super().__init__()
        self.id = session_id
        self.binding = binding
        self.client_text = ""
        self.half_closed = False

    @abstractmethod
    def turn(self) -> None:
        """Slots were filled, or the body is wanted: write, and go on reading."""

    @abstractmethod
    def backend_writable(self, writable: bool) -> None:
        """Flow control for the body."""

    @abstractmethod
    def has_reset(self) -> bool:
        """Its reset has come, though what it sent before may not have been read yet."""


# Members of an enumeration of strings are looked up by name each time, compiled, too: here once.
_MAIL: Final = Phase.MAIL

_STEP_PHASE: Final = {
    Step.SEEKING: Phase.CONNECT,
    Step.ENVELOPE: Phase.RCPT,
    Step.DATA: Phase.DATA,
    Step.BODY: Phase.BLOCK,
    Step.FINAL: Phase.FINAL,
}


# What the client hears when nothing can be relayed and nobody is left to ask.
_REFUSAL_OF: Final = {
    Reason.LOST: Refusal.BACKEND_LOST,
    Reason.TIMEOUT: Refusal.BACKEND_LOST,
    Reason.GARBLED: Refusal.BACKEND_LOST,
    Reason.STALE: Refusal.BACKEND_LOST,
    Reason.EARLY_REPLY: Refusal.BACKEND_LOST,
    Reason.MISFIT: Refusal.BACKEND_MISFIT,
}


class Course(Trial):
    """See the module. Attempts call the methods of Trial; what follows a final reply is the transaction's."""

    __slots__ = (
        "_answer",
        "_asked_s",
        "_attempt",
        "_backend",
        "_client",
        "_context",
        "_digest",
        "_first_refused",
        "_full_told",
        "_last_refusal",
        "_phase",
        "_place",
        "_refusal_is_ours",
        "_refused_by_us",
        "_relay",
        "_reporter",
        "_search",
        "_slot",
        "_trace",
        "accepted",
        "ended",
        "refused",
        "refused_by_us",
    )

    def __init__(
        self,
        context: ListenerContext,
        client: Client,
        helo: bytes,
        serial: int,
        sender: bytes,
        parameters: Parameters,
    ) -> None:
        super().__init__(client.binding, sender, parameters)
        self._context = context
        self._client: Client | None = client
        self._reporter = Reporter(context, client.id, serial, client.client_text, helo)
        self.accepted = 0
        self.refused = 0
        self.ended = False
        self._slot: ReplySlot | None = None  # of DATA or the first BDAT, then of the final reply
        self._answer: bytes | None = (
            None  # no attempt is left: what the client hears to all that follows (design 4.8)
        )
        self._refused_by_us = False
        self._digest = ""  # of a message in doubt
        self._last_refusal = b""  # to a RCPT
        self.refused_by_us = 0  # RCPTs that never came as far as a backend
        self._refusal_is_ours = False
        self._first_refused = b""  # the first path that never became a recipient
        self._full_told = False  # 452 to the final dot came once
        self._relay: Relay | None = None  # from the first 354 on
        self._trace: Trace | None = None
        self._search: Search | None = None  # its target is fixed by the first accepted recipient (design 5)
        self._attempt: Attempt | None = None
        self._place: Place | None = None  # waiting until a backend has room
        self._backend: Backend | None = None  # of the present or last attempt
        self._asked_s = 0.0  # when the client asked what it waits for
        self._phase = _MAIL  # the last one reached

    # -- facts -------------------------------------------------------------------------------------

    @property
    def in_body(self) -> bool:
        """354 was said, or chunks are coming, and the end of the message has not been read."""
        return self._relay is not None and not self._relay.ended

    @property
    def under_way(self) -> bool:
        """Some backend is being asked, or will be once it has room."""
        return self._place is not None or (self._attempt is not None and self._attempt.alive)

    @property
    def terminator_left(self) -> bool:
        return self._attempt is not None and self._attempt.step is Step.FINAL

    @property
    def size_bytes(self) -> int:
        """As declared with SIZE=; 0 if it was not."""
        return int(self.parameters.get(b"SIZE") or 0) if self.parameters else 0

    @property
    def declared_binary(self) -> bool:
        return bool(self.parameters) and (self.parameters.get(b"BODY") or b"").upper() == b"BINARYMIME"

    @property
    def data_asked(self) -> bool:
        return self._slot is not None and self._relay is None and not self.chunked and not self.accepted

    @property
    def target(self) -> Target | None:
        return self._search.target if self._search is not None else None

    # -- attempts -----------------------------------------------------------------------------------

    def _seek(self) -> None:
        """Begin an attempt at the backend that is chosen; with none left, answer."""
        assert self._search is not None
        backend = self._search.next_backend() if self._may_start() else None
        if backend is not None:
            self._begin(backend, wants_fresh=False)
        elif self._search.busy:
            self._place = self._search.target.queue.join(self)
            if self._place is None:
                self._give_up(Refusal.QUEUE_FULL)
        else:
            self._give_up(Refusal.NO_BACKEND)

    @property
    def choosy(self) -> bool:
        return self._search is not None and self._search.choosy

    def room_found(self) -> bool:
        assert self._search is not None
        if not self._may_start():  # it has half-closed while it waited for a further attempt
            self._place = None
            self._give_up(Refusal.NO_BACKEND)
            self.tell_client()
            return True
        backend = self._search.next_backend()
        if backend is None:
            return False
        self._place = None
        self._begin(backend, wants_fresh=False)
        self.flush()
        if self._answer is not None:
            self.tell_client()
        return True

    def waited_too_long(self) -> None:
        self._place = None
        self._give_up(Refusal.QUEUE_TIMEOUT)
        self.tell_client()

    def suits(self, connection: Connection) -> bool:
        assert self._search is not None
        return all(need in connection.capabilities for need in self._search.needs)

    def unsuitable(self) -> None:
        self._next_attempt_or(Refusal.NO_BACKEND)

    def _begin(self, backend: Backend, *, wants_fresh: bool) -> None:
        search = self._search
        assert search is not None
        search.attempts.begin(backend.key)
        self._backend = backend
        if backend.per_session:
            self.binding.sticky = backend
        if self._trace is None and backend.adds_received:
            self._make_trace()
        at_data = self._slot is not None and not self._recipients_due
        budget_s = backend.budget.data_s if at_data else backend.budget.rcpt_s
        self._attempt = Attempt(
            self._context,
            self,
            backend,
            budget_end_s=self._asked_s + budget_s,
            others_left=search.others_left,
            wants_fresh=wants_fresh,
        )
        self._attempt.start()

    @property
    def _recipients_due(self) -> bool:
        """The client waits for answers to RCPT, even if it has said DATA as well."""
        return any(recipient.slot.wire is None for recipient in self.recipients)

    def _make_trace(self) -> None:
        """Once, so that a replay sends the same bytes."""
        context = self._context
        line = self.binding.identity.received_line(
            context.hostname, self._reporter.transaction_id, context.runtime.date()
        )
        self._trace = Trace(line, context.trace_mark)
        self.trace_bytes = len(line)

    def _time_starts_anew(self, attempt: Attempt) -> bool:
        """The attempt was level with the client, between commands or in the body: its loss, not a command, begins the wait."""
        if self._slot is not None and self._slot.wire is None:
            return False  # it waits for the answer to DATA, or to the message
        if attempt.step is Step.BODY:
            return self._relay is not None and self._relay.caught_up
        return attempt.step is Step.ENVELOPE and not attempt.awaits_recipients

    @property
    def _attempts_made(self) -> int:
        return self._search.attempts.count if self._search is not None else 0

    def _may_start(self) -> bool:
        """Nobody starts a further attempt for a client that is gone or has half-closed (design 4.6)."""
        return self._client is not None and not (self._client.half_closed and self._attempts_made)

    def _can_repeat(self) -> bool:
        """All that the client said so far can be said again."""
        return self._may_start() and (self._relay is None or self._relay.replayable)

    def _can_ask_another(self) -> bool:
        return self._search is not None and self._can_repeat() and self._search.another_left

    def _can_refresh(self) -> bool:
        return self._can_repeat() and self.binding.pinned is None

    def attempt_failed(self, trouble: Trouble) -> None:
        """The one place where an attempt gives way to the next one or to an answer."""
        attempt, search, decision = self._attempt, self._search, trouble.decision
        assert attempt is not None and search is not None
        self._phase = trouble.phase
        if self._time_starts_anew(attempt):
            self._asked_s = self._context.runtime.deadlines.clock()
        has_reply = trouble.reply is not None
        command = trouble.command
        following = search.attempts.after(attempt.backend.key, command, decision, has_reply=has_reply)
        possible = {Next.SAME_FRESH: self._can_refresh, Next.OTHER: self._can_ask_another}.get(following)
        if possible is not None and not possible():
            following = Attempts.without_other(decision, has_reply=has_reply)
            if following is Next.GIVE_UP and self._can_repeat() and search.widen():
                following = Next.OTHER
        if following is Next.RELAY and self._promised(command):
            self._mismatch(trouble)
        elif following is Next.RELAY:
            self._relay_words(trouble)
        else:
            fresh = following is Next.SAME_FRESH
            self._reporter.attempt_failed(
                attempt.backend,
                AttemptOutcome.REPLACED if fresh else AttemptOutcome.FAULT,
                trouble.phase,
                decision.reason,
                trouble.detail,
                blamed=decision.blame is Blame.AT_ONCE,
            )
            self._leave(closing=decision.closing)
            if following is Next.GIVE_UP:
                self._give_up(_REFUSAL_OF.get(decision.reason, Refusal.NO_BACKEND))
            else:
                self._next_attempt(attempt.backend, trouble.phase, decision.reason, fresh=fresh)

    def _promised(self, command: object) -> bool:
        """The client was given another answer already than an error reply to `command` would be."""
        if isinstance(command, Recipient):
            return command.accepted
        if command is Command.DATA:
            return self._relay is not None
        return command in (Command.CONNECT, Command.MAIL) and self.accepted > 0

    def _next_attempt(self, failed: Backend, phase: Phase, reason: Reason, *, fresh: bool) -> None:
        self._context.router.retried(failed.settings.pool, phase, reason)
        self._hold_body()
        if fresh:
            failed.reuse["stale"] += 1
            self._begin(failed, wants_fresh=True)
        else:
            self._seek()

    def _next_attempt_or(self, refusal: Refusal) -> None:
        attempts = self._search.attempts if self._search is not None else None
        if attempts is not None and attempts.count < attempts.limit and self._can_ask_another():
            self._hold_body()
            self._seek()
        else:
            self._give_up(refusal)

    def _hold_body(self) -> None:
        """The client's body waits until the new attempt has caught up."""
        if self.in_body and self._client is not None:
            self._client.backend_writable(False)

    def _relay_words(self, trouble: Trouble) -> None:
        """The backend's own words answer the command, and, where they end all, everything that follows."""
        attempt, command, reply = self._attempt, trouble.command, trouble.reply
        assert attempt is not None and reply is not None
        wire = words_for_client(reply)
        if isinstance(command, Recipient) and not trouble.decision.closing:
            self._refuse(command, wire)
            attempt.settle()
            return
        if command is Command.CONNECT:
            self.binding.verdict = wire  # about the client: for every RCPT of the session (design 4.4)
        attempt.backend.attempts[AttemptOutcome.VERDICT] += 1
        self._leave(closing=trouble.decision.closing)
        self._stick(wire)

    def _mismatch(self, trouble: Trouble) -> None:
        """A replay got another answer than the client was given: undo there, try the next, blame nobody (design 4.5)."""
        attempt = self._attempt
        assert attempt is not None
        self._reporter.attempt_failed(
            attempt.backend, AttemptOutcome.ABANDONED, trouble.phase, Reason.MISMATCH, trouble.detail
        )
        self._leave(closing=trouble.decision.closing)
        self._next_attempt_or(Refusal.REPLAY_FAILED)

    def _abandoned(self, cause: str) -> None:
        """The client ended it before a message was sent. If nobody had been accepted, that is because of what it was told."""
        wire = self._last_refusal
        if self.accepted or not wire:
            self._end(TransactionOutcome.ABORTED, cause, b"")
        else:
            outcome = TransactionOutcome.REFUSED if self._refusal_is_ours else OUTCOME_OF_CLASS[wire[:1]]
            self._end(outcome, f"every recipient was refused; {cause}", wire)

    def _give_up(self, refusal: Refusal) -> None:
        """Nothing of a backend's can be relayed: an answer of ours, counted once for the transaction."""
        self._context.refused(refusal.label)
        self._stick(refusal.wire)

    def _stick(self, wire: bytes) -> None:
        """No attempt is left: `wire` answers what is due now and all that follows in this transaction (design 4.8)."""
        self._answer = wire
        for recipient in self.recipients:
            if recipient.slot.wire is None:
                self._refuse(recipient, wire)
        relay = self._relay
        if relay is not None:
            relay.detach()
            relay.forgo_replay()
            if relay.ended:
                self._answer_and_end(wire, "no attempt left")
            elif self._client is not None:
                self._client.backend_writable(True)  # the rest of the body is read and thrown away
        elif self.chunked:
            assert self._slot is not None
            self._relay = Relay(self._context.replay_budget, None, chunked=True, binary=True)
            self._slot.fill(b"")
        elif self._slot is not None:
            if self.accepted:
                self._answer_and_end(wire, "no attempt left")
            else:
                self.nobody_accepted()

    def _refuse(self, recipient: Recipient, wire: bytes) -> None:
        self.refused += 1
        self._last_refusal = wire
        recipient.slot.fill(wire)

    def _leave(self, *, closing: bool) -> None:
        """End the present attempt, if there is one, without an answer from it."""
        attempt, relay, place = self._attempt, self._relay, self._place
        if place is not None and self._search is not None:
            self._place = None
            self._search.target.queue.leave(place)
        if relay is not None:
            relay.detach()
        if attempt is not None and attempt.step is not Step.OVER:
            self._phase = _STEP_PHASE[attempt.step]
            attempt.leave(closing=closing)

    def flush(self) -> None:
        """The turn is over: one write for all commands, or all of the body, that it has for the backend."""
        if self._attempt is not None:
            self._attempt.flush()
        if self._relay is not None:
            self._relay.flush()

    # -- what attempts tell -------------------------------------------------------------------------

    def answered_well(self, command: object) -> None:
        search = self._search
        assert search is not None
        if search.attempts.suspicions:
            for suspicion in search.attempts.succeeded(command):
                self._reporter.proven(suspicion)

    def recipient_accepted(self, recipient: Recipient, reply: Reply) -> None:
        recipient.accepted = True
        self.accepted += 1
        recipient.slot.fill(reply.wire())
        self._replied()

    def recipient_refused(self, recipient: Recipient, reply: Reply) -> None:
        if reply.code in (450, 451):
            self._come_again([recipient], TEMPFAIL_AGE_S)
        if self._backend is not None:
            self._backend.refused(self.binding.identity.client_text)
        self._refuse(recipient, words_for_client(reply))
        self._replied()

    def _replied(self) -> None:
        """With each reply the client's patience for the next one begins."""
        attempt = self._attempt
        assert attempt is not None
        self._asked_s = self._context.runtime.deadlines.clock()
        attempt.budget_end_s = self._asked_s + attempt.backend.budget.rcpt_s

    def envelope_answered(self) -> None:
        """In a replay, or where it did not wait for these answers, the client has asked for more already."""
        if self._slot is None and self._relay is None:
            return
        if not self.accepted:
            self.nobody_accepted()
            return
        attempt = self._attempt
        assert attempt is not None
        attempt.budget_end_s = self._asked_s + attempt.backend.budget.data_s
        attempt.begin_body()

    def body_wanted(self, *, as_chunks: bool) -> None:
        attempt, relay = self._attempt, self._relay
        assert attempt is not None and attempt.connection is not None
        if relay is None:
            assert self._slot is not None
            self._relay = relay = Relay(
                self._context.replay_budget, self._trace, chunked=self.chunked, binary=self.declared_binary
            )
            relay.attach(attempt.connection, as_chunks=as_chunks)
            self._slot.fill(b"" if self.chunked else START_BODY)
            return
        relay.attach(attempt.connection, as_chunks=as_chunks)
        self._catch_up(relay)

    def _catch_up(self, relay: Relay) -> None:
        """In a replay: once all that was read is out, the client goes on, or the message ends."""
        rest = relay.catch_up()
        if rest is None:
            return
        if relay.ended:
            self._finish(relay, rest)
            return
        if self._client is not None:
            self._client.backend_writable(True)
        relay.send_again(rest)  # this may well pause the client again

    def backend_writable(self, writable: bool) -> None:
        relay = self._relay
        if relay is None:
            return
        if not relay.caught_up:
            if writable:
                self._catch_up(relay)
        elif self.in_body and self._client is not None:
            self._client.backend_writable(writable)

    def tell_client(self) -> None:
        if self._client is not None:
            self._client.turn()

    def _come_again(self, recipients: list[Recipient], for_s: float, *, once: bool = False) -> None:
        """A temporary verdict, or doubt: the retry goes to the same backend first (policy/affinity.py)."""
        affinity, backend = self._context.router.affinity, self._backend
        assert backend is not None
        until_s = self._context.runtime.deadlines.clock() + for_s
        for recipient in recipients:
            key = affinity.key(self.binding.identity.client, self.sender, recipient.path)
            affinity.remember(key, backend.key, until_s, once=once)

    def _finish(self, relay: Relay, last: bytes) -> None:
        assert self._attempt is not None
        self._attempt.terminator_leaves()
        relay.finish(last, Command.FINAL)

    # -- the end ------------------------------------------------------------------------------------

    def _answer_and_end(self, wire: bytes, cause: str, outcome: TransactionOutcome | None = None) -> None:
        assert self._slot is not None
        self._slot.fill(wire)
        if self._client is None:
            cause += "; the client had left"
        self._end(outcome or OUTCOME_OF_CLASS[wire[:1]], cause, wire)

    @property
    def _first_recipient(self) -> bytes:
        """For the log: the first that was accepted, or, if nobody was, the first that was asked for."""
        asked = self.recipients[0].path if self.recipients else self._first_refused
        return next((r.path for r in self.recipients if r.accepted), asked)

    def _end(self, outcome: TransactionOutcome, cause: str, wire: bytes) -> None:
        assert not self.ended
        self.ended = True
        self._attempt = (
            None  # it knows us, too: else each message would leave a cycle to the garbage collector
        )
        relay = self._relay
        if relay is not None:
            relay.detach()
            relay.forgo_replay()
        self._reporter.ended(
            self._backend,
            outcome,
            self._phase,
            cause,
            wire,
            sender=self.sender,
            first_recipient=self._first_recipient,
            accepted=self.accepted,
            refused=self.refused + self.refused_by_us,
            message_bytes=relay.sent_bytes if relay is not None else 0,
            attempts=self._attempts_made,
            digest=self._digest,
        )

    # -- the transaction's part ---------------------------------------------------------------------

    @abstractmethod
    def nobody_accepted(self) -> None:
        """Every RCPT was answered, none with 2xx, and the client has said DATA."""

    @abstractmethod
    def final_answered(self, reply: Reply) -> None: ...

    @abstractmethod
    def final_missing(self, reason: Reason, detail: bytes) -> None: ...
