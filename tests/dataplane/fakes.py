"""A loop without sockets: every callback is one turn, time stands still until it is told to go.

Owns the fake loop, its transports and connects. Does not own what the two ends say (harness.py).
Invariant: everything runs in the order it was caused; a transport is as strict as uvloop's: touched after
connection_lost it raises, and a second write in one turn is recorded as a violation.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, cast

from smtplb.dataplane.relay import CATCH_UP_BYTES

READ_BYTES = 256_000  # what uvloop hands to data_received at most
TURNS_LIMIT = 2_000_000  # more in one settle() is an endless loop


class _NoTimer:
    def cancel(self) -> None:
        pass


NO_TIMER = cast("asyncio.TimerHandle", _NoTimer())  # of a wheel that the test turns


class FakeTask:
    """A coroutine that waits for nothing but connects of the fake loop."""

    def __init__(self, loop: FakeLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self.done = False
        self._waits_for: PendingConnect | None = None

    def step(self, error: BaseException | None = None, value: object = None) -> None:
        if self.done:
            return
        try:
            waits_for = self._coroutine.throw(error) if error is not None else self._coroutine.send(value)
        except StopIteration:
            self.done = True
        except asyncio.CancelledError:
            self.done = True
        except Exception as bug:
            self.done = True
            self._loop.violations.append(f"a task ended with {bug!r}")
        else:
            assert isinstance(waits_for, PendingConnect)
            self._waits_for = waits_for
            waits_for.task = self
            self._loop.connects.append(waits_for)
            self._loop.connecting(waits_for)

    def cancel(self) -> bool:
        if self.done:
            return False
        if self._waits_for is not None:
            self._waits_for.given_up = True
        self._loop.call_soon(self.step, asyncio.CancelledError())
        return True


class PendingConnect(Awaitable[Any]):
    """create_connection, until the test says how it ends."""

    def __init__(self, loop: FakeLoop, factory: Callable[[], asyncio.Protocol], address: object) -> None:
        self._loop = loop
        self._factory = factory
        self.address = address
        self.task: FakeTask | None = None
        self.given_up = False

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self)

    def refuse(self) -> None:
        assert self.task is not None
        error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        self._loop.call_soon(self.task.step, error)

    def succeed(self, far_end: FarEnd) -> FakeTransport:
        assert self.task is not None
        protocol = self._factory()
        transport = FakeTransport(self._loop, protocol, far_end)
        self._loop.call_soon(transport.begin)
        self._loop.call_soon(self.task.step, None, (transport, protocol))
        return transport


class FakeServer:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeSocket:
    """What the data plane asks of a socket: its family and address, and whether a reset has come."""

    def __init__(self) -> None:
        self.family = socket.AF_INET
        self.error = 0

    def getsockopt(self, level: int, name: int) -> int:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR)
        error, self.error = self.error, 0  # asking clears it
        return error

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.1", id(self) % 65536)

    def close(self) -> None:
        pass

    def dup(self) -> FakeSocket:
        return self


class FakeLoop:
    """See the module. `connecting` is told of each connect and decides about it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turn = 0
        self.violations: list[str] = []
        self.connects: list[PendingConnect] = []
        self.connecting: Callable[[PendingConnect], None] = lambda pending: None
        self.factories: list[Callable[[], asyncio.Protocol]] = []  # of accepting servers
        self._ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    @property
    def as_loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)

    # -- what the data plane calls -----------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self._ready.append((callback, arguments))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.violations.append(f"{context['message']}: {context['exception']!r}")

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> FakeTask:
        task = FakeTask(self, coroutine)
        self.call_soon(task.step)
        return task

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, *, local_addr: object = None
    ) -> Any:
        return await PendingConnect(self, factory, (host, port))

    async def create_server(
        self, factory: Callable[[], asyncio.Protocol], *, sock: FakeSocket, backlog: int
    ) -> FakeServer:
        self.factories.append(factory)
        return FakeServer()

    # -- what tests call -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Run until nothing is left to do at this time."""
        limit = self.turn + TURNS_LIMIT
        while self._ready:
            callback, arguments = self._ready.popleft()
            self.turn += 1
            assert self.turn < limit, "this goes on for ever"
            callback(*arguments)

    def step(self) -> None:
        """One turn only."""
        callback, arguments = self._ready.popleft()
        self.turn += 1
        callback(*arguments)

    def run(self, callback: Callable[..., object], *arguments: object) -> None:
        """One turn that the test causes, and all that follows from it."""
        self.call_soon(callback, *arguments)
        self.settle()


class FarEnd(Protocol):
    """Who is at the other end of a fake transport."""

    def arrived(self, data: bytes) -> None: ...

    def over(self, *, aborted: bool) -> None:
        """Our side has ended the connection."""


class FakeTransport:
    """Our end of a connection. The far end calls deliver(), deliver_eof() and deliver_reset()."""

    def __init__(self, loop: FakeLoop, protocol: asyncio.Protocol, far_end: FarEnd) -> None:
        self._loop = loop
        self.protocol = protocol
        self._far_end = far_end
        self.socket = FakeSocket()
        self.writes: list[tuple[int, bytes]] = []  # turn, bytes
        self.reading = False
        self.lost = False
        self._closing = False
        self._aborted = False
        self._incoming: deque[bytes | Exception | None] = deque()  # None: EOF
        self._delivering = False
        self._at_eof = False
        # flow control
        self.stalled = False  # the far end reads nothing
        self.unsent = b""
        self._high, self._low = 65536, 16384
        self._writing_paused = False

    def begin(self) -> None:
        self.protocol.connection_made(cast("asyncio.Transport", self))
        if not self._closing:
            self.reading = True
            self._schedule()

    # -- for the protocol: a transport ---------------------------------------------------------------

    def get_extra_info(self, name: str, default: object = None) -> object:
        known = {
            "socket": self.socket,
            "peername": ("192.0.2.7", 40000),
            "sockname": ("192.0.2.1", 25),
        }
        return known.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._ensure_alive()
        assert high is not None
        self._high, self._low = high, high // 4 if low is None else low

    def write(self, data: bytes) -> None:
        self.writelines([data])

    def writelines(self, chunks: list[bytes]) -> None:
        self._ensure_alive()
        assert all(type(chunk) is bytes for chunk in chunks), (
            "only immutable bytes may be handed to a transport"
        )
        data = b"".join(chunks)
        # As uvloop does it: behind close() nothing more is taken, unless it still has something to send; behind abort() nothing.
        if not data or self._aborted or (self._closing and not self.unsent):
            return
        # Only a long replay may go out in several batches, since no event tells that the kernel has taken one.
        if self.writes and self.writes[-1][0] == self._loop.turn and len(self.writes[-1][1]) < CATCH_UP_BYTES:
            self._loop.violations.append(
                f"two writes in one turn: {self.writes[-1][1][-60:]!r}, {data[:60]!r}"
            )
        self.writes.append((self._loop.turn, data))
        if self.stalled:
            self.unsent += data
            if len(self.unsent) > self._high and not self._writing_paused:
                self._writing_paused = True
                self.protocol.pause_writing()
        else:
            self._loop.call_soon(self._far_end.arrived, data)

    def pause_reading(self) -> None:
        if not self._closing:
            self.reading = False

    def resume_reading(self) -> None:
        if self._closing or self.reading:
            return
        self.reading = True
        if self._at_eof and not self._incoming:
            self._incoming.append(None)  # uvloop reads the end again
        self._schedule()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.reading = False
        if not self.unsent:
            self._loop.call_soon(self._lost, None)

    def abort(self) -> None:
        self._force_close(None)

    def _ensure_alive(self) -> None:
        if self.lost:
            raise RuntimeError("unable to perform operation on a fake transport; the handler is closed")

    def _force_close(self, error: Exception | None) -> None:
        if self.lost or self._aborted:
            return
        self._closing = self._aborted = True
        self.reading = False
        self.unsent = b""
        self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.protocol.connection_lost(error)
        self._loop.call_soon(lambda: self._far_end.over(aborted=self._aborted))

    # -- for the far end -----------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        for at in range(0, len(data), READ_BYTES):
            self._incoming.append(data[at : at + READ_BYTES])
        self._schedule()

    def deliver_eof(self) -> None:
        self._incoming.append(None)
        self._schedule()

    def deliver_reset(self) -> None:
        self.socket.error = errno.ECONNRESET
        self._incoming.append(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        self._schedule()

    def stall(self) -> None:
        self.stalled = True

    def unstall(self, size: int | None = None) -> None:
        """Take `size` bytes, or all and everything that follows."""
        self.stalled = size is not None
        taken = self.unsent if size is None else self.unsent[:size]
        self.unsent = self.unsent[len(taken) :]
        if taken:
            self._loop.call_soon(self._far_end.arrived, taken)
        if self._writing_paused and len(self.unsent) <= self._low:
            self._writing_paused = False
            if not self.lost:
                self._loop.call_soon(self.protocol.resume_writing)
        if self._closing and not self.unsent:
            self._loop.call_soon(self._lost, None)

    def _schedule(self) -> None:
        if self._incoming and not self._delivering:
            self._delivering = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._delivering = False
        if self.lost or self._closing:
            self._incoming.clear()
            return
        if not self.reading or not self._incoming:
            return
        item = self._incoming.popleft()
        if isinstance(item, bytes):
            try:
                self.protocol.data_received(item)
            except Exception as bug:
                self._loop.violations.append(f"data_received raised {bug!r}")
                self._force_close(bug)
        elif item is None:
            self.reading = False
            self._at_eof = True
            if not self.protocol.eof_received():
                self.close()
        else:
            self._force_close(item)
        self._schedule()
