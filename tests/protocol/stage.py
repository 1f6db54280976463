"""A worker on the running loop: its backends and clients on loopback, its clock in the test's hands.

Owns the settings that a test varies, the worker, and what must hold when a test ends (finish). Does not own what is said.
Invariant: after a test nothing is left: no session, no connection, no waiter, no byte in a replay buffer.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from smtplb.dataplane.backend import Backend
from smtplb.dataplane.deadlines import Deadlines, Waiter
from smtplb.dataplane.listener import Listener
from smtplb.dataplane.worker import Worker
from smtplb.messages import BackendStanding, BackendState, FromWorker, Snapshot
from smtplb.observe.ended import SessionEnded, TransactionEnded
from smtplb.observe.events import AttemptFailed, BackendBlamed, MailEvent, Notice
from smtplb.settings import (
    Address,
    BackendSettings,
    GroupMember,
    GroupMode,
    GroupSettings,
    ListenerLimits,
    ListenerSettings,
    PoolSettings,
    QueueSettings,
    ReceivedMode,
    ReplaySettings,
    RouteSettings,
    TrafficSettings,
)
from tests.protocol.client import Client
from tests.protocol.mta import Mta
from tests.protocol.wire import until

USABLE = frozenset({BackendState.UP, BackendState.SLOW_START})
LAST_RESORT = frozenset({BackendState.DOWN, BackendState.EJECTED, BackendState.UNPROVEN})
LONG_S = 100_000.0
RECEIVED = ReceivedMode.NEVER  # unless a test says otherwise, what goes in is what comes out


@dataclass
class Pool:
    """`of_pool`: PoolSettings; `options`: BackendSettings of each backend."""

    name: str
    mtas: Sequence[Mta]
    options: dict[str, Any] = field(default_factory=dict)
    of_pool: dict[str, Any] = field(default_factory=dict)
    queue: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> PoolSettings:
        options = {"received": RECEIVED, **self.options}
        backends = tuple(
            BackendSettings(self.name, mta.name, Address("127.0.0.1", mta.port), **options)
            for mta in self.mtas
        )
        return PoolSettings(self.name, backends, queue=QueueSettings(**self.queue), **self.of_pool)


def pool(*mtas: Mta, name: str = "p", of_pool: dict[str, Any] | None = None, **options: Any) -> Pool:
    """`queue` among the options: QueueSettings."""
    return Pool(name, mtas, options, of_pool or {}, options.pop("queue", {}))


class Stage:
    """See the module. `listener`: keyword arguments of ListenerSettings, with `limits` as a dict."""

    def __init__(
        self,
        *pools: Pool,
        listener: dict[str, Any] | None = None,
        routes: tuple[RouteSettings, ...] = (),
        groups: dict[str, tuple[tuple[str, int], ...]] | None = None,
        replay: dict[str, Any] | None = None,
        attempts: int = 3,
        unix: str = "",
        dual_stack: bool = False,
    ) -> None:
        self.pools = pools
        self.routes = routes
        self.groups = groups or {}
        self.replay = ReplaySettings(**({"shared_memory_bytes": 0} | (replay or {})))
        self.attempts = attempts
        self._listener = {"target": pools[0].name, **(listener or {})}
        self._unix = unix
        self._dual_stack = dual_stack  # an IPv6 socket that takes IPv4 as well, as systemd makes them
        self.messages: list[FromWorker | MailEvent] = []
        self.clients: list[Client] = []
        self.faults: list[str] = []  # exceptions that came out of callbacks
        self.states: dict[str, BackendState] = {}
        self.offers: dict[str, dict[bytes, bytes] | None] = {}  # instead of what the backend offers
        self._generation = 0
        self._configuration = 0
        self._former: list[Mta] = []  # of pools that a reload replaced
        self._later_s = 0.0

    @property
    def mtas(self) -> list[Mta]:
        return [*dict.fromkeys([*self._former, *(mta for each in self.pools for mta in each.mtas)])]

    async def __aenter__(self) -> Stage:
        self.loop = loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        for mta in self.mtas:
            await mta.start()
        if self._unix:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(self._unix)
            self._socket.listen()
        elif self._dual_stack:
            self._socket = socket.socket(socket.AF_INET6)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind(("::ffff:127.0.0.1", 0))
            self._socket.listen()
        else:
            self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._socket.setblocking(False)
        self.deadlines = Deadlines(lambda: loop.time() + self._later_s, loop.call_later)
        self.worker = Worker(
            loop, self.deadlines, self.messages.append, self.messages.append, {"in": [self._socket]}
        )
        self.apply()
        return self

    async def reload(self, *pools: Pool, **others: Any) -> None:
        """Another configuration: these pools, and what else is given (routes, groups, attempts; `listener`: changed keys)."""
        known = self.mtas
        self._former, self.pools = known, pools
        for mta in self.mtas:
            if mta not in known:
                await mta.start()
        self._listener |= others.pop("listener", {})
        for key, value in others.items():
            setattr(self, key, value)
        self._configuration += 1
        self.apply()

    def apply(self) -> None:
        """Tell the worker of the present settings and states."""
        limits = ListenerLimits(**self._listener.get("limits", {}))
        settings = ListenerSettings(name="in", binds=(), **{**self._listener, "limits": limits})
        traffic = TrafficSettings(
            hostname="lb.test",
            listeners=(settings,),
            pools=tuple(each.settings() for each in self.pools),
            groups=tuple(
                GroupSettings(name, GroupMode.ACTIVE_ACTIVE, tuple(GroupMember(*share) for share in shares))
                for name, shares in self.groups.items()
            ),
            routes=self.routes,
            replay=self.replay,
            attempts=self.attempts,
        )
        standings = {}
        for each in self.pools:
            for mta in each.mtas:
                state = self.states.get(mta.name, BackendState.UP)
                standings[each.name, mta.name] = BackendStanding(
                    state,
                    usable=state in USABLE,
                    last_resort=state in LAST_RESORT,
                    weight=1,
                    offers=self.offers.get(mta.name, mta.keywords),
                )
        self._generation += 1
        self.worker.receive(
            Snapshot(self._generation, traffic, standings, dict(self.groups), self._configuration)
        )

    # -- what tests do -------------------------------------------------------------------------------

    async def connect(self, client: Client | None = None, source: str = "127.0.0.1") -> Client:
        """`source`: any address of 127.0.0.0/8."""
        client = client or Client()
        self.clients.append(client)
        if self._unix:
            await self.loop.create_unix_connection(lambda: client, self._unix)
        else:
            await self.loop.create_connection(lambda: client, "127.0.0.1", self.port, local_addr=(source, 0))
        return client

    async def client(self, name: str = "client.test", source: str = "127.0.0.1") -> Client:
        """Past EHLO."""
        return await (await self.connect(source=source)).greeted(name)

    @property
    def port(self) -> int:
        return cast("int", self._socket.getsockname()[1])

    def pass_time(self, seconds: float) -> None:
        """Every deadline within it is told now; each of those set meanwhile, too, at its time."""
        end = self._later_s + seconds
        while (step := min(self._next_deadline_s() - self.deadlines.clock() + 0.2, end - self._later_s)) > 0:
            self._later_s += step
            self.deadlines.advance(self.deadlines.clock())
            self.worker._runtime.outbox.end_of_turn()

    def _next_deadline_s(self) -> float:
        waiting = [waiter.deadline_s for waiter in self._waiters()]
        return min([s for s in waiting if s > self.deadlines.clock()], default=float("inf"))

    def _waiters(self) -> list[Waiter]:
        """All but the worker itself, which looks round at intervals for ever."""
        buckets = self.deadlines._buckets.values()
        return [waiter for bucket in buckets for waiter in bucket if waiter is not self.worker]

    @property
    def listener(self) -> Listener:
        return self.worker._listeners[0]

    def backend(self, name: str) -> Backend:
        router = self.worker._router
        assert router is not None
        return next(p.backends[name] for p in router.pools.values() if name in p.backends)

    # -- what the worker told ------------------------------------------------------------------------

    @property
    def failures(self) -> list[str]:
        return [
            f"{m.backend} {m.outcome} {m.phase} {m.reason}"
            for m in self.messages
            if isinstance(m, AttemptFailed)
        ]

    @property
    def blamed(self) -> list[str]:
        return [m.backend for m in self.messages if isinstance(m, BackendBlamed)]

    @property
    def ends(self) -> list[TransactionEnded]:
        return [m for m in self.messages if isinstance(m, TransactionEnded)]

    @property
    def outcomes(self) -> list[str]:
        return [str(end.outcome) for end in self.ends]

    @property
    def session_reasons(self) -> list[str]:
        return [m.reason for m in self.messages if isinstance(m, SessionEnded)]

    @property
    def notices(self) -> list[Notice]:
        return [m for m in self.messages if isinstance(m, Notice)]

    @property
    def refusals(self) -> dict[str, int]:
        return self.listener.context.refusals

    # -- the end -------------------------------------------------------------------------------------

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                await self.finish()
        finally:
            self.worker.close()
            self.deadlines.close()
            self._socket.close()
            if self._unix:
                os.unlink(self._unix)
            for wire in [*self.clients, *(s for mta in self.mtas for s in mta.sessions)]:
                if wire.transport is not None:
                    wire.transport.abort()
            for mta in self.mtas:
                mta.stop()
            for _turn in range(5):
                await asyncio.sleep(0)

    def check(self) -> None:
        bugs = [f"{m.text}\n{m.fields.get('trace')}" for m in self.notices if m.what == "bug"]
        assert not bugs, "\n".join(bugs)
        assert not self.faults, self.faults
        broken = {mta.name: mta.broken for mta in self.mtas if mta.broken}
        assert not broken, broken

    async def finish(self) -> None:
        """Every client goes, time passes: nothing may be left of anything."""
        for client in self.clients:
            client.reset()
        listener = self.listener
        await until(lambda: not listener.sessions or bool(self.faults), "sessions end")
        self.check()
        self.pass_time(LONG_S)
        for mta in self.mtas:
            await until(lambda mta=mta: not mta.open, f"connections to {mta.name} end")  # type: ignore[misc]
        self.pass_time(LONG_S)
        await until(lambda: not any(self._left().values()), "connections end")
        self.check()
        router = self.worker._router
        assert router is not None
        assert not any(len(target.queue) for target in router.targets.values())
        budget = listener.context.replay_budget
        assert (budget.used_memory_bytes, budget.used_file_bytes) == (0, 0)
        assert not self._waiters(), "somebody still waits"
        started = sum(m.transactions for m in self.messages if isinstance(m, SessionEnded))
        assert started == len(self.ends), "each transaction ends exactly once"

    def _left(self) -> dict[tuple[str, str], int]:
        router = self.worker._router
        assert router is not None
        backends = router._all_backends
        return {backend.key: backend.connections + len(backend._seekers) for backend in backends}
