"""From a tree to sections: the one place where mistakes are collected and put into words.

Owns the list of mistakes, the reading of a section by its model, and the words for what pydantic finds. Does
not own the rules between sections (pools.py, groups.py, listeners.py, document.py).
Invariant: reading never stops at a mistake. A wrong key is reported, remembered as broken, and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from smtplb.config.context import Context
from smtplb.config.errors import ConfigError, Place, quote
from smtplb.config.files import Files
from smtplb.config.section import Section, keys, section_at
from smtplb.config.tree import BROKEN, Broken, Node, Path, find, key_text, place_of, plain
from smtplb.settings import Network

S = TypeVar("S", bound=Section)

# Types of pydantic's errors -> words. A "value_error" carries the words of the reader that raised it.
_WORDS = {
    "dict_type": "must be a mapping of keys",
    "list_type": "must be a list",
    "model_type": "must be a mapping of keys",
    "too_short": "is empty: write a value, or leave the key out",
}


class Checker:
    def __init__(self, root: Node, files: Files) -> None:
        self.root = root
        self.files = files
        self.errors: list[ConfigError] = []
        self._broken: set[Path] = set()

    # Looking at the tree.

    def node(self, path: Path) -> Node | None:
        return find(self.root, path)

    def wrote(self, path: Path) -> bool:
        return self.node(path) is not None

    def is_mapping(self, path: Path) -> bool:
        node = self.node(path)
        return node is not None and isinstance(node.content, dict)

    def is_sound(self, path: Path) -> bool:
        """Nothing was wrong at `path`, around it or in it. What depends on a broken value is not judged."""
        return not any(
            path[: len(broken)] == broken or broken[: len(path)] == path for broken in self._broken
        )

    def names(self, path: Path) -> list[str]:
        """Keys of a mapping of named things; none if nothing was written."""
        node = self.node(path)
        if node is None:
            return []
        if isinstance(node.content, Broken):
            self._broken.add(path)
            return []
        if not isinstance(node.content, dict):
            self.reject(path, "must be a mapping of names")
            return []
        return list(node.content)

    def items(self, path: Path) -> list[Path]:
        """Paths of a list's items; none if nothing was written."""
        node = self.node(path)
        if node is None:
            return []
        if isinstance(node.content, Broken):
            self._broken.add(path)
            return []
        if not isinstance(node.content, list):
            self.reject(path, "must be a list")
            return []
        return [(*path, index) for index in range(len(node.content))]

    def text_at(self, path: Path) -> str | None:
        """A text as it was written, before any rule; None if there is none."""
        node = self.node(path)
        return node.content if node is not None and isinstance(node.content, str) else None

    def place(self, path: Path, *, of_key: bool = False) -> Place:
        return place_of(self.root, path, of_key=of_key)

    def context(self, path: Path, networks: Mapping[str, tuple[Network, ...]]) -> Context:
        directory = self.files.directory(self.place(path).file)
        return Context(self.files, directory, networks, self.errors.append)

    # Mistakes.

    def fault(self, path: Path, message: str, *, of_key: bool = False) -> None:
        """A mistake at the value (or key) at `path`; if that was not written, at what it should stand in."""
        self.errors.append(
            ConfigError.at(self.place(path, of_key=of_key), key_text(self.root, path), message)
        )

    def reject(self, path: Path, message: str) -> Broken:
        """As fault(); nothing that depends on the value is judged any more."""
        self.fault(path, message)
        self._broken.add(path)
        return BROKEN

    # Sections.

    def read(
        self,
        model: type[S],
        path: Path,
        networks: Mapping[str, tuple[Network, ...]] | None = None,
        apart: Collection[str] = (),
    ) -> S:
        """The section at `path` without its mistakes; all defaults if it was not written.

        Keys in `apart` are known but read by the caller.
        """
        content = self._content(model, path)
        if content is None:
            content = {}
        else:
            self._ask_for_required(model, path, content)
        content = {key: value for key, value in content.items() if key not in apart}
        context = self.context(path, networks or {})
        try:
            return model.model_validate(content, context=context)
        except ValidationError as error:
            for mistake in error.errors(include_url=False):
                self._report(model, path, mistake["loc"], mistake)
            for key in {mistake["loc"][0] for mistake in error.errors(include_url=False)}:
                content.pop(str(key), None)
        return model.model_validate(content, context=context)

    def _content(self, model: type[Section], path: Path) -> dict[str, Any] | None:
        """What stands at `path`, without places; None if there is no mapping."""
        node = self.node(path)
        if node is None:
            return None
        if isinstance(node.content, dict):
            return {key: plain(entry.node) for key, entry in node.content.items()}
        if isinstance(node.content, str) and model.shorthand:
            return {model.shorthand: node.content}
        if node.content is not BROKEN:
            self.fault(path, "must be a mapping of keys (key: value)")
        self._broken.add(path)
        return None

    def _ask_for_required(self, model: type[Section], path: Path, written: Iterable[str]) -> None:
        for key, hint in model.required.items():
            if key not in written:
                self._broken.add((*path, key))
                self.fault((*path, key), f"missing: write {hint}")

    def _report(self, model: type[Section], path: Path, loc: tuple[str | int, ...], mistake: Any) -> None:
        where = (*path, *loc)
        self._broken.add(where)
        if mistake["input"] is BROKEN:
            return  # was reported when the file was read
        if mistake["type"] == "extra_forbidden":
            self.fault(where, _unknown(str(loc[-1]), section_at(model, loc[:-1])), of_key=True)
        elif mistake["type"] == "value_error":
            self.fault(where, str(mistake["ctx"]["error"]))
        else:
            self.fault(where, _WORDS.get(mistake["type"], mistake["msg"]))


def _unknown(key: str, model: type[Section]) -> str:
    if key in model.later:
        return "not supported in this version"
    known = keys(model)
    near = get_close_matches(key, [*known, *model.later], n=1)
    if near and near[0] in known:
        return f"unknown key: did you mean {quote(near[0])}?"
    if near:
        return f"unknown key: {quote(near[0])} is meant? It is not supported in this version"
    return f"unknown key: known here are {', '.join(known)}"
