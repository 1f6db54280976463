"""Which part of smtplb may import which: the house of docs/architecture.md, enforced on the syntax trees of all files.

Every import counts, also those inside functions and under TYPE_CHECKING: a type that is needed to the left is a
`typing.Protocol` of the file to the right.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "smtplb"

NAMED = {"asyncio", "socket", "ssl", "time", "random", "logging", "os"}
SIDE_DOORS = {  # would bring the same in
    *(
        "concurrent",
        "http",
        "multiprocessing",
        "pathlib",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
    ),
    *("smtplib", "socketserver", "subprocess", "tempfile", "threading", "urllib", "uuid"),
}
IO_CLOCK_AND_CHANCE = NAMED | SIDE_DOORS


@dataclass(frozen=True, slots=True)
class Rule:
    """What the modules at or below a name may import besides the standard library and themselves."""

    ours: tuple[str, ...] = ()  # modules of smtplb; each name covers what is below it
    libraries: tuple[str, ...] = ()
    is_pure: bool = False  # no I/O, clock or chance: now and rng are arguments


PLAIN = (
    "smtplb.settings",
    "smtplb.messages",
    "smtplb.observe.events",
    "smtplb.observe.ended",
    "smtplb.observe.histogram",
    "smtplb.observe.outcomes",
)  # types only, for everybody above smtp

RULES = {  # the longest matching name decides
    "smtplb": Rule(is_pure=True),  # __init__.py
    "smtplb.__main__": Rule(("smtplb.cli",)),
    "smtplb.settings": Rule(is_pure=True),
    "smtplb.messages": Rule(
        ("smtplb.settings", "smtplb.observe.events", "smtplb.observe.histogram"), is_pure=True
    ),
    "smtplb.compiled": Rule(libraries=("mypy_extensions",), is_pure=True),
    "smtplb.framing": Rule(is_pure=True),
    "smtplb.smtp": Rule(is_pure=True),
    "smtplb.policy": Rule(("smtplb.smtp", "smtplb.settings", "smtplb.messages"), is_pure=True),
    "smtplb.config": Rule(("smtplb.settings", "smtplb.smtp", "smtplb.policy"), ("pydantic",)),
    "smtplb.config.load": Rule(("smtplb.settings",), ("pydantic", "yaml")),
    "smtplb.dataplane": Rule(("smtplb.smtp", "smtplb.policy", "smtplb.compiled", *PLAIN), ("uvloop",)),
    "smtplb.controlplane": Rule(
        (
            "smtplb.smtp",
            "smtplb.policy",
            "smtplb.config",
            *PLAIN,
            "smtplb.dataplane.connection",  # to probe
            "smtplb.dataplane.deadlines",
            "smtplb.dataplane.outbox",
        ),
    ),
    "smtplb.observe": Rule(PLAIN, ("orjson",)),
    "smtplb.observe.encode": Rule((*PLAIN, "smtplb.smtp.scan"), is_pure=True),
    "smtplb.observe.events": Rule(
        ("smtplb.settings", "smtplb.observe.ended", "smtplb.observe.outcomes"), is_pure=True
    ),
    "smtplb.observe.ended": Rule(("smtplb.observe.outcomes",), is_pure=True),
    "smtplb.observe.histogram": Rule((), is_pure=True),
    "smtplb.observe.outcomes": Rule((), is_pure=True),
    "smtplb.observe.metrics": Rule(
        (*PLAIN, "smtplb.policy", "smtplb.controlplane.views"), ("prometheus_client",)
    ),
    "smtplb.admin": Rule(("smtplb.controlplane", "smtplb.observe", *PLAIN), ("aiohttp", "orjson")),
    "smtplb.cli": Rule(("smtplb",), ("click", "rich", "uvloop", "orjson", "aiosmtpd")),
}

# What single modules may besides: only these start workers.
ALSO = {
    "smtplb.controlplane.supervisor": ("smtplb.dataplane.worker", "smtplb.dataplane.certificates"),
    "smtplb.controlplane.link": ("smtplb.dataplane.worker",),
    "smtplb.controlplane.process_link": ("smtplb.dataplane.scoreboard", "smtplb.framing"),
}

# The way of a message, in reading order. Imports lead to the right. A name covers its parts: `session` also
# `session_commands`. worker.py puts the chain together and stands left of it; all other files of dataplane are leaves:
# everybody there may import them, they import leaves only.
DATAPLANE = "smtplb.dataplane"
CHAIN = (
    "worker",
    "listener",
    "session",
    "dialogue",
    "authentication",
    "transaction",
    "course",
    "attempt",
    "reporting",
    "context",
    "relay",
    "search",
    "router",
    "pool",
    "backend",
    "connection",
    "binding",
)
LEAF = len(CHAIN)


@dataclass(frozen=True, slots=True)
class Import:
    module: str
    target: str
    line: int


def modules_below(package: Path) -> dict[str, Path]:
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                depth = node.level - (path.name == "__init__.py")
                base = ".".join([*parents[: len(parents) - depth], *filter(None, [node.module])])
            # `from package import name`: the module package.name where there is one
            targets = [name if (name := f"{base}.{alias.name}") in modules else base for alias in node.names]
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            targets = (
                [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
            )
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(module, target, node.lineno)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_below(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def layer_of(module: str) -> str:
    """The name in RULES that decides for this module; empty for a folder or file nobody has thought of."""
    name = module
    while name and name not in RULES:
        name = name.rpartition(".")[0]
    return "" if name == "smtplb" != module else name  # the row of the package speaks of its __init__ alone


def place_of(module: str) -> int | None:
    """Position in the chain, LEAF for other files of dataplane, None outside of it."""
    if not module.startswith(DATAPLANE + "."):
        return None
    name = module.removeprefix(DATAPLANE + ".").split(".")[0]
    for place, part in enumerate(CHAIN):
        if name == part or name.startswith(part + "_"):
            return place
    return LEAF


def complaint(found: Import) -> str | None:
    """Why this import may not be, None if it may."""
    layer = layer_of(found.module)
    if not layer:
        return "stands in no layer: give its folder a row in RULES"
    rule = RULES[layer]
    top = found.target.split(".")[0]
    if top == "smtplb":
        return _complaint_about_ours(found, layer, rule)
    if top in sys.stdlib_module_names:
        if rule.is_pure and top in IO_CLOCK_AND_CHANCE:
            return f"{layer} is pure: no I/O, clock or chance"
        return None
    return None if top in rule.libraries else f"{layer} may not use this library"


def _complaint_about_ours(found: Import, layer: str, rule: Rule) -> str | None:
    place, target_place = place_of(found.module), place_of(found.target)
    if place is not None and target_place is not None:
        if target_place >= place:
            return None
        return "points left in the chain of dataplane" if place < LEAF else "a leaf imports leaves only"
    folder = ".".join(found.module.split(".")[:2])
    own = layer if layer in PLAIN else folder  # a plain module does not even know its neighbours
    if found.target == "smtplb" or is_below(found.target, (own,)):
        return None
    if is_below(found.target, rule.ours) or is_below(found.target, ALSO.get(found.module, ())):
        return None
    return f"{layer} may not import this part"


def violations(package: Path) -> list[str]:
    modules = modules_below(package)
    return [
        f"{modules[found.module].relative_to(package.parent)}:{found.line}: imports {found.target}: {reason}"
        for module, path in modules.items()
        for found in imports_of(module, path, modules)
        if (reason := complaint(found))
    ]


# -- the laws


def test_every_import_follows_the_rules() -> None:
    assert violations(PACKAGE) == []


def test_every_rule_speaks_of_something_that_exists() -> None:
    modules = modules_below(PACKAGE)
    assert not [name for name in RULES if name not in modules and name != "smtplb.__main__"]
    assert not [part for part in CHAIN if f"{DATAPLANE}.{part}" not in modules]


def test_a_worker_loads_none_of_the_large_libraries() -> None:
    """It is small and ready at once because of that: import time and memory of these are several times its own."""
    large = ["pydantic", "aiohttp", "rich", "prometheus_client", "click", "yaml", "aiosmtpd"]
    code = f"import smtplb.dataplane.worker, sys; print(*[name for name in {large} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


# -- the checker itself, on small trees

FORBIDDEN = {
    "the grammar reads a clock": ("smtp/body.py", "import time"),
    "the grammar knows a socket by another name": ("smtp/body.py", "from socket import socket as s"),
    "the grammar asks a policy": ("smtp/body.py", "from smtplb.policy import retry"),
    "a policy awaits": ("policy/retry.py", "import asyncio"),
    "a policy knows the configuration": ("policy/retry.py", "from smtplb.config.schema import Pool"),
    "settings know anything": ("settings.py", "from smtplb.smtp.body import x"),
    "messages know a policy": ("messages.py", "import smtplb.policy.retry"),
    "an import inside a function": ("dataplane/session.py", "def f():\n    import pydantic"),
    "an import for types": (
        "dataplane/pool.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from smtplb.dataplane.session import S",
    ),
    "a relative import to the left": ("dataplane/pool.py", "from .session import S"),
    "a relative import of a module to the left": ("dataplane/pool.py", "from . import session"),
    "a relative import out of the folder": ("dataplane/pool.py", "from ..config import schema"),
    "an import by string": ("dataplane/pool.py", "import importlib\nimportlib.import_module('aiohttp')"),
    "a part of the session asked by the transaction": (
        "dataplane/transaction.py",
        "from smtplb.dataplane.session_commands import x",
    ),
    "the chain starts its worker": ("dataplane/session.py", "from smtplb.dataplane.worker import run"),
    "a leaf that knows the chain": ("dataplane/tls.py", "from smtplb.dataplane.connection import C"),
    "the data path counts by itself": ("dataplane/pool.py", "from smtplb.observe.metrics import x"),
    "the data path loads all of observe": ("dataplane/pool.py", "import smtplb.observe"),
    "the data path knows the control plane": ("dataplane/pool.py", "from smtplb.controlplane import prober"),
    "the prober reaches into the pool": ("controlplane/prober.py", "from smtplb.dataplane.pool import Pool"),
    "the prober starts a worker": ("controlplane/prober.py", "from smtplb.dataplane.worker import run"),
    "the control plane serves HTTP": ("controlplane/prober.py", "import aiohttp.web"),
    "events know messages": ("observe/events.py", "from smtplb.messages import x"),
    "events know their log lines": ("observe/events.py", "from smtplb.observe.logs import x"),
    "log lines use the metrics library": ("observe/logs.py", "import prometheus_client"),
    "the admin interface reads YAML": ("admin/api.py", "import yaml"),
    "the admin interface reaches past the control plane": ("admin/api.py", "import smtplb.dataplane.pool"),
    "YAML outside of load": ("config/schema.py", "import yaml"),
    "a command serves HTTP by itself": ("cli/run.py", "import aiohttp"),
    "a library nobody chose": ("cli/run.py", "import requests"),
    "a folder nobody planned": ("plugins/spam.py", "import json"),
    "a file nobody planned": ("helpers.py", "import json"),
}

ALLOWED = {
    "stdlib without I/O in the grammar": (
        "smtp/body.py",
        "import io, re, codecs\nfrom smtplb.smtp import replies",
    ),
    "a policy and its types": (
        "policy/retry.py",
        "from smtplb.settings import X\nfrom smtplb.smtp import body",
    ),
    "to the right": ("dataplane/session.py", "from smtplb.dataplane import pool\nfrom .connection import C"),
    "leaves": ("dataplane/pool.py", "from smtplb.dataplane.tls import x\nimport time, ssl, uvloop"),
    "a leaf and a leaf": ("dataplane/tls.py", "from . import deadlines"),
    "parts of one place": ("dataplane/session.py", "from smtplb.dataplane.session_commands import x"),
    "a worker puts it together": ("dataplane/worker.py", "from smtplb.dataplane import listener, pool, tls"),
    "a probe": ("controlplane/prober.py", "from smtplb.dataplane.connection import C"),
    "the supervisor starts workers": (
        "controlplane/supervisor.py",
        "from smtplb.dataplane.worker import run",
    ),
    "commands": (
        "cli/run.py",
        "import click, rich.table\nfrom smtplb.dataplane import worker\nimport smtplb",
    ),
    "HTTP": ("admin/api.py", "from aiohttp import web\nfrom smtplb.controlplane.views import V"),
    "schema and YAML": ("config/load.py", "import yaml, pydantic\nfrom smtplb.config.schema import S"),
}


def tree(root: Path, files: dict[str, str]) -> Path:
    """A package smtplb of empty modules, with what is imported in it, and these files."""
    package = root / "smtplb"
    names = "smtp/body smtp/replies policy/retry config/schema config/load settings messages observe/events"
    names += " observe/logs observe/metrics dataplane/tls dataplane/deadlines dataplane/session_commands"
    names += " controlplane/prober controlplane/supervisor controlplane/views admin/api cli/run "
    names += " ".join(f"dataplane/{part}" for part in CHAIN)
    for name, text in {**{f"{name}.py": "" for name in names.split()}, **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return package


@pytest.mark.parametrize(("file", "text"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    found = violations(tree(tmp_path, {file: text}))
    assert len(found) == 1
    assert found[0].startswith(f"smtplb/{file}:{len(text.splitlines())}: imports ")


@pytest.mark.parametrize(("file", "text"), ALLOWED.values(), ids=ALLOWED.keys())
def test_an_allowed_import_is_left_alone(tmp_path: Path, file: str, text: str) -> None:
    assert violations(tree(tmp_path, {file: text})) == []
