"""What admin/ asks of the control plane: a part of controlplane.supervisor.Supervisor.

Owns nothing. Invariant: names and meanings are the Supervisor's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from smtplb.controlplane.supervisor import ReloadPlan
from smtplb.controlplane.views import ReadinessView, StatusView
from smtplb.observe.events import Event


class Control(Protocol):
    """`emit` takes our events. Unknown, Invalid and WouldStrand are the supervisor's exceptions."""

    @property
    def emit(self) -> Callable[[Event], None]: ...

    async def status(self) -> StatusView:
        """TimeoutError: a worker does not answer."""

    def live(self) -> bool: ...

    def readiness(self, *, ignore_backends: bool = False) -> ReadinessView: ...

    def readiness_of(self, listener: str, *, ignore_backends: bool = False) -> ReadinessView:
        """Unknown: no such listener."""

    def set_backend(
        self,
        pool: str,
        backend: str,
        *,
        state: str | None = None,
        weight: int | None = None,
        reason: str = "",
        for_s: float | None = None,
        force: bool = False,
    ) -> None:
        """Unknown, Invalid, WouldStrand: nothing was changed."""

    async def reload(self) -> ReloadPlan:
        """ConfigErrors, NeedsRestart, BindError, CannotReload: nothing was changed."""

    def failback(self, group: str) -> bool:
        """False: there was nothing to bring back. Unknown: no such group."""
