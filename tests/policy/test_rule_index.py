"""The index of a route's rules leaves out none that holds, and most that do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smtplb.policy.routing import Facts, holds
from smtplb.policy.rule_index import RuleIndex
from smtplb.settings import Condition, Domains

NAMES = ("a.test", "b.test", "x.a.test", "y.x.a.test", "test", "a", "")
names = st.sampled_from(NAMES)
domains = st.builds(
    Domains,
    st.frozensets(names.filter(bool), max_size=3),
    st.frozensets(names.filter(bool), max_size=2),
)
conditions = st.none() | st.builds(
    Condition,
    recipient_domain=st.none() | domains,
    recipient=st.none() | st.frozensets(st.sampled_from(["r@a.test", "r@b.test"]), max_size=2),
    tls=st.none() | st.booleans(),
    negated=st.none() | st.builds(Condition, recipient_domain=domains),
)
recipients = st.builds(
    lambda local, name, dot: f"{local}@{name}{dot}".encode() if name else local.encode(),
    st.sampled_from(["r", "R", '"q@a.test"']),
    names | names.map(str.upper),
    st.sampled_from(["", "."]),
)


@given(rules=st.lists(conditions, max_size=12), recipient=recipients, tls=st.booleans())
def test_the_first_rule_that_holds_is_found(
    rules: list[Condition | None], recipient: bytes, tls: bool
) -> None:
    facts = Facts(None, recipient=recipient, tls=tls)

    def first(numbers: list[int]) -> int | None:
        for number in numbers:
            when = rules[number]
            if when is None or holds(when, facts):
                return number
        return None

    candidates = list(RuleIndex(rules).candidates(recipient))
    assert candidates == sorted(candidates)
    assert first(candidates) == first(list(range(len(rules))))


def test_of_a_thousand_rules_a_few_are_looked_at() -> None:
    rules: list[Condition | None] = [
        Condition(recipient_domain=Domains(exact=frozenset([f"d{number}.test"]))) for number in range(1000)
    ]
    rules.insert(500, Condition(tls=True))
    index = RuleIndex([*rules, None])
    assert list(index.candidates(b"r@d7.test")) == [7, 500, 1001]
    assert list(index.candidates(b"r@elsewhere.test")) == [500, 1001]
