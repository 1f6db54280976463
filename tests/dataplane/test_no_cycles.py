"""The way of a message leaves nothing to the garbage collector: reference counts free all of it, at once."""

from __future__ import annotations

import gc

import pytest

from smtplb.dataplane.attempt import Attempt
from smtplb.dataplane.course import Course
from smtplb.dataplane.dialogue import Dialogue
from smtplb.dataplane.relay import Relay
from smtplb.dataplane.session import Session
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.setup import Setup

KINDS = (Attempt, Course, Dialogue, Relay, Session)


def alive() -> dict[str, int]:
    counts: dict[str, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, KINDS):
            counts[type(thing).__name__] = counts.get(type(thing).__name__, 0) + 1
    return counts


def message(client: Client) -> None:
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
    client.send(b"x\r\n.\r\n")
    assert client.take_all()[-1].startswith("250")


@pytest.mark.usefixtures("no_collector")
def test_a_message_leaves_no_cycle() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    message(client)
    before = alive()
    for _ in range(5):
        message(client)
    assert alive() == before
    stage.finish()


@pytest.mark.usefixtures("no_collector")
def test_a_session_leaves_no_cycle() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    message(stage.client().hello())
    before = alive()
    for _ in range(3):
        client = stage.client().hello()
        message(client)
        client.ask("QUIT")
        del client
    stage.loop.connects.clear()
    after = alive()
    assert after.get("Attempt", 0) <= before.get("Attempt", 0)
    # The harness keeps its transports, which keep their protocol; what a session refers to is gone all the same.
    assert after.get("Course", 0) + after.get("Relay", 0) <= before.get("Course", 0) + before.get("Relay", 0)
    stage.finish()
