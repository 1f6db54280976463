"""What other workers see of a backend's connections here: after every step the counts are those that are."""

from __future__ import annotations

import asyncio
from typing import cast
from unittest import mock

import pytest

from smtplb.dataplane.backend import Backend, Seeker
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection, Failure, State
from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.identity import Identity
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.scoreboard import Counts, Scoreboard
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import Reason
from smtplb.settings import Address, BackendSettings, PoolSettings
from tests.compiled import interpreted_only
from tests.dataplane.fakes import FakeLoop
from tests.protocol.test_backend_machine import FakeConnection

pytestmark = interpreted_only

KEY = ("p", "a")


class Waiter(Seeker):
    """Somebody who wants a connection."""

    def __init__(self) -> None:
        super().__init__(Binding(Identity("s")), wants_fresh=False)
        self.failures: list[Failure] = []
        self.got: Connection | None = None

    def lease_granted(self, connection: Connection) -> None:
        self.got = connection

    def lease_failed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def reply_received(self, *_: object) -> None: ...
    def replies_done(self) -> None: ...
    def backend_writable(self, writable: bool) -> None: ...
    def connection_broken(self, *_: object) -> None: ...


def seen_elsewhere(there: Counts) -> tuple[int, int]:
    return there.connections_elsewhere, there.in_flight_elsewhere


@pytest.mark.parametrize("count", [1, 3])
def test_connections_that_did_not_come_up_leave_no_trace_in_other_workers(count: int) -> None:
    """Else a backend that refused 40 connections stays full for the others when it is back."""
    mine = Scoreboard.create(2)
    mine.grow(1)
    other = Scoreboard(mine.descriptor, 2, 1)
    for board in (mine, other):
        board.learn({KEY: 0})
    there = other.view(KEY)
    deadlines = Deadlines(lambda: 0.0, lambda delay, callback: cast("asyncio.TimerHandle", mock.Mock()))
    runtime = Runtime(
        FakeLoop().as_loop,
        deadlines,
        lambda event: None,
        log=lambda event: None,
        hello=b"lb.test",
        session_prefix="s",
    )
    settings = BackendSettings("p", "a", Address("192.0.2.1", 25), max_connections=40)
    FakeConnection.made = []
    with mock.patch("smtplb.dataplane.backend.Connection", FakeConnection):
        backend = Backend(runtime, settings, PoolSettings("p", (settings,)), mine)
        waiters = [Waiter() for _ in range(count)]
        for waiter in waiters:
            assert backend.lease(waiter) is None
        assert seen_elsewhere(there) == (count, count)
        for left, connection in reversed(list(enumerate(list(FakeConnection.made)))):
            connection.state = State.CLOSED
            real = cast("Connection", connection)
            backend.connection_failed(real, Failure(Phase.CONNECT, Reason.CONNECT, b"refused"))
            assert seen_elsewhere(there) == (left, left)
    assert all(len(waiter.failures) == 1 for waiter in waiters)
