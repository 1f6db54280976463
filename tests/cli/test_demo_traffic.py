"""The demo's client against one embedded backend, without a balancer between: it must behave as an MTA does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from smtplb.cli import demo_traffic
from smtplb.cli.demo_ledger import Audit, Ledger, Told
from smtplb.cli.demo_traffic import GaveUp, Outbox, Traffic
from smtplb.cli.embedded import EmbeddedBackend, Fault, Taken, Verb

MESSAGES = 12


class Showing:
    def __init__(self) -> None:
        self.ledger = Ledger()
        self.backend = EmbeddedBackend(name="mx1", on_message=self._taken)
        self.outbox = Outbox(MESSAGES, hold_at=MESSAGES)
        self.delivered: list[int] = []
        self.on_delivered: Callable[[int], None] = self.delivered.append

    def _taken(self, taken: Taken) -> None:
        self.ledger.backend_took(taken.backend, taken.message_id)

    async def run(self, sessions: int = 3) -> Audit:
        self.traffic = Traffic(
            "127.0.0.1", self.backend.port, self.outbox, self.ledger, on_delivered=self.on_delivered
        )
        async with asyncio.timeout(20):
            await self.traffic.run(sessions)
        return self.ledger.audit(MESSAGES)


@pytest.fixture
async def showing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Showing]:
    monkeypatch.setattr(demo_traffic, "RETRY_PAUSE_S", 0)
    showing = Showing()
    await showing.backend.start()
    yield showing
    await showing.backend.stop()
    assert showing.backend.bugs == []


async def test_every_message_is_delivered_once_over_few_sessions(showing: Showing) -> None:
    audit = await showing.run()
    assert audit.disagreements == []
    assert audit.told == {Told.TAKEN: MESSAGES}
    assert showing.delivered == list(range(1, MESSAGES + 1))
    assert showing.traffic.counts.sessions == showing.backend.counts.connections_total == 3
    assert set(showing.traffic.counts.session_of.values()) == {0, 1, 2}


@pytest.mark.parametrize("verb", [Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.FINAL])
async def test_what_is_refused_is_sent_again_in_the_same_session(showing: Showing, verb: Verb) -> None:
    showing.backend.faults[verb] = Fault(reply="450 4.2.0 later", times=5)
    audit = await showing.run()
    assert audit.disagreements == []
    assert audit.told == {Told.TAKEN: MESSAGES, Told.REFUSED: 5}
    assert showing.traffic.counts.replies["250"] == MESSAGES
    assert showing.traffic.counts.sessions == 3


@pytest.mark.parametrize(("verb", "told"), [(Verb.DATA, Told.REFUSED), (Verb.FINAL, Told.IN_DOUBT)])
async def test_a_lost_connection_is_in_doubt_only_behind_the_terminator(
    showing: Showing, verb: Verb, told: Told
) -> None:
    showing.backend.faults[verb] = Fault(drop=True, times=2)
    audit = await showing.run()
    assert audit.disagreements == []
    assert audit.told == {Told.TAKEN: MESSAGES, told: 2}
    assert showing.traffic.counts.sessions == 5
    assert showing.traffic.counts.replies["connection lost"] == 2


async def test_the_balancers_words_for_in_doubt_are_understood(showing: Showing) -> None:
    showing.backend.faults[Verb.FINAL] = Fault(reply="451 4.4.2 connection to the backend lost", times=1)
    audit = await showing.run()
    assert audit.told == {Told.TAKEN: MESSAGES, Told.IN_DOUBT: 1}
    assert showing.traffic.counts.replies["451 in doubt"] == 1


async def test_a_421_ends_the_session_and_another_one_goes_on(showing: Showing) -> None:
    showing.backend.faults[Verb.CONNECT] = Fault(reply="421 4.3.2 busy", times=1)
    showing.backend.faults[Verb.FINAL] = Fault(reply="421 4.3.2 going down", times=1)
    audit = await showing.run()
    assert audit.disagreements == []
    assert showing.traffic.counts.sessions == 5


async def test_a_message_that_is_never_taken_ends_the_traffic(showing: Showing) -> None:
    showing.backend.faults[Verb.RCPT] = Fault(reply="550 5.1.1 nobody here")
    with pytest.raises(GaveUp, match="the last answer: 550"):
        await showing.run()
    assert len(showing.ledger.audit(MESSAGES).disagreements) == MESSAGES


async def test_nobody_listens(showing: Showing) -> None:
    await showing.backend.kill()
    with pytest.raises(GaveUp, match="no connection"):
        await showing.run()


async def test_the_rest_is_held_back_until_it_is_released(showing: Showing) -> None:
    showing.outbox = Outbox(MESSAGES, hold_at=7)
    seven = asyncio.Event()
    showing.on_delivered = lambda count: seven.set() if count == 7 else None
    running = asyncio.ensure_future(showing.run())
    await seven.wait()
    assert not running.done()
    showing.outbox.release()
    assert (await running).told == {Told.TAKEN: MESSAGES}
