"""Laws of smtp/identity.py: xtext, attributes, and the commands that carry them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.dataplane.identity import Identity
from smtplb.settings import IdentityMode
from smtplb.smtp.identity import (
    MAX_COMMAND_BYTES,
    MAX_VALUE_BYTES,
    UNAVAILABLE,
    XCLIENT_NAMES,
    XFORWARD_NAMES,
    build_commands,
    decode_xtext,
    encode_xtext,
    parse_attributes,
)

XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")
values = st.binary(min_size=1, max_size=300)


@given(values)
def test_xtext_holds_nothing_else_and_can_be_undone(value: bytes) -> None:
    encoded = encode_xtext(value)
    assert XTEXT.match(encoded)
    assert len(encoded) <= MAX_VALUE_BYTES
    decoded = decode_xtext(encoded)
    assert decoded is not None
    assert value.startswith(decoded)
    assert decoded == value or len(encoded) > MAX_VALUE_BYTES - 3, "cut only where it is too long"


@pytest.mark.parametrize(
    "text", [b"+", b"+4", b"+4g", b"+4a", b"a=b", b"a b", b"\0", b"\x7f", b"\xff", b"a\n"]
)
def test_what_is_no_xtext_is_not_decoded(text: bytes) -> None:
    assert decode_xtext(text) is None


names = st.sampled_from(sorted(XCLIENT_NAMES | XFORWARD_NAMES))


@given(st.dictionaries(names, values), st.frozensets(names), st.sampled_from([b"XCLIENT", b"XFORWARD"]))
def test_commands_tell_what_was_offered_and_only_that(
    attributes: dict[bytes, bytes], offered: frozenset[bytes], verb: bytes
) -> None:
    commands = build_commands(verb, attributes, offered)
    told: list[bytes] = []
    for command in commands:
        assert len(command) <= MAX_COMMAND_BYTES
        assert command.count(b"\r\n") == 1
        assert command.endswith(b"\r\n")
        first, *words = command[:-2].split(b" ")
        assert first == verb
        assert words
        for word in words:
            name, value = word.split(b"=", 1)
            assert value in (UNAVAILABLE, encode_xtext(attributes[name]))
            told.append(name)
    assert sorted(told) == sorted(set(attributes) & offered)
    if {b"ADDR", b"PORT"} <= set(told):
        assert told[:2] == [b"ADDR", b"PORT"], "Exim wants both in the first"
    if b"LOGIN" in told:
        assert told[-1] == b"LOGIN", "Postfix forgets it at each XCLIENT"


@given(
    st.dictionaries(
        st.sampled_from(sorted(XCLIENT_NAMES)),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.encode),
        min_size=1,
    )
)
def test_what_a_front_may_send_is_read_back(attributes: dict[bytes, bytes]) -> None:
    command = b" ".join(name + b"=" + encode_xtext(value) for name, value in attributes.items())
    assert parse_attributes(command, XCLIENT_NAMES) == attributes


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b" ",
        b"ADDR",
        b"ADDR =1.2.3.4",
        b"ADDR=1.2.3.4 ADDR=1.2.3.4",
        b"addr=1.2.3.4 ADDR=1.2.3.4",
        b"WHAT=ever",
        b"SOURCE=LOCAL",
        b"HELO=a+0D+0Ab",
        b"HELO=a+00b",
        b"HELO=a+7F",
        b"HELO=a+0a",
        b"HELO=\xff",
        b"HELO=" + b"x" * 256,
        b"ADDR=1.2.3.4\tPORT=1",
    ],
)
def test_malformed_attributes_are_none_at_all(argument: bytes) -> None:
    assert parse_attributes(argument, XCLIENT_NAMES) is None


@pytest.mark.parametrize(
    "attributes",
    [
        {b"ADDR": b"1.2.3"},
        {b"ADDR": b"1.2.3.4 "},
        {b"ADDR": b"[1.2.3.4]"},
        {b"ADDR": b""},
        {b"ADDR": b"IPV6:"},
        {b"ADDR": b"IPV6:fe80::1%eth0"},
        {b"ADDR": b"IPV6:fe80::1% 1.2.3.4 1 2"},
        {b"ADDR": b"\xff"},
        {b"PORT": b"65536"},
        {b"PORT": b"+5"},
        {b"PORT": b"1_0"},
        {b"PORT": "\u0664".encode()},
        {b"PORT": b""},
        {b"DESTADDR": b"x"},
        {b"DESTPORT": b"-1"},
    ],
)
def test_values_that_make_no_sense_change_nothing(attributes: dict[bytes, bytes]) -> None:
    identity = Identity("s-1")
    assert identity.take_xclient({b"ADDR": b"192.0.2.1", b"PORT": b"77", b"HELO": b"was.test"})
    before = identity.xclient()
    assert not identity.take_xclient({b"NAME": b"new.test", **attributes})
    assert identity.xclient() == before


@given(
    st.binary(min_size=1, max_size=255).filter(lambda v: not any(o < 0x20 or o == 0x7F for o in v)),
    st.ip_addresses(),
)
def test_no_identity_can_break_out_of_any_form(value: bytes, address: object) -> None:
    identity = Identity("s-1")
    told = {
        b"ADDR": str(address).encode(),
        b"DESTADDR": b"192.0.2.9",
        b"DESTPORT": b"25",
        b"NAME": value,
        b"LOGIN": value,
    }
    if not identity.take_xclient({**told, b"HELO": value}):
        assert identity.take_xclient(told)
    line = identity.received_line("lb.test", "s-1.1", "Thu, 1 Jan 1970 00:00:00 +0000")
    assert line.count(b"\r\n") == 3
    assert line.isascii()
    assert line.count(b"(") == 2, "a comment of the client would end ours"
    for mode in (IdentityMode.PROXY_V1, IdentityMode.PROXY_V2):
        assert identity.proxy_header(mode)
    for command in build_commands(b"XCLIENT", identity.xclient(), XCLIENT_NAMES):
        assert command.isascii()
        assert command[:-2].isprintable() if isinstance(command, str) else b"\r" not in command[:-2]


@pytest.mark.parametrize(
    "name", [b"two words", "\u00e4".encode(), b"", b"[UNAVAILABLE]", b"[TempUnavail]", b"a\tb"]
)
def test_a_name_that_helo_could_not_have_said_is_unknown(name: bytes) -> None:
    identity = Identity("s-1")
    assert identity.take_xclient({b"HELO": b"was.test"})
    assert identity.take_xclient({b"HELO": name})
    assert identity.helo == b""
