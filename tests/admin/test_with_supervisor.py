"""The admin API on the real control plane and data plane: what it says is what mail meets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from smtplb.admin.server import AdminServer
from smtplb.cli import operate
from smtplb.cli.embedded import EmbeddedBackend
from smtplb.controlplane.supervisor import Supervisor
from smtplb.observe.ended import TransactionEnded
from smtplb.observe.events import BackendChanged, Event, Notice
from smtplb.settings import AdminSettings, FailbackMode, Settings, ShutdownSettings
from tests.admin.control import LOOPBACK, TOKEN, command_line
from tests.cli.talk import talking
from tests.controlplane import things


@dataclass
class Balancer:
    supervisor: Supervisor
    admin: AdminServer
    events: list[Event]
    client: aiohttp.ClientSession
    happened: asyncio.Event

    async def until_up(self, *backends: str) -> None:
        """Until the last change of each of these was to up."""
        async with asyncio.timeout(10):
            while True:
                changes = {
                    f"{e.pool}/{e.backend}": e.new for e in self.events if isinstance(e, BackendChanged)
                }
                if all(changes.get(backend) == "up" for backend in backends):
                    return
                self.happened.clear()
                await self.happened.wait()

    @property
    def url(self) -> str:
        return f"http://{self.admin.bound}"

    async def get(self, path: str) -> tuple[int, str]:
        async with self.client.get(self.url + path) as response:
            return response.status, await response.text()

    async def patch(self, backend: str, **change: object) -> tuple[int, dict[str, object]]:
        pool, _, name = backend.partition("/")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        path = f"/api/v1/pools/{pool}/backends/{name}"
        async with self.client.patch(self.url + path, json=change, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def send(self) -> None:
        async with talking(self.supervisor.bound["mx"][0].port) as talk:
            await talk.start_message()
            assert (await talk.say(b"Subject: x\r\n\r\n.\r\n")).startswith("250")
            await talk.say("QUIT")

    async def sample(self, name: str, **labels: str) -> float:
        _, text = await self.get("/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"smtplb_{name}" and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"no {name} {labels}")


@pytest.fixture
async def balancer() -> AsyncIterator[Balancer]:
    backends = [EmbeddedBackend() for _ in range(3)]
    for backend in backends:
        await backend.start()
    ports = iter(int(backend.address.rpartition(":")[2]) for backend in backends)
    sites = things.two_sites(FailbackMode.MANUAL)
    pools = tuple(
        replace(
            pool,
            backends=tuple(
                replace(backend, address=replace(backend.address, port=next(ports)))
                for backend in pool.backends
            ),
        )
        for pool in sites.pools
    )
    settings = Settings(
        traffic=replace(sites, pools=pools),
        admin=AdminSettings(bind=LOOPBACK, token=TOKEN),
        shutdown=ShutdownSettings(delay_s=0.0, drain_s=1.0),
    )
    events: list[Event] = []
    happened = asyncio.Event()

    def emit(event: Event) -> None:
        events.append(event)
        happened.set()

    supervisor = Supervisor(settings, emit=emit)
    admin = AdminServer(supervisor, settings)
    await admin.start()
    await supervisor.start()
    async with aiohttp.ClientSession() as client:
        yield Balancer(supervisor, admin, events, client, happened)
    await supervisor.stop()
    await admin.stop()
    for backend in backends:
        await backend.stop()


async def test_probes_and_status_of_a_running_balancer(balancer: Balancer) -> None:
    assert (await balancer.get("/livez"))[0] == 200
    code, body = await balancer.get("/readyz")
    assert (code, json.loads(body)["listeners"]) == (200, {"mx": True, "out": True})
    code, body = await balancer.get("/api/v1/status")
    status = json.loads(body)
    assert (code, status["condition"], status["problems"]) == (200, "ok", [])
    assert [backend["state"] for pool in status["pools"] for backend in pool["backends"]] == ["up"] * 3


async def test_a_message_is_counted_once_everywhere(balancer: Balancer) -> None:
    await balancer.send()
    labels = {"listener": "mx", "pool": "east", "outcome": "ok"}
    assert await balancer.sample("transactions_total", **labels) == 1
    assert await balancer.sample("sessions_total", listener="mx", tls="off") == 1
    assert await balancer.sample("transaction_duration_seconds_count", listener="mx", pool="east") == 1
    _, body = await balancer.get("/api/v1/pools/east")
    backends = json.loads(body)["backends"]
    assert sum(backend["attempts"]["ok"] for backend in backends) == 1
    assert len([event for event in balancer.events if isinstance(event, TransactionEnded)]) == 1


async def test_a_drained_backend_gets_no_mail_and_is_still_checked_up(balancer: Balancer) -> None:
    code, backend = await balancer.patch("east/mx1", state="drain", reason="kernel", **{"for": "2h"})
    assert (code, backend["state"], backend["usable"]) == (200, "drain", False)
    for _ in range(4):
        await balancer.send()
    assert await balancer.sample("backend_attempts_total", pool="east", backend="mx1", outcome="ok") == 0
    assert await balancer.sample("backend_attempts_total", pool="east", backend="mx2", outcome="ok") == 4
    assert await balancer.sample("backend_up", pool="east", backend="mx1") == 1
    assert await balancer.sample("backend_usable", pool="east", backend="mx1") == 0
    whats = [event.what for event in balancer.events if isinstance(event, Notice)]
    assert "admin-change" in whats
    assert any(isinstance(event, BackendChanged) and event.new == "drain" for event in balancer.events)


async def test_the_last_backend_of_a_listener_goes_only_by_force(balancer: Balancer) -> None:
    code, problem = await balancer.patch("west/mx3", state="maint")
    assert (code, problem["listeners"]) == (409, ["out"])
    assert (await balancer.patch("west/mx3", state="maint", force=True))[0] == 200
    assert (await balancer.get("/readyz/out"))[0] == 503
    assert (await balancer.get("/readyz"))[0] == 200
    assert (await balancer.get("/readyz/out?backends=ignore"))[0] == 200


async def test_what_the_supervisor_does_not_take_is_a_422_or_a_404(balancer: Balancer) -> None:
    assert (await balancer.patch("east/mx9", state="drain"))[0] == 404
    assert (await balancer.patch("nowhere/mx1", state="drain"))[0] == 404


async def test_a_group_fails_over_and_is_brought_back_by_hand(balancer: Balancer) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    back = f"{balancer.url}/api/v1/groups/site/failback"
    async with balancer.client.post(back, headers=headers) as response:
        assert response.status == 409
    for name in ("east/mx1", "east/mx2"):
        assert (await balancer.patch(name, state="maint"))[0] == 200
    await balancer.send()
    assert await balancer.sample("group_share_ratio", group="site", pool="west") == 1
    for name in ("east/mx1", "east/mx2"):
        await balancer.patch(name, state="ready")
    await balancer.until_up("east/mx1", "east/mx2")
    _, body = await balancer.get("/api/v1/groups/site")
    assert json.loads(body)["failback"]["waits"]
    async with balancer.client.post(back, headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["active"] == ["east"]


async def test_the_command_line_works_on_it(balancer: Balancer) -> None:
    where = {"SMTPLB_ADMIN_URL": balancer.url}
    shown = await command_line(operate.status, **where)
    assert shown.exit_code == 0
    assert "lb1.test  OK" in shown.stdout
    drained = await command_line(operate.drain, "east/mx1", "--wait", "5s", **where)
    assert (drained.exit_code, drained.stdout) == (0, "east/mx1: drain\n")
    refused = await command_line(operate.maint, "west", **where)
    assert (refused.exit_code, "--force" in refused.stderr) == (1, True)
    resumed = await command_line(operate.resume, "east", "--wait", "5s", **where)
    assert resumed.exit_code == 0, resumed.output
