"""The tables of a run in docs/: each stands between two comments that name it.

Owns those places. Invariant: nothing outside of them is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import report
from bench.reach import reach_table
from bench.report import Results, Row
from bench.scaling import a_day, cores_and_machines

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "performance.md", DOCS / "scaling.md")
PLOT = DOCS / "performance.svg"

TABLES: dict[str, Callable[[Results], Sequence[Row]]] = {
    "reach": reach_table,
    "speeds": report.speeds,
    "latencies": report.latencies,
    "memory": report.memories,
    "growth": report.growth,
    "a-day": a_day,
    "machines": cores_and_machines,
}

_PLACE = re.compile(r"(<!-- bench: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def contents(results: Results) -> dict[str, str]:
    """By name, as Markdown."""
    found = {name: report.markdown(table(results)) for name, table in TABLES.items()}
    return {"machine": machine(results), **found}


def machine(results: Results) -> str:
    about = dict(results.about)
    minutes = about.pop("minutes", "?")
    about.pop("run", None)
    words = ", ".join(f"{name} {value}" for name, value in about.items())
    busiest = max(
        (each.others for rounds in results.cases.values() for found in rounds.values() for each in found),
        default=0.0,
    )
    left_out = "".join(f" Without {name}: {why}." for name, why in results.left_out.items())
    return (
        f"{words}. {minutes} minutes; at most {busiest:.0%} of the machine was busy with something else "
        f"during a round that counts.{left_out}"
    )


def write(results: Results, pages: Sequence[Path] = PAGES) -> None:
    found = contents(results)
    for page in pages:
        page.write_text(
            _PLACE.sub(lambda place: f"{place[1]}{found[place[2]]}\n{place[3]}", page.read_text())
        )
