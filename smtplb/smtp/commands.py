"""Commands of a client: a line taken apart, and its arguments.

Owns the grammar of arguments (RFC 5321 4.1.1). Does not own the table of verbs (verbs.py) or what is done about them
(dataplane/dialogue.py).
Invariant: parsers take one line without its line end and return a value or a SyntaxFault; they never raise.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from smtplb.smtp.address import is_ascii_path, parse_path
from smtplb.smtp.extensions import MAIL_PARAMETERS, RCPT_PARAMETERS, Parameters
from smtplb.smtp.scan import is_plain

# Functions from outside what is compiled are looked up by name each time: here once.
_is_plain: Final = is_plain

MAX_COMMAND_LINE_BYTES: Final = (
    2048  # incl. CRLF. RFC 5321 4.5.3.1.4: 512; SIZE adds 26, AUTH= 500; Postfix line_length_limit 2048
)
MAX_AUTH_LINE_BYTES: Final = 12288 + 2  # RFC 4954 4, and CRLF
MAX_SIZE_DIGITS: Final = 20  # RFC 1870 4: size-value = 1*20DIGIT


class SyntaxFault(Enum):
    """Why a line is no command; policy/refusal.py has the reply of each."""

    ARGUMENTS = auto()  # an argument is missing, superfluous or malformed
    ADDRESS = auto()
    PARAMETER = auto()  # a MAIL or RCPT parameter that we do not offer
    PARAMETER_VALUE = auto()
    NEEDS_SMTPUTF8 = auto()  # an address with octets above 127, and no SMTPUTF8


_PARAMETERS: Final = re.compile(rb"(?:[ \t]+[A-Za-z0-9][A-Za-z0-9-]*(?:=[\x21-\x3c\x3e-\x7e]+)?)*[ \t]*\Z")
_HELLO: Final = re.compile(rb"[\x21-\x7e]{1,255}\Z")
_XTEXT: Final = rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"
# RFC 3461 4.1-4.4 (ORCPT also takes RFC 6533's utf-8 forms, which are xtext), RFC 4954 5
_VALUES: Final = {
    b"SIZE": re.compile(rb"[0-9]{1,%d}\Z" % MAX_SIZE_DIGITS),
    b"RET": re.compile(rb"(?:FULL|HDRS)\Z", re.IGNORECASE),
    b"ENVID": re.compile(rb"%s\Z" % _XTEXT),
    b"AUTH": re.compile(rb"(?:<>|%s)\Z" % _XTEXT),
    b"NOTIFY": re.compile(
        rb"(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2})\Z", re.IGNORECASE
    ),
    b"ORCPT": re.compile(rb"[A-Za-z0-9-]+;[!-*,-<>-~+]+\Z"),
}
_BDAT: Final = re.compile(rb"([0-9]{1,%d})(?:[ \t]+(LAST))?\Z" % MAX_SIZE_DIGITS, re.IGNORECASE)
_MECHANISM: Final = re.compile(rb"[A-Za-z0-9_-]{1,20}\Z")  # RFC 4422 3.1
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}\Z")
_NO_PARAMETERS: Final[Parameters] = {}
_FOUR_LETTERS: Final = frozenset(
    {b"HELO", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"NOOP", b"QUIT"}
)
_BLANKS: Final = (0x20, 0x09)


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """(verb in upper case, argument without surrounding blanks)."""
    size = len(line)
    if size == 4:
        if line in _FOUR_LETTERS:
            return line, b""
    elif size > 4 and line[4] == 0x20:  # nearly all: by their place
        verb = line[:4]
        if verb in _FOUR_LETTERS:
            rest = line[5:]
            if rest and (rest[0] in _BLANKS or rest[-1] in _BLANKS):
                rest = rest.strip(b" \t")
            return verb, rest
    head, _, rest = line.partition(b" ")
    if head.find(b"\t") >= 0:  # not `in`, which for bytes looks for an integer first
        head, _, rest = line.partition(b"\t")  # it comes before any blank
    return head.upper(), rest.strip(b" \t")


def parse_hello(argument: bytes) -> bytes | SyntaxFault:
    """The name of HELO or EHLO. Anything printable in one word is taken: names in HELO are often wrong and never trusted."""
    blank = argument.find(b" ")
    word = argument if blank < 0 else argument[:blank]
    if 0 < len(word) < 256 and _is_plain(word):  # nearly all
        return word
    return word if _HELLO.match(word) else SyntaxFault.ARGUMENTS


def parse_mail(argument: bytes, offered: frozenset[bytes]) -> tuple[bytes, Parameters] | SyntaxFault:
    """MAIL FROM:<path> [parameters]: (path, parameters by upper-case name). `offered`: keywords of our EHLO."""
    parsed = _path_and_parameters(argument, b"FROM:")
    if isinstance(parsed, SyntaxFault):
        return parsed
    path, parameters = parsed
    for name, value in parameters.items():
        needs = MAIL_PARAMETERS.get(name)
        if needs is None or needs not in offered:
            return SyntaxFault.PARAMETER
        if name in (b"SMTPUTF8", b"REQUIRETLS"):
            good = value is None
        elif name == b"BODY":
            kind = (value or b"").upper()
            good = kind in (b"7BIT", b"8BITMIME") or (kind == b"BINARYMIME" and b"BINARYMIME" in offered)
        else:
            good = value is not None and _VALUES[name].match(value) is not None
        if not good:
            return SyntaxFault.PARAMETER_VALUE
    if b"SMTPUTF8" not in parameters and not is_ascii_path(path):
        return SyntaxFault.NEEDS_SMTPUTF8
    return path, parameters


def parse_rcpt(
    argument: bytes, offered: frozenset[bytes], *, smtputf8: bool
) -> tuple[bytes, Parameters] | SyntaxFault:
    """RCPT TO:<path> [parameters]. `smtputf8`: the transaction's MAIL asked for it."""
    parsed = _path_and_parameters(argument, b"TO:")
    if isinstance(parsed, SyntaxFault):
        return parsed
    path, parameters = parsed
    if not path:
        return SyntaxFault.ADDRESS
    for name, value in parameters.items():
        needs = RCPT_PARAMETERS.get(name)
        if needs is None or needs not in offered:
            return SyntaxFault.PARAMETER
        if value is None or not _VALUES[name].match(value):
            return SyntaxFault.PARAMETER_VALUE
    if not smtputf8 and not is_ascii_path(path):
        return SyntaxFault.NEEDS_SMTPUTF8
    return path, parameters


def parse_bdat(argument: bytes) -> tuple[int, bool] | None:
    """(octets, last). None: nobody can know where the next command begins."""
    found = _BDAT.match(argument)
    return (int(found[1]), found[2] is not None) if found is not None else None


def parse_auth(argument: bytes) -> tuple[bytes, bytes | None] | None:
    """(mechanism in upper case, initial response as it was sent or None). RFC 4954 4: base64, or "=" for an empty one."""
    mechanism, blank, response = argument.partition(b" ")
    if not _MECHANISM.match(mechanism):
        return None
    if not blank:
        return mechanism.upper(), None
    good = response not in (b"", b"*") and is_auth_response(response)
    return (mechanism.upper(), response) if good else None


def is_auth_response(line: bytes) -> bool:
    """A continuation line: base64, "=" or "*"."""
    return line in (b"=", b"*") or _BASE64.match(line) is not None


def _path_and_parameters(argument: bytes, keyword: bytes) -> tuple[bytes, Parameters] | SyntaxFault:
    if argument[: len(keyword)].upper() != keyword:
        return SyntaxFault.ARGUMENTS
    parsed = parse_path(argument[len(keyword) :])
    if parsed is None:
        return SyntaxFault.ADDRESS
    path, rest = parsed
    if not rest:
        return path, _NO_PARAMETERS
    if not _PARAMETERS.match(rest):
        return SyntaxFault.ARGUMENTS
    parameters: Parameters = {}
    for word in rest.split():
        name, equals, value = word.partition(b"=")
        name = name.upper()
        if name in parameters:  # twice: first or last? MTAs differ
            return SyntaxFault.ARGUMENTS
        parameters[name] = value if equals else None
    return path, parameters
