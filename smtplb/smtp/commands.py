"""Commands of a client: verbs, arguments, and in which phase each may come.

Owns the command table and the grammar of arguments (RFC 5321 4.1.1). Does not own what is done about them (dataplane/session.py).
Invariant: parsers take one line without its line end and return a value or a SyntaxFault; they never raise.
"""

from __future__ import annotations

import re
from enum import Enum, Flag, auto

from smtplb.smtp.address import parse_path

MAX_COMMAND_LINE_BYTES = (
    2048  # incl. CRLF. RFC 5321 4.5.3.1.4: 512; SIZE adds 26, AUTH= 500; Postfix line_length_limit 2048
)
MAX_SIZE_DIGITS = 20  # RFC 1870 4: size-value = 1*20DIGIT


class SyntaxFault(Enum):
    """Why a line is no command; policy/refusal.py has the reply of each."""

    ARGUMENTS = auto()  # an argument is missing, superfluous or malformed
    ADDRESS = auto()
    PARAMETER = auto()  # a MAIL or RCPT parameter that we do not offer
    PARAMETER_VALUE = auto()


class Phase(Flag):
    """Where a session stands, as far as the order of commands goes."""

    GREETED = auto()  # no HELO or EHLO yet
    READY = auto()  # between transactions
    MAIL = auto()  # MAIL was accepted, no RCPT yet
    RCPT = auto()  # a RCPT came
    ANY = GREETED | READY | MAIL | RCPT


class Verb(Enum):
    """Verbs and their rules: phases in which each is in order, whether an argument is required, allowed or forbidden."""

    HELO = (b"HELO", Phase.ANY, "required")
    EHLO = (b"EHLO", Phase.ANY, "required")
    MAIL = (b"MAIL", Phase.READY, "required")
    RCPT = (b"RCPT", Phase.MAIL | Phase.RCPT, "required")
    DATA = (b"DATA", Phase.RCPT, "forbidden")
    RSET = (b"RSET", Phase.ANY, "forbidden")
    NOOP = (b"NOOP", Phase.ANY, "allowed")
    VRFY = (b"VRFY", Phase.ANY, "required")
    HELP = (b"HELP", Phase.ANY, "allowed")
    QUIT = (b"QUIT", Phase.ANY, "forbidden")

    def __init__(self, token: bytes, phases: Phase, argument: str) -> None:
        self.token = token
        self.phases = phases
        self.argument = argument


# Known, not offered: 502 (RFC 5321 4.2.4), while anything else is 500.
NOT_IMPLEMENTED = frozenset(
    {b"EXPN", b"SEND", b"SOML", b"SAML", b"TURN", b"ETRN", b"ATRN", b"BURL"}
) | frozenset({b"AUTH", b"STARTTLS", b"BDAT", b"XCLIENT", b"XFORWARD"})
# A browser made to speak to us (ALPACA, CVE-2021-3618): the session ends at the first of these.
FOREIGN = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT", b"PATCH", b"TRACE"})

VERBS = {verb.token: verb for verb in Verb}

_PARAMETERS = re.compile(rb"(?:[ \t]+[A-Za-z0-9][A-Za-z0-9-]*(?:=[\x21-\x3c\x3e-\x7e]+)?)*[ \t]*\Z")
_SIZE = re.compile(rb"[0-9]{1,%d}\Z" % MAX_SIZE_DIGITS)
_HELLO = re.compile(rb"[\x21-\x7e]{1,255}\Z")
_BODY_VALUES = frozenset({b"7BIT", b"8BITMIME"})
_NO_PARAMETERS: dict[bytes, bytes | None] = {}

Parameters = dict[bytes, bytes | None]


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """(verb in upper case, argument without surrounding blanks)."""
    head, _, rest = line.partition(b" ")
    if b"\t" in head:
        head, _, rest = line.replace(b"\t", b" ").partition(b" ")
    return head.upper(), rest.strip(b" \t")


def parse_hello(argument: bytes) -> bytes | SyntaxFault:
    """The name of HELO or EHLO. Anything printable in one word is taken: names in HELO are often wrong and never trusted."""
    word = argument.split(b" ", 1)[0]
    return word if _HELLO.match(word) else SyntaxFault.ARGUMENTS


def parse_mail(argument: bytes) -> tuple[bytes, Parameters] | SyntaxFault:
    """MAIL FROM:<path> [parameters]: (path, parameters by upper-case name). SIZE and BODY are checked (RFC 1870, RFC 6152)."""
    parsed = _path_and_parameters(argument, b"FROM:")
    if isinstance(parsed, SyntaxFault):
        return parsed
    path, parameters = parsed
    for name, value in parameters.items():
        if name == b"SIZE":
            if value is None or not _SIZE.match(value):
                return SyntaxFault.PARAMETER_VALUE
        elif name == b"BODY":
            if value is None or value.upper() not in _BODY_VALUES:
                return SyntaxFault.PARAMETER_VALUE
        else:
            return SyntaxFault.PARAMETER
    return path, parameters


def parse_rcpt(argument: bytes) -> bytes | SyntaxFault:
    """RCPT TO:<path>. No extension that we offer has RCPT parameters."""
    parsed = _path_and_parameters(argument, b"TO:")
    if isinstance(parsed, SyntaxFault):
        return parsed
    path, parameters = parsed
    if not path:
        return SyntaxFault.ADDRESS
    return SyntaxFault.PARAMETER if parameters else path


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
