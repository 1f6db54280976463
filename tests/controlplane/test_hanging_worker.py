"""A worker process that hangs is found, told of, killed and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smtplb.controlplane import process_link
from smtplb.controlplane.supervisor import Supervisor
from smtplb.observe.events import Event, Notice
from smtplb.settings import (
    CheckLevel,
    CheckSettings,
    LogSettings,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)
from tests.controlplane.test_with_worker import Client
from tests.controlplane.things import backend, listener, pool

CLIENTS = 12  # the kernel gives all of them to one of two workers once in 2 ** 11 times


class Balancer:
    def __init__(self, log: Path) -> None:
        self.notices: list[Notice] = []
        self._told = asyncio.Event()
        unchecked = CheckSettings(CheckLevel.OFF)
        traffic = TrafficSettings(
            "lb1.test", (listener("mx", "east"),), (pool("east", backend("east", "a", check=unchecked)),)
        )
        settings = Settings(
            traffic,
            workers=2,
            log=LogSettings(destination=str(log)),
            shutdown=ShutdownSettings(delay_s=0.0),
        )
        self.supervisor = Supervisor(settings, emit=self._emit)
        self._others = children()

    def _emit(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event)
            self._told.set()

    def workers(self) -> set[int]:
        return children() - self._others

    def errors(self) -> list[str]:
        return [notice.what for notice in self.notices if notice.level == "error"]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                self._told.clear()
                await self._told.wait()

    async def greet_all(self) -> None:
        for _ in range(CLIENTS):
            client = await Client.at(self.supervisor.bound["mx"][0])
            assert (await client.reply()).startswith("220")
            client.close()


def children() -> set[int]:
    pid = os.getpid()
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@asynccontextmanager
async def balancer(log: Path) -> AsyncIterator[Balancer]:
    it = Balancer(log)
    await it.supervisor.start()
    try:
        assert it.supervisor.readiness().reasons == ["no worker is up"]
        await it.greet_all()
        yield it
    finally:
        await it.supervisor.stop(0)
    assert it.workers() == set()


async def test_one_that_hangs_is_killed_and_its_clients_are_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process_link, "SILENT_BEATS", 2)
    monkeypatch.setattr(process_link, "HANGING_BEATS", 3)
    async with balancer(tmp_path / "log") as it:
        assert it.supervisor.live()
        victim = min(it.workers())
        os.kill(victim, signal.SIGSTOP)
        await it.until(lambda: it.errors() == ["worker-hangs"])
        assert not it.supervisor.live()
        assert it.supervisor.readiness().ready  # by the other one
        await it.until(lambda: it.errors() == ["worker-hangs", "worker-died"])
        assert it.supervisor.live()
        await it.greet_all()
        assert len(it.workers()) == 2
        assert victim not in it.workers()
        assert "signal SIGKILL" in it.notices[-1].text


async def test_one_that_hangs_tells_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process_link, "HANGING_BEATS", 1)  # each of them, every second
    told = ""

    def is_told() -> bool:
        nonlocal told
        told += capfd.readouterr().err
        return "most recent call first" in told

    async with balancer(tmp_path / "log") as it:
        await it.until(is_told)
    assert "smtplb/cli/worker.py" in told
