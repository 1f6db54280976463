"""What comes next after an attempt failed: which backends are left, what the client hears when none is.

Owns the memory of one transaction's attempts and the rules of design 4.4 and 4.14 about them. Does not own choosing (balance.py).
Invariant: a backend is asked at most once per transaction, but for one fresh connection in place of a stale one.
"""

from __future__ import annotations

from enum import Enum, auto

from smtplb.policy.outcome import Blame, Decision, Elsewhere, Reason


class Next(Enum):
    OTHER = auto()  # another backend
    SAME_FRESH = auto()  # the same backend, a connection never used
    RELAY = auto()  # the backend's own words are the answer
    GIVE_UP = auto()  # there is nothing to relay: a refusal of ours


BackendKey = tuple[str, str]


class Suspicion:
    """A backend that failed at `command`; whether it is to blame depends on how another one answers the same command.

    `command` is the transaction's name for what was asked: two RCPTs are two commands.
    """

    __slots__ = ("backend", "command", "decision")

    def __init__(self, backend: BackendKey, command: object, decision: Decision) -> None:
        self.backend = backend
        self.command = command
        self.decision = decision


class Attempts:
    """The attempts of one transaction. `limit` counts backends asked; stale connections replaced do not count."""

    __slots__ = ("count", "limit", "refreshed", "suspicions", "tried")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.tried: tuple[BackendKey, ...] = ()  # a handful: tuples cost nothing while they are empty
        self.refreshed: tuple[BackendKey, ...] = ()
        self.suspicions: list[Suspicion] = []

    def begin(self, backend: BackendKey) -> None:
        if backend not in self.tried:
            self.tried += (backend,)
            self.count += 1

    def after(self, backend: BackendKey, command: object, decision: Decision, *, has_reply: bool) -> Next:
        """Decide what follows a failure of `backend` at `command`; records the suspicion if there is one.

        Whether another backend is left to ask is for the caller to find out: with none, OTHER means `without_other`.
        """
        elsewhere = decision.elsewhere
        if elsewhere is Elsewhere.NO:
            return Next.RELAY if has_reply else Next.GIVE_UP
        if elsewhere is Elsewhere.NEW_CONNECTION:
            if backend not in self.refreshed:
                self.refreshed += (backend,)
                return Next.SAME_FRESH
            if _relayable(decision, has_reply):
                return Next.RELAY
            return Next.OTHER if self.count < self.limit else Next.GIVE_UP
        second_opinion = elsewhere is Elsewhere.ONE_OTHER and any(
            suspicion.command == command for suspicion in self.suspicions
        )
        if second_opinion:
            # Two alike: a fact about the mail, or a shared dependency. Nobody is blamed.
            self.suspicions = [s for s in self.suspicions if s.command != command]
            return self.without_other(decision, has_reply=has_reply)
        if decision.blame is Blame.IF_OTHER_SUCCEEDS:
            self.suspicions.append(Suspicion(backend, command, decision))
        return Next.OTHER if self.count < self.limit else self.without_other(decision, has_reply=has_reply)

    @staticmethod
    def without_other(decision: Decision, *, has_reply: bool) -> Next:
        """The answer when no other backend can be asked."""
        return Next.RELAY if _relayable(decision, has_reply) else Next.GIVE_UP

    def succeeded(self, command: object) -> list[Suspicion]:
        """Another backend answered `command` well: the suspicions that are now proven, to be blamed."""
        if not self.suspicions:
            return []
        proven = [s for s in self.suspicions if s.command == command]
        if proven:
            self.suspicions = [s for s in self.suspicions if s.command != command]
        return proven


def _relayable(decision: Decision, has_reply: bool) -> bool:
    """A reply about us is never relayed: it would bounce the client's mail."""
    return has_reply and decision.elsewhere is not Elsewhere.ANY and decision.reason is not Reason.MISFIT


def attempt_deadline_s(
    now: float, phase_timeout_s: float, budget_end_s: float, *, others_left: bool
) -> float:
    """When an attempt that waits in a phase is given up (design 4.14).

    Cut to what is left of the client's budget, and to half of it while another backend is untried.
    """
    left = max(budget_end_s - now, 0.0)
    if others_left:
        left /= 2
    return now + min(phase_timeout_s, left)
