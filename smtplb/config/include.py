"""`include`: files that hold further listeners, routes, groups and pools.

Owns the search for them and the join of their trees with the first. Does not own their syntax: the caller
passes its parser.
Invariant: after the join each name stands once, and every value still knows the file that it came from.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import TypeAlias

from smtplb.config.errors import ConfigError, Place, quote, quote_path
from smtplb.config.files import Files, UnreadableError
from smtplb.config.tree import BROKEN, Content, Entry, Node, key_text

MAX_FILES = 1000
LISTS = ("listeners",)
MAPPINGS = ("routes", "groups", "pools")

Parse: TypeAlias = Callable[[str, str, list[ConfigError]], Node | None]


def include(
    root: Node, directory: FilePath, files: Files, errors: list[ConfigError], parse: Parse
) -> Node | None:
    """`root` with what its includes hold. None: one of the files is no YAML; `errors` says why."""
    assert isinstance(root.content, dict)
    joined = dict(root.content)
    complete = True
    for pattern, place, key in _patterns(root):
        try:
            found = _matches(pattern, directory, root.place.file)
        except ValueError as error:
            errors.append(ConfigError.at(place, key, str(error)))
            continue
        for path in found:
            part = _read(path, files, errors, parse, place, key)
            if part is None:
                complete = False
            else:
                _join(joined, part, errors)
    return Node(root.place, joined) if complete else None


def _patterns(root: Node) -> Iterator[tuple[str, Place, str]]:
    """(pattern, place, key) of each text under `include`. What is no text is reported by the schema."""
    assert isinstance(root.content, dict)
    entry = root.content.get("include")
    if entry is None:
        return
    if isinstance(entry.node.content, list):
        for index, item in enumerate(entry.node.content):
            if isinstance(item.content, str):
                yield item.content, item.place, key_text(root, ("include", index))
    elif isinstance(entry.node.content, str):
        yield entry.node.content, entry.node.place, "include"


def _matches(pattern: str, directory: FilePath, own: str) -> list[str]:
    """Sorted, so that the same files make the same configuration. ValueError: words for the operator."""
    whole = os.path.join(directory, pattern)
    try:
        found = sorted(glob.glob(whole))
    except (OSError, ValueError):
        found = []
    if not found and not glob.has_magic(pattern):
        raise ValueError(f"no file is called {quote_path(whole)}")
    if any(_same(path, own) for path in found):
        raise ValueError(
            f"{quote(pattern)} finds this file itself: put the others in a folder, such as conf.d/*.yaml"
        )
    if len(found) > MAX_FILES:
        raise ValueError(f"{quote(pattern)} finds more than {MAX_FILES} files")
    return found


def _same(path: str, own: str) -> bool:
    try:
        return os.path.samefile(path, own)
    except (OSError, ValueError):
        return False


def _read(
    path: str, files: Files, errors: list[ConfigError], parse: Parse, place: Place, key: str
) -> Node | None:
    files.add(path, FilePath(path).parent)
    try:
        text = files.included_text(FilePath(path))
    except UnreadableError as error:
        at = Place(path, error.line, error.column) if error.line else place
        errors.append(ConfigError.at(at, "" if error.line else key, str(error)))
        return None
    return parse(text, path, errors)


def _join(joined: dict[str, Entry], part: Node, errors: list[ConfigError]) -> None:
    assert isinstance(part.content, dict)
    for key, entry in part.content.items():
        if key == "include":
            errors.append(ConfigError.at(entry.key_place, key, "an included file includes no others"))
        elif key not in LISTS + MAPPINGS:
            message = "not in an included file: those hold listeners, routes, groups and pools"
            errors.append(ConfigError.at(entry.key_place, key, message))
        elif key not in joined:
            joined[key] = entry
        else:
            first = joined[key]
            joined[key] = Entry(first.key_place, Node(first.node.place, _both(first, entry, key, errors)))


def _both(first: Entry, second: Entry, key: str, errors: list[ConfigError]) -> Content:
    """What both hold. Where only one is of the right kind it is kept, and the other reported."""
    ours, theirs = first.node.content, second.node.content
    if isinstance(ours, list) and isinstance(theirs, list):
        return [*ours, *theirs]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, entry in theirs.items():
            if name in ours:
                message = f"is written twice: also at {ours[name].key_place}"
                errors.append(ConfigError.at(entry.key_place, f"{key}.{name}", message))
        return {**theirs, **ours}
    if ours is BROKEN or theirs is BROKEN:  # reported when its file was read
        return ours if theirs is BROKEN else theirs
    kind = list if key in LISTS else dict
    wrong = second if isinstance(ours, kind) else first
    message = f"must be a {'list' if kind is list else 'mapping of names'}, in every file"
    errors.append(ConfigError.at(wrong.node.place, key, message))
    return theirs if wrong is first else ours
