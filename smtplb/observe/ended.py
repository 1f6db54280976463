"""The two events that mail itself makes: a transaction ended, a session ended.

Apart from the others (events.py) because there is one for each message and connection: plain classes, so that they can be compiled
and cost next to nothing to make. Invariant: as in events.py.
"""

from __future__ import annotations

from smtplb.observe.outcomes import TransactionOutcome


class TransactionEnded:
    """
    transaction_id       session_id plus a serial
    recipients           accepted ones
    pool, backend        "" when none was chosen
    phase                the last one reached
    cause                why it ended so: "backend said so", "client reset", "no usable backend", ...
    reply                last reply the client got for it, first line, without CRLF; b"" if none
    message_bytes        body octets sent to the backend
    recipient            the first accepted one; if nobody was accepted, the first one asked for
    digest               of the body of a message in doubt, hexadecimal
    """

    __slots__ = (
        "attempts",
        "backend",
        "cause",
        "client",
        "digest",
        "duration_s",
        "helo",
        "listener",
        "message_bytes",
        "outcome",
        "phase",
        "pool",
        "recipient",
        "recipients",
        "recipients_refused",
        "reply",
        "sender",
        "session_id",
        "transaction_id",
    )

    def __init__(
        self,
        *,
        listener: str,
        session_id: str,
        transaction_id: str,
        client: str,
        helo: bytes,
        sender: bytes,
        recipients: int,
        recipients_refused: int,
        pool: str,
        backend: str,
        outcome: TransactionOutcome,
        phase: str,
        cause: str,
        reply: bytes,
        message_bytes: int,
        attempts: int,
        duration_s: float,
        recipient: bytes = b"",
        digest: str = "",
    ) -> None:
        self.listener = listener
        self.session_id = session_id
        self.transaction_id = transaction_id
        self.client = client
        self.helo = helo
        self.sender = sender
        self.recipients = recipients
        self.recipients_refused = recipients_refused
        self.pool = pool
        self.backend = backend
        self.outcome = outcome
        self.phase = phase
        self.cause = cause
        self.reply = reply
        self.message_bytes = message_bytes
        self.attempts = attempts
        self.duration_s = duration_s
        self.recipient = recipient
        self.digest = digest


class SessionEnded:
    __slots__ = ("client", "duration_s", "listener", "reason", "session_id", "transactions")

    def __init__(
        self,
        listener: str,
        session_id: str,
        client: str,
        reason: str,
        transactions: int,
        duration_s: float,
    ) -> None:
        self.listener = listener
        self.session_id = session_id
        self.client = client
        self.reason = reason
        self.transactions = transactions
        self.duration_s = duration_s
