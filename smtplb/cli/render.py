"""What `smtplb status` shows: condition first, problems worst first with what to do, then the tables.

Owns columns, words and which of them give way on a narrow screen. Does not own the facts: it gets the admin
API's answer.
Invariant: whatever the answer holds, no control character of it reaches the terminal, and no name is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.text import Text

Json = dict[str, Any]
Cell = str | Text

NARROW = 100  # below this many columns some give way
MIN_LAST = 12  # the last column keeps so much, whatever the width
CONDITION_STYLES = {"ok": "bold green", "degraded": "bold yellow", "failing": "bold red"}
STATE_STYLES = {
    "up": "green",
    "slow-start": "green",
    "down": "bold red",
    "ejected": "bold red",
    "unproven": "yellow",
    "drain": "yellow",
    "maint": "yellow",
}


def clean(value: Any) -> Any:
    """The same JSON with every character that is not printable replaced: a backend's words are in it."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [clean(each) for each in value]
    if isinstance(value, dict):
        return {plain(key): clean(each) for key, each in value.items()}
    return value


def plain(text: str) -> str:
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    )


def show_status(console: Console, status: Json, now: float) -> None:
    """`status` is a clean answer of /api/v1/status; `now` unix time."""
    width = console.width
    for line in _lines(status, width, now):
        console.print(line, soft_wrap=True)  # what does not fit is the terminal's to break, not ours to cut


def _lines(status: Json, width: int, now: float) -> Iterator[Text]:
    yield from _headline(status, width, now)
    for problem in status["problems"]:
        yield from _problem(problem, width)
    yield Text()
    yield from _table(status["listeners"], _LISTENER_COLUMNS, width, now)
    for group in status["groups"]:
        yield Text()
        yield from _group(group, width, now)
    for pool in status["pools"]:
        yield Text()
        yield _pool_headline(pool)
        yield from _table(pool["backends"], _BACKEND_COLUMNS, width, now, indent="  ")


def _headline(status: Json, width: int, now: float) -> Iterator[Text]:
    condition, problems = status["condition"], len(status["problems"])
    said = condition.upper()
    if problems:
        said += f": {problems} problem{'' if problems == 1 else 's'}"
    config = status["config"]
    sessions = sum(listener["sessions"]["open"] for listener in status["listeners"])
    facts = [f"smtplb {status['version']}", f"up {ago(status['started'], now)}"]
    if config["sha256"]:
        facts.append(f"config {config['sha256'][:6]} loaded {ago(config['loaded'], now)} ago")
    facts.append(f"{count(sessions)} session{'' if sessions == 1 else 's'}")
    line = Text(status["hostname"], style="bold")
    line.append("  " + said, style=CONDITION_STYLES.get(condition, ""))
    rest = ", ".join(facts)
    if line.cell_len + 2 + len(rest) <= width:
        yield Text.assemble(line, "  ", rest)
    else:
        yield line
        yield Text("  " + rest)


def _problem(problem: Json, width: int) -> Iterator[Text]:
    style = "bold red" if problem["severity"] == "failing" else "yellow"
    lead = Text(f" ! {problem['where']}  ", style=style)
    indent = " " * min(lead.cell_len, 13)
    first, *more = _wrapped(problem["text"], width, indent, first=lead.cell_len)
    yield Text.assemble(lead, first)
    for line in more:
        yield Text(indent + line)
    for line in _wrapped(f"do: {problem['hint']}  docs/problems.md#{problem['anchor']}", width, indent):
        yield Text(indent + line)


def _wrapped(text: str, width: int, indent: str, first: int | None = None) -> list[str]:
    room = max(20, width - len(indent))
    ahead = 0 if first is None else first - len(indent)
    lines = wrap(text, room, initial_indent="x" * ahead, break_long_words=False, break_on_hyphens=False)
    return [lines[0][ahead:], *lines[1:]] if lines else [""]


def _group(group: Json, width: int, now: float) -> Iterator[Text]:
    total = sum(member["share"] for member in group["pools"])
    shares = ", ".join(
        f"{member['pool']} {_percent(member['share'] / total if total else 0)} "
        f"({_percent(member['usable_ratio'])} usable)"
        for member in group["pools"]
    )
    lead = Text(f"GROUP {group['name']}", style="bold")
    said = f"{group['mode']}: {shares}, for {ago(group['since'], now)}"
    if group["failback"]["in"] is not None:
        said += f"; fail-back in {seconds(group['failback']['in'])}"
    first, *more = _wrapped(said, width, "  ", first=lead.cell_len + 2)
    yield Text.assemble(lead, "  ", first)
    for line in more:
        yield Text("  " + line)
    if group["failback"]["waits"]:
        yield Text("  fail-back waits for you", style="yellow")


def _pool_headline(pool: Json) -> Text:
    moved = sum(each for reasons in pool["retries"].values() for each in reasons.values())
    said = f"  {pool['policy']}, {_percent(pool['usable_ratio'])} usable"
    said += f", {count(moved)} attempt{'' if moved == 1 else 's'} repeated" if moved else ""
    return Text.assemble((f"POOL {pool['name']}", "bold"), said)


# -- tables ------------------------------------------------------------------------------------------------

# Heading, on the right?, on a narrow screen too?, what it shows.
Column = tuple[str, bool, bool, Callable[[Json, float], Cell]]


def _table(
    rows: list[Json], columns: list[Column], width: int, now: float, indent: str = ""
) -> Iterator[Text]:
    """Columns as wide as what is in them; only the last is cut where the screen ends. rich would cut names first."""
    shown = [column for column in columns if width >= NARROW or column[2]]
    lines = [[Text(heading, style="dim") for heading, *_ in shown]]
    lines += [[_as_text(show(row, now)) for *_, show in shown] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]
    for cells in lines:
        line = Text(indent)
        for cell, room, (_, right, *_) in zip(cells[:-1], widths, shown, strict=False):
            gap = " " * (room - cell.cell_len)
            line.append_text(Text.assemble(gap, cell, "  ") if right else Text.assemble(cell, gap, "  "))
        last = cells[-1]
        last.truncate(max(MIN_LAST, width - line.cell_len), overflow="ellipsis")
        line.append_text(last)
        line.rstrip()
        yield line


def _as_text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _sessions(listener: Json) -> str:
    limit = listener["sessions"]["limit"]
    return count(listener["sessions"]["open"]) + ("" if limit is None else f"/{count(limit)}")


def _outcome(*names: str) -> Callable[[Json, float], Cell]:
    return lambda listener, _: count(sum(listener["transactions"].get(name, 0) for name in names))


_LISTENER_COLUMNS: list[Column] = [
    ("LISTENER", False, True, lambda listener, _: listener["name"]),
    ("READY", False, True, lambda listener, _: _ready(listener)),
    ("SESSIONS", True, True, lambda listener, _: _sessions(listener)),
    ("OK", True, True, _outcome("ok")),
    ("4XX", True, True, _outcome("tempfail")),
    ("5XX", True, True, _outcome("permfail")),
    ("REFUSED", True, True, _outcome("refused")),
    ("IN DOUBT", True, False, _outcome("in_doubt")),
    ("TO", False, True, lambda listener, _: listener["to"]),
    ("BINDS", False, False, lambda listener, _: " ".join(listener["binds"])),
]


def _ready(listener: Json) -> Text:
    if not listener["accepting"]:
        return Text("closed", style="bold red")
    return Text("yes", style="green") if listener["usable_backends"] else Text("NO", style="bold red")


def _state(backend: Json) -> Text:
    state = backend["state"]
    said = state.upper() if state in ("down", "ejected") else state
    return Text(said + (" backup" if backend["backup"] else ""), style=STATE_STYLES.get(state, ""))


def _weight(backend: Json) -> str:
    weight, effective = backend["weight"], backend["effective_weight"]
    return str(weight) if weight == effective else f"{weight} -> {effective}"


def _last_check(backend: Json) -> str:
    last = backend["check"]["last"]
    if backend["check"]["level"] == "off":
        return "off"
    if last["result"] is None:
        return "none yet"
    took = "" if last["duration"] is None else " " + milliseconds(last["duration"])
    return f"{backend['check']['level']}{took}: {last['text']}"


def _attempts(*names: str) -> Callable[[Json, float], Cell]:
    return lambda backend, _: count(sum(backend["attempts"].get(name, 0) for name in names))


_BACKEND_COLUMNS: list[Column] = [
    ("BACKEND", False, True, lambda backend, _: backend["name"]),
    ("STATE", False, True, lambda backend, _: _state(backend)),
    ("SINCE", False, True, lambda backend, now: ago(backend["since"], now)),
    ("WEIGHT", False, True, lambda backend, _: _weight(backend)),
    ("BUSY", True, True, lambda backend, _: count(backend["in_flight"])),
    ("IDLE", True, False, lambda backend, _: count(backend["connections"].get("idle", 0))),
    ("OK", True, True, _attempts("ok")),
    ("FAULTS", True, True, _attempts("fault", "in_doubt")),
    ("P50", True, False, lambda backend, _: milliseconds(backend["latency"].get("p50"))),
    ("P99", True, False, lambda backend, _: milliseconds(backend["latency"].get("p99"))),
    ("LAST CHECK", False, True, lambda backend, _: _last_check(backend)),
]


# -- words -------------------------------------------------------------------------------------------------


def count(number: int) -> str:
    return f"{number:,}"


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.0f}%"


def milliseconds(duration_s: float | None) -> str:
    if duration_s is None:
        return "-"
    return f"{duration_s * 1000:.0f}ms" if duration_s < 1 else f"{duration_s:.3g}s"


def seconds(duration_s: float) -> str:
    """The largest unit that fits: 14s, 14m, 3h, 41d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if duration_s >= size:
            return f"{int(duration_s // size)}{unit}"
    return f"{max(0, int(duration_s))}s"


def ago(when: str | None, now: float) -> str:
    if when is None:
        return "-"
    return seconds(now - datetime.fromisoformat(when).timestamp())


def flying(backends: list[Json]) -> Iterator[str]:
    """Those that still have transactions."""
    for backend in backends:
        if backend["in_flight"]:
            yield f"{backend['pool']}/{backend['name']}: {count(backend['in_flight'])} in flight"
