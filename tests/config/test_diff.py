"""What a reload changes, by two files; what needs a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtplb.config.diff import Changes, plan
from smtplb.config.load import load_text
from smtplb.settings import Settings

FILE = """\
hostname: lb1.test
listeners:
  - {name: mx, bind: "127.0.0.1:2525", to: site}
  - {name: out, bind: "127.0.0.1:2526", to: way}
routes:
  way: [{when: {sender_domain: [a.test]}, to: east}, {to: site}]
groups:
  site: {mode: active-passive, pools: [east, west]}
pools:
  east: {policy: weighted, backends: [{name: mx1, address: "127.0.0.1:2601", weight: 2}, {name: mx2, address: "127.0.0.1:2602"}]}
  west: {backends: [{name: mx3, address: "127.0.0.1:2603"}]}
admin: {bind: "127.0.0.1:8025"}
"""


def changed(old: str, new: str) -> Settings:
    assert old in FILE
    return load_text(FILE.replace(old, new))


def test_a_configuration_against_itself_changes_nothing() -> None:
    made = plan(load_text(FILE), load_text(FILE))
    assert not made
    assert (made.listeners, made.restart, made.others) == (Changes(), (), ())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("weight: 2", "weight: 3", "backends changed east/mx1 weight"),
        ('"127.0.0.1:2602"', '"127.0.0.1:2612"', "backends changed east/mx2 address"),
        ("policy: weighted", "slow_start: 5s, policy: weighted", "pools changed east slow_start"),
        ("name: mx3", "name: mx4", "backends added west/mx4; backends removed west/mx3"),
        ('"127.0.0.1:2525"', '":2525", accept: anyone', "listeners changed mx bind,accept"),
        ("to: way", "to: west", "listeners changed out to"),
        ("name: out", "name: in", "listeners added in; listeners removed out"),
        ("[a.test]", "[b.test]", "routes changed way rules"),
        ("[east, west]", "[west, east]", "groups changed site pools"),
        ("lb1.test", "lb2.test", "others hostname"),
        ("admin:", "shutdown: {drain: 1s}\nadmin:", "others shutdown"),
        ("admin:", "replay: {attempts: 2}\nadmin:", "others replay"),
    ],
)
def test_what_is_said_of_a_change(old: str, new: str, words: str) -> None:
    made = plan(load_text(FILE), changed(old, new))
    assert made
    said = []
    for kind in ("listeners", "routes", "groups", "pools", "backends"):
        changes: Changes = getattr(made, kind)
        said += [f"{kind} added {name}" for name in changes.added]
        said += [f"{kind} removed {name}" for name in changes.removed]
        said += [f"{kind} changed {name} {','.join(keys)}" for name, keys in changes.changed.items()]
    said += [f"others {key}" for key in made.others]
    assert "; ".join(said) == words
    assert made.restart == ()


def test_a_pool_that_goes_takes_its_backends_along() -> None:
    without = load_text(
        FILE.replace("pools: [east, west]", "pools: [west, more]").replace(
            "  west:", '  more: {backends: ["127.0.0.1:2609"]}\n  west:'
        )
    )
    made = plan(load_text(FILE), without)
    assert made.pools.added == ("more",)
    assert made.backends.added == ("more/127.0.0.1:2609",)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("hostname:", "workers: 2\nhostname:", "workers"),
        ('"127.0.0.1:8025"', '"127.0.0.1:8026"', "admin.bind"),
        ("admin:", 'probes: {bind: "127.0.0.1:8027"}\nadmin:', "probes.bind"),
        ("admin:", "log: {level: debug}\nadmin:", "log.level"),
    ],
)
def test_what_needs_a_restart(old: str, new: str, key: str) -> None:
    assert plan(load_text(FILE), changed(old, new)).restart == (key,)


def test_processors_of_workers_need_a_restart() -> None:
    several = changed("hostname:", "workers: 2\nhostname:")
    bound = changed("hostname:", "workers: 2\nworker_cpu_affinity: true\nhostname:")
    assert plan(several, bound).restart == ("worker_cpu_affinity",)


def test_listeners_whose_beginning_changed_end_their_sessions_and_no_others() -> None:
    old = load_text(FILE)
    mx, out = old.traffic.listeners
    for changes, ends in (
        ({"greeting_delay_s": 1.0}, ()),
        ({"proxy_protocol_from": mx.clients.deny, "auth_without_tls": True}, ("mx",)),
    ):
        new = replace(old, traffic=replace(old.traffic, listeners=(replace(mx, **changes), out)))
        assert plan(old, new).ends_sessions == ends
    gone = replace(old, traffic=replace(old.traffic, listeners=(out,)))
    assert plan(old, gone).ends_sessions == ("mx",)


def test_backends_that_are_reached_in_another_way_are_named() -> None:
    made = plan(load_text(FILE), changed("name: mx3,", "name: mx3, identity: xclient,"))
    assert made.reconnects == ("west/mx3",)
    assert plan(load_text(FILE), changed("weight: 2", "weight: 5")).reconnects == ()
