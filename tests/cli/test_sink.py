"""`smtplb sink`: its options say what it does, its lines say what came."""

from __future__ import annotations

import signal
import socket

import pytest
from click.testing import CliRunner

from smtplb.cli.embedded import Fault, Verb
from smtplb.cli.sink import faults_of, sink, verb_delay, verb_reply
from tests.cli.talk import smtplb, talking
from tests.lab.ports import free_port, free_ports


async def test_each_message_is_a_line_and_the_summary_is_the_last() -> None:
    port = free_port()
    async with smtplb("sink", "--bind", f"127.0.0.1:{port}") as running:
        await running.until(f"listening on 127.0.0.1:{port}")
        async with talking(port) as talk:
            await talk.start_message()
            await talk.say(b"Subject: x\r\n\r\n.\r\n")
        assert f"127.0.0.1:{port} message 1 from <a@a.test> to <b@b.test>, 14 octets" in await running.until(
            "message 1"
        )
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    assert running.lines[-1].strip() == f"127.0.0.1:{port}: connections 1, messages 1, octets 14"


async def test_faults_are_committed_and_counted() -> None:
    port = free_port()
    options = ["--fault", "rcpt=450 4.2.1 try later", "--delay", "mail=1ms", "--drop", "data", "--quiet"]
    async with smtplb("sink", "--bind", f"127.0.0.1:{port}", *options) as running:
        await running.until("listening")
        async with talking(port) as talk:
            await talk.say("EHLO client.test")
            assert await talk.say("MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>", 2) == "450 4.2.1 try later"
        running.process.send_signal(signal.SIGINT)
        assert await running.end() == 0
    assert running.lines[-1].strip().endswith("octets 0; rcpt 450: 1")


async def test_it_ends_by_itself_after_the_count_and_the_client_gets_its_221() -> None:
    first, second = free_ports(2)
    binds = ["--bind", f"127.0.0.1:{first}", "--bind", f"127.0.0.1:{second}"]
    async with smtplb("sink", *binds, "--count", "2", "--quiet") as running:
        await running.until(f"listening on 127.0.0.1:{second}")
        for port in (first, second):
            async with talking(port) as talk:
                await talk.start_message()
                assert (await talk.say(b".\r\n")).startswith("250")
                assert (await talk.say("QUIT")).startswith("221")
        assert await running.end() == 0
    assert [line.split(", ")[1] for line in running.lines[-2:]] == ["messages 1", "messages 1"]


async def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        async with smtplb("sink", "--bind", f"127.0.0.1:{port}") as running:
            assert await running.end() == 1
    assert running.text.strip() == f"smtplb sink: 127.0.0.1:{port}: address already in use"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fault", "rcpt"], 'has no "="'),
        (["--fault", "rcpt=later"], '"later" is no reply'),
        (["--fault", "lunch=450 later"], '"lunch" is none of connect'),
        (["--delay", "final=2"], "write 2s"),
        (["--drop", "lunch"], '"lunch" is none of connect'),
        (["--drop", "data", "--fault", "data=450 no"], "data: a connection that is dropped gives no reply"),
        (["--delay", "data=1s", "--delay", "data=2s"], "data is given twice"),
        (["--bind", "2601"], "has no port"),
        (["--bind", "example.org:25"], "write an IP address"),
        (["--message-size", "10"], "write 10B"),
        (["--count", "0"], "0"),
    ],
)
def test_a_wrong_option_is_explained(options: list[str], words: str) -> None:
    result = CliRunner().invoke(sink, options)
    assert result.exit_code == 2
    assert words in result.output


def test_a_delay_and_a_reply_may_speak_of_one_verb() -> None:
    faults = faults_of((verb_reply("rcpt=450 4.2.1 later"),), (verb_delay("rcpt=500ms"),), ())
    assert faults == {Verb.RCPT: Fault(reply="450 4.2.1 later", delay_s=0.5)}
