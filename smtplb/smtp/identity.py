"""XCLIENT and XFORWARD: attributes, their encoding, and the commands that carry a client's identity.

Owns xtext (RFC 3461 4) and the attribute rules of both commands (Postfix XCLIENT_README, XFORWARD_README).
Does not own whether a backend is told an identity (dataplane), nor whom we believe in front (listener).
Invariant: nothing enters a command unencoded: no octet outside xtext, no value above the limit (CVE-2026-28753).
"""

from __future__ import annotations

import re
from typing import Final

MAX_VALUE_BYTES: Final = 255  # XCLIENT_README: attribute values, encoded
MAX_COMMAND_BYTES: Final = 512  # XCLIENT_README: one command, incl. CRLF

UNAVAILABLE: Final = b"[UNAVAILABLE]"

XCLIENT_NAMES: Final = frozenset(
    {b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT", b"REVERSE_NAME"}
)
XFORWARD_NAMES: Final = frozenset({b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"IDENT", b"SOURCE"})

# RFC 3461 4: xchar = any ASCII between "!" and "~" but "+" and "="
_XCHAR: Final = frozenset(range(0x21, 0x7F)) - {0x2B, 0x3D}
_ENCODED: Final = [bytes([octet]) if octet in _XCHAR else b"+%02X" % octet for octet in range(256)]
_XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")
_HEX: Final = re.compile(rb"\+([0-9A-F]{2})")
_ATTRIBUTE: Final = re.compile(rb"([A-Za-z][A-Za-z_]{0,31})=([!-~]{0,255})\Z")


def encode_xtext(value: bytes) -> bytes:
    """Cut, after encoding, at a whole octet below MAX_VALUE_BYTES."""
    out = b""
    for octet in value:
        piece = _ENCODED[octet]
        if len(out) + len(piece) > MAX_VALUE_BYTES:
            break
        out += piece
    return out


def decode_xtext(text: bytes) -> bytes | None:
    """None if it is not xtext."""
    if not _XTEXT.match(text):
        return None
    return _HEX.sub(lambda found: bytes([int(found[1], 16)]), text)


def build_commands(verb: bytes, attributes: dict[bytes, bytes], offered: frozenset[bytes]) -> list[bytes]:
    """The commands that tell `attributes` (values not yet encoded), only those that the backend offered.

    Each command stays within MAX_COMMAND_BYTES; ADDR and PORT share the first (Exim wants both in it), LOGIN goes into the
    last, since Postfix forgets it at each XCLIENT. The order is that of `attributes` otherwise.
    """
    told = [name for name in attributes if name in offered]
    first = [name for name in (b"ADDR", b"PORT") if name in told]
    last = [name for name in (b"LOGIN",) if name in told]
    order = first + [name for name in told if name not in first and name not in last] + last
    commands: list[bytes] = []
    line = verb
    for name in order:
        value = attributes[name]
        word = b" %s=%s" % (name, value if value == UNAVAILABLE else encode_xtext(value))
        if len(line) + len(word) + 2 > MAX_COMMAND_BYTES:
            commands.append(line + b"\r\n")
            line = verb
        line += word
    if line != verb:
        commands.append(line + b"\r\n")
    return commands


def address_attribute(text: str) -> bytes:
    """XCLIENT_README: IPv6 addresses carry the prefix IPV6:."""
    return (b"IPV6:" if ":" in text else b"") + text.encode("ascii")


def parse_attributes(argument: bytes, known: frozenset[bytes]) -> dict[bytes, bytes] | None:
    """Attributes of an XCLIENT that a client sent, decoded; None if any is malformed, unknown or given twice."""
    out: dict[bytes, bytes] = {}
    for word in argument.split(b" "):
        if not word:
            continue
        found = _ATTRIBUTE.match(word)
        if found is None:
            return None
        name = found[1].upper()
        value = decode_xtext(found[2])
        if value is None or name not in known or name in out:
            return None
        if any(octet < 0x20 or octet == 0x7F for octet in value):
            return None
        out[name] = value
    return out or None
