"""One AUTH exchange, relayed to a backend chosen for the session (design 4.2).

Owns the lease for the exchange and the order of challenge and response. Does not own the decision whether AUTH is allowed
(dialogue.py), nor the session's later transactions.
Invariant: payloads pass as they are and are kept nowhere; after success the connection belongs to the session for life.
"""

from __future__ import annotations

from typing import Final, Protocol

from smtplb.dataplane.attempt import ReplySlot
from smtplb.dataplane.backend import Backend, Seeker
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection, Failure
from smtplb.dataplane.context import ListenerContext
from smtplb.dataplane.deadlines import NEVER
from smtplb.dataplane.router import Target
from smtplb.observe.events import AttemptFailed, BackendBlamed
from smtplb.observe.outcomes import AttemptOutcome, Phase
from smtplb.policy.outcome import Blame, Reason, classify_opening
from smtplb.policy.refusal import Refusal
from smtplb.policy.retry import attempt_deadline_s
from smtplb.smtp.replies import Reply

_AUTH: Final = "auth"  # the token of every line of the exchange


class Client(Protocol):
    id: str
    client_text: str

    def turn(self) -> None: ...


class Authentication(Seeker):
    """See the module. `over`: the last reply of the exchange was given; `succeeded` then tells which."""

    __slots__ = (
        "_client",
        "_connection",
        "_context",
        "_first_line",
        "_skip",
        "_slot",
        "_target",
        "backend",
        "over",
        "seeking",
        "succeeded",
    )

    def __init__(
        self,
        context: ListenerContext,
        client: Client,
        binding: Binding,
        target: Target,
        first_line: bytes,
        slot: ReplySlot,
    ) -> None:
        # A failed attempt of somebody else must not count here: an exchange has a connection of its own.
        super().__init__(binding, wants_fresh=True)
        self._context = context
        self._client: Client | None = client
        self._target = target
        self._first_line = first_line
        self._slot: ReplySlot | None = slot
        self._skip: list[Backend] = []
        self._connection: Connection | None = None
        self.backend: Backend | None = None
        self.over = False
        self.seeking = False
        self.succeeded = False

    def start(self) -> None:
        """Ask the backend that the target chooses; the slot is filled now or later."""
        backend = self._target.choose(self._skip) if len(self._skip) < self._context.attempts else None
        if backend is None:
            self._end(Refusal.AUTH_NOT_NOW.wire)
            return
        self._skip.append(backend)
        self.backend = backend
        self.seeking = True
        connection = backend.lease(self)
        assert connection is None
        deadlines = self._context.runtime.deadlines
        timeouts = backend.settings.timeouts
        deadlines.set(
            self,
            attempt_deadline_s(
                deadlines.clock(),
                timeouts.connect_s + 2 * timeouts.greeting_s,
                deadlines.clock() + backend.budget.rcpt_s,
                others_left=self._target.others_left(self._skip),
            ),
        )

    def respond(self, line: bytes, slot: ReplySlot) -> None:
        """The client's answer to a challenge."""
        self._slot = slot
        if self._connection is None:  # lost meanwhile
            self._end(Refusal.AUTH_NOT_NOW.wire)
            return
        self._send(line)

    def abandon(self) -> None:
        """The client is gone, or did not keep to the exchange."""
        self._client = None
        self.over = True
        if self.seeking and self.backend is not None:
            self._stop_seeking()
            self.backend.cancel(self)
        self._drop(abort=True)

    # -- the backend's side -------------------------------------------------------------------------

    def lease_granted(self, connection: Connection) -> None:
        self._stop_seeking()
        self._connection = connection
        self._send(self._first_line)

    def lease_failed(self, failure: Failure) -> None:
        self._stop_seeking()
        backend = self.backend
        assert backend is not None
        decision = classify_opening(failure.reason, failure.reply, identity_sent=failure.identity_sent)
        backend.attempts[AttemptOutcome.FAULT] += 1
        client = self._client
        pool, name = backend.key
        session_id = client.id if client is not None else ""
        client_text = client.client_text if client is not None else ""
        blamed = decision.blame is Blame.AT_ONCE
        runtime = self._context.runtime
        runtime.log(
            AttemptFailed(
                pool=pool,
                backend=name,
                session_id=session_id,
                client=client_text,
                outcome=AttemptOutcome.FAULT,
                phase=failure.phase.value,
                reason=failure.reason.value,
                detail=failure.detail,
                blamed=blamed,
            )
        )
        if blamed:
            runtime.emit(BackendBlamed(pool, name, session_id, client_text, failure.reason.value))
        self.start()
        if self.over and client is not None:
            client.turn()

    def deadline_passed(self, now: float) -> None:
        assert self.backend is not None
        self.backend.cancel(self)
        self.lease_failed(Failure(Phase.CONNECT, Reason.TIMEOUT, b"no connection in time"))

    def reply_received(self, connection: Connection, token: object, reply: Reply) -> None:
        backend = self.backend
        assert backend is not None
        if token is None:  # out of step: its next words would be taken for an answer
            self._drop(abort=True)
            return
        connection.expect_until(Phase.MAIL, NEVER)
        if reply.code == 334:
            self._fill(reply.wire())
            return
        if reply.code == 235:
            self.succeeded = True
            connection.binding = self.binding
            self.binding.pinned, self.binding.pinned_on = backend, connection
            self._connection = None
            backend.release(connection)
        else:
            self._drop(abort=reply.code < 400)
        # 421 is about the backend's channel; 3xx and other 2xx are no answers to AUTH.
        relayable = reply.code == 235 or (400 <= reply.code < 600 and reply.code != 421)
        self._end(reply.wire() if relayable else Refusal.AUTH_NOT_NOW.wire)

    def replies_done(self) -> None:
        if self._client is not None:
            self._client.turn()

    def connection_broken(self, connection: Connection, failure: Failure) -> None:
        self._connection = None
        if self._slot is not None:
            self._end(Refusal.AUTH_NOT_NOW.wire)
            if self._client is not None:
                self._client.turn()

    def backend_writable(self, writable: bool) -> None:
        """Lines of an exchange are few and bounded."""

    # -- inside -------------------------------------------------------------------------------------

    def _send(self, line: bytes) -> None:
        connection, backend = self._connection, self.backend
        assert connection is not None and backend is not None
        now = self._context.runtime.deadlines.clock()
        connection.expect_until(
            Phase.MAIL, now + min(backend.settings.timeouts.mail_s, backend.budget.rcpt_s)
        )
        connection.send([(_AUTH, line + b"\r\n")])

    def _stop_seeking(self) -> None:
        self.seeking = False
        self._context.runtime.deadlines.disarm(self)

    def _fill(self, wire: bytes) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.fill(wire)

    def _end(self, wire: bytes) -> None:
        self.over = True
        self._fill(wire)

    def _drop(self, *, abort: bool) -> None:
        """A connection on which an exchange failed or stopped is not shared. `abort`: the backend may still await a response,
        and would take our QUIT for one."""
        connection, self._connection = self._connection, None
        if connection is not None and self.backend is not None:
            (self.backend.abort if abort else self.backend.retire)(connection)
