"""What smtplb wants to reach, row by row, and whether it does.

Owns the goals. Invariant: a row is met only by figures of one run; where a case was not measured it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import cases
from bench.cases import CASES, FAIR, HAPROXY, HARAKA, NGINX_TLS, RELAY, SMTPLB, SMTPLB_TLS
from bench.report import Results, Row

RATE, COST = "messages_per_s", "cpu_us"

Figure = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """measured: the figure that counts; beside: others to compare it with. `at_least`: more is better, else less is."""

    name: str
    reach: float
    stretch: float | None
    at_least: bool
    measured: Figure
    beside: tuple[tuple[str, Figure], ...] = ()
    unit: str = "x"

    def is_met(self, value: float, goal: float) -> bool:
        return value >= goal if self.at_least else value <= goal


def ratio(case: str, subject: str, to: str, of: str) -> Figure:
    return lambda results: results.ratio(case, subject, to, of)


def to_haproxy(name: str, case: str, of: str, reach: float, stretch: float | None) -> Goal:
    """The fair HAProxy counts; beside it the bare one, and what the bare relay makes of the same case."""
    return Goal(
        name,
        reach,
        stretch,
        of == RATE,
        ratio(case, SMTPLB, FAIR, of),
        (
            ("to HAProxy bare", ratio(case, SMTPLB, HAPROXY, of)),
            ("the bare relay has", ratio(case, RELAY, FAIR, of)),
        ),
    )


def worst_to_haraka(results: Results) -> float | None:
    found = [value for case in CASES if (value := results.ratio(case.name, SMTPLB, HARAKA, RATE)) is not None]
    return min(found, default=None)


def used(case: str) -> tuple[tuple[str, Figure], ...]:
    """Whether each worker had its fifth of a core, and used it: if not, the quota was not the limit and the ratio is none."""
    return (
        ("100 sessions", ratio(f"{case}, 100", cases.TWO_WORKERS, cases.ONE_WORKER, RATE)),
        ("cores used by one", lambda results: results.cores(case, cases.ONE_WORKER)),
        ("by two and the supervisor", lambda results: results.cores(case, cases.TWO_WORKERS)),
    )


def memory(kind: str, of: str) -> Figure:
    def kib(results: Results) -> float | None:
        return getattr(results.memory[kind], of) / 1024 if kind in results.memory else None

    return kib


GOALS = (
    to_haproxy("new connection per message, 4 KB: messages/s", "new", RATE, 1.1, 1.5),
    to_haproxy("new connection per message, 4 KB: CPU per message", "new", COST, 1.0, 0.8),
    to_haproxy("kept sessions, 4 KB: CPU per message", "kept", COST, 1.7, 1.0),
    to_haproxy("kept sessions, 4 KB: messages/s", "kept", RATE, 0.85, 1.0),
    to_haproxy("pipelining client, kept, 4 KB: CPU per message", "pipelining", COST, 1.2, 0.8),
    to_haproxy("1 MB: MB/s", "1 MB", RATE, 0.75, 0.9),
    to_haproxy("25 MB: MB/s", "25 MB", RATE, 0.85, 0.9),
    Goal(
        "STARTTLS new, TLS to backends: messages/s, x nginx mail with plain backends",
        *(1.5, 3.0, True),
        ratio("STARTTLS new", SMTPLB_TLS, NGINX_TLS, RATE),
        (("kept sessions", ratio("STARTTLS kept", SMTPLB_TLS, NGINX_TLS, RATE)),),
    ),
    Goal("worst case against Haraka: messages/s", 10.0, 15.0, True, worst_to_haraka),
    Goal("idle session, plain", 4.0, 2.0, False, memory("plain", "idle_bytes"), unit="KiB"),
    Goal(
        "idle session, TLS behind the handshake", 24.0, 16.0, False, memory("TLS", "idle_bytes"), unit="KiB"
    ),
    Goal(
        "idle session, TLS behind a 120 KB message",
        *(48.0, 24.0, False),
        memory("TLS", "after_message_bytes"),
        (("plain", memory("plain", "after_message_bytes")),),
        "KiB",
    ),
    Goal(
        "10,000 idle sessions: p99 of 20 working ones, x without them",
        *(1.2, None, False),
        ratio("idle sessions", cases.BESIDE_IDLE, SMTPLB, "p99_ms"),
        (("p50", ratio("idle sessions", cases.BESIDE_IDLE, SMTPLB, "p50_ms")),),
    ),
    Goal(
        "two workers against one, new: messages/s",
        *(1.85, None, True),
        ratio("workers new", cases.TWO_WORKERS, cases.ONE_WORKER, RATE),
        used("workers new"),
    ),
    Goal(
        "two workers against one, kept: messages/s",
        *(1.85, None, True),
        ratio("workers kept", cases.TWO_WORKERS, cases.ONE_WORKER, RATE),
        used("workers kept"),
    ),
    Goal(
        "300 backends, 1,000 routes: CPU per message, x 3 and 1",
        *(1.1, None, False),
        ratio("growth", cases.MANY, cases.FEW, COST),
        (
            ("300 backends alone", ratio("growth", "300 backends", cases.FEW, COST)),
            ("1,000 routes alone", ratio("growth", "1,000 routes", cases.FEW, COST)),
        ),
    ),
)

HEADER = ("case", "reach", "stretch", "measured", "met", "beside it")


def reach_table(results: Results) -> list[Row]:
    return [HEADER, *(_row(goal, results) for goal in GOALS)]


def _row(goal: Goal, results: Results) -> Sequence[str]:
    sign = ">=" if goal.at_least else "<="
    value = goal.measured(results)
    beside = [
        f"{name} {_figure(other, goal.unit)}"
        for name, figure in goal.beside
        if (other := figure(results)) is not None
    ]
    return (
        goal.name,
        f"{sign} {_figure(goal.reach, goal.unit)}",
        "" if goal.stretch is None else _figure(goal.stretch, goal.unit),
        "not measured" if value is None else _figure(value, goal.unit),
        _verdict(goal, value),
        ", ".join(beside),
    )


def _verdict(goal: Goal, value: float | None) -> str:
    if value is None:
        return "-"
    if goal.stretch is not None and goal.is_met(value, goal.stretch):
        return "yes, stretch"
    return "yes" if goal.is_met(value, goal.reach) else "no"


def _figure(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == "x" else f"{value:.1f} {unit}"
