"""Routes: ordered rules, of which exactly one decides for each recipient."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtplb.config.replies import refuse_reply
from smtplb.settings import Condition, Domains, RefuseReply, RouteSettings, Rule
from tests.config.support import errors_of, keys_of, only_error, route_of, settings_of, with_route

GONE = '"550 5.1.2 gone"'


def test_rules_reach_the_settings_in_their_order() -> None:
    route = route_of(
        f"{{when: {{recipient_domain: [.lab.test], tls: true}}, to: q}}, {{when: {{helo: a.test}}, refuse: {GONE}}}, {{to: p}}"
    )
    assert route == RouteSettings(
        "r",
        (
            Rule(Condition(recipient_domain=Domains(suffixes=frozenset({"lab.test"})), tls=True), target="q"),
            Rule(Condition(helo=Domains(frozenset({"a.test"}))), refuse=RefuseReply(550, "5.1.2", "gone")),
            Rule(None, target="p"),
        ),
    )


def test_a_route_may_end_in_a_refusal() -> None:
    assert route_of(f"{{when: {{auth: true}}, to: p}}, {{refuse: {GONE}}}").rules[-1].target is None


def test_a_route_may_hold_one_rule() -> None:
    assert route_of("{to: p}").rules == (Rule(None, target="p"),)


def test_a_rule_may_lead_to_a_group() -> None:
    groups = "groups: {g: {mode: active-passive, pools: [p, q]}}"
    assert settings_of(with_route("{to: g}", before=groups)).traffic.routes[0].rules[0].target == "g"


def test_a_route_that_nobody_uses_is_allowed() -> None:
    text = with_route("{to: p}", 'bind: "127.0.0.1:2525", to: q')
    assert len(settings_of(text).traffic.routes) == 1


def test_conditions_of_rules_use_networks_and_lists(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("a.test\nb..test\n")
    rules = '{when: {client: inside, recipient_domain: "file:domains"}, to: p}, {to: q}'
    (error,) = errors_of(with_route(rules, before="networks: {inside: 10.0.0.0/8}"), tmp_path)
    assert (error.file, error.line) == (str(tmp_path / "domains"), 2)
    assert "did you mean `inside`" in only_error(
        with_route("{when: {client: insde}, to: p}, {to: q}", before="networks: {inside: 10.0.0.0/8}")
    ).message  # fmt: skip


WHEN = "when: {helo: a.test}"


@pytest.mark.parametrize(
    ("rules", "key", "words"),
    [
        ("", "routes.r", "is empty"),
        ("{to: x}", "routes.r[0].to", "no pool or group is called `x`"),
        ("{to: r}", "routes.r[0].to", "`r` is a route: a rule goes to a pool or group"),
        ("{to: [p]}", "routes.r[0].to", "single text"),
        ("p", "routes.r[0]", "must be a mapping of keys"),
        (f"{{{WHEN}}}, {{to: p}}", "routes.r[0]", "decides nothing: write to: POOL"),
        (f"{{to: p, refuse: {GONE}}}", "routes.r[0].refuse", "beside `to`"),
        (f"{{refuse: {GONE}}}", "routes.r", "one rule needs `to`"),
        ("{to: p, too: q}", "routes.r[0].too", "did you mean `to`?"),
        (f"{{{WHEN}, to: p}}", "routes.r[0].when", "not in the last rule"),
        ("{to: p}, {to: q}", "routes.r[0]", "has no `when`, so it always holds"),
        ("{when: {}, to: p}, {to: q}", "routes.r[0].when", "names no fact"),
        ("{when: {not: {}}, to: p}, {to: q}", "routes.r[0].when.not", "names no fact"),
        ("{when: {client: any}, to: p}, {to: q}", "routes.r[0].when", "holds for every client"),
        (f"{{{WHEN}, to: p}}, {{{WHEN}, to: q}}, {{to: q}}", "routes.r[1].when", "decides before it"),
        ("{when: {clint: any}, to: p}, {to: q}", "routes.r[0].when.clint", "did you mean `client`?"),
        ("{when: {recipient_domain: a..b}, to: p}, {to: q}", "routes.r[0].when.recipient_domain", "not a domain"),
        ("{to: p, refuse: 550}", "routes.r[0].refuse", "write code, enhanced code and text"),
    ],
)  # fmt: skip
def test_mistakes_in_a_route(rules: str, key: str, words: str) -> None:
    errors = errors_of(with_route(rules))
    assert (key, True) in [(error.key, words in error.message) for error in errors]
    assert all(error.key.startswith(key) for error in errors)


def test_rules_that_decide_are_told_apart_from_rules_that_never_do() -> None:
    """`client: any` with a further fact decides; so does the half of the internet; so does a fact negated."""
    whens = ("client: any, helo: a.test", "client: 0.0.0.0/0", "not: {client: any}")
    rules = ", ".join(f"{{when: {{{when}}}, to: p}}" for when in whens)
    assert errors_of(with_route(f"{rules}, {{to: q}}")) == ()


def test_a_mistake_in_one_rule_hides_none_in_another() -> None:
    keys = keys_of(with_route("{to: x}, {when: {helo: a b}, to: p}, {refuse: no}"))
    assert keys == ["routes.r[0]", "routes.r[0].to", "routes.r[1].when.helo", "routes.r[2].refuse"]


def test_a_broken_condition_is_not_called_a_missing_one() -> None:
    assert keys_of(with_route("{when: {helo: a b}, to: p}, {to: q}")) == ["routes.r[0].when.helo"]


@pytest.mark.parametrize("other", ["pools", "groups"])
def test_pools_groups_and_routes_share_their_names(other: str) -> None:
    name = {"pools": "p", "groups": "g"}[other]
    error = only_error(f"""
        listeners: [{{bind: "127.0.0.1:2525", to: {name}}}]
        routes:
          {name}: [{{to: p}}]
        groups: {{g: {{mode: active-passive, pools: [p]}}}}
        pools: {{p: {{backends: ["b.test:25"]}}}}
    """)
    assert (error.line, error.key) == (4, f"routes.{name}")
    assert f"a {other[:-1]} has this name, at lb.yaml:{6 if other == 'pools' else 5}:" in error.message


def test_a_route_is_called_by_a_name() -> None:
    error = only_error(with_route("{to: p}").replace("{r:", "{R:").replace("to: r", "to: p"))
    assert "write r" in error.message


# What a rule refuses with.


def test_a_refusal_is_code_enhanced_code_and_text() -> None:
    assert refuse_reply("450 4.7.1 try the other host") == RefuseReply(450, "4.7.1", "try the other host")
    assert refuse_reply("550 5.7.130 x") == RefuseReply(550, "5.7.130", "x")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("not here", "write code, enhanced code and text"),
        ("550 not here", "write code"),
        ("550 5.7.1", "write code"),
        ("550 5.7.01 x", "write code"),
        (550, "write code"),
        (["550 5.7.1 x"], "write code"),
        ("250 2.0.0 fine", "refuses nothing"),
        ("354 3.0.0 go on", "refuses nothing"),
        ("599 5.0.0 x", "refuses nothing"),
        ("421 4.7.0 go away", "write 450 or 451"),
        ("550 4.7.1 x", "first digits must be the same"),
        ("550 2.7.1 x", "first digits must be the same"),
        ("550 5.7.1 caf\u00e9", "printable ASCII"),
        ("550 5.7.1 a\r\n250 2.0.0 b", "printable ASCII"),
        ("550 5.7.1 a\n", "printable ASCII"),
        ("550 5.7.1 a\tb", "printable ASCII"),
        ("550 5.7.1  x", "printable ASCII"),
        ("550 5.7.1 " + "x" * 201, "at most 200"),
    ],
)
def test_anything_else_is_no_refusal(written: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        refuse_reply(written)
    assert words in str(caught.value)


def test_a_refusal_has_room_for_200_characters() -> None:
    assert len(refuse_reply("550 5.7.1 " + "x" * 200).text) == 200
