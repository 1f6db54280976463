"""Settings and snapshots for the data plane's tests, from a few words.

Owns what a test may vary. Invariant: what is not named has the default of smtplb/settings.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from smtplb.messages import BackendStanding, BackendState, Snapshot
from smtplb.settings import (
    Address,
    BackendSettings,
    BareNewline,
    BudgetSettings,
    Condition,
    ConnectionSettings,
    Domains,
    GroupMember,
    GroupMode,
    GroupSettings,
    ListenerLimits,
    ListenerSettings,
    Policy,
    PoolSettings,
    QueueSettings,
    ReceivedMode,
    ReplaySettings,
    TimeoutSettings,
    TrafficSettings,
)

USABLE = frozenset({BackendState.UP, BackendState.SLOW_START})
LAST_RESORT = frozenset({BackendState.DOWN, BackendState.EJECTED, BackendState.UNPROVEN})


@dataclass
class Setup:
    """`pools`: names of backends by pool, "A B". `target`: of the one listener; the first pool if it is empty."""

    pools: dict[str, str] = field(default_factory=lambda: {"p": "A"})
    target: str = ""
    policy: Policy = Policy.ROUND_ROBIN
    groups: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    backup: frozenset[str] = frozenset()
    accept: tuple[str, ...] | None = None  # recipient domains
    bare_newline: str = "normalize"
    attempts: int = 3
    limits: dict[str, Any] = field(default_factory=dict)
    timeouts: dict[str, float] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)
    keep: dict[str, Any] = field(default_factory=dict)  # ConnectionSettings
    received: str = "never"  # so that what goes in is what comes out
    replay: dict[str, Any] = field(default_factory=dict)
    queue: dict[str, Any] = field(default_factory=dict)
    max_connections: int | None = None
    states: dict[str, BackendState] = field(default_factory=dict)  # by backend; UP if absent

    @property
    def names(self) -> list[str]:
        return [name for backends in self.pools.values() for name in backends.split()]

    def traffic(self, addresses: dict[str, Address]) -> TrafficSettings:
        accept = None
        if self.accept is not None:
            accept = (Condition(recipient_domain=Domains(exact=frozenset(self.accept))),)
        listener = ListenerSettings(
            name="in",
            binds=(),
            target=self.target or next(iter(self.pools)),
            accept=accept,
            bare_newline=BareNewline(self.bare_newline),
            limits=ListenerLimits(**self.limits),
        )
        return TrafficSettings(
            hostname="lb.test",
            listeners=(listener,),
            pools=tuple(self._pool(name, addresses) for name in self.pools),
            groups=tuple(
                GroupSettings(
                    name=name,
                    mode=GroupMode.ACTIVE_ACTIVE,
                    members=tuple(GroupMember(pool, share) for pool, share in shares),
                )
                for name, shares in self.groups.items()
            ),
            attempts=self.attempts,
            replay=ReplaySettings(**({"shared_memory_bytes": 0} | self.replay)),
        )

    def _pool(self, pool: str, addresses: dict[str, Address]) -> PoolSettings:
        backends = tuple(
            BackendSettings(
                pool=pool,
                name=name,
                address=addresses[name],
                weight=self.weights.get(name, 1),
                backup=name in self.backup,
                connections=ConnectionSettings(**self.keep),
                timeouts=TimeoutSettings(**self.timeouts),
                received=ReceivedMode(self.received),
                max_connections=self.max_connections,
            )
            for name in self.pools[pool].split()
        )
        return PoolSettings(
            name=pool,
            backends=backends,
            policy=self.policy,
            budget=BudgetSettings(**self.budget),
            queue=QueueSettings(**self.queue),
        )

    def snapshot(self, generation: int, addresses: dict[str, Address]) -> Snapshot:
        standings = {}
        for pool, backends in self.pools.items():
            for name in backends.split():
                state = self.states.get(name, BackendState.UP)
                standings[pool, name] = BackendStanding(
                    state=state,
                    usable=state in USABLE,
                    last_resort=state in LAST_RESORT,
                    weight=self.weights.get(name, 1),
                    reachable=state is not BackendState.DOWN,
                )
        return Snapshot(generation, self.traffic(addresses), standings, dict(self.groups))
