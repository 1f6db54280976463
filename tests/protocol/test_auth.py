"""AUTH relayed to a backend: the exchange passes as it is, succeeds once, and binds the session (design 4.2)."""

from __future__ import annotations

from typing import Any

import pytest

from smtplb.settings import AuthMode, FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates
from tests.protocol.client import Client, settle
from tests.protocol.mta import OFFERS, Mta
from tests.protocol.stage import Stage, pool
from tests.protocol.wire import until

MECHANISMS = "AUTH PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256"
CHALLENGES = {
    "PLAIN": [""],
    "LOGIN": ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"],
    "CRAM-MD5": ["PDEyMzQ1QGEudGVzdD4="],
    "SCRAM-SHA-256": ["", "cj1hYmM=", "dj1kZWY="],
}
SECRET = "AHVzZXIAc2VjcmV0"


def submission(name: str = "a", offer: str = MECHANISMS, **says: Any) -> Mta:
    mta = Mta(name, *OFFERS, offer, says=says)
    mta.challenges = CHALLENGES
    return mta


def auth_stage(*mtas: Mta, tls: bool = False, **options: Any) -> Stage:
    """Without TLS, as on loopback; `tls`: only with it."""
    listener: dict[str, Any] = {"auth": AuthMode.RELAY, "auth_without_tls": not tls, **options}
    if tls:
        listener["tls"] = FrontTlsSettings(FrontTlsMode.STARTTLS, (certificates.pair("mx.test"),))
    return Stage(pool(*mtas), listener=listener)


async def login(client: Client) -> None:
    assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("235")


async def test_it_is_offered_and_taken_under_tls_only() -> None:
    a = submission()
    async with auth_stage(a, tls=True) as stage:
        client = await stage.client()
        assert "AUTH" not in await client.keywords()
        assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("538 5.7.11")
        await client.starttls(certificates.client(), "mx.test")
        assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("503"), "EHLO comes first"
        assert (await client.keywords())["AUTH"] == MECHANISMS.removeprefix("AUTH ")
        await login(client)
        assert a.auth_lines == [SECRET]
        assert "AUTH" not in await client.keywords(), "RFC 4954 4: no second one"
        assert (await client.message()).startswith("250")


EXCHANGES = {
    "PLAIN with initial response": ("AUTH PLAIN AGEAYg==", [], ["AGEAYg=="]),
    "PLAIN without": ("AUTH PLAIN", ["AGEAYg=="], ["AGEAYg=="]),
    "an empty initial response": ("AUTH PLAIN =", [], ["="]),
    "LOGIN": ("AUTH LOGIN", ["dXNlcg==", "c2VjcmV0"], ["dXNlcg==", "c2VjcmV0"]),
    "an empty response": ("AUTH LOGIN", ["dXNlcg==", ""], ["dXNlcg==", ""]),
    "CRAM": ("auth cram-md5", ["dGltIGI5"], ["dGltIGI5"]),
    "SCRAM": ("AUTH SCRAM-SHA-256 biwsbj0=", ["Yz1iaXdz", ""], ["biwsbj0=", "Yz1iaXdz", ""]),
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
async def test_an_exchange_passes_word_for_word(exchange: tuple[str, list[str], list[str]]) -> None:
    first, responses, heard = exchange
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        answer = await client.ask(first)
        challenges = []
        for response in responses:
            assert answer.startswith("334 ")
            challenges.append(answer[4:])
            answer = await client.ask(response)
        assert answer.startswith("235")
        assert a.auth_lines == heard
        mechanism = first.split()[1].upper()
        assert challenges == CHALLENGES[mechanism][-len(challenges) or 9 :]
        assert (await client.message()).startswith("250")
        assert [t.session.login for t in a.taken] == [heard], "on the connection that was authenticated"


async def test_an_exchange_can_be_cancelled_and_begun_anew() -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        assert (await client.ask("*")).startswith("501 5.7.0")
        await login(client)


@pytest.mark.parametrize("reply", ["535 5.7.8 no", "454 4.7.0 later", "534 5.7.9 too weak"])
async def test_a_refusal_is_relayed_and_may_be_tried_again(reply: str) -> None:
    a = submission(AUTH=[reply])
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert await client.ask(f"AUTH PLAIN {SECRET}") == reply
        await login(client)
        assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("503")
        assert not stage.blamed


@pytest.mark.parametrize("reply", ["421 4.3.2 busy", "!abort", "!close", "250 what", "354 what"])
async def test_a_backend_that_does_not_answer_it_is_454(reply: str) -> None:
    a = submission(AUTH=[reply])
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("454 4.7.0")
        await login(client)


async def test_a_backend_lost_during_a_challenge_is_454() -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        a.sessions[0].reset()
        await until(lambda: stage.backend("a").connections == 0, "the loss is seen")
        assert (await client.ask("dXNlcg==")).startswith("454")
        await login(client)


async def test_a_success_that_nobody_asked_for_is_none() -> None:
    a = submission(CHALLENGE=["!silent"])
    async with auth_stage(a) as stage:
        client = await stage.client()
        client.send(b"AUTH LOGIN\r\n")
        await until(lambda: a.lines[-1:] == ["AUTH LOGIN"])
        a.sessions[0].send(b"334 VXNlcm5hbWU6\r\n235 2.7.0 welcome\r\n")
        assert (await client.reply()).startswith("334")
        assert (await client.ask("dXNlcg==")).startswith("454")
        assert "AUTH" in await client.keywords()
        assert stage.listener.sessions.copy().pop().binding.pinned is None


async def test_unknown_mechanisms_are_504() -> None:
    a, b = submission(), submission("b", "AUTH LOGIN GSSAPI EXTERNAL SCRAM-SHA-256-PLUS PLAIN")
    b.challenges = CHALLENGES
    a.offers = (*OFFERS, MECHANISMS + " EXTERNAL SCRAM-SHA-256-PLUS")
    async with auth_stage(a, b) as stage:
        client = await stage.client()
        assert (await client.keywords())["AUTH"].split() == ["PLAIN", "LOGIN"]
        for mechanism in ("GSSAPI", "CRAM-MD5", "EXTERNAL", "SCRAM-SHA-256-PLUS", "X"):
            assert (await client.ask(f"AUTH {mechanism}")).startswith("504 5.5.4")
        await login(client)


async def test_while_a_backend_is_unknown_nothing_is_offered() -> None:
    a = submission()
    stage = auth_stage(a)
    stage.offers["a"] = None
    async with stage:
        client = await stage.client()
        assert "AUTH" not in await client.keywords()
        assert (await client.ask("AUTH PLAIN")).startswith("504")


@pytest.mark.parametrize(
    "line", ["AUTH PLAIN a b", "AUTH PLAIN @@", "AUTH PLAIN *", "AUTH P!AIN", "AUTH PLAIN =abc"]
)
async def test_malformed_data_is_501(line: str) -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask(line)).startswith("501 5.5.2")
        assert not a.lines
        await login(client)


@pytest.mark.parametrize("line", ["dXNlcg== x", "QUIT\t", "\0", "\xff", "a=b", "===", "RSET "])
async def test_a_malformed_response_ends_the_exchange(line: str) -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        assert (await client.ask(line)).startswith("501 5.5.2")
        await login(client)
        assert a.auth_lines == [SECRET], "nothing of it, and nothing of ours, was taken for a response"


async def test_a_line_may_have_12288_octets_and_no_more() -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        long = "A" * 12288
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        assert (await client.ask(long)).startswith("334")
        assert (await client.ask(long)).startswith("235")
        assert a.auth_lines == [long, long]

        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        assert (await client.ask(long + "A")).startswith("500 5.5.6"), "RFC 4954 4"
        assert (await client.ask("NOOP")).startswith("250"), "the exchange is over"
        first = "AUTH PLAIN " + "A" * (12288 - 11)
        assert (await client.ask(first)).startswith("235")


async def test_a_challenge_may_be_as_long_as_a_response() -> None:
    """RFC 4954 4: 12,288 octets in either direction (GSSAPI, NTLM)."""
    a = submission()
    long = "A" * 12288
    a.answer = lambda session, line: f"334 {long}" if line.startswith("AUTH LOGIN") else None
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert await client.ask("AUTH LOGIN") == f"334 {long}"


async def test_an_endless_line_ends_the_exchange() -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        client.send(b"A" * 300_000 + b"\r\n")
        assert (await client.reply()).startswith("500 5.5.6")
        assert (await client.ask("NOOP")).startswith("250")


async def test_a_client_that_leaves_in_an_exchange_says_nothing_to_the_backend() -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        client.reset()
        await until(lambda: not stage.listener.sessions and not a.open, "it is given up")
        assert a.auth_lines == [], "a QUIT would be taken for a response"


# -- afterwards ------------------------------------------------------------------------------------------


async def test_all_mail_of_the_session_goes_to_the_backend_that_knows_it() -> None:
    mtas = [submission(name) for name in "abc"]
    async with auth_stage(*mtas) as stage:
        client = await stage.client()
        await login(client)
        for _ in range(5):
            assert (await client.message()).startswith("250")
        assert [len(mta.taken) for mta in mtas] == [5, 0, 0]
        assert len(mtas[0].sessions) == 1
        other = await stage.client()
        assert (await other.message()).startswith("250")
        assert all(t.session.login == [] for mta in mtas[1:] for t in mta.taken)
        await client.leave()
        await until(lambda: not mtas[0].open, "it ends with the session")
        assert mtas[0].lines[-1] == "QUIT"


@pytest.mark.parametrize("offers", [OFFERS, OFFERS[1:]], ids=["PIPELINING", "without"])
async def test_rset_and_mail_at_once_keep_the_session(offers: tuple[str, ...]) -> None:
    """The RSET for the backend is still under way when the next MAIL comes."""
    a = submission()
    a.offers = (*offers, MECHANISMS)
    async with auth_stage(a) as stage:
        client = await stage.client()
        await login(client)
        for _ in range(3):
            await client.envelope()
            client.send(b"RSET\r\nMAIL FROM:<t@a.test>\r\nRCPT TO:<r@b.test>\r\n")
            assert [r[:3] for r in await client.replies(3)] == ["250"] * 3
            assert (await client.ask("RSET")).startswith("250")
            assert (await client.message()).startswith("250")
        assert len(a.sessions) == 1
        assert [t.session.login for t in a.taken] == [[SECRET]] * 3


async def test_a_lost_backend_is_451_for_the_transaction_then_421() -> None:
    a, b = submission(), submission("b")
    async with auth_stage(a, b) as stage:
        client = await stage.client()
        await login(client)
        await client.envelope()
        a.sessions[0].reset()
        await until(lambda: stage.failures, "the loss is seen")
        assert (await client.ask("DATA")).startswith("451")
        assert (await client.reply()).startswith("421 4.4.2")
        await client.nothing_more()
        assert not b.sessions, "nobody else knows the client"
        assert not stage.blamed


async def test_a_backend_lost_between_transactions_is_421_at_the_next() -> None:
    a, b = submission(), submission("b")
    async with auth_stage(a, b) as stage:
        client = await stage.client()
        await login(client)
        assert (await client.message()).startswith("250")
        a.sessions[0].close()
        await until(lambda: stage.backend("a").connections == 0, "the loss is seen")
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("421 4.4.2")
        await client.nothing_more()
        assert not b.sessions


@pytest.mark.parametrize("reply", ["530 5.7.0 no", "503 5.5.1 no", "421 4.3.2 busy"])
async def test_what_is_about_us_is_not_relayed_after_it_either(reply: str) -> None:
    a = submission(MAIL=[reply])
    async with auth_stage(a) as stage:
        client = await stage.client()
        await login(client)
        assert (await client.envelope())[1].startswith("451")


async def test_a_kept_authenticated_connection_outlives_idle_time_and_age() -> None:
    a = submission()
    async with auth_stage(a, limits={"idle_timeout_s": 90_000.0}) as stage:
        client = await stage.client()
        await login(client)
        stage.pass_time(80_000.0)
        assert (await client.message()).startswith("250")
        assert len(a.sessions) == 1


async def test_failed_attempts_count_as_errors() -> None:
    a = submission(AUTH="535 5.7.8 no")
    async with auth_stage(a, limits={"errors": 3}) as stage:
        client = await stage.client()
        for _ in range(2):
            assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("535")
        client.send(f"AUTH PLAIN {SECRET}\r\n".encode())
        assert (await client.reply()).startswith("535")
        assert (await client.reply()).startswith("421 4.7.0")


async def test_a_dead_backend_is_passed_over_and_blamed() -> None:
    a, b = submission(), submission("b")
    async with auth_stage(a, b) as stage:
        a.stop()
        client = await stage.client()
        await login(client)
        assert stage.failures == ["a fault connect connect"]
        assert stage.blamed == ["a"]
        assert (await client.message()).startswith("250")
        assert len(b.taken) == 1


async def test_a_hanging_backend_gives_way_to_another() -> None:
    a, b = submission(CONNECT="!hang"), submission("b")
    async with auth_stage(a, b) as stage:
        client = await stage.client()
        client.send(f"AUTH PLAIN {SECRET}\r\n".encode())
        await until(lambda: a.sessions)
        await settle()
        stage.pass_time(31.0)
        assert (await client.reply()).startswith("235")


async def test_it_must_not_come_inside_a_transaction() -> None:
    a = submission()
    async with auth_stage(a) as stage:
        client = await stage.client()
        await client.ask("MAIL FROM:<s@a.test>")
        assert (await client.ask(f"AUTH PLAIN {SECRET}")).startswith("503")


async def test_no_payload_reaches_an_event() -> None:
    a = submission(AUTH=["535 5.7.8 no", "!abort"])
    async with auth_stage(a) as stage:
        client = await stage.client()
        for line in (
            "AUTH PLAIN c2VjcmV0MQ==",
            "AUTH PLAIN c2VjcmV0Mg==",
            "AUTH LOGIN",
            "c2VjcmV0Mw==",
            "c2VjcmV0 NA==",
        ):
            await client.ask(line)
        await client.ask(f"AUTH PLAIN {SECRET}")
        await client.message()
        await client.leave()
        await until(lambda: not stage.listener.sessions)
        told = repr(stage.messages)
        assert "c2VjcmV0" not in told
        assert SECRET not in told
