"""What all sessions of one listener share.

Owns the listener's counters and its view of settings and target. Does not own sessions (listener.py).
Invariant: counters only grow; they are plain numbers, read when a report is asked for (no metrics library on the data path).
"""

from __future__ import annotations

from smtplb.dataplane.replay import ReplayBudget
from smtplb.dataplane.router import Router, Target
from smtplb.dataplane.runtime import Runtime
from smtplb.messages import Histogram, ListenerReport
from smtplb.observe.events import TransactionEnded, TransactionOutcome
from smtplb.settings import BareNewline, ListenerSettings, TrafficSettings
from smtplb.smtp.extensions import ehlo_reply


class ListenerContext:
    """Settings in the form the hot path wants, and counters."""

    __slots__ = (
        "attempts",
        "durations_s",
        "ehlo_wire",
        "greeting_wire",
        "hello_wire",
        "message_bytes",
        "message_size_limit_bytes",
        "name",
        "refusals",
        "rejects_bare_newline",
        "replay_budget",
        "router",
        "runtime",
        "sessions_total",
        "settings",
        "target",
        "transactions",
    )

    def __init__(
        self,
        runtime: Runtime,
        router: Router,
        settings: ListenerSettings,
        traffic: TrafficSettings,
        replay_budget: ReplayBudget,
    ) -> None:
        hostname = traffic.hostname.encode("ascii")
        self.runtime = runtime
        self.router = router
        self.settings = settings
        self.name = settings.name
        self.attempts = traffic.attempts
        self.message_size_limit_bytes = settings.limits.message_size_bytes
        self.rejects_bare_newline = settings.bare_newline is BareNewline.REJECT
        self.replay_budget = replay_budget
        self.target: Target = router.targets[settings.target]
        self.greeting_wire = b"220 %s ESMTP\r\n" % hostname
        self.hello_wire = b"250 %s\r\n" % hostname
        self.ehlo_wire = ehlo_reply(hostname, settings.limits.message_size_bytes)
        # counters
        self.sessions_total = 0
        self.message_bytes = 0
        self.refusals: dict[str, int] = {}
        self.transactions: dict[tuple[str, TransactionOutcome], int] = {}
        self.durations_s: dict[str, Histogram] = {}

    def refused(self, label: str) -> None:
        self.refusals[label] = self.refusals.get(label, 0) + 1

    def transaction_ended(self, event: TransactionEnded) -> None:
        """Count it and tell it: the one place where a transaction becomes metrics and a log line."""
        key = (event.pool, event.outcome)
        self.transactions[key] = self.transactions.get(key, 0) + 1
        if event.outcome is TransactionOutcome.OK:
            self.message_bytes += event.message_bytes
        histogram = self.durations_s.get(event.pool)
        if histogram is None:
            histogram = self.durations_s[event.pool] = Histogram()
        histogram.observe(event.duration_s)
        self.runtime.emit(event)

    def report(self, *, accepting: bool, sessions_open: int) -> ListenerReport:
        return ListenerReport(
            listener=self.name,
            accepting=accepting,
            sessions_open=sessions_open,
            sessions_total=self.sessions_total,
            message_bytes=self.message_bytes,
            refusals=dict(self.refusals),
            transactions={
                (pool, outcome.value): count for (pool, outcome), count in self.transactions.items()
            },
            durations={pool: histogram.copy() for pool, histogram in self.durations_s.items()},
        )
