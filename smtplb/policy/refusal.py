"""Every reply that we invent, one row each.

Owns code, enhanced code, text and metric label of our own answers. Does not own when they are given.
Invariant: our own trouble is 421 or 451, never 5xx (design 4.8); no host name, no exception text, nothing a client said.
Each label is a heading in docs/problems.md where an operator can do something about it.
"""

from __future__ import annotations

from enum import Enum


class Refusal(Enum):
    """(code, subject.detail of the enhanced code, text, metric label). The class digit follows from the code (RFC 2034 4)."""

    # What the client did.
    LINE_TOO_LONG = (500, "5.2", "Line too long", "syntax")
    UNKNOWN_COMMAND = (500, "5.2", "Command not recognized", "syntax")
    BARE_NEWLINE_COMMAND = (500, "5.2", "Command lines end with CR LF", "bare-newline")
    BAD_ARGUMENTS = (501, "5.4", "Syntax error in arguments", "syntax")
    BAD_SENDER = (501, "1.7", "Malformed sender address", "syntax")
    BAD_RECIPIENT = (501, "1.3", "Malformed recipient address", "syntax")
    NOT_IMPLEMENTED = (502, "5.1", "Command not implemented", "syntax")
    WRONG_ORDER = (503, "5.1", "Bad sequence of commands", "order")
    NESTED_MAIL = (503, "5.1", "Nested MAIL command", "order")
    NO_VALID_RECIPIENTS = (554, "5.1", "No valid recipients", "order")
    UNKNOWN_PARAMETER = (555, "5.4", "Parameter not recognized or not implemented", "syntax")
    TOO_LARGE = (552, "3.4", "Message size exceeds the limit", "message-size")
    TOO_MANY_RECIPIENTS = (452, "5.3", "Too many recipients", "recipients")
    NOT_ACCEPTED = (550, "7.1", "Relaying denied", "accept")
    BARE_NEWLINE = (550, "6.0", "Message contains a bare CR or LF, or NUL", "bare-newline")
    MAIL_LOOP = (554, "4.6", "Too many hops: mail loop", "loop")
    OTHER_ROUTE = (452, "5.3", "Too many recipients: this one goes another way", "other-route")
    NEEDS_SMTPUTF8 = (553, "6.7", "Address needs SMTPUTF8", "syntax")
    CLIENT_DENIED = (554, "7.1", "Access denied", "denied")
    NEEDS_TLS = (530, "7.0", "Must issue a STARTTLS command first", "tls-required")
    TLS_NOT_NOW = (454, "7.0", "TLS not available due to temporary reason", "tls-unavailable")
    AUTH_NEEDS_TLS = (538, "7.11", "Encryption required for authentication", "tls-required")
    AUTH_ONCE = (503, "5.1", "Already authenticated", "order")
    AUTH_MECHANISM = (504, "5.4", "Unrecognized authentication type", "syntax")
    AUTH_MALFORMED = (501, "5.2", "Malformed authentication data", "syntax")
    AUTH_LINE_TOO_LONG = (500, "5.6", "Authentication exchange line too long", "syntax")
    AUTH_NOT_NOW = (454, "7.0", "Temporary authentication failure", "no-backend")
    BINARY_NEEDS_BDAT = (503, "5.1", "BINARYMIME needs BDAT", "order")
    CHUNK_UNREADABLE = (501, "5.4", "Malformed BDAT", "syntax")
    XCLIENT_DENIED = (550, "7.0", "XCLIENT not allowed", "denied")
    EARLY_TALKER = (554, "5.0", "Protocol error: spoke before the greeting", "early-talker")
    OUT_OF_TURN = (554, "5.0", "Protocol error: spoke before the answer to DATA", "early-talker")
    TOO_FAST = (421, "7.0", "Too many connections from your address, try again later", "rate")
    TOO_MANY_FROM_CLIENT = (
        421,
        "7.0",
        "Too many sessions from your address, try again later",
        "sessions-per-client",
    )
    TOO_MANY_MESSAGES = (450, "7.1", "Too many messages from your address, try again later", "rate")
    TOO_MANY_RCPTS_A_MINUTE = (450, "7.1", "Too many recipients from your address, try again later", "rate")
    FRONT_UNPROVEN = (451, "7.1", "The front did not say whose mail this is", "proxy-local")
    PINNED_LOST = (421, "4.2", "Connection to the mail server was lost, authenticate again", "backend-lost")
    TOO_MANY_ERRORS = (421, "7.0", "Too many errors", "errors")
    FOREIGN_PROTOCOL = (421, "7.0", "This is an SMTP service", "foreign-protocol")
    IDLE = (421, "4.2", "Idle for too long", "idle")
    TOO_SLOW = (421, "4.2", "Message takes too long", "slow-message")
    # Our own trouble, and that of backends.
    NOTHING_USABLE = (421, "3.2", "Service not available, try again later", "nothing-usable")
    TOO_MANY_SESSIONS = (421, "3.2", "Too many sessions, try again later", "sessions")
    SHUTTING_DOWN = (421, "3.2", "Service shutting down", "shutdown")
    RECONFIGURED = (421, "3.2", "Service configuration changed, connect again", "reconfigured")
    OUR_BUG = (421, "3.0", "Local error, try again later", "bug")
    NO_BACKEND = (451, "4.1", "No mail server can take this now, try again later", "no-backend")
    QUEUE_FULL = (451, "3.2", "Mail servers are busy, try again later", "queue-full")
    QUEUE_TIMEOUT = (451, "3.2", "Mail servers are busy, try again later", "queue-timeout")
    BACKEND_LOST = (451, "4.2", "Connection to the mail server was lost, try again later", "backend-lost")
    BACKEND_MISFIT = (451, "3.5", "Mail system misconfigured, try again later", "backend-misfit")
    REPLAY_FAILED = (451, "3.0", "Mail server changed during the transaction, try again", "replay")
    IN_DOUBT = (451, "4.2", "No answer to the message, try again later", "in-doubt")
    NO_RECIPIENTS_NOW = (451, "5.1", "No valid recipients now, try again later", "order")

    def __init__(self, code: int, detail: str, text: str, label: str) -> None:
        self.code = code
        self.label = label
        # A greeting or a session's end is a reply like any other; RFC 2034 exempts only greeting and HELO/EHLO from the code.
        self.wire = f"{code} {code // 100}.{detail} {text}\r\n".encode("ascii")
        self.line = self.wire[:-2]


OK_SENDER = b"250 2.1.0 Ok\r\n"
OK_RSET = b"250 2.0.0 Ok\r\n"
OK_NOOP = b"250 2.0.0 Ok\r\n"
CANNOT_VRFY = b"252 2.5.0 Cannot VRFY user, but will take mail for it\r\n"
HELP = b"214 2.0.0 See https://www.rfc-editor.org/rfc/rfc5321\r\n"
BYE = b"221 2.0.0 Bye\r\n"
CHUNK_TAKEN = b"250 2.0.0 %d octets taken\r\n"
READY_FOR_TLS = b"220 2.0.0 Ready to start TLS\r\n"
START_BODY = b"354 End data with <CR><LF>.<CR><LF>\r\n"
