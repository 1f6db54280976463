"""systemd: sockets that it hands down, and what it wants to be told.

Owns both protocols (sd_listen_fds(3), sd_notify(3)). Does not own sockets once they are taken, nor when there is something to tell.
Invariant: without systemd nothing happens; a message that cannot be delivered is lost without a word, as in libsystemd.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
UNNAMED = "unknown"  # sd_listen_fds_with_names(3)

Handed = dict[str, list[socket.socket]]


def take_sockets(environ: MutableMapping[str, str] = os.environ) -> Handed:
    """The sockets that were handed down to this process, by name. To be called once: children must not take them for theirs."""
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    found: Handed = {}
    if pid != str(os.getpid()) or not count.isdigit():
        return found
    given = names.split(":") if names else []
    for place in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + place
        os.set_inheritable(descriptor, False)
        name = given[place] if place < len(given) and given[place] else UNNAMED
        found.setdefault(name, []).append(socket.socket(fileno=descriptor))
    return found


class Notifier:
    """Tells systemd (Type=notify) of start, reload and stop. `watchdog_s`: how often it wants to hear from us; None: never."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ)

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """Type=notify-reload compares the time with that of its signal."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reloading")

    def stopping(self) -> None:
        self._tell("STOPPING=1\nSTATUS=stopping: sessions end at the next message")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if self._address[:1] not in ("/", "@"):
            return
        where = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(text.encode("utf-8", "replace"), where)
        except OSError:
            pass


def _watchdog_s(environ: MutableMapping[str, str]) -> float | None:
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000


def _line(text: str) -> str:
    return " ".join(text.split())
