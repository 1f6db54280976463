"""dataplane/tls.py by itself: a peer's bytes in any pieces give the same words, in order, and one end.

The transport below is a fake: what is delivered in which piece, and when reading stops, is the test's to say.
"""

from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.dataplane.tls import TlsStream
from tests.effort import examples
from tests.protocol import certificates as certs


class Loop:
    """call_soon only."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class Raw:
    """The transport below. It delivers nothing while reading is paused."""

    def __init__(self) -> None:
        self.protocol: asyncio.Protocol | None = None
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = ""

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.writes.append(data)

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        self.closed = self.closed or "aborted"

    def is_closing(self) -> bool:
        return bool(self.closed)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class User:
    """Above it: remembers, and does what a test tells it to at each piece."""

    def __init__(self) -> None:
        self.stream: TlsStream | None = None
        self.heard = b""
        self.pieces = 0
        self.events: list[str] = []
        self.at_data: Callable[[], None] = lambda: None
        self.stays_at_end = True

    def tls_established(self) -> None:
        self.events.append("established")

    def tls_failed(self, words: bytes) -> None:
        self.events.append("failed")

    def data_received(self, data: bytes) -> None:
        assert data
        assert "end" not in self.events, "data behind the end"
        self.pieces += 1
        self.heard += data
        self.at_data()

    def eof_received(self) -> bool:
        self.events.append("end")
        return self.stays_at_end

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")

    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Peer:
    """The other side's engine."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else "mx.test"
        self.engine = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=name
        )
        self.heard = b""
        self.done = False
        self.closed = False

    def turn(self) -> bytes:
        """Handshake or read on; what it says to that."""
        try:
            if not self.done:
                self.engine.do_handshake()
                self.done = True
            while data := self.engine.read(65536):
                self.heard += data
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        return self.outgoing.read()

    def say(self, data: bytes, record_bytes: int = 16384) -> bytes:
        for at in range(0, len(data), record_bytes):
            self.engine.write(data[at : at + record_bytes])
        return self.outgoing.read()

    def close(self) -> bytes:
        try:
            self.engine.unwrap()
        except ssl.SSLError:
            pass
        return self.outgoing.read()


class Bench:
    """A stream, its user and its peer, past the handshake unless `begin` is False. `pieces`: sizes in which bytes come."""

    def __init__(
        self, *, server_side: bool = True, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, piece: int = 0
    ) -> None:
        server, client = certs.server("mx.test"), certs.client(maximum=maximum)
        self.loop, self.raw, self.user = Loop(), Raw(), User()
        self.piece = piece
        self.peer = Peer(client if server_side else server, server_side=not server_side)
        self.stream = TlsStream(
            cast("asyncio.AbstractEventLoop", self.loop),
            cast("asyncio.Transport", self.raw),
            self.user,
            server if server_side else client,
            server_side=server_side,
            server_hostname=None if server_side else "mx.test",
        )
        self.user.stream = self.stream
        self.stream.start()
        self.exchange()
        assert self.user.events == ["established"]
        assert self.peer.done

    def exchange(self) -> None:
        """Until nobody has anything to say."""
        while True:
            out = self.peer.turn()
            if out:
                self.deliver(out)
            self.loop.run()
            if not out and not self.raw.writes:
                return
            writes, self.raw.writes = self.raw.writes, []
            for data in writes:
                self.peer.incoming.write(data)

    def deliver(self, data: bytes) -> None:
        size = self.piece or len(data)
        for at in range(0, len(data), size):
            assert self.raw.reading, "a paused transport delivers nothing"
            if not self.raw.closed:
                assert self.raw.protocol is not None
                self.raw.protocol.data_received(data[at : at + size])

    def eof(self) -> bool:
        assert self.raw.protocol is not None
        return bool(self.raw.protocol.eof_received())


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_handshake_and_words_pass_byte_by_byte(server_side: bool, version: ssl.TLSVersion) -> None:
    bench = Bench(server_side=server_side, maximum=version, piece=1)
    bench.deliver(bench.peer.say(b"one\r\n") + bench.peer.say(b"two\r\n"))
    assert bench.user.heard == b"one\r\ntwo\r\n"
    bench.stream.write(b"answer\r\n")
    bench.exchange()
    assert bench.peer.heard == b"answer\r\n"
    bench.deliver(bench.peer.close())
    assert bench.user.events == ["established", "end"]


def test_a_record_takes_no_more_room_than_the_largest_has() -> None:
    """Room that is made and cut down leaves the C heap in pieces: resident memory crept up for twenty minutes under TLS."""
    bench = Bench()
    wire = bench.peer.say(b"one\r\n")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        bench.deliver(wire)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bench.user.heard == b"one\r\n"
    assert peak - before < 16384 + 4096


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40_000), st.integers(1, 16384)), max_size=4),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=8),
    st.sampled_from(["close_notify", "eof", "none"]),
)
def test_any_records_in_any_pieces_give_the_same_words(
    words: list[tuple[bytes, int]], sizes: list[int], end: str
) -> None:
    bench = Bench()
    wire = b"".join(bench.peer.say(data, max(size, len(data) // 200 + 1)) for data, size in words)
    if end == "close_notify":
        wire += bench.peer.close() + b"MAIL FROM:<evil@a.test>\r\n"
    at = 0
    while at < len(wire):
        size = sizes[at % len(sizes)]
        bench.deliver(wire[at : at + size])
        at += size
    if end == "eof":
        assert bench.eof()
    assert bench.user.heard == b"".join(data for data, _ in words)
    assert bench.user.events == ["established"] + ["end"] * (end != "none")
    bench.stream.write(b"last words\r\n")
    bench.exchange()
    assert bench.peer.heard == b"last words\r\n", "its other half is still open"


@settings(max_examples=examples(50))
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=10), st.integers(0, 10), st.booleans())
def test_a_user_that_stops_reading_loses_nothing(sizes: list[int], stop_at: int, ends: bool) -> None:
    """Also when the end comes behind what the engine still holds."""
    bench = Bench()
    body = b"".join(bytes([at % 256]) * size for at, size in enumerate(sizes))
    wire = b"".join(bench.peer.say(bytes([at % 256]) * size) for at, size in enumerate(sizes))

    def stop() -> None:
        if bench.user.pieces == stop_at:
            bench.stream.pause_reading()

    bench.user.at_data = stop
    bench.deliver(wire)
    before = bench.user.heard
    if ends:
        bench.eof()
    bench.loop.run()
    if not bench.raw.reading:
        assert bench.user.heard == before, "nothing is told while it does not read"
        bench.stream.resume_reading()
        if ends:
            bench.eof()  # a transport may tell it again
        bench.loop.run()
    assert bench.user.heard == body
    assert bench.user.events == ["established"] + ["end"] * ends


def test_resuming_inside_a_callback_does_not_call_back_inside_it() -> None:
    bench = Bench()
    depth = 0

    def at_data() -> None:
        nonlocal depth
        depth += 1
        assert depth == 1
        bench.stream.pause_reading()
        bench.stream.resume_reading()
        depth -= 1

    bench.user.at_data = at_data
    bench.deliver(bench.peer.say(b"x" * 50_000, 1000))
    bench.loop.run()
    assert bench.user.heard == b"x" * 50_000


def test_what_is_written_in_one_turn_leaves_in_one_write() -> None:
    bench = Bench()

    def answer() -> None:
        bench.stream.write(b"250 one\r\n")
        bench.stream.write(b"250 two\r\n")
        bench.stream.writelines([b"250 three\r\n", b"250 four\r\n"])

    bench.user.at_data = answer
    bench.deliver(bench.peer.say(b"a\r\n") + bench.peer.say(b"b\r\n"))
    assert len(bench.raw.writes) == 1
    bench.raw.writes.clear()
    bench.stream.write(b"x" * 100_000)
    assert len(bench.raw.writes) == 1


def test_many_small_records_are_one_piece_for_the_user() -> None:
    """Each piece costs a write to the backend and a place in the replay buffer; a client could send them by the thousand."""
    bench = Bench()
    bench.deliver(bench.peer.say(b"x" * 3000, 1))
    assert bench.user.heard == b"x" * 3000
    assert bench.user.pieces < 20


def test_close_says_close_notify_behind_all_else() -> None:
    bench = Bench()
    bench.stream.write(b"221 bye\r\n")
    bench.stream.close()
    bench.stream.write(b"never\r\n")
    assert bench.raw.closed == "closed"
    for data in bench.raw.writes:
        bench.peer.incoming.write(data)
    bench.peer.turn()
    assert bench.peer.heard == b"221 bye\r\n"
    assert bench.peer.closed


def test_after_close_and_abort_nothing_is_told_but_the_loss() -> None:
    for end in ("close", "abort"):
        bench = Bench()
        wire = bench.peer.say(b"x")
        getattr(bench.stream, end)()
        assert bench.raw.protocol is not None
        bench.raw.protocol.data_received(wire)
        bench.raw.protocol.eof_received()
        bench.stream.resume_reading()
        bench.loop.run()
        bench.raw.protocol.connection_lost(None)
        assert (bench.user.heard, bench.user.events) == (b"", ["established", "lost"])


def test_a_user_that_leaves_at_the_end_takes_leave_of_the_peer() -> None:
    bench = Bench()
    bench.user.stays_at_end = False
    bench.deliver(bench.peer.close())
    assert bench.raw.closed == "closed"
    assert len(bench.raw.writes) == 1, "our close_notify"


def test_nothing_that_comes_behind_the_end_is_kept() -> None:
    bench = Bench()
    bench.deliver(bench.peer.close())
    for _ in range(100):
        bench.deliver(b"x" * 100_000)
    assert bench.stream._incoming.pending < 100_000


@pytest.mark.parametrize("wrong", [0, 5, 30, -1])
def test_a_record_that_was_changed_is_the_end(wrong: int) -> None:
    bench = Bench()
    first = bench.peer.say(b"good\r\n")
    record = bytearray(bench.peer.say(b"changed on the way\r\n"))
    record[wrong] ^= 0x40
    bench.deliver(first + bytes(record) + bench.peer.say(b"behind\r\n"))
    assert bench.user.heard == b"good\r\n"
    assert bench.user.events in (["established", "end"], ["established"]), (
        "or it still waits for a longer record"
    )


def test_data_pipelined_with_the_last_flight_of_the_handshake_is_heard() -> None:
    """TLS 1.3 clients speak at once behind their Finished."""
    server, client = certs.server("mx.test"), certs.client()
    loop, raw, user = Loop(), Raw(), User()
    stream = TlsStream(
        cast("asyncio.AbstractEventLoop", loop),
        cast("asyncio.Transport", raw),
        user,
        server,
        server_side=True,
    )
    peer = Peer(client, server_side=False)
    stream.start(peer.turn())
    for data in raw.writes:
        peer.incoming.write(data)
    finished = peer.turn()
    stream.data_received(finished + peer.say(b"EHLO x\r\n"))
    assert user.events == ["established"]
    assert user.heard == b"EHLO x\r\n"
