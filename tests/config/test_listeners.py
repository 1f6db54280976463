"""Listeners, and the relay guard: no listener that others can reach takes mail for the world by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtplb.settings import Address, BareNewline, Condition, ListenerLimits
from tests.config.support import (
    errors_of,
    keys_of,
    listener_of,
    only_error,
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
    assert listener.limits == ListenerLimits(10, 100, 1024 * 1024, 5, 600.0)


def test_a_listener_alone_has_the_defaults_of_settings() -> None:
    listener = listener_of(LOOPBACK)
    assert (listener.name, listener.bare_newline, listener.limits) == (
        "smtp",
        BareNewline.NORMALIZE,
        ListenerLimits(),
    )


def test_some_limits_may_be_unlimited() -> None:
    limits = listener_of(f"{LOOPBACK}, limits: {{sessions: unlimited, message_size: unlimited}}").limits
    assert (limits.sessions, limits.message_size_bytes) == (None, None)


@pytest.mark.parametrize(
    ("listener", "key", "words"),
    [
        ("to: p", "listeners[0].bind", "missing"),
        ('bind: "127.0.0.1:25"', "listeners[0].to", "missing"),
        ("bind: [], to: p", "listeners[0].bind", "is empty"),
        ('bind: "127.0.0.1", to: p', "listeners[0].bind", "has no port"),
        ('bind: ["127.0.0.1:25", "mx:25"], to: p', "listeners[0].bind[1]", "IP address of this host"),
        ('bind: ["127.0.0.1:25", "localhost:25"], to: p', "listeners[0].bind[1]", "bound already"),
        ('bind: "127.0.0.1:25", to: q', "listeners[0].to", "no pool or group is called `q`"),
        ('bind: "127.0.0.1:25", to: [p]', "listeners[0].to", "single text"),
        (f"{LOOPBACK}, name: MX", "listeners.MX.name", "write mx"),
        (f"{LOOPBACK}, bare_newline: fix", "listeners[0].bare_newline", "normalize, reject"),
        (f"{LOOPBACK}, limits: {{sessions: 0}}", "listeners[0].limits.sessions", "write unlimited"),
        (f"{LOOPBACK}, limits: {{errors: 0}}", "listeners[0].limits.errors", "from 1"),
        (f"{LOOPBACK}, limits: {{recipients: unlimited}}", "listeners[0].limits.recipients", "whole number"),
        (f"{LOOPBACK}, limits: {{message_size: 5000}}", "listeners[0].limits.message_size", "write 5000B"),
        (f"{LOOPBACK}, limits: {{message_size: 0B}}", "listeners[0].limits.message_size", "at least 1B"),
        (f"{LOOPBACK}, limits: {{idle_timeout: 300}}", "listeners[0].limits.idle_timeout", "write 300s"),
        (f"{LOOPBACK}, limits: {{sessions_per_client: 5}}", "listeners[0].limits.sessions_per_client", "this version"),
        (f"{LOOPBACK}, tls: {{mode: off}}", "listeners[0].tls", "not supported in this version"),
        (f"{LOOPBACK}, auth: off", "listeners[0].auth", "not supported in this version"),
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


# The relay guard.


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:25", "127.8.8.8:25", "[::1]:25", "localhost:25", "unix:/run/mx.sock"]
)
def test_accept_may_be_left_out_where_only_this_host_can_connect(bind: str) -> None:
    assert listener_of(f'bind: "{bind}", to: p').accept is None


@pytest.mark.parametrize(
    "binds", ['":25"', '"0.0.0.0:25"', '"[::]:25"', '"10.0.0.1:25"', '["127.0.0.1:25", "192.0.2.1:25"]']
)
def test_a_public_bind_without_accept_is_an_error_that_says_what_to_write(binds: str) -> None:
    error = only_error(with_listener(f"name: mx, bind: {binds}, to: p"))
    assert (error.line, error.column, error.key) == (4, 13, "listeners.mx.accept")
    for words in ("missing", "pool p", "identity: none", "mynetworks", "accept: [{", "accept: anyone"):
        assert words in error.message


def test_the_guard_names_every_pool_behind_a_group() -> None:
    error = only_error("""
        hostname: lb1.example.net
        listeners: [{bind: ":25", to: site}]
        groups: {site: {mode: active-passive, pools: [east, west]}}
        pools: {east: {backends: ["e.test:25"]}, west: {backends: ["w.test:25"]}}
    """)
    assert "pools east, west" in error.message


def test_the_guard_speaks_also_beside_other_mistakes_of_the_listener() -> None:
    keys = keys_of(with_listener(f"{PUBLIC}, limits: 5, bogus: 1").replace("to: p", "to: q"))
    assert keys == ["listeners[0].accept", "listeners[0].to", "listeners[0].limits", "listeners[0].bogus"]


def test_anyone_is_the_operators_signature() -> None:
    assert listener_of(f"{PUBLIC}, accept: anyone").accept == (Condition(),)


@pytest.mark.parametrize(
    "accept",
    [
        "{sender_domain: example.org}",
        "{sender: a@example.org}",
        "{helo: relay.example.org}",
        "{size_over: 1B}",
        "{not: {recipient_domain: example.org}}",
        "{client: any}",
        "{client: [10.0.0.0/8, 0.0.0.0/0]}",
        '{client: ["::/0"]}',
        "{client: [0.0.0.0/1, 128.0.0.0/1]}",
    ],
)
def test_what_everyone_can_meet_is_anyone_in_disguise(accept: str) -> None:
    error = only_error(with_listener(f"{PUBLIC}, accept: [{{recipient: a@b.test}}, {accept}]"))
    assert error.key == "listeners[0].accept[1]"
    assert "accept: anyone" in error.message


@pytest.mark.parametrize(
    "accept",
    [
        "{recipient_domain: example.org}",
        "{recipient: a@example.org, sender: <>}",
        "{client: 10.0.0.0/8, sender_domain: example.org}",
        "{client: any, recipient_domain: example.org}",
    ],
)
def test_a_condition_on_the_recipient_or_the_client_is_none(accept: str) -> None:
    assert errors_of(with_listener(f"{PUBLIC}, accept: {accept}")) == ()


def test_on_loopback_any_fact_will_do() -> None:
    assert errors_of(with_listener(f"{LOOPBACK}, accept: {{sender_domain: example.org}}")) == ()


@pytest.mark.parametrize(
    ("accept", "key"),
    [
        ("[{}]", "listeners[0].accept[0]"),
        ("{}", "listeners[0].accept"),
        ("[{client: 10.0.0.0/8, not: {}}]", "listeners[0].accept[0].not"),
    ],
)
def test_a_condition_without_a_fact_is_a_mistake(accept: str, key: str) -> None:
    error = only_error(with_listener(f"{PUBLIC}, accept: {accept}"))
    assert (error.key, "names no fact" in error.message) == (key, True)
