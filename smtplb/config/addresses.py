"""Addresses: of backends, of listeners, local ones.

Owns their written forms and which of them is loopback. Does not own networks of clients (networks.py).
Invariant: no name is resolved. What we bind is an IP address, `localhost` or a path, so that "loopback"
cannot change by DNS.

The readers raise ValueError with the words for the operator. `str(Address)` reads back as the same address.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from smtplb.config.errors import quote, quote_path
from smtplb.config.scalars import text
from smtplb.settings import Address

MAX_UNIX_PATH_BYTES = 107  # sun_path of Linux is 108 with its NUL (unix(7))

_HANDED = re.compile(
    r"[A-Za-z0-9@][A-Za-z0-9_.@-]{0,254}"
)  # of FileDescriptorName=, what needs no quotes anywhere
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
# Underscores are no RFC 1123 host names, but container networks and hosts files hold them.
_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?")
_LAST_LABEL_NUMERIC = re.compile(r"(?:.*\.)?[0-9]+\.?")
MAX_HOST_CHARS = 254
BOTH_FAMILIES = ("0.0.0.0", "::")


def backend_address(value: object) -> Address:
    """`host:port`, `10.0.1.11:25`, `[2001:db8::12]:25`."""
    written = text(value)
    if written.startswith("unix:"):
        raise ValueError(f"{quote(written)}: backends are reached over TCP, write host:port")
    host, port = _split(written)
    return Address(host=_host(host), port=_port(port, written))


def bind_addresses(value: object, directory: Path) -> tuple[Address, ...]:
    """`127.0.0.1:25`, `[::1]:25`, `localhost:25`, `:25` (both families), `unix:/path` (relative to
    `directory`), `systemd:NAME`.
    """
    written = text(value)
    if written.startswith("unix:"):
        return (Address(path=unix_path(written.removeprefix("unix:"), directory)),)
    if written.startswith("systemd:"):
        handed = written.removeprefix("systemd:")
        if not _HANDED.fullmatch(handed):
            raise ValueError(
                f"{quote(written)}: write systemd:NAME, as FileDescriptorName= of the socket unit"
            )
        return (Address(handed=handed),)
    host, port_text = _split(written)
    port = _port(port_text, written)
    if not host:
        return tuple(Address(host=each, port=port) for each in BOTH_FAMILIES)
    if host.lower() == "localhost":
        return (Address(host="127.0.0.1", port=port),)
    ip = _ip(host)
    if ip is None:
        raise ValueError(
            f"{quote(written)}: write an IP address of this host, localhost, or :{port} for all addresses"
        )
    return (Address(host=ip, port=port),)


def bind_address(value: object, directory: Path) -> Address:
    """As `bind_addresses`, where one TCP address is wanted."""
    found = bind_addresses(value, directory)
    if len(found) > 1:
        raise ValueError(f"{quote(value)}: write one address, such as 0.0.0.0{value}")
    if found[0].path is not None or found[0].handed is not None:
        raise ValueError(f"{quote(value)}: write a TCP address, such as 127.0.0.1:8025")
    return found[0]


def source_address(value: object) -> str:
    """A local IP address without a port."""
    written = text(value)
    ip = _ip(written)
    if ip is None:
        raise ValueError(f"{quote(written)}: write an IP address of this host, without a port")
    return ip


def unix_path(value: object, directory: Path) -> str:
    written = text(value)
    path = str(directory / written)
    if len(path.encode("utf-8", "surrogatepass")) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"{quote_path(path)}: a socket path has at most {MAX_UNIX_PATH_BYTES} octets")
    return path


def is_loopback(address: Address) -> bool:
    """Only this host can connect to it. What systemd will hand down nobody knows here."""
    if address.handed is not None:
        return False
    return address.path is not None or ip_address(address.host).is_loopback


def family(host: str) -> int | None:
    """4 or 6; None for a host name."""
    try:
        return ip_address(host).version
    except ValueError:
        return None


def _split(written: str) -> tuple[str, str]:
    """Host without brackets, port ("" if there is none)."""
    if written.startswith("["):
        inside, bracket, rest = written[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{quote(written)} is not an address: write [2001:db8::1]:25")
        if _version(inside) != 6:
            raise ValueError(f"{quote(inside)} in brackets is not an IPv6 address")
        return inside, rest[1:]
    if written.count(":") > 1:
        raise ValueError(f"{quote(written)}: an IPv6 address needs brackets, such as [2001:db8::1]:25")
    host, _, port = written.partition(":")
    if not port and host.isdecimal():
        raise ValueError(f"{quote(written)} has no port: write host:port (a port alone is :{written})")
    return host, port


def _port(port: str, written: str) -> int:
    if not port:
        raise ValueError(f"{quote(written)} has no port: write {quote(written.rstrip(':') + ':25')}")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{quote(port)} is not a port: write a number from 1 to 65535")
    return int(port)


def _host(host: str) -> str:
    if not host:
        raise ValueError("has no host: write host:port, such as 127.0.0.1:25")
    ip = _ip(host)
    if ip is not None:
        return ip
    if _DIGITS_AND_DOTS.fullmatch(host) or _LAST_LABEL_NUMERIC.fullmatch(host):
        raise ValueError(f"{quote(host)} is neither an IP address nor a host name")
    if len(host) > MAX_HOST_CHARS or not _HOST.fullmatch(host):
        raise ValueError(f"{quote(host)} is not a host name (beyond ASCII: write the xn-- form)")
    return host.lower()


def _ip(host: str) -> str | None:
    """The canonical form of an IP address; None if it is none."""
    version = _version(host)
    if version is None:
        return None
    if version == 6:
        address = IPv6Address(host)
        if address.scope_id is not None:
            raise ValueError(f"{quote(host)}: an IPv6 zone (%...) is not supported")
        if address.ipv4_mapped is not None:
            raise ValueError(f"{quote(host)}: write {address.ipv4_mapped}")
        return str(address)
    return str(IPv4Address(host))


def _version(host: str) -> int | None:
    if not host.isascii():  # ipaddress itself refuses other digits; it need not try
        return None
    try:
        return ip_address(host).version
    except ValueError:
        return None
