"""One transaction as the client leads it: from MAIL to the final reply or a reset.

Owns the answers to RCPT, DATA, BDAT and RSET, the limits on a message, and what a final reply means for the client. Does not
own its course among backends (course.py), nor the client's input and output (session.py).
Invariant: every command of the client gets exactly one answer; what cannot be taken is read to its end before the client
hears so.
"""

from __future__ import annotations

from typing import Final

from smtplb.dataplane.attempt import Attempt, Recipient, ReplySlot, Step
from smtplb.dataplane.course import Client, Course
from smtplb.dataplane.relay import Relay
from smtplb.dataplane.router import Target
from smtplb.dataplane.search import Search
from smtplb.observe.outcomes import AttemptOutcome, Phase, TransactionOutcome
from smtplb.policy.affinity import TEMPFAIL_AGE_S
from smtplb.policy.outcome import Command, Reason, words_for_client
from smtplb.policy.refusal import CHUNK_TAKEN, Refusal
from smtplb.smtp.extensions import Parameters, needs_of
from smtplb.smtp.replies import Reply

__all__ = ["Client", "Transaction"]

FULL_RETRY_WITHIN_S: Final = (
    60.0  # 452 to the final dot is tried elsewhere while the client has not waited longer
)
MAX_RECEIVED_OWN: Final = 3  # our own trace lines in a message: it has come round
MAX_RECEIVED_ALL: Final = 50  # RFC 5321 6.3: at least 100 hops is a large number; Postfix hopcount_limit 50


# Members of an enumeration of strings are looked up by name each time, compiled, too: here once.
_FINAL: Final = Phase.FINAL
_OK: Final = AttemptOutcome.OK


class Transaction(Course):
    """See the module. The dialogue calls recipient, data, body or chunks, flush, reset, client_gone and cut."""

    __slots__ = ()

    # -- the dialogue asks --------------------------------------------------------------------------

    @property
    def target_open(self) -> bool:
        """No recipient has fixed the target yet, and none is about to."""
        return self.accepted == 0 and not self._awaits_recipients

    @property
    def _awaits_recipients(self) -> bool:
        """A backend is asked, or will be, for recipients: the client's, or once more in a further attempt."""
        return self._place is not None or (self._attempt is not None and self._attempt.awaits_recipients)

    def recipient(self, path: bytes, parameters: Parameters, target: Target, slot: ReplySlot) -> None:
        """RCPT, after relay guard and route. The slot is filled now or later."""
        recipient = Recipient(path, parameters, slot)
        self.recipients.append(recipient)
        if self._search is None or (self._search.target is not target and self.target_open):
            self._retarget(target)
        if parameters and not self._can_take(needs_of(parameters)):
            self._refuse(recipient, Refusal.NO_BACKEND.wire)
            return
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

    def _can_take(self, needs: frozenset[bytes]) -> bool:
        """What a further recipient asks for, the backend that has the others may lack."""
        attempt, search = self._attempt, self._search
        assert search is not None
        connection = attempt.connection if attempt is not None else None
        if connection is not None and not all(need in connection.capabilities for need in needs):
            return False
        search.needs |= needs
        return True

    def _retarget(self, target: Target) -> None:
        """The first recipient, or nobody was accepted where those before it went: this one starts afresh."""
        self._leave(closing=False)
        self._attempt = None
        self._answer = None
        affinity = self._context.router.affinity
        preferred = None
        if len(affinity):
            key = affinity.key(self.binding.identity.client, self.sender, self.recipients[-1].path)
            preferred = affinity.recall(key, self._context.runtime.deadlines.clock())
        self._search = Search(
            target,
            self.binding,
            self._context.attempts,
            needs_of(self.parameters),
            self.size_bytes,
            preferred,
        )

    def data(self, slot: ReplySlot) -> None:
        """DATA, maybe before every RCPT was answered. The slot is filled with 354, or with an error and the transaction ends."""
        self._slot = slot
        if self._awaits_recipients:
            self._asked_s = self._context.runtime.deadlines.clock()
            if self._attempt is not None and self._recipients_due:
                self._attempt.data_follows()
            # else nothing is said ahead: in a replay, or while no backend has room. envelope_answered() goes on.
        elif not self.accepted:
            self.nobody_accepted()
        elif self._answer is not None:
            self._answer_and_end(self._answer, "no attempt left")
        else:
            self._begin_body()

    def nobody_accepted(self) -> None:
        refusal = self._no_recipient()
        assert refusal is not None
        self._leave(closing=False)
        self._context.refused(refusal.label)
        self._answer_and_end(refusal.wire, "no recipient was taken")

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

    def recipient_denied(self, path: bytes, wire: bytes) -> None:
        """A RCPT that the dialogue refused: it is part of the transaction's story all the same."""
        self.refused_by_us += 1
        self._last_refusal, self._refusal_is_ours = wire, True
        self._first_refused = self._first_refused or path

    def reset(self, cause: str) -> None:
        """RSET, HELO, EHLO or QUIT between commands; between two chunks, too."""
        assert not self.terminator_left
        self._leave(closing=False)
        self._abandoned(cause)

    def client_gone(self, cause: str) -> None:
        """The client is lost. Before our terminator left nothing may be completed (design 4.6); after it the late reply is
        awaited and recorded (design 4.7)."""
        self._client = None
        if self.ended or self.terminator_left:
            return
        self._leave(closing=False)
        self._abandoned(cause)

    def cut(self) -> None:
        """We are stopping and the time for transactions is over; those whose terminator left may go on."""
        if not self.ended and not self.terminator_left:
            self._leave(closing=False)
            self._end(TransactionOutcome.TEMPFAIL, "shutdown", Refusal.SHUTTING_DOWN.wire)

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
                self._give_up(Refusal.BACKEND_LOST)

    def _body_ended(self, relay: Relay, last: bytes) -> None:
        self._asked_s = self._context.runtime.deadlines.clock()
        if self._attempts_made > 1 and self._client is not None and self._client.has_reset():
            # While an attempt was repeated the client was not read: its reset waits behind its terminator (design 4.6).
            self.client_gone("client lost")
            return
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
                self._context.refused(Refusal.BACKEND_LOST.label)
                self._answer_and_end(
                    Refusal.BACKEND_LOST.wire, "backend lost, message too large to send again"
                )

    def final_answered(self, reply: Reply) -> None:
        attempt = self._attempt
        assert attempt is not None
        backend = attempt.backend
        self._phase = _FINAL
        backend.final_s.observe(attempt.final_wait_s)
        if reply.code < 300:
            self.answered_well(Command.BODY)
            backend.attempts[_OK] += 1
            attempt.done(closing=False)
            self._answer_and_end(reply.wire(), "backend took it")
            return
        backend.attempts[AttemptOutcome.VERDICT] += 1
        attempt.done(closing=reply.code == 421)
        if self._worth_another(reply, attempt):
            self._full_told = True
            self._asked_s = self._context.runtime.deadlines.clock()
            self._next_attempt(backend, _FINAL, Reason.STORAGE, fresh=False)
            return
        enhanced = reply.enhanced
        if reply.code in (421, 451) and enhanced is not None and enhanced.startswith(b"4.3."):
            self._take_digest()
            # ran: Postfix with a slow filter said 451 4.3.0 for a message that the filter had taken (design 4.3).
            self._reporter.attempt_failed(
                backend,
                AttemptOutcome.IN_DOUBT,
                _FINAL,
                Reason.VERDICT,
                reply.text_line(),
                counted=False,
            )
        if reply.code in (450, 451):
            self._come_again([r for r in self.recipients if r.accepted], TEMPFAIL_AGE_S)
        self._answer_and_end(words_for_client(reply), "backend said so")

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
        self._phase = _FINAL
        self._reporter.attempt_failed(attempt.backend, AttemptOutcome.IN_DOUBT, _FINAL, reason, detail)
        self._leave(closing=True)
        self._come_again(
            [r for r in self.recipients if r.accepted], self._context.in_doubt_remember_s, once=True
        )
        self._context.refused(Refusal.IN_DOUBT.label)
        self._take_digest()
        self._answer_and_end(
            Refusal.IN_DOUBT.wire, "no reply after the end of data", TransactionOutcome.IN_DOUBT
        )

    def _take_digest(self) -> None:
        """By it the message in doubt is found again."""
        assert self._relay is not None
        self._digest = self._relay.digest()
