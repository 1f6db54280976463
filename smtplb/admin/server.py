"""The admin HTTP server: its sockets, and how much of this process its clients may take.

Owns binding, the unix socket's file and mode, limits on connections and silence. Does not own answers
(api.py).
Invariant: either everything that was asked for is bound or nothing is.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler

from smtplb.admin.api import admin_app, probe_app
from smtplb.admin.control import Control
from smtplb.admin.errors import ApiError
from smtplb.observe.events import Notice
from smtplb.settings import Address, Settings

MAX_CONNECTIONS = 256  # for each of admin and probes: their descriptors are the sessions' descriptors, too
SILENCE_S = 30.0  # without a complete request; then the connection ends
STOP_WITHIN_S = 2.0  # for answers under way
SOCKET_MODE = 0o600  # root and the user that smtplb runs as: who may connect may change everything

_log = logging.getLogger("smtplb.admin")


class AdminBindError(OSError):
    """The text says which setting, which address and why."""


class AdminServer:
    """`bound` and `probes_bound` are known after start(), with the real port where 0 was asked for."""

    def __init__(self, control: Control, settings: Settings) -> None:
        self._control = control
        self._settings = settings
        self._sites: list[_Site] = []
        self.bound: Address | None = None
        self.probes_bound: Address | None = None

    async def start(self) -> None:
        """AdminBindError: nothing was bound."""
        admin = self._settings.admin
        names = frozenset({self._settings.traffic.hostname.lower()} - {""})
        try:
            if admin.bind is not None or admin.socket is not None:
                site = self._new_site(admin_app(self._control, token=admin.token, names=names))
                if admin.bind is not None:
                    self.bound = await site.bind("admin.bind", admin.bind)
                if admin.socket is not None:
                    await site.bind("admin.socket", Address(path=admin.socket))
                await site.open()
            if self._settings.probes_bind is not None:
                site = self._new_site(probe_app(self._control))
                self.probes_bound = await site.bind("probes.bind", self._settings.probes_bind)
                await site.open()
        except BaseException:
            await self.stop()
            raise
        self._tell()

    def _tell(self) -> None:
        places = (
            ("admin", self.bound),
            ("admin socket", self._settings.admin.socket),
            ("probes", self.probes_bound),
        )
        for what, place in places:
            if place is not None:
                text = f"{what} on {place}"
                self._control.emit(Notice("info", "admin-listening", text, {"address": str(place)}))

    async def stop(self) -> None:
        sites, self._sites = self._sites, []
        self.bound = self.probes_bound = None
        for site in sites:
            await site.close()

    def _new_site(self, app: web.Application) -> _Site:
        site = _Site(app)
        self._sites.append(site)
        return site


class _Site:
    """One application on its sockets."""

    def __init__(self, app: web.Application) -> None:
        app.middlewares.insert(0, _hear)
        self._runner = web.AppRunner(app, shutdown_timeout=STOP_WITHIN_S)
        self._sockets: list[socket.socket] = []
        self._files: list[tuple[str, int]] = []  # unix sockets: path, inode
        self._servers: list[asyncio.Server] = []

    async def bind(self, what: str, address: Address) -> Address:
        try:
            sock = _bind_unix(address.path) if address.path is not None else await _bind_tcp(address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise AdminBindError(error.errno, f"{what}: {address}: {reason}") from error
        self._sockets.append(sock)
        if address.path is not None:
            self._files.append((address.path, os.stat(address.path).st_ino))
            return address
        host, port = sock.getsockname()[:2]
        return Address(host=host, port=port)

    async def open(self) -> None:
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        factory = _limited(server, loop)
        for sock in self._sockets:
            self._servers.append(await loop.create_server(factory, sock=sock))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        for path, inode in self._files:
            _unlink_own(path, inode)
        await self._runner.cleanup()


@web.middleware
async def _hear(request: web.Request, handler: Handler) -> web.StreamResponse:
    if isinstance(request.protocol, _Connection):
        request.protocol.heard()
    return await handler(request)


def _limited(server: web.Server, loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Protocol]:
    def make() -> asyncio.Protocol:
        if len(server.connections) >= MAX_CONNECTIONS:
            return _TurnedAway()
        return _Connection(
            server,
            loop=loop,
            logger=_log,
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's own runner does it
            keepalive_timeout=SILENCE_S,
            auto_decompress=False,  # nobody sends a compressed change; a bomb would be one
            lingering_time=1.0,
        )

    return make


class _TurnedAway(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()  # uvloop's transports are no subclass


class _Connection(web.RequestHandler):
    """aiohttp's connection, with an end to waiting for the first request (its keep-alive timer is for the others
    until aiohttp 3.14), and our form of error for what is no HTTP: its own repeats what was sent.
    """

    __slots__ = ("_silence",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._silence = asyncio.get_running_loop().call_later(SILENCE_S, self._give_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._silence.cancel()
        super().connection_lost(exc)

    def heard(self) -> None:
        """A request came whole, but for its body."""
        self._silence.cancel()

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            _log.error("admin request failed", exc_info=exc)
        detail = "this is not a request in HTTP/1.1" if status == 400 else "the request cannot be served"
        response = ApiError(status, detail).response()
        response.force_close()
        return response


async def _bind_tcp(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # Without a host: both families where there are two, as for listeners.
    if not address.host:
        found.sort(key=lambda each: each[0] != socket.AF_INET6)
    family, _, _, _, name = found[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address.host else 0)
        sock.bind(name)
        sock.listen(128)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _unlink_stale(path)
        # By umask, not chmod: there is no moment in which others may connect.
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(128)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _unlink_stale(path: str) -> None:
    """A socket that nobody listens on is left from a process that was killed. Anything else is somebody's."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _unlink_own(path: str, inode: int) -> None:
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass
