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

import click
import uvloop

from smtplb.admin.server import AdminServer
from smtplb.cli import collector
from smtplb.cli.validate import DEFAULT_FILE, FILE_VARIABLE
from smtplb.config.errors import ConfigErrors
from smtplb.config.load import load
from smtplb.controlplane.supervisor import BindError, Supervisor
from smtplb.observe.events import Event, Notice
from smtplb.observe.logs import LibraryHandler, LogWriter
from smtplb.settings import Settings

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartError(Exception):
    """Says what could not be had; nothing was started."""


class Balancer:
    """Control plane, data plane and admin HTTP of one configuration. To be made inside a running loop."""

    def __init__(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        self.supervisor = Supervisor(settings, emit=emit)
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

    async def stop(self, drain_s: float | None = None) -> None:
        """Sessions first, admin HTTP last. Called again while stopping: no more delay, the new `drain_s`."""
        self._stopping = True
        await self.supervisor.stop(drain_s)
        await self.admin.stop()


async def serve(
    settings: Settings,
    emit: Callable[[Event], None],
    *,
    on_started: Callable[[Balancer], None] = lambda _: None,
) -> None:
    """Runs until SIGTERM or SIGINT, then drains; a second one stops at once. StartError."""
    loop = asyncio.get_running_loop()
    balancer = Balancer(settings, emit)
    signalled = asyncio.Event()
    stops: list[asyncio.Task[None]] = []

    def stop() -> None:
        stops.append(loop.create_task(balancer.stop(0.0 if stops else None)))
        signalled.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await balancer.start()
        if not signalled.is_set():
            collector.settle()
            on_started(balancer)
        await signalled.wait()
        for task in stops:  # grows while we wait: the second signal's is at its end
            await task
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@click.command()
@click.argument("file", envvar=FILE_VARIABLE, default=DEFAULT_FILE)
def run(file: str) -> None:
    """Run the balancer with the configuration in FILE.

    FILE defaults to $SMTPLB_CONFIG, else to /etc/smtplb/smtplb.yaml. SIGTERM or SIGINT: sessions are drained,
    then the process ends; a second one ends it at once. SIGHUP: the log file is opened anew. Exit status: 0
    after a stop, 1 if it could not start.
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
    try:
        uvloop.run(_run(settings, log))
    except StartError as error:
        raise SystemExit(_failed(str(error))) from None
    finally:
        log.close()


async def _run(settings: Settings, log: LogWriter) -> None:
    loop = asyncio.get_running_loop()
    libraries = LibraryHandler(log.emit)
    logging.getLogger().addHandler(libraries)
    loop.add_signal_handler(signal.SIGHUP, log.reopen)
    loop.set_exception_handler(lambda _, context: log.emit(unhandled(context)))
    try:
        await serve(settings, log.emit)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
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
