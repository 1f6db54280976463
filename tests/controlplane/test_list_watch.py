"""Lists of domains and networks that change, vanish and come and go with the configuration, on a clock that stands still."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smtplb.controlplane.certificate_watch import LOOK_S
from smtplb.controlplane.list_watch import ListWatch
from tests.controlplane.clock import FakeClock


class Desk:
    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.told = 0
        for name in names:
            self.write(name, "a.test\n")
        self.watch = ListWatch(
            [self.path(name) for name in names], deadlines=self.clock.deadlines, changed=self._changed
        )
        self.watch.start()

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def write(self, name: str, text: str) -> None:
        Path(self.path(name)).write_text(text)

    def _changed(self) -> None:
        self.told += 1

    def looks(self, count: int) -> int:
        """How often it told in so many looks."""
        before = self.told
        self.clock.go(LOOK_S * count + 0.5)
        return self.told - before


def test_what_stays_as_it_is_is_not_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "domains", "deny")
    assert desk.looks(10) == 0


def test_a_change_is_told_once_and_when_it_has_come_to_rest(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "domains", "deny")
    for number in range(4):  # somebody is still writing
        desk.write("domains", "a.test\n" * (number + 2))
        assert desk.looks(1) == 0
    assert desk.looks(1) == 1
    assert desk.looks(5) == 0


@pytest.mark.parametrize("how", ["removed", "replaced", "another target"])
def test_any_way_of_changing_a_file_is_seen(tmp_path: Path, how: str) -> None:
    desk = Desk(tmp_path)
    desk.write("real", "a.test\n")
    desk.write("other", "b.test\n")
    os.symlink("real", desk.path("list"))
    desk.watch.follow([desk.path("list")])
    if how == "removed":
        os.unlink(desk.path("real"))
    elif how == "replaced":
        os.replace(desk.path("other"), desk.path("real"))
    else:
        os.symlink("other", desk.path("new"))
        os.replace(desk.path("new"), desk.path("list"))
    assert desk.looks(3) == 1
    assert desk.looks(3) == 0


def test_what_changes_while_a_configuration_is_read_is_told_after_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "domains")
    desk.write("domains", "b.test\n")
    desk.watch.follow([desk.path("domains")])
    assert desk.looks(3) == 1


def test_only_lists_of_the_configuration_in_use_are_watched(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "old")
    desk.write("new", "a.test\n")
    desk.watch.follow([desk.path("new")])
    desk.write("old", "b.test\n")
    assert desk.looks(3) == 0
    desk.write("new", "b.test\n")
    assert desk.looks(3) == 1
    desk.watch.close()
    desk.write("new", "c.test\n")
    assert desk.looks(3) == 0
