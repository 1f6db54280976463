"""Reload: from a file that may have changed to a configuration in use, or to nothing at all.

Owns the order up to the switch, and how reloads ended. Does not own the parts that take the new settings: switch() of the
supervisor does that in one turn of the loop.
Invariant: until switch() is called nothing has changed; whatever fails before it leaves no socket open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from smtplb.config.diff import ReloadPlan, plan
from smtplb.config.errors import ConfigErrors
from smtplb.controlplane.prober import Prober
from smtplb.controlplane.registry import CheckResult
from smtplb.controlplane.sockets import BindError, ListeningSockets
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import BackendKey
from smtplb.observe.events import Event, Notice
from smtplb.settings import BackendSettings, CheckLevel, Settings

LOOK_S = 2.0  # at new backends, all together; then they go in unproven
LEAVE_S = 2.0  # for QUIT and 221 of these looks


class NeedsRestart(Exception):
    """These keys cannot change while the program runs; nothing was changed."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        verb = "needs" if len(keys) == 1 else "need"
        super().__init__(f"{', '.join(keys)} {verb} a restart; nothing was changed")
        self.keys = keys


class CannotReload(Exception):
    """Not now, or not ever; the text says why."""


@dataclass(slots=True)
class Reloads:
    """How they ended. `failure`: why the last one failed; "" if it did not."""

    ok: int = 0
    failed: int = 0
    failure: str = ""
    loaded_at: float = field(default_factory=time.time)  # unix time, of the configuration in use


class Reloader:
    """`read` reads the configuration anew, or raises ConfigErrors; None: it did not come from a file. `current`: the settings
    in use, None while there is nothing that could be changed. `bind` raises BindError. `switch` does not fail.
    """

    def __init__(
        self,
        read: Callable[[], Settings] | None,
        *,
        current: Callable[[], Settings | None],
        bind: Callable[[Settings], ListeningSockets],
        switch: Callable[[Settings, ListeningSockets, dict[BackendKey, CheckResult]], None],
        unbind: Callable[[ListeningSockets], None],
        deadlines: Deadlines,
        emit: Callable[[Event], None],
    ) -> None:
        self.reloads = Reloads()
        self._read = read
        self._current = current
        self._bind = bind
        self._switch = switch
        self._unbind = unbind
        self._deadlines = deadlines
        self._emit = emit
        self._lock = asyncio.Lock()

    async def reload(self, *, of_lists: bool = False) -> ReloadPlan:
        """One at a time. ConfigErrors, NeedsRestart, BindError, CannotReload: nothing was changed, and the log says why.

        `of_lists`: nobody asked, a list has changed; so nothing else may have.
        """
        async with self._lock:
            try:
                made = await self._reload(of_lists=of_lists)
            except CannotReload as error:
                self._emit(Notice("warning", "not-reloaded", str(error)))
                raise
            except (ConfigErrors, NeedsRestart, BindError) as error:
                self._failed(error)
                raise
        self.reloads.ok += 1
        self.reloads.failure = ""
        self.reloads.loaded_at = time.time()
        return made

    async def _reload(self, *, of_lists: bool) -> ReloadPlan:
        if self._read is None:
            raise CannotReload("this configuration did not come from a file")
        self._in_use()
        new = await asyncio.to_thread(self._read)
        old = self._in_use()
        made = plan(old, new)
        if of_lists and new.sha256_written != old.sha256_written:
            # What an operator has written and not yet asked for is not ours to take up.
            raise CannotReload("a list changed, and so did the configuration: `smtplb reload` takes up both")
        if of_lists and not made:
            return made  # another reload was faster
        if made.restart:
            raise NeedsRestart(made.restart)
        sockets = self._bind(new)
        try:
            results = await self._look_at(_unknown_in(old, new), new.traffic.hostname)
            self._in_use()
        except BaseException:
            self._unbind(sockets)
            raise
        self._switch(new, sockets, results)
        return made

    def _in_use(self) -> Settings:
        settings = self._current()
        if settings is None:
            raise CannotReload("starting or stopping: there is nothing to reload now")
        return settings

    async def _look_at(self, backends: list[BackendSettings], hello: str) -> dict[BackendKey, CheckResult]:
        """The first check of each, as at the start: a pool of new addresses is not unwell for being unknown."""
        results: dict[BackendKey, CheckResult] = {}
        if not backends:
            return results
        prober = Prober(
            backends,
            hello=hello,
            deadlines=self._deadlines,
            report=results.__setitem__,
            interval_s=lambda _: LOOK_S + LEAVE_S + 1.0,  # not a second time
        )
        prober.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(prober.first_round_over.wait(), LOOK_S)
        except TimeoutError:
            pass
        try:
            await prober.stop(LEAVE_S)
        except BaseException:
            prober.cut()
            raise
        return results

    def _failed(self, error: Exception) -> None:
        self.reloads.failed += 1
        mistakes = error.errors if isinstance(error, ConfigErrors) else ()
        lines = [str(each) for each in mistakes] or [str(error)]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        self.reloads.failure = lines[0] + more
        text = f"not reloaded, the configuration before stays in use: {lines[0]}{more}"
        self._emit(Notice("error", "reload-failed", text, {"mistakes": "\n".join(lines)}))


def _unknown_in(old: Settings, new: Settings) -> list[BackendSettings]:
    """Those whose health nobody knows."""
    known = {backend.key: backend for pool in old.traffic.pools for backend in pool.backends}
    return [
        backend
        for pool in new.traffic.pools
        for backend in pool.backends
        if backend.check.level is not CheckLevel.OFF
        and not (
            (before := known.get(backend.key)) is not None
            and before.reached_like(backend)
            and before.check.level is backend.check.level
        )
    ]
