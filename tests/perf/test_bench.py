"""The benchmark itself: figures that can be trusted, and programs of its own that do what their cases say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from statistics import linear_regression
from xml.etree import ElementTree

import pytest

from bench import pages, report
from bench.cases import CASES, FAIR, HAPROXY, RELAY, SMTPLB
from bench.load.traffic import Plan, body, quantile, steps
from bench.plot import draw
from bench.programs import BareRelay, TlsSink, module
from bench.reach import GOALS, reach_table
from bench.report import Results
from bench.rounds import Measured
from bench.soak import STEP_KIB, steepest_step
from bench.subjects import SUBJECTS, make_certificate
from tests.lab import SmtpSink
from tests.lab.fixtures import Lab


def measured(rate: float, cost: float, **shares: float) -> Measured:
    return Measured(100, rate, cost, shares, busy=0.5, others=0.0)


def results() -> Results:
    """In the second round the machine did everything half as fast."""
    new = {
        HAPROXY: [measured(1000, 100), measured(500, 200)],
        FAIR: [measured(800, 120), measured(400, 240)],
        RELAY: [measured(2000, 60), measured(1000, 120)],
        SMTPLB: [measured(1200, 90), measured(600, 180)],
    }
    return Results({"cpu": "of a test"}, {"new": new})


# -- rows of cases and goals


def test_every_subject_of_a_case_can_be_made() -> None:
    assert {subject for case in CASES for subject in case.subjects} == set(SUBJECTS)


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_goal_has_figures_once_all_cases_were_measured() -> None:
    everything = Results(
        {}, {case.name: {name: [measured(10, 10)] for name in case.subjects} for case in CASES}
    )
    without = [goal.name for goal in GOALS if goal.measured(everything) is None and goal.unit == "x"]
    assert without == ["10,000 idle sessions: p99 of 20 working ones, x without them"]  # no latencies here


# -- figures


def test_a_ratio_is_of_two_neighbours_of_one_round() -> None:
    assert results().ratio("new", SMTPLB, FAIR) == pytest.approx(1.5)
    assert results().ratio("new", SMTPLB, FAIR, "cpu_us") == pytest.approx(0.75)


def test_a_case_that_was_not_measured_has_no_ratio_and_meets_nothing() -> None:
    assert results().ratio("kept", SMTPLB, FAIR) is None
    assert [row[4] for row in reach_table(results())[1:]] == ["yes, stretch"] * 2 + ["-"] * (len(GOALS) - 2)


def test_who_fills_a_core_is_the_limit() -> None:
    assert measured(1, 1, load=0.95, balancer=0.5).limit == "load"
    assert measured(1, 1, load=0.95, balancer=0.91).limit == "load and balancer"
    assert measured(1, 1, load=0.2, balancer=0.3).limit == "waiting"


def test_what_was_stored_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.read(report.store(results())) == results()


def test_only_whole_runs_are_taken_for_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.newest() is None
    for name, run in (("1", report.WHOLE), ("2", report.PART)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"about": {"run": run}}))
    assert report.newest() == tmp_path / "1.json"


def test_only_what_stands_between_its_comments_changes_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench: reach -->\nold\n<!-- end -->\nafter\n")
    pages.write(results(), [page])
    text = page.read_text()
    assert text.startswith("before\n<!-- bench: reach -->\n| case |")
    assert text.endswith(" |\n<!-- end -->\nafter\n")
    assert "old" not in text


def test_the_picture_is_xml_even_where_cases_are_missing(tmp_path: Path) -> None:
    draw(results(), tmp_path / "plot.svg")
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")


# -- the load


def test_a_message_has_the_size_that_was_asked_for_and_one_end() -> None:
    for size in (500, 4096, 100_000):
        content = body(size)
        assert len(content) == size + len(b".\r\n")
        assert content.count(b"\r\n.\r\n") == 1


def test_a_pipelining_client_says_all_up_to_data_in_one_piece() -> None:
    plan = Plan(port=25, messages=1, sessions=1, size_bytes=100, recipients=2, pipelining=True)
    (said, replies), _ = steps(plan)
    assert said.count(b"\r\n") == replies == 4


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([], 0.5) == 0.0
    assert [quantile([1.0, 2.0, 3.0, 4.0], part) for part in (0.0, 0.5, 1.0)] == [1.0, 3.0, 4.0]


def load(port: int, *options: object) -> dict[str, object]:
    ended = subprocess.run(
        module("bench.load", port, "--messages", 40, "--sessions", 4, *options),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures: dict[str, object] = json.loads(ended.stdout)
    return figures


LOADS = {
    "new": (),
    "kept": ("--keep",),
    "pipelining": ("--keep", "--pipelining", "--recipients", 3),
    "rate": ("--keep", "--rate", 400),
}


@pytest.mark.parametrize("options", LOADS.values(), ids=LOADS.keys())
def test_every_message_of_the_load_goes_through_the_bare_relay(lab: Lab, options: tuple[object, ...]) -> None:
    sinks = [lab.start(SmtpSink(f"sink{number}")) for number in (1, 2)]
    relay = lab.start(BareRelay([sink.port for sink in sinks]))
    assert load(relay.port, *options)["messages"] == 40
    assert [sink.messages() for sink in sinks] == [20, 20]


def test_every_message_reaches_the_sink_with_tls(lab: Lab, tmp_path: Path) -> None:
    sink = lab.start(TlsSink("tls-sink", make_certificate(tmp_path)))
    load(sink.port, "--tls")
    load(sink.port, "--tls", "--keep", "--size", 100_000)
    assert sink.messages() == 80


def test_the_soak_allows_one_step_of_memory_wherever_it_falls_and_no_second() -> None:
    minutes, samples = 20.0, 240

    def slope(*steps_at: int) -> float:
        times = [minutes * number / samples for number in range(samples)]
        kib = [STEP_KIB * sum(number >= at for at in steps_at) for number in range(samples)]
        return linear_regression(times, kib).slope

    allowed = steepest_step(minutes)
    assert max(slope(at) for at in range(1, samples)) == pytest.approx(allowed, rel=0.01)
    assert slope(80, 160) > allowed
