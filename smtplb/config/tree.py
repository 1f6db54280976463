"""The tree of a configuration file: plain values, each with its place.

Owns the nodes and how a path into them is found and written. Does not own YAML (load.py) or meaning
(schema.py).
Invariant: every node has a place, also after the trees of several files were joined.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from smtplb.config.errors import Place

MAX_LABEL_CHARS = 80  # of each part of a path in an error

Path: TypeAlias = tuple[str | int, ...]  # keys and list indices from the top


class Broken(Enum):
    """Stands where a value was that has been reported already; nobody reports it again."""

    BROKEN = "broken"


BROKEN: Final = Broken.BROKEN


class Entry(NamedTuple):
    """A key of a mapping and its value."""

    key_place: Place
    node: Node


class Node(NamedTuple):
    """A value. None is no content: YAML's null has been reported as a mistake (load.py)."""

    place: Place
    content: Content


Content: TypeAlias = "str | int | bool | Broken | list[Node] | dict[str, Entry]"


def plain(node: Node) -> object:
    """The value without its places. Broken values stay in it as `BROKEN`."""
    content = node.content
    if isinstance(content, dict):
        return {key: plain(entry.node) for key, entry in content.items()}
    if isinstance(content, list):
        return [plain(item) for item in content]
    return content


def find(root: Node, path: Path) -> Node | None:
    """The node at `path`; None when nothing was written there."""
    node = root
    for part in path:
        step = _step(node, part)
        if step is None:
            return None
        node = step.node
    return node


def place_of(root: Node, path: Path, *, of_key: bool = False) -> Place:
    """The place of the value at `path` (or of its key); of the innermost thing around it when nothing is
    there.
    """
    entry = Entry(root.place, root)
    for part in path:
        step = _step(entry.node, part)
        if step is None:
            return entry.node.place
        entry = step
    return entry.key_place if of_key else entry.node.place


def key_text(root: Node, path: Path) -> str:
    """`path` as errors show it: list items by name if they have one, such as `listeners.mx.limits.errors`."""
    text = ""
    node: Node | None = root
    for part in path:
        step = _step(node, part) if node is not None else None
        stands_alone = isinstance(part, int) and node is not None and not isinstance(node.content, list)
        node = step.node if step is not None else None
        if not stands_alone:
            label = _label(node, part)
            text += label if not text or label == f"[{part}]" else f".{label}"
    return text


def _step(node: Node, part: str | int) -> Entry | None:
    if isinstance(part, str):
        return node.content.get(part) if isinstance(node.content, dict) else None
    if not isinstance(node.content, list):
        return Entry(node.place, node) if part == 0 else None  # one value may stand for a list of one
    if not 0 <= part < len(node.content):
        return None
    return Entry(node.content[part].place, node.content[part])


def _label(node: Node | None, part: str | int) -> str:
    if isinstance(part, str):
        return part[:MAX_LABEL_CHARS]
    if node is not None and isinstance(node.content, dict):
        for key in ("name", "address", "pool"):
            entry = node.content.get(key)
            if entry is not None and isinstance(entry.node.content, str):
                return entry.node.content[:MAX_LABEL_CHARS]
    return f"[{part}]"
