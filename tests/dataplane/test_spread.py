"""Which backend takes the next transaction: within one session, over pools, groups and states."""

from __future__ import annotations

from collections import Counter

import pytest

from smtplb.messages import BackendState
from smtplb.settings import Policy
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.setup import Setup


def send(client: Client, count: int) -> list[str]:
    """The names of the backends that took the messages, in order."""
    took = []
    for _ in range(count):
        last = client.message()[-1]
        assert last.startswith("250 2.0.0 queued at "), last
        took.append(last.split()[4])
    return took


def test_a_session_of_300_messages_reaches_all_backends_evenly() -> None:
    stage = FakeStage(Setup(pools={"p": "A B D"}))
    took = send(stage.client().hello(), 300)
    assert Counter(took) == {"A": 100, "B": 100, "D": 100}
    assert took == ["A", "B", "D"] * 100
    stage.finish()


def test_weights_are_kept_within_one_session() -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}, policy=Policy.WEIGHTED, weights={"A": 2, "B": 3}))
    took = send(stage.client().hello(), 100)
    assert Counter(took) == {"A": 40, "B": 60}
    for at in range(0, 100, 5):
        assert Counter(took[at : at + 5]) == {"A": 2, "B": 3}, "interleaved, not in blocks"
    stage.finish()


def test_least_connection_avoids_the_slow_one() -> None:
    stage = FakeStage(Setup(pools={"p": "A B D"}, policy=Policy.LEAST_CONNECTION))
    slow = [stage.client().hello() for _ in range(3)]
    for client in slow:  # one open transaction at each
        client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    slow[1].ask("RSET")
    slow[2].ask("RSET")
    took = Counter(send(stage.client().hello(), 30))
    assert took["A"] == 0
    assert took == {"B": 15, "D": 15}
    stage.finish()


def test_backup_takes_over_only_when_all_others_are_out() -> None:
    stage = FakeStage(Setup(pools={"p": "A B D"}, backup=frozenset({"D"})))
    client = stage.client().hello()
    assert set(send(client, 4)) == {"A", "B"}
    stage.set_state("A", BackendState.DOWN)
    assert set(send(client, 4)) == {"B"}
    stage.set_state("B", BackendState.EJECTED)
    assert set(send(client, 4)) == {"D"}
    stage.set_state("A", BackendState.UP)
    assert set(send(client, 4)) == {"A"}
    stage.finish()


def test_backup_is_asked_when_the_others_fail() -> None:
    stage = FakeStage(Setup(pools={"p": "A D"}, backup=frozenset({"D"})))
    client = stage.client().hello()
    stage.sites["A"].connects = "refuse"
    assert send(client, 2) == ["D", "D"]
    stage.finish()


@pytest.mark.parametrize(
    "state", [BackendState.DRAIN, BackendState.MAINT, BackendState.DOWN, BackendState.EJECTED]
)
def test_state_changes_between_transactions_of_one_session(state: BackendState) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    assert set(send(client, 2)) == {"A", "B"}
    stage.set_state("A", state)
    assert set(send(client, 4)) == {"B"}
    stage.set_state("A", BackendState.UP)
    assert set(send(client, 4)) == {"A", "B"}
    stage.finish()


@pytest.mark.parametrize("state", [BackendState.DOWN, BackendState.EJECTED, BackendState.UNPROVEN])
def test_when_all_are_down_they_are_tried_all_the_same(state: BackendState) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    stage.set_state("A", state)
    stage.set_state("B", state)
    stage.sites["A"].connects = "refuse"
    assert send(client, 2) == ["B", "B"]
    new = stage.client()
    if state is BackendState.DOWN:  # in Setup: nobody even listens there
        assert new.take_all() == ["421 4.3.2 Service not available, try again later"], "on to the next MX"
    else:
        assert send(new.hello(), 1) == ["B"], "new sessions are taken, too"
    stage.finish()


def test_down_backends_share_the_clients_time() -> None:
    """The first silent one of two that are down may not use up the whole budget (design 4.14)."""
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    for name in "AB":
        stage.set_state(name, BackendState.DOWN)
    from tests.dataplane.mta import Fault

    stage.mtas["A"].faults.append(Fault("mail", "hang"))
    stage.mtas["B"].faults.append(Fault("mail", "hang", times=0))
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    stage.clock(136.0)
    assert client.take_all() == ["250 2.1.5 r@b.test ok at B"]
    stage.finish()


@pytest.mark.parametrize("state", [BackendState.DRAIN, BackendState.MAINT])
def test_what_the_operator_took_out_is_never_tried(state: BackendState) -> None:
    stage = FakeStage(Setup(pools={"p": "A B"}))
    client = stage.client().hello()
    stage.set_state("A", state)
    stage.set_state("B", state)
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")[1] == (
        "451 4.4.1 No mail server can take this now, try again later"
    )
    assert all(site.count == 0 for site in stage.sites.values())
    stage.finish()


# -- groups --------------------------------------------------------------------------------------------

EAST_WEST = {"east": "A B", "west": "D E"}


def group(east: int, west: int) -> Setup:
    return Setup(pools=EAST_WEST, groups={"site": (("east", east), ("west", west))}, target="site")


def test_active_active_by_share() -> None:
    stage = FakeStage(group(60, 40))
    took = Counter(send(stage.client().hello(), 100))
    assert took == {"A": 30, "B": 30, "D": 20, "E": 20}
    stage.finish()


def test_active_passive_and_back_within_one_session() -> None:
    stage = FakeStage(group(100, 0))
    client = stage.client().hello()
    assert set(send(client, 4)) == {"A", "B"}
    stage.setup.groups["site"] = (("east", 0), ("west", 100))
    stage.apply()
    assert set(send(client, 4)) == {"D", "E"}
    stage.setup.groups["site"] = (("east", 100), ("west", 0))
    stage.apply()
    assert set(send(client, 4)) == {"A", "B"}
    stage.finish()


def test_a_transaction_that_fails_in_one_pool_goes_to_the_other() -> None:
    """At once, before the control plane has moved the share."""
    stage = FakeStage(group(100, 0))
    client = stage.client().hello()
    stage.sites["A"].connects = stage.sites["B"].connects = "refuse"
    assert set(send(client, 4)) == {"D", "E"}
    stage.finish()


def test_shares_of_pools_with_nothing_usable_go_to_the_others() -> None:
    stage = FakeStage(group(50, 50))
    client = stage.client().hello()
    stage.set_state("D", BackendState.DOWN)
    stage.set_state("E", BackendState.DOWN)
    assert Counter(send(client, 10)) == {"A": 5, "B": 5}
    stage.finish()


def test_last_resort_of_a_group_is_asked_only_when_no_pool_has_anything() -> None:
    stage = FakeStage(group(100, 0))
    client = stage.client().hello()
    for name in "ABDE":
        stage.set_state(name, BackendState.DOWN)
    assert set(send(client, 4)) <= {"A", "B", "D", "E"}
    stage.set_state("E", BackendState.UP)
    assert set(send(client, 4)) == {"E"}
    stage.finish()
