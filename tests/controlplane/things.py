"""Settings for tests of the control plane, in few words."""

from __future__ import annotations

from smtplb.settings import (
    Address,
    BackendSettings,
    BackTlsSettings,
    CheckLevel,
    CheckSettings,
    FailbackMode,
    GroupMember,
    GroupMode,
    GroupSettings,
    IdentityMode,
    ListenerSettings,
    Policy,
    PoolSettings,
    TrafficSettings,
)


def backend(
    pool: str,
    name: str,
    *,
    port: int = 25,
    weight: int = 1,
    backup: bool = False,
    level: CheckLevel = CheckLevel.EHLO,
    check: CheckSettings | None = None,
    tls: BackTlsSettings | None = None,
    identity: IdentityMode = IdentityMode.NONE,
) -> BackendSettings:
    return BackendSettings(
        pool,
        name,
        Address("127.0.0.1", port),
        weight=weight,
        backup=backup,
        check=check or CheckSettings(level),
        tls=tls or BackTlsSettings(),
        identity=identity,
    )


def pool(name: str, *backends: BackendSettings, policy: Policy = Policy.WEIGHTED) -> PoolSettings:
    return PoolSettings(name, backends, policy)


def listener(name: str, target: str, *binds: Address) -> ListenerSettings:
    return ListenerSettings(name, binds or (Address("127.0.0.1", 0),), target)


def two_sites(failback: FailbackMode = FailbackMode.AUTO) -> TrafficSettings:
    """Listener mx -> group site: east (mx1, mx2) before west (mx3); listener out -> pool west."""
    return TrafficSettings(
        hostname="lb1.test",
        listeners=(listener("mx", "site"), listener("out", "west")),
        pools=(
            pool("east", backend("east", "mx1", weight=2), backend("east", "mx2", weight=2)),
            pool("west", backend("west", "mx3")),
        ),
        groups=(
            GroupSettings(
                "site",
                GroupMode.ACTIVE_PASSIVE,
                (GroupMember("east"), GroupMember("west")),
                failback_mode=failback,
            ),
        ),
    )
