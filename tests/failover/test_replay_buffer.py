"""What is kept of a body: the same bytes again, within the budgets, at a cost that the sender cannot choose."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.dataplane.replay import MOST_IN_MEMORY_BYTES, PIECE_BYTES, ReplayBudget, ReplayBuffer
from smtplb.settings import ReplaySettings


def budget(
    memory: int = 1000, per_message: int = 100_000, total: int = 1_000_000, shared: int = 0
) -> ReplayBudget:
    return ReplayBudget(ReplaySettings(memory, per_message, total, shared_memory_bytes=shared))


def read_all(buffer: ReplayBuffer) -> list[bytes]:
    pieces: list[bytes] = []
    while piece := buffer.piece_at(sum(map(len, pieces))):
        pieces.append(piece)
    return pieces


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(
    st.lists(st.binary(max_size=300), max_size=30),
    st.integers(0, 2000),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.integers(0, 3000),
)
def test_what_is_read_is_what_was_kept_or_it_says_so(
    pieces: list[bytes], memory: int, per_message: int, total: int, shared: int
) -> None:
    limits = budget(memory, per_message, total, shared)
    buffer = ReplayBuffer(limits)
    kept = b""
    for piece in pieces:
        buffer.keep(piece)
        kept += piece
        assert limits.used_memory_bytes <= max(memory, shared)
        assert (
            limits.used_memory_bytes + limits.used_file_bytes == buffer.size_bytes <= min(per_message, total)
        )
        assert buffer.complete is (len(kept) <= min(per_message, total))
    if buffer.complete:
        assert b"".join(read_all(buffer)) == kept
    buffer.drop()
    assert (limits.used_memory_bytes, limits.used_file_bytes) == (0, 0)


def test_all_messages_together_stay_within_the_total() -> None:
    limits = budget(memory=100, per_message=1000, total=1500)
    first, second = ReplayBuffer(limits), ReplayBuffer(limits)
    first.keep(b"x" * 900)
    second.keep(b"y" * 600)
    assert (first.complete, second.complete) == (True, True)
    second.keep(b"y")
    assert not second.complete, "one octet too many for both"
    assert limits.used_file_bytes == 900
    third = ReplayBuffer(limits)
    third.keep(b"z" * 600)
    assert third.complete, "what the second gave back is there for others"
    first.drop()
    third.drop()
    assert limits.used_file_bytes == 0


def test_what_all_share_in_memory_is_for_those_that_come_first_and_their_own_part_is_for_all() -> None:
    limits = budget(memory=100, shared=1000)
    first, second = ReplayBuffer(limits), ReplayBuffer(limits)
    first.keep(b"x" * 850)
    second.keep(b"y" * 90)
    assert limits.used_memory_bytes == 940
    second.keep(b"y" * 60)
    assert limits.used_memory_bytes == 1000
    second.keep(b"y")
    assert (limits.used_memory_bytes, limits.used_file_bytes) == (850, 151), (
        "all of it goes, not what is too much"
    )
    third = ReplayBuffer(limits)
    third.keep(b"z" * 100)
    fourth = ReplayBuffer(limits)
    fourth.keep(b"z" * 100)
    assert limits.used_memory_bytes == 1050, "its own part each has"
    for buffer, piece in ((first, b"x" * 850), (second, b"y" * 151), (third, b"z" * 100)):
        assert b"".join(read_all(buffer)) == piece
        buffer.drop()
    fourth.drop()
    assert (limits.used_memory_bytes, limits.used_file_bytes) == (0, 0)


def test_a_message_goes_to_a_file_before_that_is_a_long_write() -> None:
    limits = budget(memory=100, shared=MOST_IN_MEMORY_BYTES * 4, per_message=1 << 30, total=1 << 30)
    buffer = ReplayBuffer(limits)
    buffer.keep(b"x" * MOST_IN_MEMORY_BYTES)
    assert limits.used_file_bytes == 0
    buffer.keep(b"x")
    assert limits.used_file_bytes == MOST_IN_MEMORY_BYTES + 1
    buffer.drop()


@pytest.mark.parametrize("memory", [0, 10, 1000])
def test_a_full_disk_costs_the_replay_and_neither_the_message_nor_a_descriptor(
    monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    def full(file: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    before = open_files()
    limits = budget(memory)
    for _ in range(5):
        buffer = ReplayBuffer(limits)
        for _piece in range(20):
            buffer.keep(b"x" * 100)
        assert not buffer.complete
        buffer.drop()
    monkeypatch.undo()
    assert open_files() == before
    assert (limits.used_memory_bytes, limits.used_file_bytes) == (0, 0)


def test_a_directory_that_is_gone_costs_the_replay_only(tmp_path: Path) -> None:
    limits = ReplayBudget(ReplaySettings(10, directory=str(tmp_path / "gone"), shared_memory_bytes=0))
    buffer = ReplayBuffer(limits)
    for _ in range(3):
        buffer.keep(b"x" * 8)
    assert not buffer.complete
    assert (limits.used_memory_bytes, limits.used_file_bytes) == (0, 0)


def test_nothing_of_a_message_has_a_name_on_disk(tmp_path: Path) -> None:
    buffer = ReplayBuffer(ReplayBudget(ReplaySettings(10, directory=str(tmp_path), shared_memory_bytes=0)))
    before = open_files()
    buffer.keep(b"x" * 100)
    assert open_files() == before + 1
    assert list(tmp_path.iterdir()) == []
    buffer.drop()
    assert open_files() == before


def test_a_body_in_crumbs_costs_no_more_memory_than_it_has_octets() -> None:
    """A client that sends two octets at a time must not make us hold twenty times as many."""
    size = 200_000
    buffer = ReplayBuffer(budget(memory=size, per_message=size))
    crumbs = [b"%02d" % (at % 100) for at in range(size // 2)]
    tracemalloc.start()
    try:
        for crumb in crumbs:
            buffer.keep(crumb + b"")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * size


def test_a_body_in_crumbs_is_read_again_in_few_pieces() -> None:
    """Else the loop stands still for as long as the number of crumbs squared takes."""
    size = 200_000
    buffer = ReplayBuffer(budget(memory=size, per_message=size))
    for at in range(size // 2):
        buffer.keep(b"%02d" % (at % 100))
    pieces = read_all_few(buffer, size // PIECE_BYTES + 2)
    assert b"".join(pieces) == b"".join(b"%02d" % (at % 100) for at in range(size // 2))


def read_all_few(buffer: ReplayBuffer, limit: int) -> list[bytes]:
    pieces: list[bytes] = []
    offset = 0
    while piece := buffer.piece_at(offset):
        pieces.append(piece)
        offset += len(piece)
        assert len(pieces) <= limit, "too many pieces"
    return pieces
