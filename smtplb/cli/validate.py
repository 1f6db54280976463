"""`smtplb validate [FILE]`: is the configuration good, and what does it say?

Owns the words of the summary. Does not own the checks (config/).
Invariant: exit 0 exactly if `smtplb run` would take the file; mistakes go to stderr, one a line, the summary
to stdout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network

import click

from smtplb.config.errors import ConfigErrors
from smtplb.config.load import load
from smtplb.config.scalars import format_duration, format_size
from smtplb.settings import (
    CheckLevel,
    Condition,
    Domains,
    FailbackMode,
    GroupMode,
    GroupSettings,
    ListenerSettings,
    Network,
    PoolSettings,
    Settings,
)

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
    pools = {pool.name: pool for pool in traffic.pools}
    groups = {group.name: group for group in traffic.groups}
    backends = sum(len(pool.backends) for pool in traffic.pools)
    yield (
        f"{settings.source}: fine. {_count(len(traffic.listeners), 'listener')}, "
        f"{_count(len(pools), 'pool')}, {_count(backends, 'backend')}; this host is {traffic.hostname}"
    )
    for listener in traffic.listeners:
        yield ""
        yield from _listener(listener, pools, groups)
    reached = {pool for listener in traffic.listeners for pool in _pools_of(listener, groups)}
    unused = sorted(pools.keys() - reached)
    if unused:
        yield ""
        yield f"reached by no listener: {_some([f'pool {name}' for name in unused])}"


def _listener(
    listener: ListenerSettings, pools: dict[str, PoolSettings], groups: dict[str, GroupSettings]
) -> Iterator[str]:
    yield f"listener {listener.name}: {', '.join(map(str, listener.binds))}"
    group = groups.get(listener.target)
    if group is not None:
        yield f"  to group {group.name}, {_mode(group)}"
        for member in group.members:
            share = f" (share {member.share})" if group.mode is GroupMode.ACTIVE_ACTIVE else ""
            yield f"    {_pool(pools[member.pool])}{share}"
    else:
        yield f"  to {_pool(pools[listener.target])}"
    yield from _who_may_send(listener)


def _pools_of(listener: ListenerSettings, groups: dict[str, GroupSettings]) -> list[str]:
    group = groups.get(listener.target)
    return [listener.target] if group is None else [member.pool for member in group.members]


def _mode(group: GroupSettings) -> str:
    back = "back by hand"
    if group.failback_mode is FailbackMode.AUTO:
        back = f"back after {format_duration(group.failback_delay_s)}"
    return f"{group.mode}; load goes on below {group.failover_below_ratio:.0%}, {back}"


def _pool(pool: PoolSettings) -> str:
    backups = sum(backend.backup for backend in pool.backends)
    with_backups = f" ({_count(backups, 'backup')})" if backups else ""
    checks = sorted({_check(backend.check.level, backend.check.interval_s) for backend in pool.backends})
    count = _count(len(pool.backends), "backend")
    return f"pool {pool.name}: {count}{with_backups}, {pool.policy}, {_some(checks)}"


def _check(level: CheckLevel, interval_s: float) -> str:
    return "no checks" if level is CheckLevel.OFF else f"check {level} every {format_duration(interval_s)}"


# The relay question.


def _who_may_send(listener: ListenerSettings) -> Iterator[str]:
    if listener.accept is None:
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
