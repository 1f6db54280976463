"""What came out: medians with their spread, and ratios inside a round; as text, as Markdown, and as JSON that can be read again.

Invariant: a ratio is of two neighbours of one round, so that what the machine did to one it did to the other.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import CASES, FAIR, HAPROXY, Case
from bench.memory import Memory
from bench.rounds import Measured, Rounds

RESULTS = Path(__file__).resolve().parent / "results"
WHOLE, PART = "whole", "part"


@dataclass(slots=True)
class Results:
    """Of a whole run. `memory`: "plain" and "TLS"."""

    about: dict[str, Any]
    cases: dict[str, Rounds] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # subject -> why

    def figures(self, case: str, subject: str, of: str) -> list[float]:
        """One for each round; empty where there are none."""
        found = [getattr(each, of) for each in self.cases.get(case, {}).get(subject, [])]
        return [] if any(value is None for value in found) else found

    def ratio(self, case: str, subject: str, to: str, of: str = "messages_per_s") -> float | None:
        """Median over the rounds; None where one of the two has no such figure."""
        mine, theirs = self.figures(case, subject, of), self.figures(case, to, of)
        if not mine or len(mine) != len(theirs) or not all(theirs):
            return None
        return median(one / other for one, other in zip(mine, theirs, strict=True))

    def median(self, case: str, subject: str, of: str) -> float | None:
        found = self.figures(case, subject, of)
        return median(found) if found else None

    def cores(self, case: str, subject: str) -> float | None:
        """How much of a core the balancer used, all of its processes together."""
        found = [each.shares.get("balancer", 0.0) for each in self.cases.get(case, {}).get(subject, [])]
        return median(found) if found else None


# -- tables

Row = Sequence[str]


def text(rows: Sequence[Row], left: int = 2) -> str:
    """Columns that stand below each other; the first `left` ones are words."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


HEADER = (
    *("case", "in front", "msg/s", "from - to", "x HAProxy", "x fair"),
    *("CPU us/msg", "from - to", "x HAProxy", "x fair", "limit"),
)


def speeds(results: Results, cases: Iterable[Case] = CASES) -> list[Row]:
    """All cases without a rate: speed and cost, and their ratios to both HAProxys."""
    rows: list[Row] = [HEADER]
    for case in cases:
        if case.rate is not None:
            continue
        for number, (subject, rounds) in enumerate(results.cases.get(case.name, {}).items()):
            rows.append(
                (
                    case.name if number == 0 else "",
                    subject,
                    *_with_spread(results.figures(case.name, subject, "messages_per_s")),
                    *_to_both(results, case.name, subject, "messages_per_s"),
                    *_with_spread(results.figures(case.name, subject, "cpu_us")),
                    *_to_both(results, case.name, subject, "cpu_us"),
                    limit(rounds),
                )
            )
    return rows


def growth(results: Results) -> list[Row]:
    """Cases whose subjects are all smtplb: each against the first."""
    rows: list[Row] = [("case", "smtplb with", "CPU us/msg", "from - to", "x first", "msg/s", "x first")]
    for case, rounds in results.cases.items():
        first = next(iter(rounds), None)
        if first is None or case.split(" ")[0] not in ("growth", "workers"):
            continue
        rows.extend(
            (
                case if subject == first else "",
                subject,
                *_with_spread(results.figures(case, subject, "cpu_us")),
                times(results.ratio(case, subject, first, "cpu_us")),
                number(results.median(case, subject, "messages_per_s")),
                times(results.ratio(case, subject, first)),
            )
            for subject in rounds
        )
    return rows


def latencies(results: Results) -> list[Row]:
    rows: list[Row] = [("case", "in front", "p50 ms", "p99 ms", "added p50", "added p99")]
    for case, rounds in results.cases.items():
        for index, subject in enumerate(rounds):
            p50, p99 = (results.median(case, subject, of) for of in ("p50_ms", "p99_ms"))
            if p50 is None or p99 is None:
                continue
            first = next(iter(rounds))
            base50, base99 = (results.median(case, first, of) or 0.0 for of in ("p50_ms", "p99_ms"))
            added = (f"{p50 - base50:.2f}", f"{p99 - base99:.2f}") if index else ("-", "-")
            rows.append(("" if index else case, subject, f"{p50:.2f}", f"{p99:.2f}", *added))
    return rows


def memories(results: Results) -> list[Row]:
    rows: list[Row] = [("an idle session", "behind EHLO", "behind a 120 KB message", "process at first")]
    for kind, memory in results.memory.items():
        sizes = (f"{size / 1024:.1f} KiB" for size in (memory.idle_bytes, memory.after_message_bytes))
        rows.append((kind, *sizes, f"{memory.process_mib:.0f} MiB"))
    return rows


def limit(rounds: Sequence[Measured]) -> str:
    """Of most rounds."""
    found = [each.limit for each in rounds]
    return max(set(found), key=found.count)


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _with_spread(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    return number(median(values)), f"{number(min(values))} - {number(max(values))}"


def _to_both(results: Results, case: str, subject: str, of: str) -> tuple[str, str]:
    return times(results.ratio(case, subject, HAPROXY, of)), times(results.ratio(case, subject, FAIR, of))


# -- the machine


def machine() -> dict[str, Any]:
    """What figures depend on, without the name of the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "smtplb": f"{metadata.version('smtplb')} {_form()}",
        "uvloop": metadata.version("uvloop"),
        "haproxy": _version(["/usr/sbin/haproxy", "-v"], r"version (\S+)"),
        "nginx": _version(["/usr/sbin/nginx", "-v"], r"nginx/(\S+)"),
        "postfix": _version(["/usr/sbin/postconf", "-d", "-h", "mail_version"], r"(\S+)"),
    }


def _form() -> str:
    """Which one is first on the path: for us, and for what we start."""
    found = find_spec("smtplb.dataplane.session")
    is_compiled = found is not None and found.origin is not None and found.origin.endswith(".so")
    return "compiled" if is_compiled else "in pure Python"


def _version(command: list[str], pattern: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return "unknown"
    match = re.search(pattern, ended.stdout + ended.stderr)
    return match[1] if match else "unknown"


# -- kept


def store(results: Results) -> Path:
    """The file is named after the moment."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    path.write_text(json.dumps(asdict(results), indent=1) + "\n")
    return path


def newest() -> Path | None:
    """Of the whole runs: parts and quick ones are for looking at, not for keeping."""
    whole = [
        path for path in RESULTS.glob("*.json") if json.loads(path.read_text())["about"].get("run") == WHOLE
    ]
    return max(whole, default=None)


def read(path: Path) -> Results:
    kept = json.loads(path.read_text())
    return Results(
        about=kept["about"],
        cases={
            case: {subject: [Measured(**each) for each in measured] for subject, measured in rounds.items()}
            for case, rounds in kept["cases"].items()
        },
        memory={kind: Memory(**each) for kind, each in kept["memory"].items()},
        left_out=kept["left_out"],
    )
