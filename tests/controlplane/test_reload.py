"""Reload in the control plane: whole or not at all; what was known, and what the operator said, stays with what stays."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.config.errors import ConfigError, ConfigErrors
from smtplb.controlplane.ejector import Ejector
from smtplb.controlplane.link import Sockets
from smtplb.controlplane.sockets import BindError, bind_listeners
from smtplb.controlplane.supervisor import CannotReload, NeedsRestart, Supervisor
from smtplb.dataplane import scoreboard
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.messages import BackendKey, BackendsAnswered, BackendState, FromWorker, Snapshot
from smtplb.observe.events import BackendBlamed, Event, Notice
from smtplb.policy.health import OperatorState
from smtplb.settings import Address, CheckLevel, EjectSettings, Settings, TrafficSettings
from tests.controlplane.clock import FakeClock
from tests.controlplane.test_registry import DRAIN, MX1, MX2, MX3, Desk
from tests.controlplane.test_supervisor import Worker, hangs, mta, settings, turn, well
from tests.controlplane.things import backend, listener, pool, two_sites

# -- the registry


def east_with(*backends: object) -> TrafficSettings:
    traffic = two_sites()
    return replace(traffic, pools=(pool("east", *backends), traffic.pools[1]))  # type: ignore[arg-type]


def test_health_and_the_operators_word_stay_with_a_backend_that_stays() -> None:
    desk = Desk(two_sites())
    desk.check("+", MX1, MX2, MX3)
    desk.registry.set_operator(MX2, DRAIN, "kernel", 60.0)
    desk.registry.open()
    since = desk.registry.backends[MX1].since
    desk.go(10)
    desk.registry.change(
        east_with(backend("east", "mx1", weight=5), backend("east", "mx2", weight=2), backend("east", "mx4"))
    )
    desk.registry.publish()
    standings = desk.snapshots[-1].standings
    assert {key[1]: each.state for key, each in standings.items()} == {
        "mx1": BackendState.UP,
        "mx2": BackendState.DRAIN,
        "mx4": BackendState.UNPROVEN,
        "mx3": BackendState.UP,
    }
    assert (standings[MX1].weight, desk.registry.backends[MX1].since) == (5, since)
    assert desk.snapshots[-1].configuration == desk.snapshots[0].configuration + 1
    desk.go(51)
    assert desk.snapshots[-1].standings[MX2].state is BackendState.UP, "its time is over as it was said"


def test_another_address_under_the_same_name_is_unproven_and_keeps_the_operators_word() -> None:
    desk = Desk(two_sites())
    desk.check("+", MX1, MX2, MX3)
    desk.registry.set_operator(MX1, DRAIN, "kernel", 60.0)
    desk.registry.set_weight(MX2, 7, "")
    desk.registry.open()
    desk.registry.change(
        east_with(backend("east", "mx1", port=26), backend("east", "mx2", port=26, weight=2))
    )
    desk.registry.publish()
    standings = desk.snapshots[-1].standings
    assert (standings[MX1].state, standings[MX2].state) == (BackendState.DRAIN, BackendState.UNPROVEN)
    assert standings[MX2].weight == 7
    desk.check("+", MX2)
    desk.go(61)
    assert desk.snapshots[-1].standings[MX2].usable
    assert desk.registry.backends[MX1].operator.state is OperatorState.READY


def test_a_group_that_stays_keeps_its_fail_over() -> None:
    desk = Desk(two_sites())
    desk.check("+", MX1, MX2, MX3)
    desk.registry.open()
    desk.check("---", MX1, MX2)
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}
    desk.registry.change(replace(two_sites(), hostname="lb2.test"))
    desk.registry.publish()
    assert desk.shares == {"east": 0, "west": 100}
    desk.check("++", MX1, MX2)
    desk.turn()
    desk.go(50)
    assert desk.shares == {"east": 0, "west": 100}, "the delay of fail-back runs on"
    desk.go(11)
    assert desk.shares == {"east": 100, "west": 0}


# -- ejection


def ejecting(*names: str, port: int = 25, eject: EjectSettings | None = None) -> TrafficSettings:
    one = pool("p", *(backend("p", name, port=port) for name in names))
    return TrafficSettings("lb.test", (), (replace(one, eject=eject or EjectSettings(after=2)),))


class Ejected:
    def __init__(self, traffic: TrafficSettings) -> None:
        self.clock = FakeClock()
        self.out: dict[BackendKey, float | None] = {}
        self.events: list[Event] = []
        self.ejector = Ejector(
            traffic,
            deadlines=self.clock.deadlines,
            set_ejected=lambda key, s, _: self.out.update({key: s}),
            emit=self.events.append,
        )

    def blame(self, name: str, times: int = 2) -> None:
        for number in range(times):
            self.ejector.blamed(BackendBlamed("p", name, "s", f"192.0.{number}.1", "lost"))


def test_who_is_out_stays_out_over_a_reload_and_comes_back_in_time() -> None:
    desk = Ejected(ejecting("a", "b"))
    desk.blame("a")
    assert desk.out == {("p", "a"): 30.0}
    assert desk.ejector.change(ejecting("a", "b", "c")) == []
    desk.clock.go(31)
    assert desk.out == {("p", "a"): None}


@pytest.mark.parametrize(
    "after",
    [
        ejecting("a", "b", port=26),
        ejecting("a", "b", eject=EjectSettings(after=3)),
        replace(ejecting("a"), pools=(replace(ejecting("a", "b").pools[0], eject=None),)),
    ],
    ids=["another address", "another rule", "no rule"],
)
def test_who_is_out_for_what_nobody_knows_any_more_is_let_in(after: TrafficSettings) -> None:
    desk = Ejected(ejecting("a", "b"))
    desk.blame("a")
    assert desk.ejector.change(after) == [("p", "a")]


def test_what_workers_still_tell_of_those_that_are_gone_is_not_heard() -> None:
    desk = Ejected(ejecting("a", "b"))
    assert desk.ejector.change(ejecting("b", "c")) == []
    desk.blame("a", 5)
    desk.ejector.answered(BackendsAnswered({("p", "a"): 3, ("q", "z"): 1}))
    assert desk.out == {}


def test_a_pool_that_shrinks_has_no_more_out_than_it_may() -> None:
    desk = Ejected(ejecting("a", "b", "c", "d"))
    desk.blame("a")
    desk.blame("b")
    assert len(desk.out) == 2
    assert len(desk.ejector.change(ejecting("a", "b"))) == 1


# -- sockets


def test_addresses_that_stay_keep_their_sockets_and_what_waits_in_their_queues() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stays, goes = Address("127.0.0.1", port), Address("127.0.0.1", 0)
    old = bind_listeners([listener("mx", "p", stays), listener("out", "p", goes)])
    with socket.create_connection(("127.0.0.1", port), timeout=5):  # nobody has accepted it yet
        new = bind_listeners([listener("other", "p", stays)], held=old)
        (same,) = new.by_listener["other"]
        assert same is old.by_listener["mx"][0]
        gone = old.bound["out"][0].port
        old.close_others(new)
        accepted, _ = same.accept()
        accepted.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", gone), timeout=5)
    new.close()


def test_an_address_in_use_leaves_the_held_open_and_closes_what_was_new() -> None:
    held = bind_listeners([listener("mx", "p", Address("127.0.0.1", 0))])
    bind = held.bound["mx"][0]
    held._by_bind = {bind: held.by_listener["mx"]}
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        new, used = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        binds = (bind, Address("127.0.0.1", new), Address("127.0.0.1", used))
        with pytest.raises(BindError, match="already in use"):
            bind_listeners([listener("mx", "p", *binds)], held=held)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", new), timeout=5)
        socket.create_connection(("127.0.0.1", bind.port), timeout=5).close()
    held.close()


# -- the scoreboard


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from([8, 64, scoreboard.STEP_BYTES]),
)
def test_counts_stay_where_places_stay_however_often_the_table_grows(
    rounds: list[list[str]], workers: int, step_bytes: int
) -> None:
    """The supervisor gives each new backend a place; every worker reads what all wrote there."""
    owner = Scoreboard.create(workers)
    boards = [Scoreboard(os.dup(owner.descriptor), workers, number) for number in range(workers)]
    places: dict[BackendKey, int] = {}
    written: dict[tuple[str, int], int] = {}
    used = 0
    usual, scoreboard.STEP_BYTES = scoreboard.STEP_BYTES, step_bytes
    try:
        for turn_number, names in enumerate(rounds):
            keep = {("p", name): places[("p", name)] for name in names if ("p", name) in places}
            for name in names:
                if ("p", name) not in keep:
                    keep["p", name] = used
                    used += 1
                    written.update({(name, number): 0 for number in range(workers)})
            places = keep
            owner.grow(used)
            for board in boards:
                board.learn(places)
            for name in names:
                for number, board in enumerate(boards):
                    written[name, number] = turn_number * 10 + number + 1
                    board.view(("p", name)).set_connections(written[name, number])
            for name in names:
                for number, board in enumerate(boards):
                    others = sum(written[name, other] for other in range(workers) if other != number)
                    assert board.view(("p", name)).connections_elsewhere == others
        owner.clear(0)
        for name in names:
            for board in boards[1:2]:
                left = sum(written[name, other] for other in range(2, workers))
                assert board.view(("p", name)).connections_elsewhere == left
    finally:
        scoreboard.STEP_BYTES = usual
        for board in [*boards, owner]:
            board.close()


# -- the supervisor


class Stage:
    """A supervisor whose next configuration is in the test's hands, with a worker that is not one."""

    def __init__(self, with_settings: Settings) -> None:
        self.next: Settings | Exception = with_settings
        self.events: list[Event] = []
        self.workers: list[Worker] = []
        self.supervisor = Supervisor(
            with_settings, emit=self.events.append, open_link=self._open_link, read=self._read
        )

    def _read(self) -> Settings:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def _open_link(
        self, loop: asyncio.AbstractEventLoop, sockets: Sockets, receive: Callable[[FromWorker], None]
    ) -> Worker:
        self.workers.append(Worker(loop, sockets, receive))
        return self.workers[-1]

    @property
    def snapshots(self) -> list[Snapshot]:
        return [message for message in self.workers[0].heard if isinstance(message, Snapshot)]

    def notices(self, what: str) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice) and event.what == what]


@asynccontextmanager
async def running(with_settings: Settings):  # type: ignore[no-untyped-def]
    stage = Stage(with_settings)
    await stage.supervisor.start()
    await turn()
    try:
        yield stage
    finally:
        await stage.supervisor.stop(0)


async def test_new_backends_are_looked_at_before_anything_changes() -> None:
    async with (
        mta(well) as port,
        mta(well) as other,
        running(settings(level=CheckLevel.EHLO, port=port)) as stage,
    ):
        before = len(stage.snapshots)
        stage.next = settings(level=CheckLevel.EHLO, port=other)
        made = await stage.supervisor.reload()
        await turn()
        assert made.reconnects == ("p/a", "p/b", "q/c")
        first = stage.snapshots[before]
        assert first.configuration == 1
        assert {each.state for each in first.standings.values()} == {BackendState.UP}


async def test_a_new_backend_that_hangs_holds_a_reload_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtplb.controlplane.reloader.LOOK_S", 0.01)
    monkeypatch.setattr("smtplb.controlplane.reloader.LEAVE_S", 0.01)
    async with (
        mta(well) as port,
        mta(hangs) as other,
        running(settings(level=CheckLevel.EHLO, port=port)) as stage,
    ):
        stage.next = settings(level=CheckLevel.EHLO, port=other)
        await stage.supervisor.reload()
        await turn()
        assert {each.state for each in stage.snapshots[-1].standings.values()} == {BackendState.UNPROVEN}


async def test_mistakes_change_nothing_and_are_told_until_a_reload_goes_well() -> None:
    async with running(settings()) as stage:
        heard, bound = list(stage.workers[0].heard), dict(stage.supervisor.bound)
        mistake = ConfigError("lb.yaml", 3, 4, "pools.p.policy", "is no policy")
        stage.next = ConfigErrors([mistake, replace(mistake, line=5)])
        with pytest.raises(ConfigErrors):
            await stage.supervisor.reload()
        stage.next = replace(settings(), workers=2)
        with pytest.raises(NeedsRestart, match="workers needs a restart; nothing was changed"):
            await stage.supervisor.reload()
        assert (stage.workers[0].heard, stage.supervisor.bound) == (heard, bound)
        (first, _) = stage.notices("reload-failed")
        assert first.endswith("stays in use: lb.yaml:3:4: pools.p.policy: is no policy (and 1 more)")
        status = await stage.supervisor.status()
        assert [problem.anchor for problem in status.problems] == ["reload-failed"]
        assert (status.config_reload_ok, status.config_reloads) == (False, {"ok": 0, "failed": 2})
        stage.next = replace(settings(), sha256="fed")
        await stage.supervisor.reload()
        status = await stage.supervisor.status()
        assert (status.problems, status.config_sha256) == ([], "fed")
        assert status.config_reloads == {"ok": 1, "failed": 2}


async def test_a_stop_while_a_reload_looks_at_backends_ends_the_reload_and_leaves_nothing_bound() -> None:
    async with mta(hangs) as port, running(settings()) as stage:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            new = free.getsockname()[1]
        changed = settings(level=CheckLevel.EHLO, port=port)
        listeners = (listener("mx", "p", Address("127.0.0.1", new)), changed.traffic.listeners[1])
        stage.next = replace(changed, traffic=replace(changed.traffic, listeners=listeners))
        reloading = asyncio.ensure_future(stage.supervisor.reload())
        while True:  # until it has bound the new address
            try:
                socket.create_connection(("127.0.0.1", new), timeout=5).close()
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0)
        await stage.supervisor.stop(0)
        with pytest.raises(CannotReload):
            await reloading
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", new), timeout=5)


async def test_what_did_not_come_from_a_file_cannot_be_read_again() -> None:
    supervisor = Supervisor(settings(), emit=lambda _: None)
    with pytest.raises(CannotReload, match="did not come from a file"):
        await supervisor.reload()
    await supervisor.stop(0)
