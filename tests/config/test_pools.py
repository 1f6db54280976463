"""Pools and backends: the merge key by key, presets, and keys without effect."""

from __future__ import annotations

from typing import Any

import pytest

from smtplb.settings import (
    BalancePer,
    BudgetSettings,
    CheckLevel,
    CheckSettings,
    ConnectionSettings,
    IdentityMode,
    Policy,
    ReceivedMode,
    TimeoutSettings,
)
from tests.config.support import backend_of, errors_of, only_error, pool_of, with_pool

ONE = 'backends: ["b.test:25"]'


def test_a_backend_alone_has_the_built_in_defaults() -> None:
    backend = pool_of(ONE).backends[0]
    assert (backend.check, backend.connections, backend.timeouts) == (
        CheckSettings(),
        ConnectionSettings(),
        TimeoutSettings(),
    )
    assert (backend.key, backend.weight, backend.backup, backend.source) == (
        ("p", "b.test:25"),
        1,
        False,
        None,
    )


def test_the_most_specific_layer_wins_key_by_key() -> None:
    pool = pool_of(
        "policy: weighted, check: {interval: 20s, rise: 3}, timeouts: {connect: 2s}, "
        'backends: ["a.test:25", {address: "b.test:25", check: {rise: 4}, timeouts: {final: 20m}}]',
        before="defaults: {pool: {check: {interval: 30s, rise: 9, fall: 9}, timeouts: {connect: 9s, mail: 9s}}}",
    )
    plain, special = pool.backends
    assert (plain.check.interval_s, plain.check.rise, plain.check.fall) == (20.0, 3, 9)
    assert (special.check.interval_s, special.check.rise, special.check.fall) == (20.0, 4, 9)
    assert (special.timeouts.connect_s, special.timeouts.mail_s, special.timeouts.final_s) == (
        2.0,
        9.0,
        1200.0,
    )
    assert special.timeouts.rcpt_s == TimeoutSettings().rcpt_s


def test_policy_and_budget_come_from_defaults_too() -> None:
    before = "defaults: {pool: {policy: least-connection, budget: {rcpt: 60s}}}"
    pool = pool_of(f"{ONE}, budget: {{data: 30s}}", before)
    assert pool.policy is Policy.LEAST_CONNECTION
    assert pool.budget == BudgetSettings(rcpt_s=60.0, data_s=30.0)


@pytest.mark.parametrize(
    ("mta", "expected"),
    [
        ("postfix", {}),
        ("exim", {"idle": 8, "max_transactions": 10}),
        ("sendmail", {"idle": 8}),
        ("exchange", {"idle": 10, "idle_timeout_s": 45.0, "max_age_s": 240.0}),
    ],
)
def test_a_preset_is_the_lowest_layer(mta: str, expected: dict[str, Any]) -> None:
    before = f"defaults: {{pool: {{mta: {mta}}}}}"
    assert pool_of(ONE, before).backends[0].connections == ConnectionSettings(**expected)
    written = pool_of(f"{ONE}, connections: {{idle: 3}}", before).backends[0].connections
    assert written == ConnectionSettings(**{**expected, "idle": 3})


def test_a_backend_may_be_another_mta_than_its_pool() -> None:
    pool = pool_of('mta: exim, backends: ["a.test:25", {address: "b.test:25", mta: postfix}]')
    assert [backend.connections.max_transactions for backend in pool.backends] == [10, 1000]


@pytest.mark.parametrize(
    "key", ["policy: weighted", "budget: {rcpt: 9s}", "queue: {length: 1}", "balance_per: session"]
)
def test_policy_budget_queue_and_balance_are_no_keys_of_a_backend(key: str) -> None:
    error = only_error(with_pool(f'backends: [{{address: "b.test:25", {key}}}]'))
    assert error.key == f"pools.p.backends.b.test:25.{key.split(':')[0]}"


def test_a_backend_has_a_name_or_is_called_by_its_address() -> None:
    assert backend_of('{name: mx1, address: "B.test:25"}').name == "mx1"
    assert backend_of('{address: "B.test:25"}').name == "b.test:25"
    assert backend_of('{name: "B.test:2525", address: "B.test:25"}').name == "b.test:2525"
    assert "not a name" in only_error(with_pool('backends: [{name: MX 1, address: "b.test:25"}]')).message


def test_names_of_backends_are_unique_in_their_pool() -> None:
    error = only_error(
        with_pool('backends: [{name: a, address: "a.test:25"}, {name: a, address: "b.test:25"}]')
    )
    assert "lb.yaml:3:" in error.message
    assert (error.line, error.key) == (3, "pools.p.backends.a")
    assert (
        "called `a.test:25` already" in only_error(with_pool('backends: ["a.test:25", "A.test:25"]')).message
    )


@pytest.mark.parametrize(
    ("pool", "key", "words"),
    [
        ("backends: []", "pools.p.backends", "at least one backend"),
        ("policy: weighted", "pools.p.backends", "missing"),
        ("backends: [10.0.0.1]", "pools.p.backends[0].address", "has no port: write `10.0.0.1:25`"),
        ("backends: [{name: a}]", "pools.p.backends.a.address", "missing"),
        ("backends: {a: 1}", "pools.p.backends", "must be a list"),
        ("backends: [[a]]", "pools.p.backends[0]", "must be a mapping"),
        ("backends: [25]", "pools.p.backends[0]", "must be a mapping"),
        (f"{ONE}, policy: round robin", "pools.p.policy", "must be one of round-robin"),
        (f"{ONE}, policy: hash", "pools.p.policy", "not supported in this version"),
        (f"{ONE}, check: {{level: rcpt}}", "pools.p.check.level", "not supported in this version"),
        (f"{ONE}, check: {{recipient: a@b.test}}", "pools.p.check.recipient", "not supported in this version"),
        (f"{ONE}, identity: xcleint", "pools.p.identity", "one of none, xforward, xclient, proxy-v1, proxy-v2"),
        (f"{ONE}, received: maybe", "pools.p.received", "must be one of auto, always, never"),
        (f"{ONE}, balance_per: message", "pools.p.balance_per", "must be one of transaction, session"),
        (f"{ONE}, connections: {{warm: -1}}", "pools.p.connections.warm", "from 0 to 1000"),
        (f"{ONE}, hash_on: client", "pools.p.hash_on", "not supported in this version"),
        (f"{ONE}, hash_no: client", "pools.p.hash_no", "`hash_on` is meant"),
        (f"{ONE}, backend: []", "pools.p.backend", "did you mean `backends`?"),
        (f"{ONE}, check: {{intervall: 5s}}", "pools.p.check.intervall", "did you mean `interval`?"),
        (f"{ONE}, check: {{timeout: 0s}}", "pools.p.check.timeout", "at least 1ms"),
        (f"{ONE}, check: {{hello: a b}}", "pools.p.check.hello", "not a host name"),
        (f"{ONE}, check: 5s", "pools.p.check", "must be a mapping"),
        (f"{ONE}, connections: {{idle: -1}}", "pools.p.connections.idle", "from 0 to"),
        (f"{ONE}, timeouts: {{final: 0s}}", "pools.p.timeouts.final", "at least 1ms"),
        (f"{ONE}, budget: {{rcpt: 5}}", "pools.p.budget.rcpt", "write 5s"),
        (f"{ONE}, source: [[10.0.0.1]]", "pools.p.source[0]", "single text"),
        (f'{ONE}, source: "10.0.0.1:25"', "pools.p.source", "without a port"),
    ],
)  # fmt: skip
def test_mistakes_in_a_pool(pool: str, key: str, words: str) -> None:
    error = only_error(with_pool(pool))
    assert error.key == key
    assert words in error.message


@pytest.mark.parametrize("weight", ["-1", "257", "1.5", '"2"', "two"])
def test_a_weight_is_from_0_to_256(weight: str) -> None:
    assert (
        "weight"
        in only_error(
            with_pool(
                f'policy: weighted, backends: ["a.test:25", {{address: "b.test:25", weight: {weight}}}]'
            )
        ).key
    )


def test_a_weight_of_0_takes_nothing_but_not_in_every_backend() -> None:
    assert (
        pool_of('policy: weighted, backends: ["a.test:25", {address: "b.test:25", weight: 0}]')
        .backends[1]
        .weight
        == 0
    )
    error = only_error(with_pool('policy: weighted, backends: [{address: "b.test:25", weight: 0}]'))
    assert "every backend has weight 0" in error.message


@pytest.mark.parametrize("before", ["", "defaults: {pool: {policy: round-robin}}"])
def test_a_weight_under_round_robin_has_no_effect_and_is_refused(before: str) -> None:
    error = only_error(with_pool('backends: ["a.test:25", {address: "b.test:25", weight: 2}]', before))
    assert error.message == "no effect under policy round-robin: use policy: weighted"
    assert error.key == "pools.p.backends.b.test:25.weight"


@pytest.mark.parametrize("policy", ["weighted", "least-connection"])
def test_the_other_policies_use_weights(policy: str) -> None:
    assert (
        pool_of(f'policy: {policy}, backends: [{{address: "b.test:25", weight: 2}}]').backends[0].weight == 2
    )


def test_a_weight_is_not_judged_by_a_policy_that_was_a_mistake() -> None:
    errors = errors_of(with_pool('policy: wieghted, backends: [{address: "b.test:25", weight: 2}]'))
    assert [error.key for error in errors] == ["pools.p.policy"]


def test_all_backends_as_backups_are_a_mistake() -> None:
    backup = '{address: "%s.test:25", backup: true}'
    error = only_error(with_pool(f"backends: [{backup % 'a'}, {backup % 'b'}]"))
    assert "every backend is a backup" in error.message


def test_a_fast_interval_is_not_longer_than_the_interval() -> None:
    error = only_error(with_pool(f"{ONE}, check: {{interval: 1s, fast_interval: 2s}}"))
    assert error.key == "pools.p.check.fast_interval"
    assert "interval (1s)" in error.message


def test_the_default_of_fast_interval_follows_a_short_interval() -> None:
    assert pool_of(f"{ONE}, check: {{interval: 1s}}").backends[0].check.fast_interval_s == 1.0
    assert pool_of(f"{ONE}, check: {{interval: 60s}}").backends[0].check.fast_interval_s == 2.0


def test_an_interval_of_a_backend_is_compared_with_what_its_pool_wrote() -> None:
    error = only_error(
        with_pool(
            'check: {fast_interval: 5s}, backends: ["a.test:25", {address: "b.test:25", check: {interval: 3s}}]'
        )
    )
    assert error.key == "pools.p.check.fast_interval"


@pytest.mark.parametrize(
    ("check", "key"),
    [
        ("level: off, interval: 5s", "interval"),
        ("level: off, rise: 1", "rise"),
        ("level: tcp, hello: lb1.example.net", "hello"),
        ("level: banner, hello: lb1.example.net", "hello"),
    ],
)
def test_keys_of_a_check_without_effect_are_refused(check: str, key: str) -> None:
    for text in (
        with_pool(f"{ONE}, check: {{{check}}}"),
        with_pool(f'backends: [{{address: "b.test:25", check: {{{check}}}}}]'),
        with_pool(ONE, f"defaults: {{pool: {{check: {{{check}}}}}}}"),
    ):
        error = only_error(text)
        assert error.key.endswith(f"check.{key}")
        assert "no effect with level" in error.message


def test_one_backend_may_switch_the_checks_of_its_pool_off() -> None:
    pool = pool_of(
        'check: {interval: 5s}, backends: ["a.test:25", {address: "b.test:25", check: {level: off}}]'
    )
    assert [backend.check.level for backend in pool.backends] == [CheckLevel.EHLO, CheckLevel.OFF]


def test_a_source_is_used_by_the_backends_of_its_family() -> None:
    pool = pool_of(
        'source: [10.0.0.5, "2001:db8::5"], backends: ["10.0.0.1:25", "[2001:db8::1]:25"]',
    )
    assert [backend.source for backend in pool.backends] == ["10.0.0.5", "2001:db8::5"]
    alone = pool_of('source: 10.0.0.5, backends: ["10.0.0.1:25", "[2001:db8::1]:25", "mx.test:25"]')
    assert [backend.source for backend in alone.backends] == ["10.0.0.5", None, "10.0.0.5"]


def test_a_source_of_defaults_need_not_fit_every_pool() -> None:
    before = "defaults: {pool: {source: 10.0.0.5}}"
    assert pool_of('backends: ["[2001:db8::1]:25"]', before).backends[0].source is None


@pytest.mark.parametrize(
    ("pool", "key", "words"),
    [
        ('source: 10.0.0.5, backends: ["[::1]:25"]', "pools.p.source", "no backend here has an IPv4 address"),
        ('source: ["::5"], backends: ["10.0.0.1:25"]', "pools.p.source[0]", "no backend here has an IPv6"),
        ('backends: [{address: "[::1]:25", source: 10.0.0.5}]', "pools.p.backends.[::1]:25.source", "no backend"),
        ('source: [10.0.0.5, 10.0.0.6], backends: ["10.0.0.1:25"]', "pools.p.source[1]", "same family"),
        ('source: [10.0.0.5, "::5"], backends: ["mx.test:25"]', "pools.p.source", "unknown family"),
        ('source: [], backends: ["mx.test:25"]', "pools.p.source", "is empty"),
    ],
)  # fmt: skip
def test_mistakes_in_sources(pool: str, key: str, words: str) -> None:
    error = only_error(with_pool(pool))
    assert (error.key, words in error.message) == (key, True)


# Identity.


@pytest.mark.parametrize("identity", list(IdentityMode))
@pytest.mark.parametrize("received", list(ReceivedMode))
def test_identity_and_received_reach_the_settings(identity: IdentityMode, received: ReceivedMode) -> None:
    backend = pool_of(f"{ONE}, identity: {identity}, received: {received}").backends[0]
    assert (backend.identity, backend.received) == (identity, received)


def test_identity_and_received_are_those_of_the_most_specific_layer() -> None:
    pool = pool_of(
        'identity: xclient, backends: ["a.test:25", {address: "b.test:25", identity: none, received: never}]',
        before="defaults: {pool: {identity: proxy-v1, received: always}}",
    )
    assert [(backend.identity, backend.received) for backend in pool.backends] == [
        (IdentityMode.XCLIENT, ReceivedMode.ALWAYS),
        (IdentityMode.NONE, ReceivedMode.NEVER),
    ]


@pytest.mark.parametrize("mta", ["postfix", "exim", "sendmail", "exchange"])
def test_no_preset_changes_who_backends_believe_to_see(mta: str) -> None:
    assert pool_of(f"{ONE}, mta: {mta}").backends[0].identity is IdentityMode.NONE


def test_a_session_stays_where_its_identity_was_told() -> None:
    one_tells = 'backends: ["a.test:25", {address: "b.test:25", identity: proxy-v2}]'
    assert pool_of(one_tells).balance_per is BalancePer.SESSION
    assert pool_of(f"{ONE}, identity: xforward").balance_per is BalancePer.TRANSACTION


def test_how_often_a_backend_is_chosen_may_be_written() -> None:
    assert (
        pool_of(f"{ONE}, identity: xclient, balance_per: transaction").balance_per is BalancePer.TRANSACTION
    )
    before = "defaults: {pool: {balance_per: session}}"
    assert pool_of(ONE, before).balance_per is BalancePer.SESSION


def test_a_pool_is_called_by_a_name() -> None:
    error = only_error("""
        listeners: [{bind: "127.0.0.1:2525", to: p}]
        pools:
          p: {backends: ["b.test:25"]}
          "West 1": {backends: ["b.test:25"]}
    """)
    assert (error.line, error.column) == (5, 3)
    assert "`West 1` is not a name" in error.message


@pytest.mark.parametrize("pools", ["{}", "[]", "p"])
def test_at_least_one_pool_is_needed(pools: str) -> None:
    errors = errors_of(f'listeners: [{{bind: "127.0.0.1:2525", to: p}}]\npools: {pools}\n')
    assert "pools" in [error.key for error in errors]
