"""The law of the input: how a client's bytes are cut into segments changes nothing.

Any conversation, cut anywhere: the same replies in the same order, the same commands and the same messages at the backend.
A client waits where RFC 2920 3.1 says so, behind DATA; it cannot be asked to wait anywhere else.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.smtp.verbs import NOT_IMPLEMENTED, VERBS
from tests.dataplane.harness import FakeStage
from tests.dataplane.mta import OFFERS
from tests.dataplane.setup import Setup
from tests.effort import examples

MAIL, RCPT, DATA = b"MAIL FROM:<s@a.test>\r\n", b"RCPT TO:<r@b.test>\r\n", b"DATA\r\n"
ITEMS = [
    b"EHLO c.test\r\n",
    b"HELO c.test\r\n",
    b"NOOP\r\n",
    b"RSET\r\n",
    b"VRFY x\r\n",
    b"QUIT\r\n",
    b"XFORWARD NAME=x\r\n",
    b"STARTTLS\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    MAIL,
    MAIL + RCPT,
    MAIL + RCPT + b"RCPT TO:<unknown@b.test>\r\n",
    b"MAIL FROM:<>\n",  # a bare LF
    b"mail\tfrom: s@a.test SIZE=10\r\n",
    b"RCPT TO:<unknown@b.test>\r\n",
    b"RCPT TO:<a b@c.test>\r\n",
    b"RCPT TO:<r\xff@b.test>\r\n",
    RCPT,
    b"\0\r\r\n",
    b"\r\n",
    b"NOOP " + b"x" * 2041 + b"\r\n",  # 2048 octets
    b"NOOP " + b"x" * 2042 + b"\r\n",
    b"NOOP " + b"x" * 2042 + b"\n",
    b"y" * 3000 + b"QUIT\r\n",
    b"BDAT 4\r\nhi\r\n",
    b"BDAT 4 LAST\r\n\n.\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 5 LAST\r\nNOOP\n",
    b"BDAT x\r\n",
    b"BDAT 4" + b" " * 2100 + b"LAST\r\nRSET\r\n",
    b"GET / HTTP/1.1\r\n",
]
BODIES = [
    b".\r\n",
    b"hi\r\n.\r\n",
    b"..\r\n...x\r\n.\r\n",
    b"a\nb\r.\r\0\n.\r\n.\n\r\n.\r\n",
    b"x" * 5000 + b"\r\n.\r\n",
]
# Any octets behind any verb.
junk = st.tuples(
    st.sampled_from([b"", *VERBS, *NOT_IMPLEMENTED]),
    st.sampled_from([b"", b" ", b"\t"]),
    st.binary(max_size=30),
).map(lambda parts: b"".join(parts).replace(b"\n", b"") + b"\r\n")
# What must be waited for ends a burst: a line that is, or may be, DATA.
bursts = st.lists(
    st.one_of(
        st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6).map(lambda items: [b"".join(items)]),
        st.lists(junk, min_size=1, max_size=6),
        st.tuples(st.just(MAIL + RCPT + DATA), st.sampled_from(BODIES)).map(list),
        st.tuples(st.just(DATA), st.sampled_from(BODIES)).map(list),
    ),
    max_size=4,
).map(lambda lists: [b"EHLO c.test\r\n", *(burst for each in lists for burst in each)])
cuts = st.lists(st.integers(0, 6000), max_size=12)


def pieces(burst: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(burst), *(place % len(burst) for place in places)})
    return [burst[a:b] for a, b in itertools.pairwise(marks)]


def told(segments: list[bytes], mode: str, offers: tuple[str, ...] | None) -> tuple[object, ...]:
    """All that comes out of a conversation, at both ends."""
    stage = FakeStage(Setup(bare_newline=mode))
    mta = stage.mtas["A"]
    mta.offers = offers
    mta.verdicts["unknown@b.test"] = "550 5.1.1 unknown"
    client = stage.client()
    for segment in segments:
        if client.ended:
            break
        client.send(segment)
    replies, ended = client.everything, client.ended
    stage.finish()
    # Whether RSET was answered in time for its connection to be used again is a matter of time, and so is into how many chunks
    # a body is cut, and how much of one that is refused went out. What is asked and what is taken is not.
    commands = [line for line in mta.commands if line.startswith(("MAIL", "RCPT", "DATA"))]
    return replies, ended, commands, mta.taken, stage.record.failures, stage.record.outcomes


@pytest.mark.parametrize("offers", [OFFERS, (*OFFERS, "CHUNKING"), None], ids=["plain", "CHUNKING", "HELO"])
@pytest.mark.parametrize("mode", ["normalize", "reject"])
@settings(max_examples=examples(150))
@given(conversation=bursts, places=cuts)
def test_a_conversation_means_the_same_however_it_is_cut(
    mode: str, offers: tuple[str, ...] | None, conversation: list[bytes], places: list[int]
) -> None:
    whole = told(conversation, mode, offers)
    cut = told([piece for burst in conversation for piece in pieces(burst, places)], mode, offers)
    assert cut == whole


@pytest.mark.parametrize("item", [*ITEMS, *BODIES], ids=lambda item: repr(item[:24]))
def test_each_line_means_the_same_cut_at_every_place(item: bytes) -> None:
    """In a transaction, with a command behind it."""
    before = b"EHLO c.test\r\n" + MAIL + RCPT + (DATA if item in BODIES else b"")
    burst = item + b"NOOP\r\n"
    whole = told([before, burst], "normalize", OFFERS)
    for at in range(1, len(burst)):
        if at < 20 or at > len(burst) - 20 or abs(at - 2048) < 5:
            assert told([before, burst[:at], burst[at:]], "normalize", OFFERS) == whole, at
