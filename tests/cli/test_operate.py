"""`smtplb status`, `drain`, `maint` and `resume` against an admin server on real sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from smtplb.admin import render as api_form
from smtplb.cli import operate
from smtplb.cli.operate import Failed, select
from smtplb.cli.render import clean, show_status
from smtplb.controlplane.supervisor import WouldStrand
from smtplb.controlplane.views import StatusView
from tests.admin import pictures
from tests.admin.control import TOKEN, FakeControl, Running, command_line, running


async def smtplb(admin: Running | None, command: click.Command, *args: str, **env: str) -> Result:
    """With the URL of `admin`, if there is one."""
    if admin is not None:
        env = {"SMTPLB_ADMIN_URL": admin.url("")} | env
    return await command_line(command, *args, **env)


def changed(admin: Running) -> list[tuple[str, str]]:
    return [(change["key"], change["state"]) for change in admin.control.changes]


# -- status ------------------------------------------------------------------------------------------------


async def test_status_shows_the_condition_first_then_problems_with_what_to_do() -> None:
    async with running() as admin:
        result = await smtplb(admin, operate.status)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("lb1.example.net  DEGRADED: 1 problem  smtplb 1.2.0, up ")
    assert lines[1] == " ! east/mx2  check said 421 4.3.2 All server ports are busy"
    assert lines[2].strip() == "do: raise default_process_limit on mx2  docs/problems.md#backend-down"
    assert "POOL east  weighted, 50% usable, 4 attempts repeated" in lines


async def test_status_in_a_pipe_is_whole_lines_without_colours() -> None:
    async with running() as admin:
        result = await smtplb(admin, operate.status)
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


async def test_status_fits_80_columns_and_cuts_no_name() -> None:
    async with running() as admin:
        result = await smtplb(admin, operate.status, COLUMNS="80")
    assert max(map(len, result.stdout.splitlines())) <= 80
    for name in ("east/mx2", "mx1", "mx3", "10.0.9.9:25", "submission", "docs/problems.md#backend-down"):
        assert name in result.stdout


async def test_status_fails_when_the_balancer_is_failing() -> None:
    async with running(FakeControl(view=pictures.status(condition="failing"))) as admin:
        assert (await smtplb(admin, operate.status)).exit_code == 1
        assert (await smtplb(admin, operate.status, "--json")).exit_code == 1


async def test_status_json_is_the_answer_of_the_api() -> None:
    async with running() as admin:
        result = await smtplb(admin, operate.status, "--json")
        assert json.loads(result.stdout) == (await admin.get("/api/v1/status"))[1]


async def test_no_terminal_escape_of_a_backend_reaches_the_terminal() -> None:
    evil = "250 \x1b[2J\x1b]0;gone\x07 \x9b31m \u202e \r\n"
    view = pictures.status()
    view.pools[0].backends[0].check.last_text = evil
    view.problems[0].text = view.problems[0].hint = evil
    async with running(FakeControl(view=view)) as admin:
        for args in ([], ["--json"]):
            out = (await smtplb(admin, operate.status, *args)).stdout
            assert all(line.isprintable() for line in out.split("\n"))
            assert "gone" in out


@given(st.text(alphabet=st.characters()), st.integers(20, 300))
def test_whatever_the_answer_holds_every_line_is_printable(text: str, width: int) -> None:
    view = pictures.status(hostname=text, version=text)
    view.problems[0].text = view.problems[0].where = view.problems[0].hint = text
    view.pools[0].backends[1].check.last_text = view.pools[0].backends[1].name = text
    answer = clean(api_form.status(view))
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        show_status(console, answer, pictures.START)
    assert all(line.isprintable() for line in capture.get().split("\n"))


# -- drain, maint, resume ----------------------------------------------------------------------------------


async def test_drain_of_a_backend_says_what_it_did() -> None:
    async with running() as admin:
        result = await smtplb(
            admin, operate.drain, "east/mx1", "--reason", "kernel", "--for", "90m", "--force"
        )
        assert (result.exit_code, result.stdout) == (0, "east/mx1: drain\n")
        assert admin.control.changes == [
            {
                "key": "east/mx1",
                "state": "drain",
                "weight": None,
                "reason": "kernel",
                "for_s": 5400.0,
                "force": True,
            }
        ]


async def test_a_pool_a_host_and_a_backend_can_be_named() -> None:
    async with running() as admin:
        assert (await smtplb(admin, operate.drain, "east")).exit_code == 0
        assert changed(admin) == [("east/mx1", "drain"), ("east/mx2", "drain"), ("east/mx3", "drain")]
        admin.control.changes.clear()
        assert (await smtplb(admin, operate.maint, "@10.0.1.4")).exit_code == 0
        assert [key for key, _ in changed(admin)] == ["east/mx1", "east/mx2", "east/mx3", "west/mx1"]
        admin.control.changes.clear()
        assert (await smtplb(admin, operate.resume, "lab/10.0.9.9:25")).exit_code == 0
        assert changed(admin) == [("lab/10.0.9.9:25", "ready")]


async def test_a_pool_that_may_not_go_whole_does_not_go_in_part() -> None:
    class Careful(FakeControl):
        def set_backend(self, pool: str, backend: str, **change: Any) -> None:
            if backend == "mx3" and not change["force"]:
                raise WouldStrand(["mx", "submission"])
            super().set_backend(pool, backend, **change)

    async with running(Careful()) as admin:
        result = await smtplb(admin, operate.maint, "east")
        assert result.exit_code == 1
        assert result.stderr == (
            "east/mx3: this leaves mx, submission without a usable backend; --force does it. "
            "2 changed before were put back\n"
        )
        assert changed(admin) == [
            ("east/mx1", "maint"),
            ("east/mx2", "maint"),
            ("east/mx1", "ready"),
            ("east/mx2", "ready"),
        ]


async def test_what_was_drained_for_a_time_is_put_back_for_the_rest_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Careful(FakeControl):
        def set_backend(self, pool: str, backend: str, **change: Any) -> None:
            if backend == "last":
                raise WouldStrand(["mx"])
            super().set_backend(pool, backend, **change)

    monkeypatch.setattr("smtplb.cli.operate.time.time", lambda: pictures.START + 7140)
    view = pictures.status(
        pools=[pictures.pool("east", pictures.drained("east", "mx3"), pictures.backend("east", "last"))]
    )
    async with running(Careful(view=view)) as admin:
        await smtplb(admin, operate.maint, "east")
        put_back = admin.control.changes[-1]
        assert (put_back["state"], put_back["reason"], put_back["for_s"]) == ("drain", "disk", 60.0)


class Emptying(FakeControl):
    """A balancer whose backends finish one transaction with every look at it."""

    in_flight = 3

    async def status(self) -> StatusView:
        self.in_flight = max(0, self.in_flight - 1)
        self.view.pools[0].backends[0].in_flight = self.in_flight
        return self.view


async def test_wait_ends_when_nothing_is_in_flight_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "POLL_S", 0.0)
    async with running(Emptying()) as admin:
        result = await smtplb(admin, operate.drain, "east/mx1", "--wait", "10m")
        assert (result.exit_code, result.stderr) == (0, "")
        assert admin.control.in_flight == 0  # type: ignore[attr-defined]


async def test_wait_gives_up_and_says_what_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "POLL_S", 0.0)
    view = pictures.status()
    view.pools[0].backends[0].in_flight = 2
    async with running(FakeControl(view=view)) as admin:
        result = await smtplb(admin, operate.drain, "east", "--wait", "20ms")
        assert (result.exit_code, result.stderr) == (1, "after 20ms still: east/mx1: 2 in flight\n")
        assert ("east/mx1", "drain") in changed(admin)


async def test_resume_waits_until_the_backend_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "POLL_S", 0.0)
    async with running() as admin:
        assert (await smtplb(admin, operate.resume, "east/mx1", "--wait", "1m")).exit_code == 0
        result = await smtplb(admin, operate.resume, "east/mx2", "--wait", "20ms")
        assert result.exit_code == 1
        assert result.stderr.startswith("after 20ms still: east/mx2: ready, check: 421 4.3.2 All server")


def picked(target: str) -> list[str]:
    other = pictures.backend("six", "b", address="[2001:db8::12]:25")
    path = pictures.backend("six", "unix:/run/mta", address="unix:/run/mta")
    view = pictures.status(pools=[*pictures.status().pools, pictures.pool("six", other, path)])
    return [f"{each['pool']}/{each['name']}" for each in select(target, api_form.status(view))]


@pytest.mark.parametrize(
    ("target", "backends"),
    [
        ("west", ["west/mx1"]),
        ("east/mx2", ["east/mx2"]),
        ("six/unix:/run/mta", ["six/unix:/run/mta"]),
        ("@10.0.9.9", ["lab/10.0.9.9:25"]),
        ("@2001:DB8::12", ["six/b"]),
        ("@[2001:db8::12]", ["six/b"]),
    ],
)
def test_a_target_names_backends(target: str, backends: list[str]) -> None:
    assert picked(target) == backends


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("eats", "no pool eats; did you mean east?"),
        ("nowhere-near", "no pool nowhere-near; there are: east, lab, six, west"),
        ("east/mx9", "no backend mx9 in pool east; did you mean mx3?"),
        ("east/", "no backend  in pool east; there are: mx1, mx2, mx3"),
        ("@10.0.9.8", "no backend at 10.0.9.8; did you mean 10.0.9.9?"),
        ("", "no pool ; there are: east, lab, six, west"),
    ],
)
def test_a_target_that_is_not_there_is_said_with_what_is(target: str, text: str) -> None:
    with pytest.raises(Failed) as caught:
        picked(target)
    assert str(caught.value) == text


# -- the way there -----------------------------------------------------------------------------------------


async def test_a_balancer_that_is_not_there_is_exit_3() -> None:
    async with running() as admin:
        url = admin.url("")
    for command, args in ((operate.status, []), (operate.drain, ["east"])):
        result = await smtplb(None, command, *args, SMTPLB_ADMIN_URL=url)
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr == f"{url}: Connection refused\n"


async def test_a_name_that_does_not_resolve_is_exit_3() -> None:
    result = await smtplb(None, operate.status, "--url", "http://no.such.host.invalid:8025")
    assert result.exit_code == 3
    assert "Unknown error" not in result.stderr


async def test_a_socket_that_is_not_there_is_exit_3(tmp_path: Path) -> None:
    result = await smtplb(None, operate.status, "--socket", str(tmp_path / "none.sock"))
    assert result.exit_code == 3
    assert "No such file or directory" in result.stderr


async def something(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
        b"220 mx.example.net ESMTP\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
    ],
)
async def test_what_is_no_balancer_is_exit_3(answer: bytes) -> None:
    server = await something(answer)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    result = await smtplb(None, operate.status, "--url", url)
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith(f"{url}: ")
    server.close()


async def test_a_wrong_token_is_exit_1_with_a_hint() -> None:
    async with running() as admin:
        result = await smtplb(admin, operate.drain, "east/mx1", SMTPLB_TOKEN="wrong")
        assert (result.exit_code, result.stderr) == (
            1,
            "this is not the token; see --token-file and --socket\n",
        )
        assert admin.control.changes == []


async def test_the_token_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    async with running() as admin:
        result = await smtplb(admin, operate.drain, "lab", "--token-file", str(file), SMTPLB_TOKEN="wrong")
        assert result.exit_code == 0


async def test_the_socket_needs_no_token(tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    async with running(bind=None, socket=path) as admin:
        result = await smtplb(None, operate.drain, "lab", "--socket", path, SMTPLB_TOKEN="")
        assert (result.exit_code, changed(admin)) == (0, [("lab/10.0.9.9:25", "drain")])
        assert (await smtplb(None, operate.status, SMTPLB_ADMIN_SOCKET=path)).exit_code == 0


async def test_what_is_written_wins_over_the_environment(tmp_path: Path) -> None:
    async with running() as admin:
        elsewhere = str(tmp_path / "other.sock")
        result = await smtplb(None, operate.status, "--url", admin.url(""), SMTPLB_ADMIN_SOCKET=elsewhere)
        assert result.exit_code == 0


async def test_a_token_that_leaves_the_host_in_the_clear_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(work: Any) -> dict[str, Any]:
        work.close()
        return {}

    monkeypatch.setattr(operate, "_run", nothing)
    loud = await smtplb(None, operate.drain, "east", "--url", "http://lb1.example.net:8025")
    assert loud.stderr == "note: the token goes to lb1.example.net unencrypted\n"
    for url in ("https://lb1.example.net", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"):
        assert (await smtplb(None, operate.drain, "east", "--url", url)).stderr == ""


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (operate.drain, []),
        (operate.drain, ["east", "west"]),
        (operate.drain, ["east", "--for", "2"]),
        (operate.drain, ["east", "--for", "-1s"]),
        (operate.drain, ["east", "--wait", "0s"]),
        (operate.resume, ["east", "--for", "2h"]),
        (operate.status, ["--url", "127.0.0.1:8025"]),
        (operate.status, ["--url", "ftp://127.0.0.1"]),
        (operate.status, ["--url", "http://127.0.0.1:1", "--socket", "/run/x"]),
        (operate.status, ["--token-file", "/nonexistent/token"]),
        (operate.status, ["--token-file", "/dev/null"]),
    ],
)
async def test_wrong_usage_is_exit_2(command: click.Command, args: list[str]) -> None:
    assert (await smtplb(None, command, *args)).exit_code == 2


@pytest.mark.parametrize("command", [operate.status, operate.drain, operate.maint, operate.resume])
def test_every_command_explains_itself(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert "SMTPLB_ADMIN_URL" in result.output
