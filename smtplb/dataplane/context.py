"""What all sessions of one listener share.

Owns the listener's counters and its view of settings and target. Does not own sessions (listener.py).
Invariant: settings of a context never change, counters only grow; they are plain numbers, read when a report is asked for (no
metrics library on the data path).
"""

from __future__ import annotations

from typing import Final

from smtplb.dataplane.certificates import FrontCertificates
from smtplb.dataplane.replay import ReplayBudget
from smtplb.dataplane.router import Router, Target
from smtplb.dataplane.runtime import Runtime
from smtplb.messages import ListenerReport
from smtplb.observe.ended import TransactionEnded
from smtplb.observe.histogram import Histogram
from smtplb.observe.outcomes import TransactionOutcome
from smtplb.policy.routing import Facts
from smtplb.settings import (
    AuthMode,
    BareNewline,
    FrontTlsMode,
    ListenerSettings,
    OtherRoute,
    RefuseReply,
    TrafficSettings,
)
from smtplb.smtp.chunks import trace_mark
from smtplb.smtp.extensions import common_mechanisms, common_offers, ehlo_reply, size_limit

# Members of an enumeration of strings are looked up by name each time, compiled, too: here once.
_OK: Final = TransactionOutcome.OK


class ListenerCounters:
    """Of one listener by its name, whatever its settings were."""

    __slots__ = ("durations_s", "message_bytes", "refusals", "sessions_total", "transactions")

    def __init__(self) -> None:
        self.sessions_total = 0
        self.message_bytes = 0
        self.refusals: dict[str, int] = {}
        self.transactions: dict[tuple[str, TransactionOutcome], int] = {}
        self.durations_s: dict[str, Histogram] = {}


class ListenerContext:
    """Settings in the form the hot path wants, what may be offered now, and counters.

    Settings never change: a reload makes another context, the `successor`, which sessions take up between transactions.
    """

    __slots__ = (
        "_hostname",
        "_mechanisms",
        "_route",
        "_size_limit_bytes",
        "_wires",
        "attempts",
        "body_timeout_s",
        "certificates",
        "counters",
        "greeting_wire",
        "hello_wire",
        "hostname",
        "idle_timeout_s",
        "in_doubt_remember_s",
        "judges_recipients",
        "max_recipients",
        "message_size_limit_bytes",
        "name",
        "offered",
        "offered_in_clear",
        "refusals",
        "rejects_bare_newline",
        "relays_auth",
        "replay_budget",
        "routed",
        "router",
        "runtime",
        "settings",
        "successor",
        "targets",
        "tls_implicit",
        "tls_required",
        "trace_mark",
    )

    def __init__(
        self,
        runtime: Runtime,
        router: Router,
        settings: ListenerSettings,
        traffic: TrafficSettings,
        replay_budget: ReplayBudget,
        former: ListenerContext | None = None,
        counters: ListenerCounters | None = None,
    ) -> None:
        """`former`: what sessions of the listener have now; `counters`: those to go on with."""
        hostname = traffic.hostname.encode("ascii")
        self.runtime = runtime
        self.router = router
        self.settings = settings
        self.name = settings.name
        self.hostname = traffic.hostname
        self.trace_mark = trace_mark(traffic.hostname)
        self.attempts = traffic.attempts
        self.in_doubt_remember_s = traffic.in_doubt_remember_s
        self.message_size_limit_bytes = settings.limits.message_size_bytes
        self.rejects_bare_newline = settings.bare_newline is BareNewline.REJECT
        self.tls_required = settings.tls.mode is FrontTlsMode.STARTTLS_REQUIRED
        self.tls_implicit = settings.tls.mode is FrontTlsMode.IMPLICIT
        self.relays_auth = settings.auth is AuthMode.RELAY
        self.idle_timeout_s = settings.limits.idle_timeout_s
        self.body_timeout_s = settings.limits.body_timeout_s
        self.max_recipients = settings.limits.recipients
        self.replay_budget = replay_budget
        self.targets = router.reachable(settings.target)
        self._route = router.routes.get(settings.target)
        # Recipients may go different ways, or be refused by a rule; or by the relay guard.
        self.routed = self._route is not None
        self.judges_recipients = self.routed or settings.accept is not None
        self.successor: ListenerContext | None = None
        self.certificates: FrontCertificates | None = None
        if settings.tls.mode is not FrontTlsMode.OFF:
            same = former is not None and former.settings.tls == settings.tls
            self.certificates = former.certificates if former and same else FrontCertificates(settings.tls)
        self.greeting_wire = b"220 %s ESMTP\r\n" % hostname
        self.hello_wire = b"250 %s\r\n" % hostname
        # what backends let us offer
        self._hostname = hostname
        self._mechanisms: list[bytes] = []
        self._size_limit_bytes: int | None = None
        self._wires: dict[tuple[bool, bool, bool], bytes] = {}
        self.offered: frozenset[bytes] = frozenset()
        self.offered_in_clear: frozenset[bytes] = frozenset()
        self.refresh()
        self.counters = counters if counters is not None else ListenerCounters()
        self.refusals = self.counters.refusals
        if former is not None:
            former.successor = self

    @property
    def usable(self) -> bool:
        """Some target has a backend that could take mail: a usable one, or, while none is, one that checks find wanting but
        that takes connections (design 4.8: those are tried all the same). Where nobody even listens, clients do better
        to try their next MX at once."""
        return any(target.usable or target.worth_a_try for target in self.targets)

    def decide(self, facts: Facts) -> Target | RefuseReply:
        """Where a recipient's mail goes, by the routes that there were when these settings were made."""
        return self._route.decide(facts) if self._route is not None else self.targets[0]

    def refresh(self) -> None:
        """After a snapshot: offer what every backend that mail can reach from here has (design: extensions)."""
        backends = [backend for target in self.targets for backend in target.backends]
        offers = [backend.offers for backend in backends]
        common = common_offers(offers)
        if not all(backend.verifies_tls for backend in backends):
            common -= {b"REQUIRETLS"}  # RFC 8689 4.2.1: only over verified TLS, end to end
        self.offered = common | {b"SIZE"}
        self._mechanisms = common_mechanisms(offers) if self.settings.auth is AuthMode.RELAY else []
        if self._mechanisms:
            self.offered |= {b"AUTH"}
        self.offered_in_clear = self.offered - {b"REQUIRETLS"}
        limits = [limit for limit in (self.message_size_limit_bytes, size_limit(offers)) if limit is not None]
        self._size_limit_bytes = min(limits) if limits else None
        self._wires.clear()

    def mechanisms(self, *, tls: bool) -> list[bytes]:
        """AUTH is for TLS only (NO STARTTLS, USENIX Security 2021), but for a loopback listener that says otherwise."""
        return self._mechanisms if tls or self.settings.auth_without_tls else []

    def ehlo_wire(self, *, tls: bool, authenticated: bool, xclient: bool) -> bytes:
        key = (tls, authenticated, xclient)
        wire = self._wires.get(key)
        if wire is None:
            offered = self.offered if tls else self.offered_in_clear
            wire = self._wires[key] = ehlo_reply(
                self._hostname,
                offered,
                size_limit_bytes=self._size_limit_bytes,
                starttls=not tls and self.certificates is not None,
                mechanisms=[] if authenticated else self.mechanisms(tls=tls),
                xclient=xclient,
                limits=self._limits(),
            )
        return wire

    def _limits(self) -> bytes:
        """RFC 9422: where recipients of several domains would be deferred, say so beforehand."""
        routed = len(self.targets) > 1 and self.settings.other_route is OtherRoute.DEFER
        return b"RCPTMAX=%d RCPTDOMAINMAX=1" % self.settings.limits.recipients if routed else b""

    def refused(self, label: str) -> None:
        self.refusals[label] = self.refusals.get(label, 0) + 1

    def transaction_ended(self, event: TransactionEnded) -> None:
        """Count it and tell it: the one place where a transaction becomes metrics and a log line."""
        counters = self.counters
        key = (event.pool, event.outcome)
        counters.transactions[key] = counters.transactions.get(key, 0) + 1
        if event.outcome is _OK:
            counters.message_bytes += event.message_bytes
        histogram = counters.durations_s.get(event.pool)
        if histogram is None:
            histogram = counters.durations_s[event.pool] = Histogram()
        histogram.observe(event.duration_s)
        self.runtime.log(event)

    def report(self, *, accepting: bool, sessions_open: int) -> ListenerReport:
        counters = self.counters
        return ListenerReport(
            listener=self.name,
            accepting=accepting,
            sessions_open=sessions_open,
            sessions_total=counters.sessions_total,
            message_bytes=counters.message_bytes,
            refusals=dict(counters.refusals),
            transactions={
                (pool, outcome.value): count for (pool, outcome), count in counters.transactions.items()
            },
            durations={pool: histogram.copy() for pool, histogram in counters.durations_s.items()},
        )
