"""Laws of smtp/proxy_header.py: what is built is read back, and reading never goes beyond the header or guesses."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.smtp.proxy_header import (
    V1_MAX_BYTES,
    V2_MAX_BYTES,
    V2_SIGNATURE,
    Ip,
    Malformed,
    ProxyHeader,
    build_v1,
    build_v2,
    build_v2_local,
    read_header,
)

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ports = st.integers(0, 65535)
ends = st.tuples(addresses, ports, addresses, ports)
rests = st.binary(max_size=40)


def mapped(address: Ip, other: Ip) -> Ip:
    """As it is told beside an address of the other family."""
    if isinstance(address, IPv4Address) and other.version == 6:
        return IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return address


def check(
    header: bytes, source: Ip, source_port: int, destination: Ip, destination_port: int, rest: bytes
) -> None:
    for at in range(len(header)):
        assert read_header(header[:at]) is None, "every true prefix asks for more"
    read = read_header(header + rest)
    assert isinstance(read, ProxyHeader)
    assert read.size_bytes == len(header)
    assert (read.source, read.source_port) == (mapped(source, destination), source_port)
    assert (read.destination, read.destination_port) == (mapped(destination, source), destination_port)


@given(ends, rests)
def test_version_1_is_read_back(end: tuple[Ip, int, Ip, int], rest: bytes) -> None:
    header = build_v1(*end)
    assert len(header) <= V1_MAX_BYTES
    check(header, *end, rest)


@given(ends, rests, st.binary(max_size=200), st.sampled_from([b"", b"TLSv1.3"]), st.sampled_from([b"", b"X"]))
def test_version_2_is_read_back(
    end: tuple[Ip, int, Ip, int], rest: bytes, unique_id: bytes, version: bytes, cipher: bytes
) -> None:
    header = build_v2(*end, unique_id=unique_id, tls_version=version, tls_cipher=cipher)
    check(header, *end, rest)


def tlvs(data: bytes) -> dict[int, bytes]:
    out = {}
    while data:
        kind, size = struct.unpack_from("!BH", data)
        assert len(data) >= 3 + size
        out[kind] = data[3 : 3 + size]
        data = data[3 + size :]
    return out


def test_version_2_tells_session_and_tls_as_the_specification_says() -> None:
    ends = (IPv4Address("192.0.2.1"), 1025, IPv4Address("192.0.2.2"), 25)
    header = build_v2(*ends, unique_id=b"abc-1", tls_version=b"TLSv1.3", tls_cipher=b"TLS_AES_128_GCM_SHA256")
    assert header[:16] == V2_SIGNATURE + b"\x21\x11" + struct.pack("!H", len(header) - 16)
    assert header[16:28] == bytes([192, 0, 2, 1, 192, 0, 2, 2, 4, 1, 0, 25])
    told = tlvs(header[28:])
    assert told[0x05] == b"abc-1"
    assert told[0x20][:5] == b"\x01\x00\x00\x00\x01", "over TLS, and no certificate verified"
    assert tlvs(told[0x20][5:]) == {0x21: b"TLSv1.3", 0x23: b"TLS_AES_128_GCM_SHA256"}
    assert set(tlvs(build_v2(*ends)[28:])) == set()


def v2(command: int, family: int, data: bytes, length: int | None = None) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(data) if length is None else length) + data


NOBODY = {
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v1 UNKNOWN with more": b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    "LOCAL": build_v2_local(),
    "LOCAL with data": v2(0x20, 0x11, b"x" * 12),
    "unspecified": v2(0x21, 0x00, b""),
    "UDP": v2(0x21, 0x12, b"x" * 12),
    "unix": v2(0x21, 0x31, b"\0" * 216),
}


@pytest.mark.parametrize("header", NOBODY.values(), ids=NOBODY)
def test_some_headers_name_nobody(header: bytes) -> None:
    for at in range(len(header)):
        assert read_header(header[:at]) is None
    read = read_header(header + b"EHLO x\r\n")
    assert isinstance(read, ProxyHeader)
    assert (read.source, read.destination, read.size_bytes) == (None, None, len(header))


V1_MALFORMED = [
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 -2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 +2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 1_0\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
    b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 ::1 ::2 1 2\r\n",
    b"PROXY TCP6 1.2.3.4 ::2 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
    b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n\r\n",
    b"PROXY TCP4 1.2.3.4\0 5.6.7.8 1 2\r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 octets
    b"PROXY TCP4 " + b"1" * 200,
]
V2_MALFORMED = [
    v2(0x22, 0x11, b"x" * 12),
    v2(0x11, 0x11, b"x" * 12),
    v2(0x31, 0x11, b"x" * 12),
    v2(0x21, 0x11, b"x" * 11),
    v2(0x21, 0x21, b"x" * 35),
    v2(0x21, 0x11, b"", V2_MAX_BYTES),
    v2(0x20, 0x00, b"", 0xFFFF),
]
NO_HEADER = [
    b"EHLO x\r\n",
    b"proxy TCP4",
    b"\x16\x03\x01",
    b"\r\n\r\n\x00\r\nQUIX",
    b"\n",
    b"PROXY\r\n",
    b"PROXYX",
]


@pytest.mark.parametrize("data", V1_MALFORMED + V2_MALFORMED + NO_HEADER)
def test_malformed_is_told_and_stays_so(data: bytes) -> None:
    assert isinstance(read_header(data), Malformed)
    assert isinstance(read_header(data + b"\r\n" + b"x" * 300), Malformed)


def test_the_longest_lines_are_taken() -> None:
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == V1_MAX_BYTES
    assert isinstance(read_header(line), ProxyHeader)
    longest = v2(0x20, 0, b"x" * (V2_MAX_BYTES - 16))
    assert isinstance(read_header(longest), ProxyHeader)


@given(
    st.one_of(
        st.binary(max_size=130),
        st.binary(max_size=60).map(lambda b: V2_SIGNATURE + b),
        st.binary(max_size=120).map(lambda b: b"PROXY " + b),
    )
)
def test_any_bytes_are_a_header_or_not_yet_one_or_malformed(data: bytes) -> None:
    """And the answer never changes from malformed to anything else when more comes."""
    verdicts = [read_header(data[:at]) for at in range(len(data) + 1)]
    settled = next((at for at, verdict in enumerate(verdicts) if verdict is not None), None)
    if settled is None:
        assert len(data) < V2_MAX_BYTES
        return
    first = verdicts[settled]
    for later in verdicts[settled:]:
        assert type(later) is type(first)
        if isinstance(later, ProxyHeader) and isinstance(first, ProxyHeader):
            assert later.size_bytes == first.size_bytes <= settled, "it did not look beyond its end"
