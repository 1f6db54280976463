"""Views as JSON: names, order and units of the admin API (docs/admin-api.md).

Owns the form. Does not own the facts (controlplane/views.py).
Invariant: times are RFC 3339 in UTC, durations seconds, ratios 0 to 1; every key is there, null when unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from smtplb.controlplane.supervisor import Changes, ReloadPlan
from smtplb.controlplane.views import (
    BackendView,
    CertificateView,
    CheckView,
    GroupView,
    ListenerView,
    OperatorView,
    PoolView,
    Problem,
    ReadinessView,
    StatusView,
)

Json = dict[str, Any]


def when(unix: float | None) -> str | None:
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def status(view: StatusView) -> Json:
    return {
        "condition": view.condition,
        "problems": [problem(each) for each in view.problems],
        "hostname": view.hostname,
        "version": view.version,
        "started": when(view.started),
        "config": {
            "sha256": view.config_sha256,
            "source": view.config_source,
            "loaded": when(view.config_loaded),
            "reload_ok": view.config_reload_ok,
            "reloads": dict(view.config_reloads),
        },
        "worker_restarts": view.worker_restarts,
        "listeners": [listener(each) for each in view.listeners],
        "groups": [group(each) for each in view.groups],
        "pools": [pool(each) for each in view.pools],
    }


def reload_plan(made: ReloadPlan, view: StatusView) -> Json:
    """What a reload changed, and what is in use now."""
    return {
        "sha256": view.config_sha256,
        "loaded": when(view.config_loaded),
        "listeners": _changes(made.listeners),
        "routes": _changes(made.routes),
        "groups": _changes(made.groups),
        "pools": _changes(made.pools),
        "backends": _changes(made.backends),
        "others": list(made.others),
        "ends_sessions": list(made.ends_sessions),
        "reconnects": list(made.reconnects),
    }


def _changes(changes: Changes) -> Json:
    changed = {name: list(keys) for name, keys in changes.changed.items()}
    return {"added": list(changes.added), "removed": list(changes.removed), "changed": changed}


def problem(view: Problem) -> Json:
    return {
        "severity": view.severity,
        "where": view.where,
        "text": view.text,
        "hint": view.hint,
        "anchor": view.anchor,
    }


def listener(view: ListenerView) -> Json:
    outcomes: dict[str, int] = {}
    for (_, outcome), count in view.transactions.items():
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    return {
        "name": view.name,
        "binds": view.binds,
        "to": view.target,
        "accepting": view.accepting,
        "usable_backends": view.usable_backends,
        "sessions": {
            "open": view.sessions_open,
            "limit": view.sessions_limit,
            "total": view.sessions_total,
        },
        "message_bytes": view.message_bytes,
        "refusals": view.refusals,
        "transactions": outcomes,
        "tls": view.tls,
        "certificates": [certificate(each) for each in view.certificates],
        "offers": view.offers,
        "withheld": view.withheld,
    }


def certificate(view: CertificateView) -> Json:
    return {
        "file": view.file,
        "expires": when(view.expires),
        "problem": view.problem,
        "in_use": view.in_use,
    }


def group(view: GroupView) -> Json:
    return {
        "name": view.name,
        "mode": view.mode,
        "pools": [
            {
                "pool": member.pool,
                "share": member.share,
                "configured_share": member.configured_share,
                "usable_ratio": member.usable_ratio,
            }
            for member in view.members
        ],
        "active": view.active,
        "reason": view.reason,
        "since": when(view.since),
        "failback": {"in": view.failback_in_s, "waits": view.failback_waits},
    }


def pool(view: PoolView) -> Json:
    return {
        "name": view.name,
        "policy": view.policy,
        "usable_ratio": view.usable_ratio,
        "retries": _nested(view.retries),
        "backends": [backend(each) for each in view.backends],
    }


def backend(view: BackendView) -> Json:
    return {
        "pool": view.pool,
        "name": view.name,
        "address": view.address,
        "backup": view.backup,
        "state": view.state,
        "usable": view.usable,
        "reason": view.reason,
        "since": when(view.since),
        "operator": operator(view.operator),
        "check": check(view.check),
        "ejected_until": None,  # nothing ejects yet
        "weight": view.weight,
        "effective_weight": view.effective_weight,
        "in_flight": view.in_flight,
        "connections": view.connections,
        "attempts": view.attempts,
        "reuse": view.reuse,
        "replies": _nested(view.replies),
        "latency": view.latency_s,
        "identity": view.identity,
        "tls": {
            "version": view.tls or None,
            "verified": view.tls_verified,
            "certificate_expires": when(view.certificate_expires),
            "ca_problem": view.ca_problem,
        },
        "offers": view.offers if view.seen else None,
    }


def operator(view: OperatorView) -> Json:
    return {
        "state": view.state,
        "weight": view.weight,
        "reason": view.reason,
        "since": when(view.since),
        "until": when(view.until),
    }


def check(view: CheckView) -> Json:
    return {
        "level": view.level,
        "state": view.state,
        "last": {
            "result": view.last_result or None,
            "text": view.last_text,
            "at": when(view.last_at),
            "duration": view.duration_s,
        },
        "in_a_row": view.in_a_row,
        "next_in": view.next_in_s,
        "passed": view.passed,
        "failed": view.failed,
    }


def readiness(view: ReadinessView) -> Json:
    return {"ready": view.ready, "reasons": view.reasons, "listeners": view.listeners}


def _nested(counts: Mapping[tuple[str, str], int] | Mapping[tuple[str, int], int]) -> dict[str, Json]:
    nested: dict[str, Json] = {}
    for (first, second), count in counts.items():
        nested.setdefault(first, {})[str(second)] = count
    return nested
