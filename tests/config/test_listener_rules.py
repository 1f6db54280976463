"""Rules between the keys of a listener: who connects, who authenticates, what can have an effect."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from smtplb.settings import AuthMode, ClientRules, OtherRoute
from tests.config.support import (
    errors_of,
    keys_of,
    listener_of,
    only_error,
    settings_of,
    with_listener,
    with_pool,
    with_route,
    write_certificate,
)

LOOPBACK = 'bind: "127.0.0.1:2525", to: p'
PUBLIC = 'bind: "0.0.0.0:25", to: p, accept: {recipient: a@b.test}'
INSIDE = "networks: {inside: [10.0.0.0/8], front: 10.0.9.1}"
CERTIFICATES = "certificates: {certificate: mx.pem, key: mx.key}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_certificate(tmp_path)
    return tmp_path


# Who connects.


def test_who_may_connect_reaches_the_settings(tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text("# pests\n192.0.2.1\n2001:db8::/32 # more\n")
    text = with_listener(
        f'{PUBLIC}, clients: {{allow: inside, deny: ["file:deny.txt", 10.9.0.0/16]}}', INSIDE
    )
    assert settings_of(text, tmp_path).traffic.listeners[0].clients == ClientRules(
        allow=(ip_network("10.0.0.0/8"),),
        deny=tuple(map(ip_network, ("192.0.2.1/32", "2001:db8::/32", "10.9.0.0/16"))),
    )


@pytest.mark.parametrize("allow", ["any", '[0.0.0.0/0, "::/0"]', '[10.0.0.0/8, any, "::1"]'])
def test_to_allow_any_is_no_rule_and_lets_clients_without_address_pass(allow: str) -> None:
    assert listener_of(f"{LOOPBACK}, clients: {{allow: {allow}}}").clients == ClientRules()
    unix = f'bind: "unix:/run/a", to: p, clients: {{allow: {allow}}}'
    assert errors_of(with_listener(unix)) == ()


def test_to_deny_one_ip_version_is_a_rule() -> None:
    assert listener_of(f'{LOOPBACK}, clients: {{deny: "::/0"}}').clients.deny == (ip_network("::/0"),)


@pytest.mark.parametrize(
    ("listener", "key", "words"),
    [
        (f"{LOOPBACK}, clients: {{deny: any}}", "clients.deny", "nobody could connect"),
        (f"{LOOPBACK}, clients: {{allow: []}}", "clients.allow", "is empty"),
        (f"{LOOPBACK}, clients: {{allow: insde}}", "clients.allow", "no network is called `insde`"),
        (f"{LOOPBACK}, clients: {{alow: any}}", "clients.alow", "did you mean `allow`?"),
        (f"{LOOPBACK}, clients: [any]", "clients", "must be a mapping"),
        (
            'bind: ["127.0.0.1:25", "unix:/run/a"], to: p, clients: {allow: loopback}',
            "clients.allow",
            "nobody could connect to unix:/run/a",
        ),
    ],
)
def test_mistakes_in_who_may_connect(listener: str, key: str, words: str) -> None:
    error = only_error(with_listener(listener))
    assert (error.key, words in error.message) == (f"listeners[0].{key}", True)


# Fronts.


def test_trusted_fronts_reach_the_settings(tmp_path: Path) -> None:
    (tmp_path / "fronts").write_text("192.0.2.7\n")
    text = with_listener(
        f'{PUBLIC}, proxy_protocol_from: [front, "::1"], xclient_from: "file:fronts"', INSIDE
    )
    (listener,) = settings_of(text, tmp_path).traffic.listeners
    assert listener.proxy_protocol_from == (ip_network("10.0.9.1/32"), ip_network("::1/128"))
    assert listener.xclient_from == (ip_network("192.0.2.7/32"),)


@pytest.mark.parametrize("key", ["proxy_protocol_from", "xclient_from"])
@pytest.mark.parametrize(
    "networks", ["any", "0.0.0.0/0", '"::/0"', "[10.0.0.0/8, 0.0.0.0/1, 128.0.0.0/1]", '"::ffff:0:0/96"']
)
def test_the_whole_internet_is_no_front(key: str, networks: str) -> None:
    error = only_error(with_listener(f"{PUBLIC}, {key}: {networks}"))
    assert error.key == f"listeners[0].{key}"
    assert "anybody could pretend to be any client" in error.message


@pytest.mark.parametrize("key", ["proxy_protocol_from", "xclient_from"])
def test_nobody_can_be_trusted_behind_a_unix_socket(key: str) -> None:
    accept = "accept: {recipient: a@b.test}"
    error = only_error(with_listener(f'bind: "unix:/run/a", to: p, {accept}, {key}: loopback'))
    assert (error.key, "no effect" in error.message) == (f"listeners[0].{key}", True)
    mixed = f'bind: ["unix:/run/a", "127.0.0.1:25"], to: p, {accept}, {key}: loopback'
    assert errors_of(with_listener(mixed)) == ()


def test_clients_behind_a_front_want_a_full_name_of_ours() -> None:
    text = with_listener(f"{LOOPBACK}, proxy_protocol_from: loopback, accept: anyone")
    assert keys_of(text.replace("lb1.example.net", "lb1")) == ["hostname"]


# AUTH.


@pytest.mark.parametrize("mode", ["starttls", "starttls-required", "implicit"])
def test_auth_is_relayed_under_tls(mode: str, folder: Path) -> None:
    text = with_listener(f"{PUBLIC}, auth: relay, tls: {{mode: {mode}, {CERTIFICATES}}}")
    (listener,) = settings_of(text, folder).traffic.listeners
    assert (listener.auth, listener.auth_without_tls) == (AuthMode.RELAY, False)


def test_auth_needs_tls_where_others_could_listen() -> None:
    for tls in ("", ", tls: {mode: off}"):
        error = only_error(with_listener(f"{PUBLIC}, auth: relay{tls}"))
        assert error.key == "listeners[0].auth"
        assert "write tls: {mode: starttls-required, ...}" in error.message
        assert "auth_without_tls" not in error.message


def test_auth_without_tls_is_for_this_host(folder: Path) -> None:
    error = only_error(with_listener(f"{LOOPBACK}, auth: relay"))
    assert error.message.endswith("or auth_without_tls: true since only this host can connect")
    front = only_error(
        with_listener(f"{LOOPBACK}, auth: relay, accept: anyone, proxy_protocol_from: loopback")
    )
    assert "auth_without_tls" not in front.message
    for bind in ('"127.0.0.1:25"', '["[::1]:25", "unix:/run/a"]'):
        text = with_listener(f"bind: {bind}, to: p, auth: relay, auth_without_tls: true")
        assert settings_of(text).traffic.listeners[0].auth_without_tls
    optional = f"{LOOPBACK}, auth: relay, auth_without_tls: true, tls: {{mode: starttls, {CERTIFICATES}}}"
    assert errors_of(with_listener(optional), folder) == ()


@pytest.mark.parametrize(
    "tls", ["", ", tls: {mode: starttls, certificates: {certificate: mx.pem, key: mx.key}}"]
)
def test_passwords_in_clear_on_a_public_bind_are_refused(tls: str, folder: Path) -> None:
    error = only_error(with_listener(f"{PUBLIC}, auth: relay, auth_without_tls: true{tls}"), folder)
    assert error.key == "listeners[0].auth_without_tls"
    assert "in clear: 0.0.0.0:25 can be reached" in error.message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("auth_without_tls: true", "no effect without auth: relay"),
        ("auth: off, auth_without_tls: false", "no effect without auth: relay"),
        (f"auth: relay, auth_without_tls: true, tls: {{mode: implicit, {CERTIFICATES}}}", "no effect with tls mode"),
    ],
)  # fmt: skip
def test_auth_without_tls_needs_somebody_who_could_use_it(keys: str, words: str, folder: Path) -> None:
    error = only_error(with_listener(f"{LOOPBACK}, {keys}"), folder)
    assert (error.key, words in error.message) == ("listeners[0].auth_without_tls", True)


def test_auth_is_not_judged_by_a_tls_that_was_a_mistake() -> None:
    assert keys_of(with_listener(f"{PUBLIC}, auth: relay, tls: {{mode: strattls}}")) == [
        "listeners[0].tls.mode"
    ]


AUTH_TO_ROUTE = 'bind: "127.0.0.1:2525", to: r, auth: relay, auth_without_tls: true'


@pytest.mark.parametrize(
    ("when", "key"),
    [
        ("recipient: a@b.test", "recipient"),
        ("recipient_domain: b.test", "recipient_domain"),
        ("sender: <>", "sender"),
        ("sender_domain: b.test", "sender_domain"),
        ("size_over: 1MiB", "size_over"),
        ("tls: true, not: {not: {sender: <>}}", "sender"),
    ],
)
def test_who_authenticates_is_routed_before_senders_and_recipients_are_known(when: str, key: str) -> None:
    rules = f"{{when: {{helo: a.test}}, to: q}}, {{when: {{{when}}}, to: p}}, {{to: q}}"
    error = only_error(with_route(rules, AUTH_TO_ROUTE))
    assert error.key == "listeners[0].auth"
    assert f"route r asks for {key}, at lb.yaml:5:" in error.message
    assert errors_of(with_route(rules)) == ()  # without AUTH the same route is fine


def test_who_authenticates_may_be_routed_by_the_session() -> None:
    when = "client: 10.0.0.0/8, helo: a.test, tls: true, auth: true, not: {client: 10.9.0.0/16}"
    assert errors_of(with_route(f"{{when: {{{when}}}, to: p}}, {{to: q}}", AUTH_TO_ROUTE)) == ()


# AUTH behind us.


def with_auth(pools: str, before: str = "", listener: str = "to: p") -> str:
    """Who can authenticate on this host, before these pools."""
    return f"""
        {before}
        listeners: [{{bind: "127.0.0.1:2525", auth: relay, auth_without_tls: true, {listener}}}]
        pools: {{{pools}}}
    """


@pytest.mark.parametrize(
    "pool",
    [
        'tls: {mode: required}, backends: ["b.test:25"]',
        'tls: {mode: required, verify: false}, backends: ["b.test:25"]',
        'tls: {mode: implicit}, backends: ["b.test:465"]',
        'backends: ["127.0.0.1:25", "[::1]:25", "localhost:25"]',
        'tls: {mode: opportunistic}, backends: ["127.9.9.9:25"]',
        'tls: {mode: implicit}, backends: ["b.test:465", {address: "localhost:25", tls: {mode: off}}]',
    ],
)
def test_passwords_go_to_backends_under_tls_or_not_off_this_host(pool: str) -> None:
    assert errors_of(with_auth(f"p: {{{pool}}}")) == ()


@pytest.mark.parametrize(
    ("pool", "named"),
    [
        (
            'backends: ["b.test:25"]',
            "towards p/b.test:25 (tls mode opportunistic): write tls: {mode: required}",
        ),
        ('tls: {mode: off}, backends: ["10.0.0.1:25"]', "towards p/10.0.0.1:25 (tls mode off): write"),
        (
            'tls: {mode: required}, backends: ["a.test:25", {name: b, address: "b.test:25", tls: {mode: off}}]',
            "towards p/b (tls mode off): write",
        ),
        ('backends: ["127.0.0.1:25", {address: "b.test:25", backup: true}]', "towards p/b.test:25 (tls"),
        (
            'backends: ["a.test:25", "b.test:25", "c.test:25", "d.test:25", "e.test:25"]',
            "p/a.test:25 (tls mode opportunistic), p/b.test:25 (tls mode opportunistic), "
            "p/c.test:25 (tls mode opportunistic) and 2 more: write",
        ),
    ],
)
def test_passwords_go_to_no_backend_in_clear(pool: str, named: str) -> None:
    error = only_error(with_auth(f"p: {{{pool}}}"))
    assert error.key == "listeners[0].auth"
    assert error.message.startswith("passwords would cross the network in clear, or could be made to")
    assert named in error.message
    assert errors_of(with_pool(pool)) == ()  # mail may


def test_every_pool_that_passwords_can_reach_is_looked_at() -> None:
    safe, clear = 'a: {backends: ["127.0.0.1:25"]}', 'b: {backends: ["b.test:25"]}'
    unused = f"{safe}, {clear}"
    assert errors_of(with_auth(unused, listener="to: a")) == ()
    group = "groups: {g: {mode: active-passive, pools: [a, b]}}"
    assert "towards b/b.test:25 " in only_error(with_auth(unused, group, "to: g")).message
    route = f"{group}\n        routes: {{r: [{{when: {{tls: true}}, to: a}}, {{to: g}}]}}"
    assert "towards b/b.test:25 " in only_error(with_auth(unused, route, "to: r")).message


@pytest.mark.parametrize(
    ("pools", "before", "key"),
    [
        ('p: {tls: {mode: requird}, backends: ["b.test:25"]}', "", "pools.p.tls.mode"),
        ('p: {backends: ["b.test:25"]}', "defaults: {pool: {tls: {mode: 1}}}", "defaults.pool.tls.mode"),
        ('p: {backends: [{address: "b.test:25", tls: off}]}', "", "pools.p.backends.b.test:25.tls"),
        ('p: {backends: ["b.test"]}', "", "pools.p.backends[0].address"),
        ("p: {backends: [{name: b}]}", "", "pools.p.backends.b.address"),
    ],
)
def test_the_way_of_passwords_is_not_judged_by_mistakes(pools: str, before: str, key: str) -> None:
    assert keys_of(with_auth(pools, before)) == [key]


def test_the_way_of_passwords_is_judged_beside_other_mistakes() -> None:
    keys = keys_of(with_auth('p: {polcy: weighted, backends: ["b.test:25"]}'))
    assert sorted(keys) == ["listeners[0].auth", "pools.p.polcy"]


# Facts that cannot be.


@pytest.mark.parametrize(
    ("listener", "accept", "key"),
    [
        ("", "{auth: true}", "auth"),
        ("", "[{client: loopback, auth: true}]", "auth"),
        ("", "{tls: true}", "tls"),
        ("tls: {mode: implicit, %s}, ", "{tls: false}", "tls"),
        ("tls: {mode: starttls-required, %s}, ", "{tls: false}", "tls"),
    ],
)
def test_a_condition_that_never_holds_is_a_mistake(
    listener: str, accept: str, key: str, folder: Path
) -> None:
    text = with_listener(f"{LOOPBACK}, {listener.replace('%s', CERTIFICATES)}accept: {accept}")
    error = only_error(text, folder)
    assert error.key.startswith("listeners[0].accept")
    assert error.key.endswith(f".{key}")
    assert error.message.startswith("never holds: ")


@pytest.mark.parametrize("accept", ["{tls: true}", "{tls: false}", "{auth: true}", "{auth: false}"])
def test_a_condition_that_may_hold_is_none(accept: str, folder: Path) -> None:
    tls = f"tls: {{mode: starttls, {CERTIFICATES}}}"
    assert errors_of(with_listener(f"{LOOPBACK}, auth: relay, {tls}, accept: {accept}"), folder) == ()


# Other routes.

TWO_WAYS = "{when: {recipient_domain: q.test}, to: q}, {to: p}"


@pytest.mark.parametrize("other_route", list(OtherRoute))
def test_what_happens_to_recipients_of_another_route_may_be_written(other_route: OtherRoute) -> None:
    text = with_route(TWO_WAYS, f'bind: "127.0.0.1:587", to: r, other_route: {other_route}')
    assert settings_of(text).traffic.listeners[0].other_route is other_route


def test_applications_have_no_queue_so_submission_follows() -> None:
    for binds, expected in (
        ('"127.0.0.1:25"', OtherRoute.DEFER),
        ('["127.0.0.1:25", "127.0.0.1:587"]', OtherRoute.FOLLOW),
        ('"127.0.0.1:465"', OtherRoute.FOLLOW),
        ('"unix:/run/a"', OtherRoute.DEFER),
    ):
        text = with_route(TWO_WAYS, f"bind: {binds}, to: r")
        assert settings_of(text).traffic.listeners[0].other_route is expected


def test_without_a_route_there_is_no_other_one() -> None:
    error = only_error(with_listener(f"{LOOPBACK}, other_route: defer"))
    assert (error.key, error.message.startswith("no effect")) == ("listeners[0].other_route", True)
    assert keys_of(with_listener(f"{LOOPBACK}, other_route: defer").replace("to: p,", "to: x,")) == [
        "listeners[0].to"
    ]
    assert "one of defer, follow" in only_error(with_listener(f"{LOOPBACK}, other_route: refuse")).message
