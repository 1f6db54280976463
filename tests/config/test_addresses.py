"""Addresses: their forms, and that loopback is a fact and no answer of the DNS."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.config.addresses import (
    backend_address,
    bind_address,
    bind_addresses,
    family,
    is_loopback,
    source_address,
)
from smtplb.settings import Address

HERE = Path("/etc/smtplb")
PORTS = st.integers(1, 65535)
HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str).filter(lambda ip: not ip.startswith("::ffff:")),
    st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,10}){0,3}", fullmatch=True),
)


@given(HOSTS, PORTS)
def test_a_backend_address_reads_back_as_it_was_written(host: str, port: int) -> None:
    address = Address(host=host, port=port)
    assert backend_address(str(address)) == address


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), PORTS)
def test_a_bind_reads_back_as_it_was_written(ip: IPv4Address | IPv6Address, port: int) -> None:
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return
    address = Address(host=str(ip), port=port)
    assert bind_addresses(str(address), HERE) == (address,)
    assert is_loopback(address) == ip.is_loopback


@given(st.text())
def test_readers_raise_nothing_but_words(written: str) -> None:
    for read in (
        backend_address,
        source_address,
        lambda value: bind_addresses(value, HERE),
        lambda value: bind_address(value, HERE),
    ):
        try:
            read(written)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - either it reads or it says why


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("10.0.1.11", "has no port: write `10.0.1.11:25`"),
        ("mx1", "has no port: write `mx1:25`"),
        ("mx1:", "has no port: write `mx1:25`"),
        ("[::1]", "has no port: write `[::1]:25`"),
        ("2525", "has no port"),
        (":25", "has no host"),
        ("::1:25", "needs brackets"),
        ("[10.0.0.1]:25", "not an IPv6 address"),
        ("[::1:25", "write [2001:db8::1]:25"),
        ("[::1]25", "write [2001:db8::1]:25"),
        ("[fe80::1%eth0]:25", "zone"),
        ("[::ffff:10.0.0.1]:25", "write 10.0.0.1"),
        ("10.0.0:25", "neither an IP address nor a host name"),
        ("10.0.0.256:25", "neither an IP address nor a host name"),
        ("010.0.0.1:25", "neither an IP address nor a host name"),
        ("mx.1:25", "neither an IP address nor a host name"),
        ("m x:25", "not a host name"),
        ("mx..test:25", "not a host name"),
        ("müll.test:25", "xn--"),
        ("unix:/run/mx.sock", "over TCP"),
        ("mx:0", "not a port"),
        ("mx:65536", "not a port"),
        ("mx:025", "not a port"),
        ("mx:+25", "not a port"),
        ("mx:2_5", "not a port"),
        ("mx:٢٥", "not a port"),
        ("mx: 25", "not a port"),
        ("mx:smtp", "not a port"),
        (25, "is not text"),
    ],
)
def test_a_wrong_backend_address_is_told_how_to_be_written(written: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        backend_address(written)
    assert words in str(caught.value)


def test_addresses_have_one_form() -> None:
    assert backend_address("[2001:DB8:0::0012]:25") == Address("2001:db8::12", 25)
    assert backend_address("MX1.Example.ORG:25") == Address("mx1.example.org", 25)


def test_a_port_alone_binds_both_families() -> None:
    assert bind_addresses(":25", HERE) == (Address("0.0.0.0", 25), Address("::", 25))


def test_a_name_of_systemd_is_not_taken_for_loopback() -> None:
    assert bind_addresses("systemd:mx", HERE) == (Address(handed="mx"),)
    assert str(Address(handed="mx")) == "systemd:mx"
    assert not is_loopback(Address(handed="mx"))


def test_localhost_is_127_0_0_1_whatever_the_resolver_says() -> None:
    assert bind_addresses("localhost:25", HERE) == (Address("127.0.0.1", 25),)


def test_a_socket_stands_where_its_file_says() -> None:
    assert bind_addresses("unix:mx.sock", HERE) == (Address(path="/etc/smtplb/mx.sock"),)
    assert bind_addresses("unix:/run/mx.sock", HERE) == (Address(path="/run/mx.sock"),)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("mx.example.org:25", "write an IP address of this host"),
        ("0.0.0.0", "has no port"),
        ("0.0.0.0:0", "not a port"),
        ("unix:", "is empty"),
        ("unix:/" + "x" * 107, "at most 107 octets"),
        ("unix:a\x00b", "control characters"),
        ("systemd:", "write systemd:NAME"),
        ("systemd:a:b", "write systemd:NAME"),
        ("*:25", "write an IP address of this host"),
    ],
)
def test_a_wrong_bind_is_told_how_to_be_written(written: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        bind_addresses(written, HERE)
    assert words in str(caught.value)


@pytest.mark.parametrize("written", [":8025", "unix:/run/a.sock", "systemd:a"])
def test_where_one_tcp_address_is_wanted_nothing_else_passes(written: str) -> None:
    with pytest.raises(ValueError, match="write"):
        bind_address(written, HERE)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_127_0_0_0_8_and_1(host: str, loopback: bool) -> None:
    assert is_loopback(Address(host, 25)) is loopback


def test_a_source_is_an_ip_address_without_a_port() -> None:
    assert source_address("2001:DB8::5") == "2001:db8::5"
    for wrong in ("10.0.0.1:0", "lb1", "[::1]", "", 5):
        with pytest.raises(ValueError):
            source_address(wrong)


def test_a_host_name_is_of_no_family() -> None:
    assert (family("10.0.0.1"), family("::1"), family("mx")) == (4, 6, None)
