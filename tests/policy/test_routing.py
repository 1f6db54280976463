"""Conditions: every key, unknown facts, negation; and the relay guard against addresses that say one thing and mean another."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.policy.routing import Facts, accepts, holds, matches_domain, matches_network
from smtplb.settings import Condition, Domains, Network
from smtplb.smtp.address import domain_of, names_a_route, parse_path
from tests.effort import examples


def nets(*written: str) -> tuple[Network, ...]:
    return tuple(ip_network(one) for one in written)


def domains(*written: str) -> Domains:
    """As in a configuration: `.x` is any subdomain of x."""
    return Domains(
        exact=frozenset(one for one in written if not one.startswith(".")),
        suffixes=frozenset(one[1:] for one in written if one.startswith(".")),
    )


def facts(
    client: str | None = "192.0.2.7",
    helo: bytes = b"client.test",
    sender: bytes = b"anna@client.test",
    recipient: bytes = b"bert@ours.test",
    size_bytes: int | None = None,
    *,
    tls: bool = False,
    auth: bool = False,
) -> Facts:
    address = ip_address(client) if client is not None else None
    return Facts(address, helo, sender, recipient, size_bytes, tls=tls, auth=auth)


EVERYTHING = Condition()

# key: (a condition on it alone, facts for which it holds, facts for which it fails)
KEYS: dict[str, tuple[Condition, Facts, Facts]] = {
    "client": (Condition(client=nets("192.0.2.0/24")), facts(), facts("198.51.100.1")),
    "helo": (Condition(helo=domains("client.test")), facts(), facts(helo=b"other.test")),
    "sender": (Condition(sender=frozenset({"anna@client.test"})), facts(), facts(sender=b"bob@client.test")),
    "sender_domain": (
        Condition(sender_domain=domains("client.test")),
        facts(),
        facts(sender=b"a@other.test"),
    ),
    "recipient": (
        Condition(recipient=frozenset({"bert@ours.test"})),
        facts(),
        facts(recipient=b"a@ours.test"),
    ),
    "recipient_domain": (
        Condition(recipient_domain=domains("ours.test")),
        facts(),
        facts(recipient=b"bert@other.test"),
    ),
    "tls": (Condition(tls=True), facts(tls=True), facts()),
    "auth": (Condition(auth=True), facts(auth=True), facts()),
    "size_over_bytes": (Condition(size_over_bytes=1000), facts(size_bytes=1001), facts(size_bytes=1000)),
    "negated": (Condition(negated=Condition(tls=True)), facts(), facts(tls=True)),
}


def test_every_key_of_a_condition_is_tried_here() -> None:
    assert set(KEYS) == {field.name for field in fields(Condition)}


def test_the_empty_condition_holds_always() -> None:
    assert holds(EVERYTHING, facts())
    assert holds(EVERYTHING, Facts(None))


@pytest.mark.parametrize(("condition", "yes", "no"), KEYS.values(), ids=KEYS)
def test_a_key_holds_or_fails_and_its_negation_the_other_way(
    condition: Condition, yes: Facts, no: Facts
) -> None:
    assert holds(condition, yes)
    assert not holds(condition, no)
    assert not holds(Condition(negated=condition), yes)
    assert holds(Condition(negated=condition), no)
    assert holds(Condition(negated=Condition(negated=condition)), yes)


@pytest.mark.parametrize("key", [key for key in KEYS if key != "negated"])
def test_keys_are_anded(key: str) -> None:
    condition, yes, _ = KEYS[key]
    wanted = {field.name: getattr(condition, field.name) for field in fields(Condition)}
    for other in ("tls", "auth"):
        if other != key:
            assert not holds(Condition(**(wanted | {other: True})), yes)
            assert holds(Condition(**(wanted | {other: False})), yes)


def test_tls_and_auth_may_be_asked_for_absent() -> None:
    assert holds(Condition(tls=False, auth=False), facts())
    assert not holds(Condition(tls=False), facts(tls=True))
    assert not holds(Condition(auth=False), facts(auth=True))


@pytest.mark.parametrize(
    ("condition", "without"),
    [
        (Condition(client=nets("0.0.0.0/0", "::/0")), Facts(None)),  # a unix socket
        (Condition(client=nets("192.0.2.0/24")), Facts(None)),
        (Condition(helo=domains("client.test")), facts(helo=b"")),
        (Condition(sender_domain=domains("client.test")), facts(sender=b"")),
        (Condition(sender_domain=domains("client.test")), facts(sender=b"client.test")),
        (Condition(recipient_domain=domains("ours.test")), facts(recipient=b"ours.test")),
        (Condition(recipient_domain=domains(".ours.test")), facts(recipient=b'"a@x".ours.test')),
        (Condition(size_over_bytes=0), facts(size_bytes=None)),  # no SIZE= in MAIL
    ],
)
def test_a_key_fails_on_a_fact_that_is_absent_and_not_turns_it_around(
    condition: Condition, without: Facts
) -> None:
    assert not holds(condition, without)
    assert holds(Condition(negated=condition), without)


def test_negated_keys_are_anded_before_they_are_negated() -> None:
    both = Condition(negated=Condition(client=nets("192.0.2.0/24"), tls=True))
    assert not holds(both, facts("192.0.2.7", tls=True))
    assert holds(both, facts("192.0.2.7", tls=False))
    assert holds(both, facts("198.51.100.1", tls=True))


def test_the_null_sender_can_be_named() -> None:
    assert holds(Condition(sender=frozenset({""})), facts(sender=b""))
    assert not holds(Condition(sender=frozenset({""})), facts())


# -- domains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "name", "matches"),
    [
        ("ours.test", b"ours.test", True),
        ("ours.test", b"OURS.Test", True),
        ("ours.test", b"a.ours.test", False),
        ("ours.test", b"notours.test", False),
        ("ours.test", b"ours.test.evil.test", False),
        ("ours.test", b"", False),
        (".ours.test", b"a.ours.test", True),
        (".ours.test", b"a.b.ours.test", True),
        (".ours.test", b"A.Ours.TEST", True),
        (".ours.test", b"ours.test", False),
        (".ours.test", b"notours.test", False),
        (".ours.test", b"a.ours.test.evil.test", False),
        (".test", b"ours.test", True),
        ("[192.0.2.1]", b"[192.0.2.1]", True),
        (".0.2.1]", b"[192.0.2.1]", True),  # no configuration can say so
        ("ours.test", b"our\xe9.test", False),
        ("k.test", b"\xe2\x84\xaa.test", False),  # the Kelvin sign, K in Unicode's lower case
    ],
)
def test_a_domain_matches_as_a_whole_or_below_a_suffix(written: str, name: bytes, matches: bool) -> None:
    assert matches_domain(domains(written), name) is matches


def test_a_name_of_only_dots_is_done_in_no_time_and_matches_nothing() -> None:
    assert not matches_domain(domains(".ours.test"), b"." * 2000)


# -- clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "client", "matches"),
    [
        (nets("10.0.0.0/8"), "10.255.255.255", True),
        (nets("10.0.0.0/8"), "11.0.0.0", False),
        (nets("192.0.2.7/32"), "192.0.2.7", True),
        (nets("fd00::/8"), "fd00::1", True),
        (nets("fd00::/8"), "fe80::1", False),
        (nets("10.0.0.0/8", "fd00::/8"), "fd00::1", True),
        (nets("0.0.0.0/0"), "fd00::1", False),
        (nets("::/0"), "10.0.0.1", False),
        # as accept() names an IPv4 client on a socket for both
        (nets("10.0.0.0/8"), "::ffff:10.1.2.3", True),
        (nets("10.0.0.0/8"), "::ffff:11.1.2.3", False),
        (nets("::/0"), "::ffff:10.1.2.3", False),
        (nets("::ffff:0:0/96"), "::ffff:10.1.2.3", False),
        # not mapped, only alike
        (nets("10.0.0.0/8"), "::10.1.2.3", False),
        (nets("10.0.0.0/8"), "64:ff9b::10.1.2.3", False),
        ((), "10.0.0.1", False),
    ],
)
def test_a_client_is_in_a_network_of_its_own_family(
    networks: tuple[Network, ...], client: str, matches: bool
) -> None:
    assert matches_network(networks, ip_address(client)) is matches
    assert not matches_network(networks, None)


# -- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written", [b"bert@ours.test", b"Bert@Ours.Test", b"BERT@OURS.TEST", b"bert@ours.test."]
)
def test_an_address_is_compared_without_case_and_without_the_last_dot(written: bytes) -> None:
    blocked = Condition(recipient=frozenset({"bert@ours.test"}))
    assert holds(blocked, facts(recipient=written))
    assert not holds(Condition(negated=blocked), facts(recipient=written))
    assert holds(Condition(sender=frozenset({"bert@ours.test"})), facts(sender=written))


@pytest.mark.parametrize(
    "written", [b"bert", b"bert@", b"bert@ours.tes", b"bert+x@ours.test", b"postmaster."]
)
def test_another_address_is_another(written: bytes) -> None:
    listed = Condition(recipient=frozenset({"bert@ours.test", "postmaster"}))
    assert not holds(listed, facts(recipient=written))


# -- the relay guard ---------------------------------------------------------------------------------------------

OURS = (Condition(recipient_domain=domains("ours.test", ".ours.test")),)
INSIDE = (Condition(client=nets("10.0.0.0/8")),)


def test_without_conditions_everything_is_taken() -> None:
    assert accepts(None, facts(recipient=b"anyone@evil.test"))


def test_with_no_condition_that_could_hold_nothing_is_taken_but_postmaster() -> None:
    assert not accepts((), facts())
    assert accepts((), facts(recipient=b"Postmaster"))


@pytest.mark.parametrize("recipient", [b"a@ours.test", b"a@OURS.TEST", b"a@mx.ours.test", b"a@ours.test."])
def test_mail_for_our_domains_is_taken(recipient: bytes) -> None:
    assert accepts(OURS, facts(recipient=recipient))


@pytest.mark.parametrize(
    "recipient", [b"a@evil.test", b"a@ours.test.evil.test", b"a@notours.test", b"a", b"a@[192.0.2.1]"]
)
def test_mail_for_others_is_not_taken(recipient: bytes) -> None:
    assert not accepts(OURS, facts(recipient=recipient))


IDN = (
    Condition(
        recipient_domain=Domains(exact=frozenset({"xn--bcher-kva.test"}), suffixes=frozenset({"ours.test"}))
    ),
)


@pytest.mark.parametrize(
    "domain",
    [
        "b\u00fccher.test",
        "B\u00dcCHER.test",
        "xn--bcher-kva.test",
        "b\u00fccher.ours.test",
        "b\u00fccher.test.",
    ],
)
def test_a_domain_beyond_ascii_is_the_one_that_stands_in_the_dns(domain: str) -> None:
    """RFC 6531 3.2."""
    assert accepts(IDN, Facts(None, recipient=f"user@{domain}".encode()))


@pytest.mark.parametrize(
    "domain",
    [
        "bu\u0308cher.test",  # u and a combining diaeresis
        "b\u00fccher\u3002test",  # a full stop that is none
        "b\u00fc\uff43her.test",  # a wide c
        "\u24d1\u00fccher.test",  # a b in a circle
        "evil.test\u3002ours.test",
        "\u24d4vil.ours\uff0etest",
        "\u00fc" * 70 + "cher.test",  # no label of the DNS
        "b\u00fccher.test\u00df",
    ],
)
def test_one_that_only_some_would_take_for_ours_is_not_ours(domain: str) -> None:
    assert not accepts(IDN, Facts(None, recipient=f"user@{domain}".encode()))


def test_any_one_condition_is_enough() -> None:
    assert accepts((*OURS, *INSIDE), facts("10.1.2.3", recipient=b"a@evil.test"))
    assert accepts((*INSIDE, *OURS), facts("192.0.2.7", recipient=b"a@ours.test"))
    assert not accepts((*INSIDE, *OURS), facts("192.0.2.7", recipient=b"a@evil.test"))


@pytest.mark.parametrize("recipient", [b"postmaster", b"POSTMASTER"])
def test_postmaster_without_a_domain_is_always_taken(recipient: bytes) -> None:
    assert accepts(OURS, facts("192.0.2.7", recipient=recipient))
    assert not accepts(OURS, facts(recipient=b"postmaster@evil.test"))


ROUTED = [
    b"user%evil.test@ours.test",
    b"user%evil.test@mx.ours.test",
    b"evil.test!user@ours.test",
    b'"user@evil.test"@ours.test',
    b'"user%evil.test"@ours.test',
    b'"evil.test!user"@ours.test',
    rb'"user\@evil.test"@ours.test',
    b'a."b@evil.test"@ours.test',
    b'"user@evil.test".ours.test',
    b'"user@evil.test"',
    b"@evil.test:user@ours.test",
    b"@ours.test,@evil.test:user@ours.test",
    b"user%evil.test",
    b"evil.test!user",
]


@pytest.mark.parametrize("recipient", ROUTED)
def test_a_recipient_that_names_a_further_destination_is_not_of_its_domain(recipient: bytes) -> None:
    """Backends that trust us would relay it: %, !, an @ in quotes, a route (design 4.13)."""
    assert parse_path(b"<" + recipient + b">") == (recipient, b"")
    assert not accepts(OURS, facts(recipient=recipient))
    anywhere = Condition(recipient_domain=domains("ours.test"), client=nets("::/0", "0.0.0.0/0"))
    assert not accepts((anywhere,), facts(recipient=recipient))


@pytest.mark.parametrize("recipient", ROUTED)
def test_nor_is_it_of_no_domain_where_one_is_excluded(recipient: bytes) -> None:
    but_not_there = Condition(
        client=nets("10.0.0.0/8"), negated=Condition(recipient_domain=domains("evil.test"))
    )
    assert accepts((but_not_there,), facts("10.1.2.3", recipient=b"user@ours.test"))
    assert not accepts((but_not_there,), facts("10.1.2.3", recipient=b"user@evil.test"))
    assert not accepts((but_not_there,), facts("10.1.2.3", recipient=recipient))


@pytest.mark.parametrize("recipient", ROUTED)
def test_it_is_taken_where_the_domain_does_not_matter(recipient: bytes) -> None:
    assert accepts(INSIDE, facts("10.1.2.3", recipient=recipient))
    named = (Condition(recipient=frozenset({recipient.decode().lower()})),)
    assert accepts(named, facts(recipient=recipient)), "the operator wrote it out"


def test_a_route_rule_may_send_it_by_its_domain() -> None:
    """Who may send is the guard's question; where it goes is not."""
    assert holds(OURS[0], facts(recipient=b"user%evil.test@ours.test"))


PIECES = [
    b"@",
    b"%",
    b"!",
    b'"',
    b"\\",
    b":",
    b",",
    b"(",
    b")",
    b";",
    b".",
    b"user",
    b"evil.test",
    b"ours.test",
]
PIECES += [b"@evil.test", b"@ours.test", b".ours.test", b"[", b"]", b" "]


@settings(max_examples=examples(2000))
@given(st.lists(st.sampled_from(PIECES), max_size=9).map(b"".join))
def test_whatever_is_taken_for_our_domains_ends_in_them_and_names_no_other(path: bytes) -> None:
    parsed = parse_path(b"<" + path + b">")
    if parsed is None or not parsed[0] or not accepts(OURS, facts(recipient=parsed[0])):
        return
    taken = parsed[0]
    assert not names_a_route(taken)
    assert taken.count(b"@") == 1
    domain = taken.partition(b"@")[2]
    assert domain_of(taken) == domain.removesuffix(b".")
    assert domain.removesuffix(b".") == b"ours.test" or domain.removesuffix(b".").endswith(b".ours.test")


conditions = st.recursive(
    st.sampled_from([condition for condition, _, _ in KEYS.values()] + [EVERYTHING]),
    lambda inner: inner.map(lambda condition: Condition(negated=condition)),
    max_leaves=4,
)
some_facts = st.builds(
    facts,
    client=st.sampled_from([None, "192.0.2.7", "10.1.2.3", "::ffff:192.0.2.7", "fd00::1"]),
    helo=st.sampled_from([b"", b"client.test", b"x"]),
    sender=st.sampled_from([b"", b"anna@client.test", b"x"]),
    recipient=st.sampled_from(
        [b"bert@ours.test", b"x@evil.test", b'"x@ours.test"', b"x%evil.test@ours.test"]
    ),
    size_bytes=st.sampled_from([None, 0, 1001]),
    tls=st.booleans(),
    auth=st.booleans(),
)


@settings(max_examples=examples(500))
@given(conditions, some_facts)
def test_a_condition_holds_or_its_negation_does_and_the_guard_is_never_wider(
    condition: Condition, known: Facts
) -> None:
    assert holds(condition, known) is not holds(Condition(negated=condition), known)
    if accepts((condition,), known):
        assert holds(condition, known)
