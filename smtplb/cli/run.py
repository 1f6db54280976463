"""`smtplb run [FILE]`: the balancer itself.

Owns the life of the process: start in order, signals, stop in order, exit codes. Does not own any part of the
balancer; `Balancer` and serve() are what `run` and `demo` share.
Invariant: either everything of a configuration runs or nothing of it does. Before the last bind succeeded no
mail was accepted.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click
import uvloop

from smtplb.admin.server import AdminServer
from smtplb.cli import collector
from smtplb.cli.validate import DEFAULT_FILE, FILE_VARIABLE
from smtplb.config.errors import ConfigErrors
from smtplb.config.load import load
from smtplb.controlplane.supervisor import BindError, CannotReload, NeedsRestart, Supervisor
from smtplb.controlplane.systemd import Handed, Notifier, take_sockets
from smtplb.observe.events import Event, Notice
from smtplb.observe.logs import LibraryHandler, LogWriter
from smtplb.settings import Settings

LOOK_AGAIN_S = 1.0  # a worker that did not answer
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartError(Exception):
    """Says what could not be had; nothing was started."""


@dataclass(frozen=True, slots=True)
class Systemd:
    """What it handed down, and how it hears of us."""

    handed: Handed
    notifier: Notifier


class Balancer:
    """Control plane, data plane and admin HTTP of one configuration. To be made inside a running loop."""

    def __init__(
        self,
        settings: Settings,
        emit: Callable[[Event], None],
        read: Callable[[], Settings] | None = None,
        systemd: Systemd | None = None,
    ) -> None:
        """`read`: reads the settings anew for a reload."""
        handed, notifier = (None, None) if systemd is None else (systemd.handed, systemd.notifier)
        self.supervisor = Supervisor(settings, emit=emit, read=read, handed=handed, notifier=notifier)
        self.admin = AdminServer(self.supervisor, settings)
        self._stopping = False

    async def start(self) -> None:
        """Returns when mail is accepted, or when stop() came in between. StartError: nothing is left behind.

        Admin HTTP comes first: it answers "starting" while the first checks are under way, and no client
        meets a listener that goes away again because another port was in use.
        """
        try:
            await self.admin.start()
            if not self._stopping:
                await self.supervisor.start()
        except (BindError, OSError) as error:
            await self.admin.stop()
            text = error.strerror if isinstance(error, OSError) else None
            raise StartError(text or str(error)) from error

    async def reload(self) -> None:
        await self.supervisor.reload()

    async def stop(self, drain_s: float | None = None) -> None:
        """Sessions first, admin HTTP last. Called again while stopping: no more delay, the new `drain_s`."""
        self._stopping = True
        await self.supervisor.stop(drain_s)
        await self.admin.stop()


class Hangups:
    """What SIGHUP does. A reload is told of in the log: there is nobody else to tell."""

    def __init__(self, balancer: Balancer, reopen_log: Callable[[], None], *, reloads: bool) -> None:
        self._balancer = balancer
        self._reopen_log = reopen_log
        self._reloads = reloads
        self._wanted = False
        self._task: asyncio.Task[None] | None = None

    def hang_up(self) -> None:
        self._reopen_log()
        self._balancer.supervisor.reopen_log()
        if not self._reloads:
            return
        self._wanted = (
            True  # what changed after a reload began may not be in it: once more, however many signals come
        )
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while self._wanted:
            self._wanted = False
            try:
                await self._balancer.reload()
            except (ConfigErrors, NeedsRestart, BindError, CannotReload):
                pass  # the supervisor has told


async def _feed(notifier: Notifier, supervisor: Supervisor) -> None:
    """The watchdog, for as long as the loop turns and every worker answers."""
    while notifier.watchdog_s is not None:
        try:
            await supervisor.worker_report()
        except TimeoutError:  # systemd ends us, if the worker neither answers in time nor is replaced
            await asyncio.sleep(LOOK_AGAIN_S)
        else:
            notifier.alive()
            await asyncio.sleep(notifier.watchdog_s / 3)


async def serve(
    settings: Settings,
    emit: Callable[[Event], None],
    *,
    on_started: Callable[[Balancer], None] = lambda _: None,
    read: Callable[[], Settings] | None = None,
    reopen_log: Callable[[], None] = lambda: None,
    systemd: Systemd | None = None,
) -> None:
    """Runs until SIGTERM or SIGINT, then drains; a second one stops at once. SIGHUP: the log is opened anew, and `read` reads
    the settings for a reload. StartError.
    """
    loop = asyncio.get_running_loop()
    balancer = Balancer(settings, emit, read, systemd)
    hangups = Hangups(balancer, reopen_log, reloads=read is not None)
    signalled = asyncio.Event()
    stops: list[asyncio.Task[None]] = []

    def stop() -> None:
        stops.append(loop.create_task(balancer.stop(0.0 if stops else None)))
        signalled.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hangups.hang_up)
    watchdog = None if systemd is None else loop.create_task(_feed(systemd.notifier, balancer.supervisor))
    try:
        await balancer.start()
        if not signalled.is_set():
            collector.settle()
            on_started(balancer)
        await signalled.wait()
        for task in stops:  # grows while we wait: the second signal's is at its end
            await task
    finally:
        if watchdog is not None:
            watchdog.cancel()
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)


@click.command()
@click.argument("file", envvar=FILE_VARIABLE, default=DEFAULT_FILE)
def run(file: str) -> None:
    """Run the balancer with the configuration in FILE.

    FILE defaults to $SMTPLB_CONFIG, else to /etc/smtplb/smtplb.yaml. SIGTERM or SIGINT: sessions are drained,
    then the process ends; a second one ends it at once. SIGHUP: FILE is read again and taken up without losing
    a connection, if it has no mistake; the log file is opened anew in any case. Exit status: 0 after a stop,
    1 if it could not start.
    """
    try:
        settings = load(file)
    except ConfigErrors as errors:
        raise SystemExit(_failed(str(errors))) from None
    try:
        log = LogWriter(settings.log)
    except OSError as error:
        raise SystemExit(_failed(f"log: {settings.log.destination}: {error.strerror}")) from None
    _raise_descriptor_limit()
    systemd = Systemd(take_sockets(), Notifier())
    try:
        uvloop.run(_run(settings, log, file, systemd))
    except StartError as error:
        raise SystemExit(_failed(str(error))) from None
    finally:
        log.close()


async def _run(settings: Settings, log: LogWriter, file: str, systemd: Systemd) -> None:
    loop = asyncio.get_running_loop()
    libraries = LibraryHandler(log.emit)
    logging.getLogger().addHandler(libraries)
    loop.set_exception_handler(lambda _, context: log.emit(unhandled(context)))
    try:
        await serve(settings, log.emit, read=partial(load, file), reopen_log=log.reopen, systemd=systemd)
    finally:
        logging.getLogger().removeHandler(libraries)


def unhandled(context: dict[str, object]) -> Notice:
    """What would have ended in asyncio's log: an exception nobody caught. The process goes on."""
    error = context.get("exception")
    fields: dict[str, str | int | float] = {}
    if isinstance(error, BaseException):
        text = logging.Formatter().formatException((type(error), error, error.__traceback__))
        fields["exception"] = text
    return Notice("error", "bug", str(context.get("message", "unhandled exception")), fields)


def _raise_descriptor_limit() -> None:
    """A session costs two descriptors; the usual soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _failed(text: str) -> int:
    click.echo(text, err=True)
    return 1
