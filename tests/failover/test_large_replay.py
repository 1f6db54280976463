"""Bodies of 20 MB that are sent again from a file, because their backend was killed in the middle of them."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from tests.e2e.balancer import FIGURES, Json, Smtplb, pool
from tests.e2e.client import Client, new_message_id, session, until
from tests.e2e.conftest import Begin
from tests.failover.network import Weather, network
from tests.lab import Postfix, SmtpSink
from tests.lab.fixtures import Lab
from tests.lab.tcp_table import tcp_sockets

LARGE_BYTES = 20_000_000
PIECE_BYTES = 1_000_000
POSTFIX = {"message_size_limit": "60000000", "mailbox_size_limit": "0"}


def body_of(message_id: str, size_bytes: int = LARGE_BYTES) -> bytes:
    """Lines that are all different, some with leading dots, stuffed as DATA wants them."""
    lines = [f"Message-ID: {message_id}\r\n\r\n".encode()]
    size = 0
    number = 0
    while size < size_bytes:
        dots = "." * (number % 7 == 0) * 2
        line = f"{dots}{number:09d} {message_id} {'x' * (number % 600)}\r\n".encode()
        lines.append(line)
        size += len(line)
        number += 1
    return b"".join(lines)


async def begin_message(client: Client, sender: str) -> None:
    replies = await client.ask(f"MAIL FROM:<{sender}>", "RCPT TO:<r@b.test>", "DATA")
    assert replies[-1].startswith("354"), replies


async def send_part(client: Client, data: bytes) -> None:
    for at in range(0, len(data), PIECE_BYTES):
        client._writer.write(data[at : at + PIECE_BYTES])
        await client._writer.drain()


def has_read_all(balancer: Smtplb) -> bool:
    """Nothing that clients wrote is still in the kernel: a drained writer alone says little, some MB have room there."""
    under_way = [sock for sock in tcp_sockets() if balancer.port in sock.ports]
    return bool(under_way) and all(sock.is_drained for sock in under_way)


def open_replay_files(balancer: Smtplb) -> int:
    """Files without a name that the balancer has open."""
    found = 0
    for entry in os.scandir(f"/proc/{balancer.pid}/fd"):
        try:
            link = os.readlink(entry.path)  # "#" and its inode: it never had a name (O_TMPFILE)
            found += link.endswith(" (deleted)") and ("/#" in link or "smtplb-replay" in link)
        except OSError:
            continue
    return found


def text_of(message: bytes) -> str:
    """Digest of what is below the header, which servers add to."""
    return hashlib.sha256(message.replace(b"\r\n", b"\n").partition(b"\n\n")[2].rstrip(b"\n")).hexdigest()


def arrived(sink: SmtpSink) -> dict[str, str]:
    """Message-ID -> digest of the text of what Postfix sent on."""
    return {dump.partition(b"\nMessage-ID: ")[2].split()[0].decode(): text_of(dump) for dump in sink.dumps()}


@pytest.fixture
def sink(lab: Lab) -> SmtpSink:
    return lab.start(SmtpSink("behind", dump=True))


async def test_they_arrive_whole_and_once_and_the_files_are_gone(
    lab: Lab, begin: Begin, sink: SmtpSink
) -> None:
    servers = [
        await asyncio.to_thread(
            lab.start, Postfix(name, transport=f"smtp:[127.0.0.1]:{sink.port}", main_cf=POSTFIX)
        )
        for name in ("first", "second")
    ]
    entries: list[Json] = [{"name": each.name, "address": each.address} for each in servers]
    entries[1]["backup"] = True
    balancer = await asyncio.to_thread(
        begin, Smtplb({"relays": pool(*entries)}, listener={"limits": {"message_size": "60MiB"}})
    )
    rss_before = await asyncio.to_thread(balancer.rss_bytes)
    bodies = {message_id: body_of(message_id) for message_id in (new_message_id() for _ in range(3))}
    clients = [await Client.connect(balancer.port) for _ in bodies]
    for number, (client, body) in enumerate(zip(clients, bodies.values(), strict=True)):
        await client.say("EHLO client.test")
        await begin_message(client, f"s{number}@a.test")
        await send_part(client, body[:12_000_000])
    await until(lambda: has_read_all(balancer), "the balancer has it all")
    assert open_replay_files(balancer) == len(bodies)
    await asyncio.to_thread(servers[0].kill_hard)
    await until(lambda: len(balancer.records("attempt-failed")) == len(bodies), "the balancer has seen it")

    async def finish(client: Client, body: bytes) -> str:
        await send_part(client, body[12_000_000:])
        return await client.say(".")

    replies = await asyncio.gather(*map(finish, clients, bodies.values()))
    grown = await asyncio.to_thread(balancer.peak_rss_bytes) - rss_before
    assert all(reply.startswith("250 2.0.0 Ok: queued as") for reply in replies), replies
    assert open_replay_files(balancer) == 0
    for client in clients:
        assert (await client.quit()).startswith("221")
    await until(lambda: sink.messages() == len(bodies), "all of them behind Postfix", 60.0)
    digests = await asyncio.to_thread(arrived, sink)
    wanted = {
        message_id: text_of(body.replace(b"\r\n.", b"\r\n"))  # as it was before it was stuffed
        for message_id, body in bodies.items()
    }
    assert digests == wanted
    assert sorted(message.message_id for message in servers[1].accepted()) == sorted(bodies)
    assert servers[0].accepted() == []
    FIGURES.info("3 times 20 MB sent again; memory grew by %.1f MiB at most", grown / 2**20)
    assert grown < 15 * 2**20, "bodies are kept in files"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_message_over_the_budget_goes_on_without_replay_and_its_loss_is_a_451(
    lab: Lab, begin: Begin, workers: int
) -> None:
    """And one within the budget, at the same time, is sent again."""
    servers = [
        await asyncio.to_thread(lab.start, Postfix(name, main_cf=POSTFIX)) for name in ("first", "second")
    ]
    entries: list[Json] = [{"name": each.name, "address": each.address} for each in servers]
    entries[1]["backup"] = True
    sections = {
        "replay": {"memory": "64KiB", "shared_memory": "64KiB", "per_message": "2MiB", "total": "10MiB"},
        "workers": workers,
    }
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}, sections=sections))
    async with session(balancer.port) as small, session(balancer.port) as big:
        small_id, big_id = new_message_id(), new_message_id()
        await begin_message(small, "small@a.test")
        await begin_message(big, "big@a.test")
        await send_part(small, body_of(small_id, 1_000_000))
        await send_part(big, body_of(big_id, 4_000_000))
        await until(lambda: has_read_all(balancer), "the balancer has it all")
        await asyncio.to_thread(servers[0].kill_hard)
        await until(lambda: len(balancer.records("attempt-failed")) == 2, "the balancer has seen it")
        assert (await small.say(".")).startswith("250")
        await send_part(big, b"more\r\n" * 100_000)
        assert (await big.say(".")).startswith("451 4.4.2 Connection to the mail server was lost")
        assert (await big.say("RSET")).startswith("250")
        assert (await big.send(big_id)).startswith("250"), "the session lives on"
    await until(lambda: len(servers[1].accepted()) == 2, "both records")
    assert servers[0].accepted() == []


async def test_a_replay_over_a_slow_way_holds_the_client_and_nothing_else(lab: Lab, begin: Begin) -> None:
    """While 10 MB wait for a way that stands still, others send; the client that waits is not read."""
    servers = [
        await asyncio.to_thread(lab.start, Postfix(name, main_cf=POSTFIX)) for name in ("first", "second")
    ]
    async with network(servers[1].port, lambda: Weather(stall_after_to=3_000_000)) as slow:
        entries: list[Json] = [
            {"name": "first", "address": servers[0].address},
            {"name": "second", "address": slow.address, "backup": True},
        ]
        balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}))
        message_id = new_message_id()
        body = body_of(message_id, 10_000_000)
        async with session(balancer.port) as client:
            await begin_message(client, "held@a.test")
            await send_part(client, body[:6_000_000])
            await until(lambda: has_read_all(balancer), "the balancer has it all")
            await asyncio.to_thread(servers[0].kill_hard)
            async with asyncio.timeout(30):
                await slow.stalled.wait()
            async with session(balancer.port) as other:
                for _ in range(20):
                    assert (await other.send()).startswith("250")
            sending = asyncio.create_task(send_part(client, body[6_000_000:]))
            slow.release()
            await sending
            assert (await client.say(".")).startswith("250")
        await until(lambda: len(servers[1].accepted()) == 21, "all records")
    ids = [message.message_id for message in servers[1].accepted()]
    assert ids.count(message_id) == 1
