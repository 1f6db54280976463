"""Every command in every state, and what comes of it: the reply RFC 5321 names, and a session that stays in step.

The command table is enumerated: a verb or a state that is added without an expectation fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from smtplb.smtp.verbs import FOREIGN, NOT_IMPLEMENTED, VERBS
from tests.dataplane.harness import Client, FakeStage
from tests.dataplane.setup import Setup

RCPT = "250 2.1.5 r@b.test ok at A"
TAKEN = "250 2.0.0 queued at A as"
ORDER, NESTED = "503 5.5.1 Bad sequence", "503 5.5.1 Nested MAIL"


def fresh(client: Client) -> None:
    assert client.take_all() == ["220 lb.test ESMTP"]


def greeted(client: Client) -> None:
    client.hello()


def mail(client: Client) -> None:
    greeted(client)
    assert client.one("MAIL FROM:<s@a.test>") == "250 2.1.0 Ok"


def rcpt(client: Client) -> None:
    mail(client)
    assert client.one("RCPT TO:<r@b.test>") == RCPT


def refused(client: Client) -> None:
    """A recipient was named and refused."""
    mail(client)
    assert client.one("RCPT TO:<unknown@b.test>") == "550 5.1.1 unknown"


def chunk(client: Client) -> None:
    """Between two chunks."""
    rcpt(client)
    client.send("BDAT 4\r\nhi\r\n")
    assert client.take_all()[0].startswith("250 2.0.0")


def after(client: Client) -> None:
    """Behind a message."""
    greeted(client)
    assert client.message()[-1].startswith("250")


STATES: dict[str, Callable[[Client], None]] = {
    function.__name__: function for function in (fresh, greeted, mail, rcpt, refused, chunk, after)
}
LINES = {
    "HELO": "HELO c.test",
    "EHLO": "EHLO c.test",
    "MAIL": "MAIL FROM:<s@a.test>",
    "RCPT": "RCPT TO:<r@b.test>",
    "DATA": "DATA",
    "BDAT": "BDAT 4 LAST\r\nhi",  # its octets: hi CRLF
    "STARTTLS": "STARTTLS",
    "AUTH": "AUTH PLAIN AGEAYg==",
    "XCLIENT": "XCLIENT ADDR=192.0.2.9",
    "RSET": "RSET",
    "NOOP": "NOOP",
    "VRFY": "VRFY someone",
    "HELP": "HELP",
    "QUIT": "QUIT",
}
ANYWHERE = {
    "HELO": "250 lb.test",
    "EHLO": "250-lb.test",
    "RSET": "250 2.0.0 Ok",
    "NOOP": "250 2.0.0 Ok",
    "VRFY": "252 2.5.0",
    "HELP": "214 2.0.0",
    "QUIT": "221 2.0.0 Bye",
}
EXPECTED = {
    "MAIL": {
        "fresh": ORDER, "greeted": "250 2.1.0 Ok", "mail": NESTED, "rcpt": NESTED, "refused": NESTED,
        "chunk": NESTED, "after": "250 2.1.0 Ok",
    },
    "RCPT": {
        "fresh": ORDER, "greeted": ORDER, "mail": RCPT, "rcpt": RCPT, "refused": RCPT, "chunk": ORDER, "after": ORDER,
    },
    "DATA": {
        "fresh": ORDER, "greeted": ORDER, "mail": ORDER, "rcpt": "354 ", "refused": "554 5.5.1 No valid",
        "chunk": ORDER, "after": ORDER,
    },
    "BDAT": {
        "fresh": ORDER, "greeted": ORDER, "mail": ORDER, "rcpt": TAKEN, "refused": "554 5.5.1 No valid",
        "chunk": TAKEN, "after": ORDER,
    },
    "STARTTLS": dict.fromkeys(STATES, "503 5.5.1") | dict.fromkeys(("fresh", "greeted", "after"), "502 5.5.1"),
    "AUTH": dict.fromkeys(STATES, "503 5.5.1") | dict.fromkeys(("greeted", "after"), "502 5.5.1"),
    "XCLIENT": dict.fromkeys(STATES, "503 5.5.1") | dict.fromkeys(("fresh", "greeted", "after"), "550 5.7.0"),
} | {verb: dict.fromkeys(STATES, reply) for verb, reply in ANYWHERE.items()}  # fmt: skip


def stage_with_client(state: str) -> tuple[FakeStage, Client]:
    stage = FakeStage()
    stage.mtas["A"].verdicts["unknown@b.test"] = "550 5.1.1 unknown"
    client = stage.client()
    STATES[state](client)
    return stage, client


def end_body(client: Client, replies: list[str]) -> None:
    """If a body is asked for, give it."""
    if replies and replies[-1].startswith("354"):
        client.send("hi\r\n.\r\n")
        assert client.take_all()[0].startswith(TAKEN)


def in_step(stage: FakeStage, client: Client) -> None:
    """Whatever was before: RSET, EHLO, and a message with the replies that belong to it."""
    assert client.one("RSET") == "250 2.0.0 Ok"
    assert client.ask("EHLO c.test")[0] == "250-lb.test"
    recipient = "in.step@b.test"
    answers = client.message(recipient)
    assert answers[0] == f"250 2.1.5 {recipient} ok at A"
    assert answers[2].startswith(TAKEN)
    assert stage.mtas["A"].taken[-1].recipients == (recipient,)


def test_the_table_is_whole() -> None:
    assert {verb.decode() for verb in VERBS} == set(LINES) == set(EXPECTED)
    assert all(set(expected) == set(STATES) for expected in EXPECTED.values())


@pytest.mark.parametrize("verb", LINES)
@pytest.mark.parametrize("state", STATES)
def test_command_in_state(state: str, verb: str) -> None:
    stage, client = stage_with_client(state)
    replies = client.ask(LINES[verb])
    assert replies[0].startswith(EXPECTED[verb][state]), replies
    assert len(replies) == 1 or verb == "EHLO"
    if verb == "QUIT":
        assert client.ended == "closed"
    else:
        end_body(client, replies)
        in_step(stage, client)
    stage.finish()


@pytest.mark.parametrize(("first", "second"), list(product(LINES, LINES)))
@pytest.mark.parametrize("state", ["fresh", "mail", "rcpt"])
def test_two_commands_in_one_segment_are_answered_as_one_by_one(state: str, first: str, second: str) -> None:
    """Pipelining changes nothing (RFC 2920 3.1), whatever the client may lawfully pipeline or not.

    But for what comes behind DATA: it is content if 354 was said.
    """
    stage, client = stage_with_client(state)
    together = client.ask(LINES[first], LINES[second])
    other_stage, other = stage_with_client(state)
    one_by_one = other.ask(LINES[first])
    if not other.ended and not (first == "DATA" and one_by_one[-1].startswith("354")):
        one_by_one += other.ask(LINES[second])
    assert together == one_by_one
    assert stage.mtas["A"].commands == other_stage.mtas["A"].commands
    assert stage.record.failures == other_stage.record.failures
    for client_now, stage_now in ((client, stage), (other, other_stage)):
        if first == "DATA" and together[-1].startswith("354"):
            client_now.send(".\r\n")
            client_now.take_all()
        elif not client_now.ended:
            end_body(client_now, together)
            in_step(stage_now, client_now)
        stage_now.finish()


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("", "500 5.5.2"),
        (" ", "500 5.5.2"),
        ("FOO", "500 5.5.2"),
        ("FOO BAR", "500 5.5.2"),
        ("MAILFROM:<s@a.test>", "500 5.5.2"),
        ("\x00\x01\xff", "500 5.5.2"),
        ("HELO", "501 5.5.4"),
        ("EHLO", "501 5.5.4"),
        ("EHLO \x01", "501 5.5.4"),
        ("MAIL", "501 5.5.4"),
        ("MAIL FROM", "501 5.5.4"),
        ("MAIL FROM:", "501 5.1.7"),
        ("MAIL TO:<s@a.test>", "501 5.5.4"),
        ("MAIL FROM:<s@a.test", "501 5.1.7"),
        ("MAIL FROM:<s@a.test> SIZE=x", "501 5.5.4"),
        ("MAIL FROM:<s@a.test> SIZE=1 SIZE=2", "501 5.5.4"),
        ("MAIL FROM:<s@a.test> FOO=1", "555 5.5.4"),
        ("MAIL FROM:<s@a.test> RET=FULL", "555 5.5.4"),
        ("VRFY", "501 5.5.4"),
        ("RSET x", "501 5.5.4"),
        ("QUIT x", "501 5.5.4"),
        ("DATA x", "501 5.5.4"),
        ("RCPT", "501 5.5.4"),
        *((verb.decode(), "502 5.5.1") for verb in sorted(NOT_IMPLEMENTED)),
    ],
)
def test_bad_line_is_answered_and_forgotten(line: str, reply: str) -> None:
    stage, client = stage_with_client("greeted")
    assert client.one(line).startswith(reply)
    in_step(stage, client)
    stage.finish()


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("RCPT TO:", "501 5.1.3"),
        ("RCPT TO:<>", "501 5.1.3"),
        ("RCPT TO:<a b@c.test>", "501 5.1.3"),
        ("RCPT TO:<r@b.test> FOO", "555 5.5.4"),
        ("RCPT TO:<r@b.test> NOTIFY=NEVER", "555 5.5.4"),
    ],
)
def test_bad_recipient_leaves_the_transaction_as_it_was(line: str, reply: str) -> None:
    stage, client = stage_with_client("rcpt")
    assert client.one(line).startswith(reply)
    assert client.ask("DATA")[0].startswith("354")
    client.send("hi\r\n.\r\n")
    assert client.take_all()[0].startswith(TAKEN)
    assert stage.mtas["A"].taken[0].recipients == ("r@b.test",)
    stage.finish()


@pytest.mark.parametrize("verb", sorted(FOREIGN))
@pytest.mark.parametrize("state", ["fresh", "rcpt"])
def test_another_protocol_ends_the_session(state: str, verb: bytes) -> None:
    stage, client = stage_with_client(state)
    assert client.ask(f"{verb.decode()} / HTTP/1.1", "Host: lb", "", "MAIL FROM:<x@a.test>") == [
        "421 4.7.0 This is an SMTP service"
    ]
    assert client.ended == "closed"
    stage.finish()


@pytest.mark.parametrize("length", [2047, 2048, 2049, 4096, 1_000_000])
@pytest.mark.parametrize("how", ["at once", "in pieces", "pipelined"])
def test_long_line(length: int, how: str) -> None:
    """2048 octets, CRLF included, are taken; more is 500, once, however it comes, and read to its end."""
    stage, client = stage_with_client("greeted")
    line = b"NOOP " + b"x" * (length - 7) + b"\r\n"
    assert len(line) == length
    expected = "250 2.0.0 Ok" if length <= 2048 else "500 5.5.2 Line too long"
    if how == "pipelined":
        client.send(b"NOOP\r\n" + line + b"NOOP\r\n")
        assert client.take_all() == ["250 2.0.0 Ok", expected, "250 2.0.0 Ok"]
    elif how == "at once":
        client.send(line)
        assert client.take_all() == [expected]
    else:
        for at in range(0, length, 1000):
            client.send(line[at : at + 1000])
        assert client.take_all() == [expected]
    in_step(stage, client)
    stage.finish()


def test_a_long_line_that_looks_like_commands_inside_is_one_line() -> None:
    stage, client = stage_with_client("rcpt")
    client.send(b"x" * 3000)
    client.send(b"RCPT TO:<sneaky@b.test>\r\n")
    assert client.take_all() == ["500 5.5.2 Line too long"]
    in_step(stage, client)
    stage.finish()


def test_long_line_behind_a_recipient_that_is_not_answered_yet() -> None:
    """It takes its place in the order of replies."""
    stage, client = stage_with_client("mail")
    stage.sites["A"].connects = "hang"
    client.send(b"RCPT TO:<r@b.test>\r\n" + b"y" * 5000)
    client.send(b"RCPT TO:<z@b.test>\r\nRCPT TO:<q@b.test>\r\n")
    assert client.take_all() == []
    stage.sites["A"].connects = "accept"
    stage.loop.connecting(stage.loop.connects[0])
    stage.loop.settle()
    assert client.take_all() == [RCPT, "500 5.5.2 Line too long", "250 2.1.5 q@b.test ok at A"]
    stage.finish()


@pytest.mark.parametrize("mode", ["normalize", "reject"])
def test_bare_newline_at_the_end_of_a_command(mode: str) -> None:
    stage = FakeStage(Setup(bare_newline=mode))
    client = stage.client().hello()
    client.send("NOOP\nNOOP\r\n")
    first = "250 2.0.0 Ok" if mode == "normalize" else "500 5.5.2 Command lines end with CR LF"
    assert client.take_all() == [first, "250 2.0.0 Ok"]
    stage.finish()


def test_error_limit_ends_the_session_and_its_transaction() -> None:
    stage = FakeStage(Setup(limits={"errors": 3}))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    assert client.ask("FOO", "FOO", "FOO", "FOO", "DATA") == [
        "500 5.5.2 Command not recognized",
        "500 5.5.2 Command not recognized",
        "500 5.5.2 Command not recognized",
        "421 4.7.0 Too many errors",
    ]
    assert client.ended == "closed"
    assert stage.record.session_reasons == ["errors"]
    assert stage.mtas["A"].commands[-1] == "RSET", "the backend's connection is kept"
    stage.finish()


def test_recipients_that_backends_refuse_count_as_errors() -> None:
    stage = FakeStage(Setup(limits={"errors": 3}))
    stage.mtas["A"].verdicts = {f"bad{n}@b.test": "550 5.1.1 unknown" for n in range(9)}
    client = stage.client().hello()
    replies = client.ask("MAIL FROM:<s@a.test>", *(f"RCPT TO:<bad{n}@b.test>" for n in range(9)), "DATA")
    assert replies == ["250 2.1.0 Ok", *["550 5.1.1 unknown"] * 3, "421 4.7.0 Too many errors"]
    assert client.ended == "closed"
    stage.finish()


def test_recipients_beyond_the_limit_are_told_to_come_again_and_are_no_errors() -> None:
    """RFC 5321 4.5.3.1.10: 452, and the rest goes on. Queueing clients ask for each of thousands."""
    stage = FakeStage(Setup(limits={"errors": 3, "recipients": 2}))
    client = stage.client().hello()
    replies = client.ask("MAIL FROM:<s@a.test>", *(f"RCPT TO:<r{n}@b.test>" for n in range(10)), "DATA")
    assert [reply[:9] for reply in replies] == ["250 2.1.0"] + ["250 2.1.5"] * 2 + ["452 4.5.3"] * 8 + [
        "354 End d"
    ]
    client.send("hi\r\n.\r\n")
    assert client.take_all()[0].startswith(TAKEN)
    assert stage.mtas["A"].taken[0].recipients == ("r0@b.test", "r1@b.test")
    stage.finish()


def test_refused_recipients_do_not_use_up_the_limit() -> None:
    stage = FakeStage(Setup(limits={"recipients": 2}))
    stage.mtas["A"].verdicts["bad@b.test"] = "550 5.1.1 unknown"
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>")
    for recipient, code in (("bad", "550"), ("r1", "250"), ("bad", "550"), ("r2", "250"), ("r3", "452")):
        assert client.one(f"RCPT TO:<{recipient}@b.test>").startswith(code)
    stage.finish()


def test_sessions_beyond_the_limit_hear_421() -> None:
    stage = FakeStage(Setup(limits={"sessions": 2}))
    first = stage.client().hello()
    stage.client().hello()
    third = stage.client()
    assert third.take_all() == ["421 4.3.2 Too many sessions, try again later"]
    assert third.ended == "closed"
    assert first.one("QUIT").startswith("221")
    stage.client().hello()
    stage.finish()


def test_idle_client_hears_421() -> None:
    stage = FakeStage()
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")
    stage.clock(200.0)
    client.one("NOOP")
    stage.clock(299.0)
    assert (client.take_all(), client.ended) == ([], "")
    stage.clock(2.0)
    assert client.take_all() == ["421 4.4.2 Idle for too long"]
    assert client.ended == "closed"
    assert stage.record.outcomes == ["aborted"]
    stage.finish()


def test_declared_size_beyond_the_limit() -> None:
    stage = FakeStage(Setup(limits={"message_size_bytes": 1000}))
    client = stage.client().hello()
    assert client.one("MAIL FROM:<s@a.test> SIZE=1001") == "552 5.3.4 Message size exceeds the limit"
    assert client.one("MAIL FROM:<s@a.test> SIZE=1000") == "250 2.1.0 Ok"
    stage.finish()


def test_relay_guard_judges_each_recipient() -> None:
    stage = FakeStage(Setup(accept=("b.test",)))
    client = stage.client().hello()
    client.ask("MAIL FROM:<s@a.test>")
    assert client.one("RCPT TO:<x@elsewhere.test>") == "550 5.7.1 Relaying denied"
    assert client.one("RCPT TO:<x%elsewhere.test@b.test>") == "550 5.7.1 Relaying denied"
    assert client.one("RCPT TO:<r@B.Test>") == "250 2.1.5 r@B.Test ok at A"
    assert client.one("RCPT TO:<postmaster>") == "250 2.1.5 postmaster ok at A"
    assert [c for c in stage.mtas["A"].commands if c.startswith("RCPT")] == [
        "RCPT TO:<r@B.Test>",
        "RCPT TO:<postmaster>",
    ]
    stage.finish()


def test_parameters_go_only_to_a_backend_that_lists_them() -> None:
    for offers, sent in (
        (("PIPELINING", "SIZE 1000000", "8BITMIME"), "MAIL FROM:<s@a.test> SIZE=99 BODY=7BIT"),
        (("SIZE 1000000",), "MAIL FROM:<s@a.test> SIZE=99"),
        ((), "MAIL FROM:<s@a.test>"),
        (None, "MAIL FROM:<s@a.test>"),
    ):
        stage = FakeStage()
        stage.mtas["A"].offers = offers
        client = stage.client().hello()
        stage.apply()
        # Before a backend was seen its extensions are not offered; after the first message they are.
        client.message()
        stage.apply()
        parameters = " SIZE=99 BODY=7BIT" if offers and "8BITMIME" in offers else " SIZE=99"
        assert client.one(f"MAIL FROM:<s@a.test>{parameters}") == "250 2.1.0 Ok"
        client.one("RCPT TO:<r@b.test>")
        assert [c for c in stage.mtas["A"].commands if c.startswith("MAIL")][-1] == sent
        stage.finish()


@pytest.mark.parametrize("offers", [("SIZE 1000000",), (), None], ids=["no-pipelining", "nothing", "helo"])
def test_backend_without_pipelining_gets_one_command_at_a_time(offers: tuple[str, ...] | None) -> None:
    stage = FakeStage()
    mta = stage.mtas["A"]
    mta.offers = offers
    client = stage.client().hello()
    recipients = [f"r{n}@b.test" for n in range(5)]
    commands = ["MAIL FROM:<s@a.test>", *(f"RCPT TO:<{r}>" for r in recipients), "DATA"]
    for n in range(2):
        assert [reply[:3] for reply in client.ask(*commands)] == ["250"] * 6 + ["354"]
        client.send("hi\r\n.\r\n")
        assert client.take_all() == [f"{TAKEN} {n + 1}"]
    # One write for each command: the next only after the answer to the last.
    transport = stage.wires[1].transport
    assert transport is not None
    assert all(data.count(b"\r\n") == 1 for _, data in transport.writes if not data.startswith(b"hi"))
    stage.finish()


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("250 ok", "250 2.0.0 ok"),
        ("250 2.1.5 ok", "250 2.1.5 ok"),
        ("550 5.1.1 no", "550 5.1.1 no"),
        ("550 no", "550 5.0.0 no"),
        ("550 2.0.0 no", "550 5.0.0 2.0.0 no"),
        ("450", "450 4.0.0 "),
    ],
)
def test_enhanced_codes_are_added_where_a_backend_gives_none(said: str, heard: str) -> None:
    stage = FakeStage()
    stage.mtas["A"].verdicts["r@b.test"] = said
    client = stage.client().hello()
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")[1] == heard
    stage.finish()


def test_every_line_of_a_multiline_refusal_carries_the_code() -> None:
    stage = FakeStage()
    stage.mtas["A"].verdicts["r@b.test"] = "550-first\r\n550-5.1.2 second\r\n550 third"
    client = stage.client().hello()
    assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>")[1:] == [
        "550-5.1.2 first",
        "550-5.1.2 second",
        "550 5.1.2 third",
    ]
    stage.finish()


def test_commands_that_carry_no_mail_count_as_errors_once_they_are_too_many() -> None:
    """Postfix has the same limit of 100 (smtpd_junk_command_limit): a session is for mail."""
    stage = FakeStage(Setup(limits={"errors": 3}))
    client = stage.client().hello()  # its EHLO is the first
    assert client.ask(*["NOOP"] * 33, *["RSET"] * 33, *["EHLO x"] * 33)[-1].startswith("250")
    assert client.ask("NOOP", "NOOP") == ["250 2.0.0 Ok"] * 2
    assert client.ask("NOOP") == ["421 4.7.0 Too many errors"]
    stage.finish()


def test_a_message_between_lets_a_session_go_on() -> None:
    stage = FakeStage(Setup(limits={"errors": 3}))
    client = stage.client().hello()
    for _ in range(5):
        client.ask(*["NOOP"] * 90)
        assert client.ask("MAIL FROM:<s@a.test>", "RCPT TO:<r@b.test>", "DATA")[-1].startswith("354")
        client.send(b"x\r\n.\r\n")
        assert client.take_all()[-1].startswith("250")
    stage.finish()
