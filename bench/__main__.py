"""`python -m bench [--rounds N] [--quick] [--case NAME]`: measures in rounds, prints a table, stores JSON."""

from __future__ import annotations

import argparse
import sys

from bench.cases import CASES, Case
from bench.report import Rounds, machine, store, table
from bench.subjects import SMTPLB, Measured, Subjects, running
from tests.e2e.balancer import Smtplb
from tests.lab import HAProxy, SmtpSink, SmtpSource

ROUNDS, QUICK_ROUNDS = 7, 3
QUIET = 0.1  # of the machine for others: above it a round is disturbed. Interrupts alone are some 0.03
PATIENCE = 3  # so many times the rounds are measured at most to get enough quiet ones


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
    results: dict[str, Rounds] = {}
    with running() as subjects:
        for case in cases:
            print(case.describe(), flush=True)
            warm_up = case.quick() if not options.quick else case
            for name in subjects.names:
                subjects.measure(name, warm_up)
            results[case.name] = measure(subjects, case, rounds)
        memory = subjects.processes[SMTPLB]
        assert isinstance(memory, Smtplb)
        about["smtplb_rss_mib"] = round(memory.rss_bytes() / 2**20, 1)
        complaints = memory.complaints()
    print()
    print(table(results))
    print(f"\n{store(results, cases, about)}")
    for line in complaints:
        print(line, file=sys.stderr)
    return 1 if complaints else 0


def measure(subjects: Subjects, case: Case, rounds: int) -> Rounds:
    """So many rounds: the quiet ones, and if there are not enough, the least disturbed."""
    measured: list[dict[str, Measured]] = []
    quiet = 0
    while quiet < rounds and len(measured) < PATIENCE * rounds:
        measured.append({name: subjects.measure(name, case) for name in subjects.names})
        quiet += disturbance(measured[-1]) <= QUIET
        print(
            f"  round {len(measured)}: {disturbance(measured[-1]):.0%} for others",
            file=sys.stderr,
            flush=True,
        )
    if quiet < rounds:
        print(f"  only {quiet} of {rounds} rounds were quiet", flush=True)
    kept = sorted(measured, key=disturbance)[:rounds]
    return {name: [each[name] for each in kept] for name in subjects.names}


def disturbance(measured: dict[str, Measured]) -> float:
    return max(each.others for each in measured.values())


if __name__ == "__main__":
    sys.exit(main())
