"""Pictures of a control plane for the admin tests: two pools in a group, one more pool, two listeners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smtplb.controlplane.views import (
    BackendView,
    CertificateView,
    CheckView,
    GroupMemberView,
    GroupView,
    ListenerView,
    OperatorView,
    PoolView,
    Problem,
    StatusView,
)
from smtplb.observe.histogram import Histogram

START = 1_783_000_000.0  # 2026-07-02T13:46:40Z


def backend(pool: str, name: str, **changes: Any) -> BackendView:
    view = BackendView(
        pool=pool,
        name=name,
        address=f"10.0.1.{len(pool)}:25",
        backup=False,
        state="up",
        usable=True,
        reason="check: 250 mx1.example.net, first check",
        since=START,
        operator=OperatorView("ready", None, "", None, None),
        check=CheckView("ehlo", "ok", "250 mx1.example.net", START + 5, 0.012, 3, 4.5, 3, 0, state="up"),
        weight=2,
        effective_weight=2,
        in_flight=0,
        connections={"idle": 1, "leased": 0, "connecting": 0},
        attempts={"ok": 7},
        reuse={"new": 1, "reused": 6},
        replies={("final", 250): 7, ("rcpt", 450): 2},
        latency_s={"p50": 0.05, "p99": 0.25},
        certificate_expires=START + 86400,
        final=Histogram([0] * 5 + [7] + [0] * 13, 0.35),
    )
    return replace(view, **changes)


def down(pool: str, name: str) -> BackendView:
    check = CheckView(
        "ehlo", "failed", "421 4.3.2 All server ports are busy", START + 60, 0.004, 3, 2.0, 3, 3, state="down"
    )
    reason = "check: 421 4.3.2 All server ports are busy, 3 of 3"
    return backend(
        pool,
        name,
        state="down",
        usable=False,
        reason=reason,
        check=check,
        latency_s={"p50": None, "p99": None},
    )


def drained(pool: str, name: str) -> BackendView:
    operator = OperatorView("drain", None, "disk", START, START + 7200)
    return backend(
        pool,
        name,
        state="drain",
        usable=False,
        reason="operator: drain, disk",
        operator=operator,
        effective_weight=0,
    )


def pool(name: str, *backends: BackendView, ratio: float = 1.0) -> PoolView:
    return PoolView(name, "weighted", list(backends), ratio, {("connect", "connect"): 4})


def listener(name: str, target: str, **changes: Any) -> ListenerView:
    view = ListenerView(
        name=name,
        binds=["0.0.0.0:25"],
        target=target,
        accepting=True,
        usable_backends=2,
        sessions_open=17,
        sessions_limit=2000,
        sessions_total=901,
        message_bytes=123_456,
        refusals={"syntax": 3},
        transactions={("east", "ok"): 7, ("", "refused"): 2},
        certificates=[CertificateView("tls/mx.pem", START + 6 * 86400, "", True)],
        durations={"east": Histogram([0] * 5 + [7] + [0] * 13, 0.4)},
    )
    return replace(view, **changes)


def status(**changes: Any) -> StatusView:
    view = StatusView(
        hostname="lb1.example.net",
        version="1.2.0",
        condition="degraded",
        started=START,
        config_sha256="3f9c1e" + "0" * 58,
        config_source="/etc/smtplb/smtplb.yaml",
        config_loaded=START,
        problems=[
            Problem(
                "degraded",
                "east/mx2",
                "check said 421 4.3.2 All server ports are busy",
                "raise default_process_limit on mx2",
                "backend-down",
            )
        ],
        listeners=[listener("mx", "site"), listener("submission", "lab", sessions_limit=None)],
        groups=[
            GroupView(
                name="site",
                mode="active-passive",
                members=[GroupMemberView("east", 100, 100, 0.5), GroupMemberView("west", 0, 100, 1.0)],
                active=["east"],
                reason="east is well",
                since=START,
                failback_in_s=None,
                failback_waits=False,
            )
        ],
        pools=[
            pool("east", backend("east", "mx1"), down("east", "mx2"), drained("east", "mx3"), ratio=0.5),
            pool("west", backend("west", "mx1")),
            pool("lab", backend("lab", "10.0.9.9:25", address="10.0.9.9:25")),
        ],
    )
    return replace(view, **changes)
