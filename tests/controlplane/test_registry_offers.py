"""The registry: what checks saw of a backend (its identity, what it offers), and routes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtplb.controlplane.registry import CheckResult, Seen
from smtplb.messages import BackendState
from smtplb.observe.events import Notice
from smtplb.settings import RouteSettings, Rule, TrafficSettings
from tests.controlplane.test_registry import DRAIN, MAINT, MX1, MX2, READY, Desk, opened
from tests.controlplane.things import backend, listener, pool, two_sites


class TestIdentity:
    def test_a_backend_without_it_takes_nothing_not_even_as_a_last_resort_and_says_why(self) -> None:
        desk = opened()
        desk.lacks_identity(MX1)
        desk.turn()
        told = desk.snapshots[-1].standings[MX1]
        assert (told.state, told.usable, told.last_resort) == (BackendState.UNPROVEN, False, False)
        (change,) = desk.changes()
        assert (change.old, change.new) == ("up", "unproven")
        assert change.reason == desk.registry.backends[MX1].reason == "identity: does not offer XCLIENT"

    def test_it_is_told_though_the_state_has_the_name_of_one_that_was_not_checked(self) -> None:
        desk = Desk(two_sites())
        desk.registry.open()
        desk.clock.go(5)
        desk.lacks_identity(MX1)
        desk.turn()
        assert [(change.old, change.new) for change in desk.changes()] == [("unproven", "unproven")]
        assert not desk.snapshots[-1].standings[MX1].last_resort
        assert desk.registry.backends[MX1].since == desk.clock.wall()

    def test_the_first_check_that_proves_it_brings_the_backend_back(self) -> None:
        desk = opened()
        desk.lacks_identity(MX1)
        desk.go(60)
        desk.check("-", MX1, text="connection refused")
        assert desk.registry.backends[MX1].reason == "identity: does not offer XCLIENT"
        desk.offers(MX1)
        lost, back = desk.changes()
        assert (back.new, back.reason) == ("up", "check: 250 mx, identity proven")
        assert back.down_for_s == pytest.approx(60)
        assert lost.down_for_s is None

    def test_the_operators_word_stands_above_it(self) -> None:
        desk = opened()
        desk.registry.set_operator(MX1, DRAIN, "disk", None)
        desk.changes()
        desk.lacks_identity(MX1)
        assert desk.changes() == []
        desk.registry.set_operator(MX1, READY, "", None)
        (change,) = desk.changes()
        assert (change.old, change.new) == ("drain", "unproven")

    def test_load_goes_to_the_other_pool(self) -> None:
        desk = opened()
        desk.lacks_identity(MX1)
        desk.lacks_identity(MX2)
        desk.turn()
        assert desk.shares == {"east": 0, "west": 100}


class TestOffers:
    def test_they_are_published_when_they_change_and_only_then(self) -> None:
        desk = opened()
        desk.offers(MX1, DSN=b"")
        desk.turn()
        assert desk.snapshots[-1].standings[MX1].offers == {b"DSN": b""}
        generation = desk.snapshots[-1].generation
        desk.offers(MX1, DSN=b"")
        desk.turn()
        assert desk.snapshots[-1].generation == generation
        desk.offers(MX1, DSN=b"", SIZE=b"100")
        desk.turn()
        assert desk.snapshots[-1].generation == generation + 1

    def test_none_seen_is_not_the_same_as_none_offered(self) -> None:
        desk = opened()
        assert desk.snapshots[-1].standings[MX1].offers is None
        desk.offers(MX1)
        desk.turn()
        assert desk.snapshots[-1].standings[MX1].offers == {}

    def test_they_are_kept_while_the_backend_is_down_or_taken_out(self) -> None:
        desk = opened()
        desk.offers(MX1, DSN=b"")
        desk.check("---", MX1)
        desk.turn()
        assert desk.snapshots[-1].standings[MX1].offers == {b"DSN": b""}
        desk.registry.set_operator(MX1, MAINT, "", None)
        desk.registry.set_operator(MX1, READY, "", None)
        desk.turn()
        assert desk.snapshots[-1].standings[MX1].offers == {b"DSN": b""}

    def test_a_change_is_told_the_first_look_is_not(self) -> None:
        desk = opened()
        desk.offers(MX1, DSN=b"", SIZE=b"100")
        assert desk.events == []
        desk.offers(MX1, SMTPUTF8=b"", SIZE=b"200")
        (notice,) = desk.events
        assert isinstance(notice, Notice)
        assert notice.text == "east/mx1 no longer offers DSN, SIZE 100; now offers SIZE 200, SMTPUTF8"
        assert notice.fields == {"pool": "east", "backend": "mx1"}

    def test_a_backend_without_its_identity_is_seen_too(self) -> None:
        desk = opened()
        desk.registry.check_result(
            MX1, CheckResult(False, "identity: does not offer XCLIENT", 0.01, False, Seen({b"DSN": b""}))
        )
        desk.turn()
        assert desk.snapshots[-1].standings[MX1].offers == {b"DSN": b""}


def routed() -> TrafficSettings:
    """Listener mx -> route: some to pool lab, the rest to the group."""
    traffic = two_sites()
    rules = (Rule(None, "lab"), Rule(None, refuse=None), Rule(None, "site"), Rule(None, "site"))
    return replace(
        traffic,
        listeners=(listener("mx", "inbound"),),
        pools=(*traffic.pools, pool("lab", backend("lab", "l1"))),
        routes=(RouteSettings("inbound", rules),),
    )


class TestRoutes:
    def test_a_listener_may_use_the_backends_of_every_rule(self) -> None:
        registry = opened(routed()).registry
        assert registry.targets("inbound") == {"lab": ["lab"], "site": ["east", "west"]}
        names = [record.settings.name for record in registry.target_backends("inbound")]
        assert names == ["l1", "mx1", "mx2", "mx3"]

    def test_a_change_that_leaves_one_rule_without_a_backend_strands_the_listener(self) -> None:
        desk = opened(routed())
        desk.check("+", ("lab", "l1"))
        assert desk.registry.strands(("lab", "l1"), DRAIN) == ["mx"]
        assert desk.registry.strands(MX1, DRAIN) == []
