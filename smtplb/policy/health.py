"""Health of a backend: from check results and the operator's word to what a worker may do with it.

Owns the check machine (rise, fall, identity, intervals) and the truth table. Does not own probing
(controlplane/prober.py) nor who keeps the state (controlplane/registry.py). Pure: results and random
numbers are arguments, time is nobody's business here.
Invariant: state, usable and last_resort of a standing are a function of operator state, check state, ejection
and slow start alone; STANDINGS has a row for every pair of the first two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from smtplb.messages import BackendStanding, BackendState
from smtplb.settings import CheckLevel, CheckSettings

# An interval is shortened by up to this part of it, never lengthened: what interval, timeout, rise and fall
# promise about the time to `down` stays true. HAProxy spread-checks goes both ways, Envoy
# interval_jitter_percent only lengthens.
JITTER_RATIO = 0.2


class OperatorState(StrEnum):
    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


class CheckState(StrEnum):
    UNPROVEN = "unproven"  # no result yet
    UP = "up"
    DOWN = "down"
    NO_IDENTITY = (
        "no-identity"  # seen to lack the configured identity, and not proven again since (design 4.11)
    )
    OFF = "off"  # the pool checks nothing: taken for up, and for having the identity


class Standing(NamedTuple):
    """A row of the truth table; `by_operator` tells whose word decided."""

    state: BackendState
    usable: bool
    last_resort: bool
    by_operator: bool


# Ejection and slow start matter only where a row is usable: standing() adds them. Everything else wins over them.
STANDINGS: dict[tuple[OperatorState, CheckState], Standing] = {
    # state                  usable last_resort by_operator
    (OperatorState.READY, CheckState.UNPROVEN): Standing(BackendState.UNPROVEN, False, True, False),
    (OperatorState.READY, CheckState.UP): Standing(BackendState.UP, True, False, False),
    (OperatorState.READY, CheckState.DOWN): Standing(BackendState.DOWN, False, True, False),
    (OperatorState.READY, CheckState.NO_IDENTITY): Standing(BackendState.UNPROVEN, False, False, False),
    (OperatorState.READY, CheckState.OFF): Standing(BackendState.UP, True, False, False),
    (OperatorState.DRAIN, CheckState.UNPROVEN): Standing(BackendState.DRAIN, False, False, True),
    (OperatorState.DRAIN, CheckState.UP): Standing(BackendState.DRAIN, False, False, True),
    (OperatorState.DRAIN, CheckState.DOWN): Standing(BackendState.DRAIN, False, False, True),
    (OperatorState.DRAIN, CheckState.NO_IDENTITY): Standing(BackendState.DRAIN, False, False, True),
    (OperatorState.DRAIN, CheckState.OFF): Standing(BackendState.DRAIN, False, False, True),
    (OperatorState.MAINT, CheckState.UNPROVEN): Standing(BackendState.MAINT, False, False, True),
    (OperatorState.MAINT, CheckState.UP): Standing(BackendState.MAINT, False, False, True),
    (OperatorState.MAINT, CheckState.DOWN): Standing(BackendState.MAINT, False, False, True),
    (OperatorState.MAINT, CheckState.NO_IDENTITY): Standing(BackendState.MAINT, False, False, True),
    (OperatorState.MAINT, CheckState.OFF): Standing(BackendState.MAINT, False, False, True),
}


def standing(
    operator: OperatorState,
    check: CheckState,
    weight: int,
    offers: dict[bytes, bytes] | None = None,
    *,
    ejected: bool = False,
    warmth_ratio: float = 1.0,
    reachable: bool = True,
) -> BackendStanding:
    """What a worker is told. The weight stays the backend's own in every state: last-resort tries are
    spread by it, too. So do its offers: what it had last is what it will most likely have again.

    `ejected`: taken out by its traffic. `warmth_ratio`: below 1 while it starts slowly; its weight is cut to
    that, rounded up, so that it never takes nothing. `reachable`: the last check had a connection.
    """
    row = STANDINGS[operator, check]
    if row.usable and ejected:
        return BackendStanding(BackendState.EJECTED, False, True, weight, offers=offers)
    if row.usable and warmth_ratio < 1.0:
        return BackendStanding(
            BackendState.SLOW_START, True, False, math.ceil(weight * warmth_ratio), offers=offers
        )
    return BackendStanding(row.state, row.usable, row.last_resort, weight, reachable, offers)


class CheckTrack:
    """Check state of one backend. The first result decides at once; then `fall` failures or `rise`
    successes in a row. An identity that is missing, or proven again, decides at once, too: a check that saw
    the answer to EHLO is not in doubt about it, and every message sent meanwhile would have to be refused.

    `in_a_row` counts results alike, the last included; `cause` tells why the state is what it is ("3 of 3",
    "first check", "identity proven"; empty where the identity is missing).
    """

    __slots__ = ("_settings", "cause", "in_a_row", "last_passed", "state")

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings
        self.state = CheckState.UNPROVEN
        self.in_a_row = 0
        self.last_passed: bool | None = None
        self.cause = ""
        self.forget()

    def change(self, settings: CheckSettings) -> None:
        """Other settings, by a reload. At another level old results say nothing."""
        old, self._settings = self._settings, settings
        if old.level is not settings.level:
            self.forget()

    def forget(self) -> None:
        """Start again as at start-up: what was known has grown old (a backend comes out of maint)."""
        self.state = CheckState.OFF if self._settings.level is CheckLevel.OFF else CheckState.UNPROVEN
        self.in_a_row = 0
        self.last_passed = None
        self.cause = ""

    def result(self, passed: bool, *, identity: bool | None = None) -> bool:
        """Count one result. True if the state changed. Not to be called while checks are off.

        `identity`: the check saw that the backend has the configured one, or lacks it (then it has not
        passed); None if it did not come far enough to tell, which leaves the last word on it standing.
        """
        if self.state is CheckState.OFF:
            raise AssertionError("a check result while checks are off")
        if identity is False and passed:
            raise AssertionError("a check that passes without the identity")
        self.in_a_row = self.in_a_row + 1 if passed is self.last_passed else 1
        self.last_passed = passed
        new = self._judge(passed, identity)
        if new is self.state:
            return False
        self.state = new
        return True

    def _judge(self, passed: bool, identity: bool | None) -> CheckState:
        old, found = self.state, CheckState.UP if passed else CheckState.DOWN
        if identity is False:
            self.cause = ""
            return CheckState.NO_IDENTITY
        if old is CheckState.NO_IDENTITY:
            # A failure for another reason, or a success that did not come to EHLO, proves nothing about it.
            if not (passed and identity):
                return old
            self.cause = "identity proven"
            return found
        if found is old:
            return old
        needed = self._settings.rise if passed else self._settings.fall
        if old is CheckState.UNPROVEN:
            self.cause = "first check"
        elif self.in_a_row >= needed:
            self.cause = f"{self.in_a_row} of {needed}"
        else:
            return old
        return found

    @property
    def uncertain(self) -> bool:
        """The last result speaks against the state, or there is none yet."""
        if self.state in (CheckState.OFF, CheckState.NO_IDENTITY):
            return False  # without its identity a backend is one check away from being back: nothing to hurry
        return self.last_passed is not (self.state is CheckState.UP)

    @property
    def surely_up(self) -> bool:
        """A further check is not needed to know it, as long as something else shows that the backend lives."""
        return self.state is CheckState.UP and not self.uncertain

    def next_interval_s(self, rng: Callable[[], float]) -> float:
        """Seconds from the end of one probe to the start of the next: `fast_interval` while uncertain,
        shortened at random.

        The shorter of both while uncertain, so that a long `fast_interval` never slows a check down.
        """
        interval_s = self._settings.interval_s
        if self.uncertain:
            interval_s = min(interval_s, self._settings.fast_interval_s)
        return interval_s * (1.0 - JITTER_RATIO * rng())
