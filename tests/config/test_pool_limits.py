"""What keeps backends from too much: limits of connections, the queue for them, ejection, slow start."""

from __future__ import annotations

import pytest

from smtplb.settings import EjectSettings, QueueSettings
from tests.config.support import backend_of, errors_of, keys_of, only_error, pool_of, with_pool

ONE = 'backends: ["b.test:25"]'
TWO = 'backends: ["a.test:25", "b.test:25"]'
HEAVY = 'policy: weighted, backends: [{address: "a.test:25", weight: 10}, {address: "b.test:25", weight: 10}]'


def defaults(pool: str) -> str:
    return f"defaults: {{pool: {{{pool}}}}}"


def two_pools(first: str, second: str, before: str) -> str:
    return f"""
{before}
listeners: [{{bind: "127.0.0.1:2525", to: p}}]
pools: {{p: {{{first}}}, q: {{{second}}}}}
"""


# Limits of connections.


def test_connections_are_unlimited_unless_it_is_written() -> None:
    assert pool_of(ONE).backends[0].max_connections is None
    assert pool_of(f"{ONE}, max_connections: unlimited").backends[0].max_connections is None
    assert pool_of(f"{ONE}, max_connections: 80").backends[0].max_connections == 80


def test_the_most_specific_limit_of_connections_wins() -> None:
    pool = pool_of(
        'max_connections: 80, backends: ["a.test:25", {address: "b.test:25", max_connections: 5}, '
        '{address: "c.test:25", max_connections: unlimited}]',
        defaults("max_connections: 7"),
    )
    assert [backend.max_connections for backend in pool.backends] == [80, 5, None]
    assert pool_of(ONE, defaults("max_connections: 7")).backends[0].max_connections == 7


@pytest.mark.parametrize(
    ("mta", "expected"), [("postfix", 40), ("exim", 16), ("sendmail", None), ("exchange", 18)]
)
def test_a_preset_stays_below_what_the_mta_takes(mta: str, expected: int | None) -> None:
    assert pool_of(f"{ONE}, mta: {mta}").backends[0].max_connections == expected
    for written, limit in (("unlimited", None), ("90", 90)):
        pool = pool_of(f"{ONE}, mta: {mta}, max_connections: {written}")
        assert pool.backends[0].max_connections == limit


def test_a_preset_is_below_every_layer() -> None:
    backend = backend_of(
        '{address: "b.test:25", mta: postfix}', before=defaults("max_connections: unlimited")
    )
    assert backend.max_connections is None


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("0", "write unlimited for no limit"),
        ("-1", "from 1 to 65535"),
        ("65536", "from 1 to 65535"),
        ("many", "not a whole number"),
    ],
)
@pytest.mark.parametrize("where", ["pools.p", "pools.p.backends.b.test:25", "defaults.pool"])
def test_mistakes_in_limits_of_connections(where: str, written: str, words: str) -> None:
    key = f"max_connections: {written}"
    text = {
        "pools.p": with_pool(f"{ONE}, {key}"),
        "pools.p.backends.b.test:25": with_pool(f'backends: [{{address: "b.test:25", {key}}}]'),
        "defaults.pool": with_pool(ONE, defaults(key)),
    }[where]
    error = only_error(text)
    assert (error.key, words in error.message) == (f"{where}.max_connections", True)


# Connections opened in advance.


def test_warm_connections_reach_the_settings() -> None:
    assert pool_of(ONE).backends[0].connections.warm == 0
    pool = pool_of(
        'connections: {warm: 4}, backends: ["a.test:25", {address: "b.test:25", connections: {warm: 0}}]'
    )
    assert [backend.connections.warm for backend in pool.backends] == [4, 0]


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("connections: {warm: 33}", "must not be more than idle (32)"),
        ("mta: exim, connections: {warm: 9}", "must not be more than idle (8)"),
        ("max_connections: 3, connections: {warm: 4}", "must not be more than max_connections (3)"),
        ("identity: xclient, connections: {warm: 4}", "no effect with identity xclient"),
        ("identity: proxy-v2, connections: {warm: 4}", "no effect with identity proxy-v2"),
    ],
)
def test_warm_connections_that_would_find_no_room(pool: str, words: str) -> None:
    error = only_error(with_pool(f"{TWO}, {pool}"))
    assert error.key == "pools.p.connections.warm"
    assert words in error.message


def test_warm_connections_in_defaults_need_one_pool_where_they_count() -> None:
    warm = defaults("connections: {warm: 2}")
    told = f"{ONE}, identity: xclient"
    assert errors_of(two_pools(told, ONE, warm)) == ()
    assert keys_of(two_pools(told, told, warm)) == ["defaults.pool.connections.warm"]


# The queue.


def test_the_queue_reaches_the_settings_key_by_key() -> None:
    assert pool_of(f"{ONE}, max_connections: 9").queue == QueueSettings()
    pool = pool_of(
        f"{ONE}, max_connections: 9, queue: {{length: 7}}", defaults("queue: {length: 1, timeout: 30s}")
    )
    assert pool.queue == QueueSettings(length=7, timeout_s=30.0)


@pytest.mark.parametrize(
    "limit",
    [
        "max_connections: 9",
        "mta: postfix",
        'mta: sendmail, backends: ["a.test:25", {address: "c.test:25", mta: exim}]',
        'backends: ["a.test:25", {address: "c.test:25", max_connections: 3}]',
    ],
)
def test_one_backend_with_a_limit_gives_the_queue_an_effect(limit: str) -> None:
    backends = "" if "backends" in limit else f", {TWO}"
    assert errors_of(with_pool(f"queue: {{length: 7}}, {limit}{backends}")) == ()


@pytest.mark.parametrize(
    "limit",
    ["", ", max_connections: unlimited", ", mta: sendmail", ", mta: exim, max_connections: unlimited"],
)
def test_where_connections_are_unlimited_nobody_waits(limit: str) -> None:
    error = only_error(with_pool(f"{ONE}, queue: {{timeout: 5s}}{limit}"))
    assert (error.key, error.message) == (
        "pools.p.queue",
        "no effect without max_connections: nobody waits for a connection",
    )
    assert (error.line, error.column) == (3, 38)  # the key itself


def test_the_queue_of_defaults_needs_one_pool_with_a_limit() -> None:
    before = defaults("queue: {length: 7}")
    assert errors_of(two_pools(ONE, f"{ONE}, max_connections: 3", before)) == ()
    assert keys_of(two_pools(ONE, ONE, before)) == ["defaults.pool.queue"]


@pytest.mark.parametrize("limit", ["max_connections: 0", "mta: posfix"])
def test_the_queue_is_not_judged_by_a_limit_that_was_a_mistake(limit: str) -> None:
    key = limit.partition(":")[0]
    assert keys_of(with_pool(f"{ONE}, queue: {{length: 7}}, {limit}")) == [f"pools.p.{key}"]
    in_backend = f'queue: {{length: 7}}, backends: [{{address: "b.test:25", {limit}}}]'
    assert keys_of(with_pool(in_backend)) == [f"pools.p.backends.b.test:25.{key}"]


@pytest.mark.parametrize(
    ("queue", "key", "words"),
    [
        ("{length: 0}", ".length", "from 1 to"),
        ("{length: unlimited}", ".length", "not a whole number"),
        ("{timeout: 0s}", ".timeout", "at least 1ms"),
        ("{timeout: 10}", ".timeout", "write 10s"),
        ("{lenght: 10}", ".lenght", "did you mean `length`?"),
        ("500", "", "must be a mapping"),
    ],
)
def test_mistakes_in_the_queue(queue: str, key: str, words: str) -> None:
    error = only_error(with_pool(f"{ONE}, max_connections: 9, queue: {queue}"))
    assert (error.key, words in error.message) == (f"pools.p.queue{key}", True)


# Ejection.


def test_ejection_is_on_unless_it_is_off() -> None:
    assert pool_of(ONE).eject == EjectSettings()
    assert pool_of(f"{TWO}, eject: {{}}").eject == EjectSettings()
    assert pool_of(f"{TWO}, eject: off").eject is None


def test_ejection_reaches_the_settings_key_by_key() -> None:
    pool = pool_of(
        f"{TWO}, eject: {{after: 9, for: 1m}}",
        defaults("eject: {for: 2m, max_for: 1h, at_most: 100%, refusals: true}"),
    )
    assert pool.eject == EjectSettings(9, 60.0, 3600.0, 1.0, refusals=True)


def test_a_pool_may_switch_ejection_off_and_on_again() -> None:
    assert pool_of(f"{TWO}, eject: off", defaults("eject: {after: 9}")).eject is None
    assert pool_of(TWO, defaults("eject: off")).eject is None
    again = pool_of(f"{TWO}, eject: {{after: 9}}", defaults("eject: off")).eject
    assert again == EjectSettings(after=9)


def test_off_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EJECT", "off")
    assert pool_of(f'{TWO}, eject: "${{EJECT}}"').eject is None


@pytest.mark.parametrize("eject", ["off", "{after: 9}"])
def test_the_only_backend_of_a_pool_is_never_taken_out(eject: str) -> None:
    error = only_error(with_pool(f"{ONE}, eject: {eject}"))
    assert (error.key, error.message) == (
        "pools.p.eject",
        "no effect: the only backend of a pool is never taken out",
    )


def test_ejection_in_defaults_needs_one_pool_of_two() -> None:
    before = defaults("eject: {after: 9}")
    assert errors_of(two_pools(ONE, TWO, before)) == ()
    assert keys_of(two_pools(ONE, ONE, before)) == ["defaults.pool.eject"]


@pytest.mark.parametrize(
    ("eject", "key", "words"),
    [
        ("{after: 1}", ".after", "from 2 to 1000"),  # one network alone could have a backend taken out
        ("{after: 1001}", ".after", "from 2 to 1000"),
        ("{for: 0s}", ".for", "at least 1ms"),
        ("{for: 30}", ".for", "write 30s"),
        ("{at_most: 0%}", ".at_most", "from 1% to 100%"),
        ("{at_most: 0.5}", ".at_most", "not a percentage"),
        ("{window: 1m}", ".window", "known here are after, for, max_for, at_most, refusals"),
        ("{refusals: yes}", ".refusals", "true or false"),
        ("{for: 10m, max_for: 9m}", ".max_for", "must not be shorter than for (10m)"),
        ("{max_for: 10s}", ".max_for", "must not be shorter than for (30s)"),
        ("{for: 10m}", ".for", "must not be longer than max_for (5m)"),
        ("on", "", "must be a mapping of keys, or the word off"),
        ("false", "", "must be a mapping of keys, or the word off"),
        ("5", "", "must be a mapping of keys, or the word off"),
        ("[off]", "", "must be a mapping of keys"),
    ],
)
def test_mistakes_in_ejection(eject: str, key: str, words: str) -> None:
    error = only_error(with_pool(f"{TWO}, eject: {eject}"))
    assert (error.key, words in error.message) == (f"pools.p.eject{key}", True)
    error = only_error(with_pool(TWO, defaults(f"eject: {eject}")))
    assert (error.key, words in error.message) == (f"defaults.pool.eject{key}", True)


def test_times_of_a_pool_are_compared_with_those_of_defaults() -> None:
    error = only_error(with_pool(f"{TWO}, eject: {{for: 2m}}", defaults("eject: {for: 1s, max_for: 1m}")))
    assert (error.key, error.message) == ("defaults.pool.eject.max_for", "must not be shorter than for (2m)")
    off = with_pool(f"{TWO}, eject: off", defaults("eject: {for: 1h}"))
    assert errors_of(off) == ()


# Slow start.


def test_slow_start_reaches_the_settings() -> None:
    assert pool_of(HEAVY).slow_start_s == 0.0
    assert pool_of(f"{HEAVY}, slow_start: 30s").slow_start_s == 30.0
    assert pool_of(HEAVY, defaults("slow_start: 30s")).slow_start_s == 30.0
    assert pool_of(f"{HEAVY}, slow_start: 0s", defaults("slow_start: 30s")).slow_start_s == 0.0


def test_slow_start_needs_a_policy_that_knows_weights() -> None:
    error = only_error(with_pool(f"{TWO}, slow_start: 30s"))
    assert (error.key, error.message) == (
        "pools.p.slow_start",
        "no effect under policy round-robin: use policy: weighted",
    )
    before = defaults("slow_start: 30s")
    assert errors_of(two_pools(TWO, HEAVY, before)) == ()
    assert keys_of(two_pools(TWO, TWO, before)) == ["defaults.pool.slow_start"]


def test_slow_start_needs_weights_that_have_parts() -> None:
    light = f"{TWO}, policy: least-connection"
    error = only_error(with_pool(f"{light}, slow_start: 30s"))
    assert (error.key, error.message) == (
        "pools.p.slow_start",
        "no effect on weights of 1, which have no parts: write weight: 10 in each backend",
    )
    one_heavy = 'policy: weighted, backends: ["a.test:25", {address: "b.test:25", weight: 2}]'
    assert errors_of(with_pool(f"{one_heavy}, slow_start: 30s")) == ()


def test_slow_start_is_not_judged_by_mistakes() -> None:
    assert keys_of(with_pool(f"{TWO}, policy: wieghted, slow_start: 30s")) == ["pools.p.policy"]
    assert keys_of(with_pool(f"{TWO}, slow_start: 30s", defaults("policy: wieghted"))) == [
        "defaults.pool.policy"
    ]
    weight = 'policy: weighted, slow_start: 30s, backends: ["a.test:25", {address: "b.test:25", weight: ten}]'
    assert keys_of(with_pool(weight)) == ["pools.p.backends.b.test:25.weight"]
    assert keys_of(
        with_pool("policy: weighted, slow_start: 30s, max_connections: 3, queue: {}, backends: []")
    ) == ["pools.p.backends"]
    assert "write 30s" in only_error(with_pool(f"{HEAVY}, slow_start: 30")).message


# Not yet.


@pytest.mark.parametrize("key", ["eject: off", "slow_start: 30s"])
def test_some_keys_are_not_yet_those_of_a_backend(key: str) -> None:
    error = only_error(with_pool(f'backends: ["a.test:25", {{address: "b.test:25", {key}}}]'))
    assert error.key == f"pools.p.backends.b.test:25.{key.partition(':')[0]}"
    assert error.message == "not supported in this version"
