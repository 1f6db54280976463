"""A configuration file becomes Settings. The only module that knows YAML.

Owns YAML: which of it is allowed, what its scalars are, and the way from its nodes to our tree. Does not own
the meaning of any key (document.py) nor includes (include.py).
Invariant: whatever bytes come in, what comes out is Settings or ConfigErrors.

What PyYAML's default rules would make of a mail configuration: `off` and `no` become False, `22:25` becomes
1345, `010` becomes 8, `2024-01-01` a date, and a duplicate key silently wins. Here only what is a boolean or
a decimal integer to YAML 1.2's core schema is one; what no key needs (octal, hexadecimal, floating point, a
plus sign, leading zeros) is text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import yaml

from smtplb.config.checker import Checker
from smtplb.config.document import read_document
from smtplb.config.errors import ConfigError, ConfigErrors, Place, quote
from smtplb.config.files import MAX_CONFIG_BYTES, Files, UnreadableError
from smtplb.config.include import include
from smtplb.config.substitute import Substituted, substitute
from smtplb.config.tree import BROKEN, Content, Entry, Node, Path, key_text
from smtplb.settings import Settings

MAX_DEPTH = 32  # of nesting. The deepest lawful value, a condition in a `not` in a `not`, is at about 10
MAX_VALUES = 100_000  # of one file, with aliases and merge keys written out. 3,000 backends are about 30,000

_MERGE = "<<"
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULL = {"", "~", "null", "Null", "NULL"}
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
# YAML 1.2 c-printable without NEL, LS and PS, which PyYAML (YAML 1.1) takes for line ends and editors do not.
_NOT_ALLOWED = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_END = re.compile(r"\r\n|\r|\n")

# The words of PyYAML's scanner and parser -> ours. Searched in this order; anything else is passed on as it
# is.
_SYNTAX = (
    ("'\\t' that cannot start", "a tab: indent and separate with blanks"),
    (
        "mapping values are not allowed",
        "a `:` where no key can be: wrong indentation, or a text with a colon that needs quotes",
    ),
    ("could not find expected ':'", "a key without `:`: wrong indentation, or a quote that is not closed"),
    (
        "expected ',' or",
        "`,` or a closing bracket is missing; a text with { [ or , such as ${VAR}, needs quotes here",
    ),
    ("expected <block end>", "the indentation does not fit the lines above"),
    (
        "while scanning an alias",
        "a text that starts with * needs quotes: * alone is YAML's sign for an alias",
    ),
    ("found undefined alias", "an alias (*) of an anchor (&) that is not above it"),
    ("found duplicate anchor", "an anchor (&) of that name is above already"),
    ("expected a single document", "a second document (---): one file holds one"),
    (
        "while scanning a quoted scalar",
        "a quoted text that does not end, or an escape in it that does not exist",
    ),
    ("cannot start any token", "a character that needs quotes at the start of a text"),
)


def load(path: str | FilePath) -> Settings:
    """The configuration in a file and those that it includes. Raises ConfigErrors."""
    name = os.fspath(path)
    files = Files()
    try:
        text = files.config_text(FilePath(name))
    except UnreadableError as error:
        raise ConfigErrors([ConfigError(name, error.line, error.column, "", str(error))]) from None
    return _load(text, name, FilePath(name).parent, files)


def load_text(text: str, name: str = "<text>", base_dir: FilePath | None = None) -> Settings:
    """As load(), for a text called `name` in errors. Relative paths start at `base_dir`, else at the working
    directory.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigErrors([ConfigError(name, 0, 0, "", f"is larger than {MAX_CONFIG_BYTES} octets")])
    return _load(text, name, base_dir if base_dir is not None else FilePath(), Files())


def _load(text: str, name: str, directory: FilePath, files: Files) -> Settings:
    files.add(name, directory)
    errors: list[ConfigError] = []
    root = parse(text, name, errors)
    if root is not None:
        root = include(root, directory, files, errors, parse)
    if root is None:  # not YAML: nothing that could be said about keys would be true
        raise ConfigErrors(errors)
    checker = Checker(root, files)
    checker.errors.extend(errors)
    return read_document(checker, name)


def parse(text: str, name: str, errors: list[ConfigError]) -> Node | None:
    """The tree of one file, a mapping at its top. None: it is no YAML, or no mapping; `errors` says why.

    Mistakes that spoil a single value go to `errors` too; the value is BROKEN.
    """
    bad = _NOT_ALLOWED.search(text, 1 if text.startswith("\ufeff") else 0)
    if bad is not None:
        message = f"a character that must not be in a file: U+{ord(bad[0]):04X}"
        errors.append(ConfigError.at(_place_in(text, bad.start(), name), "", message))
        return None
    loader = _CoreLoader(text)
    try:
        top = loader.get_single_node()
        if top is None:
            raise _NotUsableError("is empty")
        if not isinstance(top, yaml.MappingNode):
            raise _NotUsableError(
                "must be a mapping of sections (listeners, pools, ...) at its top", top.start_mark
            )
        reading = _Reading(name)
        node = reading.tree(top)
    except yaml.YAMLError as error:
        errors.append(ConfigError.at(*_syntax(error, name)))
        return None
    except (ValueError, OverflowError):  # chr() in PyYAML's scanner, for "\UFFFFFFFF"
        place = _place(loader.get_mark(), name)
        errors.append(ConfigError.at(place, "", "an escape that stands for no character"))
        return None
    except RecursionError:  # cannot be: depth is bounded. If it is, it must not be a traceback
        errors.append(ConfigError(name, 0, 0, "", "is nested too deeply"))
        return None
    finally:
        loader.dispose()
    errors.extend(ConfigError.at(_place(mark, name), "", message) for mark, message in loader.tag_faults)
    errors.extend(
        ConfigError.at(place, key_text(node, path), message) for path, place, message in reading.faults
    )
    return node


class _NotUsableError(yaml.MarkedYAMLError):
    """Our own reasons to give a file up."""

    def __init__(self, message: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(problem=message, problem_mark=mark)


class _CoreLoader(yaml.SafeLoader):
    """Composes nodes; never constructs values. Resolves no scalar: _core() does. No tags, bounded depth."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tag_faults: list[tuple[yaml.Mark, str]] = []
        self._depth = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        start, end = event.start_mark, event.end_mark
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.tag_faults.append((start, f"a tag ({quote(tag)}): values are written without tags"))
            event.tag = None
            if isinstance(event, yaml.ScalarEvent):
                event.implicit = (event.style is None, event.style is not None)
        self._values += 1
        if self._values > MAX_VALUES:
            raise _NotUsableError(f"more than {MAX_VALUES} values", start)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotUsableError(f"is nested more than {MAX_DEPTH} levels deep", start)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and isinstance(node, yaml.CollectionNode):
            # A node of its own place, so that what is missing in it is reported where it is used. The list of
            # children is shared: an alias inside its own anchor is not filled yet.
            return type(node)(node.tag, node.value, start, end)
        return node


class _Reading:
    """From YAML nodes to our tree, with aliases and merge keys written out and counted."""

    def __init__(self, file: str) -> None:
        self.faults: list[tuple[Path, Place, str]] = []
        self._file = file
        self._values = 0

    def tree(self, top: yaml.MappingNode) -> Node:
        """The top of a file, without its `x-` keys: those only hold anchors."""
        pairs = {key: pair for key, pair in self._pairs(top, ()).items() if not key.startswith("x-")}
        return Node(self._place(top), self._entries(pairs, ()))

    def _node(self, node: yaml.Node, path: Path) -> Node:
        self._count(node, path)
        place = self._place(node)
        content: Content
        if isinstance(node, yaml.MappingNode):
            content = self._entries(self._pairs(node, path), path)
        elif isinstance(node, yaml.SequenceNode):
            content = [self._node(item, (*path, index)) for index, item in enumerate(node.value)]
        else:
            assert isinstance(node, yaml.ScalarNode)
            content = self._scalar(node, path, place)
        return Node(place, content)

    def _entries(self, pairs: dict[str, tuple[yaml.Node, yaml.Node]], path: Path) -> dict[str, Entry]:
        return {
            key: Entry(self._place(key_node), self._node(value_node, (*path, key)))
            for key, (key_node, value_node) in pairs.items()
        }

    def _pairs(self, node: yaml.MappingNode, path: Path) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> nodes, merge keys applied: own keys win, then earlier merged mappings."""
        self._count(node, path)
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.MappingNode] = []
        for key_node, value_node in node.value:
            self._count(key_node, path)
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(path, key_node, "a key must be a word")
                continue
            key = key_node.value
            if key == _MERGE and key_node.style is None:
                merged.extend(self._merge_sources(value_node, path))
            elif key in found:
                lines = f"line {self._place(found[key][0]).line} and line {self._place(key_node).line}"
                self._fault((*path, key), key_node, f"is written twice, in {lines}")
            else:
                found[key] = (key_node, value_node)
        for source in merged:
            for key, pair in self._pairs(source, path).items():
                found.setdefault(key, pair)
        return found

    def _merge_sources(self, node: yaml.Node, path: Path) -> Iterator[yaml.MappingNode]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(source, yaml.MappingNode):
                yield source
            else:
                self._fault(path, source, "a merge key (<<) takes a mapping, or a list of mappings")

    def _scalar(self, node: yaml.ScalarNode, path: Path, place: Place) -> Content:
        text: str = node.value
        try:
            value = substitute(text, os.environ)
        except ValueError as error:
            self.faults.append((path, place, str(error)))
            return BROKEN
        if node.style is not None or isinstance(value, Substituted):  # quoted, or a block: text
            return value
        found = _core(value)
        if found is None:
            self.faults.append((path, place, "has no value: write one, or leave the key out"))
            return BROKEN
        return found

    def _count(self, node: yaml.Node, path: Path) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            message = f"more than {MAX_VALUES} values, aliases (*) and merge keys (<<) written out"
            raise _NotUsableError(message, node.start_mark)
        if len(path) > MAX_DEPTH:
            raise _NotUsableError(f"is nested more than {MAX_DEPTH} levels deep by aliases", node.start_mark)

    def _fault(self, path: Path, node: yaml.Node, message: str) -> None:
        self.faults.append((path, self._place(node), message))

    def _place(self, node: yaml.Node) -> Place:
        return _place(node.start_mark, self._file)


def _core(text: str) -> str | int | bool | None:
    """A plain scalar by the core schema of YAML 1.2 as far as we follow it; None for null."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    return int(text) if _INTEGER.fullmatch(text) else text


def _place(mark: yaml.Mark | None, file: str) -> Place:
    return Place(file, mark.line + 1, mark.column + 1) if mark is not None else Place(file)


def _place_in(text: str, position: int, file: str) -> Place:
    ends = list(_LINE_END.finditer(text, 0, position))
    return Place(file, len(ends) + 1, position - (ends[-1].end() if ends else 0) + 1)


def _syntax(error: yaml.YAMLError, file: str) -> tuple[Place, str, str]:
    if not isinstance(error, yaml.MarkedYAMLError):
        return Place(file), "", f"is not YAML: {error}"
    place = _place(error.problem_mark or error.context_mark, file)
    problem = error.problem or ""
    if isinstance(error, _NotUsableError):
        return place, "", problem
    whole = f"{error.context or ''} {problem}"
    for theirs, ours in _SYNTAX:
        if theirs in whole:
            return place, "", f"is not YAML here: {ours}"
    return place, "", f"is not YAML here: {whole.strip()}"
