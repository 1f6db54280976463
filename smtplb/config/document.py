"""The whole configuration: sections in the order in which they depend on each other, then the rules between
them.

Owns that order, our own host name, and the assembly of Settings. Does not own files or YAML (load.py).
Invariant: Settings are made only if there was no mistake at all.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from smtplb.config.checker import Checker
from smtplb.config.errors import ConfigErrors, quote
from smtplb.config.groups import read_groups
from smtplb.config.listeners import Binds, read_listeners
from smtplb.config.networks import read_networks
from smtplb.config.pools import read_pools
from smtplb.config.readers import AUTO
from smtplb.config.relay_guard import whence
from smtplb.config.routes import read_routes
from smtplb.config.scalars import format_size, hostname
from smtplb.config.schema import Admin, Defaults, Document, InDoubt, Log, Probes, Replay, Shutdown
from smtplb.config.targets import Targets
from smtplb.settings import (
    Address,
    AdminSettings,
    ListenerSettings,
    LogSettings,
    ReplaySettings,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)

# Sections that are read by themselves, so that a mistake in one hides nothing in another.
APART = (
    "shutdown",
    "replay",
    "in_doubt",
    "networks",
    "defaults",
    "listeners",
    "routes",
    "groups",
    "pools",
    "admin",
    "probes",
    "log",
)


def read_document(checker: Checker, source: str) -> Settings:
    """Raises ConfigErrors with all mistakes, those that the checker held before included."""
    document = checker.read(Document, (), apart=APART)
    checker.read(Defaults, ("defaults",), apart=("pool",))
    networks = read_networks(checker)
    pools = read_pools(checker)
    groups = read_groups(checker, pools)
    routes = read_routes(checker, networks, pools, groups)
    binds = Binds(checker)
    listeners = read_listeners(checker, networks, Targets(pools, groups, routes), binds)
    settings = Settings(
        traffic=TrafficSettings(
            hostname=_hostname(checker, document.hostname, listeners),
            listeners=tuple(listeners),
            pools=tuple(pools.values()),
            groups=tuple(groups.values()),
            routes=tuple(routes.values()),
            **_replay(checker, document.state_dir),
            **_in_doubt(checker),
        ),
        admin=_admin(checker, binds),
        probes_bind=_probes(checker, binds),
        log=LogSettings(**checker.read(Log, ("log",)).written()),
        shutdown=ShutdownSettings(**checker.read(Shutdown, ("shutdown",)).written()),
        workers=document.workers,
        worker_cpu_affinity=_worker_cpu_affinity(checker, document),
        sha256=checker.files.sha256,
        sha256_written=checker.files.sha256_written,
        lists=checker.files.lists,
        source=source,
    )
    if checker.errors:
        raise ConfigErrors(checker.errors)
    return settings


def _worker_cpu_affinity(checker: Checker, document: Document) -> bool:
    if document.worker_cpu_affinity and document.workers == 1 and checker.text_at(("workers",)) != AUTO:
        message = "no effect with one worker, which is the main process: write workers: auto, or a number"
        checker.fault(("worker_cpu_affinity",), message, of_key=True)
    return document.worker_cpu_affinity


def _replay(checker: Checker, state_dir: str | None) -> dict[str, Any]:
    """Each budget has room for the one before it."""
    section = checker.read(Replay, ("replay",))
    written = {key: value for key, value in section.written().items() if key != "attempts"}
    replay = ReplaySettings(directory=state_dir, **written)
    for key, value, bound, most in (
        ("memory", replay.memory_bytes, "per_message", replay.per_message_bytes),
        ("per_message", replay.per_message_bytes, "total", replay.total_bytes),
    ):
        if value <= most or not all(checker.is_sound(("replay", each)) for each in (key, bound)):
            continue
        if checker.wrote(("replay", key)):
            checker.fault(("replay", key), f"must not be more than {bound} ({format_size(most)})")
        else:
            message = f"must not be less than {key} ({format_size(value)} unless it is written)"
            checker.fault(("replay", bound), message)
    attempts = {} if section.attempts is None else {"attempts": section.attempts}
    return {"replay": replay, **attempts}


def _in_doubt(checker: Checker) -> dict[str, Any]:
    section = checker.read(InDoubt, ("in_doubt",))
    return {} if section.remember_s is None else {"in_doubt_remember_s": section.remember_s}


def _admin(checker: Checker, binds: Binds) -> AdminSettings:
    section = checker.read(Admin, ("admin",))
    if section.bind is not None:
        binds.claim(("admin", "bind"), section.bind)
    if section.token is not None and not checker.wrote(("admin", "bind")):
        message = "no effect without admin.bind: the socket asks for no token"
        checker.fault(("admin", "token_file"), message, of_key=True)
    return AdminSettings(**section.written())


def _probes(checker: Checker, binds: Binds) -> Address | None:
    section = checker.read(Probes, ("probes",))
    if section.bind is not None:
        binds.claim(("probes", "bind"), section.bind)
    return section.bind


# Our own name.


def _hostname(checker: Checker, written: str | None, listeners: Sequence[ListenerSettings]) -> str:
    """As written, else this host's. Where others can reach us it must have a dot: RFC 5321 4.1.1.1 wants a
    full name.
    """
    public = any(map(whence, listeners))
    if checker.wrote(("hostname",)):
        if public and written is not None and "." not in written:
            checker.fault(("hostname",), f"{quote(written)} has no dot: other hosts are to see a full name")
        return written or ""
    found = _this_host(full=public)
    if public and "." not in found:
        message = f"missing, and this host is just called {quote(found)}: write hostname: lb1.example.net"
        checker.fault(("hostname",), message)
    return found


def _this_host(*, full: bool) -> str:
    name = socket.gethostname()
    if full and "." not in name:
        name = socket.getfqdn(name)  # may ask the DNS: only where it matters
        if name.startswith("localhost"):
            name = socket.gethostname()
    try:
        return hostname(name)
    except ValueError:  # this host has a name that no SMTP peer would take
        return "localhost"
