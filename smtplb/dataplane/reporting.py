"""What a transaction tells of itself: its attempts' failures, who is to blame, and its end.

Owns the making of events from a transaction's facts, and the counts per attempt. Does not own what happens in it.
Invariant: one TransactionEnded for each transaction; nothing of a body, nothing of AUTH.
"""

from __future__ import annotations

from typing import Final

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.context import ListenerContext
from smtplb.observe.ended import TransactionEnded
from smtplb.observe.events import AttemptFailed, BackendBlamed
from smtplb.observe.outcomes import AttemptOutcome, Phase, TransactionOutcome
from smtplb.policy.outcome import Reason
from smtplb.policy.retry import Suspicion

OUTCOME_OF_CLASS: Final = {  # of the last reply, by its first digit
    b"2": TransactionOutcome.OK,
    b"4": TransactionOutcome.TEMPFAIL,
    b"5": TransactionOutcome.PERMFAIL,
}


class Reporter:
    """The facts that every event of one transaction shares."""

    __slots__ = ("_client_text", "_context", "_helo", "_session_id", "_started_s", "transaction_id")

    def __init__(
        self, context: ListenerContext, session_id: str, serial: int, client_text: str, helo: bytes
    ) -> None:
        self._context = context
        self._session_id = session_id
        self.transaction_id = f"{session_id}.{serial}"
        self._client_text = client_text
        self._helo = helo
        self._started_s = context.runtime.deadlines.clock()

    def attempt_failed(
        self,
        backend: Backend,
        outcome: AttemptOutcome,
        phase: Phase,
        reason: Reason,
        detail: bytes,
        *,
        blamed: bool = False,
        counted: bool = True,
    ) -> None:
        if counted:
            backend.attempts[outcome] += 1
        pool, name = backend.key
        runtime = self._context.runtime
        runtime.log(
            AttemptFailed(
                pool=pool,
                backend=name,
                session_id=self._session_id,
                client=self._client_text,
                outcome=outcome,
                phase=phase.value,
                reason=reason.value,
                detail=detail,
                blamed=blamed,
                transaction_id=self.transaction_id,
            )
        )
        if blamed:
            runtime.emit(BackendBlamed(pool, name, self._session_id, self._client_text, reason.value))

    def proven(self, suspicion: Suspicion) -> None:
        """Another backend answered the same command well: the one suspected was at fault (design 4.4)."""
        pool, backend = suspicion.backend
        reason = suspicion.decision.reason.value
        self._context.runtime.emit(BackendBlamed(pool, backend, self._session_id, self._client_text, reason))

    def ended(
        self,
        backend: Backend | None,
        outcome: TransactionOutcome,
        phase: Phase,
        cause: str,
        wire: bytes,
        *,
        sender: bytes,
        first_recipient: bytes,
        accepted: int,
        refused: int,
        message_bytes: int,
        attempts: int,
        digest: str,
    ) -> None:
        context = self._context
        pool, name = backend.key if backend is not None else ("", "")
        context.transaction_ended(
            TransactionEnded(
                listener=context.name,
                session_id=self._session_id,
                transaction_id=self.transaction_id,
                client=self._client_text,
                helo=self._helo,
                sender=sender,
                recipients=accepted,
                recipients_refused=refused,
                pool=pool,
                backend=name,
                outcome=outcome,
                phase=phase,
                cause=cause,
                reply=wire.partition(b"\r\n")[0],
                message_bytes=message_bytes,
                attempts=attempts,
                duration_s=context.runtime.deadlines.clock() - self._started_s,
                recipient=first_recipient,
                digest=digest,
            )
        )
