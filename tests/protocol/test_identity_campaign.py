"""A crowd through pools of every identity at once: no backend ever sees one client's identity on another's message."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import ip_network
from random import Random

import pytest

from smtplb.settings import Condition, Domains, IdentityMode, RouteSettings, Rule
from smtplb.smtp.proxy_header import ProxyHeader, read_header
from tests.effort import examples, seeds
from tests.protocol.client import Client
from tests.protocol.mta import OFFERS, Mta, Taken
from tests.protocol.stage import Stage, pool

CLIENTS = 100
FRONTS = 20  # of these, so many say XCLIENT, and speak for one client after the other
MODES = [IdentityMode.NONE, IdentityMode.XFORWARD, IdentityMode.XCLIENT, IdentityMode.PROXY_V2]
OFFER = {
    IdentityMode.XFORWARD: ("XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE",),
    IdentityMode.XCLIENT: ("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT",),
}


class Person:
    """One client of the crowd; `address` and `name` are what backends must hear with each of its messages."""

    def __init__(self, stage: Stage, number: int, random: Random) -> None:
        self.stage = stage
        self.random = random
        self.front = number < FRONTS
        self.source = f"127.{9 if self.front else 1}.0.{number + 1}"
        self.address, self.name = self.source, f"h{number}.test"
        self.serial = 0
        self.number = number
        self.sent: dict[str, tuple[str, str]] = {}  # sender -> (address, name)
        self.taken = 0
        self.client: Client | None = None

    async def live(self, transactions: int) -> None:
        for _ in range(transactions):
            if self.client is None or self.client.over:
                self.client = await self.stage.client(self.name, self.source)
                self.address = self.source
                if self.front:
                    await self.speak_for_another(self.client)
            await self.act(self.client)
        if self.client is not None and not self.client.over:
            await self.client.leave()

    async def speak_for_another(self, client: Client) -> None:
        self.serial += 1
        self.address, self.name = (
            f"198.51.{self.number}.{self.serial % 256}",
            f"f{self.number}-{self.serial}.test",
        )
        assert (await client.ask(f"XCLIENT ADDR={self.address} PORT=1 HELO={self.name}")).startswith("220")
        assert (await client.ask(f"EHLO {self.name}")).startswith("250")

    async def act(self, client: Client) -> None:
        chance = self.random.random()
        self.serial += 1
        sender = f"s{self.number}-{self.serial}@a.test"
        self.sent[sender] = self.address, self.name
        mode = self.random.choice(MODES)
        replies = await client.envelope(f"<r@{mode.value}.test>", mail=f"<{sender}>")
        if chance < 0.05:
            assert (await client.ask("RSET")).startswith("250")
        elif chance < 0.07 or not replies[1].startswith("250"):
            client.reset()
            client.over = "left"
        elif (await client.data(sender.encode() + b"\r\n")).startswith("250"):
            self.taken += 1
        if self.front and chance > 0.9 and not client.over:
            await self.speak_for_another(client)


def told(taken: Taken, mode: IdentityMode) -> tuple[str, str]:
    """(address, name) as the backend heard them."""
    if mode is IdentityMode.XCLIENT:
        assert taken.xclient["HELO"] == taken.ehlo
        return taken.xclient["ADDR"], taken.ehlo
    if mode is IdentityMode.XFORWARD:
        return taken.xforward["ADDR"], taken.xforward["HELO"]
    header = read_header(taken.proxy)
    assert isinstance(header, ProxyHeader)
    return str(header.source), taken.ehlo


@pytest.mark.campaign
@pytest.mark.parametrize("seed", seeds(1))
async def test_nobodys_message_carries_anothers_identity(seed: int) -> None:
    random = Random(seed)
    pools = {}
    for mode in MODES:
        mtas = [
            Mta(f"{mode.value}-{n}", *OFFERS, *OFFER.get(mode, ()), proxy=mode is IdentityMode.PROXY_V2)
            for n in range(2)
        ]
        for mta in mtas:  # some trouble, so that transactions move about
            mta.says["MAIL"] = ["421 4.3.2 busy" if random.random() < 0.01 else "" for _ in range(20_000)]
            mta.says["FINAL"] = ["!abort" if random.random() < 0.01 else "" for _ in range(20_000)]
        pools[mode] = pool(
            *mtas, name=mode.value, identity=mode, max_connections=40, queue={"timeout_s": 60.0}
        )
    rules = [
        Rule(Condition(recipient_domain=Domains(frozenset({f"{mode.value}.test"}))), target=mode.value)
        for mode in MODES
    ]
    route = RouteSettings("in", (*rules, Rule(None, target="none")))
    listener = {"target": "in", "xclient_from": (ip_network("127.9.0.0/16"),)}
    stage = Stage(*pools.values(), listener=listener, routes=(route,))
    async with stage:
        people = [Person(stage, number, random) for number in range(CLIENTS)]
        transactions = max(examples(10_000) // CLIENTS, 5)
        await asyncio.gather(*(person.live(transactions) for person in people))
        sent = {sender: who for person in people for sender, who in person.sent.items()}
        count: Counter[IdentityMode] = Counter()
        for mode, each in pools.items():
            for mta in each.mtas:
                assert mta.most_open <= 40
                for taken in mta.taken:
                    count[mode] += 1
                    assert taken.content == taken.sender.encode() + b"\r\n"
                    if mode is not IdentityMode.NONE:
                        assert told(taken, mode) == sent[taken.sender], (mode, taken.sender)
        assert set(count) == set(MODES)
        assert sum(count.values()) == sum(person.taken for person in people)
