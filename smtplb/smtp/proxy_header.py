"""The PROXY header, versions 1 and 2: reading it in front, building it for backends.

Owns the format (haproxy.org, proxy-protocol.txt). Does not own who may send it, or whether one is expected.
Invariant: reading never looks past the header; a header is whole, or more bytes are needed, or it is malformed: never a guess.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1_MAX_BYTES = 107  # incl. CRLF, proxy-protocol.txt 2.1
V2_MAX_BYTES = 16 + 4096  # the length field allows 65535; no sender needs more than addresses and a few TLVs

_V1 = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}) ([0-9]{1,5}) ([0-9]{1,5})\r\n\Z"
)
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_TLV_UNIQUE_ID, _TLV_SSL, _TLV_SSL_VERSION, _TLV_SSL_CIPHER = 0x05, 0x20, 0x21, 0x23
_CLIENT_SSL = 0x01

Ip = IPv4Address | IPv6Address


class ProxyHeader:
    """`source` is None for LOCAL and UNKNOWN: the connection is the sender's own, not a client's."""

    __slots__ = ("destination", "destination_port", "size_bytes", "source", "source_port")

    def __init__(
        self,
        size_bytes: int,
        source: Ip | None = None,
        source_port: int = 0,
        destination: Ip | None = None,
        destination_port: int = 0,
    ) -> None:
        self.size_bytes = size_bytes  # of the header: what follows belongs to the session
        self.source = source
        self.source_port = source_port
        self.destination = destination
        self.destination_port = destination_port


class Malformed:
    """No PROXY header, and none can become of it."""


MALFORMED = Malformed()


def read_header(data: bytes) -> ProxyHeader | Malformed | None:
    """The header at the beginning of `data`; None: more bytes are needed. proxy-protocol.txt 2: never guess, never skip."""
    if data.startswith(V2_SIGNATURE):
        return _read_v2(data)
    if data.startswith(b"PROXY "[: len(data)]) or data[:6] == b"PROXY ":
        return _read_v1(data)
    return None if V2_SIGNATURE.startswith(data) else MALFORMED


def _read_v1(data: bytes) -> ProxyHeader | Malformed | None:
    end = data.find(b"\r\n", 0, V1_MAX_BYTES)
    if end < 0:
        return MALFORMED if len(data) >= V1_MAX_BYTES else None
    line = data[: end + 2]
    if line == b"PROXY UNKNOWN\r\n" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(len(line))
    found = _V1.match(line)
    if found is None:
        return MALFORMED
    family, source, destination, source_port, destination_port = found.groups()
    try:
        addresses = ip_address(source.decode("ascii")), ip_address(destination.decode("ascii"))
    except ValueError:
        return MALFORMED
    version = 4 if family == b"TCP4" else 6
    ports = int(source_port), int(destination_port)
    if any(a.version != version for a in addresses) or max(ports) > 65535:
        return MALFORMED
    return ProxyHeader(len(line), addresses[0], ports[0], addresses[1], ports[1])


def _read_v2(data: bytes) -> ProxyHeader | Malformed | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    size = 16 + length
    if command not in (_LOCAL, _PROXY) or size > V2_MAX_BYTES:
        return MALFORMED
    if len(data) < size:
        return None
    if command == _LOCAL:
        return ProxyHeader(size)  # the rest is to be skipped (2.2)
    if family == _TCP4 and length >= 12:
        source, destination, source_port, destination_port = struct.unpack_from("!4s4sHH", data, 16)
        return ProxyHeader(size, IPv4Address(source), source_port, IPv4Address(destination), destination_port)
    if family == _TCP6 and length >= 36:
        source, destination, source_port, destination_port = struct.unpack_from("!16s16sHH", data, 16)
        return ProxyHeader(size, IPv6Address(source), source_port, IPv6Address(destination), destination_port)
    if family in (_TCP4, _TCP6):
        return MALFORMED
    return ProxyHeader(size)  # AF_UNSPEC, datagram, unix: nothing we can tell a backend


def build_v1(source: Ip, source_port: int, destination: Ip, destination_port: int) -> bytes:
    """Both addresses in one family: an IPv4 address beside an IPv6 one is written IPv4-mapped."""
    source, destination = _same_family(source, destination)
    return b"PROXY TCP%d %s %s %d %d\r\n" % (
        source.version,
        str(source).encode("ascii"),
        str(destination).encode("ascii"),
        source_port,
        destination_port,
    )


def build_v2(
    source: Ip,
    source_port: int,
    destination: Ip,
    destination_port: int,
    *,
    unique_id: bytes = b"",
    tls_version: bytes = b"",
    tls_cipher: bytes = b"",
) -> bytes:
    """With TLVs for the session's id (PP2_TYPE_UNIQUE_ID) and the client's TLS (PP2_TYPE_SSL), 2.2.5 and 2.2.6."""
    source, destination = _same_family(source, destination)
    family = _TCP4 if source.version == 4 else _TCP6
    body = source.packed + destination.packed + struct.pack("!HH", source_port, destination_port)
    if unique_id:
        body += _tlv(_TLV_UNIQUE_ID, unique_id[:128])
    if tls_version:
        facts = _tlv(_TLV_SSL_VERSION, tls_version) + (
            _tlv(_TLV_SSL_CIPHER, tls_cipher) if tls_cipher else b""
        )
        body += _tlv(_TLV_SSL, struct.pack("!BI", _CLIENT_SSL, 1) + facts)
    return V2_SIGNATURE + struct.pack("!BBH", _PROXY, family, len(body)) + body


def build_v2_local() -> bytes:
    """For checks: the connection is our own (2.2)."""
    return V2_SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def _same_family(source: Ip, destination: Ip) -> tuple[Ip, Ip]:
    if source.version == destination.version:
        return source, destination
    return _mapped(source), _mapped(destination)


def _mapped(address: Ip) -> IPv6Address:
    return IPv6Address(f"::ffff:{address}") if isinstance(address, IPv4Address) else address
