"""A Postfix that a balancer does nothing to but check, at every level.

Owns the pair and what their end must look like in the log.
"""

from __future__ import annotations

import time

from tests.e2e.balancer import Smtplb, pool
from tests.lab import Postfix, wait_until
from tests.lab.fixtures import Lab

LEVELS = ("tcp", "banner", "ehlo")
MINUTE_S = 60.0
NEVER_LOGGED = ("lost connection", "timeout after", "warning:", "improper command pipelining")


class CheckedPostfix:
    def __init__(self, lab: Lab, interval: str) -> None:
        self.postfix = lab.start(Postfix("checked"))
        self.balancer = lab.start(
            Smtplb({level: self._pool(level, interval) for level in LEVELS}, name="checking")
        )
        self.began = time.monotonic()

    def _pool(self, level: str, interval: str) -> dict[str, object]:
        check = {"level": level, "interval": interval, "timeout": "5s"}
        return pool({"name": level, "address": self.postfix.address}, check=check)

    def passed(self) -> dict[str, int]:
        return {name: int(each["check"]["passed"]) for name, each in self.balancer.backends().items()}

    def failed(self) -> dict[str, int]:
        return {name: int(each["check"]["failed"]) for name, each in self.balancer.backends().items()}

    def end(self) -> int:
        """Stops the balancer and looks at the log: every check took leave. How many there were."""
        self.balancer.terminate()  # checks under way take leave as well
        assert self.balancer.wait_exit() == 0
        assert self.balancer.complaints() == []
        log = self.postfix.log_lines
        wait_until(
            lambda: len(log("]: disconnect from")) >= len(log("]: connect from")), "all checks are over"
        )
        disconnects = log("]: disconnect from")
        assert all(" quit=1 " in line for line in disconnects)
        for words in NEVER_LOGGED:
            assert log(words) == []
        return len(disconnects)
