"""`smtplb reload`: what it says, and its exit status. On a control plane that the test holds in its hands."""

from __future__ import annotations

import pytest

from smtplb.cli.operate import reload
from smtplb.cli.plan import plan_lines
from smtplb.config.errors import ConfigError, ConfigErrors
from smtplb.controlplane.supervisor import BindError, CannotReload, NeedsRestart
from tests.admin.control import FakeControl, command_line, running

MISTAKES = ConfigErrors([ConfigError("lb.yaml", line, 3, "pools.east", "is wrong\x1b[2J") for line in (4, 9)])


async def test_it_says_what_has_changed() -> None:
    async with running() as admin:
        result = await command_line(reload, "--url", admin.url(""))
        assert (result.exit_code, result.stdout) == (
            0,
            "backend b/new: added\nbackend b/old: removed\nbackend b/kept: weight changed\n",
        )
        result = await command_line(reload, "--json", "--url", admin.url(""))
        assert '"added": [\n      "b/new"' in result.stdout


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (
            MISTAKES,
            "lb.yaml:4:3: pools.east: is wrong\\x1b[2J\nlb.yaml:9:3: pools.east: is wrong\\x1b[2J\n"
            "the configuration has 2 mistakes; nothing was changed\n",
        ),
        (NeedsRestart(("workers",)), "workers needs a restart; nothing was changed\n"),
        (
            BindError("listener mx: 127.0.0.1:25: in use"),
            "listener mx: 127.0.0.1:25: in use; nothing was changed\n",
        ),
        (CannotReload("stopping"), "stopping\n"),
    ],
    ids=["mistakes", "restart", "bind", "not now"],
)
async def test_what_stands_against_it_is_said_and_the_status_is_1(fails: Exception, words: str) -> None:
    async with running(FakeControl(fails=fails)) as admin:
        result = await command_line(reload, "--url", admin.url(""))
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", words)


async def test_without_the_token_it_is_1_and_without_a_balancer_3() -> None:
    async with running() as admin:
        result = await command_line(reload, "--url", admin.url(""), SMTPLB_TOKEN="not-the-one")
        assert result.exit_code == 1
        assert "see --token-file and --socket" in result.stderr
        url = admin.url("")
    result = await command_line(reload, "--url", url)
    assert result.exit_code == 3


async def test_over_http_all_mistakes_come_with_their_places() -> None:
    async with running(FakeControl(fails=MISTAKES)) as admin:
        code, body = await admin.change("POST", "/api/v1/reload")
        assert (code, body["title"], len(body["errors"])) == (422, "Unprocessable Entity", 2)
        assert body["errors"][0] == {
            "file": "lb.yaml",
            "line": "4",
            "column": "3",
            "key": "pools.east",
            "detail": "is wrong\x1b[2J",
            "text": "lb.yaml:4:3: pools.east: is wrong\\x1b[2J",
        }
    async with running(FakeControl(fails=NeedsRestart(("workers", "log.level")))) as admin:
        code, body = await admin.change("POST", "/api/v1/reload")
        assert (code, body["restart"]) == (422, ["workers", "log.level"])
    async with running() as admin:
        assert (await admin.change("POST", "/api/v1/reload", json={}))[0] == 200
        assert (await admin.change("POST", "/api/v1/reload", json={"now": True}))[0] == 422
        assert (await admin.change("POST", "/api/v1/reload", token=None))[0] == 401
        assert (await admin.get("/api/v1/reload"))[0] == 405


def test_sessions_that_end_and_connections_that_are_left_are_named() -> None:
    changes = {"added": [], "removed": ["out"], "changed": {"mx": ["tls"]}}
    plan = {
        "listeners": changes,
        "backends": {"added": [], "removed": [], "changed": {"p/a": ["address"]}},
        "others": ["hostname"],
        "ends_sessions": ["mx", "out"],
        "reconnects": ["p/a"],
    }
    assert plan_lines(plan) == [
        "listener out: removed, its sessions end between transactions",
        "listener mx: tls changed, its sessions end between transactions",
        "backend p/a: address changed, its connections are left",
        "hostname: changed",
    ]
    assert plan_lines({}) == ["nothing has changed"]
