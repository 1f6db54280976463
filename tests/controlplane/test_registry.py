"""The registry: what the operator and checks say becomes standings, events and snapshots."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from smtplb.controlplane.registry import CheckResult, Registry, Seen
from smtplb.messages import BackendKey, BackendState, Snapshot
from smtplb.observe.events import BackendChanged, Event, GroupShifted
from smtplb.policy.health import OperatorState
from smtplb.settings import CheckLevel, FailbackMode, TrafficSettings
from tests.controlplane.clock import FakeClock
from tests.controlplane.things import backend, listener, pool, two_sites

MX1, MX2, MX3 = ("east", "mx1"), ("east", "mx2"), ("west", "mx3")
READY, DRAIN, MAINT = OperatorState.READY, OperatorState.DRAIN, OperatorState.MAINT
BUSY = "421 4.3.2 All server ports are busy"


class Desk:
    """A registry with everything it talks to written down. `turn()` is the end of a loop turn."""

    def __init__(self, traffic: TrafficSettings) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.snapshots: list[Snapshot] = []
        self.checks_wanted: list[tuple[BackendKey, bool]] = []
        self._soon: list[Callable[[], None]] = []
        self.registry = Registry(
            traffic,
            deadlines=self.clock.deadlines,
            wall=self.clock.wall,
            call_soon=self._soon.append,
            emit=self.events.append,
            publish=self.snapshots.append,
            checks_wanted=lambda key, wanted: self.checks_wanted.append((key, wanted)),
        )

    def check(self, results: str, *keys: BackendKey, text: str = "250 ok") -> None:
        for key in keys:
            for result in results:
                self.registry.check_result(key, CheckResult(result == "+", text, 0.01))

    def lacks_identity(self, key: BackendKey, text: str = "identity: does not offer XCLIENT") -> None:
        self.registry.check_result(key, CheckResult(False, text, 0.01, identity=False))

    def offers(self, key: BackendKey, **keywords: bytes) -> None:
        """A good check in which the backend lists these, the identity included."""
        offers = {name.encode(): value for name, value in keywords.items()}
        self.registry.check_result(key, CheckResult(True, "250 mx", 0.01, True, Seen(offers)))

    def turn(self) -> None:
        soon = self._soon.copy()
        self._soon.clear()
        for callback in soon:
            callback()

    def go(self, seconds: float) -> None:
        self.clock.go(seconds)
        self.turn()

    @property
    def shares(self) -> dict[str, int]:
        return dict(self.snapshots[-1].shares["site"])

    def changes(self) -> list[BackendChanged]:
        found = [event for event in self.events if isinstance(event, BackendChanged)]
        self.events.clear()
        return found


def opened(traffic: TrafficSettings | None = None) -> Desk:
    """All three backends are up, the registry publishes."""
    desk = Desk(traffic or two_sites())
    desk.check("+", MX1, MX2, MX3)
    desk.registry.open()
    desk.events.clear()
    return desk


def test_backends_start_unproven_and_those_without_checks_up() -> None:
    desk = Desk(
        TrafficSettings(
            "lb1.test", (), (pool("p", backend("p", "a"), backend("p", "b", level=CheckLevel.OFF)),)
        )
    )
    a, b = desk.registry.backends.values()
    assert (a.standing.state, a.reason) == (BackendState.UNPROVEN, "not checked yet")
    assert (b.standing.state, b.reason) == (BackendState.UP, "check: off")


def test_a_change_is_told_with_what_the_backend_said() -> None:
    desk = opened()
    desk.check("---", MX1, text=BUSY)
    (change,) = desk.changes()
    assert (change.pool, change.backend, change.old, change.new) == ("east", "mx1", "up", "down")
    assert change.reason == "check: 421 4.3.2 All server ports are busy, 3 of 3"
    assert desk.registry.backends[MX1].reason == change.reason


def test_coming_back_tells_how_long_it_was_down() -> None:
    desk = opened()
    desk.check("---", MX1)
    desk.go(90)
    desk.check("++", MX1)
    down, up = desk.changes()
    assert down.down_for_s is None
    assert up.down_for_s == pytest.approx(90)


def test_a_result_that_changes_nothing_is_counted_and_not_told() -> None:
    desk = opened()
    desk.check("-", MX1, text="connection refused")
    assert desk.changes() == []
    record = desk.registry.backends[MX1]
    assert (record.checks.passed, record.checks.failed) == (1, 1)
    assert record.checks.last is not None
    assert record.checks.last.text == "connection refused"
    assert record.standing.usable


def test_nothing_is_published_before_it_is_opened() -> None:
    desk = Desk(two_sites())
    desk.check("+", MX1)
    desk.turn()
    assert desk.snapshots == []
    desk.registry.open()
    assert [snapshot.generation for snapshot in desk.snapshots] == [1]


def test_many_changes_in_one_turn_make_one_snapshot() -> None:
    desk = opened()
    before = len(desk.snapshots)
    desk.check("---", MX1, MX2, MX3)
    assert len(desk.snapshots) == before
    desk.turn()
    assert len(desk.snapshots) == before + 1
    desk.turn()
    assert len(desk.snapshots) == before + 1


def test_generations_grow_and_a_snapshot_is_plain_data_apart_from_live_state() -> None:
    desk = opened()
    first = desk.snapshots[-1]
    desk.check("---", MX1)
    desk.turn()
    last = desk.snapshots[-1]
    assert last.generation == first.generation + 1
    assert first.standings[MX1].usable
    assert not last.standings[MX1].usable
    assert pickle.loads(pickle.dumps(last)) == last
    assert set(last.standings) == {MX1, MX2, MX3}


def test_load_of_a_group_goes_on_when_a_pool_is_down_and_returns_after_the_delay() -> None:
    desk = opened()
    assert desk.shares == {"east": 100, "west": 0}
    desk.check("---", MX1, MX2)
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}
    (shift,) = [event for event in desk.events if isinstance(event, GroupShifted)]
    assert (shift.group, shift.new) == ("site", (("east", 0), ("west", 100)))
    assert shift.reason == "east has no usable backend"
    desk.check("++", MX1, MX2)
    desk.turn()
    desk.go(59)
    assert desk.shares == {"east": 0, "west": 100}
    desk.go(2)
    assert desk.shares == {"east": 100, "west": 0}


def test_first_checks_in_any_order_before_opening_make_no_shift() -> None:
    desk = Desk(two_sites())
    desk.check("+", MX3)
    desk.turn()
    desk.check("+", MX2, MX1)
    desk.registry.open()
    assert desk.shares == {"east": 100, "west": 0}
    assert not [event for event in desk.events if isinstance(event, GroupShifted)]


def test_manual_failback_is_the_operators() -> None:
    desk = opened(two_sites(FailbackMode.MANUAL))
    desk.check("---", MX1, MX2)
    desk.turn()
    desk.check("++", MX1, MX2)
    desk.go(10_000)
    assert desk.shares == {"east": 0, "west": 100}
    assert desk.registry.fail_back("site")
    desk.turn()
    assert desk.shares == {"east": 100, "west": 0}
    assert not desk.registry.fail_back("site")


def test_drain_takes_effect_and_is_told_with_the_operators_reason() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, DRAIN, "disk", None)
    desk.turn()
    (change,) = desk.changes()
    assert (change.old, change.new, change.reason) == ("up", "drain", "operator: drain, disk")
    told = desk.snapshots[-1].standings[MX1]
    assert (told.usable, told.last_resort) == (False, False)


def test_checks_go_on_in_drain_and_say_what_it_comes_back_as() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, DRAIN, "", None)
    desk.check("---", MX1, text="connection refused")
    assert desk.registry.backends[MX1].reason == "operator: drain"
    desk.changes()
    desk.registry.set_operator(MX1, READY, "", None)
    (change,) = desk.changes()
    assert (change.old, change.new) == ("drain", "down")
    assert desk.registry.backends[MX1].reason == "check: connection refused, 3 of 3"
    assert desk.checks_wanted == []


def test_maint_stops_checks_and_after_it_the_first_check_decides() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, MAINT, "kernel", None)
    desk.registry.set_operator(MX1, READY, "", None)
    assert desk.checks_wanted == [(MX1, False), (MX1, True)]
    assert desk.registry.backends[MX1].standing.state is BackendState.UNPROVEN
    desk.check("-", MX1)
    assert desk.registry.backends[MX1].standing.state is BackendState.DOWN


def test_an_operator_state_with_a_time_ends_by_itself() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, DRAIN, "disk", 7200)
    assert desk.registry.backends[MX1].operator.until == desk.clock.wall() + 7200
    desk.go(7199)
    assert desk.registry.backends[MX1].operator.state is DRAIN
    desk.go(2)
    assert desk.registry.backends[MX1].operator.state is READY
    assert desk.registry.backends[MX1].operator.until is None
    assert desk.changes()[-1].reason == "operator: ready, time of drain is over"
    assert desk.snapshots[-1].standings[MX1].usable


def test_a_new_word_of_the_operator_replaces_the_time_of_the_old_one() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, DRAIN, "disk", 60)
    desk.registry.set_operator(MX1, MAINT, "disk after all", None)
    desk.go(100)
    assert desk.registry.backends[MX1].operator.state is MAINT


def test_the_same_word_again_is_not_told_again() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, DRAIN, "disk", None)
    desk.registry.set_operator(MX1, DRAIN, "disk, really", None)
    assert len(desk.changes()) == 1
    assert desk.registry.backends[MX1].operator.reason == "disk, really"


def test_a_weight_override_is_told_published_and_ended_by_the_configured_weight() -> None:
    desk = opened()
    desk.registry.set_weight(MX1, 1, "new disk")
    desk.turn()
    (change,) = desk.changes()
    assert (change.old, change.new, change.reason) == ("up", "up", "operator: weight 2 -> 1, new disk")
    assert desk.snapshots[-1].standings[MX1].weight == 1
    desk.registry.set_weight(MX1, 2, "")
    assert desk.registry.backends[MX1].operator.weight is None


def test_a_lowered_weight_counts_for_failover() -> None:
    desk = opened()
    desk.registry.set_weight(MX1, 0, "")
    desk.turn()
    assert desk.shares == {"east": 100, "west": 0}
    desk.registry.set_weight(MX2, 1, "")
    desk.turn()
    assert desk.shares == {"east": 0, "west": 100}


class TestStranding:
    def test_the_last_usable_backend_of_a_listener_strands_it(self) -> None:
        desk = opened()
        assert desk.registry.strands(MX3, DRAIN) == ["out"]
        assert desk.registry.strands(MX1, DRAIN) == []

    def test_a_group_is_stranded_only_when_all_its_pools_are(self) -> None:
        desk = opened()
        desk.check("---", MX2, MX3)
        assert desk.registry.strands(MX1, MAINT) == ["mx"]

    def test_nothing_is_stranded_by_taking_out_what_was_of_no_use(self) -> None:
        desk = opened()
        desk.check("---", MX1)
        assert desk.registry.strands(MX1, MAINT) == []

    def test_the_last_backend_that_may_be_tried_at_all_counts_too(self) -> None:
        desk = opened()
        desk.check("---", MX3)
        assert desk.registry.strands(MX3, MAINT) == ["out"]

    def test_back_to_ready_strands_nobody(self) -> None:
        desk = opened()
        desk.registry.set_operator(MX3, MAINT, "", None)
        assert desk.registry.strands(MX3, READY) == []

    def test_drain_to_maint_strands_nobody_further(self) -> None:
        desk = opened()
        desk.registry.set_operator(MX3, DRAIN, "", None)
        assert desk.registry.strands(MX3, MAINT) == []


def test_listeners_see_all_pools_of_their_group() -> None:
    desk = opened()
    assert [record.settings.name for record in desk.registry.target_backends("site")] == ["mx1", "mx2", "mx3"]
    assert [record.settings.name for record in desk.registry.target_backends("west")] == ["mx3"]
    assert listener("mx", "site").target == "site"


def test_after_close_nothing_happens_any_more() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, DRAIN, "", 60)
    desk.registry.close()
    published = len(desk.snapshots)
    desk.turn()
    desk.go(100)
    assert len(desk.snapshots) == published
    assert desk.registry.backends[MX1].operator.state is DRAIN
