"""Probes against scripted backends on loopback: real connections, a clock that stands still."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from smtplb.controlplane.prober import MAX_LEFT_OUT, Prober
from smtplb.controlplane.registry import CheckResult
from smtplb.messages import BackendKey
from smtplb.settings import BackTlsSettings, CheckLevel, CheckSettings, IdentityMode
from tests.controlplane.clock import FakeClock
from tests.controlplane.things import backend

READY = "220 mx1.test ESMTP\r\n"


class Conversation:
    """One client of a scripted backend; `heard` is what it sent, "<gone>" if it left without QUIT."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        heard: list[str],
        news: asyncio.Event,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.heard = heard
        self._news = news

    async def say(self, text: str) -> None:
        self._writer.write(text.encode())
        await self._writer.drain()

    async def hear(self) -> str:
        try:
            line = (await self._reader.readline()).decode().rstrip("\r\n")
        except ConnectionError:
            line = ""
        if line:
            self.heard.append(line)
        elif self.heard[-1:] != ["QUIT"]:
            self.heard.append("<gone>")
        self._news.set()
        return line

    async def octets(self, count: int) -> bytes:
        """So many; ConnectionError if there are none left."""
        try:
            return await self._reader.readexactly(count)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError from None

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """The end of the connection, if it does not come about."""
        try:
            await self._writer.start_tls(context)
        except (ssl.SSLError, ConnectionError):
            self.heard.append("<no TLS>")
            raise ConnectionError from None

    async def answer_quit(self) -> None:
        """Hear until QUIT or the end; 221 to QUIT."""
        while line := await self.hear():
            if line == "QUIT":
                await self.say("221 bye\r\n")
                return


Script = Callable[[Conversation], Awaitable[None]]


class Probed:
    """A scripted backend under checks."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.heard: list[str] = []
        self.news = asyncio.Event()  # something was heard
        self.results: asyncio.Queue[CheckResult] = asyncio.Queue()
        self.last: CheckResult  # that result() told
        self.met = asyncio.Event()  # a client has come
        self.done = asyncio.Event()  # the script has ended
        self.certain = True
        self.prober: Prober

    def _report(self, key: BackendKey, result: CheckResult) -> None:
        self.results.put_nowait(result)

    async def result(self) -> tuple[bool, str]:
        async with asyncio.timeout(5):
            self.last = await self.results.get()
        return self.last.passed, self.last.text

    async def client_came(self) -> None:
        async with asyncio.timeout(5):
            await self.met.wait()

    async def hears(self, *lines: str) -> None:
        """All that was heard, once it is this."""
        async with asyncio.timeout(5):
            while self.heard != list(lines):
                self.news.clear()
                await self.news.wait()

    async def over(self) -> None:
        async with asyncio.timeout(5):
            await self.done.wait()
            await self.prober._no_connection.wait()


@asynccontextmanager
async def probed(
    script: Script,
    level: CheckLevel = CheckLevel.EHLO,
    timeout_s: float = 8.0,
    *,
    tls: BackTlsSettings | None = None,
    identity: IdentityMode = IdentityMode.NONE,
) -> AsyncIterator[Probed]:
    it = Probed()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        it.met.set()
        try:
            await script(Conversation(reader, writer, it.heard, it.news))
        except ConnectionError:
            if it.heard[-1:] != ["<no TLS>"]:
                it.heard.append("<gone>")
        finally:
            writer.close()
            it.done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    check = CheckSettings(level=level, timeout_s=timeout_s)
    it.prober = Prober(
        [backend("p", "a", port=port, check=check, tls=tls, identity=identity)],
        hello="lb1.test",
        deadlines=it.clock.deadlines,
        report=it._report,
        interval_s=lambda key: 10.0,
        is_certain=lambda key: it.certain,
    )
    it.prober.start(asyncio.get_running_loop())
    try:
        yield it
    finally:
        it.prober.cut()
        server.close()
        await server.wait_closed()


def greets_and(ehlo_answer: str, greeting: str = READY) -> Script:
    async def script(client: Conversation) -> None:
        await client.say(greeting)
        await client.hear()
        await client.say(ehlo_answer)
        await client.answer_quit()

    return script


well = greets_and("250-mx1.test\r\n250 PIPELINING\r\n")


async def silent(client: Conversation) -> None:
    await client.hear()


async def closes_at_once(client: Conversation) -> None:
    return


@pytest.mark.parametrize("level", [CheckLevel.TCP, CheckLevel.BANNER, CheckLevel.EHLO])
async def test_every_level_says_ehlo_and_quit_and_waits_for_the_221(level: CheckLevel) -> None:
    async with probed(well, level) as it:
        assert (await it.result())[0]
        await it.over()
        assert it.heard == ["EHLO lb1.test", "QUIT"]


async def test_a_check_says_what_the_backend_said() -> None:
    async with probed(well) as it:
        assert await it.result() == (True, "250 mx1.test")


async def test_a_second_probe_follows_after_the_interval() -> None:
    async with probed(well) as it:
        await it.result()
        await it.over()
        it.clock.go(10.2)
        await it.result()
        await it.over()
        assert it.heard == ["EHLO lb1.test", "QUIT"] * 2


KEY = ("p", "a")


async def test_no_check_while_mail_shows_that_the_backend_lives_but_for_every_sixth() -> None:
    async with probed(well) as it:
        await it.result()
        await it.over()
        for turn in (1, 2):
            for _ in range(MAX_LEFT_OUT * 10 + 5):
                it.prober.alive(KEY)
                it.clock.go(1.0)
            assert it.heard.count("EHLO lb1.test") == turn, "left out"
            it.prober.alive(KEY)
            it.clock.go(6.0)
            await it.result()
            await it.over()
        assert it.heard == ["EHLO lb1.test", "QUIT"] * 3


@pytest.mark.parametrize(
    "why", ["older than the interval", "a message failed since", "the last check failed"]
)
async def test_a_check_is_made_if_the_proof_is(why: str) -> None:
    async with probed(well) as it:
        await it.result()
        await it.over()
        it.prober.alive(KEY)
        if why == "older than the interval":
            it.clock.go(0.2)
            it.certain = True
            it.prober._subjects[KEY].alive_at_s = it.clock.now - 1.0
        elif why == "a message failed since":
            it.prober.doubted(KEY)
        else:
            it.certain = False
        it.clock.go(10.0)
        await it.result()
        await it.over()


async def test_nothing_listens() -> None:
    clock, results = FakeClock(), asyncio.Queue[CheckResult]()
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    prober = Prober(
        [backend("p", "a", port=port)],
        hello="lb1.test",
        deadlines=clock.deadlines,
        report=lambda key, result: results.put_nowait(result),
        interval_s=lambda key: 10.0,
    )
    prober.start(asyncio.get_running_loop())
    async with asyncio.timeout(5):
        result = await results.get()
    assert not result.passed
    assert "refused" in result.text.lower()
    prober.cut()


async def test_a_backend_that_closes_at_once_fails() -> None:
    async with probed(closes_at_once) as it:
        assert await it.result() == (False, "connection closed before the greeting")


async def test_a_backend_that_greets_with_garbage_fails() -> None:
    async def script(client: Conversation) -> None:
        await client.say("HTTP/1.1 400 Bad Request\r\n\x1b[31mServer: nonsense\r\n\r\n")
        await client.hear()

    async with probed(script) as it:
        passed, text = await it.result()
        assert not passed
        assert text.startswith("the greeting is not SMTP")
        assert text.isprintable()


async def test_a_line_without_an_end_is_given_up_with_bounded_memory() -> None:
    async def script(client: Conversation) -> None:
        await client.say("220 " + "x" * 200_000)
        await client.hear()

    async with probed(script) as it:
        passed, text = await it.result()
        assert not passed
        assert len(text) < 300


async def test_a_busy_backend_is_told_in_its_own_words() -> None:
    async def script(client: Conversation) -> None:
        await client.say("421 4.3.2 All server ports are busy\r\n")
        await client.answer_quit()

    async with probed(script) as it:
        assert await it.result() == (False, "421 4.3.2 All server ports are busy")
        await it.over()
        assert it.heard == ["QUIT"]


async def test_a_backend_that_refuses_ehlo_fails_and_hears_quit() -> None:
    async with probed(greets_and("554 5.7.1 not you\r\n")) as it:
        assert await it.result() == (False, "554 5.7.1 not you")
        await it.over()
        assert it.heard == ["EHLO lb1.test", "QUIT"]


async def test_a_backend_that_refuses_ehlo_passes_a_banner_check() -> None:
    async with probed(greets_and("554 5.7.1 not you\r\n"), CheckLevel.BANNER) as it:
        assert await it.result() == (True, "220 mx1.test ESMTP")


async def test_a_backend_that_knows_only_helo_passes() -> None:
    async def script(client: Conversation) -> None:
        await client.say(READY)
        await client.hear()
        await client.say("502 5.5.1 what?\r\n")
        await client.hear()
        await client.say("250 mx1.test\r\n")
        await client.answer_quit()

    async with probed(script) as it:
        assert await it.result() == (True, "250 mx1.test")
        await it.over()
        assert it.heard == ["EHLO lb1.test", "HELO lb1.test", "QUIT"]


async def test_a_silent_backend_fails_at_the_timeout() -> None:
    async with probed(silent, timeout_s=8) as it:
        await it.client_came()
        it.clock.go(8.1)
        passed, text = await it.result()
        assert not passed
        assert text == "no greeting within 8 s"
        await it.over()


async def test_a_backend_slower_than_the_timeout_fails_and_one_just_within_passes() -> None:
    go_on = asyncio.Event()

    async def slow(client: Conversation) -> None:
        await go_on.wait()
        await well(client)

    async with probed(slow, timeout_s=8) as it:
        await it.client_came()
        it.clock.go(7.5)
        go_on.set()
        assert (await it.result())[0]
    go_on.clear()
    async with probed(slow, timeout_s=2) as it:
        await it.client_came()
        it.clock.go(2.1)
        assert not (await it.result())[0]
        go_on.set()


async def test_a_backend_that_never_says_221_holds_its_check_for_a_bounded_time() -> None:
    quit_heard = asyncio.Event()

    async def script(client: Conversation) -> None:
        await client.say(READY)
        await client.hear()
        await client.say("250 mx1.test\r\n")
        await client.hear()
        quit_heard.set()
        await client.hear()

    async with probed(script) as it:
        assert (await it.result())[0]
        async with asyncio.timeout(5):
            await quit_heard.wait()
        assert it.prober.held == 1
        it.clock.go(5.2)
        assert it.prober.held == 0
