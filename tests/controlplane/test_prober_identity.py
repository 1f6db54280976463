"""Checks of backends that have an identity or TLS configured: what is asked of them, and what their lack of it means."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
import trustme

from smtplb.controlplane.registry import Seen
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import Reason
from smtplb.settings import BackTlsMode, BackTlsSettings, CheckLevel, IdentityMode
from tests.controlplane.test_prober import Conversation, Script, greets_and, probed
from tests.controlplane.test_prober_stages import Probing
from tests.controlplane.things import backend

LEVELS = [CheckLevel.TCP, CheckLevel.BANNER, CheckLevel.EHLO]
XCLIENT = "250-mx1.test\r\n250-PIPELINING\r\n250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n"
PLAIN = "250-mx1.test\r\n250-SIZE 1000\r\n250 DSN\r\n"
OFFERS = {b"SIZE": b"1000", b"DSN": b""}

ENDS = dt.datetime(2040, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
AUTHORITY = trustme.CA()
OTHER = trustme.CA()


def server_context(authority: trustme.CA = AUTHORITY, name: str = "mx1.test") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=ENDS).configure_cert(context)
    return context


def ca_file(folder: Path, authority: trustme.CA = AUTHORITY) -> str:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def required(folder: Path, authority: trustme.CA = AUTHORITY, name: str = "mx1.test") -> BackTlsSettings:
    return BackTlsSettings(BackTlsMode.REQUIRED, ca=ca_file(folder, authority), server_name=name)


def starttls(
    context: ssl.SSLContext, before: str = PLAIN, after: str = "250-mx1.test\r\n250 DSN\r\n"
) -> Script:
    offer = before.replace("250 ", "250-") + "250 STARTTLS\r\n"

    async def script(client: Conversation) -> None:
        await client.say("220 mx1.test ESMTP\r\n")
        await client.hear()
        await client.say(offer)
        await client.hear()
        await client.say("220 go ahead\r\n")
        await client.start_tls(context)
        await client.hear()
        await client.say(after)
        await client.answer_quit()

    return script


class TestOffers:
    async def test_a_check_tells_what_the_backend_offers(self) -> None:
        async with probed(greets_and(PLAIN)) as it:
            await it.result()
            assert it.last.seen == Seen(OFFERS)
            assert it.last.identity is True

    @pytest.mark.parametrize("level", LEVELS)
    async def test_at_every_level(self, level: CheckLevel) -> None:
        async with probed(greets_and(PLAIN), level) as it:
            await it.result()
            assert it.last.seen == Seen(OFFERS)

    async def test_a_backend_that_knows_only_helo_offers_nothing(self) -> None:
        async def script(client: Conversation) -> None:
            await client.say("220 mx1.test\r\n")
            await client.hear()
            await client.say("502 what?\r\n")
            await client.hear()
            await client.say("250 mx1.test\r\n")
            await client.answer_quit()

        async with probed(script) as it:
            await it.result()
            assert it.last.seen == Seen({})

    async def test_one_that_did_not_come_so_far_tells_nothing(self) -> None:
        async with probed(greets_and("554 not you\r\n"), CheckLevel.TCP) as it:
            assert await it.result() == (True, "connected")
            assert (it.last.seen, it.last.identity) == (None, None)


class TestIdentity:
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("mode", [IdentityMode.XCLIENT, IdentityMode.XFORWARD])
    async def test_a_keyword_that_is_missing_fails_at_every_level(
        self, mode: IdentityMode, level: CheckLevel
    ) -> None:
        async with probed(greets_and(PLAIN), level, identity=mode) as it:
            assert await it.result() == (False, f"identity: does not offer {mode.value.upper()}")
            assert it.last.identity is False
            assert it.last.seen == Seen(OFFERS)
            await it.hears("EHLO lb1.test", "QUIT")

    async def test_a_keyword_that_is_there_proves_it_and_the_command_is_not_sent(self) -> None:
        async with probed(greets_and(XCLIENT), identity=IdentityMode.XCLIENT) as it:
            assert await it.result() == (True, "250 mx1.test")
            assert it.last.identity is True
            await it.over()
            assert it.heard == ["EHLO lb1.test", "QUIT"]

    @pytest.mark.parametrize("level", [CheckLevel.TCP, CheckLevel.BANNER])
    async def test_a_check_that_passes_without_an_answer_to_ehlo_proves_nothing(
        self, level: CheckLevel
    ) -> None:
        async with probed(greets_and("421 busy\r\n"), level, identity=IdentityMode.XCLIENT) as it:
            assert (await it.result())[0]
            assert it.last.identity is None

    async def test_proxy_v1_tells_the_addresses_of_the_socket_before_the_greeting(self) -> None:
        async def script(client: Conversation) -> None:
            assert (await client.hear()).startswith("PROXY TCP4 127.0.0.1 127.0.0.1 ")
            await greets_and(PLAIN)(client)

        async with probed(script, identity=IdentityMode.PROXY_V1) as it:
            assert (await it.result())[0]
            assert it.last.identity is True
            await it.over()
            source, destination = it.heard[0].split(" ")[4:]
            assert source != destination
            assert it.heard[1:] == ["EHLO lb1.test", "QUIT"]

    async def test_proxy_v2_says_local(self) -> None:
        async def script(client: Conversation) -> None:
            assert await client.octets(16) == b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
            await greets_and(PLAIN)(client)

        async with probed(script, identity=IdentityMode.PROXY_V2) as it:
            assert (await it.result())[0]

    @pytest.mark.parametrize("mode", [IdentityMode.PROXY_V1, IdentityMode.PROXY_V2])
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("at_once", [True, False], ids=["with the greeting", "before the answer to EHLO"])
    async def test_a_backend_that_reads_the_header_as_a_command_lacks_it(
        self, mode: IdentityMode, level: CheckLevel, at_once: bool
    ) -> None:
        async def script(client: Conversation) -> None:
            refusal = "221 bye\r\n" if mode is IdentityMode.PROXY_V2 else "502 what?\r\n"
            await client.say("220 mx1.test\r\n" + (refusal if at_once else ""))
            if not at_once:
                while not (await client.hear()).endswith("EHLO lb1.test"):
                    pass
                await client.say(refusal)
            await client.say("250-mx1.test\r\n250 DSN\r\n")
            await client.octets(100_000)

        async with probed(script, level, identity=mode) as it:
            passed, text = await it.result()
            assert not passed
            assert text.startswith("identity: does not take the PROXY header")
            assert it.last.identity is False

    async def test_a_backend_that_dislikes_our_name_may_well_take_the_header(self) -> None:
        async def script(client: Conversation) -> None:
            await client.hear()
            await greets_and("501 5.5.2 no such name\r\n")(client)

        async with probed(script, identity=IdentityMode.PROXY_V1) as it:
            assert await it.result() == (False, "501 5.5.2 no such name")
            assert it.last.identity is None


class TestTls:
    async def test_required_and_verified_passes_and_tells_version_and_end_of_the_certificate(
        self, tmp_path: Path
    ) -> None:
        async with probed(starttls(server_context()), tls=required(tmp_path)) as it:
            assert await it.result() == (True, "250 mx1.test")
            assert it.last.seen == Seen({b"DSN": b""}, "TLSv1.3", ENDS.timestamp())
            await it.over()
            assert it.heard == ["EHLO lb1.test", "STARTTLS", "EHLO lb1.test", "QUIT"]

    async def test_what_was_offered_in_clear_is_forgotten(self, tmp_path: Path) -> None:
        async with probed(
            starttls(server_context(), before=XCLIENT), tls=required(tmp_path), identity=IdentityMode.XCLIENT
        ) as it:
            assert await it.result() == (False, "identity: does not offer XCLIENT")

    async def test_an_unknown_authority_is_a_failure_with_its_reason(self, tmp_path: Path) -> None:
        async with probed(starttls(server_context()), tls=required(tmp_path, OTHER)) as it:
            passed, text = await it.result()
            assert not passed
            assert text.startswith("TLS: certificate verify failed")
            assert (it.last.identity, it.last.seen) == (None, None)

    async def test_a_certificate_for_another_name_is_a_failure(self, tmp_path: Path) -> None:
        async with probed(starttls(server_context()), tls=required(tmp_path, name="mx9.test")) as it:
            assert (await it.result())[1].startswith("TLS: certificate verify failed")

    async def test_a_backend_without_starttls_fails_where_it_is_required(self, tmp_path: Path) -> None:
        async with probed(greets_and(PLAIN), tls=required(tmp_path)) as it:
            assert await it.result() == (False, "TLS: does not offer STARTTLS")

    async def test_a_ca_file_that_is_gone_is_told(self, tmp_path: Path) -> None:
        tls = BackTlsSettings(BackTlsMode.REQUIRED, ca=str(tmp_path / "nothing.pem"))
        async with probed(starttls(server_context()), tls=tls) as it:
            passed, text = await it.result()
            assert not passed
            assert text.startswith("TLS: CA file: ")

    async def test_a_level_that_needs_no_tls_passes_without(self, tmp_path: Path) -> None:
        async with probed(greets_and(PLAIN), CheckLevel.BANNER, tls=required(tmp_path)) as it:
            assert await it.result() == (True, "220 mx1.test ESMTP")

    async def test_not_verified_tls_tells_the_end_of_the_certificate_too(self) -> None:
        tls = BackTlsSettings(BackTlsMode.REQUIRED, verify=False)
        async with probed(starttls(server_context(OTHER)), tls=tls) as it:
            assert (await it.result())[0]
            assert it.last.seen is not None
            assert it.last.seen.certificate_expires == ENDS.timestamp()

    async def test_opportunistic_tls_that_fails_is_done_without_and_left_alone_for_a_while(self) -> None:
        async def script(client: Conversation) -> None:
            await client.say("220 mx1.test\r\n")
            await client.hear()
            await client.say("250-mx1.test\r\n250-DSN\r\n250 STARTTLS\r\n")
            if await client.hear() == "STARTTLS":
                await client.say("220 go ahead\r\n")
                await client.octets(1)
                await client.say("this is no TLS\r\n")
                await client.octets(1)
            elif client.heard[-1] == "QUIT":
                await client.say("221 bye\r\n")

        async with probed(script, tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC)) as it:
            assert await it.result() == (True, "250 mx1.test")
            assert it.last.seen == Seen({b"DSN": b"", b"STARTTLS": b""})
            for _ in range(58):  # 10.2 s each
                await it.over()
                it.clock.go(10.2)
                assert await it.result() == (True, "250 mx1.test")
            assert it.heard.count("STARTTLS") == 1
            await it.over()
            it.clock.go(10.2)
            assert (await it.result())[0]
            assert it.heard.count("STARTTLS") == 2

    async def test_a_backend_that_falls_silent_in_the_handshake_fails_in_time(self) -> None:
        async def script(client: Conversation) -> None:
            await client.say("220 mx1.test\r\n")
            await client.hear()
            await client.say("250-mx1.test\r\n250 STARTTLS\r\n")
            await client.hear()
            await client.octets(100_000)

        async with probed(script, tls=BackTlsSettings(BackTlsMode.REQUIRED, verify=False)) as it:
            await it.client_came()
            await it.hears("EHLO lb1.test", "STARTTLS")
            it.clock.go(8.1)
            assert await it.result() == (False, "no answer to EHLO and STARTTLS within 8 s")


class TestOpportunisticTls:
    """On a clock that stands still: the try in clear belongs to the same probe."""

    def probing(self) -> Probing:
        probing = Probing(backend("p", "a", tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC))).start()
        probing.only.fail(Phase.HELLO, Reason.TLS)
        return probing

    def test_the_try_in_clear_begins_at_once_and_nothing_is_told_before_its_end(self) -> None:
        probing = self.probing()
        assert (probing.count, probing.prober.held, probing.texts) == (2, 1, [])
        assert probing.only.owner.in_clear
        probing.only.ready()
        assert probing.texts == ["+ 250 mx at your service"]

    def test_both_tries_have_the_time_of_one(self) -> None:
        probing = Probing(backend("p", "a", tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC))).start()
        probing.clock.go(5)
        probing.only.fail(Phase.HELLO, Reason.TLS)
        probing.clock.go(3.1)
        assert probing.texts == ["- no greeting within 8 s"]
        assert probing.live == []

    def test_in_clear_it_fails_for_good(self) -> None:
        probing = self.probing()
        probing.only.fail()
        assert (probing.count, probing.texts) == (2, ["- Connection refused"])

    def test_a_backend_set_aside_is_not_tried_again(self) -> None:
        probing = Probing(backend("p", "a", tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC))).start()
        probing.prober.want(("p", "a"), False)
        probing.only.fail(Phase.HELLO, Reason.TLS)
        assert (probing.count, probing.prober.held, probing.texts) == (1, 0, [])

    def test_where_tls_is_required_there_is_no_second_try(self) -> None:
        probing = Probing(backend("p", "a", tls=BackTlsSettings(BackTlsMode.REQUIRED))).start()
        probing.only.fail(Phase.HELLO, Reason.TLS, detail=b"CERTIFICATE_VERIFY_FAILED")
        assert (probing.count, probing.texts) == (1, ["- TLS: certificate verify failed"])
