"""What clients send: a message that any mistake with dots, line ends, 8-bit octets or blocks would change, and a login.

Owns their text. Invariant: each message has a Message-ID and a recipient of its own domain below DOMAIN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

DOMAIN = "clients.test"
SENDER = "anna@sender.test"

# Larger than what clients and balancer read or write at once, and no line at a round offset.
_MANY_LINES = [f"line {number} of a longer message, {'and more ' * (number % 9)}" for number in range(2500)]
_TRICKY_LINES = [
    "hello",
    ".one dot in front",
    "..two dots in front",
    ".",
    "...",
    "",
    "",
    "blanks behind   ",
    "\ttab in front",
    "Grüße, naïve façade, 日本語",
    "From here it could be a mailbox",
    "QUIT",
    "RCPT TO:<nobody@nowhere.test>",
    "x" * 980,
]
BODY = "\r\n".join([*_TRICKY_LINES, *_MANY_LINES, *_TRICKY_LINES, "end", ""]).encode()


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Mail:
    """`host`: of the recipient, below DOMAIN; mail servers choose the way by it."""

    host: str = "any"
    body: bytes = BODY
    sender: str = SENDER
    message_id: str = field(default_factory=lambda: f"<{uuid4().hex}@sender.test>")

    @property
    def recipient(self) -> str:
        return f"bert@{self.host}.{DOMAIN}"

    @property
    def content(self) -> bytes:
        """Lines end with CRLF."""
        header = [
            f"From: <{self.sender}>",
            f"To: <{self.recipient}>",
            "Subject: a real client",
            "Date: Thu, 02 Jul 2026 13:46:40 +0000",
            f"Message-ID: {self.message_id}",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: 8bit",
        ]
        return "\r\n".join([*header, "", ""]).encode() + self.body

    @property
    def text(self) -> bytes:
        """Lines end with LF, as in a file."""
        return self.content.replace(b"\r\n", b"\n")
