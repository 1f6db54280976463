"""The body of one message on its way from the client to the backend of the present attempt.

Owns the canonical reading of the body, its framing towards the backend (DATA or BDAT), what can be replayed of it, and the
trace line in front. Does not own attempts or replies.
Invariant: the same canonical bytes reach a backend in order, once per attempt; the end of the message only through finish().
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from smtplb.dataplane.connection import Connection
from smtplb.dataplane.replay import ReplayBudget, ReplayBuffer
from smtplb.smtp.body import TERMINATOR, BodyReader
from smtplb.smtp.chunks import ChunkReader, DotStuffer, ReceivedCounter

CATCH_UP_BYTES: Final = 256 * 1024  # of a replay in one write
JOIN_BELOW_BYTES: Final = 16384  # a copy this small is cheaper than a second element of a gathering write


class Trace:
    """The Received line that goes in front, and the count of those that are there already (RFC 5321 4.4, 6.3)."""

    __slots__ = ("counter", "line")

    def __init__(self, line: bytes, mark: bytes) -> None:
        self.line = line
        self.counter = ReceivedCounter(mark)


class Relay:
    """`connection` is None between attempts, and for good once the message cannot be taken any more.

    `chunked`: the client sends BDAT. `binary`: it declared BODY=BINARYMIME.
    """

    __slots__ = (
        "_caught_up_bytes",
        "_pending_trace",
        "_reader",
        "_replay",
        "_stuffer",
        "_trace_bytes",
        "_unsent",
        "caught_up",
        "chunked",
        "connection",
        "sent_bytes",
        "trace",
    )

    def __init__(self, budget: ReplayBudget, trace: Trace | None, *, chunked: bool, binary: bool) -> None:
        self._reader: BodyReader | ChunkReader = ChunkReader(binary=binary) if chunked else BodyReader()
        self._replay = ReplayBuffer(budget)
        self._stuffer: DotStuffer | None = None  # of the present attempt: chunks go out as DATA
        self._pending_trace = trace.line if trace is not None else b""
        self._unsent: list[bytes] = []  # pieces of this turn
        self._trace_bytes = 0  # of our own in front of the body
        self.trace = trace
        self.chunked = chunked
        self.connection: Connection | None = None
        self.sent_bytes = 0  # in the present attempt
        self._caught_up_bytes = 0  # of what is kept, how much the present attempt was sent
        self.caught_up = True  # the present attempt was sent all that was read

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

    # -- reading -----------------------------------------------------------------------------------

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Read raw input behind DATA: (canonical piece not sent yet, input behind the end of data)."""
        assert isinstance(self._reader, BodyReader)
        piece, rest = self._reader.feed(data)
        return self._with_trace(piece, last=self._reader.ended), rest

    def feed_chunk(self, data: bytes) -> bytes:
        """Read octets of a BDAT chunk: the canonical piece not sent yet."""
        assert isinstance(self._reader, ChunkReader)
        return self._with_trace(self._reader.feed(data), last=False)

    def end_chunks(self) -> bytes:
        """The last chunk is complete: what was held back."""
        assert isinstance(self._reader, ChunkReader)
        return self._with_trace(self._reader.finish(), last=True)

    def _with_trace(self, piece: bytes, *, last: bool) -> bytes:
        """The trace line goes in front of the first octet. A body that starts with a blank would continue it: a CRLF between."""
        if self.trace is not None:
            self.trace.counter.feed(piece)
        if not self._pending_trace or not (piece or last):
            return piece
        line, self._pending_trace = self._pending_trace, b""
        # Behind DATA a dot in front is taken away by the backend; a lone one is the end, or held until its next octet is there.
        first = piece[1:2] if piece.startswith(b".") and not self.chunked else piece[:1]
        if first in (b" ", b"\t"):
            line += b"\r\n"
        self._trace_bytes = len(line)
        return line + piece

    # -- sending -----------------------------------------------------------------------------------

    def attach(self, connection: Connection, *, as_chunks: bool) -> None:
        """A backend is ready for the body. What was read before is to be sent first: catch_up()."""
        assert self._replay.complete
        assert self.chunked or not as_chunks
        self.connection = connection
        self._stuffer = DotStuffer() if self.chunked and not as_chunks else None
        self.sent_bytes = self._caught_up_bytes = 0
        self.caught_up = self._replay.size_bytes == 0

    def catch_up(self) -> bytes | None:
        """Send on from what is kept while the backend takes it. The rest of it is given back once that is all that is left,
        to be sent or finished with by the caller; None: go on when the backend is writable."""
        connection = self.connection
        assert connection is not None
        while connection.writable:
            batch = self._next_batch()
            if self._caught_up_bytes == self._replay.size_bytes:
                self.caught_up = True
                return batch
            self._write(batch)
        return None

    def _next_batch(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while size < CATCH_UP_BYTES and (piece := self._replay.piece_at(self._caught_up_bytes)):
            pieces.append(piece)
            size += len(piece)
            self._caught_up_bytes += len(piece)
        return b"".join(pieces)

    def detach(self) -> None:
        """The attempt is over; what follows is only kept."""
        self.connection = None
        self._unsent.clear()

    def digest(self) -> str:
        """BLAKE2b of the canonical body without our trace line, to find a message in doubt again at a backend; "" if it was too
        large to be kept."""
        if not self._replay.complete:
            return ""
        hashed = blake2b(digest_size=16)
        skip = self._trace_bytes
        at = 0
        while piece := self._replay.piece_at(at):
            at += len(piece)
            hashed.update(piece[skip:])
            skip = max(skip - len(piece), 0)
        return hashed.hexdigest()

    def forgo_replay(self) -> None:
        """Nothing will be replayed: give the memory back."""
        self._replay.drop()

    def send_again(self, batch: bytes) -> None:
        """What catch_up() gave back, while the client's body has not ended."""
        if batch:
            self._write(batch)

    def send(self, piece: bytes) -> None:
        """Pass a piece on with flush(), or only keep it while there is no backend or it is still being caught up with."""
        self._replay.keep(piece)
        if self.connection is not None and piece and self.caught_up:
            self._unsent.append(piece)

    def flush(self) -> None:
        """The turn is over: its pieces leave in one write, and as one chunk where they go as chunks."""
        if self._unsent:
            self._write(self._taken(b""))

    def _taken(self, last: bytes) -> bytes:
        """The pieces of this turn and `last`."""
        unsent = self._unsent
        if not unsent:
            return last
        taken = unsent[0] if len(unsent) == 1 and not last else b"".join([*unsent, last])
        unsent.clear()
        return taken

    def keep(self, piece: bytes) -> None:
        """Only keep it: the end of the message goes by finish()."""
        self._replay.keep(piece)

    def _write(self, piece: bytes) -> None:
        connection = self.connection
        assert connection is not None
        self.sent_bytes += len(piece)
        if not self.chunked:
            connection.write_body(piece)
        elif self._stuffer is not None:
            connection.write_body(self._stuffer.feed(piece))
        else:
            connection.write_chunk(b"BDAT %d\r\n%s" % (len(piece), piece))

    def finish(self, last: bytes, token: object) -> None:
        """Send the last piece and the end of the message in one write. From here on the message may have been taken."""
        connection = self.connection
        assert connection is not None and self._reader.ended
        last = self._taken(last)
        self.sent_bytes += len(last)
        if not self.chunked:
            end = TERMINATOR
        elif self._stuffer is not None:
            last = self._stuffer.feed(last)
            end = self._stuffer.finish() + TERMINATOR
        else:
            connection.write_end([b"BDAT %d LAST\r\n%s" % (len(last), last)], token)
            return
        connection.write_end([last + end] if len(last) < JOIN_BELOW_BYTES else [last, end], token)
