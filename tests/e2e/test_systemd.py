"""Under systemd: sockets that it holds and hands down, and what it is told. In most tests the test is systemd."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.balancer import FIGURES, Smtplb, command, pool
from tests.e2e.client import Client, Traffic, session, until
from tests.e2e.conftest import Begin, Embed
from tests.lab import LabError, SmtpSink, free_port, is_listening
from tests.lab.fixtures import Lab

ACTIVATE = shutil.which("systemd-socket-activate")
ANALYZE = shutil.which("systemd-analyze")
UNITS = Path(__file__).resolve().parents[2] / "examples" / "systemd"

# What systemd does between fork and exec: descriptors from 3 on, their names, whom they are for.
EXEC = """\
import os, sys
count = int(sys.argv[1])
given = [os.dup2(int(fd), 100 + place) for place, fd in enumerate(sys.argv[2:2 + count])]
for place, fd in enumerate(given):
    os.dup2(fd, 3 + place)
    os.set_inheritable(3 + place, True)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Activated(Smtplb):
    """One that gets its sockets by name; the test keeps them. `environment`: what systemd sets besides."""

    def __init__(
        self,
        sockets: Mapping[str, Sequence[socket.socket]],
        *args: Any,
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self._named = [(name, sock) for name, socks in sockets.items() for sock in socks]
        self._environment = environment or {}

    def _descriptors(self) -> list[int]:
        return [sock.fileno() for _, sock in self._named]

    def _command(self) -> list[str]:
        descriptors = [str(fd) for fd in self._descriptors()]
        settings = {
            "LISTEN_FDS": str(len(descriptors)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in self._named),
            **self._environment,
        }
        words = [f"{key}={value}" for key, value in settings.items()]
        hand_down = [sys.executable, "-c", EXEC, str(len(descriptors)), *descriptors]
        return ["/usr/bin/env", *words, *hand_down, *super()._command()]


def listening(port: int = 0, *, shared: bool = False) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(4096)
    return sock


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on for NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def heard(sock: socket.socket) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = sock.recv(65536).decode()
        except BlockingIOError:
            return messages
        messages.append(dict(line.split("=", 1) for line in text.splitlines()))


NAMED = {"name": "mx", "bind": "systemd:mx", "accept": "anyone"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_restart_under_the_same_sockets_loses_nobody(lab: Lab, begin: Begin, workers: int) -> None:
    sink = await asyncio.to_thread(lab.start, SmtpSink("sink"))
    first = listening(shared=True)
    port = first.getsockname()[1]
    sockets = {"mx": [first, *(listening(port, shared=True) for _ in range(workers - 1))]}
    balancer = Activated(sockets, {"relays": pool(sink)}, listener=NAMED, sections={"workers": workers})
    balancer.port = port
    await asyncio.to_thread(begin, balancer)
    async with Traffic(port, sessions=8, per_session=1) as traffic:
        for _ in range(3):
            await traffic.more(50)
            balancer.terminate()
            assert await asyncio.to_thread(balancer.wait_exit) == 0
            # Nobody accepts now: who comes waits in the queue that the test holds.
            waits = asyncio.create_task(Client.connect(port))
            await asyncio.sleep(0)
            await asyncio.to_thread(balancer.start)
            client = await waits
            assert client.greeting.startswith("220")
            assert (await client.say("EHLO client.test")).startswith("250")
            assert (await client.send()).startswith("250")
            await client.quit()
    ledger = traffic.ledger
    FIGURES.info(
        "%d workers, 3 restarts: %d messages in %d sessions; %d not 250, %d refused, %d dismissed between messages, %d cut",
        workers,
        len(ledger.ids()),
        ledger.sessions,
        len([reply for reply in ledger.not_ok() if not reply.startswith("421")]),
        len(ledger.refused),
        ledger.dismissed,
        ledger.cut,
    )
    assert [reply for reply in ledger.not_ok() if not reply.startswith("421 4.3.2")] == []
    assert set(ledger.refused) <= {"421 4.3.2 Service shutting down"}, "accepted before it stopped"
    assert ledger.cut == 0
    for sock in sockets["mx"]:
        sock.close()


async def test_systemd_hears_of_start_reload_and_stop(
    begin: Begin, embed: Embed, notified: socket.socket
) -> None:
    backend = await embed("only")
    environment = {"NOTIFY_SOCKET": notified.getsockname(), "WATCHDOG_USEC": "300000"}
    entry = {"name": backend.name, "address": backend.address}
    with listening() as sock:
        balancer = Activated({"mx": [sock]}, {"relays": pool(entry)}, listener=NAMED, environment=environment)
        balancer.port = sock.getsockname()[1]
        await asyncio.to_thread(begin, balancer)
        said: list[dict[str, str]] = []

        def told(key: str) -> bool:
            said.extend(heard(notified))
            return any(key in message for message in said)

        await until(lambda: told("READY"), "READY=1")
        ready = next(message for message in said if "READY" in message)
        assert ready["READY"] == "1"
        assert ready["STATUS"].endswith(", 1 listeners, 1 backends")
        await until(lambda: told("WATCHDOG"), "WATCHDOG=1")
        said.clear()
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        balancer.hang_up()
        await until(lambda: told("READY"), "READY=1 behind a reload")
        words = [message for message in said if "WATCHDOG" not in message]
        assert [next(iter(message)) for message in words] == ["RELOADING", "READY"]
        assert int(words[0]["MONOTONIC_USEC"]) >= before
        said.clear()
        config = yaml.safe_load(balancer.file.read_text())
        balancer.file.write_text(yaml.safe_dump({**config, "hostnam": "x"}))
        balancer.hang_up()
        await until(lambda: told("READY"), "READY=1 behind a reload that failed")
        status = next(message for message in said if "READY" in message)["STATUS"]
        assert "; not reloaded: " in status
        assert "hostnam: unknown key" in status
        assert [
            record["event.action"] for record in balancer.records() if record["log.level"] == "error"
        ] == ["reload-failed"]
        balancer.log.write_text("")  # it was asked for: nothing to complain about
        balancer.terminate()
        assert await asyncio.to_thread(balancer.wait_exit) == 0
        assert told("STOPPING")


async def test_a_name_that_systemd_does_not_know_is_an_error_that_says_which_there_are(lab: Lab) -> None:
    with listening() as sock:
        balancer = Activated({"submission": [sock]}, {"relays": pool("127.0.0.1:9")}, listener=NAMED)
        try:
            with pytest.raises(LabError, match=r"listener mx: systemd:mx: .*there are: submission"):
                await asyncio.to_thread(balancer.start)
        finally:
            await asyncio.to_thread(balancer.close)


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
async def test_what_systemd_itself_hands_down_is_understood(embed: Embed, tmp_path: Path) -> None:
    """systemd-socket-activate listens, and starts the program for the first client that comes."""
    backend = await embed("only")
    port = free_port()
    file = tmp_path / "smtplb.yaml"
    config = {
        "hostname": "lb.lab.test",
        "listeners": [{**NAMED, "to": "relays"}],
        "pools": {"relays": {"backends": [backend.address]}},
        "shutdown": {"delay": "0s"},
    }
    file.write_text(yaml.safe_dump(config))
    words = [str(ACTIVATE), "-l", f"127.0.0.1:{port}", "--fdname=mx", *command("run", str(file))]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await until(lambda: is_listening(port), "systemd-socket-activate listens")
        client = await Client.connect(port)
        assert client.greeting.startswith("220 lb.lab.test")
        assert (await client.say("EHLO client.test")).startswith("250")
        assert (await client.send()).startswith("250")
        client.close()
        async with session(port) as another:
            assert (await another.send()).startswith("250")
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_the_example_units_are_what_systemd_reads_without_a_word(tmp_path: Path) -> None:
    program = shutil.which("true")
    units = []
    for unit in sorted(UNITS.iterdir()):
        units.append(tmp_path / unit.name)
        units[-1].write_text(unit.read_text().replace("/opt/smtplb/bin/smtplb", str(program)))
    said = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *map(str, units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    ours = [line for line in said.stderr.splitlines() if "smtplb" in line]
    assert ours == []
