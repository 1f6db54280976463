"""Clients that come from somewhere else, and certificates.

Owns where a client comes from and what it sends before the greeting. What it says then is tests/e2e/client.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trustme

from tests.e2e.client import Client
from tests.lab import TlsFiles

OURS = "127.0.0.1"  # what a server sees of us, and of every front of ours
CLIENT = "127.3.4.5"  # on loopback as well, and yet not us
FOREIGN = "192.0.2.1"  # in nobody's mynetworks
SERVER_NAME = "mx1.test"


def named(address: str, port: int = 40000) -> bytes:
    """What a front says of its client: a PROXY header of version 1."""
    return f"PROXY TCP4 {address} 192.0.2.100 {port} 25\r\n".encode()


class Visitor(Client):
    """A client that also says what are no lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.write = writer.write


@asynccontextmanager
async def visit(
    port: int, *, source: str = OURS, first: bytes = b"", hello: str = "mail.client.test"
) -> AsyncIterator[Visitor]:
    """A session past EHLO, of a client that comes from `source`; `first` goes before the greeting."""
    client = await arrive(port, source=source, first=first)
    try:
        assert client.greeting.startswith("220"), client.greeting
        assert (await client.say(f"EHLO {hello}")).startswith("250")
        yield client
    finally:
        client.close()


async def arrive(port: int, *, source: str = OURS, first: bytes = b"") -> Visitor:
    """A client that has read its greeting, whatever it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    client = Visitor(reader, writer)
    client.write(first)
    client.greeting = await client.reply()
    return client


async def envelope(client: Client, recipients: Sequence[str], sender: str = "a@a.test") -> list[str]:
    """MAIL, which must be taken, and RCPT, one after the other; the replies to RCPT."""
    assert (await client.say(f"MAIL FROM:<{sender}>")).startswith("250")
    return [await client.say(f"RCPT TO:<{recipient}>") for recipient in recipients]


class Authorities:
    """A server's certificate, the CA file that fits it, and one that does not."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        leaf = authority.issue_cert(SERVER_NAME)
        self.server = TlsFiles(str(folder / "mx1.pem"), str(folder / "mx1.key"))
        Path(self.server.certificate).write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(self.server.key)
        self._ca = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self._ca)
        self._other = str(folder / "other.pem")
        trustme.CA().cert_pem.write_to_path(self._other)

    def tls(self, *, wrong: bool = False) -> dict[str, str]:
        """`tls` of a backend: required and verified, by the authority of the server or by a stranger."""
        return {"mode": "required", "ca": self._other if wrong else self._ca, "server_name": SERVER_NAME}
