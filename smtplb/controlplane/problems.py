"""What is wrong, worst first, and what to do about it.

Owns which states are problems, their words and their anchors in docs/problems.md. Does not own the states:
it reads views.
Invariant: every anchor in ANCHORS is a heading of docs/problems.md, and no other anchor is ever given out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from smtplb.controlplane.views import (
    BackendView,
    CertificateView,
    GroupView,
    ListenerView,
    PoolView,
    Problem,
)

FAILING, DEGRADED = "failing", "degraded"

# In the order in which they are listed, within a severity.
ANCHORS = (
    "listener-unusable",
    "reload-failed",
    "certificate",
    "pool-unusable",
    "group-failed-over",
    "failback-waits",
    "identity-unproven",
    "tls-backend",
    "backend-421",
    "backend-refuses",
    "backend-down",
    "backend-ejected",
    "backend-unproven",
    "operator-drain",
    "starting",
    "stopping",
)

# Renewal by ACME is tried 30 days before the end, and again every day: at 14 days it has failed for two weeks.
EXPIRES_SOON_S = 14 * 86_400.0

_REPLY = re.compile(r"[45][0-9][0-9][ -]")


def find_problems(
    listeners: list[ListenerView],
    groups: list[GroupView],
    pools: list[PoolView],
    *,
    now: float,
    phase: str,
    reload_failure: str = "",
) -> list[Problem]:
    """`now`: unix time. `phase`: "starting" | "serving" | "stopping" | "stopped". `reload_failure`: of the last reload."""
    by_name = {pool.name: pool for pool in pools}
    found = [problem for listener in listeners for problem in _listener(listener, by_name)]
    found += [problem for listener in listeners for problem in _certificates(listener, now)]
    direct = {target for listener in listeners for target in listener.targets}
    found += [_pool(pool) for pool in pools if pool.name not in direct and not _usable(pool)]
    found += [problem for pool in pools for problem in _authorities(pool)]
    found += [problem for group in groups for problem in _group(group)]
    found += [problem for pool in pools for backend in pool.backends for problem in _backend(backend, now)]
    found += _phase(phase)
    if reload_failure:
        found.append(
            Problem(
                DEGRADED,
                "configuration",
                f"not reloaded: {reload_failure}; the one before stays in use",
                "what does `smtplb validate` say? Then `smtplb reload`",
                "reload-failed",
            )
        )
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


def expires_soon(expires: float, now: float) -> bool:
    """Or it is over already."""
    return expires - now < EXPIRES_SOON_S


def expiry_words(expires: float, now: float) -> str:
    if expires > now:
        return f"expires in {for_so_long(expires - now)}"
    return f"expired {for_so_long(now - expires)} ago"


def _usable(pool: PoolView) -> bool:
    return any(backend.usable for backend in pool.backends)


def _listener(listener: ListenerView, by_name: dict[str, PoolView]) -> Iterator[Problem]:
    """One for each pool or group that its mail goes to and that has nobody to take it."""
    for target, names in listener.targets.items():
        pools = [by_name[name] for name in names]
        if any(_usable(pool) for pool in pools):
            continue
        backends = [backend for pool in pools for backend in pool.backends]
        if any(backend.last_resort for backend in backends):
            how = "those that are down are tried all the same, else clients are answered 4xx and keep their mail"
            hint = "bring one backend back: see its own problem below"
        else:
            answer = "451 4.4.1" if listener.usable_backends else "421 4.3.2"
            taken_out = {backend.state for backend in backends} <= {"drain", "maint"}
            why = "all are in drain or maint" if taken_out else "none may be tried"
            how = f"{why}: clients are answered {answer} and keep their mail"
            hint = "set a backend to ready" if taken_out else "see the problems of its backends below"
        yield Problem(
            FAILING, listener.name, f"no backend of {target} is usable; {how}", hint, "listener-unusable"
        )


def _certificates(listener: ListenerView, now: float) -> Iterator[Problem]:
    for certificate in listener.certificates:
        if certificate.problem:
            yield _unusable_certificate(listener, certificate)
        if certificate.expires is None or not expires_soon(certificate.expires, now):
            continue
        over = certificate.expires <= now
        text = f"certificate {certificate.file} {expiry_words(certificate.expires, now)}"
        text += ": clients that verify it send nothing" if over else ""
        hint = "renew it in place: it is read again within 10 seconds"
        yield Problem(FAILING if over else DEGRADED, listener.name, text, hint, "certificate")


def _unusable_certificate(listener: ListenerView, certificate: CertificateView) -> Problem:
    severity = DEGRADED
    if certificate.in_use:
        rest = "the one that was read before stays in use until the next start"
    elif any(each.in_use for each in listener.certificates):
        rest = "clients that ask for its names are shown another one"
    else:
        severity = FAILING
        rest = "no session can begin" if listener.tls == "implicit" else "STARTTLS is answered 454"
    text = f"certificate {certificate.file} cannot be used: {certificate.problem}; {rest}"
    hint = "put it right: it is read again within 10 seconds"
    return Problem(severity, listener.name, text, hint, "certificate")


def _authorities(pool: PoolView) -> Iterator[Problem]:
    for words in dict.fromkeys(backend.ca_problem for backend in pool.backends if backend.ca_problem):
        text = f"CA file cannot be used: {words}; the one that was read before, if any, stays in use"
        hint = "put it right: it is read again within 10 seconds"
        yield Problem(DEGRADED, pool.name, text, hint, "certificate")


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
        case "ejected":
            until = backend.ejected_until
            end = "" if until is None else f", {for_so_long(60 * math.ceil((until - now) / 60))} more"
            hint = "it passes its checks and fails with mail: look into its log"
            yield Problem(
                DEGRADED, where, f"ejected for {so_long}{end}: {backend.reason}", hint, "backend-ejected"
            )
        case "unproven" if not backend.last_resort:
            now_says = backend.check.last_text
            rest = "" if now_says == backend.reason else f"; now: {now_says}"
            text = f"gets no mail for {so_long}: {backend.reason}{rest}"
            yield Problem(DEGRADED, where, text, _IDENTITY_HINTS[backend.identity], "identity-unproven")
        case "unproven":
            yield Problem(DEGRADED, where, "not checked yet", "wait for its first check", "backend-unproven")
        case "drain" | "maint":
            why = f", {backend.operator.reason}" if backend.operator.reason else ""
            until = backend.operator.until
            end = "" if until is None else f", {for_so_long(60 * math.ceil((until - now) / 60))} more"
            text = f"{backend.state} by the operator for {so_long}{why}{end}"
            yield Problem(
                DEGRADED, where, text, "set it to ready when it may take mail again", "operator-drain"
            )
    expires = backend.certificate_expires
    if backend.tls_verified and expires is not None and expires_soon(expires, now):
        text = f"its certificate {expiry_words(expires, now)}"
        yield Problem(DEGRADED, where, text, "renew it at the backend", "certificate")


_MAY_SEND = "let this host send it (Postfix smtpd_authorized_{0}_hosts), or set another identity for the pool"
_PROXY = (
    "let it take the PROXY header from this host (Postfix smtpd_upstream_proxy_protocol, Exim hosts_proxy)"
)
_IDENTITY_HINTS = {
    "xclient": _MAY_SEND.format("xclient"),
    "xforward": _MAY_SEND.format("xforward"),
    "proxy-v1": _PROXY,
    "proxy-v2": _PROXY,
}


def _down_because(backend: BackendView) -> tuple[str, str]:
    """Anchor and hint, from the words of the last failed check."""
    text = backend.check.last_text
    if text.startswith("TLS: "):
        return "tls-backend", _tls_hint(text)
    if text.startswith("421"):
        return "backend-421", (
            "it has no free session: raise its limit (Postfix default_process_limit, Exim smtp_accept_max), "
            "or send it less by weight"
        )
    if _REPLY.match(text):
        return "backend-refuses", "it answers, and refuses this host: look into its log and access rules"
    return "backend-down", f"is the MTA running, and reachable at {backend.address} from here?"


def _tls_hint(text: str) -> str:
    if "CA file" in text:
        return "the pool's tls.ca cannot be read here"
    if "verify failed" in text:
        return "tls.ca must hold the authority of its certificate, tls.server_name a name in it"
    if "STARTTLS" in text:
        return "switch TLS on at the backend (Postfix smtpd_tls_cert_file, Exim tls_advertise_hosts)"
    return "look into its log: does it take TLS 1.2 or 1.3 on this port, and is its certificate in order?"


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
