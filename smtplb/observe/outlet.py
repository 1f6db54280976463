"""Where log lines leave the process, without ever holding it up.

Owns one descriptor and how it is written without waiting. Does not own lines (logs.py).
Invariant: write() returns at once (a regular file takes what its disk takes), and the flags of a descriptor
that was handed to us stay as they were: O_NONBLOCK on a shared stdout breaks other programs of that terminal.
"""

from __future__ import annotations

import os
import select
import socket
import stat

PIPE_BUF_BYTES = 4096  # Linux: a pipe that polls writable takes this much without waiting (pipe(7))
FILE_MODE = 0o640  # lines name clients, senders and recipients


class Outlet:
    """`destination`: "stdout", "stderr", or a file, created and appended to. OSError: it cannot be opened."""

    __slots__ = ("_careful", "_fd", "_owned", "_path", "_socket")

    def __init__(self, destination: str | int) -> None:
        """An integer is an open descriptor, which stays its owner's."""
        self._socket: socket.socket | None = None
        self._careful = False  # only what a poll says will not wait
        self._owned = True
        self._path = None
        standard = {"stdout": 1, "stderr": 2}
        if isinstance(destination, int) or destination in standard:
            self._adopt(destination if isinstance(destination, int) else standard[destination])
        else:
            self._path = destination
            self._fd = _open_file(destination)

    @property
    def is_terminal(self) -> bool:
        return self._fd >= 0 and os.isatty(self._fd)

    def write(self, data: bytes) -> int:
        """How many octets were taken; 0: it would have to wait. OSError: nobody reads, the disk is full."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._careful:
                return self._write_careful(data)
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def wait(self, timeout_s: float) -> None:
        """Wait until it may take more. Only for the end of the process."""
        poll = select.poll()
        poll.register(self._fd if self._socket is None else self._socket.fileno(), select.POLLOUT)
        poll.poll(timeout_s * 1000)

    def reopen(self) -> None:
        """Open the file anew, after it was renamed. OSError: the old one stays in use."""
        if self._path is None:
            return
        fresh = _open_file(self._path)
        os.close(self._fd)
        self._fd = fresh

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        elif self._owned and self._fd >= 0:
            os.close(self._fd)
        self._fd, self._socket = -1, None

    def _adopt(self, fd: int) -> None:
        """Where it can be, a descriptor is opened once more for us, so that O_NONBLOCK is ours alone."""
        kind = os.fstat(fd).st_mode
        if stat.S_ISSOCK(kind):  # what systemd gives: MSG_DONTWAIT does it for each call
            self._owned, self._fd = False, fd
            self._socket = socket.socket(fileno=os.dup(fd))
            return
        if stat.S_ISREG(kind):
            self._owned, self._fd = False, fd
            return
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._owned, self._fd = True, os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:  # no /proc, not ours to open any more, nobody reads
            self._owned, self._fd, self._careful = False, fd, True

    def _write_careful(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return os.write(self._fd, data[:PIPE_BUF_BYTES]) if poll.poll(0) else 0


def _open_file(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(path, flags, FILE_MODE)
