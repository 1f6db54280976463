"""Every dialogue file, four ways: as written, byte by byte, glued together, and over real sockets under uvloop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dataplane.script import Script, ScriptError, parse, read
from tests.dataplane.theatres import play_on_fakes, play_on_sockets

FILES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))
ALL = [pytest.param(path, id=path.stem) for path in FILES]


def _without_errors(path: Path) -> Script:
    return read(path)


@pytest.mark.parametrize("path", ALL)
def test_as_written(path: Path) -> None:
    play_on_fakes(read(path))


@pytest.mark.parametrize("path", ALL)
def test_byte_by_byte(path: Path) -> None:
    play_on_fakes(read(path), split=True)


@pytest.mark.parametrize("path", [p for p, f in zip(ALL, FILES, strict=True) if read(f).glued])
def test_glued_together(path: Path) -> None:
    play_on_fakes(read(path), glued=True)


@pytest.mark.parametrize("path", [p for p, f in zip(ALL, FILES, strict=True) if not read(f).fake_only])
async def test_over_sockets(path: Path) -> None:
    await play_on_sockets(read(path))


# -- the format ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("C> NOOP", "x.txt:1: the first line must be a comment that tells in a sentence what happens"),
        ("# Silence.", "x.txt:1: nothing is said"),
        ("# S.\nC> NOOP\nC NOOP", 'x.txt:3: "C NOOP" is neither'),
        ("# S.\nB> 250 ok", 'x.txt:2: no backend is called "B"; `backends:` names A'),
        ("# S.\n!explode A", 'x.txt:2: no fault is called "explode"'),
        ("# S.\n!cut", "x.txt:2: !cut needs an argument (backend)"),
        ("# S.\n!cut C", "x.txt:2: !cut is for backends"),
        ("# S.\n!clock soon", 'x.txt:2: "soon" is not a number of seconds like 30s'),
        ("# S.   colour: red\nC> NOOP", 'x.txt:1: no setting is called "colour"'),
        ("# S.\n# limits: recipients\nC> NOOP", 'x.txt:2: "recipients" is not key=value'),
        ("# S.\n# another sentence\nC> NOOP", 'x.txt:2: "another sentence" is no setting (key: value)'),
        (r"# S." "\n" r"C> a\qb", r'x.txt:2: unknown escape "\q"'),
    ],
)
def test_a_bad_file_is_refused_with_file_and_line(text: str, error: str) -> None:
    with pytest.raises(ScriptError, match="^" + re.escape(error)):
        parse(text, Path("x.txt"))


def test_a_dialogue_that_goes_otherwise_says_where() -> None:
    script = parse("# S.\nC> NOOP    C< 250 2.0.0 Ok\nC> NOOP   C< 500..", Path("x.txt"))
    with pytest.raises(
        AssertionError, match=r"^x\.txt:3: expected C< '500\.\.': the client heard '250 2.0.0 Ok'"
    ):
        play_on_fakes(script)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("# S.\nC> NOOP", "at the end there is more than was expected"),
        ("# S.\nC> NOOP   C< 250..   C< 250..", "the client heard nothing more"),
        ("# S.\nA< MAIL..", "A heard nothing more"),
        ("# S.\nC< [closed]", "the connection is still open"),
        ("# S.\nA> 220 hi", "A has no connection to say it on"),
        ("# S.\n= A fault mail busy", "told was None"),
    ],
)
def test_what_is_missing_or_too_much_fails(text: str, what: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(what)):
        play_on_fakes(parse(text, Path("x.txt")))


def test_escapes_and_half_lines() -> None:
    script = parse("# S.\n" r"C>> a\r\n\x41\0\s\\" "\n", Path("x.txt"))
    assert script.items[0].text == "a\r\nA\0 \\"
    assert script.items[0].kind == ">>"
