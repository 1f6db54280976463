"""The one owner of backend state and group shares: what the operator set, what checks found, what follows
from both.

Owns operator state, weight overrides, check tracks, what backends offer, shares; turns every change into
events and snapshots.
Does not own probing (prober.py), nor what the operator may do (supervisor.py asks strands() first), nor
pictures of it (picture.py).
Invariant: `record.standing` always equals policy.health.standing() of the record's facts; only _settle()
writes it.

Two clocks: the wheel's for everything that is waited for, `wall` (unix time) for everything that is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from smtplb.controlplane.alarm import Alarm
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import BackendKey, BackendStanding, BackendState, Snapshot
from smtplb.observe.events import BackendChanged, Event, GroupShifted, Notice
from smtplb.observe.histogram import Histogram
from smtplb.policy.health import STANDINGS, CheckState, CheckTrack, OperatorState, standing
from smtplb.policy.shares import GroupShares, PoolFitness, fitness, group_shares
from smtplb.settings import BackendSettings, TrafficSettings


@dataclass(frozen=True, slots=True)
class Seen:
    """What a backend showed to a check that came through EHLO, and TLS where that is configured."""

    offers: dict[bytes, bytes]  # keywords of the last EHLO with their parameters; empty after HELO
    tls: str = ""  # version; "" in clear
    certificate_expires: float | None = None  # unix time


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of one probe. `text`: printable, what the backend or the system said.

    `identity`: policy.health.CheckTrack.result() has the meaning; `seen` None: it did not come so far.
    """

    passed: bool
    text: str
    duration_s: float
    identity: bool | None = None
    seen: Seen | None = None
    connected: bool = True  # the backend took the connection


@dataclass(slots=True)
class CheckHistory:
    """What is remembered of a backend's checks, for pictures and counters."""

    last: CheckResult | None = None
    last_at: float | None = None  # unix time
    passed: int = 0
    failed: int = 0
    durations: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Operator:
    """The operator's word on one backend."""

    state: OperatorState = OperatorState.READY
    weight: int | None = None  # instead of the configured one
    reason: str = ""
    since: float | None = None  # unix time
    until: float | None = None  # unix time; then ready again


@dataclass(slots=True, eq=False)
class BackendRecord:
    settings: BackendSettings
    track: CheckTrack
    until_alarm: Alarm
    since: float  # unix time of the last change of effective state
    standing: BackendStanding
    reason: str
    operator: Operator = field(default_factory=Operator)
    checks: CheckHistory = field(default_factory=CheckHistory)
    check_reason: str = ""  # why the check state is what it is
    down_since: float | None = None  # unix time; from the first `down`, or lack of identity, until `up`
    seen: Seen | None = None  # the last that a check saw; kept while the backend is down
    ejected_until: float | None = None  # unix time; taken out by its traffic until then
    ejected_reason: str = ""
    slow_start_s: float = 0.0
    warm_since_s: float | None = (
        None  # time of the wheel's clock when a slow start began; None: at full weight
    )
    warm_alarm: Alarm | None = None

    def turn_off(self) -> None:
        self.until_alarm.off()
        if self.warm_alarm is not None:
            self.warm_alarm.off()

    @property
    def weight(self) -> int:
        return self.settings.weight if self.operator.weight is None else self.operator.weight


@dataclass(slots=True, eq=False)
class GroupRecord:
    shares: GroupShares
    since: float  # unix time of the last shift
    told: tuple[tuple[str, int], ...]  # shares in the last snapshot


def offer_words(offers: dict[bytes, bytes]) -> list[str]:
    """Extensions as an EHLO reply lists them, printable."""
    return [
        (keyword + b" " + value if value else keyword).decode("ascii", "backslashreplace")
        for keyword, value in offers.items()
    ]


def _reason_without_result(track: CheckTrack) -> str:
    return "check: off" if track.state is CheckState.OFF else "not checked yet"


class Registry:
    """`publish` gets snapshots, at most one per loop turn and none before open(). `call_soon` is the loop's.

    `checks_wanted` is told when a backend shall be probed no longer (maint), or again, at once.
    """

    def __init__(
        self,
        traffic: TrafficSettings,
        *,
        deadlines: Deadlines,
        wall: Callable[[], float],
        call_soon: Callable[[Callable[[], None]], object],
        emit: Callable[[Event], None],
        publish: Callable[[Snapshot], None],
        checks_wanted: Callable[[BackendKey, bool], None],
    ) -> None:
        self.traffic = traffic
        self._deadlines = deadlines
        self._wall = wall
        self._call_soon = call_soon
        self._emit = emit
        self._publish = publish
        self._checks_wanted = checks_wanted
        self._generation = 0
        self._configuration = 0
        self._open = False
        self._publication_due = False
        self._closed = False
        self.backends: dict[BackendKey, BackendRecord] = {}
        self._by_pool: dict[str, list[BackendRecord]] = {}
        self.groups: dict[str, GroupRecord] = {}
        self._take(traffic)
        self._group_alarm = Alarm(deadlines, self._group_time_came)

    def change(self, traffic: TrafficSettings) -> None:
        """A reload; publish() follows. What the operator set stays with the name; health stays where the backend is reached
        as before.
        """
        self.traffic = traffic
        self._configuration += 1
        self._take(traffic)

    def _take(self, traffic: TrafficSettings) -> None:
        now = self._wall()
        before, self.backends = self.backends, {}
        for pool in traffic.pools:
            for backend in pool.backends:
                record = before.pop(backend.key, None)
                if record is not None and record.settings.reached_like(backend):
                    self._change_record(record, backend)
                else:
                    record = self._replaced(record, self._new_record(backend, now))
                self.backends[backend.key] = record
                self._prepare_slow_start(record, pool.slow_start_s)
        for record in before.values():
            record.turn_off()
        self._by_pool = {
            pool.name: [self.backends[backend.key] for backend in pool.backends] for pool in traffic.pools
        }
        self._routes = {route.name: route for route in traffic.routes}
        known, self.groups = self.groups, {}
        for group in traffic.groups:
            old = known.get(group.name)
            if old is not None and old.shares.settings == group:
                self.groups[group.name] = old
            else:
                shares = group_shares(group)
                self.groups[group.name] = GroupRecord(shares, now, shares.shares)

    def _change_record(self, record: BackendRecord, backend: BackendSettings) -> None:
        """The same backend by other settings."""
        old, record.settings = record.settings, backend
        record.track.change(backend.check)
        if old.check.level is not backend.check.level:
            record.check_reason = _reason_without_result(record.track)
        if record.operator.weight == backend.weight:
            record.operator.weight = None
        self._settle(record)

    def _replaced(self, old: BackendRecord | None, new: BackendRecord) -> BackendRecord:
        """Another backend under the name of one that there was: the operator's word and the counts of checks go on."""
        if old is None:
            return new
        old.turn_off()
        new.operator, new.checks = old.operator, old.checks
        new.checks.last = new.checks.last_at = None
        if new.operator.weight == new.settings.weight:
            new.operator.weight = None
        if new.operator.until is not None:
            new.until_alarm.set(self._deadlines.clock() + max(0.0, new.operator.until - self._wall()))
        self._settle(
            new, f"operator: {new.operator.state}" if new.operator.state is not OperatorState.READY else ""
        )
        return new

    def _new_record(self, backend: BackendSettings, now: float) -> BackendRecord:
        track = CheckTrack(backend.check)
        return BackendRecord(
            settings=backend,
            track=track,
            until_alarm=Alarm(self._deadlines, lambda: self._operator_time_is_over(backend.key)),
            since=now,
            standing=standing(OperatorState.READY, track.state, backend.weight),
            reason=_reason_without_result(track),
            check_reason=_reason_without_result(track),
        )

    def _prepare_slow_start(self, record: BackendRecord, slow_start_s: float) -> None:
        record.slow_start_s = slow_start_s
        if slow_start_s and record.warm_alarm is None:
            record.warm_alarm = Alarm(self._deadlines, lambda: self._settle(record))
        elif not slow_start_s and record.warm_alarm is not None:
            record.warm_alarm.off()
            record.warm_alarm = record.warm_since_s = None
            self._settle(record)

    # Reading.

    def pool(self, name: str) -> list[BackendRecord]:
        return self._by_pool[name]

    def fitness(self, pool: str) -> PoolFitness:
        return fitness((record.settings, record.standing) for record in self._by_pool[pool])

    def targets(self, name: str) -> dict[str, list[str]]:
        """Pools by the name of each pool or group that mail to `name` (pool, group or route) can go to."""
        route = self._routes.get(name)
        rules = () if route is None else route.rules
        names = [name] if route is None else [rule.target for rule in rules if rule.target is not None]
        return {
            each: [each] if each in self._by_pool else list(self.groups[each].shares.order) for each in names
        }

    def target_backends(self, name: str) -> list[BackendRecord]:
        """Every backend that a listener with this target may use, whatever the shares."""
        pools = dict.fromkeys(pool for pools in self.targets(name).values() for pool in pools)
        return [record for pool in pools for record in self._by_pool[pool]]

    def strands(self, key: BackendKey, state: OperatorState) -> list[str]:
        """Listeners that this change would leave without a usable backend at one of their targets, or, with
        none usable, without any to try.
        """
        record = self.backends[key]
        after = standing(state, record.track.state, record.weight)
        return [
            listener.name
            for listener in self.traffic.listeners
            if any(self._strands(record, after, target) for target in self.targets(listener.target))
        ]

    def _strands(self, record: BackendRecord, after: BackendStanding, target: str) -> bool:
        records = self.target_backends(target)
        others = [other.standing for other in records if other is not record]
        if len(others) == len(records):
            return False
        usable = any(other.usable for other in others)
        tried = usable or any(other.last_resort for other in others)
        loses_usable = record.standing.usable and not after.usable and not usable
        ends_tries = not (after.usable or after.last_resort)
        return loses_usable or (record.standing.last_resort and ends_tries and not tried)

    # Changing.

    def check_result(self, key: BackendKey, result: CheckResult) -> None:
        record = self.backends[key]
        checks = record.checks
        checks.last, checks.last_at = result, self._wall()
        checks.durations.observe(result.duration_s)
        if result.passed:
            checks.passed += 1
        else:
            checks.failed += 1
        if result.seen is not None:
            self._tell_offers(record, result.seen)
            record.seen = result.seen
        if record.track.result(result.passed, identity=result.identity):
            missing = record.track.state is CheckState.NO_IDENTITY
            record.check_reason = result.text if missing else f"check: {result.text}, {record.track.cause}"
        self._settle(record)

    def set_operator(self, key: BackendKey, state: OperatorState, reason: str, for_s: float | None) -> None:
        """`for_s`: after so many seconds ready again; of no meaning with ready."""
        record = self.backends[key]
        operator = record.operator
        old = operator.state
        now = self._wall()
        operator.state, operator.reason = state, reason
        if old is not state:
            operator.since = now
        record.until_alarm.off()
        operator.until = None
        if for_s is not None and state is not OperatorState.READY:
            operator.until = now + for_s
            record.until_alarm.set(self._deadlines.clock() + for_s)
        if old is not state and OperatorState.MAINT in (old, state):
            record.track.forget()  # what was known before the work is old; the first check after it decides
            record.check_reason = _reason_without_result(record.track)
            self._checks_wanted(key, state is not OperatorState.MAINT)
        self._settle(record, f"operator: {state}" + (f", {reason}" if reason else ""))

    def set_weight(self, key: BackendKey, weight: int, reason: str) -> None:
        """Override the configured weight; the configured one ends the override."""
        record = self.backends[key]
        old = record.weight
        record.operator.weight = None if weight == record.settings.weight else weight
        if reason:
            record.operator.reason = reason
        if weight != old:
            told_by = f"operator: weight {old} -> {weight}" + (f", {reason}" if reason else "")
            self._settle(record, told_by)

    def set_ejected(self, key: BackendKey, for_s: float | None, reason: str) -> None:
        """Taken out by its traffic for so long; None: let in again."""
        record = self.backends[key]
        record.ejected_until = None if for_s is None else self._wall() + for_s
        record.ejected_reason = f"traffic: {reason}" if for_s is not None else ""
        self._settle(record, "" if for_s is not None else f"traffic: {reason}")

    def fail_back(self, group: str) -> bool:
        """Bring back what is well again. False if there was nothing to bring back."""
        self._update_groups()
        if not self.groups[group].shares.fail_back(self._deadlines.clock()):
            return False
        self._changed()
        return True

    def open(self) -> None:
        """Publish what is known now, and from now on every change."""
        self._open = True
        self._publish_now()

    def publish(self) -> None:
        """Now, whatever turn of the loop it is."""
        self._publish_now()

    def close(self) -> None:
        self._closed = True
        self._group_alarm.off()
        for record in self.backends.values():
            record.turn_off()

    # Within.

    def _operator_time_is_over(self, key: BackendKey) -> None:
        was = self.backends[key].operator.state
        self.set_operator(key, OperatorState.READY, f"time of {was} is over", None)

    def _tell_offers(self, record: BackendRecord, seen: Seen) -> None:
        """Not at the first check: it is a change that somebody may wonder about."""
        if record.seen is None or record.seen.offers == seen.offers:
            return
        was, now = set(offer_words(record.seen.offers)), set(offer_words(seen.offers))
        lost, gained = ", ".join(sorted(was - now)), ", ".join(sorted(now - was))
        words = "; ".join(
            text for text in (lost and f"no longer offers {lost}", gained and f"now offers {gained}") if text
        )
        pool, name = record.settings.key
        fields: dict[str, str | int | float] = {"pool": pool, "backend": name}
        self._emit(Notice("info", "offers", f"{pool}/{name} {words}", fields))

    def _settle(self, record: BackendRecord, told_by: str = "") -> None:
        """Bring the standing in line with the facts; tell if anything but offers is another than before."""
        old = record.standing
        offers = None if record.seen is None else record.seen.offers
        row = STANDINGS[record.operator.state, record.track.state]
        ejected = record.ejected_until is not None
        warmth_ratio = self._warmth_ratio(record, usable=row.usable and not ejected)
        record.standing = new = standing(
            record.operator.state,
            record.track.state,
            record.weight,
            offers,
            ejected=ejected,
            warmth_ratio=warmth_ratio,
            reachable=record.checks.last is None or record.checks.last.connected,
        )
        by_operator = row.by_operator
        if new.state is BackendState.EJECTED:
            record.reason = record.ejected_reason
        elif not by_operator:
            record.reason = record.check_reason
        elif told_by:
            record.reason = told_by
        if old == new:
            return
        self._changed()
        same_state = (old.state, old.last_resort) == (new.state, new.last_resort)
        warming = same_state and new.state is BackendState.SLOW_START
        if same_state and (old.weight == new.weight or warming):
            return
        down_for_s = None
        if not same_state:
            record.since = self._wall()
            missing = not by_operator and record.track.state is CheckState.NO_IDENTITY
            if (new.state is BackendState.DOWN or missing) and record.down_since is None:
                record.down_since = record.since
            elif new.state is BackendState.UP and record.down_since is not None:
                down_for_s = max(0.0, record.since - record.down_since)
                record.down_since = None
        pool, name = record.settings.key
        reason = told_by or record.reason
        self._emit(BackendChanged(pool, name, old.state.value, new.state.value, reason, down_for_s))

    def _warmth_ratio(self, record: BackendRecord, *, usable: bool) -> float:
        """How much of its weight a backend gets that came back: from a tenth to all of it, in tenths."""
        alarm = record.warm_alarm
        if alarm is None:
            return 1.0
        now = self._deadlines.clock()
        was = record.standing
        if not usable:
            record.warm_since_s = None
            alarm.off()
            return 1.0
        if not was.usable and was.state is not BackendState.UNPROVEN:
            record.warm_since_s = now
        if record.warm_since_s is None:
            return 1.0
        tenths = int((now - record.warm_since_s) / record.slow_start_s * 10) + 1
        if tenths >= 10:
            record.warm_since_s = None
            return 1.0
        alarm.set(record.warm_since_s + record.slow_start_s * tenths / 10)
        return tenths / 10

    def _changed(self) -> None:
        if self._open and not self._publication_due:
            self._publication_due = True
            self._call_soon(self._publish_now)

    def _publish_now(self) -> None:
        self._publication_due = False
        if self._closed:
            return
        self._update_groups()
        for name, group in self.groups.items():
            if group.shares.shares != group.told:
                group.since = self._wall()
                self._emit(GroupShifted(name, group.told, group.shares.shares, group.shares.reason))
                group.told = group.shares.shares
        self._generation += 1
        self._publish(
            Snapshot(
                generation=self._generation,
                traffic=self.traffic,
                standings={key: record.standing for key, record in self.backends.items()},
                shares={name: group.told for name, group in self.groups.items()},
                configuration=self._configuration,
            )
        )

    def _update_groups(self) -> None:
        now = self._deadlines.clock()
        pools = {pool for group in self.groups.values() for pool in group.shares.order}
        fit = {pool: self.fitness(pool) for pool in pools}
        for group in self.groups.values():
            group.shares.update(fit, now)
        wakes = [group.shares.next_at for group in self.groups.values() if group.shares.next_at is not None]
        if wakes:
            self._group_alarm.set(min(wakes))
        else:
            self._group_alarm.off()

    def _group_time_came(self) -> None:
        self._update_groups()
        if any(group.shares.shares != group.told for group in self.groups.values()):
            self._changed()
