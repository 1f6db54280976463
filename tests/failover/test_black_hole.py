"""A backend that refuses nearly everyone while the others do not: told, and taken out only where the operator wants it."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.cli.embedded import Fault, Verb
from smtplb.policy.black_hole import LEAST_CLIENTS, LEAST_RECIPIENTS, WINDOW_S, BlackHoles
from smtplb.policy.limits import ClientKey, client_key
from tests.e2e.balancer import Smtplb
from tests.e2e.client import Client, until
from tests.e2e.conftest import Begin, Embed
from tests.failover.test_taken_out import source, start

EVERYONE: list[ClientKey | None] = [client_key(ip_address(f"192.0.2.{host}")) for host in range(1, 30)]


class Pool(BlackHoles):
    def __init__(self, *names: str) -> None:
        super().__init__(list(names or ("A", "B", "D")), 0.0)

    def see(
        self, backend: str, taken: int, refused: int, clients: list[ClientKey | None], now: float = 0.0
    ) -> dict[str, str]:
        self.answered(backend, taken, refused, clients, now)
        return self.found()


def test_it_is_told_once_until_it_does_better() -> None:
    pool = Pool()
    assert pool.see("A", 2, 48, EVERYONE) == {}, "nobody to compare with yet"
    assert pool.see("B", 60, 10, EVERYONE) == {"A": "48 of 50 recipients refused while others take them"}
    assert pool.see("A", 0, 10, EVERYONE) == {}
    assert pool.see("A", 50, 0, []) == {}
    assert pool.see("A", 0, 1000, EVERYONE) == {"A": "1058 of 1110 recipients refused while others take them"}
    pool.start_over("A")
    assert pool.see("A", 0, 49, EVERYONE) == {}
    assert list(pool.see("A", 0, 1, [])) == ["A"]


def test_clients_add_up_however_they_come() -> None:
    pool = Pool()
    pool.see("B", 60, 10, EVERYONE)
    told = [pool.see("A", 0, 10, [EVERYONE[0], EVERYONE[number]]) for number in range(LEAST_CLIENTS)]
    assert [bool(words) for words in told] == [False] * 9 + [True]


@pytest.mark.parametrize(
    ("why", "names", "taken", "refused", "clients", "others"),
    [
        ("too few recipients", "AB", 0, LEAST_RECIPIENTS - 1, 29, (60, 10)),
        ("too few clients", "AB", 0, 1000, LEAST_CLIENTS - 1, (60, 10)),
        ("nine of ten are not more than 90 %", "AB", 5, 45, 29, (60, 10)),
        ("the others refuse as well", "AB", 0, 1000, 29, (70, 30)),
        ("the others have seen too few", "AB", 0, 1000, 29, (LEAST_RECIPIENTS - 1, 0)),
        ("nobody to compare with", "A", 0, 1000, 29, None),
    ],
)
def test_nothing_is_said_if(
    why: str, names: str, taken: int, refused: int, clients: int, others: tuple[int, int] | None
) -> None:
    pool = Pool(*names)
    if others is not None:
        pool.answered("B", *others, EVERYONE, 0.0)
    assert pool.see("A", taken, refused, EVERYONE[:clients]) == {}


def test_old_recipients_do_not_count() -> None:
    pool = Pool()
    pool.see("B", 60, 10, EVERYONE)
    pool.see("A", 0, LEAST_RECIPIENTS - 1, EVERYONE)
    later = 2 * WINDOW_S + 1.0
    pool.see("B", 60, 10, EVERYONE, later)
    assert pool.see("A", 0, 1, EVERYONE, later) == {}
    assert list(pool.see("A", 0, LEAST_RECIPIENTS - 1, EVERYONE, later)) == ["A"]


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 40), st.integers(0, 40), st.booleans())))
def test_nine_clients_never_make_a_black_hole(steps: list[tuple[str, int, int, bool]]) -> None:
    pool = Pool("A", "B")
    now = 0.0
    for name, taken, refused, waits in steps:
        now += 200.0 if waits else 1.0
        assert pool.see(name, taken, refused, EVERYONE[: LEAST_CLIENTS - 1], now) == {}


# -- the whole program


async def clients_come(balancer: Smtplb, sessions: int) -> int:
    """Of each 4 recipients; how many were refused."""
    refused = 0
    for number in range(sessions):
        client = Client(
            *await asyncio.open_connection("127.0.0.1", balancer.port, local_addr=(source(number % 15), 0))
        )
        try:
            assert (await client.reply()).startswith("220")
            assert (await client.say("EHLO client.test")).startswith("250")
            assert (await client.say("MAIL FROM:<a@a.test>")).startswith("250")
            for recipient in range(4):
                refused += (await client.say(f"RCPT TO:<r{recipient}@b.test>")).startswith("550")
            assert (await client.quit()).startswith("221")
        finally:
            client.close()
    return refused


@pytest.mark.parametrize("ejects", [False, True])
async def test_a_black_hole_is_told_and_taken_out_only_on_request(
    begin: Begin, embed: Embed, ejects: bool
) -> None:
    hole, well = await embed("hole", {Verb.RCPT: Fault("550 5.1.1 unknown")}), await embed("well")
    balancer = await start(begin, [hole, well], eject={"refusals": ejects, "for": "1m"})
    assert await clients_come(balancer, 60) > 0
    await until(lambda: bool(balancer.records("black-hole")), "the black hole is told", 10.0)
    (told,) = balancer.records("black-hole")
    assert told["log.level"] == "warning"
    assert told["message"].startswith("relays/hole: ")
    assert told["smtplb.notice.backend"] == "hole"
    states = await asyncio.to_thread(balancer.states)
    assert states == {"hole": "ejected" if ejects else "up", "well": "up"}
    if ejects:
        assert await clients_come(balancer, 4) == 0
        out = (await asyncio.to_thread(balancer.backends))["hole"]
        assert "recipients refused while others take them" in out["reason"]
