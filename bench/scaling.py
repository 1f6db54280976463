"""Messages a day for a core, and cores and machines for so many messages a day, computed from what was measured.

Owns the assumptions. Does not measure. Invariant: every figure follows from CPU time a message and the constants below.
"""

from __future__ import annotations

from math import ceil

from bench.cases import KIB, SMTPLB, SMTPLB_TLS
from bench.report import Results, Row

DAY_S = 86_400
PEAK = 5.0  # the busiest minute of a day, times its average: mailings and mornings
FILL = 0.6  # of a core at the peak: what is above is for fail-over and for a machine that is missing
MAIL_BYTES = 75 * KIB  # of an average message, attachments included
CORES = 8  # of a machine
DAYS = (1_000_000, 100_000_000, 1_000_000_000)


def kinds(results: Results) -> dict[str, float]:
    """CPU us a message, by what kind of mail it is; those that were measured."""
    found = {
        "4 KB, sessions that stay, no TLS": results.median("kept", SMTPLB, "cpu_us"),
        "4 KB, a session for each, no TLS": results.median("new", SMTPLB, "cpu_us"),
        "4 KB, a session for each, TLS at both ends": results.median("STARTTLS new", SMTPLB_TLS, "cpu_us"),
        "75 KB, a session for each, TLS at both ends": usual_us(results),
    }
    return {kind: cost for kind, cost in found.items() if cost is not None}


def usual_us(results: Results) -> float | None:
    """A session with STARTTLS for a small message, and what its size adds: measured between 4 KB and 100 KB in kept sessions."""
    session, small, large = (
        results.median(case, SMTPLB_TLS, "cpu_us")
        for case in ("STARTTLS new", "STARTTLS kept", "STARTTLS 100 KB")
    )
    if session is None or small is None or large is None:
        return None
    return session + (large - small) * (MAIL_BYTES - 4 * KIB) / (96 * KIB)


def a_day(results: Results) -> list[Row]:
    rows: list[Row] = [
        (
            "mail",
            "CPU us a message",
            "messages/s a core, full",
            f"a day a core, peak {PEAK:.0f} x, {FILL:.0%}",
        )
    ]
    for kind, cost in kinds(results).items():
        rows.append((kind, f"{cost:,.0f}", f"{1e6 / cost:,.0f}", f"{per_day(cost) / 1e6:,.0f} million"))
    return rows


def per_day(cost_us: float) -> float:
    return 1e6 / cost_us * FILL / PEAK * DAY_S


def cores_and_machines(results: Results) -> list[Row]:
    """One machine more than the load needs, and two at least: one may be gone."""
    rows: list[Row] = [
        ("messages a day", "a second at the peak", "mail", "cores", f"machines of {CORES} cores, one spare")
    ]
    for day in DAYS:
        for number, (kind, cost) in enumerate(kinds(results).items()):
            cores = day / per_day(cost)
            machines = max(2, ceil(cores / CORES) + 1)
            peak = f"{day / DAY_S * PEAK:,.0f}"
            first = (f"{day:,}", peak) if number == 0 else ("", "")
            rows.append((*first, kind, f"{cores:.2g}" if cores < 10 else f"{cores:.0f}", str(machines)))
    return rows
