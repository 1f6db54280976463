"""Files behind `file:` in the configuration (domains, mailboxes, networks): looked at again and again, so that a line more or
less is in use without anybody's doing.

Owns which lists there are and what they were when they were read last. Does not own reading them: that is a reload, of which
nothing but lists may have changed (reloader.py).
Invariant: `changed` is called once for each state in which the files came to rest, and never for one that was read already.

Looking, not inotify, and two looks before anything is done, for the reasons of certificate_watch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from smtplb.controlplane.alarm import Alarm
from smtplb.controlplane.certificate_watch import LOOK_S, Stamp, stamp
from smtplb.dataplane.deadlines import Deadlines


class ListWatch:
    """`changed`: some list is another than it was."""

    def __init__(self, files: Iterable[str], *, deadlines: Deadlines, changed: Callable[[], None]) -> None:
        self._deadlines = deadlines
        self._changed = changed
        self._read: dict[str, Stamp] = {file: stamp(file) for file in files}
        self._seen = dict(self._read)
        self._alarm = Alarm(deadlines, self._look)

    def start(self) -> None:
        if self._read:
            self._alarm.set(self._deadlines.clock() + LOOK_S)

    def close(self) -> None:
        self._alarm.off()

    def follow(self, files: Iterable[str]) -> None:
        """A configuration with these lists is in use now. What is known of those that stay is kept: one that changes while a
        configuration is read must not pass for read."""
        self._read = {file: self._read.get(file) or stamp(file) for file in files}
        self._seen = {file: self._seen.get(file, read) for file, read in self._read.items()}
        self._alarm.off()
        self.start()

    def _look(self) -> None:
        now = {file: stamp(file) for file in self._read}
        settled = now == self._seen
        self._seen = now
        self._alarm.set(self._deadlines.clock() + LOOK_S)
        if settled and now != self._read:
            self._read = dict(now)
            self._changed()
