"""What the traffic of a worker shows of its backends, for the control plane: a part of worker.py.

Owns what was told already. Does not own the counters, which backends keep anyway, nor what follows from them (policy/).
Invariant: nothing here runs for a message; each fact is told once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from smtplb.dataplane.attempt import Attempt, Step
from smtplb.dataplane.backend import Backend
from smtplb.messages import SLOW_FINAL_S, BackendKey, BackendsAnswered, Observed
from smtplb.observe.histogram import SECONDS_BOUNDS
from smtplb.observe.outcomes import AttemptOutcome

_QUICK = bisect_left(SECONDS_BOUNDS, SLOW_FINAL_S) + 1  # buckets of final replies that were not slow


class _Told:
    """Counters of one backend as they were last told, and whose wait for a final reply was told as slow."""

    __slots__ = ("answered", "delivered", "quick", "refused", "taken", "waiting")

    def __init__(self) -> None:
        self.answered = self.delivered = self.quick = self.taken = self.refused = 0
        self.waiting: set[Attempt] = set()


class Traffic:
    """See the module. take() is called by the worker's pulse, and for a backend before it is blamed."""

    def __init__(self) -> None:
        self._told: dict[BackendKey, _Told] = {}

    def take(self, backends: Iterable[Backend]) -> BackendsAnswered | None:
        """What has come from these since it was last taken; None: nothing."""
        counts: dict[BackendKey, int] = {}
        observed: dict[BackendKey, Observed] = {}
        for backend in backends:
            told = self._told.setdefault(backend.key, _Told())
            answered = _grown(told, "answered", _answered(backend))
            if answered:
                counts[backend.key] = answered
            if (seen := _observe(backend, told)) is not None:
                observed[backend.key] = seen
        return BackendsAnswered(counts, observed) if counts or observed else None


def _answered(backend: Backend) -> int:
    return backend.attempts[AttemptOutcome.OK] + backend.attempts[AttemptOutcome.VERDICT]


def _observe(backend: Backend, told: _Told) -> Observed | None:
    rcpts = backend.replies.rcpt.by_code().items()
    seen = Observed(
        delivered=_grown(told, "delivered", backend.attempts[AttemptOutcome.OK]),
        quick=_grown(told, "quick", sum(backend.final_s.counts[:_QUICK])),
        slow=_newly_slow(backend, told),
        taken=_grown(told, "taken", sum(count for code, count in rcpts if code < 300)),
        refused=_grown(told, "refused", sum(count for code, count in rcpts if code >= 400)),
        refused_clients=tuple(backend.refused_clients),
    )
    backend.refused_clients.clear()
    return seen if seen != _NOTHING else None


_NOTHING = Observed()


def _newly_slow(backend: Backend, told: _Told) -> tuple[str, ...]:
    """Clients whose message waits too long for its answer, each message once. Those that are still waiting, not those that were
    answered: a backend that stands still answers nobody."""
    waiting = {
        holder
        for holder in backend.holders
        if isinstance(holder, Attempt) and holder.step is Step.FINAL and holder.final_wait_s > SLOW_FINAL_S
    }
    fresh = waiting - told.waiting
    told.waiting = waiting
    return tuple(attempt.binding.identity.client_text for attempt in fresh)


def _grown(told: _Told, name: str, now: int) -> int:
    before: int = getattr(told, name)
    setattr(told, name, now)
    return now - before
