"""`python -m bench [--rounds N] [--quick] [--case NAME]`: measures in rounds, prints a table, stores JSON."""

from __future__ import annotations

import argparse
import os
import sys

from bench.cases import CASES, Case
from bench.report import Rounds, machine, store, table
from bench.subjects import SMTPLB, Subjects, running
from tests.e2e.balancer import Smtplb
from tests.lab import HAProxy, SmtpSink, SmtpSource

ROUNDS, QUICK_ROUNDS = 7, 3
QUIET_LOAD = 0.5  # per core, before we begin: above it somebody else is at work


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"of each case (default {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument(
        "--quick", action="store_true", help="fewer messages and rounds: a look, not a figure"
    )
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    options = parser.parse_args()
    for program in (SmtpSink, SmtpSource, HAProxy, Smtplb):
        reason = program.available()
        if reason is not None:
            print(f"{reason}: run `make mtas` as root on Debian", file=sys.stderr)
            return 1
    cases = [case for case in CASES if options.case in (None, case.name)]
    if options.quick:
        cases = [case.quick() for case in cases]
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)

    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    load = os.getloadavg()[0]
    if load > QUIET_LOAD * about["cores"]:
        print(f"load average {load:.1f}: somebody else is at work here, only ratios mean anything")
    results: dict[str, Rounds] = {}
    loads: list[float] = []
    with running() as subjects:
        for case in cases:
            print(case.describe(), flush=True)
            warm_up = case.quick() if not options.quick else case
            for name in subjects.names:
                subjects.measure(name, warm_up)
            results[case.name] = measure(subjects, case, rounds, loads)
        memory = subjects.processes[SMTPLB]
        assert isinstance(memory, Smtplb)
        about["smtplb_rss_mib"] = round(memory.rss_bytes() / 2**20, 1)
        complaints = memory.complaints()
    print()
    print(table(results))
    print(f"\n{store(results, cases, loads, about)}")
    for line in complaints:
        print(line, file=sys.stderr)
    return 1 if complaints else 0


def measure(subjects: Subjects, case: Case, rounds: int, loads: list[float]) -> Rounds:
    found: Rounds = {name: [] for name in subjects.names}
    for number in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))
        for name in subjects.names:
            found[name].append(subjects.measure(name, case))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
