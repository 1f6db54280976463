"""A control plane that the admin tests hold in their hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import click
from click.testing import CliRunner, Result

from smtplb.admin.server import AdminServer
from smtplb.controlplane.supervisor import Changes, Invalid, ReloadPlan, Unknown
from smtplb.controlplane.views import ReadinessView, StatusView
from smtplb.observe.events import Event
from smtplb.settings import Address, AdminSettings, Settings, TrafficSettings
from tests.admin import pictures

TOKEN = "correct-horse"
LOOPBACK = Address(host="127.0.0.1", port=0)


@dataclass
class FakeControl:
    """`fails`: what set_backend, failback and status raise."""

    view: StatusView = field(default_factory=pictures.status)
    ready: ReadinessView = field(
        default_factory=lambda: ReadinessView(True, [], {"mx": True, "submission": False})
    )
    alive: bool = True
    fails: Exception | None = None
    brings_back: bool = True
    changes: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    emit: Callable[[Event], None] = field(init=False)

    def __post_init__(self) -> None:
        self.emit = self.events.append

    async def status(self) -> StatusView:
        if self.fails is not None:
            raise self.fails
        return self.view

    def live(self) -> bool:
        return self.alive

    def readiness(self, *, ignore_backends: bool = False) -> ReadinessView:
        return ReadinessView(True, [], self.ready.listeners) if ignore_backends else self.ready

    def readiness_of(self, listener: str, *, ignore_backends: bool = False) -> ReadinessView:
        if listener not in self.ready.listeners:
            raise Unknown(f"no listener {listener}")
        usable = self.ready.listeners[listener]
        ready = usable or ignore_backends
        return ReadinessView(ready, [] if ready else ["no backend of lab is usable"], {listener: usable})

    def set_backend(
        self,
        pool: str,
        backend: str,
        *,
        state: str | None = None,
        weight: int | None = None,
        reason: str = "",
        for_s: float | None = None,
        force: bool = False,
    ) -> None:
        if self.fails is not None:
            raise self.fails
        for each in self.view.pools:
            for found in each.backends:
                if (each.name, found.name) == (pool, backend):
                    if weight is not None and each.policy == "round-robin":
                        raise Invalid(f"pool {pool} is round-robin")
                    found.operator.state = found.state = state or found.state
                    found.operator.reason = reason
                    self.changes.append(
                        {"key": f"{pool}/{backend}", "state": state, "weight": weight, "reason": reason}
                        | {"for_s": for_s, "force": force}
                    )
                    return
        raise Unknown(f"no backend {backend} in pool {pool}")

    async def reload(self) -> ReloadPlan:
        if self.fails is not None:
            raise self.fails
        changes = Changes(added=("b/new",), removed=("b/old",), changed={"b/kept": ("weight",)})
        return ReloadPlan(Changes(), Changes(), Changes(), Changes(), changes, reconnects=())

    def failback(self, group: str) -> bool:
        if self.fails is not None:
            raise self.fails
        if group not in [each.name for each in self.view.groups]:
            raise Unknown(f"no group {group}")
        return self.brings_back


def settings(**changes: Any) -> Settings:
    admin = AdminSettings(
        bind=changes.pop("bind", LOOPBACK),
        socket=changes.pop("socket", None),
        token=changes.pop("token", TOKEN),
    )
    traffic = TrafficSettings(hostname="lb1.example.net", listeners=(), pools=())
    return Settings(traffic=traffic, admin=admin, **changes)


@dataclass
class Running:
    """An admin server on real sockets, and a client for it."""

    control: FakeControl
    server: AdminServer
    client: aiohttp.ClientSession

    def url(self, path: str) -> str:
        assert self.server.bound is not None
        return f"http://127.0.0.1:{self.server.bound.port}{path}"

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        async with self.client.get(self.url(path), **more) as response:
            is_json = "json" in response.content_type
            return response.status, await response.json(
                content_type=None
            ) if is_json else await response.text()

    async def change(
        self, method: str, path: str, *, token: str | None = TOKEN, **more: Any
    ) -> tuple[int, Any]:
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        async with self.client.request(method, self.url(path), headers=headers, **more) as response:
            return response.status, await response.json(content_type=None)


@asynccontextmanager
async def running(control: FakeControl | None = None, **changes: Any) -> AsyncIterator[Running]:
    control = control or FakeControl()
    server = AdminServer(control, settings(**changes))
    await server.start()
    control.events.clear()
    try:
        async with aiohttp.ClientSession() as client:
            yield Running(control, server, client)
    finally:
        await server.stop()


async def command_line(command: click.Command, *args: str, **env: str) -> Result:
    """Runs it in a thread, as the server has this one's loop. With the token unless told otherwise."""
    environment: dict[str, str | None] = {
        "SMTPLB_ADMIN_URL": None,
        "SMTPLB_TOKEN": TOKEN,
        "SMTPLB_ADMIN_SOCKET": None,
        "SMTPLB_TOKEN_FILE": None,
        "COLUMNS": None,
    }
    return await asyncio.to_thread(CliRunner().invoke, command, args, env=environment | env)
