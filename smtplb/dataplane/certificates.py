"""TLS contexts: for listeners from their certificate files, for backends from their pool's settings.

Owns protocol versions, ciphers, SNI and verification. Does not own handshakes (tls.py) nor watching files (control plane).
Invariant: nothing below TLS 1.2, no cipher without forward secrecy; a certificate that cannot be read leaves the one before in use.
"""

from __future__ import annotations

import ssl

from smtplb.settings import (
    BackTlsMode,
    BackTlsSettings,
    CertificateSettings,
    ClientCertificates,
    FrontTlsSettings,
)

# TLS 1.2 only (1.3 has its own). AEAD with ephemeral keys: RFC 9325 4.2.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!SHA1"
_VERSIONS = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}


class FrontCertificates:
    """The contexts of one listener. `context` is None while no certificate could be read: STARTTLS is then answered 454."""

    __slots__ = ("_pairs", "_settings", "context", "problems")

    def __init__(self, settings: FrontTlsSettings) -> None:
        self._settings = settings
        self._pairs: dict[CertificateSettings, tuple[ssl.SSLContext, frozenset[str]]] = {}
        self.context: ssl.SSLContext | None = None
        self.problems: list[str] = []
        self.load()

    def load(self) -> None:
        """Read the files. A pair that cannot be read now is used as it was read last."""
        self.problems = []
        for pair in self._settings.certificates:
            try:
                context = _server_context(self._settings)
                # Without a callback OpenSSL would ask the terminal for an encrypted key's passphrase.
                context.load_cert_chain(pair.certificate, pair.key, password=lambda: b"")
                self._pairs[pair] = context, _names_in(pair.certificate)
            except (OSError, ssl.SSLError, ValueError) as error:
                self.problems.append(f"{pair.certificate}: {_words(error)}")
        contexts = [self._pairs[pair] for pair in self._settings.certificates if pair in self._pairs]
        if not contexts:
            return
        default = contexts[0][0]
        by_name = {name: context for context, names in reversed(contexts) for name in names}
        default.sni_callback = _sni_chooser(by_name) if len(contexts) > 1 else None
        self.context = default


def _sni_chooser(by_name: dict[str, ssl.SSLContext]):  # type: ignore[no-untyped-def]
    def choose(engine: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if not name:
            return
        name = name.lower().rstrip(".")
        context = by_name.get(name) or by_name.get("*." + name.partition(".")[2])
        if context is not None:
            engine.context = context

    return choose


def _server_context(settings: FrontTlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.minimum]
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.client_certificates is not ClientCertificates.OFF and settings.client_ca is not None:
        context.load_verify_locations(settings.client_ca)
        required = settings.client_certificates is ClientCertificates.REQUIRED
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _names_in(path: str) -> frozenset[str]:
    """DNS names of the first certificate in a PEM file, for SNI."""
    # The only parser of certificate files in the standard library; typeshed does not list it.
    facts = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]
    names = {value.lower() for kind, value in facts.get("subjectAltName", ()) if kind == "DNS"}
    if not names:
        names = {
            value.lower() for part in facts.get("subject", ()) for key, value in part if key == "commonName"
        }
    return frozenset(names)


_client_contexts: dict[BackTlsSettings, ssl.SSLContext] = {}


def client_context(settings: BackTlsSettings) -> ssl.SSLContext:
    """Towards backends. May raise OSError or ssl.SSLError: the CA file cannot be read (config has checked it once)."""
    context = _client_contexts.get(settings)
    if context is None:
        context = _client_contexts[settings] = _make_client_context(settings)
    return context


def reload_client_contexts() -> list[str]:
    """Read CA files again. One that cannot be read now leaves the context in use; the problems."""
    problems = []
    for settings in list(_client_contexts):
        try:
            _client_contexts[settings] = _make_client_context(settings)
        except (OSError, ssl.SSLError) as error:
            problems.append(f"{settings.ca}: {_words(error)}")
    return problems


def _make_client_context(settings: BackTlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if settings.mode is BackTlsMode.OPPORTUNISTIC or not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif settings.ca is not None:
        context.load_verify_locations(settings.ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)[:200]
