"""Reload of a running balancer: nobody is refused, nobody hears anything but 250, and mail goes where the new file says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from smtplb.cli.embedded import EmbeddedBackend
from tests.e2e.balancer import FIGURES, Json, Smtplb, pool
from tests.e2e.client import LOST, Client, Traffic, session, until
from tests.e2e.conftest import Begin, Embed
from tests.lab import SmtpSink, free_port, is_listening
from tests.lab.fixtures import Lab

RELOADS = 50
both = pytest.mark.parametrize("workers", [1, 2])


def entry(backend: EmbeddedBackend, **more: Any) -> Json:
    return {"name": backend.name, "address": backend.address, **more}


async def start(begin: Begin, *backends: EmbeddedBackend, workers: int = 1, **settings: Any) -> Smtplb:
    balancer = Smtplb({"relays": pool(*map(entry, backends), **settings)}, sections={"workers": workers})
    await asyncio.to_thread(begin, balancer)
    assert await asyncio.to_thread(balancer.is_ready)
    return balancer


def rewrite(balancer: Smtplb, change: Callable[[Json], None]) -> None:
    config = yaml.safe_load(balancer.file.read_text())
    change(config)
    balancer.file.write_text(yaml.safe_dump(config, sort_keys=False))


async def reload(balancer: Smtplb, change: Callable[[Json], None]) -> Json:
    rewrite(balancer, change)
    code, answer = await asyncio.to_thread(balancer.request, "POST", "/api/v1/reload")
    assert code == 200, answer
    return answer


def backends_are(*backends: EmbeddedBackend, **more: Any) -> Callable[[Json], None]:
    def change(config: Json) -> None:
        config["pools"]["relays"]["backends"] = [entry(backend, **more) for backend in backends]

    return change


class Book:
    """Which backend took the last message."""

    def __init__(self, *backends: EmbeddedBackend) -> None:
        self.last = ""
        for backend in backends:
            backend.on_message = lambda _, name=backend.name: self._note(name)

    def _note(self, name: str) -> None:
        self.last = name


# -- under load


@pytest.mark.measured
@both
async def test_reload_in_a_loop_under_load(lab: Lab, begin: Begin, workers: int) -> None:
    """Fifty times: backends come, go and change their place, weights and limits change; half of the sessions are kept."""
    sinks = [await asyncio.to_thread(lab.start, SmtpSink(f"sink{number}")) for number in range(3)]
    balancer = await asyncio.to_thread(
        begin,
        Smtplb({"relays": pool(*sinks, policy="weighted")}, sections={"workers": workers}),
    )
    assert await asyncio.to_thread(balancer.is_ready)
    pids = set(balancer.pids())
    before = (await asyncio.to_thread(balancer.status))["listeners"][0]["sessions"]["total"]
    async with (
        Traffic(balancer.port, sessions=6) as kept,
        Traffic(balancer.port, sessions=4, per_session=1) as new,
    ):
        await kept.more(50)
        for number in range(RELOADS):

            def change(config: Json, number: int = number) -> None:
                chosen = [
                    sinks[number % 3],
                    sinks[(number + 1) % 3],
                    *([sinks[(number + 2) % 3]] * (number % 2)),
                ]
                config["pools"]["relays"]["backends"] = [
                    {
                        "name": f"b{place}" if number % 5 else each.name,
                        "address": each.address,
                        "weight": 1 + number % 3,
                    }
                    for place, each in enumerate(chosen)
                ]
                config["listeners"][0]["limits"] = {"recipients": 100 + number}

            if number % 2:
                await reload(balancer, change)
            else:
                rewrite(balancer, change)
                balancer.hang_up()
                done = number + 1
                await until(lambda done=done: balancer.reloads() == done, f"reload {done}")  # type: ignore[misc]
            await kept.more(5)
            await new.more(5)
    ledgers = [kept.ledger, new.ledger]
    assert balancer.reloads() == RELOADS
    for ledger in ledgers:
        FIGURES.info(
            "%d workers, %d reloads: %d sessions, %d messages; %d not 250, %d refused, %d dismissed, %d cut",
            workers,
            RELOADS,
            ledger.sessions,
            len(ledger.ids()),
            len(ledger.not_ok()),
            len(ledger.refused),
            ledger.dismissed,
            ledger.cut,
        )
        assert (ledger.not_ok(), ledger.refused, ledger.dismissed, ledger.cut) == ([], [], 0, 0)
    assert kept.ledger.sessions == 6, "the sessions that were kept are those of the beginning"
    assert set(balancer.pids()) == pids, "no process was replaced"
    listener = (await asyncio.to_thread(balancer.status))["listeners"][0]
    assert listener["sessions"]["total"] - before == sum(ledger.sessions for ledger in ledgers)
    assert listener["transactions"]["ok"] == sum(len(ledger.ids()) for ledger in ledgers), "counters went on"


@both
async def test_reloads_leave_no_descriptor_and_no_socket_file_behind(
    begin: Begin, embed: Embed, tmp_path: Path, workers: int
) -> None:
    one, two = await embed("one"), await embed("two")
    balancer = await start(begin, one, workers=workers, connections={"idle": 0})
    path = tmp_path / "mx.sock"

    def there(config: Json) -> None:
        backends_are(two, one)(config)
        config["listeners"].append({"name": "unix", "bind": f"unix:{path}", "to": "relays"})

    def back(config: Json) -> None:
        backends_are(one)(config)
        del config["listeners"][1]

    async def round_trip() -> None:
        await reload(balancer, there)
        assert path.is_socket()
        async with session(balancer.port) as client:
            assert (await client.send()).startswith("250")
            await client.quit()
        await reload(balancer, back)
        assert not path.exists()

    def descriptors() -> dict[int, int]:
        return {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in balancer.pids()}

    def settled() -> bool:
        return not two.counts.connections_open and not one.counts.connections_open

    await round_trip()
    await until(settled, "connections to backends have ended")
    before, rss = descriptors(), balancer.rss_bytes()
    for _ in range(20):
        await round_trip()
    await until(lambda: settled() and descriptors() == before, f"as many as before: {before}")
    FIGURES.info(
        "%d workers, 40 reloads: %+d KiB in the first process", workers, (balancer.rss_bytes() - rss) // 1024
    )


# -- what moves when


@both
async def test_an_open_session_moves_to_the_new_backends_with_its_next_transaction(
    begin: Begin, embed: Embed, workers: int
) -> None:
    old, new = await embed("old"), await embed("new")
    book = Book(old, new)
    balancer = await start(begin, old, workers=workers)
    async with session(balancer.port) as idle, session(balancer.port) as busy:
        assert (await idle.send()).startswith("250")
        assert (await busy.say("MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>")).startswith("250")
        plan = await reload(balancer, backends_are(new))
        assert plan["backends"] == {"added": ["relays/new"], "removed": ["relays/old"], "changed": {}}
        assert (await idle.send()).startswith("250")
        assert book.last == "new"
        # A transaction ends where it began, even though its backend is no longer in the configuration.
        assert (await busy.say("RCPT TO:<c@b.test>")).startswith("250")
        assert (await busy.say("DATA")).startswith("354")
        assert (await busy.say("x\r\n.")).startswith("250")
        assert book.last == "old"
        assert (await busy.send()).startswith("250")
        assert book.last == "new"
        await until(lambda: not old.counts.connections_open, "the old backend was left")
    states = await asyncio.to_thread(balancer.states)
    assert states == {"new": "up"}


async def test_what_the_operator_set_and_what_checks_found_outlive_a_reload(
    begin: Begin, embed: Embed
) -> None:
    one, two, three = await embed("one"), await embed("two"), await embed("three")
    balancer = await start(begin, one, two, three)
    await asyncio.to_thread(lambda: balancer.change("relays", "one", state="drain", reason="kernel"))
    before = await asyncio.to_thread(balancer.wait_state, "one", "drain")
    since = (await asyncio.to_thread(balancer.backends))["two"]["since"]
    moved = await embed("one")

    def change(config: Json) -> None:
        config["pools"]["relays"]["policy"] = "weighted"
        config["pools"]["relays"]["backends"] = [
            entry(moved, weight=3),
            entry(two, weight=2),
            entry(three),
        ]

    plan = await reload(balancer, change)
    assert plan["reconnects"] == ["relays/one"]
    assert plan["backends"]["changed"] == {"relays/one": ["address", "weight"], "relays/two": ["weight"]}
    found = await asyncio.to_thread(balancer.backends)
    assert {name: each["state"] for name, each in found.items()} == {
        "one": "drain",
        "two": "up",
        "three": "up",
    }
    assert found["one"]["operator"] == before["operator"]
    assert found["one"]["address"] == moved.address
    assert found["two"]["since"] == since, "it was never anything else"
    assert found["two"]["effective_weight"] == 2


# -- listeners


@both
async def test_listeners_come_and_go(begin: Begin, embed: Embed, workers: int) -> None:
    backend = await embed("only")
    balancer = await start(begin, backend, workers=workers)
    second, third = free_port(), free_port()

    def add(config: Json) -> None:
        config["listeners"].append({"name": "out", "bind": f"127.0.0.1:{second}", "to": "relays"})

    def move(config: Json) -> None:
        config["listeners"] = [
            {"name": "out", "bind": [balancer.address, f"127.0.0.1:{third}"], "to": "relays"}
        ]

    await reload(balancer, add)
    async with session(second) as stays, session(balancer.port) as goes:
        assert (await stays.send()).startswith("250")
        assert (await goes.say("MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>")).startswith("250")
        idle = await Client.connect(balancer.port)
        plan = await reload(balancer, move)
        assert plan["listeners"]["removed"] == ["mx"]
        assert not is_listening(second)
        # The address of the removed listener is another's now, and was never closed.
        for port in (balancer.port, third):
            async with session(port) as client:
                assert (await client.send()).startswith("250")
        assert (await idle.reply()).startswith("421 4.3.2")
        assert await idle.reply() == LOST
        idle.close()
        assert (await goes.say("DATA")).startswith("354")
        assert (await goes.say("x\r\n.")).startswith("250")
        assert (await goes.reply()).startswith("421 4.3.2"), "behind its transaction"
        assert (await stays.send()).startswith("250"), "its listener is still there"


async def test_a_session_that_was_not_asked_for_tls_hears_421_and_never_530(
    begin: Begin, embed: Embed, tmp_path: Path
) -> None:
    backend = await embed("only")
    balancer = await start(begin, backend)
    pair = trustme.CA().issue_cert("lb.lab.test").private_key_and_cert_chain_pem
    file = tmp_path / "pair.pem"
    pair.write_to_path(str(file))
    file.chmod(0o600)

    def change(config: Json) -> None:
        files = {"certificate": str(file), "key": str(file)}
        config["listeners"][0]["tls"] = {"mode": "starttls-required", "certificates": [files]}

    async with session(balancer.port) as idle, session(balancer.port) as busy:
        assert (await busy.say("MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>")).startswith("250")
        plan = await reload(balancer, change)
        assert plan["ends_sessions"] == ["mx"]
        assert (await idle.reply()).startswith("421 4.3.2 Service configuration changed")
        assert (await busy.say("DATA")).startswith("354")
        assert (await busy.say("x\r\n.")).startswith("250")
        assert (await busy.say("MAIL FROM:<a@a.test>")).startswith("421 4.3.2 Service configuration changed")
    async with session(balancer.port) as late:
        assert (await late.say("MAIL FROM:<a@a.test>")).startswith("530")


# -- whole or not at all


async def test_mistakes_and_keys_that_need_a_restart_change_nothing(
    lab: Lab, begin: Begin, embed: Embed
) -> None:
    backend = await embed("only")
    balancer = await asyncio.to_thread(Lab.start, lab, Smtplb({"relays": pool(entry(backend))}))
    taken = await asyncio.to_thread(lab.start, SmtpSink("squatter"))
    free = free_port()
    before = balancer.file.read_text()

    def wrong(config: Json) -> None:
        config["listeners"][0]["bind"] = f"127.0.0.1:{free}"
        config["pools"]["relays"]["polici"] = "weighted"
        config["pools"]["relays"]["check"]["interval"] = 10

    def restart(config: Json) -> None:
        config["listeners"][0]["bind"] = f"127.0.0.1:{free}"
        config["workers"] = 2
        config["log"]["level"] = "debug"

    def in_use(config: Json) -> None:
        config["listeners"][0]["bind"] = [f"127.0.0.1:{free}", f"127.0.0.1:{taken.port}"]

    for change, words in (
        (wrong, "the configuration has 2 mistakes; nothing was changed"),
        (restart, "workers, log.level need a restart; nothing was changed"),
        (in_use, f"listener mx: 127.0.0.1:{taken.port}: address already in use; nothing was changed"),
    ):
        rewrite(balancer, change)
        code, answer = await asyncio.to_thread(balancer.request, "POST", "/api/v1/reload")
        assert (code, answer["detail"]) == (422, words)
        assert not is_listening(free)
        async with session(balancer.port) as client:
            assert (await client.send()).startswith("250")
        status = await asyncio.to_thread(balancer.status)
        assert [problem["anchor"] for problem in status["problems"]] == ["reload-failed"]
        balancer.file.write_text(before)
    rewrite(balancer, wrong)
    said = await asyncio.to_thread(balancer.call, "reload")
    assert said.returncode == 1
    assert "pools.relays.polici: unknown key" in said.stderr
    assert "pools.relays.check.interval: " in said.stderr
    assert said.stderr.splitlines()[-1] == "the configuration has 2 mistakes; nothing was changed"
    balancer.file.write_text(before)
    said = await asyncio.to_thread(balancer.call, "reload")
    assert (said.returncode, said.stdout) == (0, "nothing has changed\n")
    assert (await asyncio.to_thread(balancer.status))["problems"] == []
    metrics = await asyncio.to_thread(balancer.metrics)
    assert 'smtplb_config_reloads_total{result="failed"} 4.0' in metrics
    assert 'smtplb_config_reloads_total{result="ok"} 1.0' in metrics
    assert "smtplb_config_last_reload_successful 1.0" in metrics
    code, _ = await asyncio.to_thread(lambda: balancer.request("POST", "/api/v1/reload", token=None))
    assert code == 401


@both
async def test_sighup_opens_the_log_anew_in_every_worker(begin: Begin, embed: Embed, workers: int) -> None:
    backend = await embed("only")
    balancer = await start(begin, backend, workers=workers)
    old = balancer.log.with_suffix(".1")
    balancer.log.rename(old)
    balancer.hang_up()
    await until(lambda: balancer.reloads() == 1, "reloaded")
    await until(lambda: bool(balancer.records("reloaded")), "the new file has it")
    for _ in range(8):
        async with session(balancer.port) as client:
            assert (await client.send()).startswith("250")
            await client.quit()
    await until(lambda: len(balancer.records("transaction-ended")) == 8, "all eight are in the new file")
    assert "transaction-ended" not in old.read_text()


# -- lists that are watched


async def test_a_list_that_changes_is_in_use_by_itself_and_cuts_no_session(
    lab: Lab, embed: Embed, tmp_path: Path
) -> None:
    """`file:` in `accept`, in a route and among those who may not connect."""
    here, there = await embed("here"), await embed("there")
    book = Book(here, there)
    files = {name: tmp_path / name for name in ("ours", "routed", "deny")}
    files["ours"].write_text("first.test\n")
    files["routed"].write_text("# nothing yet\nnobody.test\n")
    files["deny"].write_text("192.0.2.0/24\n")
    routes = {
        "by-domain": [
            {"when": {"recipient_domain": f"file:{files['routed']}"}, "to": "there"},
            {"to": "here"},
        ]
    }
    balancer = Smtplb(
        {"here": pool(entry(here)), "there": pool(entry(there))},
        listener={
            "to": "by-domain",
            "accept": [{"recipient_domain": f"file:{files['ours']}"}],
            "clients": {"deny": [f"file:{files['deny']}"]},
        },
        sections={"workers": 2, "routes": routes},
    )
    await asyncio.to_thread(Lab.start, lab, balancer)
    assert await asyncio.to_thread(balancer.is_ready)
    async with session(balancer.port) as client:

        async def rcpt(address: str) -> str:
            assert (await client.say("MAIL FROM:<a@a.test>")).startswith("250")
            answer = await client.say(f"RCPT TO:<{address}>")
            assert (await client.say("RSET")).startswith("250")
            return answer[:9]

        assert await rcpt("r@second.test") == "550 5.7.1"
        files["ours"].write_text("first.test\nsecond.test\n")
        files["routed"].write_text("second.test\n")
        await until(lambda: balancer.reloads() == 1, "the lists are in use", 30)
        assert (await client.send(recipient="r@second.test")).startswith("250")
        assert book.last == "there"
        assert (await client.send(recipient="r@first.test")).startswith("250")
        assert book.last == "here"

        files["ours"].write_text("not a domain\n")
        await until(lambda: bool(balancer.records("reload-failed")), "the mistake is told", 30)
        (told,) = balancer.records("reload-failed")
        assert f"{files['ours']}:1:1: " in str(told)
        assert (await client.send(recipient="r@second.test")).startswith("250"), (
            "the list before stays in use"
        )

        files["ours"].write_text("first.test\nsecond.test\n")
        rewrite(balancer, lambda config: config["listeners"][0].update({"limits": {"recipients": 77}}))
        files["deny"].write_text("127.0.0.0/8\n")
        await until(lambda: bool(balancer.records("not-reloaded")), "nobody asked for the other change", 30)
        assert "reload` takes up both" in str(balancer.records("not-reloaded"))
        async with session(balancer.port):
            pass
        code, _ = await asyncio.to_thread(balancer.request, "POST", "/api/v1/reload")
        assert code == 200
        assert (await client.send(recipient="r@second.test")).startswith("250"), "who is in stays in"
    with pytest.raises((AssertionError, OSError)):
        async with session(balancer.port):
            pass
