"""TLS towards backends: the merge, its default, and keys without effect.

Owns which mode a backend has that nobody wrote one for, whether `verify`, `ca` and `server_name` count
anywhere, and which backends passwords may be sent to. Does not own the files' form (pem.py) nor the handshake (dataplane).
Invariant: no file that loads looks as if certificates were verified where they are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smtplb.config.addresses import family, is_loopback
from smtplb.config.checker import Checker
from smtplb.config.effects import Effects
from smtplb.config.schema import BackTls
from smtplb.config.tree import Path
from smtplb.settings import Address, BackendSettings, BackTlsMode, BackTlsSettings

ALWAYS_TLS = (BackTlsMode.REQUIRED, BackTlsMode.IMPLICIT)


def default_mode(address: Address) -> BackTlsMode:
    """As MTAs do among themselves: TLS where it is offered. On this host it would protect from nobody."""
    return BackTlsMode.OFF if _is_on_this_host(address) else BackTlsMode.OPPORTUNISTIC


def takes_passwords(backend: BackendSettings) -> bool:
    """What is sent to it, nobody can read on the way: it never falls back to clear text, or never leaves this host."""
    return backend.tls.mode in ALWAYS_TLS or _is_on_this_host(backend.address)


def _is_on_this_host(address: Address) -> bool:
    is_name = address.path is None and family(address.host) is None
    return address.host == "localhost" if is_name else is_loopback(address)


class BackTlsMerge:
    """Merges for each backend, and remembers which of the written keys had an effect for one of them."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._effects = Effects(checker)

    def merge(self, layers: Iterable[tuple[Path, BackTls | None]], address: Address) -> BackTlsSettings:
        """Key by key, later layers win. A layer: the path of its `tls`, and the section if it was written."""
        values: dict[str, Any] = {"mode": default_mode(address)}
        written: dict[str, Path] = {}
        sound = True
        for path, section in layers:
            sound = sound and (section is not None or not self._checker.wrote(path))
            for key, value in section.written().items() if section is not None else ():
                values[key] = value
                written[key] = (*path, key)
        merged = BackTlsSettings(**values)
        if sound:
            self._remember(merged, written)
        return merged

    def _remember(self, merged: BackTlsSettings, written: dict[str, Path]) -> None:
        verifies = merged.mode in ALWAYS_TLS
        for key, path in written.items():
            why = ""
            if key != "mode" and not verifies:
                why = f"no effect with mode: {merged.mode}: only required and implicit verify"
            elif key == "ca" and not merged.verify:
                why = "no effect with verify: false"
            self._effects.note(path, why)

    def judge(self) -> None:
        """After the last backend."""
        self._effects.judge()
