"""`smtplb demo`: the main job in a few seconds, with nothing installed but this package.

Owns the course of events: three embedded backends, a balancer in front, traffic; one backend is killed and
comes back. Does not own the backends (embedded.py), the client (demo_traffic.py), the books (demo_ledger.py)
or the words of the report (demo_report.py).
Invariant: exit 0 only if the audit found both columns of the ledger in agreement. Loopback only.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import click
import uvloop
from rich.console import Console

from smtplb.cli.demo_ledger import Ledger
from smtplb.cli.demo_report import Stage, Tally, print_report, progress
from smtplb.cli.demo_traffic import GaveUp, Outbox, Traffic
from smtplb.cli.embedded import EmbeddedBackend, Fault, Taken, Verb
from smtplb.cli.run import STOP_SIGNALS, Balancer, StartError
from smtplb.config.load import load_text
from smtplb.settings import Address

HOST = "127.0.0.1"
BACKENDS = {"mx1": 0.8, "mx2": 1.0, "mx3": 1.2}  # how slow; unequal, or all sessions would run in step
VICTIM = "mx2"
FIRST_PORTS = {"listener": 2525, "admin": 8025, "mx1": 2601, "mx2": 2602, "mx3": 2603}
PORTS_TRIED = 300  # from the first one on, in steps of PORT_STEP; all below 32768, see _start_on_free_port()
PORT_STEP = len(BACKENDS)
TRAFFIC_S = 8.0  # about; less for few messages
MAX_WORK_S = 0.05  # of a backend for a message: what an MTA needs to get it to disk
NOTICE_WITHIN_S = 10.0  # for the checks to see a death or a return
DRAIN_S = 2.0

CONFIG = """\
hostname: smtplb.localhost
listeners:
  - {{name: demo, bind: "{listener}", to: mx}}
pools:
  mx:
    policy: round-robin
    backends:
{backends}
    check: {{level: ehlo, interval: 1s, fast_interval: 200ms, timeout: 1s, rise: 2, fall: 2}}
admin: {{bind: "{admin}", token_file: admin.token}}
shutdown: {{delay: 0s, drain: 2s}}
"""


class DemoError(Exception):
    """The demo cannot show what it wants to; the text says why."""


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running afterwards, for tries by hand.")
@click.option("--messages", type=click.IntRange(min=30), default=3000, show_default=True)
@click.option("--sessions", type=click.IntRange(1, 200), default=10, show_default=True)
def demo(keep: bool, messages: int, sessions: int) -> None:
    """Show the main job: a backend dies under load, and no mail is lost.

    Three embedded backends, a balancer in front of them, and traffic through it, all on loopback in this
    process. One backend is killed in the middle and comes back. At the end: who took what, and whether each
    250 is exactly one message at a backend. Exit status: 0 if so, else 1.
    """
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a pipe has no width
    try:
        with tempfile.TemporaryDirectory(prefix="smtplb-demo-") as directory:
            agreed = uvloop.run(Demo(console, Path(directory), messages, sessions).run(keep=keep))
    except (DemoError, GaveUp, StartError, OSError) as error:
        raise SystemExit(_failed(str(error))) from None
    raise SystemExit(0 if agreed else 1)


class Demo:
    """One showing. run() returns whether the books agree."""

    def __init__(self, console: Console, directory: Path, messages: int, sessions: int) -> None:
        self._console = console
        self._directory = directory
        self._messages = messages
        self._sessions = sessions
        self._started_s = time.monotonic()
        self._ledger = Ledger()
        self._tally = Tally(self._ledger, VICTIM, self._tell)
        # The pace is the backends': as with real ones, and it keeps some messages under way at any moment.
        work_s = min(MAX_WORK_S, TRAFFIC_S * sessions / messages)
        self._backends = {
            name: EmbeddedBackend(
                HOST,
                name=name,
                faults={Verb.FINAL: Fault(delay_s=slowness * work_s)},
                on_message=self._tally.message_taken,
            )
            for name, slowness in BACKENDS.items()
        }

    async def run(self, *, keep: bool) -> bool:
        async with self._running() as balancer:
            listener = balancer.supervisor.bound["demo"][0]
            self._tell(
                f"smtplb listens on {listener}, in front of "
                + ", ".join(f"{name} ({each.address})" for name, each in self._backends.items())
            )
            agreed = await self._show(listener, kept=keep)
            if keep:
                await self._keep(listener, balancer.admin.bound)
            return agreed

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Balancer]:
        """Backends and balancer; whatever was started is stopped, in the reverse order."""
        try:
            for name, backend in self._backends.items():
                await _start_on_free_port(backend, FIRST_PORTS[name])
            (self._directory / "admin.token").write_text(secrets.token_urlsafe(24) + "\n")
            (self._directory / "admin.token").chmod(0o600)
            (self._directory / "smtplb.yaml").write_text(self._config())
            settings = load_text(self._config(), "smtplb.yaml", self._directory)
            balancer = Balancer(settings, self._tally.emit)
            await balancer.start()
            try:
                yield balancer
            finally:
                await balancer.stop(DRAIN_S)
        finally:
            for backend in self._backends.values():
                await backend.stop()

    def _config(self) -> str:
        lines = [
            f'      - {{name: {name}, address: "{each.address}"}}' for name, each in self._backends.items()
        ]
        listener, admin = (f"{HOST}:{_free_port(FIRST_PORTS[what])}" for what in ("listener", "admin"))
        return CONFIG.format(listener=listener, admin=admin, backends="\n".join(lines))

    async def _show(self, listener: Address, *, kept: bool) -> bool:
        milestones = {
            self._messages * 33 // 100: asyncio.Event(),
            self._messages * 55 // 100: asyncio.Event(),
        }
        killing, reviving = milestones.values()
        outbox = Outbox(self._messages, hold_at=self._messages * 75 // 100)
        with progress(self._console, self._messages, self._tell) as advance:

            def on_delivered(count: int) -> None:
                advance(count)
                if count in milestones:
                    milestones[count].set()

            traffic = Traffic(listener.host, listener.port, outbox, self._ledger, on_delivered=on_delivered)
            await _together(traffic.run(self._sessions), self._kill_and_revive(killing, reviving, outbox))
        audit = self._ledger.audit(self._messages)
        print_report(
            self._console,
            tally=self._tally,
            backends=list(BACKENDS),
            counts=traffic.counts,
            audit=audit,
            sessions=self._sessions,
            kept=kept,
        )
        bugs = [error for backend in self._backends.values() for error in backend.bugs]
        if bugs:
            raise DemoError(f"an embedded backend has a bug: {bugs[0]!r}")
        return not audit.disagreements

    async def _kill_and_revive(self, killing: asyncio.Event, reviving: asyncio.Event, outbox: Outbox) -> None:
        victim = self._backends[VICTIM]
        await killing.wait()
        self._tell(f"{VICTIM} is killed: port closed, connections cut: {len(victim.dialogues)}")
        self._tally.stage = Stage.WITHOUT
        await victim.kill()
        await _within(self._tally.found_down, f"{VICTIM} is dead, and the checks did not notice")
        await reviving.wait()
        self._tally.found_up.clear()
        await victim.start()
        self._tell(f"{VICTIM} is started again")
        await _within(self._tally.found_up, f"{VICTIM} is well, and the checks did not notice")
        outbox.release()

    async def _keep(self, listener: Address, admin: Address | None) -> None:
        def tell_of(taken: Taken) -> None:
            self._tell(
                f"{taken.backend} took {taken.message_bytes:,} octets from <{taken.sender}>"
                f" to {', '.join(f'<{each}>' for each in taken.recipients)}"
            )

        for backend in self._backends.values():
            backend.on_message = tell_of
        url = f"http://{admin}"
        self._console.print(
            f"\nStill running. Listener {listener}, admin {url}, backends "
            + ", ".join(f"{name} {each.address}" for name, each in self._backends.items())
            + f".\nThe configuration is {self._directory / 'smtplb.yaml'}. Try in another terminal:\n\n"
            f"  export SMTPLB_ADMIN_URL={url} SMTPLB_TOKEN_FILE={self._directory / 'admin.token'}\n"
            f"  swaks --server {listener} --from a@example.org --to b@example.net\n"
            "  smtplb status\n"
            "  smtplb drain mx/mx1      # then swaks again; smtplb resume mx/mx1 takes it back\n"
            f"  curl -s {url}/api/v1/status\n"
            f"  curl -s {url}/metrics\n\n"
            "Ctrl-C ends it."
        )
        await _until_signal()

    def _tell(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._started_s:5.1f}s  {text}")


async def _start_on_free_port(backend: EmbeddedBackend, first: int) -> None:
    """Not on port 0: the system would give a port out of which outgoing connections are served too, and while
    the backend is dead one of these could take its port, or even connect to itself.
    """
    for port in range(first, first + PORTS_TRIED * PORT_STEP, PORT_STEP):
        backend.port = port
        try:
            await backend.start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    raise DemoError(f"no free port for {backend.name} from {first} on")


def _free_port(first: int) -> int:
    """Free a moment ago; the balancer says so if it is not any more."""
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((HOST, port))
                trial.listen(1)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise DemoError(f"no free port from {first} on")


async def _together(*parts: Coroutine[object, object, None]) -> None:
    """The first failure ends the others, and is raised as it is."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _within(event: asyncio.Event, otherwise: str) -> None:
    try:
        async with asyncio.timeout(NOTICE_WITHIN_S):
            await event.wait()
    except TimeoutError:
        raise DemoError(f"{otherwise} within {NOTICE_WITHIN_S:g} s") from None


async def _until_signal() -> None:
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, signalled.set)
    await signalled.wait()
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)


def _failed(text: str) -> int:
    click.echo(f"smtplb demo: {text}", err=True)
    return 1
