"""TLS of a listener.

Owns which of its keys must stand together, and that each certificate has its key. Does not own the files' form
(pem.py) nor contexts (dataplane/certificates.py).
Invariant: a listener that passes can offer what its mode says: at least one pair of files that fit.
"""

from __future__ import annotations

from smtplb.config.checker import Checker
from smtplb.config.pem import why_no_pair
from smtplb.config.schema import Certificate, FrontTls
from smtplb.config.section import keys
from smtplb.config.tree import Path
from smtplb.settings import CertificateSettings, ClientCertificates, FrontTlsMode, FrontTlsSettings

EXAMPLE = "certificates: [{certificate: mx.pem, key: mx.key}]"


def read_front_tls(checker: Checker, path: Path) -> FrontTlsSettings:
    section = checker.read(FrontTls, path, apart=("certificates",))
    mode_is_known = checker.is_sound((*path, "mode"))
    if section.mode in (None, FrontTlsMode.OFF) and mode_is_known:
        _judge_off(checker, path)
        return FrontTlsSettings(**section.written())
    certificates = _read_certificates(checker, (*path, "certificates"))
    if mode_is_known and not checker.wrote((*path, "certificates")):
        checker.fault((*path, "certificates"), f"missing: mode {section.mode} needs one, such as {EXAMPLE}")
    _judge_clients(checker, path, section)
    return FrontTlsSettings(certificates=certificates, **section.written())


def _judge_off(checker: Checker, path: Path) -> None:
    why = "with mode: off" if checker.wrote((*path, "mode")) else "without mode: write mode: starttls"
    for key in keys(FrontTls):
        if key != "mode" and checker.wrote((*path, key)):
            checker.fault((*path, key), f"no effect {why}", of_key=True)


def _read_certificates(checker: Checker, path: Path) -> tuple[CertificateSettings, ...]:
    items = [path] if checker.is_mapping(path) else checker.items(path)
    if not items and checker.wrote(path) and checker.is_sound(path):
        checker.fault(path, f"is empty: write one, such as {EXAMPLE}")
    found = []
    for item in items:
        pair = checker.read(Certificate, item)
        if pair.certificate is None or pair.key is None:
            continue
        why = why_no_pair(pair.certificate, pair.key)
        if why is not None:
            checker.fault((*item, "key"), why)
        found.append(CertificateSettings(pair.certificate, pair.key))
    return tuple(found)


def _judge_clients(checker: Checker, path: Path, section: FrontTls) -> None:
    """Certificates of clients are looked at exactly if there are authorities to judge them by."""
    if not checker.is_sound((*path, "client_certificates")):
        return
    looks = section.client_certificates not in (None, ClientCertificates.OFF)
    if looks and not checker.wrote((*path, "client_ca")):
        message = f"missing: client_certificates: {section.client_certificates} needs the authorities' file"
        checker.fault((*path, "client_ca"), message)
    elif checker.wrote((*path, "client_ca")) and not looks:
        message = "no effect without client_certificates: optional or required"
        checker.fault((*path, "client_ca"), message, of_key=True)
