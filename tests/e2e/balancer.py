"""`smtplb run FILE` as a process of its own: started, asked, told and watched as an operator would.

Owns the configuration file, the process, and reading its admin HTTP, its log and its use of the machine.
Does not own what stands behind it or who sends through it.
Invariant: start() returns once the first checks are over and the listener accepts.
"""

from __future__ import annotations

import http.client
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.lab.ports import free_port
from tests.lab.process import Instance, LabError, wait_until

Json = dict[str, Any]
Section = Mapping[str, Any]

FIGURES = logging.getLogger("e2e")  # what tests measured: pytest --log-cli-level=INFO shows it
PROGRAM = Path(sys.executable).with_name("smtplb")
TOKEN = "a-token-for-tests-only"
HTTP_TIMEOUT_S = 20.0
EXIT_TIMEOUT_S = 30.0

# Short, so that tests are; docs/configuration.md says what each means.
INTERVAL_S, FAST_INTERVAL_S, CHECK_TIMEOUT_S, RISE, FALL = 0.3, 0.1, 1.0, 2, 3
QUICK_CHECK: Section = {
    "interval": "300ms",
    "fast_interval": "100ms",
    "timeout": "1s",
    "rise": RISE,
    "fall": FALL,
}


def command(*arguments: str, warnings: bool = True) -> list[str]:
    """The installed program. `warnings`: those of Python are errors, as everywhere in the tests."""
    return [sys.executable, *(["-W", "error"] if warnings else []), str(PROGRAM), *arguments]


def call(*arguments: str, timeout_s: float = EXIT_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """`smtplb ARGUMENTS` until it ends by itself."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def pool(*backends: Instance | Section | str, **settings: Any) -> Json:
    """A pool of the configuration with quick checks; an instance of the lab is a backend with its name."""
    entries = [
        {"name": backend.name, "address": backend.address} if isinstance(backend, Instance) else backend
        for backend in backends
    ]
    return {"check": dict(QUICK_CHECK), **settings, "backends": entries}


class Smtplb(Instance):
    """One balancer.

    pools, groups    those sections of the file
    listener         keys of its only listener, "mx", that are not the default: bind to `port`, to the first group or pool
    sections         further sections; `shutdown`, `log` and `admin` have defaults that suit tests
    warnings         whether warnings of Python are errors
    """

    kind = "smtplb"

    def __init__(
        self,
        pools: Mapping[str, Section],
        *,
        groups: Mapping[str, Section] | None = None,
        listener: Section | None = None,
        sections: Section | None = None,
        name: str | None = None,
        warnings: bool = True,
    ) -> None:
        super().__init__(name)
        self.admin_port = free_port()
        self.exit_status: int | None = None
        self._pools = pools
        self._groups = groups or {}
        self._listener = listener or {}
        self._sections = sections or {}
        self._warnings = warnings

    @classmethod
    def available(cls) -> str | None:
        return None if PROGRAM.exists() else f"smtplb is not installed ({PROGRAM})"

    # -- life

    def _prepare(self) -> None:
        self.token_file.write_text(TOKEN + "\n")
        self.token_file.chmod(0o600)
        self.file.write_text(yaml.safe_dump(self._config(), sort_keys=False))

    def _config(self) -> Json:
        listener = {
            "name": "mx",
            "bind": self.address,
            "to": next(iter(self._groups or self._pools)),
            **self._listener,
        }
        config: Json = {
            "hostname": "lb.lab.test",
            "shutdown": {"delay": "0s", "drain": "20s"},
            "listeners": [listener],
            "groups": dict(self._groups),
            "pools": dict(self._pools),
            "admin": {"bind": f"127.0.0.1:{self.admin_port}", "token_file": self.token_file.name},
            "log": {"format": "ecs", "destination": "./smtplb.log"},
        }
        config.update(self._sections)
        return {key: value for key, value in config.items() if value}

    @property
    def file(self) -> Path:
        return self.directory / "smtplb.yaml"

    @property
    def token_file(self) -> Path:
        return self.directory / "admin.token"

    @property
    def log(self) -> Path:
        return self.directory / "smtplb.log"

    def _command(self) -> list[str]:
        return command("run", str(self.file), warnings=self._warnings)

    def _ports(self) -> list[int]:
        return [self.port, self.admin_port]

    def _is_ready(self) -> bool:
        return super()._is_ready() and self.is_ready(backends=False)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        assert self._main is not None
        self._main.send_signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """SIGHUP, without waiting."""
        assert self._main is not None
        self._main.send_signal(signal.SIGHUP)

    def reloads(self) -> int:
        """How many went well."""
        return int(self.status()["config"]["reloads"]["ok"])

    def metrics(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=HTTP_TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def kill_main(self) -> None:
        """SIGKILL to the process that was started, and to no worker of it."""
        assert self._main is not None
        self._main.kill()
        self._main.wait(EXIT_TIMEOUT_S)

    def wait_exit(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._main is not None
        main = self._main
        wait_until(lambda: main.poll() is not None, f"{self.name} has ended", timeout_s)
        self._main = None
        self.exit_status = main.returncode
        assert self.exit_status is not None
        return self.exit_status

    # -- admin HTTP

    def request(
        self, method: str, path: str, body: Json | None = None, *, token: str | None = TOKEN
    ) -> tuple[int, Json]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=HTTP_TIMEOUT_S)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def is_ready(self, *, backends: bool = True) -> bool:
        """/readyz; without `backends` it only has to accept."""
        try:
            return self.request("GET", "/readyz" + ("" if backends else "?backends=ignore"))[0] == 200
        except OSError:  # not listening yet, or no more
            return False

    def status(self) -> Json:
        code, answer = self.request("GET", "/api/v1/status")
        if code != 200:
            raise LabError(f"status: {code} {answer}")
        return answer

    def backends(self) -> dict[str, Json]:
        """All backends by name; tests give each one a name of its own."""
        return {each["name"]: each for pool in self.status()["pools"] for each in pool["backends"]}

    def states(self) -> dict[str, str]:
        return {name: str(backend["state"]) for name, backend in self.backends().items()}

    def group(self, name: str) -> Json:
        return next(each for each in self.status()["groups"] if each["name"] == name)

    def change(self, pool: str, backend: str, **change: Any) -> tuple[int, Json]:
        """PATCH of a backend, with the token."""
        return self.request("PATCH", f"/api/v1/pools/{pool}/backends/{backend}", change)

    def wait_state(self, backend: str, state: str, timeout_s: float = 20.0) -> Json:
        """The backend as status shows it, once it is in that state."""
        wait_until(lambda: self.states()[backend] == state, f"{backend} is {state}", timeout_s)
        return self.backends()[backend]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`smtplb ARGUMENTS` against this balancer."""
        place = ("--url", f"http://127.0.0.1:{self.admin_port}", "--token-file", str(self.token_file))
        return call(*arguments, *place)

    # -- log

    def records(self, action: str = "") -> list[Json]:
        """Complete lines of the log, those of one `event.action` if it is given."""
        text = self.log.read_text() if self.log.exists() else ""
        records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [record for record in records if not action or record.get("event.action") == action]

    def complaints(self) -> list[str]:
        """What must never be there: errors in the log, and anything on stdout or stderr."""
        errors = [json.dumps(record) for record in self.records() if record["log.level"] == "error"]
        return errors + self.output().splitlines()

    # -- use of the machine

    def rss_bytes(self) -> int:
        # smaps_rollup is exact; status may lag by some pages for each thread.
        return self._memory("smaps_rollup", "Rss")

    def peak_rss_bytes(self) -> int:
        """The most it ever had."""
        return self._memory("status", "VmHWM")

    def _memory(self, file: str, key: str) -> int:
        for line in Path(f"/proc/{self.pid}/{file}").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise LabError(f"no {key} of {self.name}")


def unix_time(text: str) -> float:
    """Of a time in status or in the log."""
    return datetime.fromisoformat(text).timestamp()
