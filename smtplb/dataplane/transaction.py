"""One transaction: from MAIL to the final reply or a reset, over as many attempts as it takes.

Owns the envelope, which attempt is the present one, and the answer to each command of the transaction. Does not own the
client's input and output (session.py), what is said to a backend (attempt.py), or what replies mean (policy/).
Invariant: at most one attempt at a time; after the terminator left nothing is sent again; every command of the client gets
exactly one answer, and a 250 for the message only from the backend that was given it.
"""

from __future__ import annotations

from typing import Protocol

from smtplb.dataplane.attempt import Attempt, Recipient, ReplySlot, Step, Trouble
from smtplb.dataplane.backend import Backend
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.relay import Relay
from smtplb.observe.events import (
    AttemptFailed,
    AttemptOutcome,
    BackendBlamed,
    Phase,
    TransactionEnded,
    TransactionOutcome,
)
from smtplb.policy.outcome import Blame, Command, Reason
from smtplb.policy.refusal import START_BODY, Refusal
from smtplb.policy.retry import Attempts, Next, Suspicion
from smtplb.smtp.commands import Parameters
from smtplb.smtp.replies import Reply


class Client(Protocol):
    """The session, as a transaction sees it. Never called inside a call that the session makes."""

    id: str
    client_text: str
    half_closed: bool  # it has sent all it will

    def turn(self) -> None:
        """Slots were filled, or the body is wanted: write, and go on reading."""

    def backend_writable(self, writable: bool) -> None:
        """Flow control for the body."""


_STEP_PHASE = {
    Step.SEEKING: Phase.CONNECT,
    Step.ENVELOPE: Phase.RCPT,
    Step.DATA: Phase.DATA,
    Step.BODY: Phase.BLOCK,
    Step.FINAL: Phase.FINAL,
}


class Transaction:
    """See the module. The session calls recipient, data, body, reset, client_gone and cut; attempts call the rest."""

    __slots__ = (
        "_answer",
        "_asked_s",
        "_attempt",
        "_attempts",
        "_backend",
        "_client",
        "_client_text",
        "_context",
        "_helo",
        "_id",
        "_phase",
        "_refused_by_us",
        "_relay",
        "_session_id",
        "_skip",
        "_slot",
        "_started_s",
        "accepted",
        "ended",
        "parameters",
        "recipients",
        "refused",
        "sender",
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
        self._context = context
        self._client: Client | None = client
        self._session_id = client.id
        self._id = f"{client.id}.{serial}"
        self._client_text = client.client_text
        self._helo = helo
        self._started_s = context.runtime.deadlines.clock()
        self.sender = sender
        self.parameters = parameters
        self.recipients: list[Recipient] = []
        self.accepted = 0
        self.refused = 0
        self.ended = False
        self._slot: ReplySlot | None = None  # of DATA, then of the final reply
        self._answer: bytes | None = (
            None  # no attempt is left: what the client hears to all that follows (design 4.8)
        )
        self._relay: Relay | None = None  # from the first 354 on
        self._attempts = Attempts(context.attempts)
        self._skip: list[Backend] = []  # asked already
        self._attempt: Attempt | None = None
        self._backend: Backend | None = None  # of the present or last attempt
        self._phase = Phase.MAIL  # the last one reached
        self._asked_s = 0.0  # when the client asked what it waits for
        self._refused_by_us = False

    # -- the session asks --------------------------------------------------------------------------

    @property
    def in_body(self) -> bool:
        """354 was said and the end of data has not been read."""
        return self._relay is not None and not self._relay.ended

    @property
    def terminator_left(self) -> bool:
        return self._attempt is not None and self._attempt.step is Step.FINAL

    def recipient(self, path: bytes, slot: ReplySlot) -> None:
        """RCPT, after the relay guard. The slot is filled now or later."""
        recipient = Recipient(path, slot)
        self.recipients.append(recipient)
        if self._answer is not None:
            self._refuse(recipient, self._answer)
            return
        attempt = self._attempt
        if attempt is None:
            self._asked_s = self._context.runtime.deadlines.clock()
            self._seek()
            return
        if not attempt.awaits_recipients:
            self._asked_s = self._context.runtime.deadlines.clock()
            attempt.budget_end_s = self._asked_s + attempt.backend.budget.rcpt_s
        attempt.rcpt(recipient)

    def data(self, slot: ReplySlot) -> None:
        """DATA, after every RCPT was answered. The slot is filled with 354, or with an error and the transaction ends."""
        self._slot = slot
        if not self.accepted:
            # RFC 5321 4.1.1.4 leaves 503 or 554; where a recipient only has to wait the message does too.
            waits = any(r.slot.wire is not None and r.slot.wire[:1] == b"4" for r in self.recipients)
            refusal = Refusal.NO_RECIPIENTS_NOW if waits else Refusal.NO_VALID_RECIPIENTS
            self._leave(closing=False)
            self._answer_and_end(refusal.wire, "no recipient was taken", TransactionOutcome.REFUSED)
        elif self._answer is not None:
            self._answer_and_end(self._answer, "no attempt left")
        else:
            attempt = self._attempt
            assert attempt is not None
            self._asked_s = self._context.runtime.deadlines.clock()
            if attempt.step is Step.ENVELOPE and not attempt.awaits_recipients:
                attempt.budget_end_s = self._asked_s + attempt.backend.budget.data_s
                attempt.data()
            # else a new attempt is coming up: DATA follows when its envelope was answered

    def flush(self) -> None:
        """The turn is over: one write for all commands that it has for the backend."""
        if self._attempt is not None:
            self._attempt.flush()

    def body(self, data: bytes) -> bytes:
        """Message content as it came; what is behind the end of data is given back, and `in_body` is then False."""
        relay = self._relay
        assert relay is not None
        chunk, rest = relay.feed(data)
        if self._answer is None:
            self._check_body(relay)
        if relay.ended:
            self._slot = ReplySlot()
            self._body_ended(relay, chunk)
        elif chunk and self._answer is None:
            relay.send(chunk)
            if relay.connection is None and not relay.replayable:
                self._leave(closing=False)
                self._stick(Refusal.BACKEND_LOST.wire)
        return rest

    @property
    def slot(self) -> ReplySlot:
        """The place of the reply to the end of data, once it was read."""
        assert self._slot is not None
        return self._slot

    def reset(self, cause: str) -> None:
        """RSET, HELO, EHLO or QUIT between commands."""
        assert not self.in_body and not self.terminator_left
        self._leave(closing=False)
        self._end(TransactionOutcome.ABORTED, cause, b"")

    def client_gone(self, cause: str) -> None:
        """The client is lost. Before our terminator left nothing may be completed (design 4.6); after it the late reply is
        awaited and recorded (design 4.7)."""
        self._client = None
        if self.ended or self.terminator_left:
            return
        self._leave(closing=False)
        self._end(TransactionOutcome.ABORTED, cause, b"")

    def cut(self) -> None:
        """We are stopping and the time for transactions is over; those whose terminator left may go on."""
        if not self.ended and not self.terminator_left:
            self._leave(closing=False)
            self._end(TransactionOutcome.TEMPFAIL, "shutdown", Refusal.SHUTTING_DOWN.wire)

    # -- attempts ----------------------------------------------------------------------------------

    def _seek(self) -> None:
        """Begin an attempt at the backend that the target chooses; with none left, answer."""
        backend = self._context.target.choose(self._skip) if self._may_start() else None
        if backend is None:
            self._stick(Refusal.NO_BACKEND.wire)
            return
        self._skip.append(backend)
        self._begin(backend, wants_fresh=False)

    def _begin(self, backend: Backend, *, wants_fresh: bool) -> None:
        attempts = self._attempts
        attempts.begin(backend.key)
        self._backend = backend
        self._attempt = Attempt(
            self._context,
            self,
            backend,
            budget_end_s=self._asked_s
            + (backend.budget.data_s if self._slot is not None else backend.budget.rcpt_s),
            others_left=attempts.count < attempts.limit and self._context.target.others_left(self._skip),
            wants_fresh=wants_fresh,
        )
        self._attempt.start()

    def _may_start(self) -> bool:
        """Nobody starts a further attempt for a client that is gone or has half-closed (design 4.6)."""
        return self._client is not None and not (self._client.half_closed and self._attempts.count)

    def _can_repeat(self) -> bool:
        """All that the client said so far can be said again."""
        return self._may_start() and (self._relay is None or self._relay.replayable)

    def attempt_failed(self, trouble: Trouble) -> None:
        """The one place where an attempt gives way to the next one or to an answer."""
        attempt, decision = self._attempt, trouble.decision
        assert attempt is not None
        self._phase = trouble.phase
        has_reply = trouble.reply is not None
        following = self._attempts.after(attempt.backend.key, trouble.command, decision, has_reply=has_reply)
        if (following is Next.SAME_FRESH and not self._can_repeat()) or (
            following is Next.OTHER
            and not (self._can_repeat() and self._context.target.others_or_last_resort_left(self._skip))
        ):
            following = Attempts.without_other(decision, has_reply=has_reply)
        command = trouble.command
        if following is Next.RELAY and isinstance(command, Recipient) and command.accepted:
            self._mismatch(trouble)
        elif following is Next.RELAY:
            self._relay_words(trouble)
        else:
            outcome = AttemptOutcome.REPLACED if following is Next.SAME_FRESH else AttemptOutcome.FAULT
            self._tell_failed(
                outcome, trouble.phase, decision.reason, trouble.detail, decision.blame is Blame.AT_ONCE
            )
            self._leave(closing=decision.closing)
            if following is Next.GIVE_UP:
                self._stick(_REFUSAL_OF.get(decision.reason, Refusal.NO_BACKEND).wire)
            else:
                self._next_attempt(
                    attempt.backend, trouble.phase, decision.reason, fresh=following is Next.SAME_FRESH
                )

    def _next_attempt(self, failed: Backend, phase: Phase, reason: Reason, *, fresh: bool) -> None:
        self._context.router.retried(failed.settings.pool, phase, reason)
        if self.in_body and self._client is not None:
            self._client.backend_writable(
                False
            )  # the client's body waits until the new attempt has caught up
        if fresh:
            failed.reuse["stale"] += 1
            self._begin(failed, wants_fresh=True)
        else:
            self._seek()

    def _relay_words(self, trouble: Trouble) -> None:
        """The backend's own words answer the command, and, where they end all, everything that follows."""
        attempt, command, reply = self._attempt, trouble.command, trouble.reply
        assert attempt is not None and reply is not None
        wire = _relayed(reply)
        if isinstance(command, Recipient) and not trouble.decision.closing:
            self._refuse(command, wire)
            attempt.settle()
            return
        attempt.backend.attempts[AttemptOutcome.VERDICT] += 1
        attempt.leave(closing=trouble.decision.closing)
        self._stick(wire)

    def _mismatch(self, trouble: Trouble) -> None:
        """A replay got another answer than the client was given: undo there, try the next, blame nobody (design 4.5)."""
        attempt = self._attempt
        assert attempt is not None
        self._tell_failed(AttemptOutcome.ABANDONED, trouble.phase, Reason.MISMATCH, trouble.detail, False)
        self._leave(closing=trouble.decision.closing)
        target = self._context.target
        if (
            self._attempts.count < self._attempts.limit
            and self._can_repeat()
            and target.others_or_last_resort_left(self._skip)
        ):
            self._next_attempt(attempt.backend, trouble.phase, Reason.MISMATCH, fresh=False)
        else:
            self._stick(Refusal.REPLAY_FAILED.wire)

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
        elif self._slot is not None:
            self._answer_and_end(wire, "no attempt left")

    def _refuse(self, recipient: Recipient, wire: bytes) -> None:
        self.refused += 1
        recipient.slot.fill(wire)

    def _leave(self, *, closing: bool) -> None:
        """End the present attempt, if there is one, without an answer from it."""
        attempt, relay = self._attempt, self._relay
        if relay is not None:
            relay.detach()
        if attempt is not None and attempt.step is not Step.OVER:
            self._phase = _STEP_PHASE[attempt.step]
            attempt.leave(closing=closing)

    # -- what attempts tell ------------------------------------------------------------------------

    def answered_well(self, command: object) -> None:
        for suspicion in self._attempts.succeeded(command):
            self._blame(suspicion)

    def recipient_accepted(self, recipient: Recipient, reply: Reply) -> None:
        recipient.accepted = True
        self.accepted += 1
        recipient.slot.fill(reply.wire())

    def recipient_refused(self, recipient: Recipient, reply: Reply) -> None:
        self._refuse(recipient, _relayed(reply))

    def envelope_answered(self) -> None:
        """In a replay the client asked for more already."""
        if self._slot is not None or self._relay is not None:
            attempt = self._attempt
            assert attempt is not None
            attempt.budget_end_s = self._asked_s + attempt.backend.budget.data_s
            attempt.data()

    def body_wanted(self) -> None:
        attempt, relay = self._attempt, self._relay
        assert attempt is not None and attempt.connection is not None
        if relay is None:
            assert self._slot is not None
            self._slot.fill(START_BODY)
            self._relay = relay = Relay(self._context.replay_budget)
            relay.attach(attempt.connection)
            return
        so_far = relay.attach(attempt.connection)
        if relay.ended:
            self._finish(relay, so_far)
            return
        if self._client is not None:
            self._client.backend_writable(True)
        relay.send_again(so_far)  # this may well pause the client again

    def backend_writable(self, writable: bool) -> None:
        if self.in_body and self._client is not None:
            self._client.backend_writable(writable)

    def tell_client(self) -> None:
        if self._client is not None:
            self._client.turn()

    # -- body and final reply ----------------------------------------------------------------------

    def _check_body(self, relay: Relay) -> None:
        """A message that cannot be taken whatever follows: its end is awaited before the client is told (design 4.12)."""
        context = self._context
        limit = context.message_size_limit_bytes
        if limit is not None and relay.body_bytes > limit:
            refusal = Refusal.TOO_LARGE
        elif relay.lawless and context.rejects_bare_newline:
            refusal = Refusal.BARE_NEWLINE
        else:
            return
        context.refused(refusal.label)
        self._leave(closing=True)
        relay.forgo_replay()
        self._answer = refusal.wire
        self._refused_by_us = True

    def _body_ended(self, relay: Relay, last_chunk: bytes) -> None:
        if self._answer is not None:
            outcome = TransactionOutcome.REFUSED if self._refused_by_us else None
            self._answer_and_end(self._answer, "message refused" if outcome else "no attempt left", outcome)
        elif relay.connection is not None:
            self._finish(relay, last_chunk)
        else:
            relay.send(last_chunk)  # an attempt is coming up: it gets all of it
            if not relay.replayable:
                self._leave(closing=False)
                self._answer_and_end(
                    Refusal.BACKEND_LOST.wire, "backend lost, message too large to send again"
                )

    def _finish(self, relay: Relay, last_chunk: bytes) -> None:
        assert self._attempt is not None
        self._attempt.terminator_leaves()
        relay.finish(last_chunk, Command.FINAL)
        relay.forgo_replay()

    def final_answered(self, reply: Reply) -> None:
        attempt = self._attempt
        assert attempt is not None
        backend = attempt.backend
        self._phase = Phase.FINAL
        backend.final_s.observe(attempt.final_wait_s)
        if reply.code < 300:
            self.answered_well(Command.BODY)
            backend.attempts[AttemptOutcome.OK] += 1
            attempt.done(closing=False)
            self._answer_and_end(reply.wire(), "backend took it")
            return
        backend.attempts[AttemptOutcome.VERDICT] += 1
        attempt.done(closing=reply.code == 421)
        enhanced = reply.enhanced
        if reply.code in (421, 451) and enhanced is not None and enhanced.startswith(b"4.3."):
            # ran: Postfix with a slow filter said 451 4.3.0 for a message that the filter had taken (design 4.3).
            self._emit_failed(AttemptOutcome.IN_DOUBT, Phase.FINAL, Reason.VERDICT, reply.text_line(), False)
        self._answer_and_end(_relayed(reply), "backend said so")

    def final_missing(self, reason: Reason, detail: bytes) -> None:
        """All of the message was handed over and no answer came (RFC 1047, design 4.7)."""
        self._phase = Phase.FINAL
        self._tell_failed(AttemptOutcome.IN_DOUBT, Phase.FINAL, reason, detail, False)
        self._leave(closing=True)
        self._answer_and_end(
            Refusal.IN_DOUBT.wire, "no reply after the end of data", TransactionOutcome.IN_DOUBT
        )

    # -- the end -----------------------------------------------------------------------------------

    def _answer_and_end(self, wire: bytes, cause: str, outcome: TransactionOutcome | None = None) -> None:
        assert self._slot is not None
        self._slot.fill(wire)
        if self._client is None:
            cause += "; the client had left"
        self._end(outcome or _OUTCOME_OF_CLASS[wire[:1]], cause, wire)

    def _end(self, outcome: TransactionOutcome, cause: str, wire: bytes) -> None:
        assert not self.ended
        self.ended = True
        context, relay, backend = self._context, self._relay, self._backend
        if relay is not None:
            relay.detach()
            relay.forgo_replay()
        context.transaction_ended(
            TransactionEnded(
                listener=context.name,
                session_id=self._session_id,
                transaction_id=self._id,
                client=self._client_text,
                helo=self._helo,
                sender=self.sender,
                recipients=self.accepted,
                recipients_refused=self.refused,
                pool=backend.settings.pool if backend is not None else "",
                backend=backend.settings.name if backend is not None else "",
                outcome=outcome,
                phase=self._phase.value,
                cause=cause,
                reply=wire.split(b"\r\n", 1)[0],
                message_bytes=relay.sent_bytes if relay is not None else 0,
                attempts=self._attempts.count,
                duration_s=context.runtime.deadlines.clock() - self._started_s,
                recipient=next((r.path for r in self.recipients if r.accepted), b""),
            )
        )

    # -- telling about attempts --------------------------------------------------------------------

    def _tell_failed(
        self, outcome: AttemptOutcome, phase: Phase, reason: Reason, detail: bytes, blamed: bool
    ) -> None:
        assert self._backend is not None
        self._backend.attempts[outcome] += 1
        self._emit_failed(outcome, phase, reason, detail, blamed)

    def _emit_failed(
        self, outcome: AttemptOutcome, phase: Phase, reason: Reason, detail: bytes, blamed: bool
    ) -> None:
        backend = self._backend
        assert backend is not None
        self._context.runtime.emit(
            AttemptFailed(
                pool=backend.settings.pool,
                backend=backend.settings.name,
                session_id=self._session_id,
                client=self._client_text,
                outcome=outcome,
                phase=phase.value,
                reason=reason.value,
                detail=detail,
                blamed=blamed,
            )
        )
        if blamed:
            self._context.runtime.emit(
                BackendBlamed(
                    backend.settings.pool,
                    backend.settings.name,
                    self._session_id,
                    self._client_text,
                    reason.value,
                )
            )

    def _blame(self, suspicion: Suspicion) -> None:
        """Another backend answered the same command well: the one suspected was at fault (design 4.4)."""
        pool, backend = suspicion.backend
        self._context.runtime.emit(
            BackendBlamed(pool, backend, self._session_id, self._client_text, suspicion.decision.reason.value)
        )


def _relayed(reply: Reply) -> bytes:
    """A backend's words for the client. 421 speaks of a channel that is the backend's, not ours: 451 keeps ours open."""
    return reply.wire(451) if reply.code == 421 else reply.wire()


_OUTCOME_OF_CLASS = {
    b"2": TransactionOutcome.OK,
    b"4": TransactionOutcome.TEMPFAIL,
    b"5": TransactionOutcome.PERMFAIL,
}

# What the client hears when nothing can be relayed and nobody is left to ask.
_REFUSAL_OF = {
    Reason.LOST: Refusal.BACKEND_LOST,
    Reason.TIMEOUT: Refusal.BACKEND_LOST,
    Reason.GARBLED: Refusal.BACKEND_LOST,
    Reason.STALE: Refusal.BACKEND_LOST,
    Reason.EARLY_REPLY: Refusal.BACKEND_LOST,
    Reason.MISFIT: Refusal.BACKEND_MISFIT,
}
