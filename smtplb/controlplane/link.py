"""How messages travel between the supervisor and a worker.

Owns the way. Does not own what the messages say (messages.py), nor who answers.
Invariant: nothing passes but messages, in the order in which they were sent. What mail itself tells does not pass: a worker
hands it to the log.

LocalLink calls straight through, in both directions, within the same turn: a sender must be ready for the
answer before its own call returns. A link to a worker process takes its place without either side noticing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.worker import Worker
from smtplb.messages import FromWorker, ToWorker
from smtplb.observe.events import MailEvent

Sockets = dict[str, list[socket.socket]]


class WorkerLink(Protocol):
    restarts: int  # of workers that died

    def send(self, message: ToWorker) -> None: ...

    def hand(self, sockets: Sockets) -> None:
        """The listening sockets that go with the next snapshot, which is of a new configuration. They stay the caller's."""

    def live(self) -> bool:
        """Every worker was heard of lately, or is only now coming up."""

    def accepts(self) -> bool:
        """At least one worker is up, and was heard of lately."""

    def close(self) -> None:
        """End the worker at once; nothing arrives from it any more. send() must not be called again."""


OpenLink = Callable[[asyncio.AbstractEventLoop, Sockets, Callable[[FromWorker], None]], WorkerLink]


class LocalLink:
    """A worker in this process, with a timing wheel of its own. The sockets stay the caller's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sockets,
        receive: Callable[[FromWorker], None],
        *,
        log: Callable[[MailEvent], None],
    ) -> None:
        self.restarts = 0
        self._deadlines = Deadlines.of(loop)
        self._worker = Worker(loop, self._deadlines, receive, log, sockets)

    def send(self, message: ToWorker) -> None:
        self._worker.receive(message)

    def hand(self, sockets: Sockets) -> None:
        self._worker.take_sockets(sockets)

    def live(self) -> bool:
        return True  # in the loop that is asked

    def accepts(self) -> bool:
        return True

    def close(self) -> None:
        self._worker.close()
        self._deadlines.close()
