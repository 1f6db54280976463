"""What the balancer costs and what it bears: socket options, memory of idle sessions, hostile backends."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from smtplb.config.load import load
from smtplb.controlplane.supervisor import Supervisor
from tests.e2e.balancer import FIGURES, Smtplb, pool
from tests.e2e.client import session, until
from tests.e2e.conftest import Begin, Embed
from tests.e2e.hostile import Act, Stage, hostile
from tests.lab import SmtpSink, free_port
from tests.lab.fixtures import Lab

FIRST_SESSIONS, IDLE_SESSIONS = 500, 1000  # limits.sessions is 2000
IDLE_SESSION_BYTES = 6 * 1024
TRANSACTIONS = 20  # at a time, at each stage
GROWTH_BYTES = 8 * 1024 * 1024  # while 20 connections bring 256 KB at a time, and lines that never end


@contextmanager
def sockets_of_this_process() -> Iterator[list[socket.socket]]:
    """Duplicates of all connected ones: options and addresses are those of the originals."""
    with ExitStack() as opened:
        found = []
        for entry in list(Path("/proc/self/fd").iterdir()):
            try:
                if os.readlink(entry).startswith("socket:"):
                    copy = opened.enter_context(socket.socket(fileno=os.dup(int(entry.name))))
                    if copy.family == socket.AF_INET:
                        copy.getpeername()
                        found.append(copy)
            except OSError:  # closed meanwhile, or not connected
                continue
        yield found


async def test_nagle_is_off_at_both_ends(tmp_path: Path, embed: Embed) -> None:
    backend = await embed("only")
    file = tmp_path / "smtplb.yaml"
    mail = free_port()
    file.write_text(
        f'listeners: [{{bind: "127.0.0.1:{mail}", to: relays}}]\n'
        f'pools: {{relays: {{backends: ["{backend.address}"]}}}}\n'
        "shutdown: {delay: 0s, drain: 0s}\n"
    )
    supervisor = Supervisor(load(file), emit=lambda event: None)
    await supervisor.start()
    try:
        async with session(mail) as client:
            # Half a message: both connections are there.
            assert (await client.ask("MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>", "DATA"))[2].startswith(
                "354"
            )
            with sockets_of_this_process() as found:
                accepted = [each for each in found if each.getsockname()[1] == mail]
                connected = [each for each in found if each.getpeername()[1] == backend.port]
                assert accepted
                assert connected
                options = [
                    each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in accepted + connected
                ]
            assert all(options)
            assert (await client.say("hello\r\n.")).startswith("250")
    finally:
        await supervisor.stop()


class Caller:
    """A client without a loop: a thousand of them stand at once."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self.expect("220")
        self.say("EHLO client.test", "250")

    def say(self, text: str, code: str) -> None:
        self._socket.sendall(text.encode() + b"\r\n")
        self.expect(code)

    def expect(self, code: str) -> None:
        reply = b""
        while not (reply.endswith(b"\r\n") and reply.splitlines()[-1][3:4] == b" "):
            data = self._socket.recv(65536)
            assert data, reply
            reply += data
        assert reply.decode().startswith(code), reply

    def send(self) -> None:
        self.say("MAIL FROM:<a@a.test>", "250")
        self.say("RCPT TO:<b@b.test>", "250")
        self.say("DATA", "354")
        self.say("Subject: x\r\n\r\n" + ("x" * 70 + "\r\n") * 50 + ".", "250")

    def close(self) -> None:
        self._socket.close()


def sessions_open(balancer: Smtplb) -> int:
    return int(balancer.status()["listeners"][0]["sessions"]["open"])


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_idle_session_costs_at_most_6_kib(lab: Lab, begin: Begin, many_descriptors: None) -> None:
    sink = lab.start(SmtpSink())
    balancer = begin(Smtplb({"relays": pool(sink)}))
    with ExitStack() as callers:

        def opened(count: int) -> list[Caller]:
            fresh = [Caller(balancer.port) for _ in range(count)]
            for caller in fresh:
                callers.callback(caller.close)
            return fresh

        # The first ones fill what was free in the heap, and bring in what is not a session's own. They stay.
        for caller in opened(FIRST_SESSIONS):
            caller.send()
        assert sessions_open(balancer) == FIRST_SESSIONS
        before = balancer.rss_bytes()
        idle = opened(IDLE_SESSIONS)
        assert sessions_open(balancer) == FIRST_SESSIONS + IDLE_SESSIONS
        after_hello = (balancer.rss_bytes() - before) / IDLE_SESSIONS
        for caller in idle:
            caller.send()
        after_message = (balancer.rss_bytes() - before) / IDLE_SESSIONS
    FIGURES.info("an idle session: %.0f octets, behind a message %.0f", after_hello, after_message)
    assert 0 < after_hello <= IDLE_SESSION_BYTES
    assert 0 < after_message <= IDLE_SESSION_BYTES


@pytest.mark.parametrize("act", Act)
async def test_a_hostile_backend_gets_its_clients_a_4xx_and_no_memory_of_ours(begin: Begin, act: Act) -> None:
    async with hostile() as backend:
        backend.act = act
        quick = dict.fromkeys(("connect", "greeting", "mail", "rcpt", "data", "final"), "300ms")
        entry = {"name": "hostile", "address": f"127.0.0.1:{backend.port}"}
        balancer = await asyncio.to_thread(
            begin, Smtplb({"relays": pool(entry, check={"level": "off"}, timeouts=quick)})
        )

        async def one() -> str:
            async with session(balancer.port) as client:
                reply = await client.send()
                # In step: our own commands are answered as ever, and the session may send again.
                assert (await client.say("RSET")).startswith("250")
                assert await client.ask("NOOP", "MAIL FROM:<a@a.test>") == ["250 2.0.0 Ok", "250 2.1.0 Ok"]
                return reply

        await one()
        before = await asyncio.to_thread(balancer.rss_bytes)
        heard = {}
        for stage in Stage:
            backend.stage = stage
            acted = backend.acted
            replies = await asyncio.gather(*(one() for _ in range(TRANSACTIONS)))
            assert backend.acted > acted, stage
            heard[str(stage)] = {reply[:9] for reply in replies}
            assert all(reply.startswith("451 4.") for reply in replies), (stage, replies)
        await until(lambda: sessions_open(balancer) == 0, "all sessions are over")
        grown = await asyncio.to_thread(balancer.peak_rss_bytes) - before
        FIGURES.info("%s: %d KiB more, %s", act, grown // 1024, heard)
        assert grown <= GROWTH_BYTES
