"""An instance: a real program with a directory of its own, started, watched and ended by us.

Owns instance directories and the processes in them. What a program is told and what its logs mean is the managers'.
Invariant: the processes of an instance are exactly those whose working directory lies in its directory. Mail servers fork
and leave their parents; that rule finds all of them and never anybody else's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from tests.lab.ports import free_port, is_listening

LAB_DIR = Path(os.environ.get("SMTPLB_LAB_DIR", "/var/lib/smtplb-lab"))  # as in scripts/mtas
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.01
KEEP_DIRECTORIES = os.environ.get("SMTPLB_LAB_KEEP", "") not in ("", "0")

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_OWNER_FILE = ".owner"


class LabError(RuntimeError):
    """A program of the lab did not do what it had to: not start, not end, not count."""


class Available(Protocol):
    """What can be asked whether this machine has it: a manager class or one of its instances."""

    def available(self) -> str | None:
        """Why it cannot run here, None if it can."""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def is_root() -> bool:
    return os.geteuid() == 0


def missing_program(path: Path | str, name: str, *, needs_root: bool = False) -> str | None:
    if needs_root and not is_root():
        return f"{name} can only be run by root"
    if not os.access(path, os.X_OK):
        return f"{name} is not installed ({path})"
    return None


def processes_in(directory: Path) -> list[int]:
    """Pids of all processes whose working directory is `directory` or below; zombies have none."""
    root = str(directory)
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            cwd = os.readlink(f"/proc/{entry.name}/cwd")
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if cwd == root or cwd.startswith(root + "/"):
            found.append(int(entry.name))
    return found


def send_signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _start_time(pid: int) -> str:
    """Ticks from boot to the start of the process: with the pid it names one process for good. Empty: no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _cpu_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return sum(int(ticks) for ticks in stat.rpartition(")")[2].split()[11:15])


def _instances_root() -> Path:
    # Not below a private /tmp folder: mail servers change to users of their own, who must be able to get here.
    return LAB_DIR / "run" if is_root() else Path(tempfile.gettempdir()) / f"smtplb-lab-{os.geteuid()}"


def sweep() -> None:
    """Ends what test runs that were killed have left behind: each instance whose owner process is no more."""
    for owner in _instances_root().glob(f"*/{_OWNER_FILE}"):
        try:
            pid, _, started = owner.read_text().partition(" ")
        except OSError:
            continue
        if pid.isdigit() and _start_time(int(pid)) == started:
            continue
        send_signal(processes_in(owner.parent), signal.SIGKILL)
        shutil.rmtree(owner.parent, ignore_errors=True)


def _make_directory(name: str) -> Path:
    root = _instances_root()
    root.mkdir(parents=True, exist_ok=True)
    sweep()
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    note = directory / f"{_OWNER_FILE}.new"
    note.write_text(f"{os.getpid()} {_start_time(os.getpid())}")
    note.rename(directory / _OWNER_FILE)  # at once: half a note would look like one of a dead owner
    directory.chmod(0o755)
    return directory.resolve()


class Instance:
    """Base of the managers. A context manager: entering starts the program, leaving ends it and removes its directory.

    `start` may be called again after `stop` or `kill_hard`; directory, port, queues and logs stay the same.
    Blocking; from asynchronous code call everything through `asyncio.to_thread`. One caller at a time.
    """

    kind: ClassVar[str]

    def __init__(self, name: str | None = None, port: int | None = None) -> None:
        self.name = name or self.kind
        self.port = port or free_port()
        self.directory = (
            Path()
        )  # made by the first start: an instance that is only described leaves nothing behind
        self._main: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @classmethod
    def available(cls) -> str | None:
        """Why this program cannot run here, None if it can."""
        raise NotImplementedError

    # -- what a manager fills in

    def _prepare(self) -> None:
        """Writes the configuration into `self.directory`: once, before the first start."""

    def _command(self) -> list[str]:
        """The program in the foreground. It must stay in, or below, the working directory it is given."""
        raise NotImplementedError

    def _ports(self) -> list[int]:
        """Ports that are listened on once the program is ready."""
        return [self.port]

    def _descriptors(self) -> list[int]:
        """Of ours, that the program gets under the same numbers."""
        return []

    # -- life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Returns when the program listens."""
        if self._main is not None:
            raise AssertionError(f"{self.name} is running already")
        if self.directory == Path():
            self.directory = _make_directory(self.name)
            self._prepare()
        with open(self.directory / "output", "ab") as output:
            self._main = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self._descriptors(),
                start_new_session=True,  # a Ctrl-C at the test runner is not for the mail server
            )
        wait_until(self._is_ready, f"{self.name} listening on {self._ports()}", self._start_timeout_s())

    def _start_timeout_s(self) -> float:
        return START_TIMEOUT_S

    def _is_ready(self) -> bool:
        assert self._main is not None
        code = self._main.poll()
        if code is not None:
            self._main = None
            raise LabError(f"{self.name} ended at once with {code}: {self.output()[-2000:]}")
        return all(is_listening(port) for port in self._ports())

    @property
    def pid(self) -> int:
        if self._main is None:
            raise AssertionError(f"{self.name} is not running")
        return self._main.pid

    def is_running(self) -> bool:
        return self._main is not None and self._main.poll() is None

    def stop(self) -> None:
        """Ends the program in its own orderly way, waits until every process of it is gone. Nothing to do: fine."""
        if self._main is not None and self._main.poll() is None:
            self._main.terminate()
            try:
                self._main.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pass
        self._end_all(signal.SIGTERM)

    def kill_hard(self) -> None:
        """SIGKILL to every process of this instance; returns when all are gone and the port is free."""
        self._end_all(signal.SIGKILL)

    def _end_all(self, first: signal.Signals) -> None:
        main, self._main = self._main, None
        if self.directory != Path():
            send_signal(processes_in(self.directory), first)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while pids := processes_in(self.directory):
                if first is signal.SIGKILL or time.monotonic() > deadline - STOP_TIMEOUT_S / 2:
                    send_signal(pids, signal.SIGKILL)  # again and again: a parent may have forked meanwhile
                if time.monotonic() > deadline:
                    raise LabError(f"processes of {self.name} do not end: {pids}")
                time.sleep(POLL_S)
        if main is not None:
            main.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Ends the program at once and removes its directory (SMTPLB_LAB_KEEP=1 keeps it)."""
        self._end_all(signal.SIGKILL)
        if self.directory != Path() and not KEEP_DIRECTORIES:
            shutil.rmtree(self.directory, ignore_errors=True)

    # -- looking at it

    def pids(self) -> list[int]:
        return processes_in(self.directory) if self.directory != Path() else []

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of all processes of this instance and of their children that have ended."""
        return sum(_cpu_ticks(pid) for pid in self.pids()) / _CLOCK_TICKS

    def output(self) -> str:
        """What the program wrote to stdout and stderr so far."""
        path = self.directory / "output"
        return path.read_text(errors="replace") if path.exists() else ""
