"""Who may ask what.

Owns the rules: probes and metrics are for everyone who reaches them; reading is open on loopback and on the
unix socket; changing needs the bearer token or the unix socket. Does not own routes.
Invariant: no request passes guard() without one of these rules allowing it.

A page in a browser of this host can reach loopback too. It cannot send an Authorization header or a JSON body
to another site without asking that site first (and we say no), and cannot read answers unless its own name
resolves to loopback (DNS rebinding): against that, Host must be an address, localhost or the balancer's name.
"""

from __future__ import annotations

import hmac
import socket
import struct
from enum import StrEnum
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from smtplb.admin.control import Control
from smtplb.admin.errors import ApiError
from smtplb.observe.events import Notice

PROBES = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})
READING = frozenset({"GET", "HEAD"})
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class Origin(StrEnum):
    SOCKET = "socket"  # the unix socket: its mode says who
    LOOPBACK = "loopback"
    NETWORK = "network"


def origin(request: web.Request) -> Origin:
    """By the address that was connected to, not by the one it came from."""
    transport = request.transport
    name = None if transport is None else transport.get_extra_info("sockname")
    if isinstance(name, (str, bytes)):
        return Origin.SOCKET
    if not name:
        return Origin.NETWORK
    address = ip_address(str(name[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return Origin.LOOPBACK if mapped.is_loopback else Origin.NETWORK


def caller(request: web.Request) -> str:
    """Who asks, for the log."""
    transport = request.transport
    if transport is None:
        return "gone"
    if origin(request) is Origin.SOCKET:
        sock = transport.get_extra_info("socket")
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return f"socket, uid {uid}, pid {pid}"
    name = transport.get_extra_info("peername")
    return f"{name[0]} port {name[1]}" if name else "gone"


def guard(control: Control, *, token: str | None, names: frozenset[str]) -> Middleware:
    """The middleware. `names`: what Host may be on loopback, beside addresses and localhost; lower case."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        no_route = request.match_info.http_exception
        if no_route is not None:
            raise no_route
        came_by = origin(request)
        probe = request.path in PROBES or request.path.startswith("/readyz/")
        if came_by is Origin.LOOPBACK and (not probe or request.path == "/metrics"):
            _require_known_host(request, names)
        if request.method not in READING:
            _require_same_site(request)
            if came_by is not Origin.SOCKET:
                _require_token(control, request, token, "changing")
        elif came_by is Origin.NETWORK and not probe:
            _require_token(control, request, token, "reading this from another host")
        return await handler(request)

    return middleware


def _require_token(control: Control, request: web.Request, token: str | None, what: str) -> None:
    if not token:
        raise ApiError(
            403, f"{what} needs a token, and none is set: set admin.token_file, or use admin.socket"
        )
    given = request.headers.get("Authorization")
    challenge = 'Bearer realm="smtplb"'
    if given is None:
        raise ApiError(401, f"{what} needs the bearer token", headers={"WWW-Authenticate": challenge})
    scheme, _, word = given.partition(" ")
    # Octets: compare_digest takes no non-ASCII text, and aiohttp reads header octets as surrogates.
    same = hmac.compare_digest(word.strip(" ").encode("utf-8", "surrogateescape"), token.encode())
    if scheme.lower() != "bearer" or not same:
        control.emit(Notice("warning", "admin-denied", f"wrong admin token from {caller(request)}"))
        challenge += ', error="invalid_token"'
        raise ApiError(401, "this is not the token", headers={"WWW-Authenticate": challenge})


def _require_known_host(request: web.Request, names: frozenset[str]) -> None:
    host = request.headers.get("Host")
    if host is None:  # HTTP/1.0; no browser
        return
    name = _name_in(host)
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return
    try:
        ip_address(name)
    except ValueError:
        detail = "on loopback, Host must be an address, localhost or the balancer's own name"
        raise ApiError(421, detail) from None


def _name_in(host: str) -> str:
    """`name`, `name:port`, `[v6]:port`"""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _require_same_site(request: web.Request) -> None:
    site = request.headers.get("Origin")
    if site is not None and site.partition("://")[2] != request.headers.get("Host"):
        raise ApiError(403, "this page is of another site")
