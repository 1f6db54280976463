"""No open relay by accident, in front of a Postfix that relays for everybody on this host."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.balancer import Smtplb, call, pool
from tests.e2e.client import new_message_id, session, until
from tests.e2e.conftest import Begin
from tests.lab import LabError, Postfix, is_listening
from tests.lab.fixtures import Lab

OWN, FOREIGN = "own.test", "foreign.test"

FOREIGN_RECIPIENTS = [
    f"someone@{FOREIGN}",
    f"someone@sub.{OWN}",  # another domain; .own.test would be the subdomains
    f"someone@{OWN}.{FOREIGN}",
    f"someone@{FOREIGN}.{OWN}",
    # a local part that names the next station: Postfix goes there for those it trusts
    f"someone%{FOREIGN}@{OWN}",
    f"{FOREIGN}!someone@{OWN}",
    f"someone@{FOREIGN}@{OWN}",
    f'"someone@{FOREIGN}"@{OWN}',
    f'"someone%{FOREIGN}"@{OWN}',
    f'"{FOREIGN}!someone"@{OWN}',
    f"@{OWN}:someone@{FOREIGN}",
]


@pytest.fixture
def trusting(lab: Lab) -> Postfix:
    """mynetworks = 127.0.0.0/8, as many a Postfix behind a balancer has its balancer in there."""
    return lab.start(Postfix())


def test_a_public_listener_without_accept_is_refused_by_validate_and_by_run(trusting: Postfix) -> None:
    balancer = Smtplb({"relays": pool(trusting)})
    public = Smtplb({"relays": pool(trusting)}, listener={"bind": f"0.0.0.0:{balancer.port}"})
    try:
        with pytest.raises(LabError, match=r"listeners\.mx\.accept: missing") as failed:
            public.start()
        assert "ended at once with 1: " in str(failed.value)
        assert not is_listening(balancer.port)
        assert not is_listening(public.admin_port)
        validated = call("validate", str(public.file))
        assert (validated.returncode, validated.stdout) == (1, "")
        assert f"{public.file}:" in validated.stderr
        assert "listeners.mx.accept: missing" in validated.stderr
        assert "accept: [{recipient_domain: [example.org]}" in validated.stderr
    finally:
        public.close()


async def test_with_accept_a_foreign_recipient_is_refused_by_us_and_the_trusting_postfix_hears_of_none(
    begin: Begin, trusting: Postfix
) -> None:
    guarded = Smtplb({"relays": pool(trusting)}, listener={"accept": [{"recipient_domain": [OWN]}]})
    balancer = await asyncio.to_thread(begin, guarded)
    for recipient in FOREIGN_RECIPIENTS:
        async with session(balancer.port) as client:
            assert (await client.say("MAIL FROM:<a@a.test>")).startswith("250")
            reply = await client.say(f"RCPT TO:<{recipient}>")
            malformed = recipient.count("@") > 1 and '"' not in recipient  # refused either way
            assert reply.startswith(("550 5.7.1 ", "501 5.1.3 ") if malformed else "550 5.7.1 "), (
                recipient,
                reply,
            )
            assert (await client.say("DATA")).startswith(("503", "554"))
            assert (await client.say("RSET")).startswith("250")
    # Beside an own recipient a foreign one is refused, too; the message goes to the own one alone.
    message_id = new_message_id()
    async with session(balancer.port) as client:
        assert (await client.say("MAIL FROM:<a@a.test>")).startswith("250")
        assert (await client.say(f"RCPT TO:<user@{OWN}>")).startswith("250")
        assert (await client.say(f"RCPT TO:<someone@{FOREIGN}>")).startswith("550 5.7.1 ")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(f"Message-ID: {message_id}\r\n\r\nhello\r\n.")).startswith("250")
        assert (await client.quit()).startswith("221")
    await until(lambda: bool(trusting.delivered()), "the message is delivered")
    (message,) = trusting.messages().values()
    assert message.message_id == message_id
    assert [recipient for recipient, _, _ in message.deliveries] == [f"user@{OWN}"]
    assert trusting.log_lines(FOREIGN) == []


async def test_the_same_postfix_relays_for_whoever_reaches_it_past_the_guard(
    begin: Begin, trusting: Postfix
) -> None:
    """What the guard is for: without it, on loopback, where it may be left out, everything goes out."""
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(trusting)}))
    async with session(balancer.port) as client:
        for recipient in (f"someone@{FOREIGN}", f"someone%{FOREIGN}@{OWN}"):
            assert (await client.send(recipient=recipient)).startswith("250")
