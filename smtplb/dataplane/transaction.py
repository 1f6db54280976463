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
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.relay import Relay, Trace
from smtplb.dataplane.reporting import Reporter
from smtplb.dataplane.router import Target
from smtplb.dataplane.search import Search
from smtplb.dataplane.waiting import Place
from smtplb.observe.events import AttemptOutcome, Phase, TransactionOutcome
from smtplb.policy.affinity import TEMPFAIL_AGE_S
from smtplb.policy.outcome import Blame, Command, Reason
from smtplb.policy.refusal import CHUNK_TAKEN, START_BODY, Refusal
from smtplb.policy.retry import Attempts, Next
from smtplb.smtp.extensions import Parameters, needs_of
from smtplb.smtp.replies import Reply

FULL_RETRY_WITHIN_S = 60.0  # 452 to the final dot is tried elsewhere while the client has not waited longer
MAX_RECEIVED_OWN = 3  # our own trace lines in a message: it has come round
MAX_RECEIVED_ALL = 50  # RFC 5321 6.3: at least 100 hops is a large number; Postfix hopcount_limit 50


class Client(Protocol):
    """The session, as a transaction sees it. Never called inside a call that the session makes."""

    id: str
    client_text: str
    half_closed: bool  # it has sent all it will
    binding: Binding

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
    """See the module. The dialogue calls recipient, data, body or chunks, reset, client_gone and cut; attempts call the rest."""

    __slots__ = (
        "_answer",
        "_asked_s",
        "_attempt",
        "_backend",
        "_client",
        "_context",
        "_full_told",
        "_phase",
        "_place",
        "_refused_by_us",
        "_relay",
        "_reporter",
        "_search",
        "_slot",
        "_trace",
        "accepted",
        "binding",
        "chunked",
        "ended",
        "parameters",
        "recipients",
        "refused",
        "sender",
        "trace_bytes",
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
        self.binding = client.binding
        self._reporter = Reporter(context, client.id, serial, client.client_text, helo)
        self.sender = sender
        self.parameters = parameters
        self.recipients: list[Recipient] = []
        self.accepted = 0
        self.refused = 0
        self.ended = False
        self.chunked = False  # BDAT, not DATA
        self._slot: ReplySlot | None = None  # of DATA or the first BDAT, then of the final reply
        self._answer: bytes | None = (
            None  # no attempt is left: what the client hears to all that follows (design 4.8)
        )
        self._refused_by_us = False
        self._full_told = False  # 452 to the final dot came once
        self._relay: Relay | None = None  # from the first 354 on
        self._trace: Trace | None = None
        self.trace_bytes = 0
        self._search: Search | None = None  # its target is fixed by the first accepted recipient (design 5)
        self._attempt: Attempt | None = None
        self._place: Place | None = None  # waiting until a backend has room
        self._backend: Backend | None = None  # of the present or last attempt
        self._asked_s = 0.0  # when the client asked what it waits for
        self._phase = Phase.MAIL  # the last one reached

    # -- the dialogue asks --------------------------------------------------------------------------

    @property
    def in_body(self) -> bool:
        """354 was said, or chunks are coming, and the end of the message has not been read."""
        return self._relay is not None and not self._relay.ended

    @property
    def terminator_left(self) -> bool:
        return self._attempt is not None and self._attempt.step is Step.FINAL

    @property
    def size_bytes(self) -> int:
        """As declared with SIZE=; 0 if it was not."""
        return int(self.parameters.get(b"SIZE") or 0)

    @property
    def declared_binary(self) -> bool:
        return (self.parameters.get(b"BODY") or b"").upper() == b"BINARYMIME"

    @property
    def target(self) -> Target | None:
        return self._search.target if self._search is not None else None

    @property
    def target_open(self) -> bool:
        """No recipient has fixed the target yet, and none is about to."""
        pending = self._place is not None or (self._attempt is not None and self._attempt.awaits_recipients)
        return self.accepted == 0 and not pending

    def recipient(self, path: bytes, parameters: Parameters, target: Target, slot: ReplySlot) -> None:
        """RCPT, after relay guard and route. The slot is filled now or later."""
        recipient = Recipient(path, parameters, slot)
        self.recipients.append(recipient)
        if self._search is None or (self._search.target is not target and self.target_open):
            self._retarget(target)
        if parameters:
            assert self._search is not None
            self._search.needs |= needs_of(parameters)
        if self._answer is None and self.binding.verdict is not None:
            self._answer = self.binding.verdict
        if self._answer is not None:
            self._refuse(recipient, self._answer)
            return
        attempt = self._attempt
        if self._place is not None:
            return  # it goes out with the others
        if attempt is None:
            self._asked_s = self._context.runtime.deadlines.clock()
            self._seek()
            return
        if not attempt.awaits_recipients:
            self._asked_s = self._context.runtime.deadlines.clock()
            attempt.budget_end_s = self._asked_s + attempt.backend.budget.rcpt_s
        attempt.rcpt(recipient)

    def _retarget(self, target: Target) -> None:
        """The first recipient, or nobody was accepted where those before it went: this one starts afresh."""
        self._leave(closing=False)
        self._attempt = None
        self._answer = None
        affinity = self._context.router.affinity
        preferred = None
        if len(affinity):
            key = affinity.key(self.binding.identity.client, self.sender, self.recipients[0].path)
            preferred = affinity.recall(key, self._context.runtime.deadlines.clock())
        self._search = Search(
            target,
            self.binding,
            self._context.attempts,
            needs_of(self.parameters),
            self.size_bytes,
            preferred,
        )

    def _come_again(self, recipients: list[Recipient], for_s: float, *, once: bool = False) -> None:
        """A temporary verdict, or doubt: the retry goes to the same backend first (policy/affinity.py)."""
        affinity, backend = self._context.router.affinity, self._backend
        assert backend is not None
        until_s = self._context.runtime.deadlines.clock() + for_s
        for recipient in recipients:
            key = affinity.key(self.binding.identity.client, self.sender, recipient.path)
            affinity.remember(key, backend.key, until_s, once=once)

    def data(self, slot: ReplySlot) -> None:
        """DATA, after every RCPT was answered. The slot is filled with 354, or with an error and the transaction ends."""
        self._slot = slot
        refusal = self._no_recipient()
        if refusal is not None:
            self._leave(closing=False)
            self._answer_and_end(refusal.wire, "no recipient was taken")
        elif self._answer is not None:
            self._answer_and_end(self._answer, "no attempt left")
        else:
            self._begin_body()

    def open_chunks(self, slot: ReplySlot) -> None:
        """The first BDAT. The slot is filled with nothing once octets may be read; what they come to is said per chunk."""
        self._slot = slot
        self.chunked = True
        refusal = self._no_recipient()
        if refusal is not None:
            self._leave(closing=False)
            self._answer = refusal.wire
        if self._answer is not None:
            self._relay = Relay(self._context.replay_budget, None, chunked=True, binary=True)
            self._relay.forgo_replay()
            slot.fill(b"")
        else:
            self._begin_body()

    def _no_recipient(self) -> Refusal | None:
        """RFC 5321 4.1.1.4 leaves 503 or 554; where a recipient only has to wait, so has the message."""
        if self.accepted:
            return None
        waits = any(r.slot.wire is not None and r.slot.wire[:1] == b"4" for r in self.recipients)
        return Refusal.NO_RECIPIENTS_NOW if waits else Refusal.NO_VALID_RECIPIENTS

    def _begin_body(self) -> None:
        attempt = self._attempt
        assert attempt is not None
        self._asked_s = self._context.runtime.deadlines.clock()
        if attempt.step is Step.ENVELOPE and not attempt.awaits_recipients:
            attempt.budget_end_s = self._asked_s + attempt.backend.budget.data_s
            attempt.begin_body()
        # else a new attempt is coming up: the body follows when its envelope was answered

    def flush(self) -> None:
        """The turn is over: one write for all commands, or all of the body, that it has for the backend."""
        if self._attempt is not None:
            self._attempt.flush()
        if self._relay is not None:
            self._relay.flush()

    def body(self, data: bytes) -> bytes:
        """Content behind DATA as it came; what is behind the end of data is given back, and `in_body` is then False."""
        relay = self._relay
        assert relay is not None
        piece, rest = relay.feed(data)
        self._check_body(relay)
        if relay.ended:
            self._slot = ReplySlot()
            self._body_ended(relay, piece)
        else:
            self._pass_on(relay, piece)
        return rest

    def chunk(self, octets: bytes) -> None:
        """Octets of a BDAT chunk."""
        relay = self._relay
        assert relay is not None
        piece = relay.feed_chunk(octets)
        self._check_body(relay)
        self._pass_on(relay, piece)

    def chunk_ended(self, slot: ReplySlot, octets: int, *, last: bool) -> None:
        """All octets of a chunk were read. The slot is filled now, or, for the last one, with the final reply."""
        relay = self._relay
        assert relay is not None
        if not last:
            slot.fill(CHUNK_TAKEN % octets if self._answer is None else self._answer)
            return
        self._slot = slot
        piece = relay.end_chunks()
        self._check_body(relay)
        self._body_ended(relay, piece)

    @property
    def slot(self) -> ReplySlot:
        """The place of the reply to the end of data, once it was read."""
        assert self._slot is not None
        return self._slot

    def reset(self, cause: str) -> None:
        """RSET, HELO, EHLO or QUIT between commands; between two chunks, too."""
        assert not self.terminator_left
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
                self._context.refused(Refusal.QUEUE_FULL.label)
                self._stick(Refusal.QUEUE_FULL.wire)
        else:
            self._stick(Refusal.NO_BACKEND.wire)

    def room_found(self) -> bool:
        assert self._search is not None
        backend = self._search.next_backend()
        if backend is None:
            return False
        self._place = None
        self._begin(backend, wants_fresh=False)
        self.flush()
        return True

    def waited_too_long(self) -> None:
        self._place = None
        self._context.refused(Refusal.QUEUE_TIMEOUT.label)
        self._stick(Refusal.QUEUE_TIMEOUT.wire)
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
        if self._trace is None and backend.settings.adds_received:
            self._make_trace()
        if not self._client_waits:
            self._asked_s = self._context.runtime.deadlines.clock()
        budget_s = backend.budget.data_s if self._slot is not None else backend.budget.rcpt_s
        self._attempt = Attempt(
            self._context,
            self,
            backend,
            budget_end_s=self._asked_s + budget_s,
            others_left=search.others_left,
            wants_fresh=wants_fresh,
        )
        self._attempt.start()

    def _make_trace(self) -> None:
        """Once, so that a replay sends the same bytes."""
        context = self._context
        line = self.binding.identity.received_line(
            context.hostname, self._reporter.transaction_id, context.runtime.date()
        )
        self._trace = Trace(line, context.hostname)
        self.trace_bytes = len(line)

    @property
    def _client_waits(self) -> bool:
        """It asked something. Else an attempt begins because a backend was lost: between commands or in the body."""
        slot = self._slot
        return (slot is not None and slot.wire is None) or any(r.slot.wire is None for r in self.recipients)

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
        has_reply = trouble.reply is not None
        command = trouble.command
        following = search.attempts.after(attempt.backend.key, command, decision, has_reply=has_reply)
        possible = {Next.SAME_FRESH: self._can_refresh, Next.OTHER: self._can_ask_another}.get(following)
        if possible is not None and not possible():
            following = Attempts.without_other(decision, has_reply=has_reply)
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
                self._stick(_REFUSAL_OF.get(decision.reason, Refusal.NO_BACKEND).wire)
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
            self._stick(refusal.wire)

    def _hold_body(self) -> None:
        """The client's body waits until the new attempt has caught up."""
        if self.in_body and self._client is not None:
            self._client.backend_writable(False)

    def _relay_words(self, trouble: Trouble) -> None:
        """The backend's own words answer the command, and, where they end all, everything that follows."""
        attempt, command, reply = self._attempt, trouble.command, trouble.reply
        assert attempt is not None and reply is not None
        wire = _relayed(reply)
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
            self._answer_and_end(wire, "no attempt left")

    def _refuse(self, recipient: Recipient, wire: bytes) -> None:
        self.refused += 1
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

    # -- what attempts tell -------------------------------------------------------------------------

    def answered_well(self, command: object) -> None:
        assert self._search is not None
        for suspicion in self._search.attempts.succeeded(command):
            self._reporter.proven(suspicion)

    def recipient_accepted(self, recipient: Recipient, reply: Reply) -> None:
        recipient.accepted = True
        self.accepted += 1
        recipient.slot.fill(reply.wire())

    def recipient_refused(self, recipient: Recipient, reply: Reply) -> None:
        if reply.code in (450, 451):
            self._come_again([recipient], TEMPFAIL_AGE_S)
        self._refuse(recipient, _relayed(reply))

    def envelope_answered(self) -> None:
        """In a replay the client asked for more already."""
        if self._slot is not None or self._relay is not None:
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

    # -- body and final reply -----------------------------------------------------------------------

    def _check_body(self, relay: Relay) -> None:
        """A message that cannot be taken whatever follows: its end is awaited before the client is told (design 4.12)."""
        if self._answer is not None:
            return
        context = self._context
        limit = context.message_size_limit_bytes
        trace = relay.trace
        if limit is not None and relay.body_bytes > limit:
            refusal = Refusal.TOO_LARGE
        elif relay.lawless and context.rejects_bare_newline:
            refusal = Refusal.BARE_NEWLINE
        elif trace is not None and (
            trace.counter.own >= MAX_RECEIVED_OWN or trace.counter.total >= MAX_RECEIVED_ALL
        ):
            refusal = Refusal.MAIL_LOOP
        else:
            return
        context.refused(refusal.label)
        self._leave(closing=True)
        relay.forgo_replay()
        self._answer, self._refused_by_us = refusal.wire, True

    def _pass_on(self, relay: Relay, piece: bytes) -> None:
        if piece and self._answer is None:
            relay.send(piece)
            if not relay.replayable and (relay.connection is None or not relay.caught_up):
                self._leave(closing=False)
                self._stick(Refusal.BACKEND_LOST.wire)

    def _body_ended(self, relay: Relay, last: bytes) -> None:
        self._asked_s = self._context.runtime.deadlines.clock()
        if self._answer is not None:
            outcome = TransactionOutcome.REFUSED if self._refused_by_us else None
            self._answer_and_end(self._answer, "message refused" if outcome else "no attempt left", outcome)
        elif relay.connection is not None and relay.caught_up:
            relay.keep(last)
            self._finish(relay, last)
        else:
            relay.keep(last)  # an attempt is coming up, or catching up: it gets all of it
            if not relay.replayable:
                self._leave(closing=False)
                self._answer_and_end(
                    Refusal.BACKEND_LOST.wire, "backend lost, message too large to send again"
                )

    def _finish(self, relay: Relay, last: bytes) -> None:
        assert self._attempt is not None
        self._attempt.terminator_leaves()
        relay.finish(last, Command.FINAL)

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
        if self._worth_another(reply, attempt):
            self._full_told = True
            self._asked_s = self._context.runtime.deadlines.clock()
            self._next_attempt(backend, Phase.FINAL, Reason.STORAGE, fresh=False)
            return
        enhanced = reply.enhanced
        if reply.code in (421, 451) and enhanced is not None and enhanced.startswith(b"4.3."):
            # ran: Postfix with a slow filter said 451 4.3.0 for a message that the filter had taken (design 4.3).
            self._reporter.attempt_failed(
                backend,
                AttemptOutcome.IN_DOUBT,
                Phase.FINAL,
                Reason.VERDICT,
                reply.text_line(),
                counted=False,
            )
        if reply.code in (450, 451):
            self._come_again([r for r in self.recipients if r.accepted], TEMPFAIL_AGE_S)
        self._answer_and_end(_relayed(reply), "backend said so")

    def _worth_another(self, reply: Reply, attempt: Attempt) -> bool:
        """The one exception after the terminator: 452 says that nothing was stored (design 4.3). Tried once elsewhere."""
        search, relay = self._search, self._relay
        assert search is not None and relay is not None
        return (
            reply.code == 452
            and not self._full_told
            and attempt.final_wait_s < FULL_RETRY_WITHIN_S
            and search.attempts.count < search.attempts.limit
            and self._can_ask_another()
        )

    def final_missing(self, reason: Reason, detail: bytes) -> None:
        """All of the message was handed over and no answer came (RFC 1047, design 4.7)."""
        attempt = self._attempt
        assert attempt is not None
        self._phase = Phase.FINAL
        self._reporter.attempt_failed(attempt.backend, AttemptOutcome.IN_DOUBT, Phase.FINAL, reason, detail)
        self._leave(closing=True)
        self._come_again(
            [r for r in self.recipients if r.accepted], self._context.in_doubt_remember_s, once=True
        )
        self._answer_and_end(
            Refusal.IN_DOUBT.wire, "no reply after the end of data", TransactionOutcome.IN_DOUBT
        )

    # -- the end ------------------------------------------------------------------------------------

    def _answer_and_end(self, wire: bytes, cause: str, outcome: TransactionOutcome | None = None) -> None:
        assert self._slot is not None
        self._slot.fill(wire)
        if self._client is None:
            cause += "; the client had left"
        self._end(outcome or _OUTCOME_OF_CLASS[wire[:1]], cause, wire)

    @property
    def _first_recipient(self) -> bytes:
        """For the log: the first that was accepted, or, if nobody was, the first that was asked for."""
        asked = self.recipients[0].path if self.recipients else b""
        return next((r.path for r in self.recipients if r.accepted), asked)

    def _end(self, outcome: TransactionOutcome, cause: str, wire: bytes) -> None:
        assert not self.ended
        self.ended = True
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
            refused=self.refused,
            message_bytes=relay.sent_bytes if relay is not None else 0,
            attempts=self._attempts_made,
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
