"""`smtplb demo` from end to end: what it shows must be true, and it must say so when it is not."""

from __future__ import annotations

import re
import signal
import socket

import pytest
from click.testing import CliRunner, Result

from smtplb.cli import demo
from smtplb.cli.embedded import EmbeddedBackend, Taken
from tests.cli.talk import get, smtplb, talking
from tests.lab.ports import free_port


@pytest.fixture(autouse=True)
def quick_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks at a brisker pace, and ports apart from a demo that somebody runs beside the tests."""
    monkeypatch.setattr(demo, "CONFIG", demo.CONFIG.replace("interval: 1s", "interval: 200ms"))
    monkeypatch.setattr(demo, "FIRST_PORTS", {name: free_port() for name in demo.FIRST_PORTS})


def show(*arguments: str) -> Result:
    return CliRunner().invoke(demo.demo, ["--messages", "120", "--sessions", "6", *arguments])


def test_a_backend_dies_and_comes_back_and_nothing_is_lost() -> None:
    shown = show()
    assert shown.exit_code == 0, shown.output
    assert "mx2 is killed" in shown.output
    assert "the balancer finds mx2 down (check: Connection refused" in shown.output
    assert "the balancer finds mx2 up" in shown.output
    assert "the client saw 250 120 times" in shown.output
    assert "Shown: mx2 died under load and came back" in shown.output
    rows = {row[0]: [int(cell) for cell in row[1:]] for row in _rows(shown.output) if len(row) == 5}
    assert rows["mx2"][1] == 0, "a dead backend takes nothing"
    assert rows["mx2"][2] > 0, "and is used again when it is back"
    assert all(before > 0 and after > 0 for before, _, after, _ in rows.values())
    assert shown.output.isascii()


def _rows(output: str) -> list[list[str]]:
    """The cells of tables, headings apart."""
    rows = [re.findall(r"[^|\s][^|]*", line) for line in output.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace(",", "") for cell in row] for row in rows]
    return [row for row in cells if len(row) > 1 and row[-1].isdecimal()]


@pytest.mark.parametrize(("times", "word"), [(0, "lost"), (2, "doubled")])
def test_books_that_do_not_agree_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, times: int, word: str
) -> None:
    record = EmbeddedBackend.record

    def record_wrongly(backend: EmbeddedBackend, taken: Taken) -> None:
        for _ in range(times if taken.message_id == "7.1" else 1):
            record(backend, taken)

    monkeypatch.setattr(EmbeddedBackend, "record", record_wrongly)
    shown = show()
    assert shown.exit_code == 1
    assert f"{word}: transaction 7.1" in shown.output
    assert "Shown:" not in shown.output


def test_a_death_that_nobody_notices_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CONFIG", demo.CONFIG.replace("level: ehlo, ", "").replace("200ms", "1h"))
    monkeypatch.setattr(demo, "NOTICE_WITHIN_S", 0.05)
    shown = show()
    assert shown.exit_code == 1
    assert "smtplb demo: mx2 is dead, and the checks did not notice" in shown.output


def test_ports_in_use_are_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setitem(demo.FIRST_PORTS, "mx1", port)
        monkeypatch.setitem(demo.FIRST_PORTS, "listener", port)
        shown = show()
    assert shown.exit_code == 0, shown.output
    assert f"mx1 (127.0.0.1:{port})" not in shown.output


def test_too_few_messages_to_show_anything_are_a_wrong_usage() -> None:
    assert CliRunner().invoke(demo.demo, ["--messages", "3"]).exit_code == 2


async def test_kept_it_takes_mail_by_hand_until_it_is_interrupted() -> None:
    async with smtplb("demo", "--keep", "--messages", "60", "--sessions", "6") as running:
        words = (await running.until("export")).split()[1:]
        environment = dict(word.split("=") for word in words)
        listener = (await running.until("swaks")).split()[2]
        status = (await running.until("/api/v1/status")).split()[-1]
        await running.until("Ctrl-C ends it")
        assert b'"condition"' in (await get(status))[1]
        async with talking(int(listener.rpartition(":")[2])) as talk:
            await talk.start_message()
            assert (await talk.say(b"Subject: by hand\r\n\r\n.\r\n")).startswith("250")
            await running.until("from <a@a.test> to <b@b.test>")
        for command in (["status"], ["drain", "mx/mx1"]):
            async with smtplb(*command, environment=environment) as operating:
                assert await operating.end() == 0, operating.text
        await running.until("the balancer finds mx1 drain")
        running.process.send_signal(signal.SIGINT)
        assert await running.end() == 0
