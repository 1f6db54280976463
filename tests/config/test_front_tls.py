"""TLS of listeners: certificates that fit their keys, and keys that count only together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from smtplb.settings import CertificateSettings, ClientCertificates, FrontTlsMode, FrontTlsSettings
from tests.config.support import (
    authority,
    errors_of,
    keys_of,
    listener_of,
    only_error,
    settings_of,
    with_listener,
    write_certificate,
    write_key,
)

LOOPBACK = 'bind: "127.0.0.1:2525", to: p'
PAIR = "certificates: {certificate: mx.pem, key: mx.key}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_certificate(tmp_path)
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


def with_tls(tls: str) -> str:
    return with_listener(f"{LOOPBACK}, tls: {{{tls}}}")


def tls_of(tls: str, folder: Path) -> FrontTlsSettings:
    return settings_of(with_tls(tls), folder).traffic.listeners[0].tls


def test_all_keys_reach_the_settings(folder: Path) -> None:
    write_certificate(folder, "net.pem", "net.key")
    found = tls_of(
        "mode: starttls-required, min: TLS1.3, client_certificates: optional, client_ca: ca.pem, "
        "certificates: [{certificate: mx.pem, key: mx.key}, {certificate: net.pem, key: net.key}]",
        folder,
    )
    assert found == FrontTlsSettings(
        FrontTlsMode.STARTTLS_REQUIRED,
        tuple(CertificateSettings(str(folder / f"{n}.pem"), str(folder / f"{n}.key")) for n in ("mx", "net")),
        "TLS1.3",
        ClientCertificates.OPTIONAL,
        str(folder / "ca.pem"),
    )


def test_without_the_section_there_is_no_tls() -> None:
    assert listener_of(LOOPBACK).tls == FrontTlsSettings()
    assert listener_of(f"{LOOPBACK}, tls: {{mode: off}}").tls == FrontTlsSettings()


@pytest.mark.parametrize("mode", ["starttls", "starttls-required", "implicit"])
def test_one_pair_needs_no_list(mode: str, folder: Path) -> None:
    found = tls_of(f"mode: {mode}, {PAIR}", folder)
    assert (found.mode, len(found.certificates), found.minimum) == (mode, 1, "TLS1.2")


def test_certificate_and_key_may_be_one_file(folder: Path) -> None:
    both = (folder / "mx.pem").read_bytes() + (folder / "mx.key").read_bytes()
    write_key(folder / "both.pem", both)
    assert tls_of("mode: starttls, certificates: {certificate: both.pem, key: both.pem}", folder).certificates


def test_paths_start_at_the_file_that_holds_them(folder: Path) -> None:
    (folder / "tls").mkdir()
    write_certificate(folder / "tls")
    pair = f"{{certificate: tls/mx.pem, key: {folder}/tls/mx.key}}"
    (found,) = tls_of(f"mode: starttls, certificates: {pair}", folder).certificates
    assert found == CertificateSettings(f"{folder}/tls/mx.pem", f"{folder}/tls/mx.key")


@pytest.mark.parametrize("mode", ["starttls", "starttls-required", "implicit"])
def test_tls_needs_a_certificate(mode: str) -> None:
    error = only_error(with_tls(f"mode: {mode}"))
    assert error.key == "listeners[0].tls.certificates"
    assert f"missing: mode {mode} needs one, such as certificates: [{{certificate:" in error.message


@pytest.mark.parametrize(
    "key",
    [PAIR, "min: TLS1.3", "client_certificates: required", "client_ca: ca.pem"],
    ids=lambda key: key[:8],
)
def test_keys_beside_no_tls_have_no_effect(key: str, folder: Path) -> None:
    name = key.partition(":")[0]
    error = only_error(with_tls(f"mode: off, {key}"), folder)
    assert (error.key, error.message) == (f"listeners[0].tls.{name}", "no effect with mode: off")
    error = only_error(with_tls(key), folder)
    assert "no effect without mode: write mode: starttls" in error.message


@pytest.mark.parametrize(
    ("tls", "key", "words"),
    [
        ("mode: on", "mode", "must be one of off, starttls, starttls-required, implicit"),
        (f"mode: starttls, min: TLS1.1, {PAIR}", "min", "must be one of TLS1.2, TLS1.3"),
        (f"mode: starttls, min: 1.2, {PAIR}", "min", "must be one of TLS1.2, TLS1.3"),
        (f"mode: starttls, client_certificates: on, {PAIR}", "client_certificates", "off, optional, required"),
        ("mode: starttls, certificates: []", "certificates", "is empty"),
        ("mode: starttls, certificates: mx.pem", "certificates", "must be a list"),
        ("mode: starttls, certificates: [mx.pem]", "certificates[0]", "must be a mapping"),
        ("mode: starttls, certificates: [{certificate: mx.pem}]", "certificates[0].key", "missing: write key: FILE"),
        ("mode: starttls, certificates: {key: mx.key}", "certificates.certificate", "missing: write certificate"),
        (f"mode: starttls, ciphers: ALL, {PAIR}", "ciphers", "known here are mode, certificates, min"),
        (f"mode: starttls, {PAIR[:-1]}, chain: mx.pem}}", "certificates.chain", "known here are certificate, key"),
        (f"mode: starttls, client_certificates: optional, {PAIR}", "client_ca", "missing"),
        (f"mode: starttls, client_certificates: required, {PAIR}", "client_ca", "missing"),
        (f"mode: starttls, client_certificates: off, client_ca: ca.pem, {PAIR}", "client_ca", "no effect"),
        (f"mode: starttls, client_ca: ca.pem, {PAIR}", "client_ca", "no effect without client_certificates"),
        (f"mode: starttls, client_certificates: required, client_ca: no.pem, {PAIR}", "client_ca", "cannot read"),
    ],
)  # fmt: skip
def test_mistakes_in_tls(tls: str, key: str, words: str, folder: Path) -> None:
    error = only_error(with_tls(tls), folder)
    assert (error.key, words in error.message) == (f"listeners[0].tls.{key}", True)


def test_mistakes_of_tls_are_told_beside_others_of_the_listener(folder: Path) -> None:
    keys = keys_of(with_listener(f"{LOOPBACK}, bogus: 1, tls: {{mode: starttls, minn: 1, {PAIR}}}"), folder)
    assert keys == ["listeners[0].bogus", "listeners[0].tls.minn"]


# Files.


def test_a_file_that_is_not_there_is_named_and_what_to_do_is_said(tmp_path: Path) -> None:
    errors = errors_of(with_tls(f"mode: starttls, {PAIR}"), tmp_path)
    assert [error.key for error in errors] == [
        "listeners[0].tls.certificates.certificate",
        "listeners[0].tls.certificates.key",
    ]
    for error, name in zip(errors, ("mx.pem", "mx.key"), strict=True):
        assert f"there is no `{tmp_path / name}`" in error.message
        assert "self-signed" in error.message


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_a_key_that_every_user_may_open_is_refused(mode: int, folder: Path) -> None:
    (folder / "mx.key").chmod(mode)
    error = only_error(with_tls(f"mode: starttls, {PAIR}"), folder)
    assert error.key == "listeners[0].tls.certificates.key"
    assert "open to every user of this host: chmod o= it" in error.message


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_a_key_of_owner_and_group_is_taken(mode: int, folder: Path) -> None:
    (folder / "mx.key").chmod(mode)
    assert errors_of(with_tls(f"mode: starttls, {PAIR}"), folder) == ()


def test_a_key_of_another_certificate_is_refused(folder: Path) -> None:
    write_key(folder / "mx.key", authority().issue_cert("other.test").private_key_pem.bytes())
    error = only_error(with_tls(f"mode: starttls, {PAIR}"), folder)
    assert error.key == "listeners[0].tls.certificates.key"
    assert "is not the key of the certificate in" in error.message


def test_an_encrypted_key_is_refused_and_no_passphrase_asked_for(folder: Path) -> None:
    key = load_pem_private_key((folder / "mx.key").read_bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    write_key(folder / "mx.key", encrypted)
    assert "is encrypted" in only_error(with_tls(f"mode: starttls, {PAIR}"), folder).message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mx.pem", b"", "holds no certificate in PEM"),
        ("mx.pem", b"\x30\x82DER", "holds no certificate in PEM"),
        ("mx.pem", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n", "holds no certificate"),
        ("mx.key", b"", "holds no private key in PEM"),
        ("mx.key", b"-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n", "cannot be used"),
        ("mx.pem", b"x" * 5_000_000, "is larger than"),
    ],
)
def test_files_that_are_no_pem_are_refused(name: str, content: bytes, words: str, folder: Path) -> None:
    write_key(folder / name, content)
    assert words in only_error(with_tls(f"mode: starttls, {PAIR}"), folder).message


def test_a_key_in_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "mx.key").unlink()
    os.mkfifo(folder / "mx.key")
    assert "not a regular file" in only_error(with_tls(f"mode: starttls, {PAIR}"), folder).message


def test_a_renewed_certificate_is_no_other_configuration(folder: Path) -> None:
    first = settings_of(with_tls(f"mode: starttls, {PAIR}"), folder)
    write_certificate(folder)
    assert settings_of(with_tls(f"mode: starttls, {PAIR}"), folder) == first
