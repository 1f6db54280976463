"""What backends say about the mail is passed on in their own words, and never counts against them."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest

from smtplb.cli.embedded import Fault, Verb
from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import session
from tests.e2e.conftest import Begin, Embed
from tests.lab import Postfix
from tests.lab.fixtures import Lab

BACKENDS = 3
ROUNDS = 5  # per kind of answer, each in a session of its own: more than fall, rise or any count of errors
CODES = ("450", "451", "452")
ENHANCED = ("", "4.1.8 ", "4.2.2 ", "4.3.0 ", "4.3.1 ", "4.3.2 ", "4.4.1 ", "4.4.3 ", "4.5.3 ", "4.7.1 ")
PLACES = (Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.FINAL)

DEBUG_LOG = {"log": {"format": "ecs", "level": "debug", "destination": "./smtplb.log"}}


def assert_nobody_was_blamed(balancer: Smtplb) -> None:
    """Checks brought each backend up; nothing else ever happened to any of them."""
    assert set(balancer.states().values()) == {"up"}
    changes = [
        (record["smtplb.state.old"], record["smtplb.state.new"])
        for record in balancer.records("backend-changed")
    ]
    assert changes == [("unproven", "up")] * len(balancer.states())
    assert balancer.records("backend-blamed") == []
    assert not any(record["smtplb.blamed"] for record in balancer.records("attempt-failed"))


@pytest.mark.parametrize("place", PLACES)
async def test_a_tempfail_of_every_backend_is_passed_on_in_its_words_and_ejects_nothing(
    begin: Begin, embed: Embed, place: Verb
) -> None:
    backends = [await embed(f"mx{number}") for number in range(1, BACKENDS + 1)]
    entries = [{"name": backend.name, "address": backend.address} for backend in backends]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*entries)}, sections=DEBUG_LOG))
    told = 0
    for code, enhanced in product(CODES, ENHANCED):
        for backend in backends:
            backend.faults[place] = Fault(f"{code} {enhanced}no luck at {backend.name}")
        for round_ in range(ROUNDS):
            async with session(balancer.port) as client:
                # A sender of its own: the next try of a message goes to where it was told to come again.
                reply = await client.send(sender=f"s{told}@a.test", pipelined=round_ % 2 == 1)
                assert reply[:4] == f"{code} "
                assert reply[4:].startswith(enhanced)
                words, _, name = reply.rpartition(" ")
                assert words.endswith("no luck at")
                assert name in {backend.name for backend in backends}
                assert (await client.say("RSET")).startswith("250")
                assert (await client.quit()).startswith("221")
            told += 1
    await asyncio.to_thread(assert_nobody_was_blamed, balancer)
    assert sum(backend.counts.messages for backend in backends) == 0
    # All are in use as before.
    for backend in backends:
        del backend.faults[place]
    async with session(balancer.port) as client:
        for _ in range(BACKENDS):
            assert (await client.send()).startswith("250")
    assert [backend.counts.messages for backend in backends] == [1] * BACKENDS
    FIGURES.info("%s: %d tempfails in the backends' words", place, told)


def access(verdicts: dict[str, str]) -> str:
    """A table inside main.cf: address -> what is done."""
    return "inline:{ " + ", ".join(f"{{ {key} = {action} }}" for key, action in verdicts.items()) + " }"


async def test_tempfails_of_two_postfix_are_passed_on_in_their_words_and_eject_nothing(
    lab: Lab, begin: Begin
) -> None:
    verdicts = {
        f"u{number}@x.test": f"{code} {enhanced}deferred by policy {number}"
        for number, (code, enhanced) in enumerate(
            product(CODES, ("", "4.2.1 ", "4.3.0 ", "4.3.1 ", "4.7.1 "))
        )
    }
    main_cf = {
        "smtpd_sender_restrictions": f"check_sender_access {access(verdicts)}",
        "smtpd_recipient_restrictions": f"check_recipient_access {access(verdicts)}, permit_mynetworks, reject",
        # of the body: by a sender that the other two tables do not know
        "smtpd_end_of_data_restrictions": "check_sender_access "
        + access({key.replace("u", "body"): action for key, action in verdicts.items()}),
    }
    servers = [await asyncio.to_thread(lab.start, Postfix(name, main_cf=main_cf)) for name in ("one", "two")]
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(*servers)}, sections=DEBUG_LOG))
    told = 0
    for address, words in verdicts.items():
        code, _, text = words.partition(" ")
        enhanced, text = text.split(" ", 1) if text[:2] == "4." else ("", text)
        of_body = address.replace("u", "body")
        async with session(balancer.port) as client:
            for sender, recipient in (
                (address, "b@b.test"),
                ("a@a.test", address),
                (of_body, "b@b.test"),
            ) * 2:
                reply = await client.send(sender=sender, recipient=recipient)
                assert reply.startswith(f"{code} {enhanced}")
                assert reply.endswith(f"rejected: {text}")  # Postfix puts address and stage before it
                assert (await client.say("RSET")).startswith("250")
                told += 1
            assert (await client.quit()).startswith("221")
    async with session(balancer.port) as client:
        assert (await client.send()).startswith("250")
        assert (await client.quit()).startswith("221")
    await asyncio.to_thread(assert_nobody_was_blamed, balancer)
    FIGURES.info("%d tempfails in the words of Postfix", told)
