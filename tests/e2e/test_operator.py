"""What an operator does under load: drain a backend over HTTP and from the command line, and take it back."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.balancer import FIGURES, Smtplb, pool, unix_time
from tests.e2e.client import Traffic, copies, settle, until
from tests.e2e.conftest import Begin
from tests.lab import Postfix
from tests.lab.fixtures import Lab

SESSIONS = 6


async def two_postfix(lab: Lab) -> list[Postfix]:
    return [await asyncio.to_thread(lab.start, Postfix(name)) for name in ("one", "two")]


@pytest.mark.parametrize("by", ["patch", "command"])
async def test_a_drain_under_load_costs_no_client_an_error_and_cuts_nothing_at_the_backend(
    lab: Lab, begin: Begin, by: str
) -> None:
    servers = await two_postfix(lab)
    drained, other = servers
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*servers)}))

    def drain() -> None:
        if by == "patch":
            code, backend = balancer.change("relays", drained.name, state="drain", reason="kernel")
            assert (code, backend["state"], backend["usable"]) == (200, "drain", False)
        else:
            ended = balancer.call("drain", f"relays/{drained.name}", "--reason", "kernel", "--wait", "20s")
            assert (ended.returncode, ended.stdout) == (0, f"relays/{drained.name}: drain\n"), ended.stderr
            assert balancer.backends()[drained.name]["in_flight"] == 0

    def resume() -> None:
        if by == "patch":
            assert balancer.change("relays", drained.name, state="ready")[0] == 200
        else:
            assert balancer.call("resume", f"relays/{drained.name}", "--wait", "20s").returncode == 0

    async with Traffic(balancer.port, sessions=4 * SESSIONS) as burst:  # leaves idle connections behind
        await burst.more(100)
    async with Traffic(balancer.port, sessions=SESSIONS) as traffic:
        await traffic.more(100)
        await until(
            lambda: balancer.backends()[drained.name]["connections"]["idle"] > 0, "a connection is idle"
        )
        await asyncio.to_thread(drain)
        await until(lambda: balancer.backends()[drained.name]["in_flight"] == 0, "nothing is in flight")
        backend = await asyncio.to_thread(lambda: balancer.backends()[drained.name])
        assert backend["reason"] == "operator: drain, kernel"
        moment = unix_time(backend["since"])
        had = backend["attempts"]["ok"]
        await traffic.more(150)
        backend = await asyncio.to_thread(lambda: balancer.backends()[drained.name])
        assert (backend["in_flight"], backend["attempts"]["ok"]) == (0, had)
        assert backend["connections"] == {"idle": 0, "leased": 0, "connecting": 0}
        assert backend["check"]["state"] == "up"  # checks go on
        at_drained = set(await asyncio.to_thread(copies, [drained]))
        await asyncio.to_thread(resume)
        await traffic.more(150)
    ledger = await traffic.stop()
    assert burst.ledger.not_ok() == []
    ledger.entries += burst.ledger.entries
    await settle(ledger, servers)

    # The client's side: nothing happened.
    assert ledger.not_ok() == []
    assert (ledger.sessions, ledger.cut, ledger.dismissed, ledger.refused) == (SESSIONS, 0, 0, [])
    # The backend's side: no transaction was begun after the drain, and each connection ended with QUIT.
    late = {entry.message_id for entry in ledger.since(moment + 0.1)}
    assert not late & at_drained
    assert late & set(await asyncio.to_thread(copies, [drained]))  # but again after the resume
    for server in (drained, other):
        assert all(" quit=1 " in line for line in server.log_lines("]: disconnect from"))
        for words in ("lost connection", "timeout after", "warning:"):
            assert server.log_lines(words) == []
    FIGURES.info(
        "drain by %s: %d messages, %d at the drained one before", by, len(ledger.entries), len(at_drained)
    )


def test_a_change_without_the_token_or_that_strands_a_listener_changes_nothing(begin: Begin) -> None:
    balancer = begin(
        Smtplb({"relays": pool({"name": "only", "address": "127.0.0.1:1"}, check={"level": "off"})})
    )
    path = "/api/v1/pools/relays/backends/only"
    code, problem = balancer.request("PATCH", path, {"state": "drain"}, token=None)
    assert (code, problem["status"]) == (401, 401)
    code, problem = balancer.request("PATCH", path, {"state": "drain"}, token="a-guess-that-is-wrong")
    assert code == 401
    code, problem = balancer.change("relays", "only", state="drain")
    assert (code, problem["listeners"]) == (409, ["mx"])
    refused = balancer.call("drain", "relays")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert balancer.states() == {"only": "up"}
    assert balancer.change("relays", "only", state="drain", force=True)[0] == 200
    assert balancer.states() == {"only": "drain"}
