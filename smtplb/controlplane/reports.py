"""Reports of several workers as one.

Owns adding up. Does not own what is counted.
Invariant: the sum of reports is independent of their order; a worker that reports nothing changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from smtplb.messages import BackendReport, ListenerReport, PoolReport, WorkerReport
from smtplb.observe.histogram import Histogram

K = TypeVar("K")


def ended(report: WorkerReport) -> WorkerReport:
    """What is left of a worker that is gone: its counters, and nothing of what was going on."""
    return replace(
        report,
        listeners=[replace(each, accepting=False, sessions_open=0) for each in report.listeners],
        backends=[replace(each, in_flight=0, idle=0, leased=0, connecting=0) for each in report.backends],
    )


def merged(reports: list[WorkerReport], serial: int) -> WorkerReport:
    """Counters added, generations the lowest: what every worker has."""
    listeners: dict[str, ListenerReport] = {}
    pools: dict[str, PoolReport] = {}
    backends: dict[tuple[str, str], BackendReport] = {}
    for report in reports:
        for listener in report.listeners:
            _add_listener(
                listeners.setdefault(listener.listener, ListenerReport(listener.listener)), listener
            )
        for pool in report.pools:
            into = pools.setdefault(pool.pool, PoolReport(pool.pool))
            _add(into.retries, pool.retries)
            _add_histogram(into.lease_wait, pool.lease_wait)
        for backend in report.backends:
            key = (backend.pool, backend.backend)
            _add_backend(backends.setdefault(key, BackendReport(*key)), backend)
    generation = min((report.generation for report in reports), default=0)
    return WorkerReport(
        serial, generation, list(listeners.values()), list(pools.values()), list(backends.values())
    )


def _add_listener(into: ListenerReport, report: ListenerReport) -> None:
    into.accepting = into.accepting or report.accepting
    into.sessions_open += report.sessions_open
    into.sessions_total += report.sessions_total
    into.message_bytes += report.message_bytes
    _add(into.refusals, report.refusals)
    _add(into.transactions, report.transactions)
    for pool, durations in report.durations.items():
        _add_histogram(into.durations.setdefault(pool, Histogram()), durations)


def _add_backend(into: BackendReport, report: BackendReport) -> None:
    into.in_flight += report.in_flight
    into.idle += report.idle
    into.leased += report.leased
    into.connecting += report.connecting
    _add(into.attempts, report.attempts)
    _add(into.replies, report.replies)
    _add(into.reuse, report.reuse)
    _add_histogram(into.final, report.final)


def _add(into: dict[K, int], counts: dict[K, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


def _add_histogram(into: Histogram, other: Histogram) -> None:
    into.counts = [a + b for a, b in zip(into.counts, other.counts, strict=True)]
    into.sum_s += other.sum_s
