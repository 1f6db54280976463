"""Conditions in `when` grammar: facts of a transaction that `accept` of a listener and the rules of a
route may ask for.

Owns their schema, the patterns in them, and the conversion to settings. Does not own their judgement
(policy/routing.py).
Invariant: patterns are lower-case ASCII; a list is never empty; no condition that was written is wider than
what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from smtplb.config.errors import quote
from smtplb.config.networks import networks
from smtplb.config.scalars import boolean, positive_size, text
from smtplb.config.section import Section, as_list, context_of
from smtplb.config.tree import Path
from smtplb.settings import Condition, Domains, Network

MAX_DOMAIN_CHARS = 253  # RFC 1035 2.3.4: 255 octets on the wire
MAX_ADDRESS_CHARS = 512  # as the longest path that a client may send

# Underscores: seen in HELO and in names of internal domains.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LITERAL = re.compile(r"\[[0-9a-z.:]+\]")  # RFC 5321 4.1.3 address literals, compared as text
_LOCAL_PART = re.compile(r'[!-?A-~]+|"(?:[ !#-\[\]-~]|\\[ -~])*"')  # RFC 5321 4.1.2 Local-part, generously


def domain(value: object) -> Domains:
    """`example.org` (exactly that), `.example.org` (any subdomain of it), `[192.0.2.1]`."""
    written = text(value)
    if not written.isascii():
        raise ValueError(f"{quote(written)} is beyond ASCII: write the xn-- form, as it stands in the DNS")
    lower = written.lower().removesuffix(".")
    bare = lower.removeprefix(".")
    if _LITERAL.fullmatch(lower):
        return Domains(exact=frozenset({lower}))
    if len(bare) > MAX_DOMAIN_CHARS or not _DOMAIN.fullmatch(bare):
        hint = ""
        if bare.startswith("*."):
            hint = f": for any subdomain write {quote(bare[1:])}"
        if "@" in bare:
            hint = ": write the part behind the @ alone"
        raise ValueError(f"{quote(written)} is not a domain{hint}")
    if lower.startswith("."):
        return Domains(suffixes=frozenset({bare}))
    return Domains(exact=frozenset({bare}))


def mailbox(value: object) -> str:
    """`user@example.org`, `postmaster`, or `<>` for the null sender -> lower case; the null sender is ""."""
    written = text(value)
    if written == "<>":
        return ""
    if not written.isascii():
        raise ValueError(f"{quote(written)} is beyond ASCII: only ASCII addresses can be compared")
    lower = written.lower()
    if lower == "postmaster":  # RFC 5321 4.5.1: the one mailbox without a domain
        return lower
    local, at, host = lower.rpartition("@")
    if not at or not _LOCAL_PART.fullmatch(local) or len(lower) > MAX_ADDRESS_CHARS:
        raise ValueError(f"{quote(written)} is not an address, such as user@example.org")
    found = domain(host)
    if not found.exact:
        raise ValueError(f"{quote(written)}: write the whole domain, or use a key that ends in _domain")
    return f"{local}@{next(iter(found.exact))}"


def _networks(value: object, info: ValidationInfo) -> tuple[Network, ...]:
    return networks(value, context_of(info))


def _domains(value: object, info: ValidationInfo) -> Domains:
    if isinstance(value, str) and value.startswith("file:"):
        return _joined(context_of(info).lines(value.removeprefix("file:"), domain))
    return domain(value)


def _mailboxes(value: object, info: ValidationInfo) -> frozenset[str]:
    if isinstance(value, str) and value.startswith("file:"):
        return frozenset(context_of(info).lines(value.removeprefix("file:"), mailbox))
    return frozenset({mailbox(value)})


def _joined(parts: Iterable[Domains]) -> Domains:
    parts = list(parts)
    return Domains(
        exact=frozenset().union(*(part.exact for part in parts)),
        suffixes=frozenset().union(*(part.suffixes for part in parts)),
    )


def joined_networks(parts: Iterable[tuple[Network, ...]]) -> tuple[Network, ...]:
    """The networks of a list's items, each once, in their order."""
    return tuple(dict.fromkeys(chain.from_iterable(parts)))


_ONE_OR_MORE = (BeforeValidator(as_list), Field(min_length=1))
NetworkList = Annotated[list[Annotated[tuple[Network, ...], PlainValidator(_networks)]], *_ONE_OR_MORE]
DomainList = Annotated[list[Annotated[Domains, PlainValidator(_domains)]], *_ONE_OR_MORE]
MailboxList = Annotated[list[Annotated[frozenset[str], PlainValidator(_mailboxes)]], *_ONE_OR_MORE]


class When(Section):
    """Keys are ANDed, values of a key ORed."""

    client: NetworkList | None = None
    helo: DomainList | None = None
    sender: MailboxList | None = None
    sender_domain: DomainList | None = None
    recipient: MailboxList | None = None
    recipient_domain: DomainList | None = None
    tls: Annotated[bool, PlainValidator(boolean)] | None = None
    auth: Annotated[bool, PlainValidator(boolean)] | None = None
    size_over_bytes: Annotated[int | None, PlainValidator(positive_size)] = Field(None, alias="size_over")
    negated: When | None = Field(None, alias="not")


def to_condition(when: When) -> Condition:
    return Condition(
        client=None if when.client is None else joined_networks(when.client),
        helo=None if when.helo is None else _joined(when.helo),
        sender=None if when.sender is None else frozenset().union(*when.sender),
        sender_domain=None if when.sender_domain is None else _joined(when.sender_domain),
        recipient=None if when.recipient is None else frozenset().union(*when.recipient),
        recipient_domain=None if when.recipient_domain is None else _joined(when.recipient_domain),
        tls=when.tls,
        auth=when.auth,
        size_over_bytes=when.size_over_bytes,
        negated=None if when.negated is None else to_condition(when.negated),
    )


def with_negated(path: Path, condition: When) -> list[tuple[Path, When]]:
    """A condition and what its `not` holds, each with its path."""
    found = [(path, condition)]
    while condition.negated is not None:
        path, condition = (*path, "not"), condition.negated
        found.append((path, condition))
    return found


def anyone() -> list[Any]:
    """What `accept: anyone` stands for: one condition that always holds."""
    return [When.model_construct()]
