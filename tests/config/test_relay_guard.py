"""The relay guard: no listener that others can reach takes mail for the world by default."""

from __future__ import annotations

import pytest

from smtplb.settings import Condition
from tests.config.support import errors_of, keys_of, listener_of, only_error, with_listener, with_pool

LOOPBACK = 'bind: "127.0.0.1:2525", to: p'
PUBLIC = 'bind: "0.0.0.0:25", to: p'
TOLD = ["xclient", "proxy-v1", "proxy-v2"]
NOT_TOLD = ["none", "xforward"]


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


# Fronts that speak for others.


@pytest.mark.parametrize("key", ["proxy_protocol_from", "xclient_from"])
def test_loopback_is_no_excuse_where_a_front_brings_clients_of_other_hosts(key: str) -> None:
    error = only_error(with_listener(f"name: mx, {LOOPBACK}, {key}: [loopback]"))
    assert error.key == "listeners.mx.accept"
    assert error.message.startswith(f"missing, and those in {key} speak for other hosts. To the backends of")
    assert errors_of(with_listener(f"{LOOPBACK}, {key}: [loopback], accept: {{recipient: a@b.test}}")) == ()


def test_behind_a_front_anyone_in_disguise_is_found_on_loopback_too() -> None:
    text = with_listener(f"{LOOPBACK}, proxy_protocol_from: [loopback], accept: {{sender_domain: b.test}}")
    assert "holds for whoever wants it to" in only_error(text).message


# Identities.


def guarded(identity: str, backends: str = '["a.test:25", "b.test:25"]') -> str:
    text = with_pool(f"identity: {identity}, backends: {backends}", "hostname: lb1.example.net")
    return text.replace("127.0.0.1:2525", "0.0.0.0:25")


@pytest.mark.parametrize("identity", TOLD)
def test_accept_may_be_left_out_where_backends_judge_each_client_by_its_own_address(identity: str) -> None:
    assert errors_of(guarded(identity)) == ()
    front = guarded(identity).replace("to: p", "to: p, proxy_protocol_from: 10.0.9.1")
    assert errors_of(front) == ()


@pytest.mark.parametrize("identity", NOT_TOLD)
def test_an_identity_that_is_for_logs_only_asks_the_relay_question(identity: str) -> None:
    assert f"(identity: {identity})" in only_error(guarded(identity)).message


def test_one_backend_that_sees_only_us_asks_the_relay_question() -> None:
    backends = '["a.test:25", {address: "b.test:25", identity: xforward}]'
    error = only_error(guarded("xclient", backends))
    assert "pool p all mail comes from this host (identity: xforward)" in error.message


def test_the_guard_names_the_pools_that_see_only_us() -> None:
    text = """
        hostname: lb1.example.net
        listeners: [{bind: ":25", to: r}]
        routes: {r: [{when: {helo: a.test}, to: told}, {to: g}]}
        groups: {g: {mode: active-passive, pools: [told, blind]}}
        pools:
          told: {identity: proxy-v2, backends: ["a.test:25"]}
          blind: {backends: ["b.test:25"]}
    """
    error = only_error(text)
    assert (error.line, error.key) == (3, "listeners[0].accept")
    assert "the backends of pool blind all mail" in error.message
    assert errors_of(text.replace("blind: {", "blind: {identity: xclient, ")) == ()


def test_where_backends_judge_each_client_any_fact_will_do() -> None:
    text = guarded("xclient").replace("to: p", "to: p, accept: {sender_domain: example.org}")
    assert errors_of(text) == ()


def test_the_guard_hints_at_identities() -> None:
    assert "identity: xclient, proxy-v1 or proxy-v2" in only_error(guarded("none")).message


# Facts of a session.


@pytest.mark.parametrize(
    ("accept", "lawful"),
    [
        ("{auth: true}", True),
        ("{auth: true, tls: true}", True),
        ("{auth: false}", False),
        ("{tls: true}", False),
        ("{not: {auth: false}}", False),
    ],
)
def test_who_authenticated_is_known_and_who_has_tls_is_anybody(accept: str, lawful: bool) -> None:
    # That TLS files are missing is another mistake.
    tls = "tls: {mode: starttls-required}, auth: relay"
    found = [error.key for error in errors_of(with_listener(f"{PUBLIC}, {tls}, accept: {accept}"))]
    assert found == ["listeners[0].tls.certificates"] + ([] if lawful else ["listeners[0].accept"])
