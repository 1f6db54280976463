"""`smtplb validate [FILE]`: is the configuration good, and what does it say?

Owns the words of the summary. Does not own the checks (config/).
Invariant: exit 0 exactly if `smtplb run` would take the file; mistakes go to stderr, one a line, the summary
to stdout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

import click

from smtplb.config.errors import ConfigErrors
from smtplb.config.load import load
from smtplb.config.relay_guard import whence
from smtplb.config.scalars import format_duration, format_size
from smtplb.settings import (
    AuthMode,
    BackendSettings,
    BackTlsMode,
    BalancePer,
    CheckLevel,
    ClientCertificates,
    Condition,
    Domains,
    FailbackMode,
    FrontTlsMode,
    FrontTlsSettings,
    GroupMode,
    GroupSettings,
    ListenerSettings,
    Network,
    OtherRoute,
    PoolSettings,
    RouteSettings,
    Settings,
)

End: TypeAlias = PoolSettings | GroupSettings | RouteSettings
Ends: TypeAlias = Mapping[str, End]

DEFAULT_FILE = "/etc/smtplb/smtplb.yaml"
FILE_VARIABLE = "SMTPLB_CONFIG"
MAX_SHOWN = 6  # values of a list; the rest is counted

_EVERYWHERE = frozenset({IPv4Network("0.0.0.0/0"), IPv6Network("::/0")})


@click.command()
@click.argument("file", envvar=FILE_VARIABLE, default=DEFAULT_FILE)
@click.pass_context
def validate(context: click.Context, file: str) -> None:
    """Check FILE and say what it does.

    FILE defaults to $SMTPLB_CONFIG, else to /etc/smtplb/smtplb.yaml. All mistakes are shown, each with file,
    line and column. Exit status: 0 if there is none, else 1.
    """
    try:
        settings = load(file)
    except ConfigErrors as errors:
        click.echo(str(errors), err=True)
        count = len(errors.errors)
        click.echo(f"{file}: {_count(count, 'mistake')}. Nothing was started or changed.", err=True)
        context.exit(1)
    click.echo("\n".join(summary(settings)))


def summary(settings: Settings) -> Iterator[str]:
    """The configuration in a screenful: who listens, where mail goes, and who may send."""
    traffic = settings.traffic
    ends: dict[str, End] = {pool.name: pool for pool in traffic.pools}
    ends |= {group.name: group for group in traffic.groups}
    ends |= {route.name: route for route in traffic.routes}
    backends = sum(len(pool.backends) for pool in traffic.pools)
    workers = f"; {settings.workers} workers" if settings.workers > 1 else ""
    yield (
        f"{settings.source}: fine. {_count(len(traffic.listeners), 'listener')}, "
        f"{_count(len(traffic.pools), 'pool')}, {_count(backends, 'backend')}; "
        f"this host is {traffic.hostname}{workers}"
    )
    for listener in traffic.listeners:
        yield ""
        yield from _listener(listener, ends)
    reached = {pool for listener in traffic.listeners for pool in _pools_of(listener.target, ends)}
    unused = sorted({pool.name for pool in traffic.pools} - reached)
    if unused:
        yield ""
        yield f"reached by no listener: {_some([f'pool {name}' for name in unused])}"


def _listener(listener: ListenerSettings, ends: Ends) -> Iterator[str]:
    yield f"listener {listener.name}: {', '.join(map(str, listener.binds))}"
    yield f"  {_front_tls(listener.tls)}"
    if listener.auth is AuthMode.RELAY:
        yield f"  AUTH by the backends{', also without TLS' if listener.auth_without_tls else ''}"
    yield from _who_connects(listener)
    end = ends[listener.target]
    if isinstance(end, RouteSettings):
        yield from _route(end, listener.other_route, ends)
    else:
        yield from _end("to ", end, ends, "  ")
    yield from _who_may_send(listener)


def _pools_of(target: str, ends: Ends) -> list[str]:
    """Names of the pools that mail to `target` can end at, each once."""
    end = ends[target]
    if isinstance(end, PoolSettings):
        return [target]
    if isinstance(end, GroupSettings):
        return [member.pool for member in end.members]
    pools = [pool for rule in end.rules if rule.target is not None for pool in _pools_of(rule.target, ends)]
    return list(dict.fromkeys(pools))


# Where mail goes.


def _route(route: RouteSettings, other_route: OtherRoute, ends: Ends) -> Iterator[str]:
    yield f"  to route {route.name}"
    for rule in route.rules:
        when = (
            f"if {describe(rule.when)}: "
            if rule.when is not None
            else "else: "
            if len(route.rules) > 1
            else ""
        )
        if rule.refuse is not None:
            yield f"    {when}refused, {rule.refuse.code} {rule.refuse.enhanced} {rule.refuse.text}"
        elif rule.target is not None:
            yield from _end(when, ends[rule.target], ends, "    ")
    if len({rule.target for rule in route.rules if rule.target is not None}) > 1:
        what = "are deferred with 452" if other_route is OtherRoute.DEFER else "go along with the first"
        yield f"    recipients of a message whose way is another {what} (other_route: {other_route})"


def _end(prefix: str, end: End, ends: Ends, indent: str) -> Iterator[str]:
    """A pool, or a group and its pools."""
    if isinstance(end, PoolSettings):
        yield f"{indent}{prefix}{_pool(end)}"
    elif isinstance(end, GroupSettings):
        yield f"{indent}{prefix}group {end.name}, {_mode(end)}"
        for member in end.members:
            share = f"(share {member.share})" if end.mode is GroupMode.ACTIVE_ACTIVE else ""
            pool = ends[member.pool]
            assert isinstance(pool, PoolSettings)
            yield f"{indent}  {_pool(pool)} {share}".rstrip()


def _mode(group: GroupSettings) -> str:
    back = "back by hand"
    if group.failback_mode is FailbackMode.AUTO:
        back = f"back after {format_duration(group.failback_delay_s)}"
    return f"{group.mode}; load goes on below {group.failover_below_ratio:.0%}, {back}"


def _pool(pool: PoolSettings) -> str:
    backups = sum(backend.backup for backend in pool.backends)
    with_backups = f" ({_count(backups, 'backup')})" if backups else ""
    facts: list[str] = [pool.policy]
    if pool.balance_per is BalancePer.SESSION:
        facts.append("one backend a session")
    about = [_check, _back_tls, _identity]
    if any(backend.max_connections is not None for backend in pool.backends):
        about.append(_max_connections)
    # Backends of one pool may differ.
    facts += [" / ".join(dict.fromkeys(map(fact, pool.backends))) for fact in about]
    if pool.eject is None:
        facts.append("no ejection")
    return f"pool {pool.name}: {_count(len(pool.backends), 'backend')}{with_backups}, {', '.join(facts)}"


def _check(backend: BackendSettings) -> str:
    check = backend.check
    if check.level is CheckLevel.OFF:
        return "no checks"
    return f"check {check.level} every {format_duration(check.interval_s)}"


def _max_connections(backend: BackendSettings) -> str:
    if backend.max_connections is None:
        return "connections unlimited"
    return f"at most {_count(backend.max_connections, 'connection')} each"


def _identity(backend: BackendSettings) -> str:
    return f"identity {backend.identity}"


# TLS.


def _front_tls(tls: FrontTlsSettings) -> str:
    if tls.mode is FrontTlsMode.OFF:
        return "no TLS"
    files = _some([pair.certificate for pair in tls.certificates])
    clients = ""
    if tls.client_certificates is not ClientCertificates.OFF:
        clients = f", client certificates {tls.client_certificates}"
    return f"TLS: {tls.mode}, {tls.minimum} or later{clients}, {files}"


def _back_tls(backend: BackendSettings) -> str:
    tls = backend.tls
    if tls.mode is BackTlsMode.OFF:
        return "no TLS"
    if tls.mode is BackTlsMode.OPPORTUNISTIC:
        return "TLS where offered"
    return f"TLS {tls.mode} ({'verified' if tls.verify else 'NOT verified'})"


# The relay question.


def _who_connects(listener: ListenerSettings) -> Iterator[str]:
    clients = listener.clients
    if clients.allow is not None:
        yield f"  only clients in {_some(list(map(str, clients.allow)))}"
    if clients.deny:
        yield f"  no clients in {_some(list(map(str, clients.deny)))}"
    for what, fronts in (("PROXY", listener.proxy_protocol_from), ("XCLIENT", listener.xclient_from)):
        if fronts:
            yield f"  clients are as {_some(list(map(str, fronts)))} says with {what}"


def _who_may_send(listener: ListenerSettings) -> Iterator[str]:
    if listener.accept is None:
        if whence(listener):
            yield "  mail is taken from anyone: the backends see each client and decide (identity)"
        else:
            yield "  mail is taken from this host only: no other can connect"
    elif Condition() in listener.accept:
        yield "  mail is taken from ANYONE, for anywhere (accept: anyone): the backends must refuse to relay"
    else:
        yield "  mail is taken"
        for condition in listener.accept:
            yield f"    if {describe(condition)}"


def describe(condition: Condition) -> str:
    """A condition in words."""
    facts = []
    if condition.client is not None:
        facts.append(_clients(condition.client))
    for what, domains in (
        ("HELO is", condition.helo),
        ("the sender is in", condition.sender_domain),
        ("the recipient is in", condition.recipient_domain),
    ):
        if domains is not None:
            facts.append(f"{what} {_some(_domains(domains))}")
    for what, addresses in (("the sender is", condition.sender), ("the recipient is", condition.recipient)):
        if addresses is not None:
            facts.append(f"{what} {_some(sorted(address or '<>' for address in addresses))}")
    if condition.tls is not None:
        facts.append("TLS is on" if condition.tls else "TLS is off")
    if condition.auth is not None:
        facts.append(f"the client is {'' if condition.auth else 'not '}authenticated")
    if condition.size_over_bytes is not None:
        facts.append(f"the message is larger than {format_size(condition.size_over_bytes)}")
    if condition.negated is not None:
        facts.append(f"not ({describe(condition.negated)})")
    return " and ".join(facts) or "anything"


def _clients(networks: Iterable[Network]) -> str:
    networks = list(networks)
    if _EVERYWHERE.issubset(networks):
        return "the client is anyone"
    return f"the client is in {_some(list(map(str, networks)))}"


def _domains(domains: Domains) -> list[str]:
    return [*sorted(domains.exact), *(f"any subdomain of {suffix}" for suffix in sorted(domains.suffixes))]


def _some(words: Collection[str]) -> str:
    shown = list(words)[:MAX_SHOWN]
    more = len(words) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "nothing (an empty list)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
