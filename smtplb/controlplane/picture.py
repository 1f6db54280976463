"""Views of the control plane, drawn from the registry, the prober and a worker's report.

Owns how state becomes a view. Does not own the state, nor the view types (views.py), nor problems
(problems.py).
Invariant: reads only; what a report does not have is shown as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from smtplb.controlplane.certificate_watch import CertificateWatch
from smtplb.controlplane.registry import BackendRecord, GroupRecord, Registry, offer_words
from smtplb.controlplane.views import (
    BackendView,
    CheckView,
    GroupMemberView,
    GroupView,
    ListenerView,
    OperatorView,
    PoolView,
)
from smtplb.messages import BackendKey, BackendReport, ListenerReport, PoolReport, WorkerReport
from smtplb.settings import Address, BackTlsMode, BackTlsSettings, ListenerSettings, PoolSettings
from smtplb.smtp.extensions import END_TO_END, common_offers


class Picture:
    """All views as of one moment. `now`: the wheel's clock; `next_check_in_s` asks the prober."""

    def __init__(
        self,
        registry: Registry,
        report: WorkerReport,
        *,
        now: float,
        next_check_in_s: Callable[[BackendKey], float | None],
        bound: Mapping[str, list[Address]],
        certificates: CertificateWatch,
    ) -> None:
        self._registry = registry
        self._certificates = certificates
        self._now = now
        self._next_check_in_s = next_check_in_s
        self._bound = bound
        self._backend_reports = {(each.pool, each.backend): each for each in report.backends}
        self._pool_reports = {each.pool: each for each in report.pools}
        self._listener_reports = {each.listener: each for each in report.listeners}

    def listeners(self) -> list[ListenerView]:
        return [self._listener(listener) for listener in self._registry.traffic.listeners]

    def groups(self) -> list[GroupView]:
        return [self._group(name, group) for name, group in self._registry.groups.items()]

    def pools(self) -> list[PoolView]:
        return [self._pool(pool) for pool in self._registry.traffic.pools]

    def _listener(self, listener: ListenerSettings) -> ListenerView:
        report = self._listener_reports.get(listener.name) or ListenerReport(listener.name)
        targets = self._registry.target_backends(listener.target)
        withheld = _withheld(targets)
        return ListenerView(
            name=listener.name,
            binds=[str(address) for address in self._bound.get(listener.name, [])],
            target=listener.target,
            accepting=report.accepting,
            usable_backends=sum(record.standing.usable for record in targets),
            sessions_open=report.sessions_open,
            sessions_limit=listener.limits.sessions,
            sessions_total=report.sessions_total,
            message_bytes=report.message_bytes,
            refusals=dict(report.refusals),
            transactions=dict(report.transactions),
            durations={pool: histogram.copy() for pool, histogram in report.durations.items()},
            targets=self._registry.targets(listener.target),
            tls=listener.tls.mode.value,
            certificates=self._certificates.of_listener(listener.name),
            offers=[each.decode() for each in END_TO_END if each.decode() not in withheld],
            withheld=withheld,
        )

    def _group(self, name: str, group: GroupRecord) -> GroupView:
        machine = group.shares
        shares = dict(group.told)
        at = machine.failback_at
        return GroupView(
            name=name,
            mode=machine.settings.mode.value,
            members=[
                GroupMemberView(
                    pool=member.pool,
                    share=shares[member.pool],
                    configured_share=member.share,
                    usable_ratio=self._registry.fitness(member.pool).ratio,
                )
                for member in machine.settings.members
            ],
            active=[pool for pool, share in group.told if share],
            reason=machine.reason,
            since=group.since,
            failback_in_s=None if at is None else max(0.0, at - self._now),
            failback_waits=machine.failback_waits,
        )

    def _pool(self, pool: PoolSettings) -> PoolView:
        report = self._pool_reports.get(pool.name) or PoolReport(pool.name)
        return PoolView(
            name=pool.name,
            policy=pool.policy.value,
            backends=[self._backend(record) for record in self._registry.pool(pool.name)],
            usable_ratio=self._registry.fitness(pool.name).ratio,
            retries=dict(report.retries),
            lease_wait=report.lease_wait.copy(),
        )

    def _backend(self, record: BackendRecord) -> BackendView:
        settings, operator = record.settings, record.operator
        report = self._backend_reports.get(settings.key) or BackendReport(*settings.key)
        seen = record.seen
        return BackendView(
            pool=settings.pool,
            name=settings.name,
            address=str(settings.address),
            backup=settings.backup,
            state=record.standing.state.value,
            usable=record.standing.usable,
            reason=record.reason,
            since=record.since,
            operator=OperatorView(
                state=operator.state.value,
                weight=operator.weight,
                reason=operator.reason,
                since=operator.since,
                until=operator.until,
            ),
            check=self._check(record),
            weight=settings.weight,
            effective_weight=record.standing.weight if record.standing.usable else 0,
            ejected_until=record.ejected_until,
            in_flight=report.in_flight,
            connections={"idle": report.idle, "leased": report.leased, "connecting": report.connecting},
            attempts=dict(report.attempts),
            reuse=dict(report.reuse),
            replies=dict(report.replies),
            final=report.final.copy(),
            latency_s={"p50": report.final.quantile_s(0.5), "p99": report.final.quantile_s(0.99)},
            last_resort=record.standing.last_resort,
            identity=settings.identity.value,
            offers=[] if seen is None else offer_words(seen.offers),
            seen=seen is not None,
            tls="" if seen is None else seen.tls,
            tls_verified=_verifies(settings.tls),
            certificate_expires=None if seen is None else seen.certificate_expires,
            ca_problem=self._certificates.ca_problem(settings.tls),
        )

    def _check(self, record: BackendRecord) -> CheckView:
        checks, last = record.checks, record.checks.last
        return CheckView(
            level=record.settings.check.level.value,
            state=record.track.state.value,
            last_result="" if last is None else "ok" if last.passed else "failed",
            last_text="" if last is None else last.text,
            last_at=checks.last_at,
            duration_s=None if last is None else last.duration_s,
            in_a_row=record.track.in_a_row,
            next_in_s=self._next_check_in_s(record.settings.key),
            passed=checks.passed,
            failed=checks.failed,
            durations=checks.durations.copy(),
        )


def _verifies(tls: BackTlsSettings) -> bool:
    return tls.mode in (BackTlsMode.REQUIRED, BackTlsMode.IMPLICIT) and tls.verify


def _withheld(records: list[BackendRecord]) -> dict[str, list[str]]:
    """End-to-end extensions that are not offered, each with those who lack it; "pool/backend (not seen yet)",
    "pool/backend (TLS not verified)".
    """
    offers = [None if record.seen is None else record.seen.offers for record in records]
    common = common_offers(offers)
    withheld = {}
    for keyword in END_TO_END:
        lacking = [why for record in records if (why := _why_lacking(record, keyword))]
        if lacking or keyword not in common:
            withheld[keyword.decode()] = lacking
    return withheld


# RFC 3030 3, RFC 6531 3.1: what an extension is of no use without (smtp/extensions.py common_offers).
_NEEDS = {b"BINARYMIME": b"CHUNKING", b"SMTPUTF8": b"8BITMIME"}


def _why_lacking(record: BackendRecord, keyword: bytes) -> str:
    """Who and why; "" if nothing about this backend stands against it."""
    name = "/".join(record.settings.key)
    if record.seen is None:
        return f"{name} (not seen yet)"
    for each in (keyword, _NEEDS.get(keyword, keyword)):
        if each not in record.seen.offers:
            return name if each is keyword else f"{name} (lacks {each.decode()})"
    if keyword == b"REQUIRETLS" and not _verifies(record.settings.tls):
        return f"{name} (TLS not verified)"
    return ""
