"""Whatever bytes are given: Settings or ConfigErrors, in bounded time, in lines that can be printed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtplb.config.errors import ConfigErrors
from smtplb.config.load import load, load_text
from smtplb.config.schema import Document
from smtplb.config.section import Section, fields, section_of
from smtplb.settings import Settings
from tests.effort import examples

FULL = """\
version: 1
hostname: lb1.example.net
include: [nowhere.d/*.yaml]
workers: auto
replay: {memory: 256KiB, per_message: 50MiB, total: 1GiB, attempts: 3}
in_doubt: {remember: 10m}
x-check: &check {level: ehlo, interval: 10s, fast_interval: 2s, timeout: 8s, rise: 2, fall: 3}
networks: {inside: [10.0.0.0/8, "fd00::/8"], all: [inside, loopback]}
defaults: {pool: {mta: exim, timeouts: {connect: 5s}, source: 10.0.0.1, eject: {after: 5, for: 30s, max_for: 5m}}}
listeners:
  - name: mx
    bind: ["0.0.0.0:25", "[::]:25", "unix:mx.sock"]
    accept: [{recipient_domain: [example.org, .example.net]}, {client: [all], not: {sender: <>, size_over: 5MiB}}]
    limits: {sessions: unlimited, recipients: 1000, message_size: 50MiB, errors: 20, idle_timeout: 5m}
    clients: {allow: any, deny: [192.0.2.0/24]}
    proxy_protocol_from: 10.0.9.1
    xclient_from: [loopback]
    tls: {mode: off}
    other_route: follow
    greeting_delay: 6s
    to: inbound
  - {name: sub, bind: "unix:sub.sock", auth: relay, auth_without_tls: true, to: west}
routes:
  inbound:
    - {when: {recipient_domain: [.lab.example.org], tls: true, auth: false}, to: west}
    - {when: {client: [inside]}, refuse: "550 5.7.1 not here"}
    - {to: site}
groups:
  site: {mode: active-active, pools: [{pool: east, share: 60}, west], failover_below: 50%, failback: {mode: auto}}
pools:
  east:
    policy: weighted
    backends: [{name: mx1, address: "10.0.1.11:25", weight: 2}, "mx2.test:25", {address: "b.test:25", backup: true}]
    check: {<<: *check, rise: 3}
    connections: {idle: 32, idle_timeout: 60s, max_age: 4m, max_transactions: 1000}
    budget: {rcpt: "${NOT_SET:-270}s", data: 100s}
    tls: {mode: required, server_name: mx.test}
    identity: xclient
    received: never
    balance_per: session
    max_connections: 80
    queue: {length: 500, timeout: 10s}
    eject: {at_most: 50%}
    slow_start: 30s
  west: {backends: ["[2001:db8::1]:25"], source: "2001:db8::2", tls: {mode: implicit}, max_connections: unlimited}
admin: {bind: "127.0.0.1:8025", socket: admin.sock}
probes: {bind: "0.0.0.0:8026"}
log: {format: auto, level: info, destination: stdout, addresses: plain}
"""
PIECES = [
    *"[]{}:,-#&*!|>'\"%@`?\n\t $", "\r\n", "  ", "- ", ": ", "<<: ", "*check", "&a ", "!!int ", "~", "null", "true", "010",
    "${", "$$", "${A}", "---\n", "...\n", "\ufeff", "\x00", "\x85", "\u2028", "\U0001f4e7", "0", "-1", "9" * 30, "5s", "file:/",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_name_service() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getfqdn", lambda name="": name)
        yield


def survives(text: str) -> Settings | None:
    found: ConfigErrors | None = None
    try:
        return load_text(text, "fuzz.yaml", Path("/nonexistent"))
    except ConfigErrors as caught:
        found = caught
    assert found.errors
    assert str(found).count("\n") == len(found.errors) - 1
    assert all(str(error).isprintable() for error in found.errors)
    assert all(0 <= error.line <= text.count("\n") + text.count("\r") + 1 for error in found.errors)
    return None


def test_the_file_that_is_mutilated_below_is_lawful() -> None:
    assert survives(FULL) is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_any_bytes_in_a_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(data)
    with suppress(ConfigErrors):
        load(path)


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    survives(text)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text_made_of_yaml(text: str) -> None:
    survives(text)


@settings(max_examples=examples(300))
@given(st.data())
def test_a_lawful_file_with_pieces_cut_out_and_put_in(data: st.DataObject) -> None:
    text = FULL
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.sampled_from(["", *PIECES])) + text[start + cut :]
    survives(text)


WORDS = [
    "p", "g", "a.test:25", "127.0.0.1:25", ":25", "unix:/a", "5s", "1MiB", "50%", "anyone", "any", "<>",
    "starttls", "relay", "required", "xclient", "550 5.7.1 no", "r",
    "weighted", "active-active", "active-passive", "manual", "off", "unlimited", "a@b.test", ".b.test",
    "none", "postfix", "auto", "$$", "",
]  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-2, 300),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
)
ANY_VALUE: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["p", "g", "name", "pool"]), inner, max_size=3),
    ),
    max_leaves=5,
)


def like(model: type[Section]) -> st.SearchStrategy[Any]:
    """Mappings with the keys of a section and values of any kind, often of the right one."""
    return st.fixed_dictionaries(
        {}, optional={key: _value(field.annotation) for key, _, field in fields(model)}
    )


def _value(annotation: object) -> st.SearchStrategy[Any]:
    section = section_of(annotation)
    if section is None:
        return st.one_of(SCALARS, ANY_VALUE)
    inner: st.SearchStrategy[Any] = st.deferred(lambda: like(section))
    kind = str(annotation)
    if "list[" in kind:
        inner = st.lists(inner, max_size=2)
    if kind.startswith("dict"):
        inner = st.dictionaries(st.sampled_from(["p", "g", "r", "P"]), inner, max_size=2)
    return st.one_of(inner, inner, inner, SCALARS)


@settings(
    max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(like(Document))
def test_any_tree_with_our_keys(tree: dict[str, Any]) -> None:
    survives(json.dumps(tree, ensure_ascii=False))


def test_the_largest_file_of_the_worst_kind_is_refused_soon() -> None:
    for text in ("[" * 1_000_000, "a: {" * 200_000, "a: [" + "a," * 500_000, "- " * 500_000, "? " * 500_000):
        assert survives(text) is None
