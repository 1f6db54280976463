"""What every part of a worker's data plane shares: loop, clock, event sink, our name.

Owns ids and the way a bug of ours is told. Does not own any state of mail.
Invariant: nothing here blocks; `emit` never raises into the data path.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate

from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.outbox import Outbox
from smtplb.observe.events import MailEvent, Notice, WorkerEvent


class Runtime:
    """One for each worker. `emit` tells the control plane, `log` the log alone: what each message tells takes the short way.
    `session_prefix` makes ids of workers and restarts differ.
    """

    __slots__ = (
        "_date",
        "_date_at",
        "_serial",
        "deadlines",
        "emit",
        "hello",
        "log",
        "loop",
        "outbox",
        "session_prefix",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        emit: Callable[[WorkerEvent], None],
        *,
        log: Callable[[MailEvent], None],
        hello: bytes,
        session_prefix: str,
    ) -> None:
        self.loop = loop
        self.deadlines = deadlines
        self.outbox = Outbox(loop.call_soon)
        self.emit = emit
        self.log = log
        self.hello = hello
        self.session_prefix = session_prefix
        self._serial = 0
        self._date_at = 0
        self._date = ""

    def date(self) -> str:
        """Now, as RFC 5322 3.3 writes it; made once a second."""
        now = int(time.time())
        if now != self._date_at:
            self._date_at, self._date = now, formatdate(now)
        return self._date

    def new_session_id(self) -> str:
        self._serial += 1
        return self.session_prefix + hex(self._serial)[2:]

    def bug(self, where: str, error: Exception) -> None:
        """An exception of ours reached a transport callback: told in full to the log, never to a client."""
        trace = "".join(traceback.format_exception(error))
        self.emit(Notice("error", "bug", f"bug in {where}: {error!r}", {"trace": trace[-4000:]}))
