"""Who a session's client is, in the words that backends take: PROXY header, XCLIENT, XFORWARD, Received.

Owns the facts and their encoding. Does not own when they are told (opening.py, attempt.py).
Invariant: every value is encoded by its protocol's rules; an unknown fact is said to be unknown, never left to the backend's guess.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from smtplb.policy.routing import ClientAddress
from smtplb.settings import IdentityMode
from smtplb.smtp.commands import SyntaxFault, parse_hello
from smtplb.smtp.identity import UNAVAILABLE, address_attribute
from smtplb.smtp.proxy_header import ProxyHeader, build_v1, build_v2

_FACTS: Final = (
    "authenticated",
    "client",
    "client_name",
    "client_port",
    "esmtp",
    "helo",
    "local",
    "local_port",
    "login",
    "session_id",
    "tls_cipher",
    "tls_version",
)
_TELLABLE: Final = re.compile(r"[A-Za-z0-9._:\[\]-]+\Z")


@lru_cache(4096)  # most mail comes from few addresses, and reading one costs more than a command
def read_address(host: str) -> tuple[ClientAddress, str]:
    """A socket's numeric address, and as str() writes it. A scope is not part of it. A client that came over IPv4 to a socket
    for both families is an IPv4 client."""
    address = _plain(ip_address(host.partition("%")[0]))
    return address, str(address)


@lru_cache(
    1024
)  # the same for every message of a session, and of most clients' next one; HELO has at most 255 octets
def _received_head(
    helo: bytes, address: str, hostname: str, esmtp: bool, tls: bool, authenticated: bool
) -> bytes:
    """A Received line as far as the transaction's id."""
    name = helo.decode("ascii", "replace")
    said = name if _TELLABLE.match(name) else "unknown"
    literal = f"[IPv6:{address}]" if ":" in address else f"[{address}]" if address else "unix"
    protocol = ("E" if esmtp else "") + "SMTP" + ("S" if tls and esmtp else "")
    protocol += "A" if authenticated and esmtp else ""
    return f"Received: from {said} ({literal})\r\n\tby {hostname} (smtplb) with {protocol} id ".encode(
        "ascii"
    )


class Identity:
    """Facts of one session; `client` None: a unix socket, or a front that did not say (PROXY LOCAL)."""

    __slots__ = (*_FACTS, "_text", "_text_is_of")

    def __init__(self, session_id: str) -> None:
        self._text = ""  # of the address that it was made from
        self._text_is_of: ClientAddress | None = None
        self.session_id = session_id
        self.client: ClientAddress | None = None
        self.client_port = 0
        self.client_name = b""  # only from a trusted XCLIENT: we make no DNS look-ups
        self.local: ClientAddress | None = None
        self.local_port = 0
        self.helo = b""
        self.esmtp = False
        self.login = b""
        self.authenticated = False  # by a backend, in this session
        self.tls_version = ""
        self.tls_cipher = ""

    def met(self, client: ClientAddress, port: int, text: str) -> None:
        """The client's address as its socket has it, and as str() writes it."""
        self.client, self.client_port = client, port
        self._text_is_of, self._text = client, text

    @property
    def client_text(self) -> str:
        """The client's address, "" if it is not known. Made once: it takes longer than parsing a command."""
        client = self.client
        if client is not self._text_is_of:
            self._text_is_of, self._text = client, str(client) if client is not None else ""
        return self._text

    def proxy_header(self, mode: IdentityMode) -> bytes | None:
        """None where there is no client address to tell."""
        if self.client is None or self.local is None:
            return None
        if mode is IdentityMode.PROXY_V1:
            return build_v1(self.client, self.client_port, self.local, self.local_port)
        return build_v2(
            self.client,
            self.client_port,
            self.local,
            self.local_port,
            unique_id=self.session_id.encode("ascii"),
            tls_version=self.tls_version.encode("ascii"),
            tls_cipher=self.tls_cipher.encode("ascii"),
        )

    def take_xclient(self, attributes: dict[bytes, bytes]) -> bool:
        """What a trusted front says of its client; False, and nothing is taken, if a value makes no sense."""
        client, port = self.client, self.client_port
        try:
            address = attributes.get(b"ADDR")
            if address is not None:
                client = _address(address)
            if (text := attributes.get(b"PORT")) is not None:
                port = _port(text)
            local = self.local if b"DESTADDR" not in attributes else _address(attributes[b"DESTADDR"])
            local_port = self.local_port if b"DESTPORT" not in attributes else _port(attributes[b"DESTPORT"])
        except ValueError:
            return False
        if address is not None and b"PORT" not in attributes:
            port = 0  # that of another client
        self.client, self.client_port, self.local, self.local_port = client, port, local, local_port
        if address is not None or b"NAME" in attributes:
            self.client_name = _known(attributes.get(b"NAME", b""))
        # XCLIENT_README: what was told of these before does not hold any more, unless it is told again.
        self.helo = _word(_known(attributes.get(b"HELO", b"")))
        self.login = _known(attributes.get(b"LOGIN", b""))
        self.esmtp = attributes.get(b"PROTO", b"").upper() == b"ESMTP"
        return True

    def copy(self) -> Identity:
        """For facts that change: connections that were told the old ones keep them."""
        other = Identity(self.session_id)
        for name in _FACTS:
            setattr(other, name, getattr(self, name))
        return other

    def xclient(self) -> dict[bytes, bytes]:
        """Attributes for XCLIENT, not encoded. The name is unknown unless a trusted front told it: Postfix then shows "unknown"."""
        known = self.client is not None
        return {
            b"NAME": self.client_name or UNAVAILABLE,
            b"ADDR": address_attribute(self.client_text) if known else UNAVAILABLE,
            b"PORT": b"%d" % self.client_port if known else UNAVAILABLE,
            b"PROTO": b"ESMTP" if self.esmtp else b"SMTP",
            b"HELO": self.helo or UNAVAILABLE,
            b"DESTADDR": address_attribute(str(self.local)) if self.local is not None else UNAVAILABLE,
            b"DESTPORT": b"%d" % self.local_port if self.local is not None else UNAVAILABLE,
            b"LOGIN": self.login or UNAVAILABLE,
        }

    def xforward(self) -> dict[bytes, bytes]:
        known = self.client is not None
        return {
            b"NAME": self.client_name or UNAVAILABLE,
            b"ADDR": address_attribute(self.client_text) if known else UNAVAILABLE,
            b"PORT": b"%d" % self.client_port if known else UNAVAILABLE,
            b"PROTO": b"ESMTP" if self.esmtp else b"SMTP",
            b"HELO": self.helo or UNAVAILABLE,
            b"IDENT": self.session_id.encode("ascii"),
            b"SOURCE": b"REMOTE",
        }

    def received_line(self, hostname: str, transaction_id: str, date: str) -> bytes:
        """RFC 5321 4.4. HELO is the client's word: only what RFC 5321 calls a domain or address literal is repeated."""
        return b"%s%s;\r\n\t%s\r\n" % (
            _received_head(
                self.helo,
                self.client_text,
                hostname,
                self.esmtp,
                bool(self.tls_version),
                bool(self.login) or self.authenticated,
            ),
            transaction_id.encode("ascii"),
            date.encode("ascii"),
        )

    def take_proxy(self, header: ProxyHeader) -> None:
        """What a trusted front's PROXY header says; LOCAL and UNKNOWN say nothing."""
        self.client, self.client_port = header.source and _plain(header.source), header.source_port
        if header.destination is not None:
            self.local, self.local_port = _plain(header.destination), header.destination_port

    @staticmethod
    def of_own(session_id: str, source: tuple[str, int], destination: tuple[str, int]) -> Identity:
        """For checks with proxy-v1: the real addresses of the socket, since Postfix refuses UNKNOWN."""
        own = Identity(session_id)
        own.client, own.client_port = ip_address(source[0]), source[1]
        own.local, own.local_port = ip_address(destination[0]), destination[1]
        return own


def _address(value: bytes) -> ClientAddress | None:
    if value.upper() in (UNAVAILABLE, b"[TEMPUNAVAIL]"):
        return None
    text = value.decode("ascii")
    if "%" in text:  # a scope means nothing to anybody else, and ipaddress takes any characters for one
        raise ValueError(text)
    return _plain(ip_address(text[5:] if text[:5].upper() == "IPV6:" else text))


def _plain(address: ClientAddress) -> ClientAddress:
    """An IPv4 address is told, logged and compared as one, also where a front writes it as IPv4-mapped IPv6."""
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped if mapped is not None else address


def _known(value: bytes) -> bytes:
    return b"" if value.upper() in (UNAVAILABLE, b"[TEMPUNAVAIL]") else value


def _word(name: bytes) -> bytes:
    """A name as HELO could have said it: it goes into EHLO as it is."""
    parsed = parse_hello(name)
    return parsed if not isinstance(parsed, SyntaxFault) and parsed == name else b""


def _port(value: bytes) -> int:
    if value.upper() == UNAVAILABLE:
        return 0
    if not (value.isdigit() and len(value) <= 5 and int(value) <= 65535):
        raise ValueError(value)
    return int(value)
