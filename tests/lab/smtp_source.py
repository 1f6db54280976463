"""smtp-source, Postfix's load generator: many equal messages over many sessions, without TLS.

Owns its options and what its end means.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.lab.process import LabError, missing_program

BINARY = "/usr/sbin/smtp-source"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """`errors`: what smtp-source complained about. It gives up at the first reply it did not expect, unless run with -A."""

    returncode: int
    messages: int
    duration_s: float
    errors: tuple[str, ...]

    @property
    def messages_per_s(self) -> float:
        return self.messages / self.duration_s


class SmtpSource:
    @staticmethod
    def available() -> str | None:
        return missing_program(BINARY, "smtp-source (Postfix)")

    @staticmethod
    def run(
        port: int,
        *,
        messages: int,
        sessions: int = 1,
        size_bytes: int = 4096,
        keep_sessions: bool = False,
        sender: str = "a@a.test",
        recipient: str = "b@b.test",
        options: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> LoadResult:
        """Sends to 127.0.0.1 and waits for the end.

        keep_sessions   send many messages in a session; else each has a connection of its own
        options         more of smtp-source(1), e.g. ("-r", "5") for five recipients a message, ("-A",) to go on after errors
        """
        command = [BINARY, "-4", "-s", str(sessions), "-m", str(messages), "-l", str(size_bytes)]
        command += [
            "-f",
            sender,
            "-t",
            recipient,
            *(["-d"] if keep_sessions else []),
            *options,
            f"127.0.0.1:{port}",
        ]
        began = time.perf_counter()
        try:
            ended = subprocess.run(
                command, capture_output=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as late:
            raise LabError(f"smtp-source did not end within {timeout_s:g} s: {late.stderr!r}") from None
        duration_s = time.perf_counter() - began
        errors = tuple(ended.stderr.decode(errors="replace").splitlines())
        return LoadResult(ended.returncode, messages, duration_s, errors)
