"""The supervisor: starts and stops everything in order, and is what admin/ and cli/ talk to.

Owns the life of the process's parts (sockets, worker, prober, registry) and what the operator may do. Does
not own backend state (registry.py), probing (prober.py), sessions (the worker, reached by messages alone),
nor HTTP (admin/).
Invariant: either everything is bound and running or nothing is; readiness() is ready only between the two.

Start: bind all, start the checks, wait for the first round of them (FIRST_ROUND_S at most), then let the
worker accept. Clients that come in between wait in the queues of the bound sockets: nobody is refused, and
nobody's first message is sent to a backend that nobody has looked at. Stop: readyz says no for
`shutdown.delay`, then sessions are drained, then all is closed. Reload: reloader.py prepares, _switch() is one turn of the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib import metadata
from random import random

from smtplb.config.diff import Changes, ReloadPlan
from smtplb.config.errors import ConfigErrors
from smtplb.controlplane import problems as trouble
from smtplb.controlplane.certificate_watch import CertificateWatch
from smtplb.controlplane.ejector import Ejector
from smtplb.controlplane.link import OpenLink, WorkerLink
from smtplb.controlplane.list_watch import ListWatch
from smtplb.controlplane.picture import Picture
from smtplb.controlplane.prober import Prober
from smtplb.controlplane.process_link import link_for
from smtplb.controlplane.registry import CheckResult, Registry
from smtplb.controlplane.reloader import CannotReload, NeedsRestart, Reloader
from smtplb.controlplane.sockets import BindError, ListeningSockets, bind_listeners
from smtplb.controlplane.systemd import Handed, Notifier
from smtplb.controlplane.views import GroupView, ListenerView, PoolView, ReadinessView, StatusView
from smtplb.dataplane.certificates import reload_client_contexts
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import (
    BackendKey,
    BackendsAnswered,
    Beat,
    DrainSessions,
    FromWorker,
    ReloadCertificates,
    ReopenLog,
    ReportRequest,
    RetriesRemembered,
    SessionsDrained,
    Snapshot,
    StopAccepting,
    WorkerReport,
)
from smtplb.observe.events import BackendBlamed, Event, Notice
from smtplb.policy.health import OperatorState
from smtplb.settings import Address, Policy, Settings

__all__ = [
    "BindError",
    "CannotReload",
    "Changes",
    "ConfigErrors",
    "Invalid",
    "NeedsRestart",
    "ReloadPlan",
    "Supervisor",
    "Unknown",
    "WouldStrand",
]

FIRST_ROUND_S = 2.0  # backends answer in milliseconds; one that hangs must not keep the others from serving
REPORT_S = 2.0  # a worker that does not answer in this time is not alive
PROBES_END_S = 2.0  # for the QUIT and 221 of probes under way when we stop
WEIGHT_MAX = 256  # as in HAProxy; shares of more than 256 to 1 are better said with drain


class Unknown(LookupError):
    """No such pool, backend, group or listener; the text says which."""


class Invalid(ValueError):
    """The change makes no sense, whatever the state; the text says why."""


class WouldStrand(Exception):
    """The change would leave these listeners without a usable backend. `force=True` makes it all the same."""

    def __init__(self, listeners: list[str]) -> None:
        super().__init__("would leave without a usable backend: " + ", ".join(listeners))
        self.listeners = listeners


class Supervisor:
    """One per process. `emit` gets every event, those of the worker included, and must not raise.

    To be made and used inside a running loop. start() before everything else; one start() and one stop() in
    its life.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        emit: Callable[[Event], None],
        open_link: OpenLink | None = None,
        read: Callable[[], Settings] | None = None,
        handed: Handed | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """`read` reads the settings anew for a reload; None: they cannot be. `handed`: listening sockets from systemd.
        `notifier`: how it hears of us.
        """
        self.settings = settings
        self.emit = emit
        if open_link is None:
            open_link = link_for(settings, emit)
        self._open_link = open_link
        self._handed = handed
        self._notifier = notifier
        self.bound: dict[str, list[Address]] = {}
        self._started_at = time.time()
        self._phase = "starting"  # serving | stopping | stopped
        self._sockets: ListeningSockets | None = None
        self._link: WorkerLink | None = None
        self._serial = 0
        self._reports: dict[int, asyncio.Future[WorkerReport]] = {}
        self._draining = False  # DrainSessions was sent, SessionsDrained is due
        self._drained = asyncio.Event()
        self._drain_s = settings.shutdown.drain_s
        self._hurry = asyncio.Event()  # the delay of a stop is cut short
        self._stop_task: asyncio.Task[None] | None = None
        self._deadlines = Deadlines.of(asyncio.get_running_loop())
        self._registry = Registry(
            settings.traffic,
            deadlines=self._deadlines,
            wall=time.time,
            call_soon=asyncio.get_running_loop().call_soon,
            emit=emit,
            publish=self._publish,
            checks_wanted=self._checks_wanted,
        )
        self._ejector = Ejector(
            settings.traffic, deadlines=self._deadlines, set_ejected=self._registry.set_ejected, emit=emit
        )
        self._prober = Prober(
            [backend for pool in settings.traffic.pools for backend in pool.backends],
            hello=settings.traffic.hostname,
            deadlines=self._deadlines,
            report=self._registry.check_result,
            interval_s=lambda key: self._registry.backends[key].track.next_interval_s(random),
            is_certain=lambda key: self._registry.backends[key].track.surely_up,
        )
        self._certificates = self._watch_of(settings)
        self._lists = ListWatch(
            settings.lists if read is not None else (),
            deadlines=self._deadlines,
            changed=self._lists_changed,
        )
        self._lists_task: asyncio.Task[None] | None = None
        self._reloader = Reloader(
            read,
            current=lambda: self.settings if self._phase == "serving" else None,
            bind=self._bind,
            switch=self._switch,
            unbind=lambda sockets: sockets.close_others(self._held),
            deadlines=self._deadlines,
            emit=emit,
        )

    def _watch_of(self, settings: Settings) -> CertificateWatch:
        return CertificateWatch(
            settings.traffic,
            deadlines=self._deadlines,
            wall=time.time,
            emit=self.emit,
            changed=self._certificates_changed,
        )

    # Life.

    async def start(self) -> None:
        """Returns when the worker was told to accept. BindError: nothing was started, nothing is bound."""
        if self._sockets is not None:
            raise AssertionError("started twice")
        loop = asyncio.get_running_loop()
        self._sockets = self._bind(self.settings)
        try:
            self.bound = self._sockets.bound
            self._link = self._open_link(loop, self._sockets.by_listener, self._from_worker)
            self._notice(
                "started", f"smtplb {version()}", config=self.settings.source, sha256=self.settings.sha256
            )
            self._certificates.start()
            self._prober.start(loop)
            await _wait(self._prober.first_round_over, self._first_round_s())
            if self._stop_task is not None:
                return
            self._registry.open()
            self._phase = "serving"
            self._lists.start()
        except BaseException:
            self._close()
            raise
        for name, addresses in self.bound.items():
            for address in addresses:
                self._notice(
                    "listening", f"listener {name} on {address}", listener=name, address=str(address)
                )
        self._tell_ready()

    async def reload(self) -> ReloadPlan:
        """Read the configuration anew and take it up, with all workers. ConfigErrors, NeedsRestart, BindError, CannotReload:
        nothing was changed.
        """
        if self._notifier is not None and self._phase == "serving":
            self._notifier.reloading()
        try:
            made = await self._reloader.reload()
            await self.worker_report()  # messages keep their order: who answers has taken it up
        except TimeoutError:
            pass  # it will, or another one takes its place
        finally:
            if self._phase == "serving":
                self._tell_ready()
        return made

    def _tell_ready(self) -> None:
        if self._notifier is None:
            return
        traffic, reloads = self.settings.traffic, self._reloader.reloads
        backends = sum(len(pool.backends) for pool in traffic.pools)
        facts = f"config {self.settings.sha256[:6]}, {len(traffic.listeners)} listeners, {backends} backends"
        self._notifier.ready(facts + (f"; not reloaded: {reloads.failure}" if reloads.failure else ""))

    def _lists_changed(self) -> None:
        self._lists_task = asyncio.get_running_loop().create_task(self._reload_lists())

    async def _reload_lists(self) -> None:
        try:
            await self._reloader.reload(of_lists=True)
        except (ConfigErrors, NeedsRestart, BindError, CannotReload):
            pass  # the reloader has told

    def reopen_log(self) -> None:
        """Of workers that have one of their own."""
        if self._link is not None and self._phase != "stopped":
            self._link.send(ReopenLog())

    @property
    def _held(self) -> ListeningSockets:
        return self._sockets if self._sockets is not None else ListeningSockets()

    def _bind(self, settings: Settings) -> ListeningSockets:
        return bind_listeners(
            settings.traffic.listeners, copies=settings.workers, held=self._held, handed=self._handed
        )

    def _switch(
        self, settings: Settings, sockets: ListeningSockets, results: dict[BackendKey, CheckResult]
    ) -> None:
        """The one moment of a reload: everything before the next turn of the loop. `results`: of a look at new backends."""
        link, traffic = self._link, settings.traffic
        assert link is not None
        self.settings = settings
        self._lists.follow(settings.lists)
        self._certificates.close()
        self._certificates = self._watch_of(settings)
        self._certificates.start()
        reload_client_contexts()
        self._registry.change(traffic)
        backends = [backend for pool in traffic.pools for backend in pool.backends]
        self._prober.change(backends, traffic.hostname)
        for key in self._ejector.change(traffic):
            self._registry.set_ejected(key, None, "the rule for ejection has changed")
        for key, result in results.items():
            if self._registry.backends[key].operator.state is not OperatorState.MAINT:
                self._registry.check_result(key, result)
        link.hand(sockets.by_listener)
        self._registry.publish()
        self._held.close_others(sockets)
        self._sockets, self.bound = sockets, sockets.bound
        self._notice("reloaded", f"config {settings.sha256[:6]} loaded", sha256=settings.sha256)

    async def stop(self, drain_s: float | None = None) -> None:
        """Stop in order; returns when all is closed. Called again meanwhile: the delay ends, `drain_s`
        counts anew.
        """
        self._drain_s = self.settings.shutdown.drain_s if drain_s is None else drain_s
        if self._stop_task is None:
            self._stop_task = asyncio.get_running_loop().create_task(self._stop())
        else:
            self._hurry.set()
            if self._draining and self._link is not None:
                self._link.send(DrainSessions(self._drain_s))
        await asyncio.shield(self._stop_task)

    async def _stop(self) -> None:
        link, sockets = self._link, self._sockets
        serving = self._phase == "serving"
        self._phase = "stopping"
        if self._notifier is not None:
            self._notifier.stopping()
        self._notice("stopping", f"stopping; sessions have {self._drain_s:g} s", drain_s=self._drain_s)
        try:
            if serving and link is not None and sockets is not None:
                await _wait(self._hurry, self.settings.shutdown.delay_s)
                link.send(StopAccepting())
                sockets.close()  # the last descriptor of each queue: who still waits in it goes elsewhere
                self._draining = True
                link.send(DrainSessions(self._drain_s))
                # A transaction whose terminator has left may wait so long for its final reply.
                await _wait(self._drained, self._drain_s + self._final_s() + REPORT_S)
            self._draining = False
            await self._prober.stop(PROBES_END_S)
        finally:
            self._close()
            self._notice("stopped", "stopped")

    def _close(self) -> None:
        self._phase = "stopped"
        self._prober.cut()
        self._certificates.close()
        self._lists.close()
        if self._lists_task is not None:
            self._lists_task.cancel()
        self._ejector.close()
        self._registry.close()
        if self._link is not None:
            self._link.close()
        if self._sockets is not None:
            self._sockets.close()
        self._deadlines.close()

    def _first_round_s(self) -> float:
        pools = self.settings.traffic.pools
        longest = max((backend.check.timeout_s for pool in pools for backend in pool.backends), default=0.0)
        return min(FIRST_ROUND_S, longest)

    def _final_s(self) -> float:
        """The longest that any backend may take for a final reply."""
        pools = self.settings.traffic.pools
        return max((backend.timeouts.final_s for pool in pools for backend in pool.backends), default=0.0)

    # Reading.

    async def worker_report(self) -> WorkerReport:
        """Counters of the worker, as of now. TimeoutError if it does not answer."""
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[WorkerReport] = asyncio.get_running_loop().create_future()
        self._reports[serial] = future
        try:
            if self._link is None or self._phase == "stopped":
                return WorkerReport(serial, 0, [], [], [])
            self._link.send(ReportRequest(serial))
            return await asyncio.wait_for(future, REPORT_S)
        finally:
            del self._reports[serial]

    async def status(self) -> StatusView:
        """Everything, in one picture."""
        picture = await self._picture()
        listeners, groups, pools = picture.listeners(), picture.groups(), picture.pools()
        reloads = self._reloader.reloads
        found = trouble.find_problems(
            listeners,
            groups,
            pools,
            now=time.time(),
            phase=self._phase,
            reload_failure=reloads.failure,
        )
        return StatusView(
            hostname=self.settings.traffic.hostname,
            version=version(),
            condition=trouble.condition(found),
            started=self._started_at,
            config_sha256=self.settings.sha256,
            config_source=self.settings.source,
            config_loaded=reloads.loaded_at,
            config_reload_ok=not reloads.failure,
            config_reloads={"ok": reloads.ok, "failed": reloads.failed},
            worker_restarts=0 if self._link is None else self._link.restarts,
            problems=found,
            listeners=listeners,
            groups=groups,
            pools=pools,
        )

    async def listeners(self) -> list[ListenerView]:
        return (await self._picture()).listeners()

    async def groups(self) -> list[GroupView]:
        return (await self._picture()).groups()

    async def pools(self) -> list[PoolView]:
        return (await self._picture()).pools()

    def readiness(self, *, ignore_backends: bool = False) -> ReadinessView:
        """Ready: serving, with a worker that is up, and at least one listener has a usable backend (unless
        backends are to be ignored).
        """
        listeners = {
            listener.name: self._has_usable(listener.target) for listener in self.settings.traffic.listeners
        }
        reasons = self._not_serving()
        if not reasons and not ignore_backends and not any(listeners.values()):
            reasons = ["no listener has a usable backend"]
        return ReadinessView(not reasons, reasons, listeners)

    def readiness_of(self, listener: str, *, ignore_backends: bool = False) -> ReadinessView:
        """Ready: serving, and this listener has a usable backend. Unknown if there is no such listener."""
        targets = {each.name: each.target for each in self.settings.traffic.listeners}
        if listener not in targets:
            raise Unknown(f"no listener {listener}")
        usable = self._has_usable(targets[listener])
        reasons = self._not_serving()
        if not reasons and not ignore_backends and not usable:
            reasons = [f"no backend of {targets[listener]} is usable"]
        return ReadinessView(not reasons, reasons, {listener: usable})

    @property
    def phase(self) -> str:
        """starting | serving | stopping | stopped"""
        return self._phase

    def live(self) -> bool:
        """The supervisor's loop turns, since it answers, and so does that of every worker."""
        return self._phase != "stopped" and (self._link is None or self._link.live())

    def _not_serving(self) -> list[str]:
        if self._phase == "serving" and self._link is not None and not self._link.accepts():
            return ["no worker is up"]
        return {
            "starting": ["starting: the first checks are not over"],
            "serving": [],
            "stopping": ["stopping"],
            "stopped": ["stopped"],
        }[self._phase]

    def _has_usable(self, target: str) -> bool:
        return any(record.standing.usable for record in self._registry.target_backends(target))

    async def _picture(self) -> Picture:
        report = await self.worker_report()
        return Picture(
            self._registry,
            report,
            now=self._deadlines.clock(),
            next_check_in_s=self._prober.next_in_s,
            bound=self.bound,
            certificates=self._certificates,
        )

    # Changing.

    def set_backend(
        self,
        pool: str,
        backend: str,
        *,
        state: str | None = None,
        weight: int | None = None,
        reason: str = "",
        for_s: float | None = None,
        force: bool = False,
    ) -> None:
        """The operator's word on a backend; takes effect at transaction edges. `for_s`: then back to ready.

        Raises Unknown, Invalid, or WouldStrand unless forced; nothing was changed then.
        """
        key = self._key(pool, backend)
        wanted = self._checked(key, state, weight, for_s)
        if wanted is not None and not force and (stranded := self._registry.strands(key, wanted)):
            raise WouldStrand(stranded)
        if weight is not None:
            self._registry.set_weight(key, weight, reason)
        if wanted is not None:
            self._registry.set_operator(key, wanted, reason, for_s)

    def failback(self, group: str) -> bool:
        """Bring back the pools of a group that are well again, now. False: nothing to bring back."""
        if group not in self._registry.groups:
            raise Unknown(f"no group {group}")
        return self._registry.fail_back(group)

    def _key(self, pool: str, backend: str) -> BackendKey:
        if (pool, backend) in self._registry.backends:
            return (pool, backend)
        if any(each.name == pool for each in self.settings.traffic.pools):
            raise Unknown(f"no backend {backend} in pool {pool}")
        raise Unknown(f"no pool {pool}")

    def _checked(
        self, key: BackendKey, state: str | None, weight: int | None, for_s: float | None
    ) -> OperatorState | None:
        if state is None and weight is None:
            raise Invalid("nothing to change: give state or weight")
        if state is not None and state not in list(OperatorState):
            raise Invalid(f"state {state!r}: ready, drain or maint")
        if for_s is not None and (state in (None, OperatorState.READY) or for_s <= 0):
            raise Invalid("a time goes with drain or maint, and is above 0")
        if weight is not None:
            if not 0 <= weight <= WEIGHT_MAX:
                raise Invalid(f"weight {weight}: 0 to {WEIGHT_MAX}")
            configured = self._registry.backends[key].settings.weight
            policy = next(pool.policy for pool in self.settings.traffic.pools if pool.name == key[0])
            if policy is Policy.ROUND_ROBIN and weight not in (0, configured):
                raise Invalid(
                    f"pool {key[0]} is round-robin, which knows no weight but 0: use policy weighted"
                )
        return None if state is None else OperatorState(state)

    # Messages.

    def _publish(self, snapshot: Snapshot) -> None:
        assert self._link is not None
        self._link.send(snapshot)

    def _from_worker(self, message: FromWorker) -> None:
        if isinstance(message, WorkerReport):
            future = self._reports.get(message.serial)
            if future is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, SessionsDrained):
            self._drained.set()
        elif isinstance(message, BackendsAnswered):
            for key, seen in message.observed.items():
                if seen.delivered:
                    self._prober.alive(key)
            self._ejector.answered(message)
        elif isinstance(message, RetriesRemembered | Beat):
            raise AssertionError("process_link.py keeps it")
        else:
            if isinstance(message, BackendBlamed):
                self._prober.doubted((message.pool, message.backend))
                self._ejector.blamed(message)
            self.emit(message)

    def _certificates_changed(self) -> None:
        assert self._link is not None
        reload_client_contexts()  # checks are made here, even where workers are processes of their own
        self._link.send(ReloadCertificates())

    def _checks_wanted(self, key: BackendKey, wanted: bool) -> None:
        self._prober.want(key, wanted)

    def _notice(self, what: str, text: str, **fields: str | int | float) -> None:
        self.emit(Notice("info", what, text, fields))


def version() -> str:
    try:
        return metadata.version("smtplb")
    except metadata.PackageNotFoundError:
        return "unknown"


async def _wait(event: asyncio.Event, within_s: float) -> None:
    """Until the event, at most so long."""
    try:
        await asyncio.wait_for(event.wait(), within_s)
    except TimeoutError:
        pass
