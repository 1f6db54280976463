"""A backend that dies in the body, wherever: another gets the same message, from memory or from a file, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtplb.settings import BackTlsMode, BackTlsSettings
from tests.effort import examples, seeds
from tests.protocol import certificates as certs
from tests.protocol.client import Client
from tests.protocol.mta import FULL, OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

LINE = b"%07d " + b"x" * 70 + b"\r\n"
SIZES = {"10 KB": 10_000, "300 KB": 300_000, "5 MB": 5_000_000}


def body(size: int) -> bytes:
    """No two lines are the same, so that a piece out of place is seen."""
    return b"".join(LINE % number for number in range(size // 80))


async def sends(client: Client, message: bytes, *, chunks: int = 0) -> str:
    """By DATA, or in so many chunks; the final reply."""
    if not chunks:
        return await client.data(message)
    size = max(len(message) // chunks, 1)
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return (await client.bdat(*pieces or [b""]))[-1]


async def sends_but_the_end(client: Client, message: bytes, *, chunks: int = 0) -> bytes:
    """What is left to say once the backend is seen to be gone."""
    if not chunks:
        assert (await client.ask("DATA")).startswith("354")
        client.send(message)
        return b".\r\n"
    size = max(len(message) // chunks, 1)
    for at in range(0, len(message), size):
        piece = message[at : at + size]
        client.send(b"BDAT %d\r\n%s" % (len(piece), piece))
    return b"BDAT 0 LAST\r\n"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.99])
@pytest.mark.parametrize(
    "way", ["DATA to DATA", "BDAT to BDAT", "BDAT to DATA", "BDAT to BDAT to DATA", "TLS"]
)
async def test_the_next_backend_gets_all_of_it(size: int, where: float, way: str, tmp_path: Path) -> None:
    offers = {
        "DATA to DATA": (OFFERS, OFFERS),
        "BDAT to BDAT": (FULL, FULL),
        "BDAT to DATA": (OFFERS, OFFERS),
        "BDAT to BDAT to DATA": (FULL, OFFERS),
        "TLS": (OFFERS, OFFERS),
    }[way]
    back = BackTlsSettings(BackTlsMode.REQUIRED if way == "TLS" else BackTlsMode.OFF, verify=False)
    extra = ("STARTTLS",) if way == "TLS" else ()
    a, b = (Mta(name, *each, *extra, tls=certs.server()) for name, each in zip("ab", offers, strict=True))
    message = body(size)
    a.dies_after = max(int(len(message) * where), 1)
    async with Stage(pool(a, b, tls=back), replay={"directory": str(tmp_path)}) as stage:
        client = await stage.client()
        await client.envelope()
        before = open_files()
        end = await sends_but_the_end(client, message, chunks=0 if way in ("DATA to DATA", "TLS") else 7)
        await until(lambda: stage.failures, "the loss is seen")
        client.send(end)
        while (answer := await client.reply()).endswith("octets taken"):
            pass
        assert answer.startswith("250")
        assert [t.content for t in b.taken] == [message]
        assert not a.taken
        assert stage.blamed == ["a"]
        assert not list(tmp_path.iterdir()), "the file has no name"
        assert open_files() <= before


@pytest.mark.campaign
@pytest.mark.parametrize("seed", seeds(4))
async def test_a_backend_may_die_at_any_octet(seed: int) -> None:
    random = Random(seed)
    for _ in range(12):
        message = body(random.choice((1000, 20_000, 400_000)))
        mtas = [Mta(name, *random.choice((FULL, OFFERS))) for name in "abc"]
        for mta in mtas[:2]:
            mta.dies_after = random.randint(1, len(message) - 1)
        replay = {"memory_bytes": random.choice((0, 1000, 300_000))}
        async with Stage(pool(*mtas), replay=replay) as stage:
            client = await stage.client()
            await client.envelope()
            answer = await sends(client, message, chunks=random.choice((0, 1, 5, 50)))
            taken = [t for mta in mtas for t in mta.taken]
            if answer.startswith("250"):
                assert [t.content for t in taken] == [message]
            else:
                assert answer.startswith("451 4.4.2")
                assert not taken
                assert stage.outcomes == ["in_doubt"]


async def paused_in_the_body(stage: Stage, client: Client, a: Mta, first: bytes) -> None:
    """`first` has come to the backend, and the client has more to say."""
    await client.envelope()
    assert (await client.ask("DATA")).startswith("354")
    client.send(first)
    await until(lambda: bytes(a.sessions[0]._buffer) == first, "it came")


@pytest.mark.parametrize(
    "replay",
    [{"per_message_bytes": 1000}, {"total_bytes": 1000}, {"memory_bytes": 0, "directory": "/nonexistent"}],
    ids=["per message", "in all", "no place"],
)
async def test_what_cannot_be_kept_is_streamed_and_a_loss_is_451(replay: dict[str, Any]) -> None:
    a, b = Mta("a"), Mta("b")
    first, rest = body(4000), body(8000)
    async with Stage(pool(a, b), replay=replay) as stage:
        client = await stage.client()
        assert (await client.message(body=first + rest)).startswith("250")
        assert (await client.message(body=first + rest)).startswith("250")
        assert [t.content for t in a.taken + b.taken] == [first + rest] * 2
        client = await stage.client()
        await paused_in_the_body(stage, client, a, first)
        a.sessions[0].reset()
        await until(lambda: stage.failures, "the loss is seen")
        client.send(rest + b".\r\n")
        assert (await client.reply()).startswith("451 4.4.2")
        assert (await client.message(body=rest)).startswith("250")


async def test_a_full_disk_in_the_middle_is_the_end_of_replay_only(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Mta("a"), Mta("b")
    written = 0
    real = os.write

    def write(file: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 100_000:
            raise OSError(28, "No space left on device")
        return real(file, data)

    message = body(400_000)
    async with Stage(pool(a, b), replay={"memory_bytes": 10_000}) as stage:
        client = await stage.client()
        before = open_files()
        monkeypatch.setattr("smtplb.dataplane.replay.os.write", write)
        assert (await client.message(body=message)).startswith("250")
        assert a.taken[0].content == message
        assert written > 100_000
        connection = 2  # to the backend, whose end is in this process, too
        assert open_files() == before + connection, "and no file"


async def test_with_nobody_left_the_body_is_read_and_the_answer_451() -> None:
    a = Mta("a")
    a.dies_after = 5000
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.data(body(2_000_000))).startswith("451 4.4.2")
        a.dies_after = None
        assert (await client.message(body=body(2_000_000))).startswith("250"), "in step"


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"a", b"\r\n", b"\n", b"\r", b".", b"\0", b"\r\n.x"]), max_size=30).map(
        b"".join
    ),
    st.integers(0, 40),
    st.integers(0, 4),
)
async def test_a_replay_is_canonical_too(text: bytes, where: int, chunks: int) -> None:
    a, b, sound = Mta("a", *FULL), Mta("b", *OFFERS), Mta("sound", *OFFERS)
    a.dies_after = where + 1
    if not chunks:
        text = text.replace(b"\r\n.", b"\r\nx").lstrip(b".") + b"\r\n"
    async with Stage(pool(a, b)) as stage, Stage(pool(sound)) as plain:
        answers = []
        for each in (stage, plain):
            client = await each.client()
            await client.envelope()
            answers.append((await sends(client, text, chunks=chunks))[:3])
        assert answers[1] == "250"
        assert answers[0] in ("250", "451")
        if answers[0] == "250" and b.taken:
            assert b.taken[0].raw == sound.taken[0].raw


# -- 452 to the final dot --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10_000, 1_000_000])
@pytest.mark.parametrize("chunks", [0, 3])
async def test_452_to_the_final_dot_is_tried_once_elsewhere(size: int, chunks: int) -> None:
    full = {"FINAL": "452 4.3.1 no space"}
    a, b, c = Mta("a", *FULL, says=dict(full)), Mta("b", *FULL, says=dict(full)), Mta("c", *FULL)
    message = body(size)
    async with Stage(pool(a, c), replay={"memory_bytes": 50_000}) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await sends(client, message, chunks=chunks)).startswith("250")
        assert [t.content for t in c.taken] == [message]
        assert stage.outcomes == ["ok"]
    async with Stage(pool(a, b, c)) as stage:
        client = await stage.client()
        await client.envelope()
        assert await sends(client, message, chunks=chunks) == "452 4.3.1 no space", "once only"


async def test_452_is_relayed_where_nobody_else_is_left_or_the_client_is_gone() -> None:
    a = Mta("a", says={"FINAL": "452 4.3.1 no space"})
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        assert await client.message() == "452 4.3.1 no space"
    a, b = Mta("a", says={"FINAL": "!silent"}), Mta("b")
    async with Stage(pool(a, b)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.ask("DATA")).startswith("354")
        client.send(b"x\r\n.\r\n")
        await until(lambda: a.sessions[0]._mode == "command")
        client.reset()
        await until(lambda: not stage.listener.sessions)
        a.sessions[0].say("452 4.3.1 no space")
        await until(lambda: stage.ends)
        assert not b.sessions


# -- where a retry goes ----------------------------------------------------------------------------------


async def test_who_was_told_to_come_again_meets_the_same_backend() -> None:
    """Greylisting without a shared database."""
    mtas = [Mta(name) for name in "abcd"]
    seen: dict[tuple[str, str], int] = {}

    async with Stage(pool(*mtas)) as stage:
        for mta in mtas:
            mta.answer = lambda session, line, mta=mta: _grey(seen, mta.name, line)  # type: ignore[misc]
        for number in range(12):
            rcpt = f"<r{number}@b.test>"
            client = await stage.client()
            assert (await client.message(rcpt)).startswith("450")
            await client.leave()
        for number in reversed(range(12)):
            rcpt = f"<r{number}@b.test>"
            client = await stage.client()
            assert (await client.message(rcpt)).startswith("250"), "the second try is taken at once"
            await client.leave()


def _grey(seen: dict[tuple[str, str], int], name: str, line: str) -> str | None:
    if not line.startswith("RCPT"):
        return None
    seen[name, line] = seen.get((name, line), 0) + 1
    return "450 4.2.0 greylisted" if seen[name, line] == 1 else None
