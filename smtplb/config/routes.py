"""Routes: ordered rules from facts of a transaction to a pool, a group, or a refusal.

Owns the rules of a route: that each rule can decide, that the last one always does, and that its ends exist.
Does not own conditions (conditions.py) or their judgement (policy/routing.py).
Invariant: in a route that passes every recipient meets exactly one rule that decides, and `postmaster` has a
target (RFC 5321 4.5.1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from smtplb.config.checker import Checker
from smtplb.config.conditions import to_condition, with_negated
from smtplb.config.errors import quote
from smtplb.config.groups import no_such
from smtplb.config.networks import wholly_covered
from smtplb.config.replies import EXAMPLE as REFUSE_EXAMPLE
from smtplb.config.schema import RouteRule
from smtplb.config.targets import judge_name
from smtplb.config.tree import Path
from smtplb.settings import Condition, Network, RouteSettings, Rule

# Facts that are not known when the backend is chosen at AUTH (design: AUTH comes before MAIL). Each attribute of
# Condition with the key that the operator wrote.
OF_TRANSACTION = {
    "sender": "sender",
    "sender_domain": "sender_domain",
    "recipient": "recipient",
    "recipient_domain": "recipient_domain",
    "size_over_bytes": "size_over",
}


def read_routes(
    checker: Checker,
    networks: Mapping[str, tuple[Network, ...]],
    pools: Collection[str],
    groups: Collection[str],
) -> dict[str, RouteSettings]:
    """All routes by name, also those with mistakes."""
    names = checker.names(("routes",))
    found = {}
    for key in names:
        path: Path = ("routes", key)
        judge_name(checker, path, pools, groups)
        items = checker.items(path)
        if not items and checker.is_sound(path):
            checker.fault(path, "is empty: a route needs at least one rule, such as {to: POOL}")
        rules = [_read_rule(checker, item, networks, [*pools, *groups], names) for item in items]
        _judge_order(checker, items, rules)
        if rules and checker.is_sound(path) and not any(rule.target for rule in rules):
            message = "refuses everything: RCPT TO:<postmaster> must go somewhere, so one rule needs `to`"
            checker.fault(path, message)
        found[key] = RouteSettings(name=key, rules=tuple(rules))
    return found


def _read_rule(
    checker: Checker,
    path: Path,
    networks: Mapping[str, tuple[Network, ...]],
    ends: Collection[str],
    routes: Collection[str],
) -> Rule:
    section = checker.read(RouteRule, path, networks)
    if section.to and section.to not in ends:
        if section.to in routes:
            message = f"{quote(section.to)} is a route: a rule goes to a pool or group"
        else:
            message = no_such("pool or group", section.to, ends)
        checker.reject((*path, "to"), message)
    wrote_to, wrote_refuse = checker.wrote((*path, "to")), checker.wrote((*path, "refuse"))
    if wrote_to and wrote_refuse:
        checker.fault((*path, "refuse"), "beside `to`: a rule has one of them", of_key=True)
    elif checker.is_mapping(path) and not wrote_to and not wrote_refuse:
        checker.reject(path, f"decides nothing: write to: POOL, or refuse: {REFUSE_EXAMPLE}")
    for where, part in with_negated((*path, "when"), section.when) if section.when is not None else ():
        if not part.model_fields_set:
            checker.reject(where, "names no fact: write one, or leave `when` out of the last rule")
    when = None if section.when is None else to_condition(section.when)
    return Rule(when=when, target=section.to, refuse=section.refuse)


def _judge_order(checker: Checker, items: list[Path], rules: list[Rule]) -> None:
    """Every rule but the last may fail to hold; the last never does."""
    first: dict[Condition, Path] = {}
    for path, rule in zip(items, rules, strict=True):
        when_path = (*path, "when")
        if not (checker.is_mapping(path) and checker.is_sound(when_path)):
            continue
        last = path is items[-1]
        if rule.when is None:
            if not last:
                message = "has no `when`, so it always holds, and the rules after it never decide"
                checker.fault(path, f"{message}: write when: ..., or put it last")
        elif last:
            message = "not in the last rule: what fits none before must go somewhere"
            end = "to: POOL" if rule.refuse is not None else f"refuse: {REFUSE_EXAMPLE}"
            checker.fault(
                when_path, f"{message}. Write one more rule behind it, such as {{{end}}}", of_key=True
            )
        elif _always_holds(rule.when):
            message = (
                "holds for every client, so the rules after it never decide: put it last, without `when`"
            )
            checker.fault(when_path, message)
        elif rule.when in first:
            where = checker.place(first[rule.when])
            checker.fault(when_path, f"is that of an earlier rule, at {where}, which decides before it")
        if rule.when is not None:
            first.setdefault(rule.when, when_path)


def _always_holds(condition: Condition) -> bool:
    """Whoever has an address meets it. (Clients of a unix socket have none; a rule for those alone is not lost.)"""
    client = condition.client
    return client is not None and condition == Condition(client=client) and wholly_covered(client) == {4, 6}


def facts_of_transaction(route: RouteSettings) -> Iterator[tuple[Path, str]]:
    """Conditions on what is known only inside a transaction: (where the rule's `when` stands, the key)."""
    for index, rule in enumerate(route.rules):
        condition = rule.when
        while condition is not None:
            for attribute, key in OF_TRANSACTION.items():
                if getattr(condition, attribute) is not None:
                    yield ("routes", route.name, index, "when"), key
            condition = condition.negated
