"""Dialogues with an embedded backend: it must be a backend one can rely on, faults included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.cli import embedded
from smtplb.cli.embedded import EmbeddedBackend, Fault, Taken, Verb
from tests.cli.talk import Talk, talking
from tests.effort import examples

MESSAGE = b"X-Smtplb-Id: 17.2\r\nSubject: x\r\n\r\nhello\r\n"
END = b".\r\n"
FOREVER_S = 3600.0


@pytest.fixture
async def backend() -> AsyncIterator[EmbeddedBackend]:
    backend = EmbeddedBackend(name="mx1")
    await backend.start()
    yield backend
    await backend.stop()
    assert backend.bugs == []


@pytest.fixture
def taken(backend: EmbeddedBackend) -> list[Taken]:
    records: list[Taken] = []
    backend.on_message = records.append
    return records


async def test_a_message_is_recorded_with_its_id_and_thrown_away(
    backend: EmbeddedBackend, taken: list[Taken]
) -> None:
    async with talking(backend.port) as talk:
        await talk.start_message()
        assert (await talk.say(MESSAGE + END)).startswith("250")
        assert (await talk.say("QUIT")).startswith("221")
        assert await talk.reply() == ""
    assert taken == [Taken("mx1", "17.2", "a@a.test", ("b@b.test",), len(MESSAGE))]
    assert (backend.counts.messages, backend.counts.connections_total) == (1, 1)


async def test_a_message_is_on_record_before_its_250(backend: EmbeddedBackend) -> None:
    recorded = asyncio.Event()
    backend.on_message = lambda _: recorded.set()
    backend.faults[Verb.FINAL] = Fault(delay_s=0.01)
    async with talking(backend.port) as talk:
        await talk.start_message()
        final = asyncio.ensure_future(talk.say(MESSAGE + END))
        await recorded.wait()
        assert not final.done()
        assert (await final).startswith("250")


async def test_a_whole_transaction_in_one_write_gets_each_reply(
    backend: EmbeddedBackend, taken: list[Taken]
) -> None:
    async with talking(backend.port) as talk:
        assert "PIPELINING" in await talk.say("EHLO client.test")
        whole = b"MAIL FROM:<>\r\nRCPT TO:<b@b.test>\r\nRCPT TO:<c@b.test>\r\nDATA\r\n" + MESSAGE + END
        reply = await talk.say(whole + whole + b"NOOP\r\n", 11)
        assert reply.startswith("250")
    assert [record.sender for record in taken] == ["", ""]
    assert taken[0].recipients == ("b@b.test", "c@b.test")


async def test_pipelining_is_offered_only_on_request() -> None:
    backend = EmbeddedBackend(extensions=())
    await backend.start()
    async with talking(backend.port) as talk:
        assert "PIPELINING" not in await talk.say("EHLO client.test")
    await backend.stop()


async def test_mail_parameters_of_a_long_command_line_are_taken(backend: EmbeddedBackend) -> None:
    async with talking(backend.port) as talk:
        await talk.say("EHLO client.test")
        sender = "a" * 600 + "@a.test"
        assert (await talk.say(f"MAIL FROM:<{sender}> BODY=8BITMIME SIZE=1000")).startswith("250")


async def test_a_command_line_without_end_is_refused_and_the_dialogue_goes_on(
    backend: EmbeddedBackend,
) -> None:
    async with talking(backend.port) as talk:
        assert (await talk.say("NOOP " + "x" * 200_000)).startswith("500")
        assert (await talk.say("NOOP")).startswith("250")


@pytest.mark.parametrize(
    ("body", "message_bytes"),
    [
        (b"", 0),
        (b"\r\n", 2),
        (b"..\r\n", 4),
        (b"line.\r\n", 7),
        (b"\r\n..\r\n", 6),
        (b"\r\na.\r\n\r\n", 8),
        (b"x" * 200_000 + b".\r\n", 200_003),
        (b"\r\n" + b"x" * 65_536 + b"\r\n", 65_540),
    ],
)
async def test_the_end_of_a_message_is_the_terminator_and_nothing_else(
    backend: EmbeddedBackend, taken: list[Taken], body: bytes, message_bytes: int
) -> None:
    async with talking(backend.port) as talk:
        await talk.start_message()
        assert (await talk.say(body + END)).startswith("250")
        assert (await talk.say("NOOP")).startswith("250")
    assert [record.message_bytes for record in taken] == [message_bytes]


_LINES = st.lists(st.sampled_from([b"", b"..", b"a.", b"..a", b"\r", b"\n.", b"x" * 70_000]), max_size=8)


@settings(max_examples=examples(40))
@given(lines=_LINES, cuts=st.lists(st.integers(0, 300_000), max_size=4))
def test_however_a_message_arrives_its_length_is_found(lines: list[bytes], cuts: list[int]) -> None:
    body = b"".join(line + b"\r\n" for line in lines)
    wire = body + END
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[start:end] for start, end in pairwise(edges)]

    async def dialogue() -> list[Taken]:
        taken: list[Taken] = []
        backend = EmbeddedBackend(on_message=taken.append)
        await backend.start()
        async with talking(backend.port) as talk:
            await talk.start_message()
            for piece in pieces:
                await talk.say(piece, 0)
                await asyncio.sleep(0)  # a turn of the loop, so that pieces arrive apart
            assert (await talk.say(b"NOOP\r\n", 2)).startswith("250")
        await backend.stop()
        return taken

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert [record.message_bytes for record in runner.run(dialogue())] == [len(body)]


async def test_the_id_is_looked_for_in_the_header_only(backend: EmbeddedBackend, taken: list[Taken]) -> None:
    async with talking(backend.port) as talk:
        await talk.start_message()
        await talk.say(b"Subject: x\r\n\r\n" + MESSAGE + END)
        await talk.open_transaction()
        await talk.say(b"x-smtplb-ID:  a b \r\nX-Smtplb-Id: second\r\n" + END)
    assert [record.message_id for record in taken] == ["", "a b"]


# Faults on request.


@pytest.mark.parametrize(
    ("verb", "command"),
    [
        (Verb.EHLO, "EHLO client.test"),
        (Verb.HELO, "HELO client.test"),
        (Verb.MAIL, "MAIL FROM:<a@a.test>"),
        (Verb.RCPT, "RCPT TO:<b@b.test>"),
        (Verb.DATA, "DATA"),
        (Verb.RSET, "RSET"),
        (Verb.QUIT, "QUIT"),
    ],
)
async def test_a_verb_is_answered_as_requested_until_it_is_not(
    backend: EmbeddedBackend, verb: Verb, command: str
) -> None:
    backend.faults[verb] = Fault(reply="450 4.2.1 try later")

    async def up_to(talk: Talk) -> str:
        await talk.say("HELO client.test")
        if verb in (Verb.RCPT, Verb.DATA):
            await talk.say("MAIL FROM:<a@a.test>")
        if verb is Verb.DATA:
            await talk.say("RCPT TO:<b@b.test>")
        return await talk.say(command)

    async with talking(backend.port) as talk:
        assert await up_to(talk) == "450 4.2.1 try later"
    assert backend.counts.refused[verb, "450"] >= 1
    del backend.faults[verb]
    async with talking(backend.port) as talk:
        assert (await up_to(talk))[0] in "23"


async def test_what_was_refused_leaves_no_trace(backend: EmbeddedBackend) -> None:
    backend.faults[Verb.MAIL] = Fault(reply="450 4.2.1 try later", times=1)
    async with talking(backend.port) as talk:
        assert "503" in await talk.say("EHLO client.test\r\nMAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>", 3)
        assert (await talk.say("MAIL FROM:<a@a.test>")).startswith("250")


async def test_a_fault_with_a_number_of_times_wears_off(backend: EmbeddedBackend) -> None:
    backend.faults[Verb.RSET] = Fault(reply="421 4.3.2 busy", times=2)
    async with talking(backend.port) as talk:
        assert [(await talk.say("RSET"))[:3] for _ in range(3)] == ["421", "421", "250"]


async def test_a_refused_message_is_not_recorded(backend: EmbeddedBackend, taken: list[Taken]) -> None:
    backend.faults[Verb.FINAL] = Fault(reply="452 4.3.1 disk full")
    async with talking(backend.port) as talk:
        await talk.start_message()
        assert await talk.say(MESSAGE + END) == "452 4.3.1 disk full"
    assert taken == []


async def test_a_greeting_that_refuses_ends_the_connection(backend: EmbeddedBackend) -> None:
    backend.faults[Verb.CONNECT] = Fault(reply="421 4.3.2 all server ports are busy")
    async with talking(backend.port, greeting="421 4.3.2") as talk:
        assert await talk.reply() == ""


async def test_a_reply_in_the_middle_of_a_body_ends_the_connection(
    backend: EmbeddedBackend, taken: list[Taken]
) -> None:
    backend.faults[Verb.BODY] = Fault(reply="421 4.3.0 going down")
    async with talking(backend.port) as talk:
        await talk.start_message()
        assert await talk.say(b"Subject: x\r\n") == "421 4.3.0 going down"
        assert await talk.reply() == ""
    assert taken == []


@pytest.mark.parametrize(
    ("verb", "replies"),
    [(Verb.EHLO, 0), (Verb.MAIL, 1), (Verb.RCPT, 2), (Verb.DATA, 3), (Verb.BODY, 4), (Verb.FINAL, 4)],
)
async def test_a_connection_is_dropped_without_a_word(
    backend: EmbeddedBackend, taken: list[Taken], verb: Verb, replies: int
) -> None:
    backend.faults[verb] = Fault(drop=True)
    async with talking(backend.port) as talk:
        whole = b"EHLO x\r\nMAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n" + MESSAGE + END
        await talk.say(whole, replies)
        assert await talk.reply() == ""
    assert taken == []
    assert backend.counts.dropped == 1


async def test_a_message_above_the_limit_is_refused_at_its_end(
    taken: list[Taken], backend: EmbeddedBackend
) -> None:
    backend.message_size_bytes = 100
    async with talking(backend.port) as talk:
        assert "SIZE 100" in await talk.say("EHLO client.test")
        assert (await talk.say("MAIL FROM:<a@a.test> SIZE=101")).startswith("552")
        await talk.open_transaction()
        assert (await talk.say(b"x" * 101 + b"\r\n" + END)).startswith("552")
        await talk.open_transaction()
        assert (await talk.say(MESSAGE + END)).startswith("250")
    assert len(taken) == 1


@pytest.mark.parametrize("reply", ["", "hello", "99 x", "600 x", "250-x", "250 x\r\n250 y", "250 é"])
def test_what_is_no_reply_is_no_fault(reply: str) -> None:
    with pytest.raises(ValueError, match="is no reply"):
        Fault(reply=reply)


# Its life.


async def test_a_killed_backend_refuses_connections_and_gets_its_port_back(backend: EmbeddedBackend) -> None:
    port = backend.port
    async with talking(port) as talk:
        await talk.say("EHLO client.test")
        await backend.kill()
        assert await talk.reply() == ""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await backend.start()
        assert backend.port == port
        async with talking(port):
            assert backend.counts.connections_open == 1
            assert backend.counts.connections_total == 2


async def test_a_kill_before_the_record_takes_nothing(
    backend: EmbeddedBackend, taken: list[Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.faults[Verb.FINAL] = Fault(delay_s=FOREVER_S)
    at_the_end = asyncio.Event()
    asked = backend.fault_at

    def fault_at(verb: Verb) -> Fault:
        if verb is Verb.FINAL:
            at_the_end.set()
        return asked(verb)

    monkeypatch.setattr(backend, "fault_at", fault_at)
    async with talking(backend.port) as talk:
        await talk.start_message()
        final = asyncio.ensure_future(talk.say(MESSAGE + END))
        await at_the_end.wait()
        await backend.kill()
        assert await final == ""
    assert taken == []
    assert not backend.dialogues


async def test_a_kill_behind_the_record_leaves_the_client_in_doubt(backend: EmbeddedBackend) -> None:
    killing: list[asyncio.Task[None]] = []
    backend.on_message = lambda _: killing.append(asyncio.ensure_future(backend.kill()))
    backend.faults[Verb.FINAL] = Fault(delay_s=0.002)
    async with talking(backend.port) as talk:
        await talk.start_message()
        assert await talk.say(MESSAGE + END) == ""
    await killing[0]
    assert backend.counts.messages == 1


async def test_a_stopped_backend_leaves_open_connections_their_time(backend: EmbeddedBackend) -> None:
    async with talking(backend.port) as talk:
        await talk.start_message()
        stopping = asyncio.ensure_future(backend.stop(grace_s=FOREVER_S))
        assert (await talk.say(MESSAGE + END)).startswith("250")
        assert (await talk.say("QUIT")).startswith("221")
        await stopping
    await backend.stop()


async def test_a_client_that_does_not_read_cannot_hold_up_a_stop(
    backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "CLOSE_WITHIN_S", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.port, limit=1)
    writer.write(b"NOOP\r\n" * 500_000)
    await reader.readexactly(1)
    async with asyncio.timeout(10):
        await backend.stop()
    writer.transport.abort()


async def test_an_address_in_use_is_an_error_and_leaves_nothing(backend: EmbeddedBackend) -> None:
    second = EmbeddedBackend(port=backend.port)
    with pytest.raises(OSError, match="in use"):
        await second.start()
    assert not second.listening
    await second.stop()


async def test_a_bug_of_whoever_keeps_the_records_is_a_tempfail_and_is_kept(backend: EmbeddedBackend) -> None:
    def record(_: Taken) -> None:
        raise KeyError("oops")

    backend.on_message = record
    async with talking(backend.port) as talk:
        await talk.start_message()
        assert (await talk.say(MESSAGE + END)).startswith("451 4.3.0")
    assert [str(bug) for bug in backend.bugs] == ["'oops'"]
    backend.bugs.clear()


async def test_a_client_that_vanishes_in_the_middle_of_anything_is_no_bug(backend: EmbeddedBackend) -> None:
    backend.faults[Verb.CONNECT] = Fault(delay_s=FOREVER_S, times=1)
    _, writer = await asyncio.open_connection("127.0.0.1", backend.port)
    writer.close()
    for said in (
        b"",
        b"EHL",
        b"EHLO x\r\n",
        b"EHLO x\r\nMAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\nx",
    ):
        async with talking(backend.port) as talk:
            await talk.say(said, said.count(b"\r\n"))
    await backend.stop()
    assert backend.counts.connections_open == 0
