"""TLS towards backends: the merge, the default, and nothing that looks verified but is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtplb.settings import BackTlsMode, BackTlsSettings
from tests.config.support import authority, errors_of, keys_of, only_error, pool_of, settings_of, with_pool

ONE = 'backends: ["b.test:25"]'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    authority().cert_pem.write_to_path(tmp_path / "other.pem")
    return tmp_path


def tls_of(pool: str, folder: Path, before: str = "") -> list[BackTlsSettings]:
    (found,) = settings_of(with_pool(pool, before), folder).traffic.pools
    return [backend.tls for backend in found.backends]


def test_all_keys_reach_the_settings(folder: Path) -> None:
    tls = tls_of(f"{ONE}, tls: {{mode: required, ca: ca.pem, server_name: mx.b.test}}", folder)
    assert tls == [BackTlsSettings(BackTlsMode.REQUIRED, True, str(folder / "ca.pem"), "mx.b.test")]
    assert tls_of(f"{ONE}, tls: {{mode: implicit, verify: false}}", folder) == [
        BackTlsSettings(BackTlsMode.IMPLICIT, verify=False)
    ]


@pytest.mark.parametrize("mode", list(BackTlsMode))
def test_each_mode_may_be_written(mode: BackTlsMode) -> None:
    assert pool_of(f"{ONE}, tls: {{mode: {mode}}}").backends[0].tls.mode is mode


def test_towards_this_host_there_is_no_tls_unless_it_is_written() -> None:
    local = 'backends: ["127.0.0.1:25", "[::1]:25", "localhost:25", "b.test:25"]'
    assert [backend.tls.mode for backend in pool_of(local).backends] == [
        BackTlsMode.OFF,
        BackTlsMode.OFF,
        BackTlsMode.OFF,
        BackTlsMode.OPPORTUNISTIC,
    ]
    written = pool_of(f"tls: {{mode: opportunistic}}, {local}")
    assert {backend.tls.mode for backend in written.backends} == {BackTlsMode.OPPORTUNISTIC}


def test_the_most_specific_layer_wins_key_by_key(folder: Path) -> None:
    plain, special = tls_of(
        'tls: {mode: required}, backends: ["a.test:25", {address: "b.test:25", tls: {ca: other.pem}}]',
        folder,
        "defaults: {pool: {tls: {mode: opportunistic, ca: ca.pem, server_name: mx.test}}}",
    )
    assert plain == BackTlsSettings(BackTlsMode.REQUIRED, True, str(folder / "ca.pem"), "mx.test")
    assert special == BackTlsSettings(BackTlsMode.REQUIRED, True, str(folder / "other.pem"), "mx.test")


@pytest.mark.parametrize("key", ["verify: true", "verify: false", "ca: ca.pem", "server_name: mx.test"])
@pytest.mark.parametrize("mode", ["mode: off, ", "mode: opportunistic, ", ""])
def test_keys_of_verification_have_no_effect_where_nothing_is_verified(
    mode: str, key: str, folder: Path
) -> None:
    name = key.partition(":")[0]
    error = only_error(with_pool(f"{ONE}, tls: {{{mode}{key}}}"), folder)
    assert error.key == f"pools.p.tls.{name}"
    assert "no effect with mode: o" in error.message
    error = only_error(with_pool(f'backends: [{{address: "b.test:25", tls: {{{mode}{key}}}}}]'), folder)
    assert error.key == f"pools.p.backends.b.test:25.tls.{name}"


def test_one_backend_that_verifies_gives_them_an_effect(folder: Path) -> None:
    pool = 'tls: {ca: ca.pem}, backends: ["a.test:25", {address: "b.test:25", tls: {mode: required}}]'
    assert errors_of(with_pool(pool), folder) == ()
    pool = 'tls: {mode: required, ca: ca.pem}, backends: ["a.test:25", {address: "127.0.0.1:25", tls: {mode: off}}]'
    assert errors_of(with_pool(pool), folder) == ()


def test_authorities_in_defaults_need_one_pool_that_verifies(folder: Path) -> None:
    before = "defaults: {pool: {tls: {ca: ca.pem}}}"
    assert errors_of(with_pool(f"{ONE}, tls: {{mode: required}}", before), folder) == ()
    assert keys_of(with_pool(ONE, before), folder) == ["defaults.pool.tls.ca"]


def test_authorities_have_no_effect_beside_verify_false(folder: Path) -> None:
    error = only_error(with_pool(f"{ONE}, tls: {{mode: required, verify: false, ca: ca.pem}}"), folder)
    assert (error.key, error.message) == ("pools.p.tls.ca", "no effect with verify: false")
    named = f"{ONE}, tls: {{mode: required, verify: false, server_name: mx.test}}"
    assert errors_of(with_pool(named), folder) == ()  # it is asked for by SNI all the same


def test_nothing_is_judged_by_a_mode_that_was_a_mistake(folder: Path) -> None:
    for pool in (
        f"{ONE}, tls: {{mode: requird, ca: ca.pem}}",
        'tls: {mode: requird}, backends: [{address: "b.test:25", tls: {ca: ca.pem}}]',
    ):
        assert keys_of(with_pool(pool), folder) == ["pools.p.tls.mode"]


@pytest.mark.parametrize(
    ("tls", "key", "words"),
    [
        ("{mode: starttls}", "mode", "must be one of off, opportunistic, required, implicit"),
        ("{mode: required, verify: no}", "verify", "must be true or false"),
        ("{mode: required, server_name: a b}", "server_name", "not a host name"),
        ("{mode: required, ca: nope.pem}", "ca", "cannot read"),
        ("{mode: required, ca: .}", "ca", "not a regular file"),
        ("{mode: required, ca: empty.pem}", "ca", "holds no certificate in PEM"),
        ("{mode: required, ca: junk.pem}", "ca", "holds no certificate in PEM"),
        ("{mode: required, cafile: ca.pem}", "cafile", "known here are mode, verify, ca, server_name"),
    ],
)
def test_mistakes_in_tls(tls: str, key: str, words: str, folder: Path) -> None:
    (folder / "empty.pem").touch()
    (folder / "junk.pem").write_text("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")
    error = only_error(with_pool(f"{ONE}, tls: {tls}"), folder)
    assert (error.key, words in error.message) == (f"pools.p.tls.{key}", True)
