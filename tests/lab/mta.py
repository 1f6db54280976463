"""What the three mail servers have in common: a list of the messages they took over.

Owns the shape of that list and waiting for it. Reading it out of logs and queues is the managers'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.lab.process import Instance, wait_until


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the certificate with its chain, and its key."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class AcceptedMessage:
    """A message that a server has taken responsibility for. Fields its records do not tell are empty."""

    queue_id: str
    message_id: str  # with its angle brackets
    sender: str
    recipients: tuple[str, ...]


class Mta(Instance):
    """A mail server whose accepted messages can be listed."""

    def accepted(self) -> list[AcceptedMessage]:
        """Everything accepted since the first start, over crashes and restarts, in the order of acceptance."""
        raise NotImplementedError

    def wait_accepted(self, count: int, timeout_s: float = 10.0) -> list[AcceptedMessage]:
        """Waits until at least `count` messages are listed: servers write their records a moment after the reply."""
        wait_until(lambda: len(self.accepted()) >= count, f"{self.name} has {count} messages", timeout_s)
        return self.accepted()

    def wait_message_ids(self, wanted: Iterable[str], timeout_s: float = 10.0) -> list[AcceptedMessage]:
        """Waits until each message-id (with angle brackets) is listed."""
        missing = set(wanted)

        def all_there() -> bool:
            missing.difference_update(message.message_id for message in self.accepted())
            return not missing

        wait_until(all_there, f"{self.name} has {len(missing)} named messages", timeout_s)
        return self.accepted()
