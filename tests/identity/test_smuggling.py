"""Sequences that some server takes for the end of a message: through us each is one message at a real server, or none.

Wang et al. 2025, CVE-2023-51764 to -51766, CVE-2024-27305. The same is said to the servers directly, to see that it can be seen:
how many of the sequences this build of a server falls for is in the log of the test, and no law.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import product

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import new_message_id
from tests.e2e.conftest import Begin
from tests.identity.parties import Visitor, envelope, visit
from tests.lab import Exim, Mta, Postfix, Sendmail
from tests.lab.fixtures import Lab

BEFORE = [b"\r\n", b"\n", b"\r", b"\r\n\0", b"\n\0", b"\r\0\n"]
DOTS = [b".", b".\0", b"\0."]
BEHIND = [b"\r\n", b"\n", b"\r", b"\0\r\n", b"\r\0\n", b"\r\r\n"]
TRICKS = [b"".join(parts) for parts in product(BEFORE, DOTS, BEHIND) if b"".join(parts) != b"\r\n.\r\n"]
SERVERS: dict[str, Callable[[], Mta]] = {
    # It makes new messages wait for a second while more come than leave. Of those that are refused none leaves.
    "postfix": lambda: Postfix(main_cf={"in_flow_delay": "0s"}),
    "exim": Exim,
    "sendmail": Sendmail,
}
AT_A_TIME = 20  # sessions: Exim takes a fifth of a second to answer QUIT


def evil(message_id: str) -> str:
    return message_id.replace("@", ".smuggled@")


def content(message_id: str, trick: bytes) -> bytes:
    """A message in which a second one hides; its own end is the lawful one at the end."""
    smuggled = f"MAIL FROM:<evil@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\nMessage-ID: {evil(message_id)}\r\n\r\nx\r\n"
    return f"Message-ID: {message_id}\r\nSubject: x\r\n\r\nhello".encode() + trick + smuggled.encode()


async def by_data(client: Visitor, message: bytes) -> str:
    assert (await client.say("DATA")).startswith("354")
    client.write(message + b".\r\n")
    return await client.reply()


async def by_chunks(client: Visitor, message: bytes) -> str:
    """In two, cut where it hurts."""
    at = message.index(b"MAIL FROM") - 2
    client.write(b"BDAT %d\r\n%s" % (at, message[:at]))
    assert (await client.reply())[:3] in ("250", "550")  # refused already
    client.write(b"BDAT %d LAST\r\n%s" % (len(message) - at, message[at:]))
    return await client.reply()


async def directly(server: Mta, trick: bytes) -> str:
    """Without us; the id of the message."""
    message_id = new_message_id()
    async with visit(server.port) as client:
        await envelope(client, ["b@b.test"])
        await by_data(client, content(message_id, trick))
        client.write(b"QUIT\r\n")
        while (await client.reply())[:3].isdigit():
            pass
    return message_id


@pytest.mark.parametrize("mode", ["normalize", "reject"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_nothing_but_the_end_is_an_end(lab: Lab, begin: Begin, kind: str, mode: str) -> None:
    server = await asyncio.to_thread(lab.start, SERVERS[kind]())
    balancer = await asyncio.to_thread(
        begin,
        Smtplb(
            {"relays": pool(server, mta=kind)},
            listener={"bare_newline": mode, "limits": {"errors": 10_000}},
        ),
    )
    await asyncio.to_thread(balancer.wait_state, kind, "up")
    taken = []
    async with visit(balancer.port) as client:
        for send in (by_data, by_chunks):
            for trick in TRICKS:
                message_id = new_message_id()
                assert [reply[:3] for reply in await envelope(client, ["b@b.test"])] == ["250"]
                answer = await send(client, content(message_id, trick))
                assert answer[:3] == ("250" if mode == "normalize" else "550"), (trick, answer)
                if mode == "normalize":
                    taken.append(message_id)
            taken.append(new_message_id())
            assert (await client.send(taken[-1])).startswith("250"), "in step"
    found = await asyncio.to_thread(server.wait_message_ids, taken)
    assert sorted(message.message_id for message in found) == sorted(taken)


@pytest.mark.parametrize("kind", SERVERS)
async def test_what_servers_make_of_it_without_us(lab: Lab, kind: str) -> None:
    server = await asyncio.to_thread(lab.start, SERVERS[kind]())
    sent: dict[str, bytes] = {}
    tricks = iter(TRICKS)

    async def try_all() -> None:
        for trick in tricks:
            sent[await directly(server, trick)] = trick

    await asyncio.gather(*(try_all() for _ in range(AT_A_TIME)))
    assert sorted(sent.values()) == sorted(TRICKS)
    last = new_message_id()
    async with visit(server.port) as client:
        assert (await client.send(last)).startswith("250")
    await asyncio.to_thread(server.wait_message_ids, [last])
    ids = {message.message_id for message in server.accepted()}
    fallen_for = sorted(trick for message_id, trick in sent.items() if evil(message_id) in ids)
    FIGURES.info("%s falls for %d of %d: %r", kind, len(fallen_for), len(TRICKS), fallen_for)
    if kind == "postfix":  # for clients in mynetworks, in every version so far
        assert b"\n.\r\n" in fallen_for, "else the test above shows nothing"
