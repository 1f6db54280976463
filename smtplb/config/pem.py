"""PEM files of TLS: certificates, keys, authorities.

Owns whether a file can be used, and the words when it cannot. Does not own when one is needed (front_tls.py,
back_tls.py) nor the contexts of live connections (dataplane/certificates.py).
Invariant: a configuration that loads names files that the TLS library took a moment ago, and no key that every
user of the host may read. Nobody is ever asked for a passphrase.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from smtplb.config.errors import quote_path
from smtplb.config.files import UnreadableError, read_pem

_MISMATCH = "KEY_VALUES_MISMATCH"


class _PassphraseError(ValueError):
    """Raised where OpenSSL would ask at the terminal."""


def authorities(path: Path) -> None:
    """A file with at least one certificate. Raises UnreadableError."""
    read_pem(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise UnreadableError(f"{quote_path(path)} holds no certificate in PEM ({_words(error)})") from None


def certificate(path: Path) -> None:
    """A certificate of our own, perhaps with its chain. Raises UnreadableError."""
    _must_exist(path)
    authorities(path)


def key(path: Path) -> None:
    """A file that may be a key; whether it is shows beside its certificate. Raises UnreadableError."""
    _must_exist(path)
    if b"PRIVATE KEY-----" not in read_pem(path, secret=True):
        raise UnreadableError(f"{quote_path(path)} holds no private key in PEM")


def _must_exist(path: Path) -> None:
    """For what a program may be about to write: say how to start without it."""
    try:
        os.stat(path)
    except FileNotFoundError:
        hint = "where it is issued later, put a self-signed certificate and its key there first"
        raise UnreadableError(f"there is no {quote_path(path)}: {hint}") from None
    except (OSError, ValueError):
        pass  # read_pem says it


def why_no_pair(certificate: str, key: str) -> str | None:
    """None: the key is the certificate's, and TLS can be had with both. Each file passed its own check."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, _no_passphrase)
    except _PassphraseError:
        return f"{quote_path(key)} is encrypted: nobody will be there to type a passphrase"
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", None) == _MISMATCH:
            return f"{quote_path(key)} is not the key of the certificate in {quote_path(certificate)}"
        return f"{quote_path(key)} and {quote_path(certificate)} cannot be used ({_words(error)})"
    return None


def _no_passphrase() -> str:
    raise _PassphraseError


def _words(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else "not readable as PEM"
