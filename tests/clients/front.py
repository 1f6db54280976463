"""A balancer with a listener of every kind, and the doors by which clients reach it.

Owns its configuration, its certificates, and the HAProxy that puts PROXY headers in front for clients that send none.
Does not own clients or backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import trustme

from tests.clients.mail import DOMAIN
from tests.clients.store import Store
from tests.e2e.balancer import Json, Section, Smtplb, pool
from tests.lab import HAProxy, free_port
from tests.lab.fixtures import Lab

HOST = "127.0.0.1"
NAME = "lb.lab.test"


class Tls(Enum):
    """What a client does about TLS."""

    NONE = "none"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


@dataclass(frozen=True, slots=True)
class Door:
    """A listener as a client sees it. `header`: it expects a PROXY header; `through_haproxy`: that puts it there."""

    name: str
    port: int
    tls: Tls
    ca: str
    header: bool = False
    through_haproxy: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of listener: its `tls.mode`, how clients of it speak TLS, and what else it is told."""

    mode: str
    tls: Tls
    header: Literal["v1", "v2"] | None = None
    auth: bool = False
    pool: str = "store"
    key: Literal["ec", "rsa"] = "ec"  # of the certificate: what ciphers there can be depends on it


KINDS = {
    "plain": Kind("off", Tls.NONE),
    "starttls": Kind("starttls", Tls.STARTTLS),
    "starttls-required": Kind("starttls-required", Tls.STARTTLS, key="rsa"),
    "implicit": Kind("implicit", Tls.IMPLICIT),
    "proxy": Kind("off", Tls.NONE, "v2"),
    "proxy-starttls": Kind("starttls-required", Tls.STARTTLS, "v2"),
    "proxy-implicit": Kind("implicit", Tls.IMPLICIT, "v1"),
    "submission": Kind("starttls-required", Tls.STARTTLS, auth=True),
    "submissions": Kind("implicit", Tls.IMPLICIT, auth=True, key="rsa"),
}
DELIVERY = [name for name, kind in KINDS.items() if not kind.auth]
SUBMISSION = [name for name, kind in KINDS.items() if kind.auth]


class Front:
    """`more`: pools besides the store's; each gets a listener of its name with STARTTLS."""

    def __init__(self, lab: Lab, store: Store, more: dict[str, Section] | None = None) -> None:
        more = more or {}
        self._lab = lab
        self._haproxies: dict[str, HAProxy] = {}
        self._kinds = {**KINDS, **{name: Kind("starttls", Tls.STARTTLS, pool=name) for name in more}}
        self._ports = {name: free_port() for name in self._kinds}
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        files = {"ca.pem": authority.cert_pem.bytes()}
        for name, key_type in (("ec", trustme.KeyType.ECDSA), ("rsa", trustme.KeyType.RSA)):
            leaf = authority.issue_cert(HOST, NAME, key_type=key_type)
            files[f"{name}.pem"] = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
            files[f"{name}.key"] = leaf.private_key_pem.bytes()
        backend = {"name": "store", "address": store.address}
        self.balancer = _WithFiles(
            {"store": pool(backend), **more},
            sections={"hostname": NAME, "listeners": [self._listener(name) for name in self._kinds]},
            files=files,
        )
        lab.start(self.balancer)

    @property
    def ca(self) -> Path:
        return self.balancer.directory / "ca.pem"

    def _listener(self, name: str) -> Json:
        kind = self._kinds[name]
        listener: Json = {"name": name, "bind": f"{HOST}:{self._ports[name]}", "to": kind.pool}
        if kind.mode != "off":
            certificate = {"certificate": f"{kind.key}.pem", "key": f"{kind.key}.key"}
            listener["tls"] = {"mode": kind.mode, "certificates": [certificate]}
        if kind.header:
            listener["proxy_protocol_from"] = ["loopback"]
            listener["accept"] = [{"recipient_domain": [f".{DOMAIN}"]}]
        if kind.auth:
            listener |= {"auth": "relay", "accept": [{"auth": True}]}
        return listener

    def door(self, name: str, *, sends_header: bool = False) -> Door:
        """`sends_header`: the client puts the PROXY header there itself."""
        kind = self._kinds[name]
        if kind.header is None or sends_header:
            return Door(name, self._ports[name], kind.tls, str(self.ca), header=kind.header is not None)
        if name not in self._haproxies:
            haproxy = HAProxy([self._ports[name]], send_proxy=kind.header)
            self._haproxies[name] = self._lab.start(haproxy)
        return Door(name, self._haproxies[name].port, kind.tls, str(self.ca), through_haproxy=True)

    def listener_port(self, name: str) -> int:
        return self._ports[name]


class _WithFiles(Smtplb):
    """With more files beside its configuration, and nothing bound but what `sections` says."""

    def __init__(self, pools: dict[str, Section], *, sections: Section, files: dict[str, bytes]) -> None:
        super().__init__(pools, sections=sections)
        self._files = files

    def _prepare(self) -> None:
        for name, content in self._files.items():
            path = self.directory / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        # Clients run as users of their own may have to read the authority.
        (self.directory / "ca.pem").chmod(0o644)
        super()._prepare()

    def _ports(self) -> list[int]:
        listeners = self._config()["listeners"]
        return [*(int(each["bind"].rpartition(":")[2]) for each in listeners), self.admin_port]
