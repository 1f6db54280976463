"""Certificates for tests: one authority that clients and balancer trust, one that nobody does.

Owns PEM files in a directory of the test session. Invariant: made once; contexts are cheap, keys are not.
"""

from __future__ import annotations

import datetime
import ssl
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import trustme

from smtplb.settings import CertificateSettings


@cache
def directory() -> Path:
    return Path(mkdtemp(prefix="smtplb-test-certificates-"))


@cache
def authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=name, key_type=trustme.KeyType.ECDSA)


@cache
def authority_file(name: str = "good") -> str:
    path = directory() / f"ca-{name}.pem"
    authority(name).cert_pem.write_to_path(str(path))
    return str(path)


@cache
def leaf(*names: str, by: str = "good", expired: bool = False, serial: int = 0) -> trustme.LeafCert:
    """`serial`: one more of the same names."""
    until = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) if expired else None
    since = datetime.datetime(2019, 1, 1, tzinfo=datetime.UTC) if expired else None
    return authority(by).issue_cert(*names, key_type=trustme.KeyType.ECDSA, not_after=until, not_before=since)


@cache
def pair(*names: str, serial: int = 0) -> CertificateSettings:
    """A certificate and its key in files."""
    stem = directory() / f"{'-'.join(names).replace('*', 'any')}-{serial}"
    write_pair(stem, *names, serial=serial)
    return CertificateSettings(f"{stem}.pem", f"{stem}.key")


def write_pair(stem: Path, *names: str, serial: int = 0) -> None:
    made = leaf(*names, serial=serial)
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    Path(f"{stem}.pem").write_bytes(chain)
    Path(f"{stem}.key").write_bytes(made.private_key_pem.bytes())


@cache
def server(*names: str, by: str = "good", expired: bool = False) -> ssl.SSLContext:
    """For a backend."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf(*names or ("127.0.0.1", "mx.test"), by=by, expired=expired).configure_cert(context)
    return context


@cache
def client(
    *,
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ciphers: str = "",
    certificate: str = "",
) -> ssl.SSLContext:
    """For a client that trusts the good authority. `certificate`: it shows one of this name."""
    context = ssl.create_default_context()
    authority("good").configure_trust(context)
    context.minimum_version = minimum
    context.maximum_version = maximum
    if ciphers:
        context.set_ciphers(ciphers)
    if certificate:
        leaf(certificate).configure_cert(context)
    return context
