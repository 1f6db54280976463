"""Backends that die and come back, under load: nothing is lost, nobody is cut off, status tells in time."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.e2e.balancer import (
    CHECK_TIMEOUT_S,
    FALL,
    FAST_INTERVAL_S,
    FIGURES,
    INTERVAL_S,
    RISE,
    Smtplb,
    pool,
    unix_time,
)
from tests.e2e.client import Traffic, copies, new_message_id, session, settle, until
from tests.e2e.conftest import Begin
from tests.lab import Postfix
from tests.lab.fixtures import Lab

pytestmark = pytest.mark.measured

DOWN_WITHIN_S = INTERVAL_S + FALL * CHECK_TIMEOUT_S + (FALL - 1) * FAST_INTERVAL_S
UP_WITHIN_S = INTERVAL_S + (RISE + 1) * CHECK_TIMEOUT_S + (RISE - 1) * FAST_INTERVAL_S
JITTER = 0.8  # intervals may be shorter by a fifth
SLACK_S = 1.0  # for a machine under load: more than any stall of the balancer's loop
SESSIONS = 6
FAILBACK_S = 1.5


async def postfix(lab: Lab, name: str) -> Postfix:
    return await asyncio.to_thread(lab.start, Postfix(name))


async def test_with_a_postfix_killed_and_started_again_each_250_is_one_message_and_status_tells_in_time(
    lab: Lab, begin: Begin
) -> None:
    servers = [await postfix(lab, "one"), await postfix(lab, "two")]
    victim = servers[0]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*servers)}))
    async with Traffic(balancer.port, sessions=SESSIONS, per_session=50) as traffic:
        for _ in range(2):
            await traffic.more(150)
            killed = time.time()
            await asyncio.to_thread(victim.kill_hard)
            down = await asyncio.to_thread(balancer.wait_state, victim.name, "down")
            took_s = unix_time(down["since"]) - killed
            assert (FALL - 1) * FAST_INTERVAL_S * JITTER <= took_s <= DOWN_WITHIN_S + SLACK_S
            assert f"{FALL} of {FALL}" in down["reason"]
            FIGURES.info("down after %.2f s: %s", took_s, down["reason"])
            await traffic.more(100)  # at the one that is left
            started = time.time()
            await asyncio.to_thread(victim.start)
            listening = time.time()
            up = await asyncio.to_thread(balancer.wait_state, victim.name, "up")
            since = unix_time(up["since"])
            assert started + (RISE - 1) * FAST_INTERVAL_S * JITTER <= since
            assert since - listening <= UP_WITHIN_S + SLACK_S
            FIGURES.info("up %.2f s after it listens again", since - listening)
        await traffic.more(150)
    ledger = await traffic.stop()
    taken = await settle(ledger, servers)
    # Only what was under way at the moment of a kill is answered otherwise, and in words that a client repeats.
    not_ok = ledger.not_ok()
    assert len(not_ok) <= 2 * SESSIONS
    assert {reply[:9] for reply in not_ok} <= {"451 4.4.2"}
    assert (ledger.cut, ledger.dismissed, ledger.refused) == (0, 0, [])
    # Taken without a 250 is in doubt, and each of those stands in our log.
    doubts = [
        record for record in balancer.records("transaction-ended") if record["smtplb.outcome"] == "in_doubt"
    ]
    assert len(set(taken) - set(ledger.ids())) <= len(doubts) <= len(not_ok)
    assert set(balancer.states().values()) == {"up"}
    FIGURES.info("%d messages answered 250, %d in records, else: %s", len(ledger.ids()), len(taken), not_ok)


async def test_active_passive_moves_open_sessions_to_the_other_pool_and_back_after_the_delay(
    lab: Lab, begin: Begin
) -> None:
    east, west = await postfix(lab, "east1"), await postfix(lab, "west1")
    balancer = await asyncio.to_thread(
        begin,
        Smtplb(
            {"east": pool(east), "west": pool(west)},
            groups={
                "site": {
                    "mode": "active-passive",
                    "pools": ["east", "west"],
                    "failback": {"delay": f"{FAILBACK_S * 1000:.0f}ms"},
                }
            },
        ),
    )

    def active() -> list[str]:
        return [member["pool"] for member in balancer.group("site")["pools"] if member["share"]]

    idle_ids = [new_message_id() for _ in range(3)]
    async with session(balancer.port) as idle, Traffic(balancer.port, sessions=SESSIONS) as traffic:
        await traffic.more(100)
        assert (await idle.send(idle_ids[0])).startswith("250")
        assert set(await asyncio.to_thread(copies, [west])) == set()

        await asyncio.to_thread(east.stop)
        stopped = time.time()
        await traffic.more(20)  # at once, not only when checks have found out
        await until(lambda: active() == ["west"], "load is in the west")
        assert (await idle.send(idle_ids[1])).startswith("250")
        await traffic.more(100)

        await asyncio.to_thread(east.start)
        up = await asyncio.to_thread(balancer.wait_state, "east1", "up")
        await until(lambda: active() == ["east"], "load is back in the east")
        shifted = unix_time(balancer.group("site")["since"])
        took_s = shifted - unix_time(up["since"])
        assert FAILBACK_S - 0.01 <= took_s <= FAILBACK_S + SLACK_S
        FIGURES.info("back %.2f s after it was up", took_s)
        await traffic.more(100)
        assert (await idle.send(idle_ids[2])).startswith("250")
        assert (await idle.quit()).startswith("221")

    ledger = await traffic.stop()
    ids = set(idle_ids)
    await until(lambda: set(ledger.ids()) | ids <= set(copies([east, west])), "all records")
    in_east, in_west = set(copies([east])), set(copies([west]))
    assert not in_east & in_west
    away = {entry.message_id for entry in ledger.entries if stopped < entry.began < shifted - SLACK_S}
    assert away
    assert away & set(ledger.ids()) <= in_west
    back = {entry.message_id for entry in ledger.since(shifted + 0.1)}
    assert back
    assert back <= in_east
    assert {message_id in in_west for message_id in idle_ids} == {False, True}
    assert idle_ids[1] in in_west
    # No session was cut: those that were open at the start are those of the end.
    assert (ledger.sessions, ledger.cut, ledger.dismissed, ledger.refused) == (SESSIONS, 0, 0, [])
    not_ok = ledger.not_ok()
    assert len(not_ok) <= SESSIONS
    assert {reply[:9] for reply in not_ok} <= {"451 4.4.2"}
    FIGURES.info("%d in the east, %d in the west, else: %s", len(in_east), len(in_west), not_ok)
