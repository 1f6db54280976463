"""docs/configuration.md and examples/ against the schema: neither can go stale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from smtplb.config import scalars, schema
from smtplb.config.conditions import When
from smtplb.config.load import load, load_text
from smtplb.config.presets import CONNECTIONS, MAX_CONNECTIONS
from smtplb.config.section import Section, keys
from smtplb.config.section import fields as section_fields
from smtplb.settings import (
    BackendSettings,
    BackTlsSettings,
    BudgetSettings,
    CertificateSettings,
    CheckSettings,
    ConnectionSettings,
    EjectSettings,
    FrontTlsSettings,
    GroupMember,
    GroupMode,
    GroupSettings,
    IdentityMode,
    ListenerLimits,
    ListenerSettings,
    LogSettings,
    PoolSettings,
    QueueSettings,
    ReplaySettings,
    Settings,
    ShutdownSettings,
    TimeoutSettings,
    TrafficSettings,
)
from tests.config.support import (
    backend_of,
    listener_of,
    pool_of,
    write_files_named_in,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

# Heading -> section of the schema, and the settings that hold its defaults.
SECTIONS: dict[str, tuple[type[Section], type[Any] | None]] = {
    "Top level": (schema.Document, None),
    "`shutdown`": (schema.Shutdown, ShutdownSettings),
    "`replay`": (schema.Replay, ReplaySettings),
    "`in_doubt`": (schema.InDoubt, None),
    "`defaults`": (schema.Defaults, None),
    "`listeners[]`": (schema.Listener, ListenerSettings),
    "`listeners[].accept[]`": (When, None),
    "`listeners[].clients`": (schema.Clients, None),
    "`listeners[].tls`": (schema.FrontTls, FrontTlsSettings),
    "`listeners[].tls.certificates[]`": (schema.Certificate, CertificateSettings),
    "`listeners[].limits`": (schema.Limits, ListenerLimits),
    "`routes.NAME[]`": (schema.RouteRule, None),
    "`groups.NAME`": (schema.Group, GroupSettings),
    "`groups.NAME.pools[]`": (schema.Member, GroupMember),
    "`groups.NAME.failback`": (schema.Failback, None),
    "`pools.NAME`": (schema.Pool, PoolSettings),
    "`pools.NAME.backends[]`": (schema.Backend, BackendSettings),
    "`pools.NAME.tls`": (schema.BackTls, BackTlsSettings),
    "`pools.NAME.check`": (schema.Check, CheckSettings),
    "`pools.NAME.connections`": (schema.Connections, ConnectionSettings),
    "`pools.NAME.queue`": (schema.Queue, QueueSettings),
    "`pools.NAME.eject`": (schema.Eject, EjectSettings),
    "`pools.NAME.timeouts`": (schema.Timeouts, TimeoutSettings),
    "`pools.NAME.budget`": (schema.Budget, BudgetSettings),
    "`admin`": (schema.Admin, None),
    "`probes`": (schema.Probes, None),
    "`log`": (schema.Log, LogSettings),
}
# Keys whose default depends on other keys: test_defaults_that_follow_from_other_keys.
COMPUTED = {("`listeners[]`", "other_route"), ("`pools.NAME`", "balance_per"), ("`pools.NAME.tls`", "mode")}


def tables() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """(heading, key -> cells) of each table of keys."""
    for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        _, found, table = body.partition("| key | value | default | effect |\n|---|---|---|---|\n")
        if not found:
            continue
        rows = [line.strip("|").split(" | ") for line in table.split("\n\n")[0].splitlines()]
        yield heading, {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}


def default_text(field: Field[Any]) -> str | None:
    """A default of settings as the page writes it; None where it is no single value."""
    value = field.default
    if value is MISSING or value is None or value in ("", ()):
        return None
    if isinstance(value, StrEnum | str):
        return f"`{value}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.name.endswith("_s"):
        return f"`{scalars.format_duration(value)}`"
    if field.name.endswith("_bytes"):
        return f"`{scalars.format_size(value)}`"
    if field.name.endswith("_ratio"):
        return f"`{value:.0%}`"
    return f"`{value}`"


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_of_the_schema_and_no_other_is_on_the_page(heading: str) -> None:
    assert set(dict(tables())[heading]) == set(keys(SECTIONS[heading][0]))


def test_every_table_of_the_page_is_checked() -> None:
    assert {heading for heading, _ in tables()} == set(SECTIONS)


def test_every_section_of_the_schema_is_on_the_page() -> None:
    defined = {
        value
        for value in vars(schema).values()
        if isinstance(value, type) and issubclass(value, Section) and value is not Section
    }
    documented = {section for section, _ in SECTIONS.values()}
    assert defined - documented == {schema.PerBackend, schema.PoolDefaults}  # part of Pool and Backend
    assert set(keys(schema.PoolDefaults)) == set(keys(schema.Pool)) - {"backends"}


@pytest.mark.parametrize("heading", [name for name, (_, settings) in SECTIONS.items() if settings])
def test_every_default_on_the_page_is_that_of_settings(heading: str) -> None:
    section, settings = SECTIONS[heading]
    assert settings is not None
    written = dict(tables())[heading]
    defaults = {field.name: field for field in fields(settings)}
    if section is schema.Pool:
        defaults |= {field.name: field for field in fields(BackendSettings)}
    for key, attribute, _ in section_fields(section):
        if (heading, key) in COMPUTED or (section is schema.Backend and key in keys(schema.PerBackend)):
            continue
        if key in section.required:
            assert written[key][1] == "required"
        elif attribute in defaults and (text := default_text(defaults[attribute])) is not None:
            assert written[key][1] == text, key


def test_defaults_that_have_another_name_in_settings() -> None:
    group = GroupSettings(name="g", mode=GroupMode.ACTIVE_PASSIVE, members=())
    written = dict(tables())["`groups.NAME.failback`"]
    assert written["mode"][1] == f"`{group.failback_mode}`"
    assert written["delay"][1] == f"`{scalars.format_duration(group.failback_delay_s)}`"
    traffic = TrafficSettings(hostname="", listeners=(), pools=())
    written = dict(tables())["`in_doubt`"]
    assert written["remember"][1] == f"`{scalars.format_duration(traffic.in_doubt_remember_s)}`"
    assert dict(tables())["`replay`"]["attempts"][1] == f"`{traffic.attempts}`"
    assert dict(tables())["Top level"]["workers"][1] == f"`{Settings(traffic).workers}`"


def test_defaults_that_follow_from_other_keys() -> None:
    tables_by_heading = dict(tables())
    written = tables_by_heading["`listeners[]`"]["other_route"][1]
    assert written == "`follow` with `auth: relay` or a bind to port 587 or 465, else `defer`"
    for port, expected in ((2525, "defer"), (587, "follow"), (465, "follow")):
        assert listener_of(f'bind: "127.0.0.1:{port}", to: p').other_route == expected
    relay = 'bind: "127.0.0.1:2525", to: p, auth: relay, auth_without_tls: true'
    assert listener_of(relay).other_route == "follow"
    written = tables_by_heading["`pools.NAME`"]["balance_per"][1]
    assert written == "`session` if a backend has `identity` `xclient` or `proxy-*`, else `transaction`"
    for identity in IdentityMode:
        expected = "session" if identity == "xclient" or identity.startswith("proxy-") else "transaction"
        assert pool_of(f'identity: {identity}, backends: ["b.test:25"]').balance_per == expected
    written = tables_by_heading["`pools.NAME`"]["max_connections"][1]
    assert written == "`unlimited`, or the preset of `mta`"
    assert backend_of('"b.test:25"').max_connections is None
    written = tables_by_heading["`pools.NAME.tls`"]["mode"][1]
    assert written == "`off` towards loopback addresses and `localhost`, else `opportunistic`"
    for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost"):
        assert backend_of(f'"{host}:25"').tls.mode == "off"
    for host in ("10.0.0.1", "[2001:db8::1]", "mx.test"):
        assert backend_of(f'"{host}:25"').tls.mode == "opportunistic"


def test_every_preset_is_on_the_page() -> None:
    names = {attribute: key for key, attribute, _ in section_fields(schema.Connections)}
    for mta, values in CONNECTIONS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{mta}` |")]
        for attribute, value in values.items():
            text = scalars.format_duration(value) if attribute.endswith("_s") else str(value)
            assert f"`{names[attribute]}: {text}`" in row
        assert row.split(" | ")[1] == f"`{MAX_CONNECTIONS[mta] or 'unlimited'}`"


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_every_piece_of_yaml_on_the_page_is_lawful(block: str, tmp_path: Path) -> None:
    (tmp_path / "partners.txt").write_text("192.0.2.0/24\n")
    write_files_named_in(block, tmp_path)
    text = block
    if block.startswith("accept:"):
        text = f'networks: {{inside: 10.0.0.0/8}}\nlisteners:\n  - bind: "127.0.0.1:25"\n    to: relays\n{indent(block, "    ")}'
    if "listeners:" not in text:
        text += 'listeners: [{bind: "127.0.0.1:2525", to: relays}]\n'
    if "pools:" not in text:
        text += 'pools: {relays: {backends: ["b.test:25"]}}\n'
    load_text(text, "page.yaml", tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_lawful(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    write_files_named_in(copy.read_text(), tmp_path)
    assert load(copy).traffic.pools


def test_there_are_examples() -> None:
    assert EXAMPLES
