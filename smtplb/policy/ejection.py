"""Taking a backend out by what its traffic shows (passive health), and letting it in again.

Owns the counts of faults, who is out until when, and how many may be out. Does not own what a fault is (outcome.py) nor
what being out means (health.py).
Invariant: at most `limit` backends of a pool are out at a time; one client network counts once per backend between two
successes, so that no client alone can have a backend taken out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from smtplb.messages import SLOW_FINAL_S
from smtplb.policy.limits import ClientKey
from smtplb.settings import EjectSettings

RATE_WINDOW_S = 30.0  # faults and successes are also looked at as a ratio, over one to two of these
RATE_ATTEMPTS = 20  # fewer say nothing
RATE_NETWORKS = 3  # that saw a fault in the window
RATE_FAULTY = 0.5  # of its attempts, ...
RATE_OTHERS_WELL = 0.1  # ... while the pool's other backends together stay below this
# The same numbers hold for messages that wait longer than SLOW_FINAL_S for their answer.


class _Track:
    """One backend. `consecutive`: networks that saw a fault since the last success."""

    __slots__ = (
        "consecutive",
        "failed",
        "networks",
        "ok",
        "old_failed",
        "old_ok",
        "old_quick",
        "old_slow",
        "quick",
        "slow",
        "slow_networks",
        "times",
        "until_s",
        "well_since_s",
    )

    def __init__(self) -> None:
        self.consecutive: set[ClientKey | None] = set()
        self.networks: set[ClientKey | None] = set()
        self.slow_networks: set[ClientKey | None] = set()
        self.ok = self.failed = self.old_ok = self.old_failed = 0
        self.quick = self.slow = self.old_quick = self.old_slow = 0
        self.times = 0  # ejections that still count towards the next one's length
        self.until_s: float | None = None
        self.well_since_s = 0.0

    def turn_window(self) -> None:
        self.old_ok, self.old_failed = self.ok, self.failed
        self.ok = self.failed = 0
        self.networks.clear()
        self.old_quick, self.old_slow = self.quick, self.slow
        self.quick = self.slow = 0
        self.slow_networks.clear()

    def start_over(self) -> None:
        """It has served its time for what was counted: the first fault after its return must not send it out again."""
        self.ok = self.failed = self.old_ok = self.old_failed = 0
        self.networks.clear()
        self.consecutive.clear()
        self.quick = self.slow = self.old_quick = self.old_slow = 0
        self.slow_networks.clear()

    @property
    def attempts(self) -> int:
        return self.ok + self.failed + self.old_ok + self.old_failed

    @property
    def faults(self) -> int:
        return self.failed + self.old_failed

    @property
    def finals(self) -> int:
        return self.quick + self.slow + self.old_quick + self.old_slow

    @property
    def slow_finals(self) -> int:
        return self.slow + self.old_slow


class Ejection:
    """Of one pool."""

    def __init__(self, settings: EjectSettings, backends: list[str], now: float) -> None:
        self.settings = settings
        self._tracks = {name: _Track() for name in backends}
        self._window_end_s = now + RATE_WINDOW_S

    @property
    def limit(self) -> int:
        """How many may be out: at_most of all, rounded down, but one of two or more (Envoy does the same)."""
        count = len(self._tracks)
        return max(math.floor(self.settings.at_most_ratio * count), 1) if count > 1 else 0

    @property
    def out(self) -> list[str]:
        return [name for name, track in self._tracks.items() if track.until_s is not None]

    def keep(self, backends: dict[str, bool]) -> None:
        """These are the pool's from now on; True: what is known of it stays."""
        self._tracks = {
            name: self._tracks[name] if stays and name in self._tracks else _Track()
            for name, stays in backends.items()
        }
        for name in self.out[self.limit :]:  # too many, now that there are fewer in all
            self._tracks[name].until_s = None

    def until_s(self, backend: str) -> float | None:
        """When it comes back; None: it is in."""
        return self._tracks[backend].until_s

    def succeeded(self, backend: str, now: float, count: int = 1) -> None:
        """It answered so many transactions to the end, be it with a refusal."""
        self._turn_windows(now)
        track = self._tracks[backend]
        track.ok += count
        track.consecutive.clear()

    def blamed(self, backend: str, network: ClientKey | None, now: float) -> str | None:
        """A fault that was its own. The reason if it is taken out now, None if it stays."""
        self._turn_windows(now)
        track = self._tracks[backend]
        track.failed += 1
        track.consecutive.add(network)
        track.networks.add(network)
        if track.until_s is not None:
            return None
        if len(track.consecutive) >= self.settings.after:
            reason = f"{len(track.consecutive)} clients in a row met a fault"
        elif self._faulty_by_rate(backend, track):
            reason = f"{track.faults} of {track.attempts} attempts met a fault"
        else:
            return None
        return reason if self._take_out(track, now) else None

    def finals(self, backend: str, quick: int, slow: Sequence[ClientKey | None], now: float) -> str | None:
        """So many messages were answered in time, and those of the networks in `slow` wait or waited for longer. The reason
        if it is taken out now."""
        self._turn_windows(now)
        track = self._tracks[backend]
        track.quick += quick
        track.slow += len(slow)
        track.slow_networks.update(slow)
        if track.until_s is not None or not slow or not self._slow_by_rate(backend, track):
            return None
        reason = (
            f"{track.slow_finals} of {track.finals} messages waited over {SLOW_FINAL_S:g} s for their answer"
        )
        return reason if self._take_out(track, now) else None

    def refuses(self, backend: str, now: float) -> bool:
        """It refuses nearly everyone (policy/black_hole.py), and the operator wants it out for that. False: it stays."""
        track = self._tracks[backend]
        return track.until_s is None and self._take_out(track, now)

    def due(self, now: float) -> list[str]:
        """Those whose time is over: they are in again."""
        back = []
        for name, track in self._tracks.items():
            if track.until_s is not None and track.until_s <= now:
                track.until_s = None
                track.well_since_s = now
                track.start_over()
                back.append(name)
        return back

    @property
    def next_due_s(self) -> float | None:
        return min((t.until_s for t in self._tracks.values() if t.until_s is not None), default=None)

    def _take_out(self, track: _Track, now: float) -> bool:
        out = sum(1 for other in self._tracks.values() if other.until_s is not None)
        if out >= self.limit:
            return False
        settings = self.settings
        if track.times and now - track.well_since_s > settings.max_for_s:
            track.times = 0  # it was well for long: start over
        track.times += 1
        track.until_s = now + min(settings.for_s * track.times, settings.max_for_s)
        track.consecutive.clear()
        return True

    def _faulty_by_rate(self, backend: str, track: _Track) -> bool:
        if track.attempts < RATE_ATTEMPTS or len(track.networks) < RATE_NETWORKS:
            return False
        others = [other for name, other in self._tracks.items() if name != backend]
        attempts = sum(other.attempts for other in others)
        if not attempts:
            return False  # nobody to compare with
        well = sum(other.faults for other in others) / attempts < RATE_OTHERS_WELL
        return well and track.faults / track.attempts >= RATE_FAULTY

    def _slow_by_rate(self, backend: str, track: _Track) -> bool:
        """By comparison: a message that takes long takes long everywhere."""
        if track.finals < RATE_ATTEMPTS or len(track.slow_networks) < RATE_NETWORKS:
            return False
        others = [other for name, other in self._tracks.items() if name != backend]
        finals = sum(other.finals for other in others)
        if not finals or sum(other.slow_finals for other in others) / finals >= RATE_OTHERS_WELL:
            return False
        return track.slow_finals / track.finals >= RATE_FAULTY

    def _turn_windows(self, now: float) -> None:
        if now >= self._window_end_s:
            turns = (
                1 if now < self._window_end_s + RATE_WINDOW_S else 2
            )  # behind a long silence all of it is old
            self._window_end_s = now + RATE_WINDOW_S
            for track in list(self._tracks.values()) * turns:
                track.turn_window()
