"""Metrics in Prometheus and OpenMetrics form, made from one picture of the control plane at each scrape.

Owns names, labels and which combinations are there before anything happened. Does not own counting: workers
count in plain integers (a labelled counter would cost the data path 20 microseconds a message).
Invariant: label values come from the configuration and from closed sets of ours, never from a client, and are
never an address of a person. Every combination that can be known beforehand is there from the start, at 0.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from smtplb.controlplane.views import BackendView, ListenerView, PoolView, StatusView
from smtplb.observe.histogram import SECONDS_BOUNDS, Histogram
from smtplb.observe.outcomes import AttemptOutcome, TransactionOutcome
from smtplb.policy.outcome import Reason
from smtplb.policy.refusal import Refusal

REFUSAL_REASONS = tuple(sorted({refusal.label for refusal in Refusal}))
CONNECTION_STATES = ("idle", "leased", "connecting")
RELOAD_RESULTS = ("ok", "failed")
REUSE_RESULTS = ("new", "reused", "stale")
GOOD_REPLIES = (("mail", 250), ("rcpt", 250), ("data", 354), ("final", 250))
_IN_TRANSACTION = (
    Reason.BUSY, Reason.STORAGE, Reason.LOST, Reason.TIMEOUT, Reason.GARBLED, Reason.STALE, Reason.MISFIT,
)  # fmt: skip
_OPENING = (Reason.GREETING, Reason.BUSY, Reason.LOST, Reason.TIMEOUT, Reason.GARBLED)
# Phase -> why an attempt that ended there is followed by another (policy/outcome.py has the table).
RETRY_REASONS = {
    "connect": (Reason.CONNECT, Reason.TIMEOUT),
    "greeting": _OPENING,
    "hello": _OPENING,
    "mail": _IN_TRANSACTION,
    "rcpt": (*_IN_TRANSACTION, Reason.MISMATCH),
    "data": _IN_TRANSACTION,
    "block": (Reason.BUSY, Reason.LOST, Reason.TIMEOUT, Reason.GARBLED, Reason.EARLY_REPLY),
}
_UP = frozenset({"up", "off"})  # checks that are off take a backend for up

Key = TypeVar("Key")
Value = tuple[tuple[str, ...], float]  # label values, value
Durations = tuple[tuple[str, ...], Histogram]


def exposition(status: StatusView, accept: str) -> bytes:
    """In the form that an Accept header asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Picture(status))
    encode, _ = choose_encoder(accept)
    return encode(registry)


def content_type(accept: str) -> str:
    """Of the form that an Accept header asks for."""
    return choose_encoder(accept)[1]


class _Picture(Collector):
    def __init__(self, status: StatusView) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for part in (_listeners, _certificates, _pools, _backends, _attempts, _checks, _groups, _process):
            yield from part(self._status)

    def describe(self) -> Iterable[Metric]:
        return ()


def _listeners(status: StatusView) -> Iterator[Metric]:
    listeners = status.listeners
    yield _gauge(
        "sessions_open",
        "Sessions open now.",
        ("listener",),
        [((item.name,), item.sessions_open) for item in listeners],
    )
    yield _counter(
        "sessions",
        "Sessions accepted. tls: the mode of the listener.",
        ("listener", "tls"),
        [((item.name, item.tls), item.sessions_total) for item in listeners],
    )
    yield _counter(
        "refusals",
        "Error replies of our own, by their reason; greetings and ends of sessions included.",
        ("listener", "reason"),
        [
            ((item.name, reason), count)
            for item in listeners
            for reason, count in _from_zero(REFUSAL_REASONS, item.refusals).items()
        ],
    )
    yield _counter(
        "message_bytes",
        "Octets of message bodies handed to backends.",
        ("listener",),
        [((item.name,), item.message_bytes) for item in listeners],
    )
    yield _counter(
        "transactions",
        "Transactions ended, by outcome. pool: empty where none was chosen.",
        ("listener", "pool", "outcome"),
        [
            ((item.name, pool, outcome), count)
            for item in listeners
            for (pool, outcome), count in _from_zero(_ends(status, item), item.transactions).items()
        ],
    )
    yield _histogram(
        "transaction_duration_seconds",
        "From MAIL to the last reply or reset.",
        ("listener", "pool"),
        [
            ((item.name, pool), item.durations.get(pool, Histogram()))
            for item in listeners
            for pool in dict.fromkeys([*_reach(status, item), *item.durations])
        ],
    )


def _certificates(status: StatusView) -> Iterator[Metric]:
    yield _gauge(
        "listener_certificate_expiry_timestamp_seconds",
        "When a certificate in use ends, in unix time.",
        ("listener", "file"),
        [
            ((item.name, certificate.file), certificate.expires)
            for item in status.listeners
            for certificate in item.certificates
            if certificate.expires is not None
        ],
    )
    yield _gauge(
        "backend_certificate_expiry_timestamp_seconds",
        "When the certificate that a backend showed last ends, in unix time.",
        ("pool", "backend"),
        [
            ((backend.pool, backend.name), backend.certificate_expires)
            for backend in _each(status.pools)
            if backend.certificate_expires is not None
        ],
    )


def _pools(status: StatusView) -> Iterator[Metric]:
    pools = status.pools
    yield _gauge(
        "pool_usable_ratio",
        "Usable weight of a pool, of its configured weight.",
        ("pool",),
        [((pool.name,), pool.usable_ratio) for pool in pools],
    )
    yield _counter(
        "retries",
        "Attempts that were followed by another one, by where and why they ended.",
        ("pool", "phase", "reason"),
        [
            ((pool.name, phase, reason), count)
            for pool in pools
            for (phase, reason), count in _from_zero(_RETRIES, pool.retries).items()
        ],
    )
    yield _histogram(
        "lease_wait_seconds",
        "How long transactions waited for a connection.",
        ("pool",),
        [((pool.name,), pool.lease_wait) for pool in pools],
    )


def _backends(status: StatusView) -> Iterator[Metric]:
    backends = list(_each(status.pools))

    def gauge(name: str, text: str, value: Callable[[BackendView], float]) -> Metric:
        return _gauge(name, text, ("pool", "backend"), [((b.pool, b.name), value(b)) for b in backends])

    yield gauge("backend_up", "Whether checks find the backend well, whatever the operator set.", _is_up)
    yield gauge("backend_usable", "Whether the backend takes new transactions.", lambda b: b.usable)
    yield gauge(
        "backend_ejected", "Whether observed traffic took the backend out.", lambda b: b.state == "ejected"
    )
    yield gauge("backend_weight_effective", "Weight that is in use now.", lambda b: b.effective_weight)
    yield _gauge(
        "backend_connections",
        "Connections to a backend now.",
        ("pool", "backend", "state"),
        _by(backends, lambda b: _from_zero(CONNECTION_STATES, b.connections)),
    )


def _attempts(status: StatusView) -> Iterator[Metric]:
    backends = list(_each(status.pools))
    outcomes = tuple(outcome.value for outcome in AttemptOutcome)
    yield _counter(
        "backend_attempts",
        "Attempts ended, by outcome. A transaction that was tried twice has two.",
        ("pool", "backend", "outcome"),
        _by(backends, lambda b: _from_zero(outcomes, b.attempts)),
    )
    yield _counter(
        "backend_replies",
        "Replies of a backend, by phase and code.",
        ("pool", "backend", "phase", "code"),
        [
            ((backend.pool, backend.name, phase, str(code)), count)
            for backend in backends
            for (phase, code), count in _from_zero(GOOD_REPLIES, backend.replies).items()
        ],
    )
    yield _histogram(
        "backend_phase_duration_seconds",
        "How long a backend took to answer, by phase.",
        ("pool", "backend", "phase"),
        [((backend.pool, backend.name, "final"), backend.final) for backend in backends],
    )
    yield _counter(
        "connection_reuse",
        "Connections leased: new, reused, or found stale and replaced.",
        ("pool", "result"),
        [((pool.name, result), count) for pool in status.pools for result, count in _reuse(pool).items()],
    )


def _checks(status: StatusView) -> Iterator[Metric]:
    backends = list(_each(status.pools))
    results = _by(backends, lambda b: {"ok": b.check.passed, "failed": b.check.failed})
    yield _counter("checks", "Active checks, by result.", ("pool", "backend", "result"), results)
    durations = SummaryMetricFamily(
        "smtplb_check_duration_seconds", "How long active checks took.", labels=("pool", "backend")
    )
    for backend in backends:
        durations.add_metric(
            (backend.pool, backend.name), sum(backend.check.durations.counts), backend.check.durations.sum_s
        )
    yield durations


def _groups(status: StatusView) -> Iterator[Metric]:
    shares: list[Value] = []
    for group in status.groups:
        total = sum(member.share for member in group.members)
        shares += [
            ((group.name, member.pool), member.share / total if total else 0.0) for member in group.members
        ]
    yield _gauge(
        "group_share_ratio", "Part of a group's load that a pool gets now.", ("group", "pool"), shares
    )


def _process(status: StatusView) -> Iterator[Metric]:
    yield _gauge(
        "config_last_reload_successful",
        "Whether the configuration that was read last is in use.",
        (),
        [((), status.config_reload_ok)],
    )
    yield _counter(
        "config_reloads",
        "Reloads, by result; the first load at start is none.",
        ("result",),
        [((result,), count) for result, count in _from_zero(RELOAD_RESULTS, status.config_reloads).items()],
    )
    yield _counter(
        "worker_restarts", "Worker processes that died and were replaced.", (), [((), status.worker_restarts)]
    )
    yield InfoMetricFamily("smtplb_config", "The configuration in use.", {"sha256": status.config_sha256})
    yield InfoMetricFamily(
        "smtplb_build", "What runs.", {"version": status.version, "python": platform.python_version()}
    )


# -- which combinations there are ----------------------------------------------------------------------------

_RETRIES = tuple((phase, reason.value) for phase, reasons in RETRY_REASONS.items() for reason in reasons)


def _reach(status: StatusView, listener: ListenerView) -> list[str]:
    """The pools that a listener's transactions can go to."""
    if listener.targets:
        return list(dict.fromkeys(pool for pools in listener.targets.values() for pool in pools))
    for group in status.groups:
        if group.name == listener.target:
            return [member.pool for member in group.members]
    return [listener.target]


def _ends(status: StatusView, listener: ListenerView) -> tuple[tuple[str, str], ...]:
    # Without a pool a transaction cannot have ended by a backend's word.
    ours = [("", outcome.value) for outcome in TransactionOutcome if outcome in _WITHOUT_POOL]
    return (
        *ours,
        *((pool, outcome.value) for pool in _reach(status, listener) for outcome in TransactionOutcome),
    )


_WITHOUT_POOL = (TransactionOutcome.REFUSED, TransactionOutcome.TEMPFAIL, TransactionOutcome.ABORTED)


def _from_zero(known: Iterable[Key], counts: dict[Key, int]) -> dict[Key, int]:
    return dict.fromkeys(known, 0) | counts


def _each(pools: list[PoolView]) -> Iterator[BackendView]:
    for pool in pools:
        yield from pool.backends


def _by(backends: Iterable[BackendView], counts: Callable[[BackendView], dict[str, int]]) -> list[Value]:
    """A value for each backend and key of its counts."""
    return [
        ((backend.pool, backend.name, key), count)
        for backend in backends
        for key, count in counts(backend).items()
    ]


def _is_up(backend: BackendView) -> bool:
    return backend.check.state in _UP


def _reuse(pool: PoolView) -> dict[str, int]:
    counts = dict.fromkeys(REUSE_RESULTS, 0)
    for backend in pool.backends:
        for result, count in backend.reuse.items():
            counts[result] = counts.get(result, 0) + count
    return counts


# -- families ------------------------------------------------------------------------------------------------


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Iterable[Value]) -> Metric:
    family = GaugeMetricFamily("smtplb_" + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], values: Iterable[Value]) -> Metric:
    """`name` without `_total`."""
    family = CounterMetricFamily("smtplb_" + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Iterable[Durations]) -> Metric:
    family = HistogramMetricFamily("smtplb_" + name, text, labels=labels)
    for key, histogram in values:
        seen, buckets = 0, []
        for bound, count in zip(_BOUNDS, histogram.counts, strict=True):
            seen += count
            buckets.append((bound, float(seen)))
        family.add_metric(key, buckets, histogram.sum_s)
    return family


_BOUNDS = (*(str(float(bound)) for bound in SECONDS_BOUNDS), "+Inf")
