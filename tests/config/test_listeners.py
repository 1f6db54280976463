"""Listeners: names, binds, limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtplb.settings import Address, BareNewline, ListenerLimits
from tests.config.support import (
    errors_of,
    keys_of,
    listener_of,
    settings_of,
    with_listener,
)

LOOPBACK = 'bind: "127.0.0.1:2525", to: p'
PUBLIC = 'bind: "0.0.0.0:25", to: p'


def test_all_keys_of_a_listener_reach_the_settings(tmp_path: Path) -> None:
    text = with_listener(
        'name: mx, bind: ["127.0.0.1:2525", "[::1]:2525", "unix:mx.sock"], to: p, bare_newline: reject, '
        "limits: {sessions: 10, recipients: 100, message_size: 1MiB, errors: 5, idle_timeout: 10m}"
    )
    (listener,) = settings_of(text, tmp_path).traffic.listeners
    assert listener.name == "mx"
    assert listener.binds == (
        Address("127.0.0.1", 2525),
        Address("::1", 2525),
        Address(path=str(tmp_path / "mx.sock")),
    )
    assert listener.bare_newline is BareNewline.REJECT
    assert listener.limits == ListenerLimits(
        sessions=10, recipients=100, message_size_bytes=1024 * 1024, errors=5, idle_timeout_s=600.0
    )


def test_a_listener_alone_has_the_defaults_of_settings() -> None:
    listener = listener_of(LOOPBACK)
    assert (listener.name, listener.bare_newline, listener.limits) == (
        "smtp",
        BareNewline.NORMALIZE,
        ListenerLimits(),
    )


PER_CLIENT = (
    "sessions_per_client",
    "sessions_per_network",
    "connections_per_minute",
    "messages_per_minute",
    "recipients_per_minute",
)


def test_limits_by_client_reach_the_settings() -> None:
    written = ", ".join(f"{key}: {number}" for number, key in enumerate(PER_CLIENT, start=1))
    limits = listener_of(f"{LOOPBACK}, limits: {{{written}, body_timeout: 2h}}").limits
    assert [getattr(limits, key) for key in PER_CLIENT] == [1, 2, 3, 4, 5]
    assert limits.body_timeout_s == 7200.0


@pytest.mark.parametrize("key", ["sessions", *PER_CLIENT])
def test_some_limits_may_be_unlimited(key: str) -> None:
    assert getattr(listener_of(f"{LOOPBACK}, limits: {{{key}: unlimited}}").limits, key) is None


def test_the_size_of_messages_may_be_unlimited() -> None:
    limits = listener_of(f"{LOOPBACK}, limits: {{message_size: unlimited}}").limits
    assert limits.message_size_bytes is None


@pytest.mark.parametrize(("written", "seconds"), [("0s", 0.0), ("500ms", 0.5), ("6s", 6.0), ("1m", 60.0)])
def test_a_greeting_may_wait_up_to_a_minute(written: str, seconds: float) -> None:
    assert listener_of(f"{LOOPBACK}, greeting_delay: {written}").greeting_delay_s == seconds


@pytest.mark.parametrize(
    ("listener", "key", "words"),
    [
        ("to: p", "listeners[0].bind", "missing"),
        ('bind: "127.0.0.1:25"', "listeners[0].to", "missing"),
        ("bind: [], to: p", "listeners[0].bind", "is empty"),
        ('bind: "127.0.0.1", to: p', "listeners[0].bind", "has no port"),
        ('bind: ["127.0.0.1:25", "mx:25"], to: p', "listeners[0].bind[1]", "IP address of this host"),
        ('bind: ["127.0.0.1:25", "localhost:25"], to: p', "listeners[0].bind[1]", "bound already"),
        ('bind: "127.0.0.1:25", to: q', "listeners[0].to", "no pool, group or route is called `q`"),
        ('bind: "127.0.0.1:25", to: [p]', "listeners[0].to", "single text"),
        (f"{LOOPBACK}, name: MX", "listeners.MX.name", "write mx"),
        (f"{LOOPBACK}, bare_newline: fix", "listeners[0].bare_newline", "normalize, reject"),
        (f"{LOOPBACK}, limits: {{sessions: 0}}", "listeners[0].limits.sessions", "write unlimited"),
        (f"{LOOPBACK}, limits: {{errors: 0}}", "listeners[0].limits.errors", "from 1"),
        (f"{LOOPBACK}, limits: {{recipients: unlimited}}", "listeners[0].limits.recipients", "whole number"),
        (f"{LOOPBACK}, limits: {{message_size: 5000}}", "listeners[0].limits.message_size", "write 5000B"),
        (f"{LOOPBACK}, limits: {{message_size: 0B}}", "listeners[0].limits.message_size", "at least 1B"),
        (f"{LOOPBACK}, limits: {{idle_timeout: 300}}", "listeners[0].limits.idle_timeout", "write 300s"),
        (f"{LOOPBACK}, limits: {{sessions_per_client: 0}}", "listeners[0].limits.sessions_per_client", "write unlimited"),
        (f"{LOOPBACK}, limits: {{sesions_per_network: 5}}", "listeners[0].limits.sesions_per_network", "`sessions_per_network`"),
        (f"{LOOPBACK}, limits: {{body_timeout: unlimited}}", "listeners[0].limits.body_timeout", "not a duration"),
        (f"{LOOPBACK}, greeting_delay: 61s", "listeners[0].greeting_delay", "at most 1m"),
        (f"{LOOPBACK}, greeting_delay: 6", "listeners[0].greeting_delay", "write 6s"),
        (f"{LOOPBACK}, acept: anyone", "listeners[0].acept", "did you mean `accept`?"),
        (f"{LOOPBACK}, accept: any", "listeners[0].accept", "the word anyone"),
        (f"{LOOPBACK}, accept: []", "listeners[0].accept", "is empty"),
        (f"{LOOPBACK}, accept: [{{client: [insde]}}]", "listeners[0].accept[0].client[0]", "no network"),
        (f"{LOOPBACK}, accept: {{clients: any}}", "listeners[0].accept.clients", "did you mean `client`?"),
    ],
)  # fmt: skip
def test_mistakes_in_a_listener(listener: str, key: str, words: str) -> None:
    errors = errors_of(with_listener(listener))
    assert [(error.key, words in error.message) for error in errors] == [(key, True)]


@pytest.mark.parametrize("listeners", ["[]", "{a: 1}", "p", "[p]"])
def test_listeners_are_a_list_of_mappings(listeners: str) -> None:
    (error,) = errors_of(f'listeners: {listeners}\npools: {{p: {{backends: ["b.test:25"]}}}}\n')
    assert error.key.startswith("listeners")


def test_two_listeners_need_names_that_differ() -> None:
    text = """
        listeners:
          - {bind: "127.0.0.1:1", to: p}
          - {bind: "127.0.0.1:2", to: p, name: mx}
          - {bind: "127.0.0.1:3", to: p, name: mx}
        pools: {p: {backends: ["b.test:25"]}}
    """
    assert [str(error).split("with")[0] for error in errors_of(text)] == [
        "lb.yaml:3:5: listeners[0].name: missing: ",
        "lb.yaml:5:40: listeners.mx.name: a listener is called `mx` already, at lb.yaml:4:40",
    ]


def test_an_address_is_bound_once_in_the_whole_file() -> None:
    text = """
        listeners:
          - {name: a, bind: ["127.0.0.1:1", "unix:/run/a"], to: p}
          - {name: b, bind: ["localhost:1", "unix:/run/a"], to: p}
        pools: {p: {backends: ["b.test:25"]}}
        admin: {bind: "127.0.0.1:1"}
        probes: {bind: "127.0.0.1:1"}
    """
    assert keys_of(text) == ["listeners.b.bind[0]", "listeners.b.bind[1]", "admin.bind", "probes.bind"]
    assert "lb.yaml:3:22" in errors_of(text)[0].message
