"""Networks of clients, written as prefixes, single addresses, names of the section `networks`, or files of
them.

Owns how they are read and named, and whether they are the whole internet. Does not own where they are used
(conditions.py, listener_rules.py).
Invariant: no prefix has host bits, and IPv4 never hides in IPv6: what a client's address is compared with is
in one form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_interface, ip_network

from smtplb.config.checker import Checker
from smtplb.config.context import Context
from smtplb.config.errors import quote
from smtplb.config.scalars import name, text
from smtplb.config.tree import BROKEN, Path
from smtplb.settings import Network

ANY: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
MAX_NAMES_DEEP = 20

BUILT_IN: Mapping[str, tuple[Network, ...]] = {
    "any": ANY,
    "loopback": (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
}


def network(value: object) -> Network:
    """`10.0.0.0/8`, `10.0.9.1`, `fd00::/8`. ValueError: words for the operator."""
    written = text(value)
    try:
        found = ip_network(written)
    except ValueError:
        raise ValueError(_why_not(written)) from None
    if isinstance(found, IPv6Network):
        mapped = found.network_address.ipv4_mapped
        if "%" in written or (mapped is not None and found.prefixlen < 96):
            raise ValueError(f"{quote(written)} is not a network of clients")
        if mapped is not None:
            return IPv4Network((int(mapped), found.prefixlen - 96))
    return found


def _why_not(written: str) -> str:
    try:
        return f"{quote(written)} has bits behind its prefix: write {ip_interface(written).network}"
    except ValueError:
        return f"{quote(written)} is not a network, such as 10.0.0.0/8, 192.0.2.1 or fd00::/8"


def networks(value: object, context: Context) -> tuple[Network, ...]:
    """One item of a list of networks: a network, a name, or `file:NAME`. May raise ValueError."""
    written = text(value)
    if written.startswith("file:"):
        return tuple(context.lines(written.removeprefix("file:"), network))
    if written in context.networks:
        return context.networks[written]
    if written[0].isalpha() and ":" not in written:
        raise ValueError(f"no network is called {quote(written)}{_nearest(written, context.networks)}")
    return (network(written),)


def wholly_covered(found: Iterable[Network]) -> set[int]:
    """IP versions of which every address is in one of the networks: {4, 6} is everybody, however it was written."""
    found = list(found)
    ipv4 = collapse_addresses(each for each in found if isinstance(each, IPv4Network))
    ipv6 = collapse_addresses(each for each in found if isinstance(each, IPv6Network))
    whole: list[Network] = [each for each in ipv4 if not each.prefixlen]
    whole += [each for each in ipv6 if not each.prefixlen]
    return {each.version for each in whole}


def _nearest(written: str, known: Iterable[str]) -> str:
    near = get_close_matches(written, known, n=1)
    return f": did you mean {quote(near[0])}?" if near else ", see the section networks"


def read_networks(checker: Checker) -> dict[str, tuple[Network, ...]]:
    """The section `networks` and the built-in names. Entries may name each other, not in a circle."""
    written: dict[str, list[tuple[Path, object]]] = {}
    for key in checker.names(("networks",)):
        path = ("networks", key)
        if key in BUILT_IN:
            checker.fault(path, f"{quote(key)} is built in", of_key=True)
        elif _is_name(checker, path, key):
            written[key] = list(_items(checker, path))
    found = dict(BUILT_IN)
    for key in written:
        _resolve(checker, key, written, found, ())
    return found


def _is_name(checker: Checker, path: Path, key: str) -> bool:
    try:
        name(key)
        looks_like_network = _parses(key)
    except ValueError as error:
        checker.fault(path, str(error), of_key=True)
        return False
    if looks_like_network:
        checker.fault(path, f"{quote(key)} would hide the address of that form: choose a word", of_key=True)
    return not looks_like_network


def _parses(key: str) -> bool:
    try:
        ip_network(key, strict=False)
    except ValueError:
        return False
    return True


def _items(checker: Checker, path: Path) -> Iterator[tuple[Path, object]]:
    node = checker.node(path)
    assert node is not None
    if not isinstance(node.content, list):
        text_or_broken = isinstance(node.content, str) or node.content is BROKEN
        yield path, node.content if text_or_broken else checker.reject(path, "must be a list of networks")
        return
    if not node.content:
        checker.fault(path, "is empty: write networks, or leave the name out")
    for index, item in enumerate(node.content):
        yield (*path, index), item.content


def _resolve(
    checker: Checker,
    key: str,
    written: Mapping[str, list[tuple[Path, object]]],
    found: dict[str, tuple[Network, ...]],
    above: tuple[str, ...],
) -> tuple[Network, ...]:
    if key in found:
        return found[key]
    collected: dict[Network, None] = {}  # an ordered set
    for path, value in written[key]:
        if value is BROKEN:
            continue
        if value in (key, *above):
            checker.fault(path, f"{quote(value)} is made of itself")
        elif len(above) >= MAX_NAMES_DEEP:
            checker.fault(path, f"names that stand for names: more than {MAX_NAMES_DEEP} deep")
        elif isinstance(value, str) and value in written:
            collected.update(dict.fromkeys(_resolve(checker, value, written, found, (*above, key))))
        else:
            try:
                collected.update(dict.fromkeys(networks(value, checker.context(path, found))))
            except ValueError as error:
                checker.fault(path, str(error))
    found[key] = tuple(collected)
    return found[key]
