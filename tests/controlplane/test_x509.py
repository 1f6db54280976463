"""The end of a certificate, read by our own walk: what cryptography says, and never anything but a time or ValueError."""

from __future__ import annotations

import datetime as dt

import pytest
import trustme
from cryptography import x509 as reference
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from smtplb.controlplane.x509 import first_in_pem, not_after

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = reference.Name([reference.NameAttribute(reference.NameOID.COMMON_NAME, "mx1.test")])


def certificate(ends: dt.datetime, serial: int = 1) -> bytes:
    builder = reference.CertificateBuilder(
        NAME, NAME, KEY.public_key(), serial, dt.datetime(1960, 1, 1), ends
    )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def unix(when: dt.datetime) -> float:
    return when.replace(tzinfo=dt.UTC).timestamp()


AUTHORITY = trustme.CA()
LEAF = AUTHORITY.issue_cert("mx1.test", not_after=dt.datetime(2031, 5, 6, 7, 8, 9, tzinfo=dt.UTC))
CHAIN = "".join(blob.bytes().decode() for blob in LEAF.cert_chain_pems)
DER = first_in_pem(CHAIN)


def test_a_certificate_of_an_authority() -> None:
    assert not_after(DER) == dt.datetime(2031, 5, 6, 7, 8, 9, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    "ends",
    [
        dt.datetime(1969, 12, 31, 23, 59, 59),
        dt.datetime(2000, 2, 29),
        dt.datetime(2049, 12, 31, 23, 59, 59),  # the last one written as UTCTime
        dt.datetime(2050, 1, 1),  # the first one written as GeneralizedTime
        dt.datetime(9999, 12, 31, 23, 59, 59),  # RFC 5280 4.1.2.5: no end
    ],
)
def test_both_ways_in_which_a_time_is_written(ends: dt.datetime) -> None:
    assert not_after(certificate(ends)) == unix(ends)


@given(st.datetimes(dt.datetime(1961, 1, 1), dt.datetime(9999, 1, 1)), st.integers(1, 2**159))
def test_law_it_is_what_cryptography_reads(ends: dt.datetime, serial: int) -> None:
    ends = ends.replace(microsecond=0)
    der = certificate(ends, serial)
    assert (
        not_after(der)
        == unix(ends)
        == reference.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    )


def test_the_first_certificate_of_a_file_counts_whatever_stands_before_it() -> None:
    key = LEAF.private_key_pem.bytes().decode()
    assert first_in_pem("Bag attributes\r\n" + key + CHAIN.replace("\n", "\r\n")) == DER


@pytest.mark.parametrize(
    "text", ["", "hello", "-----BEGIN CERTIFICATE-----\nMII", LEAF.private_key_pem.bytes().decode()]
)
def test_a_file_without_a_certificate(text: str) -> None:
    with pytest.raises(ValueError, match="holds no certificate"):
        first_in_pem(text)


def test_a_certificate_of_nonsense_characters() -> None:
    with pytest.raises(ValueError):
        first_in_pem("-----BEGIN CERTIFICATE-----\n§§§\n-----END CERTIFICATE-----")


def time_or_value_error(der: bytes) -> None:
    try:
        assert isinstance(not_after(der), float)
    except ValueError:
        pass


def test_law_a_certificate_cut_off_anywhere_is_a_value_error_or_its_end() -> None:
    for length in range(len(DER)):
        with pytest.raises(ValueError):
            not_after(DER[:length])


@given(st.integers(0, len(DER) - 1), st.binary(min_size=1, max_size=4))
def test_law_a_certificate_with_wrong_octets_is_a_time_or_a_value_error(at: int, octets: bytes) -> None:
    time_or_value_error(DER[:at] + octets + DER[at + len(octets) :])


@given(st.binary(max_size=200))
@example(b"\x30\x80")
@example(b"\x30\xff" + b"\xff" * 130)
@example(b"0\x840000" * 20)
def test_law_any_octets_are_a_time_or_a_value_error(der: bytes) -> None:
    time_or_value_error(der)


@pytest.mark.parametrize(
    "time",
    [
        b"991301000000Z",
        b"260230000000Z",
        b"2602010000Z",
        b"260201000000+0000",
        b"\xef\xbc\x9260201000000Z",  # a digit, but not of ASCII
        b"26020100000 Z",
    ],
)
def test_times_that_are_none(time: bytes) -> None:
    good = b"\x17\x0d260201000000Z"
    validity = b"\x30" + bytes((len(good) + 2 + len(time),)) + good + b"\x17" + bytes((len(time),)) + time
    body = b"\x02\x01\x01\x30\x00\x30\x00" + validity
    inner = b"\x30" + bytes((len(body),)) + body
    with pytest.raises(ValueError):
        not_after(b"\x30" + bytes((len(inner),)) + inner)
