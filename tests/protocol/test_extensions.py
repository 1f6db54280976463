"""What is offered in front follows what backends can; what passes, passes as it is; what must not pass never does."""

from __future__ import annotations

from typing import Any

import pytest

from smtplb.settings import AuthMode, BackTlsMode, BackTlsSettings, FrontTlsMode, FrontTlsSettings
from tests.protocol import certificates as certs
from tests.protocol.mta import FULL, OFFERS, Mta
from tests.protocol.stage import Stage, pool

ALWAYS = {"PIPELINING", "SIZE", "CHUNKING", "ENHANCEDSTATUSCODES"}
END_TO_END = ["8BITMIME", "SMTPUTF8", "DSN", "BINARYMIME"]

# protocol-facts: "must never be forwarded from a backend's EHLO"
NEVER = (
    """
XCLIENT NAME ADDR|XFORWARD NAME ADDR|STARTTLS|PIPE_CONNECT|PIPECONNECT|PRDR|XVERP|ETRN|TURN|ATRN|BURL imap|VRFY|EXPN|HELP
X-ANONYMOUSTLS|X-EXPS GSSAPI NTLM|XEXCH50|XRDST|XSHADOW|XSHADOWREQUEST|XPROXY|XPROXYFROM|XPROXYTO|XOORG|XADRC|XEXPROPS
XSESSIONMDBGUID|AUTH PLAIN|AUTH=LOGIN|LIMITS RCPTMAX=10|MT-PRIORITY|FUTURERELEASE 1 2|DELIVERBY|CONPERM|REQUIRETLS
""".strip()
    .replace("\n", "|")
    .split("|")
)


async def offered(stage: Stage) -> set[str]:
    client = await stage.client()
    return set(await client.keywords())


async def test_what_is_hop_by_hop_is_always_ours() -> None:
    async with Stage(pool(Mta("a", helo_only=True))) as stage:
        client = await stage.client()
        assert (await client.ask("EHLO x")).split("\n") == [
            "250-lb.test",
            "250-PIPELINING",
            "250-SIZE 52428800",
            "250-CHUNKING",
            "250 ENHANCEDSTATUSCODES",
        ]


@pytest.mark.parametrize("missing", END_TO_END)
async def test_what_says_what_is_in_a_message_is_offered_if_all_backends_have_it(missing: str) -> None:
    a, b = Mta("a", *FULL), Mta("b", *(offer for offer in FULL if offer != missing))
    async with Stage(pool(a)) as stage:
        assert await offered(stage) == ALWAYS | set(END_TO_END)
    async with Stage(pool(a, b)) as stage:
        without = {missing} | ({"SMTPUTF8"} if missing == "8BITMIME" else set())  # RFC 6531 3.1
        assert await offered(stage) == ALWAYS | set(END_TO_END) - without


async def test_a_backend_that_was_never_seen_has_nothing() -> None:
    a, b = Mta("a", *FULL), Mta("b", *FULL)
    stage = Stage(pool(a, b))
    stage.offers["b"] = None
    async with stage:
        assert await offered(stage) == ALWAYS
        stage.offers["b"] = b.keywords
        stage.apply()
        assert await offered(stage) == ALWAYS | set(END_TO_END), "the next snapshot knows"


async def test_keywords_that_must_never_pass_never_do() -> None:
    a = Mta("a", *FULL, *NEVER)
    async with Stage(pool(a)) as stage:
        assert await offered(stage) == ALWAYS | set(END_TO_END)
    async with Stage(pool(a), listener={"auth": AuthMode.RELAY}) as stage:
        assert await offered(stage) == ALWAYS | set(END_TO_END), "AUTH only under TLS"


@pytest.mark.parametrize(
    "verb", ["ETRN x", "TURN", "ATRN", "BURL x", "EXPN x", "XFORWARD ADDR=1.2.3.4", "SEND FROM:<x@a.test>"]
)
async def test_their_commands_are_not_taken_either(verb: str) -> None:
    a = Mta("a")
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        assert (await client.ask(verb)).startswith("502")
        for verb in ("XEXCH50 1 2", "X-EXPS GSSAPI", "XSHADOW", "XPROXYFROM x"):
            assert (await client.ask(verb)).startswith("500")
        assert not a.sessions


async def test_parameters_pass_as_they_were_written() -> None:
    a = Mta("a", *FULL)
    mail = "<s@a.test> BODY=8bitMIME RET=Hdrs ENVID=QQ314+2B159 SMTPUTF8"
    rcpt = "<r@b.test> NOTIFY=SUCCESS,delay ORCPT=rfc822;Bob+40Ivory.TEST"
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        await client.envelope(rcpt, mail=mail)
        assert (await client.data()).startswith("250")
        assert (a.taken[0].mail, a.taken[0].rcpts) == (f"FROM:{mail}", [f"TO:{rcpt}"])


async def test_7bit_and_size_are_dropped_where_they_mean_nothing() -> None:
    a = Mta("a", "PIPELINING")
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        assert (await client.ask("MAIL FROM:<s@a.test> BODY=7BIT")).startswith("555"), (
            "8BITMIME is not offered"
        )
        assert (await client.message(mail="<s@a.test> SIZE=100")).startswith("250")
        assert (await client.message(body=b"8-bit: \xe4\xff\r\n")).startswith("250"), (
            "untouched, whoever declares it"
        )
        assert [t.mail for t in a.taken] == ["FROM:<s@a.test>"] * 2
        assert a.taken[1].content == b"8-bit: \xe4\xff\r\n"


@pytest.mark.parametrize(
    "said",
    [
        "MAIL FROM:<s@a.test> RET=FULL",
        "MAIL FROM:<s@a.test> SMTPUTF8",
        "MAIL FROM:<s@a.test> BODY=8BITMIME",
        "MAIL FROM:<s@a.test> BODY=BINARYMIME",
        "MAIL FROM:<s@a.test> REQUIRETLS",
        "MAIL FROM:<s@a.test> AUTH=<>",
        "MAIL FROM:<s@a.test> XVERP",
        "MAIL FROM:<s@a.test> MT-PRIORITY=1",
    ],
)
async def test_what_was_not_offered_is_not_taken(said: str) -> None:
    async with Stage(pool(Mta("a", "PIPELINING"))) as stage:
        client = await stage.client()
        assert (await client.ask(said)).startswith("555 5.5.4")
        assert (await client.ask("MAIL FROM:<s@a.test>")).startswith("250")
        assert (await client.ask("RCPT TO:<r@b.test> NOTIFY=NEVER")).startswith("555 5.5.4")


async def test_an_address_beyond_ascii_needs_smtputf8() -> None:
    a = Mta("a", *FULL)
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        name = "pelé@a.test".encode()
        assert (await client.ask(b"MAIL FROM:<" + name + b">")).startswith("553 5.6.7")
        assert (await client.ask(b"MAIL FROM:<" + name + b"> SMTPUTF8")).startswith("250")
        assert (await client.ask(b"RCPT TO:<" + name + b">")).startswith("250")
        assert (await client.data()).startswith("250")
        assert a.taken[0].sender.encode("latin-1") == name


# -- eligibility -----------------------------------------------------------------------------------------

USES = {
    "SMTPUTF8": ("<s@a.test> SMTPUTF8", "<r@b.test>"),
    "8BITMIME": ("<s@a.test> BODY=8BITMIME", "<r@b.test>"),
    "BINARYMIME": ("<s@a.test> BODY=BINARYMIME", "<r@b.test>"),
    "RET": ("<s@a.test> RET=HDRS", "<r@b.test>"),
    "ENVID": ("<s@a.test> ENVID=x", "<r@b.test>"),
    "NOTIFY": ("<s@a.test>", "<r@b.test> NOTIFY=NEVER"),
    "ORCPT": ("<s@a.test>", "<r@b.test> ORCPT=rfc822;r@b.test"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_backend_that_turns_out_to_lack_what_is_used_is_passed_over(use: tuple[str, str]) -> None:
    """It was seen with all of it, and has less when the connection comes up."""
    mail, rcpt = use
    a, b, c = Mta("a", "PIPELINING"), Mta("b", *FULL), Mta("c", "PIPELINING")
    stage = Stage(pool(a, c, b))
    stage.offers = dict.fromkeys("abc", b.keywords)
    async with stage:
        client = await stage.client()
        for _ in range(3):
            assert (await client.envelope(rcpt, mail=mail))[1].startswith("250")
            assert (await client.bdat(b"x\r\n"))[0].startswith("250")
        assert [len(mta.taken) for mta in (a, b, c)] == [0, 3, 0]
        assert not any(line.startswith("MAIL") for line in a.lines + c.lines)
        assert not stage.failures
        assert not stage.blamed


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("known", [True, False])
async def test_with_nobody_left_that_has_it_the_client_comes_again(use: tuple[str, str], known: bool) -> None:
    mail, rcpt = use
    mtas = [Mta("a", "PIPELINING"), Mta("b", "PIPELINING")]
    stage = Stage(pool(*mtas))
    stage.offers = dict.fromkeys("ab", Mta("x", *FULL).keywords)
    async with stage:
        client = await stage.client()
        for _ in range(2 if known else 1):  # the second time both have been seen
            assert (await client.envelope(rcpt, mail=mail))[1].startswith("451 4.4.1")
            await client.ask("RSET")
        assert (await client.message()).startswith("250"), "what they can take they get"
        assert not stage.blamed


async def test_a_later_recipient_must_not_lose_what_it_asks_for() -> None:
    a = Mta("a", "PIPELINING")
    stage = Stage(pool(a))
    stage.offers["a"] = Mta("x", *FULL).keywords
    async with stage:
        client = await stage.client()
        replies = await client.envelope("<r@b.test>")
        assert [r[:3] for r in replies] == ["250", "250"]
        assert (await client.ask("RCPT TO:<q@b.test> NOTIFY=SUCCESS")).startswith("451 4.4.1")
        assert (await client.data()).startswith("250")
        assert a.taken[0].rcpts == ["TO:<r@b.test>"]


# -- REQUIRETLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["verified", "not verified", "opportunistic", "not offered", "in clear"])
async def test_requiretls_needs_verified_tls_from_end_to_end(case: str) -> None:
    """RFC 8689 4."""
    offers = (*OFFERS, "STARTTLS") if case == "not offered" else (*OFFERS, "STARTTLS", "REQUIRETLS")
    a = Mta("a", *offers, tls=certs.server())
    mode = BackTlsMode.OPPORTUNISTIC if case == "opportunistic" else BackTlsMode.REQUIRED
    back = BackTlsSettings(mode, verify=case != "not verified", ca=certs.authority_file("good"))
    front = FrontTlsSettings(FrontTlsMode.STARTTLS, (certs.pair("mx.test"),))
    async with Stage(pool(a, tls=back), listener={"tls": front}) as stage:
        client = await stage.client()
        assert "REQUIRETLS" not in await client.keywords()
        assert (await client.ask("MAIL FROM:<s@a.test> REQUIRETLS")).startswith("555")
        if case == "in clear":
            return
        await client.starttls(certs.client(), "mx.test")
        has = "REQUIRETLS" in await client.keywords()
        assert has is (case == "verified")
        assert (await client.ask("MAIL FROM:<s@a.test> REQUIRETLS"))[:3] == ("250" if has else "555")
        if has:
            assert (await client.ask("RCPT TO:<r@b.test>")).startswith("250")
            assert (await client.data()).startswith("250")
            assert a.taken[0].mail == "FROM:<s@a.test> REQUIRETLS"


# -- SIZE ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "limit", "shown"),
    [
        (["SIZE 1000", "SIZE 5000"], 9000, "5000"),
        (["SIZE 1000", "SIZE 5000"], 3000, "3000"),
        (["SIZE 1000", "SIZE 0"], 9000, "9000"),
        (["SIZE 1000", "SIZE"], 9000, "9000"),
        (["SIZE 1000", "DSN"], 9000, "9000"),
        (["SIZE 1000", "SIZE 5000"], None, "5000"),
        (["SIZE 0", "SIZE 0"], None, "0"),
        (["SIZE 1000", "SIZE +5"], 9000, "9000"),
    ],
)
async def test_size_is_the_largest_of_the_pool_capped_by_the_listener(
    sizes: list[str], limit: int | None, shown: str
) -> None:
    mtas = [Mta(name, "PIPELINING", size) for name, size in zip("ab", sizes, strict=True)]
    async with Stage(pool(*mtas), listener={"limits": {"message_size_bytes": limit}}) as stage:
        client = await stage.client()
        assert (await client.keywords())["SIZE"] == shown


async def test_a_declared_size_is_judged_before_the_message() -> None:
    small, large = Mta("small", "PIPELINING", "SIZE 1000"), Mta("large", "PIPELINING", "SIZE 5000")
    async with Stage(pool(small, large), listener={"limits": {"message_size_bytes": 9000}}) as stage:
        client = await stage.client()
        assert (await client.ask("MAIL FROM:<s@a.test> SIZE=9001")).startswith("552 5.3.4"), "the listener's"
        for _ in range(3):
            assert (await client.message(mail="<s@a.test> SIZE=1001")).startswith("250")
        assert (len(small.taken), len(large.taken)) == (0, 3), "only to where it fits"
        replies = await client.envelope(mail="<s@a.test> SIZE=5001")
        assert [r[:9] for r in replies] == ["250 2.1.0", "552 5.3.4"], "nobody takes that"
        await client.ask("RSET")
        for size in ("x", "-1", "1_0", "", "123456789012345678901"):
            assert (await client.ask(f"MAIL FROM:<s@a.test> SIZE={size}")).startswith("501")


async def test_a_size_that_no_number_can_hold_is_no_limit() -> None:
    """int() gives up on 4,300 digits; a reply line may have 12,288."""
    a = Mta("a", "PIPELINING", "SIZE " + "9" * 5000)
    async with Stage(pool(a)) as stage:
        client = await stage.client()
        assert (await client.keywords())["SIZE"] == "52428800"
        assert (await client.message(mail="<s@a.test> SIZE=100")).startswith("250")


async def test_a_message_larger_than_it_said_is_refused_at_its_end() -> None:
    a = Mta("a")
    limits: dict[str, Any] = {"message_size_bytes": 1000}
    async with Stage(pool(a), listener={"limits": limits}) as stage:
        client = await stage.client()
        assert (await client.message(body=b"x" * 998 + b"\r\n")).startswith("250")
        assert (await client.message(body=b"x" * 999 + b"\r\n")).startswith("552 5.3.4")
        assert (await client.message(body=b"x" * 999_999 + b"\r\n")).startswith("552 5.3.4")
        assert len(a.taken) == 1
        assert (await client.message()).startswith("250")


# -- LIMITS ----------------------------------------------------------------------------------------------


async def test_a_backend_without_pipelining_gets_one_command_at_a_time() -> None:
    for a in (Mta("a", "8BITMIME"), Mta("a", "8BITMIME", "CHUNKING"), Mta("a", helo_only=True)):
        async with Stage(pool(a)) as stage:
            client = await stage.client()
            assert (await client.message("<r@b.test>", "<q@b.test>")).startswith("250")
            await client.envelope("<r@b.test>", "<q@b.test>")
            assert [r[:3] for r in await client.bdat(b"a\r\n", b"b\r\n", b"c\r\n")] == ["250"] * 3
            assert [t.content for t in a.taken][1:] == [b"a\r\nb\r\nc\r\n"]
