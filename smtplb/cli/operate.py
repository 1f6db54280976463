"""`smtplb status`, `drain`, `maint`, `resume`, `reload`: a running balancer, from the command line.

Owns which backends a TARGET names, waiting, and exit codes. Does not own the wire (admin/client.py) or the
look (render.py).
Invariant: a change of several backends is made at all of them or, when the balancer refuses one, at none.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn, ParamSpec
from urllib.parse import urlsplit

import click
from click.core import ParameterSource
from rich.console import Console

from smtplb.admin.client import AdminClient, Json, Refused, Unreachable
from smtplb.cli.plan import plan_lines
from smtplb.cli.render import clean, flying, plain, show_status
from smtplb.config.scalars import format_duration, positive_duration

DEFAULT_URL = "http://127.0.0.1:8025"
FAILED, UNREACHABLE = 1, 3
POLL_S = 0.5
PIPED_WIDTH = 240  # what is not a terminal gets whole lines

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the balancer is, and the word that lets us change it."""

    url: str
    socket: str | None
    token: str | None

    def client(self) -> AdminClient:
        return AdminClient(self.url, socket=self.socket, token=self.token)


class Failed(Exception):
    """The command did not do what it was asked to; the text says why."""


# -- options -----------------------------------------------------------------------------------------------


def _place(context: click.Context, url: str, socket: str | None, token_file: Path | None) -> Place:
    """What is written on the command line wins over the environment: it may name another balancer."""
    written = {
        name
        for name in ("url", "socket")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if written == {"url", "socket"}:
        raise click.UsageError("--url and --socket exclude each other")
    if "url" in written:
        socket = None
    parts = urlsplit(url)
    if socket is None and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise click.BadParameter(f"{url}: write http://HOST:PORT", param_hint="--url")
    token = _token(token_file)
    if token and socket is None and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        click.echo(f"note: the token goes to {parts.hostname} unencrypted", err=True)
    return Place(url, socket, token)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("SMTPLB_TOKEN") or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{file}: {error}", param_hint="--token-file") from None
    if not token:
        raise click.BadParameter(f"{file}: is empty", param_hint="--token-file")
    return token


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return positive_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _where_options(command: Callable[P, None]) -> Callable[P, None]:
    for option in (
        click.option("--token-file", envvar="SMTPLB_TOKEN_FILE", type=click.Path(path_type=Path),
                     help="File with the admin token ($SMTPLB_TOKEN_FILE, or the token itself in $SMTPLB_TOKEN)."),
        click.option("--socket", envvar="SMTPLB_ADMIN_SOCKET", metavar="PATH",
                     help="The balancer's admin socket, which needs no token ($SMTPLB_ADMIN_SOCKET)."),
        click.option("--url", envvar="SMTPLB_ADMIN_URL", default=DEFAULT_URL, show_default=True,
                     help="The balancer's admin address ($SMTPLB_ADMIN_URL)."),
    ):  # fmt: skip
        command = option(command)
    return command


def _change_options(command: Callable[P, None]) -> Callable[P, None]:
    for option in (
        click.option("--force", is_flag=True, help="Even if a listener is left without a usable backend."),
        click.option("--reason", default="", metavar="TEXT", help="Shown by status, and in the log."),
        click.option("--for", "for_s", callback=_duration, metavar="TIME", help="Then ready again: 30m, 2h."),
        click.option("--wait", "wait_s", callback=_duration, metavar="TIME",
                     help="Wait up to TIME until none of its transactions is under way."),
        click.argument("target"),
    ):  # fmt: skip
        command = option(command)
    return _where_options(command)


# -- commands ----------------------------------------------------------------------------------------------


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole answer of the admin API.")
@_where_options
@click.pass_context
def status(
    context: click.Context, as_json: bool, url: str, socket: str | None, token_file: Path | None
) -> None:
    """Show the balancer's condition, worst problem first.

    Exit status: 0 unless the condition is failing, then 1; 3 if the balancer cannot be reached.
    """
    place = _place(context, url, socket, token_file)
    answer = _run(_status(place))
    if as_json:
        click.echo(json.dumps(answer, indent=2))  # ASCII: control characters stay written out
    else:
        show_status(_console(), clean(answer), time.time())
    context.exit(FAILED if answer.get("condition") == "failing" else 0)


@click.command()
@_change_options
@click.pass_context
def drain(
    context: click.Context,
    target: str,
    wait_s: float | None,
    for_s: float | None,
    reason: str,
    force: bool,
    url: str,
    socket: str | None,
    token_file: Path | None,
) -> None:
    """Give TARGET no new transactions.

    TARGET is POOL, POOL/BACKEND or @HOST (every backend at that address). Sessions go on at other backends
    from their next message. Checks go on.
    """
    change = _change("drain", reason, for_s, force)
    _run(_operate(_place(context, url, socket, token_file), target, change, wait_s))


@click.command()
@_change_options
@click.pass_context
def maint(
    context: click.Context,
    target: str,
    wait_s: float | None,
    for_s: float | None,
    reason: str,
    force: bool,
    url: str,
    socket: str | None,
    token_file: Path | None,
) -> None:
    """Take TARGET out altogether.

    TARGET is POOL, POOL/BACKEND or @HOST (every backend at that address). As drain, and checks end, too.
    """
    change = _change("maint", reason, for_s, force)
    _run(_operate(_place(context, url, socket, token_file), target, change, wait_s))


@click.command()
@click.option("--reason", default="", metavar="TEXT", help="Shown by status, and in the log.")
@click.option(
    "--wait", "wait_s", callback=_duration, metavar="TIME", help="Wait up to TIME until all of it is usable."
)
@click.argument("target")
@_where_options
@click.pass_context
def resume(
    context: click.Context,
    target: str,
    wait_s: float | None,
    reason: str,
    url: str,
    socket: str | None,
    token_file: Path | None,
) -> None:
    """Let TARGET take transactions again.

    TARGET is POOL, POOL/BACKEND or @HOST (every backend at that address).
    """
    change = _change("ready", reason, None, False)
    _run(_operate(_place(context, url, socket, token_file), target, change, wait_s))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole answer of the admin API.")
@_where_options
@click.pass_context
def reload(
    context: click.Context, as_json: bool, url: str, socket: str | None, token_file: Path | None
) -> None:
    """Have the balancer read its configuration again.

    What changed is said, and is in use then, without a connection lost. Exit status: 1 if the configuration
    has mistakes or needs a restart: nothing was changed; 3 if the balancer cannot be reached.
    """
    plan = _run(_reload(_place(context, url, socket, token_file)))
    if as_json:
        click.echo(json.dumps(plan, indent=2))
        return
    for line in plan_lines(clean(plan)):
        click.echo(line)


async def _reload(place: Place) -> Json:
    async with place.client() as client:
        try:
            return await client.reload()
        except Refused as refused:
            mistakes = [str(each.get("text", "")) for each in refused.problem.get("errors", [])]
            if not mistakes:
                raise
            for mistake in mistakes:
                click.echo(plain(mistake), err=True)
            raise Failed(str(refused)) from None


def _change(state: str, reason: str, for_s: float | None, force: bool) -> Json:
    change: Json = {"state": state, "reason": reason}
    if for_s is not None:
        change["for"] = format_duration(for_s)
    if force:
        change["force"] = True
    return change


def _run(work: Coroutine[Any, Any, Json]) -> Json:
    """Does it, and turns what may go wrong into a message and an exit code."""
    try:
        return asyncio.run(work)
    except Unreachable as error:
        _end(str(error), UNREACHABLE)
    except Refused as error:
        hint = "; see --token-file and --socket" if error.status in (401, 403) else ""
        _end(str(error) + hint, FAILED)
    except Failed as error:
        _end(str(error), FAILED)


def _end(text: str, code: int) -> NoReturn:
    click.echo(plain(text), err=True)
    raise SystemExit(code)


# -- what they do ------------------------------------------------------------------------------------------


async def _status(place: Place) -> Json:
    async with place.client() as client:
        return await client.status()


async def _operate(place: Place, target: str, change: Json, wait_s: float | None) -> Json:
    async with place.client() as client:
        backends = select(target, clean(await client.status()))
        await _change_all(client, backends, change)
        for backend in backends:
            click.echo(f"{_name(backend)}: {change['state']}")
        if wait_s is not None:
            keys = {(backend["pool"], backend["name"]) for backend in backends}
            await _wait(client, keys, wait_s, _waits_for_use if change["state"] == "ready" else flying)
    return {}


def select(target: str, status: Json) -> list[Json]:
    """The backends that POOL, POOL/BACKEND or @HOST names. Failed if there is none."""
    pools = {pool["name"]: pool["backends"] for pool in status["pools"]}
    if target.startswith("@"):
        host = target[1:].strip("[]").lower()
        everywhere = [backend for backends in pools.values() for backend in backends]
        return _found(
            [backend for backend in everywhere if _host(backend) == host],
            f"no backend at {host}",
            host,
            sorted({_host(backend) for backend in everywhere}),
        )
    pool, slash, name = target.partition("/")
    if pool not in pools:
        return _found([], f"no pool {pool}", pool, sorted(pools))
    backends = pools[pool]
    if not slash:
        return list(backends)
    named = [backend for backend in backends if backend["name"] == name]
    return _found(named, f"no backend {name} in pool {pool}", name, [backend["name"] for backend in backends])


def _found(backends: list[Json], text: str, word: str, known: list[str]) -> list[Json]:
    if backends:
        return backends
    near = get_close_matches(word, known, 1)
    raise Failed(text + (f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known[:20])}"))


def _host(backend: Json) -> str:
    address: str = backend["address"]
    return address.rpartition(":")[0].strip("[]").lower()


def _name(backend: Json) -> str:
    return f"{backend['pool']}/{backend['name']}"


async def _change_all(client: AdminClient, backends: list[Json], change: Json) -> None:
    for done, backend in enumerate(backends):
        try:
            await client.change_backend(backend["pool"], backend["name"], change)
        except Refused as refused:
            # Half a pool in drain would put its whole load on what is left.
            for changed in backends[:done]:
                await client.change_backend(changed["pool"], changed["name"], _as_it_was(changed))
            text = f"{_name(backend)}: {refused}"
            if refused.status == 409:
                stranded = ", ".join(map(str, refused.problem.get("listeners", [])))
                text = f"{_name(backend)}: this leaves {stranded} without a usable backend; --force does it"
            if done:
                text += f". {done} changed before were put back"
            if refused.status in (401, 403):
                raise
            raise Failed(text) from None
        except Unreachable as error:
            changed_before = ", ".join(map(_name, backends[:done])) or "nothing"
            raise Unreachable(f"{error}. {change['state']} was set before: {changed_before}") from None


def _as_it_was(backend: Json) -> Json:
    operator = backend["operator"]
    change: Json = {"state": operator["state"], "reason": operator["reason"], "force": True}
    if operator["until"] is not None and operator["state"] != "ready":
        left_s = datetime.fromisoformat(operator["until"]).timestamp() - time.time()
        change["for"] = format_duration(max(1, round(left_s)))
    return change


async def _wait(
    client: AdminClient,
    keys: set[tuple[str, str]],
    wait_s: float,
    pending: Callable[[list[Json]], Any],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Until nothing is pending at those backends. Failed when the time is over."""
    until = time.monotonic() + wait_s
    with Console(stderr=True, highlight=False, markup=False).status("") as line:
        while True:
            status = clean(await client.status())
            backends = [each for pool in status["pools"] for each in pool["backends"]]
            waits = list(pending([each for each in backends if (each["pool"], each["name"]) in keys]))
            if not waits:
                return
            if time.monotonic() >= until:
                raise Failed(f"after {format_duration(wait_s)} still: {'; '.join(waits)}")
            line.update("; ".join(waits))
            await sleep(POLL_S)


def _waits_for_use(backends: list[Json]) -> list[str]:
    return [
        f"{_name(backend)}: {backend['state']}, {backend['reason']}"
        for backend in backends
        if not backend["usable"]
    ]


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console
