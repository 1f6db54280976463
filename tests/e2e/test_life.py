"""Start and stop: whole or not at all, and in order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from smtplb.cli.embedded import Fault, Verb
from tests.e2e.balancer import FIGURES, Smtplb, call, pool
from tests.e2e.client import LOST, Traffic, session, turned_away
from tests.e2e.conftest import Begin, Embed
from tests.lab import LabError, SmtpSink, free_ports, is_listening
from tests.lab.fixtures import Lab

SESSIONS = 10

EIGHT_MISTAKES = """\
hostname: 22:25
listeners:
  - {name: mx, bind: "0.0.0.0:PORT1", to: relays}
  - {name: in, bind: "127.0.0.1:PORT2", to: nowhere}
pools:
  relays:
    polici: weighted
    backends: ["127.0.0.1", {address: "127.0.0.1:2601", weight: -1}]
    check: {interval: 10}
groups:
  site: {mode: active-passive, pools: [relays, west]}
"""
WHERE_THEY_ARE = {
    "1:11: hostname: ": "not a host name",
    "3:5: listeners.mx.accept: ": "missing",
    "4:45: listeners.in.to: ": "nowhere",
    "7:5: pools.relays.polici: ": "did you mean `policy`?",
    "8:16: pools.relays.backends[0].address: ": "no port",
    "8:65: pools.relays.backends.127.0.0.1:2601.weight: ": "-1",
    "9:23: pools.relays.check.interval: ": "write 10s",
    "11:48: groups.site.pools[1].pool: ": "west",
}


@pytest.mark.parametrize("what", ["validate", "run"])
def test_eight_mistakes_are_all_named_with_line_and_column(tmp_path: Path, what: str) -> None:
    file = tmp_path / "smtplb.yaml"
    public, own = free_ports(2)
    file.write_text(EIGHT_MISTAKES.replace("PORT1", str(public)).replace("PORT2", str(own)))
    ended = call(what, str(file))
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = ended.stderr.splitlines()
    for line, (where, words) in zip(lines, WHERE_THEY_ARE.items(), strict=False):
        assert line.startswith(f"{file}:{where}")
        assert words in line
    if what == "validate":
        assert lines[8:] == [f"{file}: 8 mistakes. Nothing was started or changed."]
    else:
        assert lines[8:] == []
    assert not is_listening(public)
    assert not is_listening(own)


@pytest.mark.parametrize("what", ["drain", "maint"])
async def test_a_client_is_greeted_with_421_while_nothing_is_usable(
    begin: Begin, embed: Embed, what: str
) -> None:
    backend = await embed("only")
    entry = {"name": backend.name, "address": backend.address}
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(entry)}))
    assert await asyncio.to_thread(balancer.is_ready)
    async with session(balancer.port) as early:
        code, _ = await asyncio.to_thread(lambda: balancer.change("relays", "only", state=what, force=True))
        assert code == 200
        assert not await asyncio.to_thread(balancer.is_ready)
        assert await turned_away(balancer.port) == "421 4.3.2 Service not available, try again later"
        # A session that is open is not ended for it: the next message may find a backend again.
        assert (await early.send()).startswith("451 4.4.1")
        assert (await early.say("RSET")).startswith("250")
        await asyncio.to_thread(lambda: balancer.change("relays", "only", state="ready"))
        assert (await early.send()).startswith("250")
        assert (await early.quit()).startswith("221")


async def test_a_client_is_greeted_with_421_while_every_backend_is_down(begin: Begin, embed: Embed) -> None:
    backend = await embed("only")
    entry = {"name": backend.name, "address": backend.address}
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(entry)}))
    await backend.kill()
    await asyncio.to_thread(balancer.wait_state, "only", "down")
    assert (await turned_away(balancer.port)).startswith("421 4.3.2")
    await backend.start()
    await asyncio.to_thread(balancer.wait_state, "only", "up")
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("250")


@pytest.mark.parametrize("taken", ["listener", "admin"])
def test_a_port_in_use_is_named_and_nothing_is_half_started(lab: Lab, begin: Begin, taken: str) -> None:
    backend = lab.start(SmtpSink("backend"))
    balancer = Smtplb({"relays": pool(backend)})
    squatter_port = balancer.port if taken == "listener" else balancer.admin_port
    lab.start(SmtpSink("squatter", port=squatter_port))
    began = time.monotonic()
    with pytest.raises(LabError, match="ended at once with 1: ") as failed:
        balancer.start()
    try:
        said = str(failed.value).partition("with 1: ")[2].strip()
        where = "listener mx" if taken == "listener" else "admin.bind"
        assert said.startswith(f"{where}: 127.0.0.1:{squatter_port}: ")
        assert "address already in use" in said.lower()
        assert len(said.splitlines()) == 1
        free = balancer.admin_port if taken == "listener" else balancer.port
        assert not is_listening(free)
        assert backend.counts().sessions == 0
        assert balancer.pids() == []
        assert time.monotonic() - began < 15
    finally:
        balancer.close()


async def test_a_stop_under_load_ends_transactions_with_250_sessions_with_421_and_exits_0(
    begin: Begin, embed: Embed
) -> None:
    backends = [await embed(name, {Verb.FINAL: Fault(delay_s=0.2)}) for name in ("one", "two")]
    taken: Counter[str] = Counter()
    for backend in backends:
        backend.on_message = lambda message: taken.update([message.message_id])
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}))
    async with session(balancer.port) as idle, Traffic(balancer.port, sessions=SESSIONS) as traffic:
        await traffic.more(50)
        balancer.terminate()
        assert (await idle.reply()).startswith("421 4.3.2")
        assert await idle.reply() == LOST
        assert await asyncio.to_thread(balancer.wait_exit) == 0
    ledger = await traffic.stop()
    # Each transaction that was under way has its 250, each 250 is one message, and each session was told.
    assert [reply for reply in ledger.not_ok() if not reply.startswith("421")] == []
    assert taken == Counter(ledger.ids())
    assert (ledger.sessions, ledger.dismissed, ledger.cut) == (SESSIONS, SESSIONS, 0)
    assert set(ledger.refused) <= {"no connection", "421 4.3.2 Service shutting down"}
    assert not is_listening(balancer.port)
    assert not is_listening(balancer.admin_port)
    assert balancer.records()[-1]["event.action"] == "stopped"
    FIGURES.info("%d messages, %d sessions told 421", len(ledger.ids()), ledger.dismissed)
