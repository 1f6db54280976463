"""The lab itself: each manager starts its program, sees what that did, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import smtplib
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.lab import (
    Exim,
    HAProxy,
    Instance,
    LabError,
    Mta,
    Postfix,
    Sendmail,
    SmtpSink,
    SmtpSource,
    TlsFiles,
    free_ports,
    is_listening,
    wait_until,
)
from tests.lab.fixtures import Lab
from tests.lab.ports import _diagnosed, _tabled
from tests.lab.process import sweep
from tests.lab.tcp_table import LISTEN, sockets_of

ROOT = Path(__file__).resolve().parent.parent
SENDER, RECIPIENT = "a@a.test", "b@b.test"


def send(port: int, *, client: smtplib.SMTP | None = None, tls: ssl.SSLContext | None = None) -> str:
    """Sends one message; its message-id with angle brackets."""
    message_id = f"<{uuid.uuid4().hex}@lab.test>"
    with client or smtplib.SMTP("127.0.0.1", port, local_hostname="client.lab.test", timeout=10) as session:
        if tls:
            session.starttls(context=tls)
        session.sendmail(SENDER, [RECIPIENT], f"Message-ID: {message_id}\r\nSubject: try\r\n\r\nhello\r\n")
    return message_id


class BehindProxyHeader(smtplib.SMTP):
    """A client whose connection opens with a PROXY v1 header, as from 192.0.2.7."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = socket.create_connection((host, port), timeout)
        connection.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 25\r\n")
        return connection


@pytest.fixture
def tls_files(tmp_path: Path) -> TlsFiles:
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1")
    files = TlsFiles(str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem"))
    leaf.private_key_pem.write_to_path(files.key)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(files.certificate, append=True)
    return files


@pytest.mark.parametrize("mta", [Postfix, Exim, Sendmail])
def test_a_message_a_mail_server_took_is_listed_once(lab: Lab, mta: type[Mta]) -> None:
    server = lab.start(mta())
    message_ids = [send(server.port) for _ in range(3)]
    listed = server.wait_message_ids(message_ids)
    assert [message.message_id for message in listed] == message_ids
    assert {message.sender for message in listed} == {SENDER}
    assert len({message.queue_id for message in listed}) == 3


@pytest.mark.parametrize("mta", [Exim, Sendmail])
def test_recipients_are_listed_without_delivery(lab: Lab, mta: type[Mta]) -> None:
    server = lab.start(mta())
    send(server.port)
    assert server.wait_accepted(1)[0].recipients == (RECIPIENT,)


@pytest.mark.parametrize("program", [Postfix, Exim, Sendmail, SmtpSink])
def test_a_program_killed_hard_refuses_connections_and_starts_again(
    lab: Lab, program: type[Instance]
) -> None:
    server = lab.start(program())
    send(server.port)
    assert server.is_running()
    assert server.pids()
    server.kill_hard()
    assert not server.is_running()
    assert server.pids() == []
    with pytest.raises(ConnectionRefusedError):
        send(server.port)
    server.start()
    send(server.port)


@pytest.mark.parametrize("program", [Postfix, Exim, Sendmail, SmtpSink])
def test_an_orderly_stop_ends_all_processes_and_leaving_removes_the_directory(
    lab: Lab, program: type[Instance]
) -> None:
    lab.require(program)
    with program() as server:
        send(server.port)
        server.stop()
        assert server.pids() == []
        assert not is_listening(server.port)
        assert server.directory.is_dir()
    assert not server.directory.exists()


def test_a_program_that_cannot_start_says_why(lab: Lab) -> None:
    lab.require(SmtpSink)
    with pytest.raises(LabError, match=r"(?s)ended at once.*usage"), SmtpSink(options=["--nonsense"]):
        pass


def listening_sockets(instance: Instance) -> set[str]:
    """Local addresses of its TCP listeners, as hexadecimal ADDRESS:PORT of /proc/net/tcp."""
    sockets = (sock for pid in instance.pids() for sock in sockets_of(pid))
    return {sock.local for sock in sockets if sock.state == LISTEN}


@pytest.mark.parametrize("program", [Postfix, Exim, Sendmail, SmtpSink])
def test_a_program_listens_on_its_loopback_port_and_nowhere_else(lab: Lab, program: type[Instance]) -> None:
    server = lab.start(program())
    assert listening_sockets(server) == {f"0100007F:{server.port:04X}"}


def test_what_a_killed_test_run_left_behind_is_swept_up(lab: Lab) -> None:
    lab.require(SmtpSink)
    script = (
        "import os, signal; from tests.lab import SmtpSink; sink = SmtpSink(); sink.start()\n"
        "print(sink.port, sink.directory, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    port, directory = ended.stdout.split()
    assert is_listening(int(port))
    sweep()
    wait_until(lambda: not is_listening(int(port)), "the port is free", 10)
    assert not Path(directory).exists()


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 failed")])
def test_a_missing_program_skips_its_tests_or_fails_them_where_the_lab_is_required(
    required: str, outcome: str
) -> None:
    environment = {**os.environ, "SMTPLB_LAB_DIR": "/nonexistent", "SMTPLB_REQUIRE_MTAS": required}
    test = f"{Path(__file__).name}::test_sendmail_keeps_a_transcript"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"tests/{test}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in ended.stdout.splitlines()[-1]
    assert "run `make mtas` as root on Debian" in ended.stdout
    assert ended.returncode == (1 if required else 0)


# -- Postfix


def test_postfix_tells_who_delivered_what_and_to_whom(lab: Lab) -> None:
    postfix = lab.start(Postfix())
    message_id = send(postfix.port)
    wait_until(lambda: bool(postfix.delivered()), "delivery", 10)
    assert list(postfix.delivered().values()) == [message_id]
    (message,) = postfix.messages().values()
    assert message.client.endswith("[127.0.0.1]")
    assert [(recipient, status) for recipient, status, _ in message.deliveries] == [(RECIPIENT, "sent")]
    assert message.is_removed


def test_postfix_relays_to_a_sink_to_show_what_arrives(lab: Lab) -> None:
    sink = lab.start(SmtpSink(dump=True))
    postfix = lab.start(Postfix(transport=f"smtp:[127.0.0.1]:{sink.port}"))
    message_id = send(postfix.port)
    sink.wait_messages(1)
    (dump,) = sink.dumps()
    assert message_id.encode() in dump


@pytest.mark.parametrize("end", [Postfix.kill_hard, Postfix.stop], ids=["killed", "stopped"])
def test_every_250_of_a_postfix_ended_under_load_is_in_its_log_after_the_restart(
    lab: Lab, end: Callable[[Postfix], None]
) -> None:
    postfix = lab.start(Postfix())
    answered: list[str] = []
    for _ in range(3):
        with smtplib.SMTP("127.0.0.1", postfix.port, local_hostname="client.lab.test", timeout=10) as session:
            for _ in range(20):
                message_id = f"<{uuid.uuid4().hex}@lab.test>"
                session.sendmail(SENDER, [RECIPIENT], f"Message-ID: {message_id}\r\n\r\nhello\r\n")
                answered.append(message_id)
            end(postfix)  # not a moment after the last 250
            with pytest.raises(smtplib.SMTPServerDisconnected):
                session.noop()
        postfix.start()
    listed = [message.message_id for message in postfix.wait_message_ids(answered)]
    assert sorted(listed) == sorted(answered)


def test_what_postfix_says_of_the_clock_is_no_complaint(lab: Lab) -> None:
    server = lab.start(Postfix("clocked"))
    with server.log.open("a") as log:
        head = "Nov 28 19:11:08 clocked postfix/cleanup[7]: warning:"
        log.write(f"{head} file system clock is 1 seconds ahead of local clock\n")
        log.write(f"{head} resetting file time stamps - this hurts performance\n")
        log.write(f"{head} something else\n")
    assert server.log_lines("warning:") == [f"{head} something else"]


def test_postfix_instances_do_not_know_each_other(lab: Lab) -> None:
    first, second = lab.start(Postfix("first")), lab.start(Postfix("second"))
    send(first.port)
    first.wait_accepted(1)
    assert second.accepted() == []
    first.kill_hard()
    assert second.is_running()
    send(second.port)
    assert len(second.wait_accepted(1)) == 1


def test_postfix_takes_xclient_from_the_networks_it_was_told(lab: Lab) -> None:
    postfix = lab.start(Postfix(xclient_hosts="127.0.0.0/8"))
    with smtplib.SMTP("127.0.0.1", postfix.port, local_hostname="client.lab.test", timeout=10) as session:
        session.ehlo()
        assert session.has_extn("xclient")
        assert session.docmd("XCLIENT", "NAME=[UNAVAILABLE] ADDR=192.0.2.7")[0] == 220
    wait_until(lambda: bool(postfix.log_lines("unknown[192.0.2.7]")), "the client address in the log", 10)


def test_postfix_without_xclient_hosts_does_not_offer_it(lab: Lab) -> None:
    postfix = lab.start(Postfix(main_cf={"smtpd_client_recipient_rate_limit": "0"}))
    with smtplib.SMTP("127.0.0.1", postfix.port, local_hostname="client.lab.test", timeout=10) as session:
        session.ehlo()
        assert not session.has_extn("xclient")


@pytest.mark.parametrize("mta", [Postfix, Exim])
def test_a_proxy_header_reaches_the_log(lab: Lab, mta: type[Postfix] | type[Exim]) -> None:
    main: dict[str, list[str]] = {"main": ["hostlist relay_from_hosts = *"]} if mta is Exim else {}
    server = lab.start(mta(proxy_protocol=True, **main))  # type: ignore[arg-type]
    client = BehindProxyHeader("127.0.0.1", server.port, "client.lab.test", 10)
    if isinstance(server, Postfix):  # 192.0.2.7 is none of its networks: that is the point of the header
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="Relay access denied"):
            send(server.port, client=client)
    else:
        send(server.port, client=client)
    wait_until(lambda: bool(server.log_lines("[192.0.2.7]")), "the client address in the log", 10)


@pytest.mark.parametrize("mta", [Postfix, Exim])
def test_starttls_with_the_files_it_was_given(
    lab: Lab, mta: type[Postfix] | type[Exim], tls_files: TlsFiles
) -> None:
    server = lab.start(mta(tls=tls_files))
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    message_id = send(server.port, tls=unverified)
    server.wait_message_ids([message_id])


# -- Exim, Sendmail


def test_exim_can_be_told_what_to_refuse(lab: Lab) -> None:
    exim = lab.start(Exim(acl_rcpt=["deny local_parts = b", "accept"]))
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(exim.port)
    assert exim.accepted() == []


def test_sendmail_keeps_a_transcript(lab: Lab) -> None:
    sendmail = lab.start(Sendmail(transcript=True))
    message_id = send(sendmail.port)
    assert message_id in sendmail.transcript_text()


# -- load and peers


@pytest.mark.parametrize("keep_sessions", [False, True])
def test_the_sink_counts_what_the_source_sent(lab: Lab, keep_sessions: bool) -> None:
    lab.require(SmtpSource)
    sink = lab.start(SmtpSink())
    load = SmtpSource.run(sink.port, messages=500, sessions=5, keep_sessions=keep_sessions)
    assert (load.returncode, load.errors) == (0, ())
    assert load.messages_per_s > 0
    assert sink.messages() == 500
    wait_until(lambda: sink.counts().sessions == (5 if keep_sessions else 500), "all sessions ended", 10)


def test_the_sink_counts_from_zero_after_a_restart(lab: Lab) -> None:
    sink = lab.start(SmtpSink())
    send(sink.port)
    assert sink.messages() == 1
    sink.kill_hard()
    sink.start()
    assert sink.messages() == 0


def test_the_source_reports_a_server_that_refuses(lab: Lab) -> None:
    lab.require(SmtpSource)
    sink = lab.start(SmtpSink(options=["-r", "RCPT"]))
    load = SmtpSource.run(sink.port, messages=1)
    assert load.returncode != 0
    assert load.errors
    assert sink.messages() == 0


def test_haproxy_spreads_connections(lab: Lab) -> None:
    lab.require(SmtpSource)
    sinks = [lab.start(SmtpSink(f"sink{number}")) for number in (1, 2)]
    haproxy = lab.start(HAProxy([sink.port for sink in sinks]))
    assert SmtpSource.run(haproxy.port, messages=200, sessions=4).returncode == 0
    assert [sink.messages() for sink in sinks] == [100, 100]
    assert haproxy.cpu_s() >= 0


def test_haproxy_sends_a_proxy_header_that_postfix_understands(lab: Lab) -> None:
    postfix = lab.start(Postfix(proxy_protocol=True))
    haproxy = lab.start(HAProxy([postfix.port], send_proxy="v2"))
    message_id = send(haproxy.port)
    postfix.wait_message_ids([message_id])


async def test_managers_run_beside_a_loop(lab: Lab) -> None:
    sink = await asyncio.to_thread(lab.start, SmtpSink())
    _, writer = await asyncio.open_connection("127.0.0.1", sink.port)
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"
    writer.close()
    await writer.wait_closed()
    await asyncio.to_thread(sink.stop)


def test_free_ports_differ_and_are_above_privileged_ones() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert min(ports) > 2500


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("ask", [is_listening, _tabled])
def test_who_listens_is_seen_and_who_is_bound_or_connected_is_not(
    ask: Callable[[int], bool], address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server, socket.socket(family) as client:
        try:
            server.bind((address, 0))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        port = server.getsockname()[1]
        assert not ask(port)
        server.listen()
        assert ask(port)
        client.connect((("::1" if ":" in address else "127.0.0.1"), port))
        assert not ask(client.getsockname()[1])
    assert not ask(port)


def test_the_kernel_is_asked_for_listeners_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _diagnosed(port, socket.AF_INET)
        assert not _diagnosed(port, socket.AF_INET6)
