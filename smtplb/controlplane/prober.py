"""Active checks: one probe after the other at each backend, none overlapping, a bounded number at once.

Owns when a probe starts, when it is given up, and that it takes leave. Does not own what it found
(verdict.py), what results mean (rise, fall: policy/health.py by way of registry.py), nor the SMTP words
(dataplane/connection.py: PROXY, STARTTLS, EHLO, QUIT, the 221).
Invariant: a subject is in one stage; only _move() changes it; a connection exists in PROBING and CLOSING
alone.

Every level goes the whole way through EHLO, QUIT and the 221: a level only says how far a backend must come
to pass. A check that hangs up early fills the backend's log with lost connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum, auto
from typing import Protocol

from smtplb.controlplane import verdict
from smtplb.controlplane.alarm import Alarm
from smtplb.controlplane.registry import CheckResult
from smtplb.controlplane.verdict import CheckConnection
from smtplb.dataplane.connection import Failure
from smtplb.dataplane.deadlines import TICK_S, Deadlines
from smtplb.dataplane.outbox import Outbox
from smtplb.messages import BackendKey
from smtplb.policy.outcome import Reason
from smtplb.settings import BackendSettings, BackTlsMode, CheckLevel

MAX_PROBES = 64  # at once, closing ones included: 300 backends that hang cost 64 descriptors, not 300
# Checks in a row that are left out while mail shows that the backend lives. Only a check sees what EHLO offers and when the
# certificate ends, and it is what an operator sees last.
MAX_LEFT_OUT = 5
# After a failed handshake where TLS is opportunistic: as long as messages go in clear (design 4.4).
CLEAR_AFTER_FAILED_TLS_S = 600.0


class ProbeConnection(verdict.ProbeConnection, Protocol):
    """What a probe does with a connection, besides looking at it."""

    when_gone: Callable[[], None] | None

    @property
    def leaving(self) -> bool:
        """It did not come up, and waits for the answer to its QUIT; when_gone is called behind that."""

    def open(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def quit(self) -> None: ...
    def abort(self) -> None: ...


class Stage(Enum):
    REST = auto()  # no checks: the backend is in maint, or we are stopping
    WAITING = auto()  # for its time
    DUE = auto()  # for one of the MAX_PROBES places
    PROBING = auto()  # for a verdict
    CLOSING = auto()  # for the 221


_HELD = (Stage.PROBING, Stage.CLOSING)


class Subject:
    """One backend and its probe. Owner of the connection while there is one."""

    __slots__ = (
        "alarm",
        "alive_at_s",
        "clear_until_s",
        "connection",
        "discard",
        "key",
        "left_out",
        "next_at_s",
        "prober",
        "settings",
        "stage",
        "started_s",
        "wanted",
    )

    def __init__(self, prober: Prober, backend: BackendSettings) -> None:
        self.prober = prober
        self.key = backend.key
        self.settings = _cut_timeouts(backend)
        self.alarm = Alarm(prober.deadlines, self._alarm_rang)
        self.stage = Stage.REST
        self.wanted = True
        self.discard = False  # the probe under way began before the backend was set aside: it counts no more
        self.connection: ProbeConnection | None = None
        self.started_s = 0.0
        self.next_at_s = 0.0
        self.alive_at_s: float | None = None  # when mail last showed that it lives; None: that is in doubt
        self.left_out = 0  # checks since the last one
        self.clear_until_s = 0.0  # until then it is not asked for opportunistic TLS

    def _alarm_rang(self) -> None:
        if self.stage is Stage.WAITING:
            self.prober.due(self)
        elif self.stage is Stage.PROBING:
            self.prober.time_is_over(self)
        else:
            raise AssertionError(f"a check alarm in stage {self.stage}")

    def connection_ready(self, connection: ProbeConnection) -> None:
        self.prober.verdict(self, verdict.ready(self.settings, connection, self._duration_s))
        self.prober.hang_up(self)

    def connection_failed(self, connection: ProbeConnection, failure: Failure) -> None:
        if self.stage is Stage.PROBING:
            opportunistic = self.settings.tls.mode is BackTlsMode.OPPORTUNISTIC and not self.in_clear
            if opportunistic and failure.reason is Reason.TLS and self.wanted:
                self.prober.once_more_in_clear(self)
                return
            self.prober.verdict(self, verdict.failed(self.settings, connection, failure, self._duration_s))
            if connection.leaving:
                self.prober.leaves_by_itself(self)
                return
        self.prober.connection_is_over(self)

    def connection_closed(self, connection: ProbeConnection) -> None:
        self.prober.connection_is_over(self)

    def connection_cleared(self, connection: ProbeConnection) -> None:
        raise AssertionError("a probe sends no RSET")

    def connection_expired(self, connection: ProbeConnection) -> None:
        raise AssertionError("a probe keeps no connection")

    @property
    def in_clear(self) -> bool:
        return self.clear_until_s > self.prober.deadlines.clock()

    @property
    def _duration_s(self) -> float:
        return self.prober.deadlines.clock() - self.started_s


def _cut_timeouts(backend: BackendSettings) -> BackendSettings:
    """No phase may outlast the probe. Connecting ends a little earlier: a probe that runs out of time has
    connected.
    """
    probe_s = backend.check.timeout_s
    timeouts = replace(
        backend.timeouts,
        connect_s=min(backend.timeouts.connect_s, max(probe_s - 2 * TICK_S, TICK_S)),
        greeting_s=min(backend.timeouts.greeting_s, probe_s),
    )
    return replace(backend, timeouts=timeouts)


def _open_connection(
    backend: BackendSettings, hello: bytes, deadlines: Deadlines, owner: Subject
) -> ProbeConnection:
    outbox = owner.prober.outbox
    assert outbox is not None, "a check before start()"
    return CheckConnection(
        backend, hello=hello, deadlines=deadlines, outbox=outbox, owner=owner, clear=owner.in_clear
    )


class Prober:
    """`report` gets every result; `interval_s` is asked after it how long to rest. `is_certain`: the backend
    is up, and the last check does not say otherwise. `hello`: the name in
    EHLO where the pool's check has none. Backends whose checks are off are left out.
    """

    def __init__(
        self,
        backends: Iterable[BackendSettings],
        *,
        hello: str,
        deadlines: Deadlines,
        report: Callable[[BackendKey, CheckResult], None],
        interval_s: Callable[[BackendKey], float],
        is_certain: Callable[[BackendKey], bool] = lambda key: False,
        connect: Callable[[BackendSettings, bytes, Deadlines, Subject], ProbeConnection] = _open_connection,
        max_probes: int = MAX_PROBES,
    ) -> None:
        self.deadlines = deadlines
        self.outbox: Outbox | None = None  # of the loop, from start() on
        self.first_round_over = asyncio.Event()  # every backend has had a result, or is set aside
        self._hello = hello
        self._report = report
        self._interval_s = interval_s
        self._is_certain = is_certain
        self._connect = connect
        self._max_probes = max_probes
        self._subjects = {
            backend.key: Subject(self, backend)
            for backend in backends
            if backend.check.level is not CheckLevel.OFF
        }
        self._leaving: set[Subject] = set()  # taken out by a reload while a probe was under way
        self._due: deque[Subject] = deque()
        self._held = 0  # subjects in PROBING or CLOSING
        self._unknown = set(self._subjects)
        self._no_connection = asyncio.Event()
        self._no_connection.set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Probe every backend now, MAX_PROBES at a time; jitter spreads them from the second time on."""
        self._loop = loop
        self.outbox = Outbox(loop.call_soon)
        for subject in self._subjects.values():
            if subject.wanted:
                self._move(subject, Stage.DUE)
        self._known(None)
        self._fill()

    def change(self, backends: Iterable[BackendSettings], hello: str) -> None:
        """A reload. Who is reached as before keeps its place in time, with other settings from the next probe on; new ones are
        probed at once.
        """
        assert self._loop is not None
        self._hello = hello
        before, self._subjects = self._subjects, {}
        for backend in backends:
            if backend.check.level is CheckLevel.OFF:
                continue
            subject = before.get(backend.key)
            if subject is not None and subject.settings.reached_like(backend):
                del before[backend.key]
                subject.settings = _cut_timeouts(backend)
            else:
                wanted = subject is None or subject.wanted  # the operator's word stays with the name
                subject = Subject(self, backend)
                subject.wanted = wanted
                if wanted:
                    self._move(subject, Stage.DUE)
            self._subjects[backend.key] = subject
        for subject in before.values():
            self._let_go(subject)
        self._unknown &= set(self._subjects)
        self._fill()

    def _let_go(self, subject: Subject) -> None:
        subject.wanted = False
        if subject.stage in _HELD:
            subject.discard = True  # let it end as it should: QUIT and the 221
            self._leaving = {each for each in self._leaving if each.stage in _HELD} | {subject}
        else:
            self._move(subject, Stage.REST)

    def want(self, key: BackendKey, wanted: bool) -> None:
        """Take a backend out of the checks, or back in: then it is probed at once. Without effect where
        checks are off.
        """
        subject = self._subjects.get(key)
        if subject is None or subject.wanted is wanted:
            return
        subject.wanted = wanted
        if subject.stage in _HELD:
            subject.discard = True  # let it end as it should: QUIT and the 221
        elif self._loop is None:
            pass  # start() will see
        elif wanted:
            self._move(subject, Stage.DUE)
            self._fill()
        else:
            self._move(subject, Stage.REST)
        if not wanted:
            self._known(key)

    def alive(self, key: BackendKey) -> None:
        """It took a message: more than any check asks for."""
        if (subject := self._subjects.get(key)) is not None:
            subject.alive_at_s = self.deadlines.clock()

    def doubted(self, key: BackendKey) -> None:
        """It failed a message that another backend took."""
        if (subject := self._subjects.get(key)) is not None:
            subject.alive_at_s = None

    def next_in_s(self, key: BackendKey) -> float | None:
        """Seconds until the next probe; 0 while one is due or under way; None while there will be none."""
        subject = self._subjects.get(key)
        if subject is None or not subject.wanted:
            return None
        if subject.stage in (Stage.WAITING, Stage.CLOSING):
            return max(0.0, subject.next_at_s - self.deadlines.clock())
        return 0.0

    @property
    def held(self) -> int:
        """Connections of probes, now."""
        return self._held

    async def stop(self, within_s: float) -> None:
        """No more probes. Those under way end with QUIT and the 221; what has not ended `within_s` is cut."""
        for subject in self._subjects.values():
            subject.wanted = False
            if subject.stage not in _HELD:
                self._move(subject, Stage.REST)
        try:
            await asyncio.wait_for(self._no_connection.wait(), within_s)
        except TimeoutError:
            self.cut()

    def cut(self) -> None:
        """End everything at once, impolitely."""
        for subject in [*self._subjects.values(), *self._leaving]:
            subject.wanted = False
            if subject.connection is not None:
                subject.connection.when_gone = None
                subject.connection.abort()
                subject.connection = None
            self._move(subject, Stage.REST)

    # What subjects call.

    def due(self, subject: Subject) -> None:
        if self._may_leave_out(subject):
            subject.left_out += 1
            subject.next_at_s = self.deadlines.clock() + self._interval_s(subject.key)
            subject.alarm.set(subject.next_at_s)
            return
        self._move(subject, Stage.DUE)
        self._fill()

    def _may_leave_out(self, subject: Subject) -> bool:
        """Within the last interval it took mail, so the check would pass: the time to `down` stays what it was."""
        if subject.alive_at_s is None or subject.left_out >= MAX_LEFT_OUT:
            return False
        age_s = self.deadlines.clock() - subject.alive_at_s
        return age_s < subject.settings.check.interval_s and self._is_certain(subject.key)

    def verdict(self, subject: Subject, result: CheckResult) -> None:
        """The result of the probe under way; its connection may live on for the QUIT."""
        now = self.deadlines.clock()
        subject.alarm.off()
        if subject.wanted and not subject.discard:
            self._report(subject.key, result)
            subject.next_at_s = now + self._interval_s(subject.key)
            self._known(subject.key)
        else:
            subject.next_at_s = now

    def hang_up(self, subject: Subject) -> None:
        assert subject.connection is not None
        self._move(subject, Stage.CLOSING)
        subject.connection.quit()

    def leaves_by_itself(self, subject: Subject) -> None:
        """It was refused while it came up and has said QUIT: its place is taken until the backend is rid of it."""
        assert subject.connection is not None
        self._move(subject, Stage.CLOSING)
        subject.connection.when_gone = lambda: self.connection_is_over(subject)

    def time_is_over(self, subject: Subject) -> None:
        connection = subject.connection
        assert connection is not None
        failure = Failure(connection.phase, Reason.TIMEOUT, b"")
        connection.abort()
        subject.connection_failed(connection, failure)

    def once_more_in_clear(self, subject: Subject) -> None:
        """Opportunistic TLS did not come about: no failure, messages go in clear, too. The same probe goes on."""
        subject.clear_until_s = self.deadlines.clock() + CLEAR_AFTER_FAILED_TLS_S
        self._connect_to(subject)

    def connection_is_over(self, subject: Subject) -> None:
        subject.connection = None
        subject.discard = False
        if not subject.wanted:
            self._move(subject, Stage.REST)
        elif subject.next_at_s > self.deadlines.clock():
            self._move(subject, Stage.WAITING)
            subject.alarm.set(subject.next_at_s)
        else:
            self._move(subject, Stage.DUE)
        self._fill()

    # Within.

    def _move(self, subject: Subject, stage: Stage) -> None:
        old, subject.stage = subject.stage, stage
        if old is Stage.DUE and stage is Stage.REST:
            self._due.remove(subject)
        elif stage is Stage.DUE:
            self._due.append(subject)
        if stage is not Stage.PROBING:
            subject.alarm.off()
        self._held += (stage in _HELD) - (old in _HELD)
        if self._held:
            self._no_connection.clear()
        else:
            self._no_connection.set()

    def _fill(self) -> None:
        while self._due and self._held < self._max_probes:
            subject = self._due.popleft()
            subject.started_s = self.deadlines.clock()
            subject.left_out = 0
            self._move(subject, Stage.PROBING)
            self._connect_to(subject)
            subject.alarm.set(subject.started_s + subject.settings.check.timeout_s)

    def _connect_to(self, subject: Subject) -> None:
        hello = (subject.settings.check.hello or self._hello).encode("ascii")
        subject.connection = self._connect(subject.settings, hello, self.deadlines, subject)
        assert self._loop is not None
        subject.connection.open(self._loop)

    def _known(self, key: BackendKey | None) -> None:
        if key is not None:
            self._unknown.discard(key)
        if not self._unknown:
            self.first_round_over.set()
