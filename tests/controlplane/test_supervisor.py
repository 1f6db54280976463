"""The supervisor: starting whole or not at all, what it tells, what the operator may do, stopping in order."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from smtplb.controlplane.link import Sockets
from smtplb.controlplane.supervisor import BindError, Invalid, Supervisor, Unknown, WouldStrand
from smtplb.messages import (
    BackendReport,
    DrainSessions,
    FromWorker,
    ListenerReport,
    ReportRequest,
    SessionsDrained,
    Snapshot,
    ToWorker,
    WorkerReport,
)
from smtplb.observe.events import BackendBlamed, BackendChanged, Event, Notice
from smtplb.settings import (
    Address,
    CheckLevel,
    CheckSettings,
    Policy,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)
from tests.controlplane.things import backend, listener, pool

BLAME = BackendBlamed("p", "a", "1", "192.0.2.1", "lost")


class Worker:
    """A worker that writes down what it is told. Messages really travel: through pickle, one turn of the loop later."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sockets: Sockets, receive: Callable[[FromWorker], None]
    ) -> None:
        self._loop = loop
        self._receive = receive
        self.sockets = sockets
        self.heard: list[ToWorker] = []
        self.answers_reports = True
        self.is_up = True
        self.drains_at_once = True
        self.closed = False
        self.restarts = 0

    def send(self, message: ToWorker) -> None:
        assert not self.closed
        self._loop.call_soon(self._hear, pickle.loads(pickle.dumps(message)))

    def hand(self, sockets: Sockets) -> None:
        self.sockets = sockets

    def live(self) -> bool:
        return self.answers_reports

    def accepts(self) -> bool:
        return self.is_up

    def close(self) -> None:
        self.closed = True

    def tell(self, message: FromWorker) -> None:
        self._loop.call_soon(self._receive, pickle.loads(pickle.dumps(message)))

    def _hear(self, message: ToWorker) -> None:
        self.heard.append(message)
        if isinstance(message, ReportRequest) and self.answers_reports:
            listeners = [ListenerReport("mx", accepting=True, sessions_open=2)]
            backends = [BackendReport("p", "a", in_flight=1)]
            self.tell(WorkerReport(message.serial, 1, listeners, [], backends))
        elif isinstance(message, DrainSessions) and self.drains_at_once:
            self.tell(SessionsDrained(0))

    @property
    def kinds(self) -> list[str]:
        return [type(message).__name__ for message in self.heard]


class Stage:
    """A supervisor with a worker that is not one."""

    def __init__(self, settings: Settings) -> None:
        self.events: list[Event] = []
        self.workers: list[Worker] = []
        self.supervisor = Supervisor(settings, emit=self.events.append, open_link=self._open_link)

    def _open_link(
        self, loop: asyncio.AbstractEventLoop, sockets: Sockets, receive: Callable[[FromWorker], None]
    ) -> Worker:
        self.workers.append(Worker(loop, sockets, receive))
        return self.workers[-1]

    @property
    def worker(self) -> Worker:
        (worker,) = self.workers
        return worker

    @property
    def notices(self) -> list[str]:
        return [event.what for event in self.events if isinstance(event, Notice)]

    async def heard(self, kind: type[ToWorker], count: int = 1) -> None:
        async with asyncio.timeout(5):
            while sum(isinstance(message, kind) for message in self.worker.heard) < count:
                await turn()


async def turn() -> None:
    """A few turns of the loop: what was sent has arrived, and its answer too."""
    for _ in range(5):
        await asyncio.sleep(0)


def settings(
    *, level: CheckLevel = CheckLevel.OFF, delay_s: float = 0.0, port: int = 25, binds: int = 1
) -> Settings:
    check = CheckSettings(level, timeout_s=1.0)
    return Settings(
        TrafficSettings(
            "lb1.test",
            (listener("mx", "p", *[Address("127.0.0.1", 0)] * binds), listener("out", "q")),
            (
                pool(
                    "p", backend("p", "a", check=check, port=port), backend("p", "b", check=check, port=port)
                ),
                pool("q", backend("q", "c", check=check, port=port)),
            ),
        ),
        shutdown=ShutdownSettings(delay_s=delay_s, drain_s=60),
        sha256="abc",
        source="lb.yaml",
    )


@asynccontextmanager
async def running(with_settings: Settings | None = None) -> AsyncIterator[Stage]:
    stage = Stage(with_settings or settings())
    await stage.supervisor.start()
    await turn()
    try:
        yield stage
    finally:
        await stage.supervisor.stop(0)


@asynccontextmanager
async def mta(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A backend's port."""
    server = await asyncio.start_server(behave, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mx\r\n")
    while line := await reader.readline():
        writer.write(b"221 bye\r\n" if line.startswith(b"QUIT") else b"250 mx\r\n")
        if line.startswith(b"QUIT"):
            break
    writer.close()


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


class TestStart:
    async def test_the_worker_gets_the_sockets_and_then_one_snapshot(self) -> None:
        async with running(settings(binds=2)) as stage:
            assert {name: len(socks) for name, socks in stage.worker.sockets.items()} == {"mx": 2, "out": 1}
            assert stage.worker.kinds == ["Snapshot"]
            assert stage.notices == ["started", "listening", "listening", "listening"]

    async def test_the_bound_addresses_are_told_with_their_real_ports(self) -> None:
        async with running() as stage:
            (address,) = stage.supervisor.bound["mx"]
            assert address.port > 0
            socket.create_connection((address.host, address.port), timeout=5).close()

    async def test_an_address_in_use_starts_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            there = Address("127.0.0.1", taken.getsockname()[1])
            traffic = settings().traffic
            stage = Stage(Settings(replace(traffic, listeners=(listener("mx", "p", there),))))
            with pytest.raises(BindError, match="listener mx"):
                await stage.supervisor.start()
            assert stage.workers == []
            assert stage.events == []

    async def test_the_first_snapshot_waits_for_the_first_round_of_checks(self) -> None:
        async with mta(well) as port, running(settings(level=CheckLevel.EHLO, port=port)) as stage:
            (snapshot,) = stage.worker.heard
            assert isinstance(snapshot, Snapshot)
            assert {key: standing.state for key, standing in snapshot.standings.items()} == dict.fromkeys(
                [("p", "a"), ("p", "b"), ("q", "c")], "up"
            )

    async def test_backends_that_hang_hold_the_start_up_for_a_bounded_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("smtplb.controlplane.supervisor.FIRST_ROUND_S", 0.01)
        async with mta(hangs) as port, running(settings(level=CheckLevel.EHLO, port=port)) as stage:
            (snapshot,) = stage.worker.heard
            assert isinstance(snapshot, Snapshot)
            assert {standing.state for standing in snapshot.standings.values()} == {"unproven"}
            assert stage.supervisor.readiness().reasons == ["no listener has a usable backend"]

    async def test_a_start_that_is_cancelled_leaves_nothing_bound(self) -> None:
        async with mta(hangs) as port:
            stage = Stage(settings(level=CheckLevel.EHLO, port=port))
            starting = asyncio.ensure_future(stage.supervisor.start())
            await turn()
            (address,) = stage.supervisor.bound["mx"]
            assert stage.supervisor.readiness().reasons == ["starting: the first checks are not over"]
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address.host, address.port), timeout=5)
            assert stage.worker.closed

    async def test_a_stop_during_the_start_ends_both(self) -> None:
        async with mta(hangs) as port:
            stage = Stage(settings(level=CheckLevel.EHLO, port=port))
            starting = asyncio.ensure_future(stage.supervisor.start())
            await turn()
            await stage.supervisor.stop(0)
            await starting
            assert stage.worker.closed
            assert stage.worker.heard == []
            assert not stage.supervisor.live()


class TestReading:
    async def test_ready_while_serving_with_a_usable_backend(self) -> None:
        async with running() as stage:
            view = stage.supervisor.readiness()
            assert (view.ready, view.reasons, view.listeners) == (True, [], {"mx": True, "out": True})
            assert stage.supervisor.live()
            stage.worker.answers_reports = False
            assert not stage.supervisor.live()
            assert stage.supervisor.readiness().ready  # another one may take clients

    async def test_not_ready_without_a_worker(self) -> None:
        async with running() as stage:
            stage.worker.is_up = False
            for view in (
                stage.supervisor.readiness(ignore_backends=True),
                stage.supervisor.readiness_of("mx"),
            ):
                assert (view.ready, view.reasons) == (False, ["no worker is up"])

    async def test_one_listener_with_a_usable_backend_is_enough_and_each_has_its_own_answer(self) -> None:
        async with running() as stage:
            stage.supervisor.set_backend("q", "c", state="maint", force=True)
            assert stage.supervisor.readiness().ready
            view = stage.supervisor.readiness_of("out")
            assert (view.ready, view.reasons) == (False, ["no backend of q is usable"])
            assert stage.supervisor.readiness_of("out", ignore_backends=True).ready
            assert stage.supervisor.readiness_of("mx").ready
            with pytest.raises(Unknown, match="no listener nowhere"):
                stage.supervisor.readiness_of("nowhere")

    async def test_no_usable_backend_anywhere_is_not_ready_unless_backends_are_ignored(self) -> None:
        async with running() as stage:
            for name, each in (("p", "a"), ("p", "b"), ("q", "c")):
                stage.supervisor.set_backend(name, each, state="drain", force=True)
            assert not stage.supervisor.readiness().ready
            assert stage.supervisor.readiness(ignore_backends=True).ready

    async def test_status_puts_reports_and_states_together(self) -> None:
        async with running() as stage:
            stage.supervisor.set_backend("p", "a", state="drain", reason="disk")
            status = await stage.supervisor.status()
            assert (status.hostname, status.config_sha256, status.condition) == (
                "lb1.test",
                "abc",
                "degraded",
            )
            assert [problem.anchor for problem in status.problems] == ["operator-drain"]
            assert status.listeners[0].sessions_open == 2
            assert status.pools[0].backends[0].in_flight == 1
            assert status.pools[0].backends[0].state == "drain"
            assert [view.name for view in await stage.supervisor.pools()] == ["p", "q"]
            assert [view.name for view in await stage.supervisor.listeners()] == ["mx", "out"]
            assert await stage.supervisor.groups() == []

    async def test_questions_at_the_same_time_each_get_their_answer(self) -> None:
        async with running() as stage:
            reports = await asyncio.gather(*[stage.supervisor.worker_report() for _ in range(5)])
            assert len({report.serial for report in reports}) == 5

    async def test_a_worker_that_does_not_answer_is_an_error_and_not_a_wait(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("smtplb.controlplane.supervisor.REPORT_S", 0.01)
        async with running() as stage:
            stage.worker.answers_reports = False
            with pytest.raises(TimeoutError):
                await stage.supervisor.status()

    async def test_events_of_the_worker_are_passed_on(self) -> None:
        async with running() as stage:
            stage.worker.tell(BLAME)
            await turn()
            assert BLAME in stage.events


class TestChanging:
    async def test_a_change_reaches_the_worker_and_the_log(self) -> None:
        async with running() as stage:
            stage.supervisor.set_backend("p", "a", state="drain", weight=3, reason="disk", for_s=3600)
            await turn()
            last = stage.worker.heard[-1]
            assert isinstance(last, Snapshot)
            assert (last.standings["p", "a"].state, last.standings["p", "a"].weight) == ("drain", 3)
            changes = [event for event in stage.events if isinstance(event, BackendChanged)]
            assert [change.reason for change in changes] == [
                "operator: weight 1 -> 3, disk",
                "operator: drain, disk",
            ]
            assert stage.worker.kinds == ["Snapshot", "Snapshot"]

    async def test_a_change_that_strands_a_listener_changes_nothing_unless_forced(self) -> None:
        async with running() as stage:
            with pytest.raises(WouldStrand) as raised:
                stage.supervisor.set_backend("q", "c", state="maint", weight=0)
            assert raised.value.listeners == ["out"]
            view = (await stage.supervisor.pools())[1].backends[0]
            assert (view.state, view.operator.weight) == ("up", None)
            stage.supervisor.set_backend("q", "c", state="maint", force=True)
            assert not stage.supervisor.readiness_of("out").ready

    @pytest.mark.parametrize(
        ("pool_name", "backend_name", "text"), [("x", "a", "no pool x"), ("p", "x", "no backend x in pool p")]
    )
    async def test_unknown_names_are_told(self, pool_name: str, backend_name: str, text: str) -> None:
        async with running() as stage:
            with pytest.raises(Unknown, match=text):
                stage.supervisor.set_backend(pool_name, backend_name, state="drain")

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"state": "off"},
            {"state": "DRAIN"},
            {"weight": -1},
            {"weight": 257},
            {"weight": 1, "for_s": 5.0},
            {"state": "ready", "for_s": 5.0},
            {"state": "drain", "for_s": 0.0},
        ],
    )
    async def test_changes_without_sense_change_nothing(self, change: dict[str, object]) -> None:
        async with running() as stage:
            with pytest.raises(Invalid):
                stage.supervisor.set_backend("p", "a", **change)  # type: ignore[arg-type]
            assert stage.worker.kinds == ["Snapshot"]

    async def test_round_robin_knows_no_weight_but_none_at_all(self) -> None:
        base = settings()
        pools = tuple(replace(each, policy=Policy.ROUND_ROBIN) for each in base.traffic.pools)
        async with running(replace(base, traffic=replace(base.traffic, pools=pools))) as stage:
            with pytest.raises(Invalid, match="policy weighted"):
                stage.supervisor.set_backend("p", "a", weight=2)
            stage.supervisor.set_backend("p", "a", weight=0)
            stage.supervisor.set_backend("p", "a", weight=1)

    async def test_failback_of_an_unknown_group_is_told(self) -> None:
        async with running() as stage:
            with pytest.raises(Unknown, match="no group x"):
                stage.supervisor.failback("x")


class TestStop:
    async def test_in_order_and_everything_is_closed(self) -> None:
        async with running() as stage:
            (address,) = stage.supervisor.bound["mx"]
            await stage.supervisor.stop(7)
            assert stage.worker.kinds == ["Snapshot", "StopAccepting", "DrainSessions"]
            assert stage.worker.heard[-1] == DrainSessions(7)
            assert stage.worker.closed
            assert stage.notices[-2:] == ["stopping", "stopped"]
            assert stage.supervisor.readiness().reasons == ["stopped"]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address.host, address.port), timeout=5)

    async def test_during_the_delay_it_accepts_and_is_not_ready(self) -> None:
        async with running(settings(delay_s=3600)) as stage:
            stopping = asyncio.ensure_future(stage.supervisor.stop(7))
            await turn()
            assert stage.supervisor.readiness().reasons == ["stopping"]
            assert stage.worker.kinds == ["Snapshot"]
            (address,) = stage.supervisor.bound["mx"]
            socket.create_connection((address.host, address.port), timeout=5).close()
            await stage.supervisor.stop(0)  # again: no more delay
            await stopping
            assert stage.worker.heard[-1] == DrainSessions(0)

    async def test_it_waits_for_the_sessions_and_a_second_stop_hurries_them(self) -> None:
        async with running() as stage:
            stage.worker.drains_at_once = False
            first = asyncio.ensure_future(stage.supervisor.stop(60))
            await stage.heard(DrainSessions)
            second = asyncio.ensure_future(stage.supervisor.stop(1))
            await stage.heard(DrainSessions, 2)
            assert not first.done()
            assert stage.worker.heard[-2:] == [DrainSessions(60), DrainSessions(1)]
            stage.worker.tell(SessionsDrained(3))
            await asyncio.gather(first, second)

    async def test_the_worker_stops_accepting_before_the_sockets_are_gone(self) -> None:
        async with running() as stage:
            await stage.supervisor.stop(0)
            assert stage.worker.kinds.index("StopAccepting") < stage.worker.kinds.index("DrainSessions")
            assert all(sock.fileno() == -1 for socks in stage.worker.sockets.values() for sock in socks)

    async def test_after_the_stop_it_still_answers(self) -> None:
        async with running() as stage:
            await stage.supervisor.stop(0)
            status = await stage.supervisor.status()
            assert [problem.anchor for problem in status.problems] == ["stopping"]

    async def test_stopping_what_was_never_started_is_no_error(self) -> None:
        stage = Stage(settings())
        await stage.supervisor.stop()
        assert not stage.supervisor.live()
        assert stage.workers == []
