"""`include`: further listeners, routes, groups and pools, each mistake in the file where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtplb.config.errors import ConfigErrors
from smtplb.config.load import load
from smtplb.settings import Settings

MAIN = """\
include: [conf.d/*.yaml]
listeners:
  - {name: mx, bind: "127.0.0.1:2525", to: east}
pools:
  east: {backends: ["e.test:25"]}
"""
MORE = """\
listeners:
  - {name: sub, bind: "127.0.0.1:2526", to: site}
groups:
  site: {mode: active-passive, pools: [east, west]}
pools:
  west: {backends: ["w.test:25"]}
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / "lb.yaml"


def loaded(folder: Path, files: dict[str, str]) -> Settings:
    return load(write(folder, files))


def errors(folder: Path, files: dict[str, str]) -> list[str]:
    """Mistakes, with paths below the folder."""
    with pytest.raises(ConfigErrors) as caught:
        loaded(folder, files)
    return [str(error).replace(f"{folder}/", "") for error in caught.value.errors]


def test_included_files_add_listeners_groups_and_pools(tmp_path: Path) -> None:
    traffic = loaded(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": MORE, "conf.d/b.txt": "}"}).traffic
    assert [listener.name for listener in traffic.listeners] == ["mx", "sub"]
    assert {pool.name for pool in traffic.pools} == {"east", "west"}
    assert [group.name for group in traffic.groups] == ["site"]


def test_included_files_add_routes(tmp_path: Path) -> None:
    more = "routes: {r: [{when: {helo: a.test}, to: west}, {to: east}]}\n" + MORE.replace("to: site", "to: r")
    traffic = loaded(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": more}).traffic
    assert [route.name for route in traffic.routes] == ["r"]
    assert errors(tmp_path, {"lb.yaml": MAIN + "routes: {r: [{to: east}]}\n", "conf.d/a.yaml": more}) == [
        "conf.d/a.yaml:1:10: routes.r: is written twice: also at lb.yaml:6:10"
    ]


def test_a_pattern_may_find_nothing_but_a_name_may_not(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"lb.yaml": MAIN}).traffic.listeners[0].name == "mx"
    main = MAIN.replace("[conf.d/*.yaml]", "conf.d/a.yaml")
    assert errors(tmp_path, {"lb.yaml": main}) == ["lb.yaml:1:10: include: no file is called `conf.d/a.yaml`"]


def test_files_are_included_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {
        f"conf.d/{n}.yaml": f'listeners: [{{name: l{n}, bind: "127.0.0.1:{n}", to: east}}]' for n in (3, 1, 2)
    }
    traffic = loaded(tmp_path, {"lb.yaml": MAIN, **files}).traffic
    assert [listener.name for listener in traffic.listeners] == ["mx", "l1", "l2", "l3"]


def test_a_name_twice_names_both_places(tmp_path: Path) -> None:
    assert errors(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": MORE.replace("  west:", "  east:")})[1:] == [
        "conf.d/a.yaml:6:3: pools.east: is written twice: also at lb.yaml:5:3"
    ]


def test_a_listener_twice_names_both_places(tmp_path: Path) -> None:
    assert errors(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": MORE.replace("sub", "mx")}) == [
        "conf.d/a.yaml:2:12: listeners.mx.name: a listener is called `mx` already, at lb.yaml:3:12"
    ]


def test_a_mistake_is_shown_in_the_file_where_it_stands(tmp_path: Path) -> None:
    more = MORE.replace("w.test:25", "w.test").replace("to: site", "to: stie, limits: {errors: }")
    assert [error.split(": ")[0] for error in errors(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": more})] == [
        "conf.d/a.yaml:2:45",
        "conf.d/a.yaml:2:67",
        "conf.d/a.yaml:6:21",
    ]


def test_only_listeners_routes_groups_and_pools_are_included(tmp_path: Path) -> None:
    more = "include: [x]\nlog: {level: debug}\nx-anchor: {}\n"
    assert [error.split(": ")[0] for error in errors(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": more})] == [
        "conf.d/a.yaml:1:1",
        "conf.d/a.yaml:2:1",
    ]


def test_a_file_does_not_include_itself(tmp_path: Path) -> None:
    (found,) = errors(tmp_path, {"lb.yaml": MAIN.replace("conf.d/*.yaml", '"*.yaml"')})
    assert "finds this file itself" in found


def test_relative_paths_start_at_the_file_that_holds_them(tmp_path: Path) -> None:
    more = 'listeners: [{name: b, bind: "unix:b.sock", to: east, accept: {recipient_domain: "file:domains"}}]'
    traffic = loaded(
        tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": more, "conf.d/domains": "example.org\n"}
    ).traffic
    assert traffic.listeners[1].binds[0].path == str(tmp_path / "conf.d/b.sock")
    assert traffic.listeners[1].accept is not None


@pytest.mark.parametrize(
    "broken", ["pools: [", "- a\n", "\t", "pools: \udcff".encode("utf-8", "surrogateescape")]
)
def test_an_included_file_that_is_no_yaml_is_all_that_is_told(broken: str | bytes, tmp_path: Path) -> None:
    path = write(tmp_path, {"lb.yaml": MAIN.replace("to: east", "to: west"), "conf.d/a.yaml": ""})
    (tmp_path / "conf.d/a.yaml").write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert {error.file for error in caught.value.errors} == {str(tmp_path / "conf.d/a.yaml")}


def test_a_folder_that_a_pattern_finds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conf.d" / "a.yaml").mkdir(parents=True)
    (found,) = errors(tmp_path, {"lb.yaml": MAIN})
    assert found.startswith("lb.yaml:1:11: include[0]: ")
    assert "not a regular file" in found


def test_a_section_of_the_wrong_kind_spoils_only_itself(tmp_path: Path) -> None:
    found = errors(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": "pools: [a]\nlisteners:\n"})
    assert found == [
        "conf.d/a.yaml:1:8: pools: must be a mapping of names, in every file",
        "conf.d/a.yaml:2:11: listeners: has no value: write one, or leave the key out",
    ]


@pytest.mark.parametrize("include", ["5", "[5]", "[{}]", '["a\\0b"]', '[""]', "{}"])
def test_what_is_no_pattern_is_a_mistake_and_no_traceback(include: str, tmp_path: Path) -> None:
    assert errors(tmp_path, {"lb.yaml": MAIN.replace("[conf.d/*.yaml]", include)})


def test_the_digest_covers_included_files(tmp_path: Path) -> None:
    first = loaded(tmp_path, {"lb.yaml": MAIN, "conf.d/a.yaml": MORE}).sha256
    assert loaded(tmp_path, {"conf.d/a.yaml": MORE + "# changed\n"}).sha256 != first
