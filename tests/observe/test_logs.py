"""Lines leave in one write for each turn of the loop, and nothing at the other end stops the balancer."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pty
import re
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.observe import logs
from smtplb.observe.events import Event, Notice
from smtplb.observe.logs import LibraryHandler, LogWriter
from smtplb.observe.outlet import Outlet
from smtplb.settings import LogSettings
from tests.observe.ends import Kept

FULL = OSError(errno.ENOSPC, "No space left on device")
GONE = BrokenPipeError(errno.EPIPE, "Broken pipe")


def said(text: str) -> Notice:
    return Notice("info", "said", text)


def writer_to(end: Outlet, form: str = "text") -> LogWriter:
    return LogWriter(LogSettings(format=form), outlet=end, clock=lambda: 0.0)


def texts(end: Kept) -> list[str]:
    return [line.split(" ", 2)[2].strip() for line in end.text.splitlines()]


async def test_lines_of_one_turn_leave_in_one_write() -> None:
    end = Kept()
    writer = writer_to(end)
    for text in "abc":
        writer.emit(said(text))
    assert end.writes == 0
    await asyncio.sleep(0)
    assert (end.writes, texts(end)) == (1, ["a", "b", "c"])
    writer.close()


async def test_a_turn_with_many_lines_does_not_hold_them_all_back() -> None:
    end = Kept()
    writer = writer_to(end)
    while not end.writes:
        writer.emit(said("x" * 1000))
    assert logs.FLUSH_AT_BYTES <= len(end.data) < logs.FLUSH_AT_BYTES + 2000
    writer.close()


def test_without_a_running_loop_lines_leave_at_once() -> None:
    end = Kept()
    writer_to(end).emit(said("starting"))
    assert texts(end) == ["starting"]


def test_close_writes_what_is_left() -> None:
    end = Kept(0, 3)
    writer = writer_to(end)
    writer.emit(said("a"))
    writer.close()
    assert texts(end) == ["a"]
    assert end.closed


async def test_a_slow_reader_gets_every_line_whole_and_in_order() -> None:
    end = Kept(10, 0)
    writer = writer_to(end)
    writer.emit(said("a"))
    await asyncio.sleep(0)
    writer.emit(said("b"))
    writer.close()
    assert texts(end) == ["a", "b"]


async def test_a_reader_that_never_reads_costs_bounded_memory_and_the_log_says_what_was_dropped() -> None:
    end = Kept(*[0] * 10_000)
    writer = writer_to(end)
    for _ in range(2 * logs.MAX_BACKLOG_BYTES // 1000):
        writer.emit(said("x" * 1000))
    writer.flush()
    assert writer.dropped > 900
    end.script.clear()
    writer.flush()
    assert len(end.data) < logs.MAX_BACKLOG_BYTES + 2000
    assert texts(end)[-1].startswith(f"{writer.dropped} log lines were dropped")
    writer.close()


@pytest.mark.parametrize("error", [FULL, GONE])
def test_an_end_that_fails_drops_lines_and_the_next_that_leaves_tells_how_many(error: OSError) -> None:
    end = Kept(error, error, error, error)
    writer = writer_to(end)
    for text in "abcd":
        writer.emit(said(text))
    assert end.data == b""
    writer.emit(said("e"))
    assert texts(end) == ["e", "4 log lines were dropped: they could not be written in time lines=4"]
    assert writer.dropped == 4


def test_a_line_cut_by_a_full_disk_does_not_run_into_the_next() -> None:
    end = Kept(5, FULL)
    writer = writer_to(end)
    writer.emit(said("a"))
    writer.emit(said("b"))
    cut, *rest = end.text.splitlines()
    assert cut == "1970-"
    assert rest[0].endswith(" b")
    assert writer.dropped == 1


steps = st.lists(st.integers(0, 300) | st.just(FULL) | st.just(GONE), max_size=30)


@given(steps, st.integers(1, 20))
def test_whatever_the_end_does_each_line_is_whole_or_counted(
    script: list[int | OSError], events: int
) -> None:
    end = Kept(*script)
    writer = writer_to(end)
    for number in range(events):
        writer.emit(said(f"event-{number};"))
    end.script.clear()
    writer.flush()
    writer.close()
    lines = end.text.splitlines()
    whole = [int(line.rpartition("event-")[2][:-1]) for line in lines if line.endswith(";")]
    assert len(whole) + writer.dropped == events
    assert whole == sorted(whole)
    # The line that tells may be cut as well; it is told again then. Whole: it says the number twice.
    found = [re.search(r"(\d+) log lines? w(?:as|ere) dropped.*lines=(\d+)$", line) for line in lines]
    told = sum(int(match[1]) for match in found if match is not None and match[1] == match[2])
    assert told == writer.dropped


def test_an_event_that_cannot_be_written_is_counted_and_stops_nothing() -> None:
    end = Kept()
    writer = writer_to(end)
    writer.emit(Notice("info", "said", "bad", {"x": float}))  # type: ignore[dict-item]  # our own bug
    writer.emit("no event at all")  # type: ignore[arg-type]
    writer.emit(said("b"))
    assert texts(end)[-2:] == ["b", "2 log lines were dropped: they could not be written in time lines=2"]


def test_the_format_follows_the_terminal_unless_it_is_set() -> None:
    for terminal, form, text in (
        (True, "auto", True),
        (False, "auto", False),
        (False, "text", True),
        (True, "ecs", False),
    ):
        end = Kept()
        end.terminal = terminal
        writer_to(end, form).emit(said("a"))
        assert end.text.startswith("{") is not text


# -- real descriptors ---------------------------------------------------------------------------------------


def test_a_pipe_that_nobody_reads_does_not_hold_us_up() -> None:
    reading, writing = os.pipe()
    writer = writer_to(Outlet(writing))
    for _ in range(2000):
        writer.emit(said("x" * 1000))
    assert writer.dropped > 0
    assert os.get_blocking(writing)  # the flags of a descriptor that others share are left alone
    os.close(reading)
    writer.close()
    os.close(writing)


def test_a_pipe_whose_reader_is_gone_does_not_stop_us() -> None:
    reading, writing = os.pipe()
    writer = writer_to(Outlet(writing))
    os.close(reading)
    writer.emit(said("a"))
    assert writer.dropped == 1
    writer.close()
    os.close(writing)


def test_a_pipe_that_cannot_be_opened_anew_is_written_with_care(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    outlet = Outlet(writing)
    monkeypatch.undo()
    taken = 0
    while part := outlet.write(b"x" * 100_000):
        taken += part
    assert len(os.read(reading, 1_000_000)) == taken > 0
    os.close(reading)
    outlet.close()
    os.close(writing)


def test_a_stream_socket_that_nobody_reads_does_not_hold_us_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = writer_to(Outlet(ours.fileno()))
        for _ in range(5000):
            writer.emit(said("x" * 1000))
        assert writer.dropped > 0
        assert theirs.recv(10) == b"1970-01-01"
        theirs.close()
        writer.close()


def test_a_terminal_is_known_as_one() -> None:
    ours, theirs = pty.openpty()
    outlet = Outlet(theirs)
    assert outlet.is_terminal
    assert outlet.write(b"a\n") == 2
    assert os.read(ours, 10) == b"a\r\n"
    outlet.close()
    os.close(ours)
    os.close(theirs)


def test_a_file_is_appended_to_and_not_for_everyone_to_read(tmp_path: Path) -> None:
    path = tmp_path / "smtplb.log"
    path.write_text("before\n")
    path.unlink()
    for text in "ab":
        writer = LogWriter(LogSettings(destination=str(path), format="text"))
        writer.emit(said(text))
        writer.close()
    assert [line[-1] for line in path.read_text().splitlines()] == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


def test_reopen_follows_a_file_that_was_renamed(tmp_path: Path) -> None:
    path = tmp_path / "smtplb.log"
    writer = LogWriter(LogSettings(destination=str(path), format="text"))
    writer.emit(said("a"))
    path.rename(tmp_path / "old")
    writer.emit(said("b"))
    writer.reopen()
    writer.emit(said("c"))
    writer.close()
    assert [line[-1] for line in (tmp_path / "old").read_text().splitlines()] == ["a", "b"]
    assert [line[-1] for line in path.read_text().splitlines()] == ["c"]


def test_a_reopen_that_fails_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    writer = LogWriter(LogSettings(destination=str(folder / "smtplb.log"), format="text"))
    folder.rename(tmp_path / "moved")
    writer.reopen()
    writer.close()
    assert (
        "log file not opened anew: No such file or directory"
        in (tmp_path / "moved" / "smtplb.log").read_text()
    )


def test_a_destination_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogWriter(LogSettings(destination=str(tmp_path / "none" / "smtplb.log")))


def test_a_full_disk_is_survived() -> None:
    writer = LogWriter(LogSettings(destination="/dev/full", format="ecs"))
    writer.emit(said("a"))
    assert writer.dropped == 1
    writer.close()


def test_what_libraries_say_becomes_an_event_with_its_stack_on_one_line() -> None:
    events: list[Event] = []
    handler = LibraryHandler(events.append)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger = logging.Logger("asyncio")
        logger.addHandler(handler)
        logger.exception("Task %s failed", "t1")
    logger.info("not of interest")
    (notice,) = events
    assert isinstance(notice, Notice)
    assert (notice.level, notice.text) == ("error", "Task t1 failed")
    end = Kept()
    writer_to(end, "ecs").emit(notice)
    assert end.text.count("\n") == 1
    assert "ValueError: two" in end.text
