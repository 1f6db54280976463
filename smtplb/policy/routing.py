"""Conditions on the facts of a transaction: who may send what where.

Owns the meaning of the `when` grammar. Does not own its syntax (config/) nor what follows from a match.
Invariant: pure, and total: a key fails on a fact that is absent (no client address behind a unix socket, no announced size,
no domain in a null sender); `not` turns that around, as it does any failure. Only the relay guard knows a doubt, and closes.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from smtplb.settings import Condition, Domains, Network
from smtplb.smtp.address import domain_of, is_postmaster, names_a_route

ClientAddress = IPv4Address | IPv6Address


class Facts:
    """What is known of a transaction when a recipient is judged. `client` is None behind a unix socket."""

    __slots__ = ("auth", "client", "helo", "recipient", "sender", "size_bytes", "tls")

    def __init__(
        self,
        client: ClientAddress | None,
        helo: bytes = b"",
        sender: bytes = b"",
        recipient: bytes = b"",
        size_bytes: int | None = None,
        *,
        tls: bool = False,
        auth: bool = False,
    ) -> None:
        self.client = client
        self.helo = helo
        self.sender = sender
        self.recipient = recipient
        self.size_bytes = size_bytes
        self.tls = tls
        self.auth = auth


def matches_domain(domains: Domains, name: bytes) -> bool:
    """`name` is one of the exact domains, or below one of the suffixes. Case-insensitive, ASCII only."""
    if not name:
        return False
    text = name.decode("latin-1").lower()
    if text in domains.exact:
        return True
    suffixes = domains.suffixes
    if suffixes:
        at = text.find(".")
        while at >= 0:
            text = text[at + 1 :]
            if text in suffixes:
                return True
            at = text.find(".")
    return False


def matches_network(networks: tuple[Network, ...], client: ClientAddress | None) -> bool:
    """`client` is in one of the networks; an IPv4 client that came in as IPv4-mapped IPv6 counts as IPv4."""
    if not networks or client is None:
        return False
    if client.version == 6 and client.ipv4_mapped is not None:
        client = client.ipv4_mapped
    return any(client.version == network.version and client in network for network in networks)


def holds(condition: Condition, facts: Facts) -> bool:
    """Every key that was written holds for these facts."""
    if condition.client is not None and not matches_network(condition.client, facts.client):
        return False
    if condition.helo is not None and not matches_domain(condition.helo, facts.helo):
        return False
    if condition.sender is not None and _text(facts.sender) not in condition.sender:
        return False
    if condition.sender_domain is not None and not matches_domain(
        condition.sender_domain, domain_of(facts.sender)
    ):
        return False
    if condition.recipient is not None and _text(facts.recipient) not in condition.recipient:
        return False
    if condition.recipient_domain is not None and not matches_domain(
        condition.recipient_domain, domain_of(facts.recipient)
    ):
        return False
    if condition.size_over_bytes is not None and (
        facts.size_bytes is None or facts.size_bytes <= condition.size_over_bytes
    ):
        return False
    if condition.tls is not None and condition.tls is not facts.tls:
        return False
    if condition.auth is not None and condition.auth is not facts.auth:
        return False
    return condition.negated is None or not holds(condition.negated, facts)


def accepts(conditions: tuple[Condition, ...] | None, facts: Facts) -> bool:
    """The relay guard (design 4.13): some condition holds. None: left out, which config allows only where it is safe.

    A recipient that names a further destination is not "of" its visible domain, nor is it known to be of no other: only
    conditions that do not rest on the recipient's domain, negated or not, can let it in. `postmaster` without a domain is
    always ours (RFC 5321 4.5.1).
    """
    if conditions is None or is_postmaster(facts.recipient):
        return True
    routed = names_a_route(facts.recipient)
    return any(
        not (routed and _rests_on_recipient_domain(condition)) and holds(condition, facts)
        for condition in conditions
    )


def _rests_on_recipient_domain(condition: Condition | None) -> bool:
    return condition is not None and (
        condition.recipient_domain is not None or _rests_on_recipient_domain(condition.negated)
    )


def _text(path: bytes) -> str:
    """Addresses are compared without case and without a dot behind the domain, as configuration holds them."""
    return (path[:-1] if path.endswith(b".") and domain_of(path) else path).decode("latin-1").lower()
