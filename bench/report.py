"""What came out: medians, spread, and ratios to HAProxy of the same round; as a table, and as JSON.

Invariant: a ratio is of two neighbours of one round, so that what the machine did to one it did to the other.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import Case
from bench.subjects import DIRECT, HAPROXY, SMTPLB, Measured

RESULTS = Path(__file__).parent / "results"
HEADER = ("", "in front", "msg/s", "from - to", "x HAProxy", "CPU us/msg", "from - to", "x HAProxy")

Rounds = dict[str, list[Measured]]  # by subject


def ratio(rounds: Rounds, subject: str, of: str = "messages_per_s") -> float | None:
    """Median over the rounds; None where one of the two has no such figure."""
    pairs = [
        (getattr(mine, of), getattr(theirs, of))
        for mine, theirs in zip(rounds[subject], rounds[HAPROXY], strict=True)
    ]
    if any(mine is None or not theirs for mine, theirs in pairs):
        return None
    return median(float(mine / theirs) for mine, theirs in pairs)


def table(results: dict[str, Rounds]) -> str:
    rows: list[Sequence[str]] = [HEADER]
    for case, rounds in results.items():
        for subject, measured in rounds.items():
            speeds = [each.messages_per_s for each in measured]
            costs = [each.cpu_us for each in measured if each.cpu_us is not None]
            rows.append(
                (
                    case if subject == DIRECT else "",
                    subject,
                    f"{median(speeds):,.0f}",
                    f"{min(speeds):,.0f} - {max(speeds):,.0f}",
                    _times(ratio(rounds, subject)),
                    f"{median(costs):,.0f}" if costs else "-",
                    f"{min(costs):,.0f} - {max(costs):,.0f}" if costs else "-",
                    _times(ratio(rounds, subject, "cpu_us")),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def machine() -> dict[str, Any]:
    """What figures depend on, without the name of the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "smtplb": metadata.version("smtplb"),
        "uvloop": metadata.version("uvloop"),
        "haproxy": _version(["/usr/sbin/haproxy", "-v"], r"version (\S+)"),
        "postfix": _version(["/usr/sbin/postconf", "-d", "-h", "mail_version"], r"(\S+)"),
    }


def _version(command: list[str], pattern: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except OSError:
        return "unknown"
    match = re.search(pattern, said)
    return match[1] if match else "unknown"


def store(results: dict[str, Rounds], cases: Sequence[Case], about: dict[str, Any]) -> Path:
    """The file is named after the moment."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    content = {
        "machine": about,
        "cases": [asdict(case) for case in cases],
        "rounds": {
            case: {subject: [asdict(each) for each in measured] for subject, measured in rounds.items()}
            for case, rounds in results.items()
        },
        "ratios_to_haproxy": {
            case: {
                "messages_per_s": ratio(rounds, SMTPLB),
                "cpu_us": ratio(rounds, SMTPLB, "cpu_us"),
            }
            for case, rounds in results.items()
        },
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
