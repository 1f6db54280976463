"""Dialogue files: what each party says and hears, as data.

Owns the format and its errors (ScriptError names file and line). Does not own playing it (player.py).

    # A drops after RCPT: same verdicts on B, the client sees nothing.     backends: A B
    C> MAIL FROM:<x@a.test>        C< 250 2.1.0 ok
    C> RCPT TO:<y@b.test>          A< MAIL..  A< RCPT..  !cut A

Lanes: C the client; A, B, D, E.. backends. `X> text` X says a line, `X>> text` without a line end, `X< text` X hears exactly
this line, or with `..` at its end a line that begins so. `X< [closed]`, `X< [aborted]`: smtplb ended that connection.
`!name arguments` a fault or the clock, `= ..` what the worker told: "A fault mail busy", "A blamed busy", "ended ok".
Items of one line are parted by two blanks or more; escapes \\r \\n \\t \\0 \\s (a blank) \\\\ \\xHH.
The comment lines at the top: a sentence, and settings as `key: value` parted by two blanks or more.
Greeting, EHLO, and QUIT are said by themselves unless `by hand:` names the lane.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtplb.messages import BackendState
from smtplb.settings import Policy
from tests.dataplane.mta import OFFERS
from tests.dataplane.setup import Setup

CLIENT = "C"
FAULTS = {  # name -> the kind of its argument
    "cut": "backend",
    "reset": "lane",
    "eof": "lane",
    "refuse": "backend",
    "accept": "backend",
    "hang": "backend",
    "clock": "seconds",
    "up": "backend",
    "drain": "backend",
    "maint": "backend",
    "down": "backend",
    "stop": "seconds",
}
ONLY_FAKE = frozenset({"clock", "hang"})

_LANE = re.compile(r"([A-Z])(>>|>|<)(?: (.*))?\Z", re.DOTALL)
_FAULT = re.compile(r"!([a-z]+)(?: (\S+))?\Z")
_EVENT = re.compile(r"= (\S.*)\Z")
_OPTION = re.compile(r"([a-z]+(?: [a-z]+)?(?: [A-Z])?): (\S.*)\Z")
_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)s\Z")
_NUMBER = re.compile(r"[0-9]+\Z")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.|\Z)", re.DOTALL)
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "s": " ", "\\": "\\"}


class ScriptError(Exception):
    """A dialogue file that cannot be read; the text begins with file:line."""


@dataclass(frozen=True)
class Item:
    """kind: ">" ">>" "<" with a lane; "!" with the fault as lane; "=" without."""

    kind: str
    lane: str
    text: str
    line: int


@dataclass
class Script:
    path: Path
    sentence: str
    setup: Setup
    items: list[Item]
    by_hand: frozenset[str] = frozenset()
    offers: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    glued: bool = True  # may all that a party says at a stretch come in one segment?
    fake_only: bool = False


def read(path: Path) -> Script:
    return parse(path.read_text("utf-8"), path)


def parse(text: str, path: Path) -> Script:
    return _Parser(path).parse(text)


class _Parser:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._line = 0
        self._setup = Setup()
        self._script = Script(path, "", self._setup, [])

    def parse(self, text: str) -> Script:
        script = self._script
        in_header = True
        for self._line, line in enumerate(text.splitlines(), 1):
            if line.startswith("#"):
                if in_header:
                    self._header(line[1:].strip())
                continue
            if line.strip():
                in_header = False
                script.items.extend(self._item(token) for token in re.split(r" {2,}", line.strip()))
        self._line = 1
        if not script.sentence:
            raise self._error("the first line must be a comment that tells in a sentence what happens")
        if not script.items:
            raise self._error("nothing is said")
        script.fake_only = script.fake_only or any(
            i.kind == "!" and i.lane in ONLY_FAKE for i in script.items
        )
        return script

    def _error(self, what: str) -> ScriptError:
        return ScriptError(f"{self._path}:{self._line}: {what}")

    # -- items ---------------------------------------------------------------------------------------

    def _item(self, token: str) -> Item:
        if found := _LANE.match(token):
            lane, kind, text = found[1], found[2], found[3] or ""
            self._known(lane)
            return Item(kind, lane, self._unescaped(text), self._line)
        if found := _FAULT.match(token):
            return self._fault(found[1], found[2] or "")
        if found := _EVENT.match(token):
            return Item("=", "", found[1], self._line)
        raise self._error(f'"{token}" is neither "X> ..", "X>> ..", "X< ..", "!fault .." nor "= .."')

    def _fault(self, name: str, argument: str) -> Item:
        kind = FAULTS.get(name)
        if kind is None:
            raise self._error(f'no fault is called "{name}": {", ".join(sorted(FAULTS))}')
        if not argument:
            raise self._error(f"!{name} needs an argument ({kind})")
        if kind == "seconds":
            argument = str(self._seconds(argument))
        else:
            self._known(argument)
            if kind == "backend" and argument == CLIENT:
                raise self._error(f"!{name} is for backends")
        return Item("!", name, argument, self._line)

    def _known(self, lane: str) -> None:
        if lane != CLIENT and lane not in self._setup.names:
            raise self._error(
                f'no backend is called "{lane}"; `backends:` names {" ".join(self._setup.names)}'
            )

    def _unescaped(self, text: str) -> str:
        def one(found: re.Match[str]) -> str:
            escape = found[1]
            if escape.startswith("x") and len(escape) == 3:
                return chr(int(escape[1:], 16))
            if escape not in _ESCAPES:
                raise self._error(f'unknown escape "\\{escape}"')
            return _ESCAPES[escape]

        return _ESCAPE.sub(one, text)

    # -- the header ----------------------------------------------------------------------------------

    def _header(self, text: str) -> None:
        for part in re.split(r" {2,}", text):
            if found := _OPTION.match(part):
                self._option(found[1], found[2])
            elif not self._script.sentence:
                self._script.sentence = part
            elif part:
                raise self._error(f'"{part}" is no setting (key: value)')

    def _option(self, key: str, value: str) -> None:
        setup, script = self._setup, self._script
        name, _, lane = key.partition(" ")
        if name == "offers" and lane:
            self._known(lane)
            script.offers[lane] = self._offers(value)
            return
        match key:
            case "backends":
                setup.pools = {"p": value}
            case "pools":
                setup.pools = {k: v.replace(",", " ") for k, v in self._pairs(value).items()}
            case "group":
                setup.groups = {"site": tuple((k, int(v)) for k, v in self._pairs(value).items())}
                setup.target = "site"
            case "policy":
                setup.policy = Policy(value)
            case "weights":
                setup.weights = {k: int(v) for k, v in self._pairs(value).items()}
            case "backup":
                setup.backup = frozenset(value.split())
            case "states":
                setup.states = {k: BackendState(v) for k, v in self._pairs(value).items()}
            case "accept":
                setup.accept = tuple(value.split())
            case "bare newline":
                setup.bare_newline = value
            case "attempts":
                setup.attempts = int(value)
            case "limits" | "timeouts" | "budget" | "keep":
                setattr(setup, key, {k: self._value(v) for k, v in self._pairs(value).items()})
            case "by hand":
                script.by_hand = frozenset(value.split())
            case "glued":
                script.glued = self._yes(value)
            case "sockets":
                script.fake_only = not self._yes(value)
            case _:
                raise self._error(f'no setting is called "{key}"')

    def _offers(self, value: str) -> tuple[str, ...] | None:
        if value == "helo":
            return None
        if value == "nothing":
            return ()
        offers = tuple(offer.strip().replace("=", " ") for offer in value.split(","))
        return tuple(o for o in OFFERS if "-" + o.split()[0] not in offers) if offers[0][0] == "-" else offers

    def _yes(self, value: str) -> bool:
        if not value.startswith(("yes", "no")):
            raise self._error(f'"{value}" is neither yes nor no')
        return value.startswith("yes")

    def _pairs(self, value: str) -> dict[str, str]:
        pairs = {}
        for word in value.split():
            key, equals, content = word.partition("=")
            if not equals:
                raise self._error(f'"{word}" is not key=value')
            pairs[key] = content
        return pairs

    def _value(self, value: str) -> Any:
        return int(value) if _NUMBER.match(value) else self._seconds(value)

    def _seconds(self, value: str) -> float:
        found = _SECONDS.match(value)
        if found is None:
            raise self._error(f'"{value}" is not a number of seconds like 30s')
        return float(found[1])
