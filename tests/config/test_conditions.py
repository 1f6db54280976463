"""Networks and conditions: `when` grammar as `accept` and routes use it."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.config.conditions import domain, mailbox
from smtplb.config.networks import network
from smtplb.settings import Condition, Domains
from tests.config.support import (
    SMALLEST,
    errors_of,
    keys_of,
    listener_of,
    only_error,
    route_of,
    settings_of,
    with_listener,
)


def condition_of(accept: str, before: str = "") -> Condition:
    listener = listener_of(f'bind: "0.0.0.0:25", to: p, accept: [{{{accept}}}]', before)
    assert listener.accept is not None
    return listener.accept[0]


def accept_error(accept: str, before: str = "") -> str:
    return only_error(with_listener(f'bind: "0.0.0.0:25", to: p, accept: [{{{accept}}}]', before)).message


def test_all_keys_of_a_condition_reach_the_settings() -> None:
    found = condition_of(
        "client: [10.0.0.0/8, 192.0.2.1], helo: relay.example.org, sender: [Anna@Example.org, <>], "
        "sender_domain: [.example.org], recipient: [postmaster, b@example.net], "
        "recipient_domain: [Example.NET, .example.net], size_over: 10MiB, not: {client: [10.9.0.0/16]}"
    )
    assert found == Condition(
        client=(ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32")),
        helo=Domains(exact=frozenset({"relay.example.org"})),
        sender=frozenset({"anna@example.org", ""}),
        sender_domain=Domains(suffixes=frozenset({"example.org"})),
        recipient=frozenset({"postmaster", "b@example.net"}),
        recipient_domain=Domains(frozenset({"example.net"}), frozenset({"example.net"})),
        size_over_bytes=10 * 1024 * 1024,
        negated=Condition(client=(ip_network("10.9.0.0/16"),)),
    )


def test_one_value_and_one_condition_stand_for_lists_of_one() -> None:
    listener = listener_of('bind: "0.0.0.0:25", to: p, accept: {recipient_domain: example.org}')
    assert listener.accept == (Condition(recipient_domain=Domains(exact=frozenset({"example.org"}))),)


def test_conditions_are_an_or_of_their_own() -> None:
    listener = listener_of('bind: "0.0.0.0:25", to: p, accept: [{recipient: a@b.test}, {client: 10.0.0.0/8}]')
    assert listener.accept is not None
    assert len(listener.accept) == 2


def test_keys_that_were_not_written_are_none() -> None:
    assert condition_of("client: 10.0.0.0/8") == Condition(client=(ip_network("10.0.0.0/8"),))


@pytest.mark.parametrize("value", [True, False])
def test_facts_of_the_session_are_yes_or_no(value: bool) -> None:
    written = str(value).lower()
    (rule, _) = route_of(f"{{when: {{tls: {written}, auth: {written}}}, to: p}}, {{to: q}}").rules
    assert rule.when == Condition(tls=value, auth=value)


@pytest.mark.parametrize("key", ["tls", "auth"])
def test_facts_of_the_session_are_no_lists(key: str) -> None:
    assert "must be true or false" in accept_error(f"client: 10.0.0.0/8, {key}: [true]")


@pytest.mark.parametrize(
    "key", ["client", "helo", "sender", "sender_domain", "recipient", "recipient_domain"]
)
def test_an_empty_list_is_a_mistake(key: str) -> None:
    assert "is empty" in accept_error(f"{key}: []")


def test_a_null_does_not_widen_a_condition() -> None:
    assert "has no value" in accept_error("recipient_domain: example.org, client: ~")


# Networks.


def test_names_of_networks_are_usable_as_clients_and_in_each_other() -> None:
    found = condition_of(
        "client: [inside, loopback]",
        'networks: {inside: [site, "fd00::/8"], site: 10.0.0.0/8}',
    )
    assert found.client == tuple(map(ip_network, ("10.0.0.0/8", "fd00::/8", "127.0.0.0/8", "::1/128")))


@pytest.mark.parametrize(
    ("networks", "key", "words"),
    [
        ("{a: [b], b: [a]}", "networks.b[0]", "made of itself"),
        ("{a: a}", "networks.a", "made of itself"),
        ("{any: [10.0.0.0/8]}", "networks.any", "built in"),
        ("{10.0.0.1: [10.0.0.0/8]}", "networks.10.0.0.1", "would hide"),
        ("{Inside: [10.0.0.0/8]}", "networks.Inside", "write inside"),
        ("{a: []}", "networks.a", "is empty"),
        ("{a: {}}", "networks.a", "must be a list"),
        ("{a: [{}]}", "networks.a[0]", "single text"),
        ("{a: [10.0.0.1/8]}", "networks.a[0]", "write 10.0.0.0/8"),
        ("{a: [10.0.0.0/33]}", "networks.a[0]", "not a network"),
        ("{a: [10]}", "networks.a[0]", "in quotes"),
        ("{a: [insid], inside: [10.0.0.0/8]}", "networks.a[0]", "no network is called `insid`"),
        ("[10.0.0.0/8]", "networks", "must be a mapping of names"),
    ],
)
def test_mistakes_in_networks(networks: str, key: str, words: str) -> None:
    error = only_error(SMALLEST + f"networks: {networks}\n")
    assert error.key == key
    assert words in error.message


def test_names_that_stand_for_names_do_so_to_a_depth() -> None:
    chain = ", ".join(f"n{i}: n{i + 1}" for i in range(5000))
    errors = errors_of(SMALLEST + f"networks: {{{chain}, n5000: 10.0.0.0/8}}\n")
    assert errors
    assert all("more than 20 deep" in error.message for error in errors)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    message = accept_error("client: insde", "networks: {inside: [10.0.0.0/8]}")
    assert message == "no network is called `insde`: did you mean `inside`?"


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_a_single_address_is_a_network_of_one(ip: object) -> None:
    found = network(str(ip))
    assert found.num_addresses == 1


def test_ipv4_does_not_hide_in_ipv6() -> None:
    assert network("::ffff:10.0.0.0/104") == ip_network("10.0.0.0/8")
    with pytest.raises(ValueError):
        network("::ffff:0:0/95")
    with pytest.raises(ValueError):
        network("fe80::%eth0/64")


# Domains and addresses.


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("Example.ORG", Domains(exact=frozenset({"example.org"}))),
        ("example.org.", Domains(exact=frozenset({"example.org"}))),
        (".Example.org", Domains(suffixes=frozenset({"example.org"}))),
        ("xn--bcher-kva.example", Domains(exact=frozenset({"xn--bcher-kva.example"}))),
        ("[192.0.2.1]", Domains(exact=frozenset({"[192.0.2.1]"}))),
        ("[IPv6:2001:db8::1]", Domains(exact=frozenset({"[ipv6:2001:db8::1]"}))),
        ("in_side.lan", Domains(exact=frozenset({"in_side.lan"}))),
    ],
)
def test_domains_are_lower_case_and_exact_unless_they_start_with_a_dot(written: str, found: Domains) -> None:
    assert domain(written) == found


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("bücher.example", "xn--"),
        ("*.example.org", "write `.example.org`"),
        ("anna@example.org", "write the part behind the @"),
        ("example..org", "not a domain"),
        (".", "not a domain"),
        ("..example.org", "not a domain"),
        ("exam ple.org", "not a domain"),
        ("-a.org", "not a domain"),
        ("a" * 64 + ".org", "not a domain"),
        (".".join(["abcdefghi"] * 26), "not a domain"),
        ("", "is empty"),
    ],
)
def test_anything_else_is_no_domain(written: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        domain(written)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "written", ["anna", "@example.org", "a b@example.org", "anna@.example.org", "ä@b.test", "<a@b.test>"]
)
def test_anything_else_is_no_address(written: str) -> None:
    with pytest.raises(ValueError):
        mailbox(written)


@given(st.text())
def test_readers_raise_nothing_but_words(written: str) -> None:
    for read in (domain, mailbox, network):
        try:
            read(written)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - either it reads or it says why


# Lists in files.


def test_lists_come_from_files_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "domains").write_bytes(
        b"\xef\xbb\xbf# ours\r\nExample.org\r\n\r\n  .example.net # all of it\r\nexample.com"
    )
    (tmp_path / "clients").write_text("10.0.0.0/8\n192.0.2.1\n")
    (tmp_path / "people").write_text("anna@example.org\n")
    text = with_listener(
        'bind: "0.0.0.0:25", to: p, accept: [{recipient_domain: "file:domains"}, '
        '{client: ["file:clients", 172.16.0.0/12]}, {recipient: "file:people"}]'
    )
    (listener,) = settings_of(text, tmp_path).traffic.listeners
    assert listener.accept == (
        Condition(
            recipient_domain=Domains(frozenset({"example.org", "example.com"}), frozenset({"example.net"}))
        ),
        Condition(client=tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.1/32", "172.16.0.0/12")))),
        Condition(recipient=frozenset({"anna@example.org"})),
    )


def test_a_mistake_in_a_list_is_told_at_its_own_line_once(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("example.org\n\n  *.example.net\nb\u00fccher.example\n")
    text = with_listener(
        'bind: "0.0.0.0:25", to: p, bogus: 1, accept: [{recipient_domain: ["file:domains", "file:domains"]}]'
    )
    errors = [str(error) for error in errors_of(text, tmp_path)]
    path = tmp_path / "domains"
    assert [error.split(": ")[0] for error in errors[:2]] == [f"{path}:3:3", f"{path}:4:1"]
    assert len(errors) == 3


def test_a_wrong_file_does_not_flood(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("not a domain\n" * 1000)
    text = with_listener('bind: "0.0.0.0:25", to: p, accept: [{recipient_domain: "file:domains"}]')
    assert len(errors_of(text, tmp_path)) == 20


@pytest.mark.parametrize("name", ["nope", ".", "a\\0b"])
def test_a_list_that_cannot_be_read_is_told_at_the_value(name: str, tmp_path: Path) -> None:
    text = with_listener(f'bind: "0.0.0.0:25", to: p, accept: [{{recipient_domain: "file:{name}"}}]')
    assert keys_of(text, tmp_path) == ["listeners[0].accept[0].recipient_domain"]


def test_lists_are_part_of_the_digest(tmp_path: Path) -> None:
    text = with_listener('bind: "0.0.0.0:25", to: p, accept: [{recipient_domain: "file:domains"}]')
    (tmp_path / "domains").write_text("example.org\n")
    first = settings_of(text, tmp_path).sha256
    (tmp_path / "domains").write_text("example.net\n")
    assert settings_of(text, tmp_path).sha256 != first
