"""`python -m bench`: measures all cases in interleaved rounds, prints tables, stores JSON and a plot.

Ends with what smtplb wants to reach and whether it does. docs/performance.md says how to read the figures.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import pages, report
from bench.cases import CASES, Case
from bench.memory import QUICK_SESSIONS, SESSIONS, measure_memory
from bench.plot import draw
from bench.reach import reach_table
from bench.report import Results
from bench.rounds import measure
from bench.subjects import Field, missing
from tests.e2e.balancer import Smtplb
from tests.lab import HAProxy, SmtpSink, SmtpSource

MEMORY = "memory"
QUICK_SECONDS, QUICK_ROUNDS, MEMORY_ROUNDS = 0.4, 1, 2


def main() -> int:
    options = arguments()
    if options.markdown is not None or options.docs is not None:
        return show(options)
    for program in (SmtpSink, SmtpSource, HAProxy, Smtplb):
        reason = program.available()
        if reason is not None:
            print(f"{reason}: run `make mtas` as root on Debian", file=sys.stderr)
            return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # all that was started ends with us
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # 10,000 sessions stand in some cases
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    results = run(chosen, options)
    print_tables(results, chosen)
    print(f"\n{report.store(results)}")
    if results.about["run"] == report.WHOLE:
        draw(results, pages.PLOT)
        print(f"{pages.PLOT}; `python -m bench --docs` puts the tables into docs/ as well")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each: a look, not a figure")
    parser.add_argument("--rounds", type=int, help="of each case")
    parser.add_argument("--seconds", type=float, help="of load for each subject in a round")
    parser.add_argument(
        "--case",
        action="append",
        metavar="NAME",
        choices=[*(case.name for case in CASES), MEMORY],
        help="only this one; may be given several times. One of: "
        + ", ".join([*(c.name for c in CASES), MEMORY]),
    )
    stored: dict[str, Any] = {"nargs": "?", "const": "", "metavar": "JSON"}
    parser.add_argument(
        "--markdown",
        **stored,
        help="measure nothing: print the tables of a stored run (the newest whole one)",
    )
    parser.add_argument(
        "--docs", **stored, help="measure nothing: put the tables and the plot of a stored run into docs/"
    )
    return parser.parse_args()


def run(chosen: Sequence[Case], options: argparse.Namespace) -> Results:
    is_whole = not (options.quick or options.case or options.rounds or options.seconds)
    results = Results(report.machine() | {"run": report.WHOLE if is_whole else report.PART})
    print(", ".join(f"{key} {value}" for key, value in results.about.items()))
    began = time.monotonic()
    with Field() as field:
        for case in chosen:
            results.left_out |= {name: why for name in case.subjects if (why := missing(name)) is not None}
            print(f"{time.monotonic() - began:4.0f} s  {case.describe()}", flush=True)
            rounds = options.rounds or (QUICK_ROUNDS if options.quick else case.rounds)
            seconds = options.seconds or (QUICK_SECONDS if options.quick else case.seconds)
            results.cases[case.name] = measure(field, case, rounds, seconds)
        if not options.case or MEMORY in options.case:
            print(f"{time.monotonic() - began:4.0f} s  {MEMORY}", flush=True)
            rounds = options.rounds or (QUICK_ROUNDS if options.quick else MEMORY_ROUNDS)
            sessions = QUICK_SESSIONS if options.quick else SESSIONS
            for kind, tls in (("plain", False), ("TLS", True)):
                results.memory[kind] = measure_memory(field, tls=tls, rounds=rounds, sessions=sessions)
    results.about["minutes"] = round((time.monotonic() - began) / 60, 1)
    return results


def print_tables(results: Results, chosen: Sequence[Case] = CASES) -> None:
    tables = (
        report.speeds(results, chosen),
        report.growth(results),
        report.latencies(results),
        report.memories(results),
    )
    for rows in tables:
        if len(rows) > 1:
            print(f"\n{report.text(rows)}")
    for subject, why in results.left_out.items():
        print(f"\nwithout {subject}: {why}")
    print(f"\n{report.text(reach_table(results), left=1)}")


def show(options: argparse.Namespace) -> int:
    """Of a stored run."""
    name = options.markdown or options.docs
    path = Path(name) if name else report.newest()
    if path is None:
        print(f"no whole run is stored in {report.RESULTS}", file=sys.stderr)
        return 1
    results = report.read(path)
    if options.docs is not None:
        pages.write(results)
        draw(results, pages.PLOT)
    if options.markdown is not None:
        print("\n\n".join(pages.contents(results).values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
