"""The rules of taking backends out by their traffic (policy/ejection.py), as laws: who, for how long, how many at most."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.policy.ejection import RATE_ATTEMPTS, RATE_WINDOW_S, Ejection
from smtplb.policy.limits import network_key
from smtplb.settings import EjectSettings

AFTER = EjectSettings().after
NAMES = ["A", "B", "D"]


def ejection(*names: str, **settings: float) -> Ejection:
    return Ejection(EjectSettings(**settings), list(names or NAMES), 0.0)  # type: ignore[arg-type]


def network(number: int) -> tuple[int, int]:
    return network_key(ip_address(f"10.0.{number}.1"))


def blame(out: Ejection, backend: str, networks: range, now: float = 0.0) -> list[str | None]:
    return [out.blamed(backend, network(number), now) for number in networks]


def test_faults_met_by_enough_networks_in_a_row_take_it_out() -> None:
    out = ejection()
    assert blame(out, "A", range(AFTER - 1)) == [None] * (AFTER - 1)
    assert out.blamed("A", network(AFTER), 0.0) == "5 clients in a row met a fault"
    assert out.until_s("A") == 30.0
    assert (out.until_s("B"), out.until_s("D")) == (None, None)


def test_one_network_counts_once_however_many_of_its_hosts_and_sessions() -> None:
    out = ejection()
    hosts = [network_key(ip_address(f"192.0.2.{host}")) for host in range(1, 250)]
    assert [out.blamed("A", host, 0.0) for host in hosts] == [None] * len(hosts)
    assert blame(out, "A", range(AFTER - 2)) == [None] * (AFTER - 2), "with the other: one short of it"
    assert out.blamed("A", network(200), 0.0) is not None


def test_a_success_in_between_starts_the_count_over() -> None:
    out = ejection()
    for _ in range(3):
        blame(out, "A", range(AFTER - 1))
        out.succeeded("A", 0.0)
    assert out.until_s("A") is None


def test_each_time_out_is_longer_up_to_a_limit_and_good_behaviour_is_rewarded() -> None:
    out = ejection(for_s=30.0, max_for_s=100.0)
    now, lengths = 0.0, []
    for _ in range(5):
        blame(out, "A", range(AFTER), now)
        until_s = out.until_s("A")
        assert until_s is not None
        lengths.append(until_s - now)
        assert out.due(until_s - 0.1) == []
        assert out.due(until_s) == ["A"]
        assert out.until_s("A") is None
        now = until_s + 1.0
    assert lengths == [30.0, 60.0, 90.0, 100.0, 100.0]
    now += 101.0
    blame(out, "A", range(AFTER), now)
    assert out.until_s("A") == now + 30.0


@pytest.mark.parametrize(
    ("count", "at_most_ratio", "limit"),
    [
        (1, 0.5, 0),
        (1, 1.0, 0),
        (2, 0.01, 1),
        (2, 0.5, 1),
        (2, 1.0, 2),
        (3, 0.5, 1),
        (4, 0.5, 2),
        (5, 0.5, 2),
        (5, 0.1, 1),
        (10, 0.33, 3),
        (10, 1.0, 10),
    ],
)
def test_at_most_is_rounded_down_but_one_of_two_or_more(count: int, at_most_ratio: float, limit: int) -> None:
    names = [f"mx{number}" for number in range(count)]
    out = ejection(*names, at_most_ratio=at_most_ratio)
    for name in names:
        blame(out, name, range(20))
    assert sum(out.until_s(name) is not None for name in names) == limit


def test_one_that_may_not_go_out_goes_when_another_is_back() -> None:
    out = ejection("A", "B")
    blame(out, "A", range(AFTER))
    blame(out, "B", range(AFTER))
    assert (out.until_s("A"), out.until_s("B")) == (30.0, None)
    assert out.due(30.0) == ["A"]
    assert out.blamed("B", network(100), 30.0) is not None


def test_half_of_enough_attempts_is_enough_while_others_do_well() -> None:
    """A backend that fails every other message never fails five in a row."""
    out = ejection()
    told = []
    for attempt in range(RATE_ATTEMPTS):
        out.succeeded("B", 1.0)
        if attempt % 2:
            told.append(out.blamed("A", network(attempt % 6), 1.0))
        else:
            out.succeeded("A", 1.0)
    assert told[:-1] == [None] * (len(told) - 1)
    assert told[-1] == "10 of 20 attempts met a fault"


def test_one_that_is_back_is_judged_by_what_it_does_from_then_on() -> None:
    """Else the first client that meets a fault after its return would send it out again, for longer."""
    out = ejection(for_s=5.0)
    for attempt in range(RATE_ATTEMPTS):
        out.succeeded("B", 1.0)
        blame(out, "A", range(attempt % 6, attempt % 6 + 1), 1.0)
    assert out.until_s("A") is not None
    blame(out, "A", range(4), 2.0)  # tried all the same while nothing else was there
    assert out.due(6.0) == ["A"]
    assert blame(out, "A", range(AFTER - 1), 7.0) == [None] * (AFTER - 1)
    assert out.blamed("A", network(100), 7.0) == "5 clients in a row met a fault"


@pytest.mark.parametrize(
    "why", ["others fail too", "nobody to compare with", "two networks", "too few", "old"]
)
def test_half_of_the_attempts_is_not_enough_if(why: str) -> None:
    out = ejection()
    attempts = RATE_ATTEMPTS - 2 if why == "too few" else 2 * RATE_ATTEMPTS
    networks = 2 if why == "two networks" else 6
    for attempt in range(attempts):
        now = attempt * RATE_WINDOW_S / 8 if why == "old" else 1.0
        if why != "nobody to compare with":
            out.succeeded("B", now)
        if why == "others fail too" and attempt % 5 == 0:
            out.blamed("B", network(0), now)
        if attempt % 2:
            assert out.blamed("A", network(attempt % networks), now) is None
        else:
            out.succeeded("A", now)


def test_half_of_the_messages_that_wait_too_long_are_enough_while_others_answer_in_time() -> None:
    """Its checks are good, and no message fails: one that stands still behind the final dot fails nobody for 12 minutes."""
    out = ejection()
    out.finals("B", 20, [], 1.0)
    out.finals("A", 10, [], 1.0)
    for number in range(RATE_ATTEMPTS // 2 - 1):
        assert out.finals("A", 0, [network(number % 4)], 2.0) is None
    assert out.finals("A", 0, [network(5)], 3.0) == "10 of 20 messages waited over 5 s for their answer"
    assert out.until_s("A") == 33.0
    assert out.finals("A", 0, [network(6)], 4.0) is None, "it is out already"
    assert out.due(33.0) == ["A"]
    assert out.finals("A", 0, [network(number) for number in range(9)], 34.0) is None, "judged anew"


@pytest.mark.parametrize(
    "why", ["others are slow too", "nobody to compare with", "two networks", "too few", "old", "at most one"]
)
def test_slow_answers_are_not_enough_if(why: str) -> None:
    out = ejection("A", "B", "D")
    if why != "nobody to compare with":
        out.finals("B", 20, [network(0)] * (5 if why == "others are slow too" else 0), 1.0)
    if why == "at most one":
        blame(out, "D", range(AFTER))
    slow = [network(number % (2 if why == "two networks" else 6)) for number in range(40)]
    if why == "too few":
        slow = slow[: RATE_ATTEMPTS - 1]
    for number, each in enumerate(slow):
        assert out.finals("A", 0, [each], number * RATE_WINDOW_S / 8 if why == "old" else 1.0) is None


def test_faults_before_a_long_silence_say_nothing_about_now() -> None:
    """Two windows at most, also where nobody sent mail meanwhile to turn them."""
    out = ejection()
    for attempt in range(RATE_ATTEMPTS - 2):
        out.succeeded("B", 1.0)
        out.succeeded("D", 1.0)
        assert out.blamed("A", network(attempt % 2), 1.0) is None
    later = 3600.0
    for attempt in range(3):
        out.succeeded("B", later)
        out.succeeded("A", later)
        assert out.blamed("A", network(attempt), later) is None


@dataclass(frozen=True)
class Step:
    backend: str
    network: int | None  # None: a success
    after_s: float


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(NAMES),
        st.one_of(st.none(), st.integers(0, 8)),
        st.sampled_from([0.0, 0.0, 1.0, 40.0]),
    ),
    max_size=200,
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([0.01, 0.5, 0.7, 1.0]))
def test_whatever_happens_no_more_are_out_than_may_be(steps: list[Step], at_most_ratio: float) -> None:
    out = ejection(at_most_ratio=at_most_ratio)
    now = 0.0
    for step in steps:
        now += step.after_s
        out.due(now)
        if step.network is None:
            out.succeeded(step.backend, now)
        else:
            out.blamed(step.backend, network(step.network), now)
        until = [out.until_s(name) for name in NAMES]
        gone = [until_s for until_s in until if until_s is not None]
        assert len(gone) <= out.limit
        assert all(now < until_s <= now + 300.0 for until_s in gone)
        assert out.next_due_s == min(gone, default=None)


@settings(max_examples=300)
@given(STEPS, st.integers(1, 2))
def test_however_long_the_messages_of_two_networks_take_nobody_is_taken_out(
    steps: list[Step], networks: int
) -> None:
    out = ejection()
    now = 0.0
    for step in steps:
        now += step.after_s
        slow = [] if step.network is None else [network(step.network % networks)] * 5
        assert out.finals(step.backend, 1, slow, now) is None


@settings(max_examples=300)
@given(STEPS, st.integers(1, 2))
def test_whatever_two_networks_do_nobody_is_taken_out(steps: list[Step], networks: int) -> None:
    out = ejection()
    now = 0.0
    for step in steps:
        now += step.after_s
        if step.network is None:
            out.succeeded(step.backend, now)
        else:
            assert out.blamed(step.backend, network(step.network % networks), now) is None
