"""Where a message that was told to come again should go first: to the backend that told it so.

Owns the memory of temporary verdicts and of messages in doubt. Does not own whether that backend may be used (the snapshot).
Invariant: bounded in number and age; keys are keyed hashes, so the table holds nobody's address.

Why: greylisting without a shared database gets worse when each retry meets a backend that has never seen the triplet; and a
message in doubt may be at the backend already, which can recognise it only if it sees it again (RFC 1047).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from smtplb.policy.limits import client_key, network_key
from smtplb.policy.routing import ClientAddress

MAX_ENTRIES: Final = 100_000
TEMPFAIL_AGE_S: Final = 24 * 3600.0  # senders keep trying for days, but greylisting ends within hours

BackendKey = tuple[str, str]
Entry = tuple[bytes, BackendKey, float, bool]  # key, backend, until_s, once


class Affinity:
    """A table from (client network, sender, recipient) to a backend. `secret` keys the hashes; workers that tell each other
    what they remember (`shared`) have the same."""

    __slots__ = ("_entries", "_fresh", "_secret")

    def __init__(self, secret: bytes, *, shared: bool = False) -> None:
        self._secret = secret
        self._entries: dict[bytes, tuple[BackendKey, float, bool]] = {}
        self._fresh: list[Entry] | None = [] if shared else None

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, client: ClientAddress | None, sender: bytes, recipient: bytes) -> bytes:
        """IPv4 clients by /24, IPv6 ones by /64: a sender's outgoing hosts take turns."""
        if client is None:
            net = b"unix"
        else:
            net = repr(network_key(client) if client_key(client)[0] == 4 else client_key(client)).encode(
                "ascii"
            )
        parts = b"\0".join((net, sender.lower(), recipient.lower()))
        return blake2b(parts, digest_size=12, key=self._secret).digest()

    def remember(self, key: bytes, backend: BackendKey, until_s: float, *, once: bool = False) -> None:
        """The latest word counts; the oldest entry makes room. `once`: for the next transaction only, since a message in
        doubt is one message, while a greylisting backend knows the three for long."""
        self._entries.pop(key, None)
        if len(self._entries) >= MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (backend, until_s, once)
        if self._fresh is not None:
            self._fresh.append((key, backend, until_s, once))

    def take_fresh(self) -> list[Entry]:
        """What was remembered since the last call, for the other workers: a retry may come to any of them."""
        fresh = self._fresh
        if not fresh:
            return []
        self._fresh = []
        return fresh

    def learn(self, entries: list[Entry]) -> None:
        """What another worker has remembered."""
        own, self._fresh = self._fresh, None
        for key, backend, until_s, once in entries:
            self.remember(key, backend, until_s, once=once)
        self._fresh = own

    def recall(self, key: bytes, now: float) -> BackendKey | None:
        found = self._entries.get(key)
        if found is None:
            return None
        backend, until_s, once = found
        if until_s <= now or once:
            del self._entries[key]
        return backend if until_s > now else None
