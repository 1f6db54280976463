"""`smtplb run`: it starts whole or not at all, and stops in order."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smtplb.cli.embedded import EmbeddedBackend, Fault, Verb
from smtplb.cli.run import unhandled
from tests.cli.talk import accepted, get, smtplb, talking
from tests.lab.ports import free_port, is_listening


class Setup:
    """A configuration file with free ports, and a backend behind it."""

    def __init__(self, directory: Path, backend: EmbeddedBackend) -> None:
        self.file = str(directory / "smtplb.yaml")
        self.backend = backend
        self.mail, self.admin = free_port(), free_port()
        self.write()

    def write(self, more: str = "shutdown: {delay: 0s, drain: 30s}\n") -> None:
        Path(self.file).write_text(
            f'listeners: [{{name: in, bind: "127.0.0.1:{self.mail}", to: relays}}]\n'
            f'pools: {{relays: {{backends: ["{self.backend.address}"]}}}}\n'
            f'admin: {{bind: "127.0.0.1:{self.admin}"}}\n' + more
        )


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    backend = EmbeddedBackend()
    await backend.start()
    yield Setup(tmp_path, backend)
    await backend.stop()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_it_takes_mail_until_it_is_told_to_stop(setup: Setup, stop: signal.Signals) -> None:
    async with smtplb("run", setup.file) as running:
        line = json.loads(await running.until('"listening"'))
        assert f"listener in on 127.0.0.1:{setup.mail}" in line["message"]
        async with talking(setup.mail) as talk:
            await talk.start_message()
            assert (await talk.say(b"Subject: x\r\n\r\n.\r\n")).startswith("250")
            assert (await talk.say("QUIT")).startswith("221")
        await running.until('"transaction-ended"')
        running.process.send_signal(stop)
        assert await running.end() == 0
    assert '"stopped"' in running.text
    assert setup.backend.counts.messages == 1


async def test_a_stop_waits_for_the_transaction_under_way(setup: Setup) -> None:
    setup.backend.faults[Verb.FINAL] = Fault(delay_s=0.2)
    async with smtplb("run", setup.file) as running:
        await running.until('"listening"')
        async with talking(setup.mail) as talk:
            await talk.start_message()
            running.process.send_signal(signal.SIGTERM)
            await running.until('"stopping"')
            assert (await talk.say(b"Subject: x\r\n\r\n.\r\n")).startswith("250")
            assert await running.end() == 0


async def test_a_second_signal_does_not_wait(setup: Setup) -> None:
    setup.write("shutdown: {delay: 1h, drain: 1h}\n")
    async with smtplb("run", setup.file) as running:
        await running.until('"listening"')
        async with talking(setup.mail) as talk:
            await talk.start_message()
            running.process.send_signal(signal.SIGTERM)
            await running.until('"stopping"')
            running.process.send_signal(signal.SIGTERM)
            assert await running.end() == 0


async def test_readiness_is_gone_while_mail_is_still_taken(setup: Setup) -> None:
    setup.write("shutdown: {delay: 1h}\n")
    async with smtplb("run", setup.file) as running:
        await running.until('"listening"')
        assert await _readyz(setup.admin) == 200
        running.process.send_signal(signal.SIGTERM)
        await running.until('"stopping"')
        assert await _readyz(setup.admin) == 503
        async with talking(setup.mail):
            pass


async def _readyz(port: int) -> int:
    status, _ = await get(f"http://127.0.0.1:{port}/readyz")
    return status


async def test_a_stop_while_the_first_checks_are_under_way_is_heard(setup: Setup) -> None:
    setup.backend.faults[Verb.CONNECT] = Fault(delay_s=3600)
    async with smtplb("run", setup.file) as running:
        await running.until('"started"')
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    assert '"listening"' not in running.text


def test_what_nobody_caught_is_told_with_its_traceback() -> None:
    try:
        raise KeyError("oops")
    except KeyError as error:
        notice = unhandled({"message": "Task exception was never retrieved", "exception": error})
    assert (notice.level, notice.what) == ("error", "bug")
    assert "Traceback" in str(notice.fields["exception"])
    assert "oops" in str(notice.fields["exception"])


async def test_a_listener_address_in_use_is_named_and_nothing_is_left(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", setup.mail)):
        async with smtplb("run", setup.file) as running:
            assert await running.end() == 1
    admin, last = running.text.splitlines()
    assert json.loads(admin)["event.action"] == "admin-listening"
    assert last == f"listener in: 127.0.0.1:{setup.mail}: address already in use"
    assert not is_listening(setup.admin)


async def test_an_admin_address_in_use_is_named_before_any_mail_is_taken(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", setup.admin)):
        async with smtplb("run", setup.file) as running:
            assert await running.end() == 1
    (line,) = running.text.splitlines()
    assert line.startswith(f"admin.bind: 127.0.0.1:{setup.admin}: ")
    assert setup.backend.counts.connections_total == 0


async def test_mistakes_of_the_file_are_all_named(setup: Setup) -> None:
    setup.write("nonsense: 1\nhostname: 22:25\n")
    async with smtplb("run", setup.file) as running:
        assert await running.end() == 1
    assert [line.rpartition("smtplb.yaml:")[2].split(": ")[0] for line in running.text.splitlines()] == [
        "4:1",
        "5:11",
    ]


async def test_the_file_may_come_from_the_environment(setup: Setup, tmp_path: Path) -> None:
    missing = str(tmp_path / "elsewhere.yaml")
    async with smtplb("run", environment={"SMTPLB_CONFIG": missing}) as running:
        assert await running.end() == 1
    assert missing in running.text


async def test_a_log_that_cannot_be_written_is_an_error_before_anything_starts(
    setup: Setup, tmp_path: Path
) -> None:
    setup.write(f"log: {{destination: {tmp_path}/missing/smtplb.log}}\n")
    async with smtplb("run", setup.file) as running:
        assert await running.end() == 1
    assert running.text.startswith(f"log: {tmp_path}/missing/smtplb.log: ")


async def test_hangup_opens_the_log_anew(setup: Setup, tmp_path: Path) -> None:
    log = tmp_path / "smtplb.log"
    setup.write(f"log: {{destination: {log}, format: text}}\nshutdown: {{delay: 0s}}\n")
    async with smtplb("run", setup.file) as running:
        await accepted(setup.mail)
        log.rename(tmp_path / "smtplb.log.1")
        running.process.send_signal(signal.SIGHUP)
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    assert "stopped" in log.read_text()
    assert "stopped" not in (tmp_path / "smtplb.log.1").read_text()


async def test_two_files_are_a_wrong_usage() -> None:
    async with smtplb("run", "a.yaml", "b.yaml") as running:
        assert await running.end() == 2
