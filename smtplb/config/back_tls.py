"""TLS towards backends: the merge, its default, and keys without effect.

Owns which mode a backend has that nobody wrote one for, and whether `verify`, `ca` and `server_name` count
anywhere. Does not own the files' form (pem.py) nor the handshake (dataplane).
Invariant: no file that loads looks as if certificates were verified where they are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smtplb.config.addresses import family, is_loopback
from smtplb.config.checker import Checker
from smtplb.config.schema import BackTls
from smtplb.config.tree import Path
from smtplb.settings import Address, BackTlsMode, BackTlsSettings


def default_mode(address: Address) -> BackTlsMode:
    """As MTAs do among themselves: TLS where it is offered. On this host it would protect from nobody."""
    on_this_host = address.host == "localhost" if family(address.host) is None else is_loopback(address)
    return BackTlsMode.OFF if on_this_host else BackTlsMode.OPPORTUNISTIC


class BackTlsMerge:
    """Merges for each backend, and remembers which of the written keys had an effect for one of them."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._why_none: dict[Path, str] = {}  # key -> why it has no effect; "" if it has one

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
        verifies = merged.mode in (BackTlsMode.REQUIRED, BackTlsMode.IMPLICIT)
        for key, path in written.items():
            why = ""
            if key != "mode" and not verifies:
                why = f"no effect with mode: {merged.mode}: only required and implicit verify"
            elif key == "ca" and not merged.verify:
                why = "no effect with verify: false"
            if not why or path not in self._why_none:
                self._why_none[path] = why

    def judge(self) -> None:
        """After the last backend."""
        for path, why in self._why_none.items():
            if why:
                self._checker.fault(path, why, of_key=True)
