"""The body of one message on its way from the client to the backend of the present attempt.

Owns the canonical reading of the body, what can be replayed of it, and its size. Does not own attempts or replies.
Invariant: bytes reach a backend in order, once per attempt; the terminator only through finish().
"""

from __future__ import annotations

from smtplb.dataplane.connection import Connection
from smtplb.dataplane.replay import ReplayBudget, ReplayBuffer
from smtplb.smtp.body import TERMINATOR, BodyReader

JOIN_BELOW_BYTES = 16384  # a copy this small is cheaper than a second element of a gathering write


class Relay:
    """`connection` is None between attempts, and for good once the message cannot be taken any more."""

    __slots__ = ("_reader", "_replay", "connection", "sent_bytes")

    def __init__(self, budget: ReplayBudget) -> None:
        self._reader = BodyReader()
        self._replay = ReplayBuffer(budget)
        self.connection: Connection | None = None
        self.sent_bytes = 0  # in the present attempt

    @property
    def ended(self) -> bool:
        """The client's end of data was read."""
        return self._reader.ended

    @property
    def lawless(self) -> bool:
        return self._reader.lawless

    @property
    def body_bytes(self) -> int:
        """Octets of the client's body so far."""
        return self._reader.raw_bytes

    @property
    def replayable(self) -> bool:
        return self._replay.complete

    def attach(self, connection: Connection) -> bytes:
        """A backend has said 354. What was read so far is to be sent first, by send_again() or finish()."""
        assert self._replay.complete
        self.connection = connection
        self.sent_bytes = 0
        return b"".join(self._replay.chunks)

    def send_again(self, chunk: bytes) -> None:
        """What attach() gave, while the client's body has not ended."""
        assert self.connection is not None
        if chunk:
            self.sent_bytes += len(chunk)
            self.connection.write_body(chunk)

    def detach(self) -> None:
        """The attempt is over; what follows is only kept."""
        self.connection = None

    def forgo_replay(self) -> None:
        """Nothing will be replayed: give the memory back."""
        self._replay.drop()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Read raw input: (chunk not sent yet, input behind the end of data). The caller sends or finishes with the chunk."""
        return self._reader.feed(data)

    def send(self, chunk: bytes) -> None:
        """Pass a chunk on, or only keep it while there is no backend."""
        self._replay.keep(chunk)
        if self.connection is not None:
            self.sent_bytes += len(chunk)
            self.connection.write_body(chunk)

    def finish(self, last_chunk: bytes, token: object) -> None:
        """Send the last chunk and the terminator in one write. From here on the message may have been taken."""
        connection = self.connection
        assert connection is not None and self._reader.ended
        self.sent_bytes += len(last_chunk)
        if len(last_chunk) < JOIN_BELOW_BYTES:
            connection.write_end([last_chunk + TERMINATOR], token)
        else:
            connection.write_end([last_chunk, TERMINATOR], token)
