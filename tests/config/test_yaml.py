"""YAML that cannot lie: what scalars are, which YAML is allowed, and where mistakes are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from smtplb.config.errors import ConfigErrors
from smtplb.config.load import MAX_DEPTH, load, load_text
from smtplb.settings import Address, CheckLevel
from tests.config.support import (
    SMALLEST,
    backend_of,
    errors_of,
    keys_of,
    listener_of,
    only_error,
    pool_of,
    settings_of,
    with_pool,
)


def test_the_smallest_useful_file_loads_with_every_default_filled_in() -> None:
    settings = settings_of(SMALLEST)
    (listener,) = settings.traffic.listeners
    assert (listener.name, listener.binds, listener.target) == (
        "smtp",
        (Address("127.0.0.1", 2525),),
        "relays",
    )
    assert listener.accept is None
    (pool,) = settings.traffic.pools
    assert [backend.name for backend in pool.backends] == ["127.0.0.1:2601", "127.0.0.1:2602"]
    assert settings.source == "lb.yaml"
    assert settings.sha256 == "", "a text came from no file"


def test_pyyaml_by_default_tells_the_lies_that_these_tests_are_about() -> None:
    assert yaml.safe_load("off") is False
    assert yaml.safe_load("22:25") == 1345
    assert yaml.safe_load("010") == 8
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


def test_off_is_a_word() -> None:
    assert pool_of('check: {level: off}, backends: ["b.test:25"]').backends[0].check.level is CheckLevel.OFF


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "n", "y"])
def test_pools_may_be_called_what_yaml_1_1_takes_for_booleans(word: str) -> None:
    text = SMALLEST.replace("relays", word)
    assert settings_of(text).traffic.pools[0].name == word
    assert settings_of(text).traffic.listeners[0].target == word


def test_a_bind_without_quotes_is_no_number_to_the_base_of_60() -> None:
    error = only_error(SMALLEST.replace('"127.0.0.1:2525"', "22:25"))
    assert error.key == "listeners[0].bind"
    assert "`22:25`" in error.message


@pytest.mark.parametrize("number", ["010", "0o10", "0x10", "1_0", "+5", "1e1", "5.0", "2024-01-01", "٣"])
def test_a_number_is_plain_decimal_digits(number: str) -> None:
    error = only_error(with_pool(f'backends: ["b.test:25"], check: {{rise: {number}}}'))
    assert error.key == "pools.p.check.rise"
    assert "not a whole number" in error.message


@pytest.mark.parametrize("written", ["true", "True", "TRUE"])
def test_booleans_are_those_of_yaml_1_2(written: str) -> None:
    pool = pool_of(f'backends: ["a.test:25", {{address: "b.test:25", backup: {written}}}]')
    assert pool.backends[1].backup is True


@pytest.mark.parametrize("written", ["yes", "on", "y", "1", '"true"', "tRUE"])
def test_nothing_else_is_a_boolean(written: str) -> None:
    error = only_error(with_pool(f'backends: ["a.test:25", {{address: "b.test:25", backup: {written}}}]'))
    assert error.message.endswith("must be true or false")


def test_a_duplicate_key_is_an_error_that_names_both_lines() -> None:
    error = only_error(SMALLEST + '  relays:\n    backends: ["127.0.0.1:1"]\n')
    assert str(error) == "lb.yaml:6:3: pools.relays: is written twice, in line 4 and line 6"


@pytest.mark.parametrize("empty", ["", "~", "null", "Null"])
def test_a_key_without_a_value_is_an_error_and_not_a_default(empty: str) -> None:
    error = only_error(SMALLEST + f"hostname: {empty}\n")
    assert (error.line, error.key) == (6, "hostname")
    assert "has no value" in error.message


def test_an_empty_section_says_so_once() -> None:
    assert [str(error) for error in errors_of("listeners:\npools:\n  p: {backends: ['b.test:25']}\n")] == [
        "lb.yaml:1:11: listeners: has no value: write one, or leave the key out"
    ]


@pytest.mark.parametrize(
    "tagged", ["!!python/object/apply:os.system [id]", "!!str 10", "!secret x", "! x", "!!binary aGk="]
)
def test_tags_are_refused(tagged: str) -> None:
    errors = errors_of(SMALLEST + f"hostname: {tagged}\n")
    assert any("a tag" in error.message and error.line == 6 for error in errors)


def test_merge_keys_and_anchors_below_x_keys_work() -> None:
    settings = settings_of("""
        x-fast: &fast {interval: 1s, timeout: 2s}
        listeners: [{bind: "127.0.0.1:2525", to: p}]
        pools:
          p:
            backends: ["b.test:25"]
            check: {<<: *fast, timeout: 3s}
    """)
    check = settings.traffic.pools[0].backends[0].check
    assert (check.interval_s, check.timeout_s) == (1.0, 3.0)


def test_of_several_merged_mappings_the_first_wins() -> None:
    check = backend_of(
        '"b.test:25"',
        "check: {<<: [*one, *two]}",
        "x-one: &one {rise: 1}\nx-two: &two {rise: 2, fall: 2}",
    ).check
    assert (check.rise, check.fall) == (1, 2)


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert keys_of(with_pool('backends: ["b.test:25"], "<<": {mta: exim}')) == ["pools.p.<<"]


def test_a_merge_key_takes_only_mappings() -> None:
    assert "takes a mapping" in only_error(with_pool('backends: ["b.test:25"], <<: [1]')).message


def test_keys_that_start_with_x_are_ignored_at_the_top_only() -> None:
    assert errors_of(SMALLEST + "x-note: [1, ~, '${NOT_SET_ANYWHERE}']\n") == ()
    assert keys_of(SMALLEST + "    x-note: 1\n") == ["pools.relays.x-note"]


def test_what_is_missing_in_an_alias_is_reported_where_it_is_used() -> None:
    error = only_error("""
        x-listener: &listener {name: mx, bind: "127.0.0.1:2525"}
        listeners: [*listener]
        pools: {p: {backends: ["b.test:25"]}}
    """)
    assert (error.line, error.column, error.key) == (3, 13, "listeners.mx.to")


def test_a_billion_laughs_are_cut_short() -> None:
    lines = ["x-0: &a0 {k: v}"]
    lines += [f"x-{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}" for i in range(1, 10)]
    assert "more than" in only_error("\n".join([*lines, "pools: *a9"])).message
    merges = ["x-0: &a0 {k: v}"]
    merges += [f"x-{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 20)]
    assert "more than" in only_error("\n".join([*merges, "pools: {<<: *a19}"])).message


def test_an_alias_inside_its_own_anchor_ends() -> None:
    assert "nested" in only_error("pools: &p {a: *p}\n").message
    assert "nested" in only_error("pools: &p {<<: *p}\n").message


def test_nesting_is_bounded() -> None:
    assert "nested" in only_error("a: " + "[" * (MAX_DEPTH + 1)).message
    assert "nested" in only_error("a: " + "[" * 100_000).message


@pytest.mark.parametrize(
    ("text", "words", "line", "column"),
    [
        ("", "is empty", 0, 0),
        ("# only a comment\n", "is empty", 0, 0),
        ("- a\n", "must be a mapping of sections", 1, 1),
        ("just words\n", "must be a mapping of sections", 1, 1),
        ("a:\n\tb: 1\n", "a tab", 2, 1),
        ("a: b: c\n", "a `:` where no key can be", 1, 5),
        ("a: [1, 2\nb: 3\n", "`,` or a closing bracket", 2, 2),
        ('a: "x\n', "does not end", 2, 1),
        ("a: *nowhere\n", "an alias", 1, 4),
        ("a: 1\n---\nb: 2\n", "a second document", 2, 1),
        ("a: @b\n", "needs quotes", 1, 4),
        ("a: '\x07'\n", "U+0007", 1, 5),
        ("a: 1\nb: \u2028\n", "U+2028", 2, 4),
        ("a: \ud800\n", "U+D800", 1, 4),
        ('a: "\\UFFFFFFFF"\n', "no character", 1, 7),
        ("? [a, b]\n: c\n", "a key must be a word", 1, 3),
    ],
)
def test_what_is_no_yaml_of_ours_is_told_with_its_place(
    text: str, words: str, line: int, column: int
) -> None:
    places = [(error.line, error.column) for error in errors_of(text) if words in error.message]
    assert places == [(line, column)]


def test_a_file_that_is_not_utf_8_is_told_with_the_place_of_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_bytes("listeners: ü\npööls: ".encode() + b"\xff\n")
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert str(caught.value) == f"{path}:2:8: not UTF-8: byte 0xff"


def test_utf_16_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_bytes(SMALLEST.encode("utf-16"))
    with pytest.raises(ConfigErrors, match="not UTF-8"):
        load(path)


def test_a_byte_order_mark_of_utf_8_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load(path).traffic.pools[0].name == "relays"


def test_a_file_that_is_not_there_or_too_large_or_a_folder_is_told_without_a_traceback(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigErrors, match="No such file"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigErrors, match="directory"):
        load(tmp_path)
    with pytest.raises(ConfigErrors, match="not a usable file name"):
        load("a\0b")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigErrors, match="larger than"):
        load(large)
    with pytest.raises(ConfigErrors, match="larger than"):
        load_text("#" * (1024 * 1024 + 1))


def test_the_digest_is_of_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(SMALLEST)
    first = load(path).sha256
    assert len(first) == 64
    assert load(path).sha256 == first
    path.write_text(SMALLEST + "# changed\n")
    assert load(path).sha256 != first


def test_errors_never_carry_control_characters() -> None:
    for error in errors_of(SMALLEST + '"\\e[31m\\n": 1\n"hostname": "\\e]0;x\\a"\n'):
        assert str(error).isprintable()


def test_null_and_booleans_as_keys_are_their_words() -> None:
    assert keys_of(SMALLEST + "null: 1\n") == ["null"]
    settings = settings_of(SMALLEST.replace("relays:", "true:").replace("to: relays", 'to: "true"'))
    assert settings.traffic.pools[0].name == "true"


def test_a_name_that_looks_like_a_number_needs_quotes_where_it_is_a_value() -> None:
    text = SMALLEST.replace("relays:", "10:")
    assert 'write it in quotes, "10"' in only_error(text.replace("to: relays", "to: 10")).message
    assert settings_of(text.replace("to: relays", 'to: "10"')).traffic.pools[0].name == "10"


def test_values_are_found_by_path_in_flow_and_block_style_alike() -> None:
    assert listener_of('bind: "127.0.0.1:25", to: p').target == "p"
