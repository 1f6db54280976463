"""Sendmail gets the parameters of DSN as the client wrote them."""

from __future__ import annotations

import asyncio

from tests.e2e.balancer import Smtplb, pool
from tests.e2e.client import session
from tests.e2e.conftest import Begin
from tests.lab import Sendmail
from tests.lab.fixtures import Lab

MAIL = "MAIL FROM:<a@a.test> RET=HDRS ENVID=QQ314159+2Bx"
RCPTS = [
    "RCPT TO:<b@b.test> NOTIFY=SUCCESS,DELAY,FAILURE ORCPT=rfc822;Bert+2Bx@Example.org",
    "RCPT TO:<c@b.test> NOTIFY=NEVER",
    "RCPT TO:<d@b.test> ORCPT=rfc822;dora@example.org NOTIFY=FAILURE",
    "RCPT TO:<e@b.test>",
]


async def test_dsn_parameters_arrive_as_they_were_written(lab: Lab, begin: Begin) -> None:
    server = await asyncio.to_thread(lab.start, Sendmail(transcript=True))
    balancer = await asyncio.to_thread(begin, Smtplb({"relays": pool(server, mta="sendmail")}))
    await asyncio.to_thread(balancer.wait_state, "sendmail", "up")
    async with session(balancer.port) as client:
        assert "250-DSN" in await client.say("EHLO client.test")
        replies = await client.ask(MAIL, *RCPTS, "DATA")
        assert [reply[:3] for reply in replies] == ["250"] * 5 + ["354"]
        assert (await client.say("Message-ID: <dsn@client.test>\r\n\r\nhello\r\n.")).startswith("250")
        assert (await client.quit()).startswith("221")
    await asyncio.to_thread(server.wait_message_ids, ["<dsn@client.test>"])

    heard = [line.partition("<<< ")[2] for line in server.transcript_text().splitlines() if "<<< " in line]
    (mail,) = (line for line in heard if line.startswith("MAIL "))
    assert set(MAIL.split()) <= set(mail.split()), mail
    assert [line for line in heard if line.startswith("RCPT ")] == RCPTS

    (path,) = (server.directory / "queue").glob("qf*")
    lines = path.read_text(encoding="latin-1").splitlines()  # macros are octets above 127
    assert "ZQQ314159+2Bx" in lines  # ENVID
    (flags,) = (line[1:] for line in lines if line.startswith("F"))
    assert "n" in flags  # RET=HDRS: no body in a notification
    assert "Qrfc822;Bert+2Bx@Example.org" in lines
    assert "Qrfc822;dora@example.org" in lines
    kept = {
        line.rpartition(":")[2].strip("<>"): line[1:].partition(":")[0] for line in lines if line[:1] == "R"
    }
    notify = {address[0]: set(flags) & set("SFD") for address, flags in kept.items()}
    assert {"S", "F", "D"} <= notify["b"]
    assert notify["c"] == set()
    assert notify["d"] == {"F"}
