"""Variables: `${VAR}`, `${VAR:-x}`, `$$`, in values, after parsing."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.config.substitute import substitute
from tests.config.support import SMALLEST, errors_of, only_error, pool_of, settings_of, with_pool


@pytest.mark.parametrize(
    ("written", "result"),
    [
        ("plain", "plain"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$$", "$$"),
        ("${A}", "a"),
        ("<${A}${A}>", "<aa>"),
        ("${UNSET:-x}", "x"),
        ("${UNSET:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", ""),
        ("${A:-x}", "a"),
        ("${UNSET:-a b:c$}", "a b:c$"),
    ],
)
def test_forms_of_the_shell(written: str, result: str) -> None:
    assert substitute(written, {"A": "a", "EMPTY": ""}) == result


@pytest.mark.parametrize(
    "written", ["$", "$A", "${", "${A", "${}", "${1}", "${A-x}", "${A:x}", "${ A}", "a$"]
)
def test_a_lone_dollar_is_a_mistake(written: str) -> None:
    with pytest.raises(ValueError, match="lone"):
        substitute(written, {"A": "a"})


def test_an_unset_variable_is_a_mistake_that_names_it() -> None:
    with pytest.raises(ValueError, match="RELAY is not set"):
        substitute("${RELAY}", {})


@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", "\udcff"])
def test_what_cannot_be_printed_does_not_enter(value: str) -> None:
    with pytest.raises(ValueError, match="cannot be printed"):
        substitute("${A}", {"A": value})


@given(st.text(alphabet="ab$ {}:-"))
def test_doubling_every_dollar_is_the_text_itself(text: str) -> None:
    assert substitute(text.replace("$", "$$"), {}) == text


def test_an_unset_variable_in_a_file_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMTPLB_TEST", raising=False)
    error = only_error(SMALLEST.replace('"127.0.0.1:2602"', '"${SMTPLB_TEST}:2602"'))
    assert (error.line, error.column, error.key) == (5, 34, "pools.relays.backends[1]")


def test_a_variable_becomes_what_its_key_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPLB_TEST", "10")
    pool = pool_of(
        'policy: weighted, check: {interval: "${SMTPLB_TEST}s", rise: "${SMTPLB_TEST}"}, '
        'backends: [{name: "${SMTPLB_TEST}", address: "b.test:${SMTPLB_TEST}", weight: "${SMTPLB_TEST}"}]'
    )
    (backend,) = pool.backends
    assert (backend.name, backend.address.port, backend.weight) == ("10", 10, 10)
    assert (backend.check.interval_s, backend.check.rise) == (10.0, 10)


def test_quotes_around_a_variable_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPLB_TEST", "3")
    assert settings_of(SMALLEST + "replay:\n  attempts: ${SMTPLB_TEST}\n").traffic.attempts == 3
    assert settings_of(SMALLEST + 'replay:\n  attempts: "${SMTPLB_TEST}"\n').traffic.attempts == 3


def test_a_variable_never_changes_the_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPLB_TEST", '["a.test:25", "b.test:25"]')
    assert errors_of(with_pool('backends: "${SMTPLB_TEST}"')) != ()
    monkeypatch.setenv("SMTPLB_TEST", "null")
    assert "`null`" in only_error(SMALLEST + "log:\n  level: ${SMTPLB_TEST}\n").message


def test_settings_hold_plain_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPLB_TEST", "relays")
    monkeypatch.setenv("SMTPLB_LEVEL", "debug")
    settings = settings_of(
        SMALLEST.replace("to: relays", 'to: "${SMTPLB_TEST}"')
        + 'hostname: "${SMTPLB_TEST}"\nlog: {level: "${SMTPLB_LEVEL}"}\n'
    )
    assert b"smtplb.config" not in pickle.dumps(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings
