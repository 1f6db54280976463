"""When a certificate ends: the one fact that is read out of certificates, by a walk along their DER.

Owns the walk and nothing else: no trust, no names, no signatures; OpenSSL has those.
Invariant: whatever the bytes, the outcome is a time or ValueError, in time linear in their length.

Our own because the standard library tells it only of certificates that were verified (getpeercert() is empty
under CERT_NONE) or from files by a private function, and a library for it would be the largest dependency
of all for one field.

RFC 5280 4.1, in the order in which it is walked:

    Certificate    ::= SEQUENCE { tbsCertificate, ... }
    TBSCertificate ::= SEQUENCE { [0] version OPTIONAL, serialNumber INTEGER, signature SEQUENCE,
                                  issuer SEQUENCE, validity SEQUENCE { notBefore Time, notAfter Time }, ... }
"""

from __future__ import annotations

import calendar
import re
import ssl
from datetime import datetime

_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
# RFC 5280 4.1.2.5: both forms to the second, in UTC.
_TIMES = {_UTC_TIME: re.compile(rb"[0-9]{12}Z\Z"), _GENERALIZED_TIME: re.compile(rb"[0-9]{14}Z\Z")}
_PEM_BEGIN, _PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def not_after(der: bytes) -> float:
    """Unix time of the last second in which a certificate is valid."""
    certificate = _content(der, 0, _SEQUENCE)
    at, end = _content(der, certificate[0], _SEQUENCE)
    if der[at : at + 1] == bytes((_VERSION,)):
        at = _content(der, at, _VERSION)[1]
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, signature, issuer
        at = _content(der, at, tag)[1]
    at, validity_end = _content(der, at, _SEQUENCE)
    if validity_end > end:
        raise ValueError("validity reaches beyond the certificate")
    at = _time(der, at)[1]
    return _time(der, at)[0]


def first_in_pem(text: str) -> bytes:
    """The first certificate of a PEM file, in DER: the one that a server shows for itself."""
    start = text.find(_PEM_BEGIN)
    end = text.find(_PEM_END, start)
    if start < 0 or end < 0:
        raise ValueError("holds no certificate")
    return ssl.PEM_cert_to_DER_cert(text[start : end + len(_PEM_END)])


def _content(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at `at` starts and ends. X.690 8.1.3, definite lengths only (10.1)."""
    if len(der) < at + 2 or der[at] != tag:
        raise ValueError(f"no element {tag:#04x} at octet {at}")
    length, start = der[at + 1], at + 2
    if length & 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 4:
            raise ValueError(f"a length of {octets} octets at octet {at}")
        length = int.from_bytes(der[start : start + octets], "big")
        start += octets
    if start + length > len(der):
        raise ValueError(f"the element at octet {at} is cut off")
    return start, start + length


def _time(der: bytes, at: int) -> tuple[float, int]:
    """Unix time, and where the next element starts."""
    tag = der[at] if at < len(der) else 0
    form = _TIMES.get(tag)
    if form is None:
        raise ValueError(f"no time at octet {at}")
    start, end = _content(der, at, tag)
    text = der[start:end]
    if form.match(text) is None:
        raise ValueError(f"no time at octet {at}")
    if tag == _UTC_TIME:  # RFC 5280 4.1.2.5.1: from 50 on it is 19YY
        text = (b"19" if text >= b"50" else b"20") + text
    when = datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ")
    return float(calendar.timegm(when.timetuple())), end
