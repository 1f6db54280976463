"""The relay guard: no listener that others can reach takes mail for the world unless the operator signed
that.

Owns when `accept` may be left out, and which conditions restrict nothing. Does not own judging mail
(policy/routing.py).
Invariant: mail of a listener without `accept` comes from this host, or reaches only backends that know its
client.

Backends often trust our address (mynetworks, relay host lists, receive connectors for anonymous relay), and
with identity none or xforward they judge by no other. So whoever may send through us may send to the whole
internet. With xclient and proxy-* they judge by the client's own address.
"""

from __future__ import annotations

from collections.abc import Sequence

from smtplb.config.addresses import is_loopback
from smtplb.config.checker import Checker
from smtplb.config.conditions import When, joined_networks, with_negated
from smtplb.config.networks import wholly_covered
from smtplb.config.schema import ANYONE
from smtplb.config.tree import Path
from smtplb.settings import ListenerSettings, PoolSettings

EXAMPLE = "accept: [{recipient_domain: [example.org]}, {client: [10.0.0.0/8]}]"

MAX_NAMED = 10


def whence(listener: ListenerSettings) -> str:
    """How others than this host get to a listener, in words; "" if they do not."""
    public = [bind for bind in listener.binds if not is_loopback(bind)]
    if public:
        return f"{public[0]} can be reached from other hosts"
    for key in ("proxy_protocol_from", "xclient_from"):
        if getattr(listener, key):
            return f"those in {key} speak for other hosts"
    return ""


def clients_are_told(pools: Sequence[PoolSettings]) -> bool:
    """Every backend judges each client by its own address; False if none is known (their names were mistakes)."""
    backends = [backend for pool in pools for backend in pool.backends]
    return bool(backends) and all(backend.identity.binds for backend in backends)


def guard(checker: Checker, path: Path, listener: ListenerSettings, pools: Sequence[PoolSettings]) -> None:
    """A listener without `accept`. `pools`: those that its mail can reach."""
    others = whence(listener)
    if not others or checker.wrote((*path, "accept")) or clients_are_told(pools):
        return
    blind = [pool for pool in pools if not clients_are_told([pool])]
    names = ", ".join(pool.name for pool in blind[:MAX_NAMED])
    whose = f"the backends of {'pool' if len(blind) == 1 else 'pools'} {names}" if blind else "the backends"
    modes = dict.fromkeys(
        backend.identity for pool in blind for backend in pool.backends if not backend.identity.binds
    )
    checker.fault(
        (*path, "accept"),
        f"missing, and {others}. To {whose} all mail comes from this "
        f"host (identity: {' or '.join(modes) or 'none'}): any of them that trusts it (mynetworks, relay host "
        "list, anonymous receive connector) would relay for the whole internet. Write whose mail is taken, such "
        f"as {EXAMPLE}, or accept: {ANYONE} if that is what you want; or tell the backends each client "
        "(identity: xclient, proxy-v1 or proxy-v2)",
    )


def judge_accept(checker: Checker, path: Path, conditions: Sequence[When], *, needed: bool) -> None:
    """Conditions that hold for everyone would be `anyone` in disguise: where `accept` is needed, that word is
    asked for instead.
    """
    if checker.text_at(path) == ANYONE:
        return
    for item, condition in zip(accept_items(checker, path), conditions, strict=True):
        for where, part in with_negated(item, condition):
            if not part.model_fields_set:
                checker.fault(where, f"names no fact: write one, such as {EXAMPLE}")
        if needed and condition.model_fields_set and not _restricts(condition):
            checker.fault(
                item,
                "holds for whoever wants it to: sender, size, HELO and TLS are the client's own choice. "
                f"Add client, auth, recipient or recipient_domain, or write accept: {ANYONE}",
            )


def accept_items(checker: Checker, path: Path) -> list[Path]:
    """One condition needs no list."""
    return [path] if checker.is_mapping(path) else checker.items(path)


def _restricts(condition: When) -> bool:
    if condition.recipient is not None or condition.recipient_domain is not None or condition.auth:
        return True
    return condition.client is not None and not wholly_covered(joined_networks(condition.client))
