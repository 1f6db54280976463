"""README and docs/ against the tree: modules, links, commands, tests and YAML that they name exist and work.

docs/configuration.md has tests of its own (tests/config/test_docs.py), docs/logs.md and docs/metrics.md too (tests/observe).
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import click
import pytest
import trustme
import yaml

from smtplb.cli.main import COMMANDS, LazyGroup, cli
from smtplb.config.load import load_text
from smtplb.config.schema import Document
from smtplb.config.section import Section

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "smtplb"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
OWN_YAML_TESTS = {ROOT / "docs" / "configuration.md"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
_INLINE_CODE = re.compile(r"`([^`\n]+)`")

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text: str) -> str:
    return _FENCE.sub("", text)


def sections(text: str, level: str) -> dict[str, str]:
    """Heading -> what stands below it, up to the next heading of that or a higher level."""
    parts = re.split(rf"^#{{1,{len(level)}}} ", text, flags=re.MULTILINE)
    return {part.partition("\n")[0].strip(): part.partition("\n")[2] for part in parts[1:]}


# -- modules


def modules() -> dict[str, set[str]]:
    """Folder -> file names of its modules."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(f"{path.parent.relative_to(ROOT)}/", set()).add(path.name)
    return found


def described() -> dict[str, set[str]]:
    """The same, as docs/architecture.md names them: each folder has a heading, each file stands in backquotes."""
    headings = sections(ARCHITECTURE.read_text(), "###")
    return {
        heading.strip("`"): set(re.findall(r"`(\w+\.py)`", text))
        for heading, text in headings.items()
        if heading.startswith("`smtplb/")
    }


def test_every_module_is_described_in_the_architecture_and_no_other() -> None:
    assert described() == modules()


def test_every_section_of_the_design_that_code_cites_is_in_the_architecture() -> None:
    cited = set()
    for folder in (PACKAGE, ROOT / "tests"):
        for path in folder.rglob("*.py"):
            if path != Path(__file__):
                cited |= set(re.findall(r"\bdesign (\d+(?:\.\d+)?)", path.read_text(encoding="utf-8")))
    text = ARCHITECTURE.read_text()
    known = set(re.findall(r"^## (\d+)\. ", text, re.MULTILINE)) | set(
        re.findall(r"^\*\*(\d+\.\d+) ", text, re.MULTILINE)
    )
    assert cited
    assert cited <= known


def test_the_chain_in_the_architecture_is_the_one_that_is_enforced() -> None:
    from tests.test_architecture import CHAIN

    written = next(
        body for _, body in _FENCE.findall(ARCHITECTURE.read_text()) if body.startswith("worker >")
    )
    assert tuple(written.replace(">", " ").split()) == CHAIN


# -- links and names of files


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@page
def test_every_file_of_ours_that_is_named_exists(page: Path) -> None:
    """Paths in backquotes that begin with a folder of this repository."""
    for code in _INLINE_CODE.findall(prose(page.read_text())):
        found = re.fullmatch(r"((?:smtplb|tests|docs|examples|scripts)/[\w./*-]*)(?:::(\w+))?", code)
        if found is None:
            continue
        paths = list(ROOT.glob(found[1].rstrip("/")))
        assert paths, code
        if found[2]:
            assert any(found[2] in test_names(path) for path in paths), code


def test_names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


test_names.__test__ = False  # type: ignore[attr-defined]


def test_every_row_of_the_extensions_names_a_test() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "extensions.md").read_text().splitlines()
        if line.startswith("| ")
        and not line.startswith(("| extension |", "| identity |", "| verb or keyword |"))
    ]
    assert rows
    for row in rows:
        # By name: that a file has tests says nothing about the row. Names that do not exist fail above.
        assert re.search(r"`tests/[\w./-]+\.py::test_\w+` *\|$|`tests/[\w./-]+\.py::test_\w+` ", row), row


# -- commands


def command_lines(text: str) -> Iterator[list[str]]:
    """What follows `smtplb` in inline code and in lines of shell blocks."""
    lines = list(_INLINE_CODE.findall(prose(text)))
    for language, body in _FENCE.findall(text):
        if language in ("", "sh", "console"):
            lines += [line.removeprefix("$ ") for line in body.replace("\\\n", " ").splitlines()]
    for line in lines:
        found = re.match(r"(?:sudo |\w+=\S+ |\S*/bin/)*smtplb( .*|$)", line)
        if found is not None:
            yield shlex.split(found[1].partition(" #")[0].partition(" && ")[0].partition("|")[0])


@page
def test_every_documented_command_and_option_exists(page: Path) -> None:
    assert isinstance(cli, LazyGroup)
    context = click.Context(cli)
    for words in command_lines(page.read_text()):
        if not words or words[0].startswith(("-", "0.", "[")) or not re.fullmatch(r"[a-z]+", words[0]):
            continue  # `smtplb --version`, or a line of output
        command = cli.get_command(context, words[0])
        assert command is not None, words
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        written = {
            word.strip("[]").partition("=")[0] for word in words[1:] if word.strip("[").startswith("--")
        }
        assert written <= known | {"--help"}, words


def test_every_command_is_documented() -> None:
    documented = {words[0] for path in PAGES for words in command_lines(path.read_text()) if words}
    assert set(COMMANDS) <= documented


@page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)`", page.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# -- YAML


def yaml_blocks() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        if path in OWN_YAML_TESTS:
            continue
        blocks = [body for language, body in _FENCE.findall(path.read_text()) if language == "yaml"]
        for number, body in enumerate(blocks, 1):
            yield f"{path.relative_to(ROOT)}-{number}", body


def completed(block: str) -> str:
    """A piece of a configuration with what is missing around it."""
    if re.match(r"(identity|tls|received|max_connections|connections|check|mta|source|policy|queue):", block):
        block = f'pools:\n  relays:\n    backends: ["192.0.2.1:25"]\n{indent(block, "    ")}'
    keys = set(yaml.safe_load(block))
    if "hostname" not in keys:
        block += "hostname: lb1.example.net\n"
    if "listeners" not in keys:
        block += 'listeners: [{bind: "127.0.0.1:2525", to: relays}]\n'
    if "pools" not in keys:
        block += 'pools: {relays: {backends: ["192.0.2.1:25"]}}\n'
    return block


@pytest.fixture
def with_files(tmp_path: Path) -> Path:
    """A folder that has the files which examples name."""
    authority = trustme.CA()
    leaf = authority.issue_cert("mx.example.org")
    for name in ("mx.example.org", "smtp.example.org"):
        leaf.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.key").chmod(0o600)
        leaf.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    authority.cert_pem.write_to_path(tmp_path / "internal-ca.pem")
    (tmp_path / "admin.token").write_text("a-token-for-tests-only")
    (tmp_path / "admin.token").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("block", [pytest.param(body, id=name) for name, body in yaml_blocks()])
def test_every_piece_of_yaml_validates(block: str, with_files: Path) -> None:
    load_text(completed(block), "page.yaml", with_files)


def test_what_the_readme_calls_missing_is_refused_as_later() -> None:
    """Keys in backquotes below "not in this version": each is still one that the schema knows as later."""
    text = sections((ROOT / "README.md").read_text(), "##")["What this version does not do"]
    named = set(re.findall(r"`([a-z_]+):`", text))
    assert named
    assert named <= later_keys(Document)


def later_keys(section: type[Section]) -> set[str]:
    found: set[str] = set()
    waiting: list[type[Section]] = [Section]
    while waiting:
        for model in waiting.pop().__subclasses__():
            found |= set(model.later)
            waiting.append(model)
    return found
