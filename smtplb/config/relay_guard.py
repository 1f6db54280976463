"""The relay guard: no listener that others can reach takes mail for the world unless the operator signed
that.

Owns when `accept` may be left out, and which conditions restrict nothing. Does not own judging mail
(policy/routing.py).
Invariant: a listener without `accept` can be reached from this host only.

Backends often trust our address (mynetworks, relay host lists, receive connectors for anonymous relay), and
with identity none they see no other. So whoever may send through us may send to the whole internet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from smtplb.config.addresses import is_loopback
from smtplb.config.checker import Checker
from smtplb.config.conditions import When
from smtplb.config.schema import ANYONE
from smtplb.config.tree import Path
from smtplb.settings import Address

EXAMPLE = "accept: [{recipient_domain: [example.org]}, {client: [10.0.0.0/8]}]"

MAX_NAMED = 10


def guard(checker: Checker, path: Path, binds: Sequence[Address], pools: Collection[str]) -> None:
    """A listener without `accept`. `pools`: those that its mail can reach; may be empty if the target was a
    mistake.
    """
    public = [bind for bind in binds if not is_loopback(bind)]
    if not public or checker.wrote((*path, "accept")):
        return
    whose = (
        f"the backends of {'pool' if len(pools) == 1 else 'pools'} {', '.join(list(pools)[:MAX_NAMED])}"
        if pools
        else "the backends"
    )
    checker.fault(
        (*path, "accept"),
        f"missing, and {public[0]} can be reached from other hosts. To {whose} all mail comes from this "
        "host (identity: none): any of them that trusts it (mynetworks, relay host list, anonymous receive "
        "connector) would relay for the whole internet. Write whose mail is taken, such as "
        f"{EXAMPLE}, or accept: {ANYONE} if that is what you want",
    )


def judge_accept(checker: Checker, path: Path, binds: Sequence[Address], conditions: Sequence[When]) -> None:
    """Conditions that hold for everyone would be `anyone` in disguise: that word is asked for instead."""
    if checker.text_at(path) == ANYONE:
        return
    public = not all(map(is_loopback, binds))
    items = [path] if checker.is_mapping(path) else checker.items(path)
    for item, condition in zip(items, conditions, strict=True):
        for where, part in _with_negated(item, condition):
            if not part.model_fields_set:
                checker.fault(where, f"names no fact: write one, such as {EXAMPLE}")
        if public and condition.model_fields_set and not _restricts(condition):
            checker.fault(
                item,
                "holds for whoever wants it to: sender, size and HELO are the client's own words. "
                f"Add client, recipient or recipient_domain, or write accept: {ANYONE}",
            )


def _restricts(condition: When) -> bool:
    if condition.recipient is not None or condition.recipient_domain is not None:
        return True
    if condition.client is None:
        return False
    clients = [network for networks in condition.client for network in networks]
    ipv4 = collapse_addresses(network for network in clients if isinstance(network, IPv4Network))
    ipv6 = collapse_addresses(network for network in clients if isinstance(network, IPv6Network))
    return all(v4.prefixlen for v4 in ipv4) and all(v6.prefixlen for v6 in ipv6)


def _with_negated(path: Path, condition: When) -> list[tuple[Path, When]]:
    found = [(path, condition)]
    while condition.negated is not None:
        path, condition = (*path, "not"), condition.negated
        found.append((path, condition))
    return found
