"""A part of a core for each worker, by cgroups: how workers scale on few cores, where load and sinks would be the limit else.

Owns the groups it makes, and removes them. Needs root, and a cgroup tree that can be written to (version 2, or cpu of version 1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import Instance, wait_until

PERIOD_US = 10_000  # short: a worker that waits for its next period waits 8 ms, not 80
PREFIX = "smtplb-bench-"
CGROUP = Path("/sys/fs/cgroup")


def _tree() -> tuple[Path, int] | None:
    """Where groups can be made, and which version that is."""
    if (CGROUP / "cpu" / "cpu.cfs_quota_us").exists():
        return (CGROUP / "cpu", 1) if os.access(CGROUP / "cpu", os.W_OK) else None
    control = CGROUP / "cgroup.subtree_control"
    if control.exists() and os.access(control, os.W_OK):
        if "cpu" not in control.read_text().split():
            try:
                control.write_text("+cpu")
            except OSError:
                return None
        return CGROUP, 2
    return None


def unavailable() -> str | None:
    """Why no quota can be set here, None if one can."""
    return None if _tree() else f"no cgroup with a CPU quota can be made below {CGROUP}"


class Groups:
    """One group for each process that it is given."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def put(self, pids: Sequence[int]) -> None:
        for folder, pid in zip(self._folders, pids, strict=True):
            (folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def groups(count: int, share: float) -> Iterator[Groups]:
    tree = _tree()
    assert tree is not None
    root, version = tree
    for left in root.glob(f"{PREFIX}*"):  # of a run that was killed
        if not (left / "cgroup.procs").read_text():
            left.rmdir()
    folders = [root / f"{PREFIX}{os.getpid()}-{count}-{number}" for number in range(count)]
    quota_us = round(PERIOD_US * share)
    try:
        for folder in folders:
            folder.mkdir()
            if version == 1:
                (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        yield Groups(folders)
    finally:
        for folder in folders:
            if folder.exists():
                folder.rmdir()


def workers_of(instance: Instance, count: int) -> list[int]:
    """Processes that carry mail. One worker lives in the process of the supervisor; more are its children."""
    if count == 1:
        return [instance.pid]
    children = Path(f"/proc/{instance.pid}/task/{instance.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == count, f"{count} workers")
    return [int(pid) for pid in children.read_text().split()]
