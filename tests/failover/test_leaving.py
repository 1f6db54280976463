"""A client that leaves while its message is being sent again to another backend: nothing is delivered."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from tests.dataplane.harness import Client, FakeStage, FakeWire
from tests.dataplane.mta import OFFERS, Fault
from tests.dataplane.setup import Setup
from tests.e2e.balancer import Smtplb, pool
from tests.e2e.client import Client as RealClient
from tests.e2e.client import new_message_id, session, until
from tests.e2e.conftest import Begin
from tests.failover.network import Weather, network
from tests.lab import Postfix
from tests.lab.fixtures import Lab

LINE = b"x" * 70 + b"\r\n"
BODY = LINE * 40_000  # 2.9 MB: more than a stalled backend is sent at once
PLACES = {"memory": {"memory_bytes": 5_000_000}, "file": {"memory_bytes": 1000}}


def replay_under_way(stage: FakeStage, *, complete: bool) -> tuple[Client, FakeWire]:
    """A is lost in the body, or, if it is `complete`, has answered it with 452. B has said 354, and reads nothing any more."""
    client = stage.client().hello()
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
    for at in range(0, len(BODY), 200_000):
        client.send(BODY[at : at + 200_000])
    stage.sites["B"].connects = "hang"
    if complete:
        stage.mtas["A"].faults.append(Fault("final", "452 4.3.1 full"))
        client.send(b".\r\n")
    else:
        stage.mtas["A"].sessions[-1]._close()
        stage.loop.settle()
    pending = stage.loop.connects[-1]
    stage.sites["B"].connects = "accept"
    stage.loop.connecting(pending)
    while stage.mtas["B"].commands[-1:] != ["DATA"]:
        stage.loop.step()
    wire = stage.mtas["B"].sessions[-1].wire
    assert isinstance(wire, FakeWire)
    wire.stall()
    stage.loop.settle()
    assert wire.ours.unsent, "the replay is under way"
    return client, wire


@pytest.mark.parametrize("place", PLACES)
def test_reset_in_the_body_during_a_replay(place: str) -> None:
    """The client is not read meanwhile: that it has gone is seen before anything of it could become whole."""
    stage = FakeStage(Setup(pools={"p": "A B"}, replay=PLACES[place]))
    client, wire = replay_under_way(stage, complete=False)
    client.reset()
    wire.unstall()
    stage.loop.settle()
    assert stage.taken() == {"A": 0, "B": 0}
    assert stage.record.outcomes == ["aborted"]
    assert stage.mtas["B"].sessions[-1].ended == "aborted"
    assert stage.record.blamed == []
    stage.finish()


@pytest.mark.parametrize("place", PLACES)
def test_reset_behind_the_dot_during_a_replay(place: str) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, replay=PLACES[place]))
    client, wire = replay_under_way(stage, complete=True)
    client.reset()
    assert wire.ours.lost, "cut at once"
    assert stage.taken() == {"A": 0, "B": 0}
    assert stage.record.outcomes == ["aborted"]
    assert stage.mtas["B"].sessions[-1].ended == "aborted"
    stage.finish()


@pytest.mark.parametrize("place", PLACES)
def test_eof_in_the_body_during_a_replay(place: str) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, replay=PLACES[place]))
    client, wire = replay_under_way(stage, complete=False)
    client.eof()
    wire.unstall()
    stage.loop.settle()
    assert stage.taken() == {"A": 0, "B": 0}
    assert stage.record.outcomes == ["aborted"]
    stage.finish()


@pytest.mark.parametrize("place", PLACES)
def test_half_close_behind_the_dot_waits_for_the_replay_and_its_answer(place: str) -> None:
    """It has said all that it had to say, and listens (design 4.6)."""
    stage = FakeStage(Setup(pools={"p": "A B"}, replay=PLACES[place]))
    client, wire = replay_under_way(stage, complete=True)
    client.eof()
    assert client.take_all() == []
    wire.unstall()
    stage.loop.settle()
    assert client.take_all() == ["250 2.0.0 queued at B as 1"]
    assert stage.taken() == {"A": 0, "B": 1}
    assert stage.mtas["B"].taken[0].body == BODY
    stage.finish()


def test_half_close_behind_the_dot_starts_no_further_replay() -> None:
    stage = FakeStage(Setup(pools={"p": "A B D"}))
    client, wire = replay_under_way(stage, complete=True)
    client.eof()
    wire.reset()
    stage.loop.settle()
    assert client.take_all() == ["451 4.4.2 Connection to the mail server was lost, try again later"]
    assert stage.taken() == {"A": 0, "B": 0, "D": 0}
    assert stage.sites["D"].count == 0
    stage.finish()


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_leaving_while_a_real_postfix_is_sent_a_message_again(lab: Lab, begin: Begin, how: str) -> None:
    """The first Postfix is killed in the body; the way to the second one stands still in the middle of the replay."""
    large = {"message_size_limit": "60000000"}
    first, second = [
        await asyncio.to_thread(lab.start, Postfix(name, main_cf=large)) for name in ("first", "second")
    ]
    async with network(second.port, lambda: Weather(stall_after_to=5_000_000)) as slow:
        entries: list[dict[str, object]] = [
            {"name": "first", "address": first.address},
            {"name": "second", "address": slow.address, "backup": True},
        ]
        balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}))
        client = await RealClient.connect(balancer.port)
        await client.say("EHLO client.test")
        replies = await client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")
        assert replies[-1].startswith("354")
        writer = client._writer
        writer.write(f"Message-ID: {new_message_id()}\r\n\r\n".encode() + LINE * 150_000)  # 10.8 MB
        await writer.drain()
        await asyncio.to_thread(first.kill_hard)
        async with asyncio.timeout(30):
            await slow.stalled.wait()
        if how == "reset":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        slow.release()
        await until(lambda: bool(balancer.records("transaction-ended")), "the transaction is over")
        (ended,) = balancer.records("transaction-ended")
        assert (ended["smtplb.outcome"], ended["smtplb.backend"]) == ("aborted", "second")
        # Another message gets through, so the second one has looked at everything that came before it.
        async with session(balancer.port) as other:
            message_id = new_message_id()
            assert (await other.send(message_id)).startswith("250")
            await other.quit()
        await until(lambda: len(second.accepted()) > 0, "its record")
    assert [message.message_id for message in second.accepted()] == [message_id]
    assert first.accepted() == []


def test_who_half_closes_while_waiting_for_another_backend_gets_no_further_attempt() -> None:
    """To us it looks like a client that is gone: what the other backend took would be sent again (design 4.6)."""
    stage = FakeStage(Setup(pools={"p": "A B"}, max_connections=1))
    for mta in stage.mtas.values():
        mta.offers = (*OFFERS, "CHUNKING")
    first, second = stage.client().hello(), stage.client().hello()
    assert first.ask("MAIL FROM:<f@a.test>", "RCPT TO:<r@b.test>")[-1].endswith("at A")
    stage.mtas["B"].faults.append(Fault("rcpt", "close"))
    second.send("MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nBDAT 4 LAST\r\nhi\r\n")
    assert stage.record.failures == ["B fault rcpt lost"]
    assert second.take_all() == ["250 2.1.0 Ok"], "it waits for A"
    second.eof()
    first.ask("RSET")
    assert [reply[:3] for reply in second.take_all()] == ["451", "451"]
    assert stage.taken() == {"A": 0, "B": 0}
    assert stage.record.outcomes[-1] == "tempfail"
    stage.finish()
