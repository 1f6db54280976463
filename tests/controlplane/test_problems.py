"""Problems: from a state of affairs to what the operator reads first."""

from __future__ import annotations

import re

import pytest

from smtplb.controlplane.certificate_watch import CertificateWatch
from smtplb.controlplane.picture import Picture
from smtplb.controlplane.problems import condition, find_problems, for_so_long
from smtplb.controlplane.registry import Registry
from smtplb.controlplane.views import Problem
from smtplb.messages import BackendReport, ListenerReport, WorkerReport
from smtplb.policy.health import OperatorState
from smtplb.settings import Address, FailbackMode
from tests.controlplane.test_registry import MX1, MX2, MX3, Desk, opened
from tests.controlplane.things import two_sites


def picture(desk: Desk, report: WorkerReport | None = None) -> Picture:
    registry: Registry = desk.registry
    return Picture(
        registry,
        report or WorkerReport(1, 1, [], [], []),
        now=desk.clock.now,
        next_check_in_s=lambda key: 4.0,
        bound={"mx": [Address("127.0.0.1", 2525)]},
        certificates=watch(desk),
    )


def watch(desk: Desk) -> CertificateWatch:
    return CertificateWatch(
        desk.registry.traffic,
        deadlines=desk.clock.deadlines,
        wall=desk.clock.wall,
        emit=desk.events.append,
        changed=lambda: None,
    )


def problems(desk: Desk, phase: str = "serving") -> list[Problem]:
    desk.turn()
    drawn = picture(desk)
    return find_problems(drawn.listeners(), drawn.groups(), drawn.pools(), now=desk.clock.wall(), phase=phase)


def anchors(desk: Desk) -> list[tuple[str, str]]:
    return [(problem.where, problem.anchor) for problem in problems(desk)]


def test_all_well_is_no_problem() -> None:
    assert problems(opened()) == []
    assert condition([]) == "ok"


def test_a_backend_that_is_down_degrades() -> None:
    desk = opened()
    desk.check("---", MX1, text="connection refused")
    desk.go(14 * 60)
    (problem,) = problems(desk)
    assert (problem.severity, problem.where, problem.anchor) == ("degraded", "east/mx1", "backend-down")
    assert problem.text == "down for 14 min: connection refused"
    assert "127.0.0.1:25" in problem.hint
    assert condition([problem]) == "degraded"


@pytest.mark.parametrize(
    ("text", "anchor"),
    [
        ("421 4.3.2 All server ports are busy", "backend-421"),
        ("554 5.7.1 not you", "backend-refuses"),
        ("450 later", "backend-refuses"),
        ("no greeting within 8 s", "backend-down"),
        ("4211 nonsense", "backend-421"),
        ("TLS: certificate verify failed", "tls-backend"),
        ("TLS: 454 4.7.0 TLS not available", "tls-backend"),
    ],
)
def test_the_last_words_of_a_backend_choose_the_advice(text: str, anchor: str) -> None:
    desk = opened()
    desk.check("---", MX1, text=text)
    assert anchors(desk) == [("east/mx1", anchor)]


def test_a_listener_without_usable_backends_is_failing_and_comes_first() -> None:
    desk = opened()
    desk.check("---", MX3)
    found = problems(desk)
    assert [(problem.where, problem.anchor) for problem in found] == [
        ("out", "listener-unusable"),
        ("west/mx3", "backend-down"),
    ]
    assert found[0].severity == "failing"
    assert "tried all the same" in found[0].text
    assert condition(found) == "failing"


def test_a_listener_whose_backends_are_all_taken_out_says_so() -> None:
    desk = opened()
    desk.registry.set_operator(MX3, OperatorState.MAINT, "kernel", None)
    found = problems(desk)
    assert [problem.anchor for problem in found] == ["listener-unusable", "operator-drain"]
    assert "all are in drain or maint" in found[0].text


def test_a_pool_that_failed_over_is_told_at_pool_and_group() -> None:
    desk = opened()
    desk.check("---", MX1, MX2)
    found = problems(desk)
    assert [(problem.where, problem.anchor) for problem in found[:2]] == [
        ("east", "pool-unusable"),
        ("site", "group-failed-over"),
    ]
    assert found[1].text == "load goes to west instead of east: east has no usable backend"


def test_a_pending_failback_says_when() -> None:
    desk = opened()
    desk.check("---", MX1, MX2)
    desk.turn()
    desk.check("++", MX1, MX2)
    desk.turn()
    desk.go(10)
    (problem,) = problems(desk)
    assert problem.anchor == "group-failed-over"
    assert re.search(r"fail-back in (49|50) s$", problem.text)


def test_a_manual_failback_that_waits_is_told() -> None:
    desk = opened(two_sites(FailbackMode.MANUAL))
    desk.check("---", MX1, MX2)
    desk.turn()
    desk.check("++", MX1, MX2)
    desk.turn()
    assert anchors(desk) == [("site", "failback-waits")]


def test_the_operators_own_doing_is_told_with_reason_and_end() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, OperatorState.DRAIN, "disk", 7200)
    (problem,) = problems(desk)
    assert problem.text == "drain by the operator for 0 s, disk, 2 h more"


def test_an_ejected_backend_is_told_with_its_reason_and_end() -> None:
    desk = opened()
    desk.registry.set_ejected(MX1, 90, "5 faults in a row")
    desk.go(10)
    (problem,) = problems(desk)
    assert (problem.where, problem.anchor) == ("east/mx1", "backend-ejected")
    assert problem.text == "ejected for 10 s, 2 min more: traffic: 5 faults in a row"


def test_an_unproven_backend_is_told() -> None:
    desk = opened()
    desk.registry.set_operator(MX1, OperatorState.MAINT, "", None)
    desk.registry.set_operator(MX1, OperatorState.READY, "", None)
    assert anchors(desk) == [("east/mx1", "backend-unproven")]


@pytest.mark.parametrize("phase", ["starting", "stopping"])
def test_starting_and_stopping_are_told(phase: str) -> None:
    (problem,) = problems(opened(), phase)
    assert (problem.where, problem.anchor) == ("smtplb", phase)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (200_000, "2 d"), (-1, "0 s")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert for_so_long(seconds) == text


def test_a_picture_shows_what_the_operator_set_and_what_checks_found() -> None:
    desk = opened()
    desk.registry.set_weight(MX1, 1, "new disk")
    desk.check("-", MX1, text="no greeting within 8 s")
    view = picture(desk).pools()[0].backends[0]
    assert (view.state, view.weight, view.effective_weight) == ("up", 2, 1)
    assert (view.operator.weight, view.operator.reason) == (1, "new disk")
    assert (view.check.last_result, view.check.last_text) == ("failed", "no greeting within 8 s")
    assert (view.check.in_a_row, view.check.passed, view.check.failed, view.check.next_in_s) == (1, 1, 1, 4.0)
    assert sum(view.check.durations.counts) == 2


def test_a_picture_shows_what_a_worker_reported_and_nothing_as_zero() -> None:
    desk = opened()
    backend = BackendReport("east", "mx1", in_flight=3, idle=2, attempts={"ok": 7})
    report = WorkerReport(1, 1, [ListenerReport("mx", accepting=True, sessions_open=5)], [], [backend])
    drawn = picture(desk, report)
    mx, out = drawn.listeners()
    assert (mx.accepting, mx.sessions_open, mx.usable_backends, mx.binds) == (True, 5, 3, ["127.0.0.1:2525"])
    assert (out.accepting, out.sessions_open) == (False, 0)
    first, second = drawn.pools()[0].backends
    assert (first.in_flight, first.connections["idle"], first.attempts) == (3, 2, {"ok": 7})
    assert second.in_flight == 0


def test_a_backend_that_is_not_usable_has_no_effective_weight() -> None:
    desk = opened()
    desk.check("---", MX1)
    assert picture(desk).pools()[0].backends[0].effective_weight == 0
    assert picture(desk).pools()[0].usable_ratio == 0.5
