"""smtp-sink, Postfix's test server: takes everything as fast as it can, and counts.

Owns its options and the reading of its counters.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from tests.lab.process import Instance, is_root, missing_program, wait_until

BINARY = "/usr/sbin/smtp-sink"
USER = "nobody"

_COUNTERS = re.compile(rb"sess=(\d+) quit=(\d+) mesg=(\d+)")


@dataclass(frozen=True, slots=True)
class SinkCounts:
    """Sessions that ended, QUIT commands, and messages answered 250 since the last start."""

    sessions: int = 0
    quits: int = 0
    messages: int = 0


class SmtpSink(Instance):
    """One smtp-sink.

    options   its own, e.g. ("-q", "DATA") to hang up at DATA, ("-w", "1") to answer DATA one second late: smtp-sink(1)
    dump      keep each message in a file, see `dumps`; slower
    backlog   of the listening socket
    """

    kind = "smtp-sink"

    def __init__(
        self,
        name: str | None = None,
        *,
        port: int | None = None,
        options: Sequence[str] = (),
        dump: bool = False,
        backlog: int = 4096,
    ) -> None:
        super().__init__(name, port)
        self._options = list(options)
        self._dump = dump
        self._backlog = backlog

    @classmethod
    def available(cls) -> str | None:
        return missing_program(BINARY, "smtp-sink (Postfix)")

    def _prepare(self) -> None:
        dumps = self.directory / "dumps"
        dumps.mkdir()
        if is_root():
            shutil.chown(dumps, USER)

    def _command(self) -> list[str]:
        # Counters start at 0 with the program: what an earlier life printed must not be read for them.
        (self.directory / "output").write_bytes(b"")
        command = [BINARY, "-c", *self._options]
        if is_root():
            command += ["-u", USER]  # it refuses to run as root
        if self._dump:
            command += ["-d", str(self.directory / "dumps" / "%s.")]
        return [*command, self.address, str(self._backlog)]

    def counts(self) -> SinkCounts:
        """Counted before the reply is written: a client that has its 250 is in here."""
        with open(self.directory / "output", "rb") as output:
            output.seek(-min(os.fstat(output.fileno()).st_size, 200), os.SEEK_END)
            found = _COUNTERS.findall(output.read())
        return SinkCounts(*map(int, found[-1])) if found else SinkCounts()

    def messages(self) -> int:
        return self.counts().messages

    def wait_messages(self, count: int, timeout_s: float = 10.0) -> int:
        wait_until(lambda: self.messages() >= count, f"{self.name} has {count} messages", timeout_s)
        return self.messages()

    def dumps(self) -> list[bytes]:
        """Each message as it came, below smtp-sink's own X-...-Args lines that tell the envelope; oldest first."""
        files = (path for path in (self.directory / "dumps").iterdir() if path.is_file())
        return [path.read_bytes() for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]
