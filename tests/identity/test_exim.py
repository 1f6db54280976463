"""Exim: PROXY headers, BDAT as BDAT, and refused recipients that end no connection."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.balancer import Section, Smtplb, pool
from tests.e2e.client import Client, new_message_id, session
from tests.e2e.conftest import Begin
from tests.identity.parties import CLIENT, Visitor, envelope, visit
from tests.lab import Exim, wait_until
from tests.lab.fixtures import Lab

NO_CHECKS: Section = {"level": "off"}  # so that all connections in the log are those of mail
ACL = ["deny local_parts = ^nobody", "     message = no such user here", "accept"]
REFUSED = 15  # above smtp_accept_max_nonmail, smtp_max_synprot_errors and smtp_max_unknown_commands

TEXT = b"Subject: chunks\r\n\r\n.a line with a dot\r\n..\r\n" + b"0123456789 " * 6 + b"\r\n"
BODIES = {
    "one chunk": [TEXT],
    "a lone dot and a last chunk that is small": [TEXT + b".\r\n", b"behind the dot\r\n"],
    "an empty last chunk": [TEXT * 3, b""],
    "a CRLF that is cut in two": [TEXT[:-1], b"\n" + TEXT[:-2], b"\r\n"],
    "200 KiB": [b"Subject: large\r\n\r\n", (b"x" * 76 + b"\r\n") * 2700],
}


async def bdat(client: Visitor, chunks: list[bytes], message_id: str, *, pipelined: bool) -> str:
    """One message; the reply to its last chunk."""
    assert all(reply.startswith("250") for reply in await envelope(client, ["b@b.test"]))
    chunks = [f"Message-ID: {message_id}\r\n".encode() + chunks[0], *chunks[1:]]
    commands = [f"BDAT {len(chunk)}\r\n".encode() + chunk for chunk in chunks[:-1]]
    commands.append(f"BDAT {len(chunks[-1])} LAST\r\n".encode() + chunks[-1])
    if pipelined:
        client.write(b"".join(commands))
        replies = [await client.reply() for _ in commands]
    else:
        replies = []
        for each in commands:
            client.write(each)
            replies.append(await client.reply())
    assert all(reply.startswith("250") for reply in replies), replies
    return replies[-1]


async def arrived(server: Exim, message_id: str) -> str:
    """The line of the message in Exim's log."""
    found: list[str] = []

    def look() -> bool:
        found[:] = server.log_lines(f"id={message_id.strip('<>')}")
        return bool(found)

    await asyncio.to_thread(wait_until, look, "the message is in the log")
    return found[0]


def spooled(server: Exim, line: str) -> bytes:
    """The body as Exim has it, with CRLF again; its first line is a name."""
    queue_id = next(
        word for word in line.split() if word.count("-") == 2 and ":" not in word and len(word) >= 16
    )
    (path,) = (server.directory / "spool" / "input").glob(f"**/{queue_id}-D")
    return path.read_bytes().partition(b"\n")[2].replace(b"\n", b"\r\n")


@pytest.mark.parametrize("mode", ["proxy-v1", "proxy-v2"])
async def test_exim_logs_the_client_of_a_proxy_header(lab: Lab, begin: Begin, mode: str) -> None:
    server = await asyncio.to_thread(lab.start, Exim(proxy_protocol=True))
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(server, identity=mode, mta="exim")}))
    for source, hello in ((CLIENT, "one.client.test"), ("127.6.7.8", "two.client.test")):
        message_id = new_message_id()
        async with visit(balancer.port, source=source, hello=hello) as client:
            assert (await client.send(message_id)).startswith("250")
            assert (await client.quit()).startswith("221")
        line = await arrived(server, message_id)
        assert f" H=({hello}) [{source}] P=esmtp " in line
    # An empty line, or a header that was refused, would be in here.
    assert [line for line in server.log_lines() if "rror" in line or "PROXY" in line] == []


async def test_chunks_go_to_exim_as_chunks_and_data_as_data(lab: Lab, begin: Begin) -> None:
    """K in the log of Exim: the message came by CHUNKING."""
    server = await asyncio.to_thread(lab.start, Exim())
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(server, mta="exim")}))
    async with visit(balancer.port) as client:
        for chunks in BODIES.values():
            for pipelined in (False, True):
                message_id = new_message_id()
                await bdat(client, chunks, message_id, pipelined=pipelined)
                line = await arrived(server, message_id)
                assert " K " in line, line
                assert spooled(server, line) == b"".join(chunks).partition(b"\r\n\r\n")[2]
        message_id = new_message_id()
        assert (await client.send(message_id)).startswith("250")
        line = await arrived(server, message_id)
        assert " K " not in line
    assert server.log_lines("rror") == []


async def test_fifteen_refused_recipients_over_a_kept_connection_break_no_later_mail(
    lab: Lab, begin: Begin
) -> None:
    server = await asyncio.to_thread(lab.start, Exim(acl_rcpt=ACL))
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(server, mta="exim", check=NO_CHECKS)}))
    sent = []

    async def refused_then_mail(client: Client) -> None:
        for number in range(REFUSED):
            (reply,) = await envelope(client, [f"nobody{number}@b.test"])
            assert reply.startswith("550 5.")
            assert reply.endswith("no such user here")
            assert (await client.say("RSET")).startswith("250")
        sent.append(new_message_id())
        assert (await client.send(sent[-1])).startswith("250")

    # In one transaction, in one session, and by sessions that share connections.
    async with session(balancer.port) as client:
        replies = await envelope(
            client, [*(f"nobody{number}@b.test" for number in range(REFUSED)), "b@b.test"]
        )
        assert [reply[:3] for reply in replies] == ["550"] * REFUSED + ["250"]
        assert (await client.say("DATA")).startswith("354")
        sent.append(new_message_id())
        assert (await client.say(f"Message-ID: {sent[-1]}\r\n\r\nhello\r\n.")).startswith("250")
        assert (await client.quit()).startswith("221")
    async with session(balancer.port) as client:
        await refused_then_mail(client)
        assert (await client.quit()).startswith("221")
    for number in range(REFUSED):
        async with session(balancer.port) as client:
            (reply,) = await envelope(client, [f"nobody{number}@b.test"])
            assert reply.startswith("550 5.")
            assert (await client.quit()).startswith("221")
    async with session(balancer.port) as client:
        await refused_then_mail(client)
    messages = await asyncio.to_thread(server.wait_message_ids, sent)
    assert sorted(message.message_id for message in messages) == sorted(sent)
    # 3 messages and 45 transactions that came to nothing, over connections that were kept.
    connections = len(server.log_lines("SMTP connection from"))
    assert 1 < connections < 2 * REFUSED
    for complaint in ("too many", "Too many", "dropped", "lost", "synchronization"):
        assert server.log_lines(complaint) == []
    assert set(balancer.states().values()) <= {"up", "unproven"}
    assert balancer.records("backend-blamed") == []
