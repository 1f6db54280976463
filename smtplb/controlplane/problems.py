"""What is wrong, worst first, and what to do about it.

Owns which states are problems, their words and their anchors in docs/problems.md. Does not own the states:
it reads views.
Invariant: every anchor in ANCHORS is a heading of docs/problems.md, and no other anchor is ever given out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from smtplb.controlplane.views import BackendView, GroupView, ListenerView, PoolView, Problem

FAILING, DEGRADED = "failing", "degraded"

# In the order in which they are listed, within a severity.
ANCHORS = (
    "listener-unusable",
    "pool-unusable",
    "group-failed-over",
    "failback-waits",
    "backend-421",
    "backend-refuses",
    "backend-down",
    "backend-unproven",
    "operator-drain",
    "starting",
    "stopping",
)

_REPLY = re.compile(r"[45][0-9][0-9][ -]")


def find_problems(
    listeners: list[ListenerView], groups: list[GroupView], pools: list[PoolView], *, now: float, phase: str
) -> list[Problem]:
    """`now`: unix time. `phase`: "starting" | "serving" | "stopping" | "stopped"."""
    members = {group.name: [member.pool for member in group.members] for group in groups}
    by_name = {pool.name: pool for pool in pools}
    found = [
        _listener(listener, [by_name[name] for name in members.get(listener.target, [listener.target])])
        for listener in listeners
        if not listener.usable_backends
    ]
    direct = {listener.target for listener in listeners}
    found += [_pool(pool) for pool in pools if pool.name not in direct and not _usable(pool)]
    found += [problem for group in groups for problem in _group(group)]
    found += [problem for pool in pools for backend in pool.backends for problem in _backend(backend, now)]
    found += _phase(phase)
    found.sort(key=lambda problem: (problem.severity != FAILING, ANCHORS.index(problem.anchor)))
    return found


def condition(problems: Iterable[Problem]) -> str:
    severities = {problem.severity for problem in problems}
    return FAILING if FAILING in severities else DEGRADED if DEGRADED in severities else "ok"


def for_so_long(seconds: float) -> str:
    """14 s, 14 min, 3 h, 5 d: the largest unit that fits, rounded down."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _usable(pool: PoolView) -> bool:
    return any(backend.usable for backend in pool.backends)


def _listener(listener: ListenerView, pools: list[PoolView]) -> Problem:
    states = {backend.state for pool in pools for backend in pool.backends}
    text = f"no backend of {listener.target} is usable"
    if states & {"down", "unproven"}:
        text += (
            "; those that are down are tried all the same, else clients are answered 4xx and keep their mail"
        )
        hint = "bring one backend back: see its own problem below"
    else:
        text += "; all are in drain or maint: clients are answered 421 4.3.2 and keep their mail"
        hint = "set a backend to ready"
    return Problem(FAILING, listener.name, text, hint, "listener-unusable")


def _pool(pool: PoolView) -> Problem:
    return Problem(
        DEGRADED,
        pool.name,
        f"none of its {len(pool.backends)} backends is usable",
        "other pools of its group take the load; look at its backends",
        "pool-unusable",
    )


def _group(group: GroupView) -> Iterator[Problem]:
    missing = _missing(group)
    if not missing:
        return
    names = ", ".join(missing)
    if group.failback_waits:
        yield Problem(
            DEGRADED,
            group.name,
            f"{names} could take load again and waits: fail-back is manual",
            "when you are sure, bring it back by hand",
            "failback-waits",
        )
        return
    taken_by = ", ".join(group.active)
    back = "" if group.failback_in_s is None else f"; fail-back in {for_so_long(group.failback_in_s)}"
    yield Problem(
        DEGRADED,
        group.name,
        f"load goes to {taken_by} instead of {names}: {group.reason}{back}",
        f"look at the backends of {names}",
        "group-failed-over",
    )


def _missing(group: GroupView) -> list[str]:
    """Pools that would take load if all were well, and take none."""
    if group.mode == "active-passive":
        preferred = group.members[0].pool
        return [] if preferred in group.active else [preferred]
    return [member.pool for member in group.members if member.configured_share and not member.share]


def _backend(backend: BackendView, now: float) -> Iterator[Problem]:
    where = f"{backend.pool}/{backend.name}"
    so_long = for_so_long(now - backend.since)
    match backend.state:
        case "down":
            anchor, hint = _down_because(backend)
            yield Problem(DEGRADED, where, f"down for {so_long}: {backend.check.last_text}", hint, anchor)
        case "unproven":
            yield Problem(DEGRADED, where, "not checked yet", "wait for its first check", "backend-unproven")
        case "drain" | "maint":
            why = f", {backend.operator.reason}" if backend.operator.reason else ""
            until = backend.operator.until
            end = "" if until is None else f", {for_so_long(until - now)} more"
            text = f"{backend.state} by the operator for {so_long}{why}{end}"
            yield Problem(
                DEGRADED, where, text, "set it to ready when it may take mail again", "operator-drain"
            )


def _down_because(backend: BackendView) -> tuple[str, str]:
    """Anchor and hint, from the words of the last failed check."""
    text = backend.check.last_text
    if text.startswith("421"):
        return "backend-421", (
            "it has no free session: raise its limit (Postfix default_process_limit, Exim smtp_accept_max), "
            "or send it less by weight"
        )
    if _REPLY.match(text):
        return "backend-refuses", "it answers, and refuses this host: look into its log and access rules"
    return "backend-down", f"is the MTA running, and reachable at {backend.address} from here?"


def _phase(phase: str) -> list[Problem]:
    if phase == "starting":
        return [
            Problem(DEGRADED, "smtplb", "the first checks are not over", "wait a few seconds", "starting")
        ]
    if phase in ("stopping", "stopped"):
        return [
            Problem(
                DEGRADED, "smtplb", "stopping: sessions end at the next message", "nothing to do", "stopping"
            )
        ]
    return []
