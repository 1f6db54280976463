"""Groups: members, shares, fail-over, one namespace with the pools."""

from __future__ import annotations

import pytest

from smtplb.settings import FailbackMode, GroupMember, GroupMode, GroupSettings
from tests.config.support import errors_of, group_of, only_error, settings_of, with_group

TWO = "pools: [east, west]"


def test_a_group_alone_has_the_defaults_of_settings() -> None:
    assert group_of(f"mode: active-passive, {TWO}") == GroupSettings(
        name="g", mode=GroupMode.ACTIVE_PASSIVE, members=(GroupMember("east"), GroupMember("west"))
    )


@pytest.mark.parametrize("mode", ["active-passive", "active-active"])
def test_failover_and_failback_have_an_effect_in_both_modes(mode: str) -> None:
    group = group_of(f"mode: {mode}, {TWO}, failover_below: 70%, failback: {{mode: auto, delay: 2m}}")
    assert (group.failover_below_ratio, group.failback_mode, group.failback_delay_s) == (
        0.7,
        FailbackMode.AUTO,
        120.0,
    )


def test_shares_belong_to_active_active() -> None:
    group = group_of("mode: active-active, pools: [{pool: east, share: 60}, {pool: west, share: 0}]")
    assert group.members == (GroupMember("east", 60), GroupMember("west", 0))


def test_a_share_under_active_passive_has_no_effect_and_is_refused() -> None:
    error = only_error(with_group("mode: active-passive, pools: [{pool: east, share: 60}, west]"))
    assert error.key == "groups.g.pools.east.share"
    assert "no effect under mode active-passive" in error.message


def test_a_delay_under_manual_failback_has_no_effect_and_is_refused() -> None:
    error = only_error(with_group(f"mode: active-passive, {TWO}, failback: {{mode: manual, delay: 60s}}"))
    assert error.key == "groups.g.failback.delay"
    assert "no effect with mode: manual" in error.message


@pytest.mark.parametrize(
    ("group", "key", "words"),
    [
        (TWO, "groups.g.mode", "missing"),
        ("mode: active-passive", "groups.g.pools", "missing"),
        ("mode: active-passive, pools: []", "groups.g.pools", "at least one pool"),
        ("mode: active-passive, pools: east", "groups.g.pools", "must be a list"),
        ("mode: active-passive, pools: [eas]", "groups.g.pools[0].pool", "did you mean `east`?"),
        ("mode: active-passive, pools: [zzz]", "groups.g.pools[0].pool", "known are east, west"),
        ("mode: active-passive, pools: [east, east]", "groups.g.pools[1]", "in this group already"),
        ("mode: active-passive, pools: [g]", "groups.g.pools[0].pool", "made of pools"),
        ("mode: active-passive, pools: [{}]", "groups.g.pools[0].pool", "missing"),
        ("mode: active-passive, pools: [East]", "groups.g.pools[0].pool", "write east"),
        ("mode: passive, pools: [east]", "groups.g.mode", "must be one of active-active, active-passive"),
        (f"mode: active-passive, {TWO}, failover_below: 50", "groups.g.failover_below", "50%"),
        (f"mode: active-passive, {TWO}, failover_below: 0%", "groups.g.failover_below", "from 1%"),
        (f"mode: active-passive, {TWO}, failback: manual", "groups.g.failback", "must be a mapping"),
        (f"mode: active-passive, {TWO}, failbak: {{}}", "groups.g.failbak", "did you mean `failback`?"),
        ("mode: active-active, pools: [{pool: east, share: 101}]", "groups.g.pools.east.share", "from 0 to 100"),
        ("mode: active-active, pools: [{pool: east, share: 0}]", "groups.g.pools", "every share is 0"),
    ],
)  # fmt: skip
def test_mistakes_in_a_group(group: str, key: str, words: str) -> None:
    errors = errors_of(with_group(group))
    assert [(error.key, words in error.message) for error in errors] == [(key, True)]


def test_pools_and_groups_share_their_names() -> None:
    error = only_error("""
        listeners: [{bind: "127.0.0.1:2525", to: east}]
        groups:
          east: {mode: active-passive, pools: [east]}
        pools:
          east: {backends: ["e.test:25"]}
    """)
    assert (error.line, error.key) == (4, "groups.east")
    assert "lb.yaml:6:3" in error.message


def test_a_group_that_nobody_uses_is_allowed() -> None:
    text = with_group(f"mode: active-passive, {TWO}").replace("to: g", "to: east")
    assert len(settings_of(text).traffic.groups) == 1


def test_a_group_is_called_by_a_name() -> None:
    text = with_group(f"mode: active-passive, {TWO}").replace("{g:", "{G:").replace("to: g", "to: east")
    assert "write g" in only_error(text).message
