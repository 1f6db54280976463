"""One canonical body, whatever the framing on either side: DATA or BDAT in, DATA or BDAT out (design 4.12)."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtplb.settings import BareNewline
from smtplb.smtp.chunks import ChunkReader, DotStuffer
from tests.effort import examples
from tests.protocol.mta import FULL, OFFERS, Mta, strict_end
from tests.protocol.stage import Stage, pool

PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    b".",
    b"\0",
    b"a",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\xff",
    b" ",
    b"MAIL FROM:<evil@a.test>",
]
bodies = st.lists(st.sampled_from(PIECES), max_size=24).map(b"".join)
few = settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What some MTA somewhere took for the end of a message.
_LAX = re.compile(rb"(\A|\r\n|\n|\r)\0*\.\0*(?:\r\n|\n|\r)")


def lax_end(buffer: bytes) -> tuple[int, int] | None:
    found = _LAX.search(buffer)
    return (found.end(1), found.end()) if found else None


def canonical(body: bytes) -> bytes:
    """The law, said another way than smtp/body.py and smtp/chunks.py say it."""
    out = bytearray()
    for at, octet in enumerate(body):
        if octet == 0:
            out += b" "
        elif octet == 0x0A:
            out += b"\n" if body[at - 1 : at] == b"\r" else b"\r\n"
        elif octet == 0x0D:
            out += b"\r" if body[at + 1 : at + 2] == b"\n" else b" "
        else:
            out.append(octet)
    return bytes(out)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[a:b] for a, b in itertools.pairwise(marks)] or [b""]


cuts = st.lists(st.integers(0, 200), max_size=5)


@given(bodies, cuts)
def test_chunks_come_out_canonical_however_they_are_cut(body: bytes, places: list[int]) -> None:
    reader = ChunkReader(binary=False)
    out = b"".join(reader.feed(piece) for piece in cut(body, places)) + reader.finish()
    assert out == canonical(body)
    assert reader.lawless is (out != body)
    assert reader.raw_bytes == len(body)


@given(st.binary(max_size=100), cuts)
def test_binary_chunks_come_out_as_they_are(body: bytes, places: list[int]) -> None:
    reader = ChunkReader(binary=True)
    assert b"".join(reader.feed(piece) for piece in cut(body, places)) + reader.finish() == body
    assert not reader.lawless


@given(bodies.map(canonical), cuts)
def test_stuffing_can_be_undone_and_hides_every_end_of_data(body: bytes, places: list[int]) -> None:
    stuffer = DotStuffer()
    out = b"".join(stuffer.feed(piece) for piece in cut(body, places)) + stuffer.finish()
    assert strict_end(out + b".\r\n") == (len(out), len(out) + 3)
    undone = (b"\r\n" + out).replace(b"\r\n.", b"\r\n")[2:]
    assert undone == body + (b"" if not body or body.endswith(b"\r\n") else b"\r\n")


@pytest.mark.parametrize("offers", [FULL, OFFERS], ids=["CHUNKING", "without"])
@few
@given(body=bodies, places=cuts)
async def test_a_chunked_message_ends_once_also_at_a_lax_backend(
    offers: tuple[str, ...], body: bytes, places: list[int]
) -> None:
    mta = Mta("a", *offers)
    mta.find_end = lax_end
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        replies = await client.bdat(*cut(body, places))
        assert {reply[:3] for reply in replies} == {"250"}
        assert (await client.ask("NOOP")).startswith("250")
        (taken,) = mta.taken
        missing = "CHUNKING" not in mta.offers and body and not canonical(body).endswith(b"\r\n")
        assert taken.content == canonical(body) + (b"\r\n" if missing else b"")
        assert not any("evil" in line for line in mta.lines)


@few
@given(body=bodies.filter(lambda b: strict_end(b + b"x\r\n.\r\n") == (len(b) + 3, len(b) + 6)))
async def test_data_ends_once_also_at_a_lax_backend(body: bytes) -> None:
    mta = Mta("a")
    mta.find_end = lax_end
    async with Stage(pool(mta)) as stage:
        client = await stage.client()
        await client.envelope()
        assert (await client.data(body + b"x\r\n")).startswith("250")
        assert (await client.ask("NOOP")).startswith("250")
        (taken,) = mta.taken
        # a lone dot that only a bare LF made a line becomes two; every other leading dot stays as it was sent
        expected = b"\r\n".join(
            b".." if line == b"." else line for line in canonical(body + b"x\r\n").split(b"\r\n")
        )
        assert taken.raw == expected
        assert not any("evil" in line for line in mta.lines)


@pytest.mark.parametrize("chunked", [True, False])
@few
@given(body=bodies.filter(lambda b: strict_end(b + b"x\r\n.\r\n") == (len(b) + 3, len(b) + 6)))
async def test_where_lawless_newlines_are_refused_nothing_of_them_is_delivered(
    chunked: bool, body: bytes
) -> None:
    mta = Mta("a", *FULL)
    mta.find_end = lax_end
    async with Stage(pool(mta), listener={"bare_newline": BareNewline.REJECT}) as stage:
        client = await stage.client()
        await client.envelope()
        body += b"x\r\n"
        answer = (await client.bdat(body))[0] if chunked else await client.data(body)
        lawful = canonical(body) == body
        assert answer[:3] == ("250" if lawful else "550")
        assert len(mta.taken) == int(lawful)
        assert (await client.message()).startswith("250")
