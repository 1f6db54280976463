"""Listening sockets: all bound or none.

Owns the sockets of every listener from bind to close, and the files of unix sockets. Does not own accepting
(the workers do).
Invariant: when bind_listeners() raises, no socket that it opened is open and no file of it is left.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import Any

from smtplb.controlplane.systemd import Handed
from smtplb.settings import Address, ListenerSettings

BACKLOG = 4096  # connections; the kernel cuts it to net.core.somaxconn (4096 since Linux 5.4)
SEND_BUFFER_BYTES = 64 * 1024  # replies of a session that the kernel keeps; it doubles the figure (socket(7))


class BindError(Exception):
    """Says which listener, which address and why: "listener mx: 127.0.0.1:25: address already in use"."""


class ListeningSockets:
    """`by_listener` has the sockets in the order of the binds; a host name may have brought several."""

    def __init__(self) -> None:
        self.by_listener: dict[str, list[socket.socket]] = {}
        self._by_bind: dict[Address, list[socket.socket]] = {}  # as it is written in the configuration
        self._paths: dict[str, int] = {}  # unix socket files that are ours -> inode

    @property
    def bound(self) -> dict[str, list[Address]]:
        """Real addresses: port 0 has become a port."""
        return {
            name: list(dict.fromkeys(_address_of(sock) for sock in socks))
            for name, socks in self.by_listener.items()
        }

    def close(self) -> None:
        self._close(self._by_bind)

    def close_others(self, kept: ListeningSockets) -> None:
        """All that are not among `kept` as well."""
        self._close([bind for bind in self._by_bind if bind not in kept._by_bind])

    def _close(self, binds: Iterable[Address]) -> None:
        for bind in list(binds):
            for sock in self._by_bind.pop(bind):
                sock.close()
            if bind.path is not None and bind.path in self._paths:
                # Only our own file: a successor may have put its own in the place already.
                _unlink_own(bind.path, self._paths.pop(bind.path))

    def _take(self, listener: str, bind: Address, others: ListeningSockets) -> bool:
        """The sockets that others have of this address, if they have any."""
        socks = others._by_bind.get(bind)
        if socks is None:
            return False
        self._add(listener, bind, socks)
        if bind.path is not None:
            self._paths[bind.path] = others._paths[bind.path]
        return True

    def _take_handed(self, listener: str, bind: Address, copies: int, handed: Handed) -> None:
        """What systemd handed down under that name stays open there whatever we do: a restart loses nobody who waits."""
        name = bind.handed or ""
        if name not in handed:
            names = ", ".join(sorted(handed)) or "none"
            raise OSError(errno.ENOENT, f"systemd handed down no socket of this name; there are: {names}")
        by_address: dict[Any, list[socket.socket]] = {}
        for sock in handed[name]:
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                raise OSError(
                    errno.EINVAL, "systemd handed down something that is no listening stream socket"
                )
            by_address.setdefault((sock.family, sock.getsockname()), []).append(sock)
        for socks in by_address.values():
            if len(socks) > copies:
                text = f"systemd handed down {len(socks)} sockets of {_address_of(socks[0])}"
                raise OSError(errno.EINVAL, f"{text}, and there are workers for {copies}")
            # One for each worker (ReusePort=yes, the address as often as there are workers), else they share a queue.
            for place in range(copies):
                own = socks[place % len(socks)].dup()
                own.setblocking(False)
                self._add(listener, bind, [own])

    def _bind(self, listener: str, bind: Address, copies: int) -> None:
        if bind.path is not None:
            _remove_stale(bind.path)
            one = _bound_socket(socket.AF_UNIX, bind.path)
            self._paths[bind.path] = os.stat(bind.path).st_ino
            # Unix sockets know no SO_REUSEPORT: the workers share one queue.
            self._add(listener, bind, [one, *(one.dup() for _ in range(copies - 1))])
            return
        found = socket.getaddrinfo(
            bind.host or "0.0.0.0", bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in dict.fromkeys(found):
            first = _bound_socket(family, where, shared=copies > 1)
            self._add(listener, bind, [first])
            # A shared queue would starve some workers of long sessions; the kernel spreads over one each.
            for _ in range(copies - 1):
                self._add(listener, bind, [_bound_socket(family, first.getsockname(), shared=True)])

    def _add(self, listener: str, bind: Address, socks: list[socket.socket]) -> None:
        self._by_bind.setdefault(bind, []).extend(socks)
        self.by_listener.setdefault(listener, []).extend(socks)


def _bound_socket(family: int, where: Any, *, shared: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it. Else the kernel keeps up to 4 MiB (tcp_wmem) for each client that does not read.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # [::]:25 beside 0.0.0.0:25, and no client shows up as ::ffff:192.0.2.1.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def bind_listeners(
    listeners: Iterable[ListenerSettings],
    *,
    copies: int = 1,
    held: ListeningSockets | None = None,
    handed: Handed | None = None,
) -> ListeningSockets:
    """Bind every address of every listener, then listen on all: clients queue from then on. BindError if
    any fails. `copies`: one socket of each address for each worker, side by side in the lists. `held`: those of addresses that
    are bound already are taken over from there, and stay open whatever happens. `handed`: by systemd.
    """
    sockets, held = ListeningSockets(), held or ListeningSockets()
    listeners = list(listeners)
    for listener in listeners:
        for bind in listener.binds:
            try:
                if sockets._take(listener.name, bind, held):
                    continue
                if bind.handed is not None:
                    sockets._take_handed(listener.name, bind, copies, handed or {})
                else:
                    sockets._bind(listener.name, bind, copies)
            except OSError as error:
                if _only_half_missing(listener, bind, error):
                    continue
                sockets.close_others(held)
                raise BindError(f"listener {listener.name}: {bind}: {_words(error)}") from error
    for name, socks in sockets.by_listener.items():
        for sock in socks:
            try:
                sock.listen(BACKLOG)  # two sockets may bind an address with SO_REUSEADDR; only one may listen
            except OSError as error:
                text = f"listener {name}: {_address_of(sock)}: {_words(error)}"
                sockets.close_others(held)
                raise BindError(text) from error
    return sockets


def _only_half_missing(listener: ListenerSettings, bind: Address, error: OSError) -> bool:
    """`:25` means both families; on a host without IPv6 the other one is all there is."""
    if bind.host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
        return False
    return Address(host="0.0.0.0", port=bind.port) in listener.binds


def _unlink_own(path: str, inode: int) -> None:
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        pass


def _remove_stale(path: str) -> None:
    """Remove the file that a dead process left; OSError if someone listens there, or if it is no socket."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _address_of(sock: socket.socket) -> Address:
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=where)
    return Address(host=where[0], port=where[1])


def _words(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
