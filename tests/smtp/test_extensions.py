"""Extensions: EHLO replies of real servers, what of a MAIL a backend may be given, what we offer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtplb.smtp.extensions import (
    END_TO_END,
    MAIL_PARAMETERS,
    RCPT_PARAMETERS,
    Capabilities,
    Parameters,
    common_mechanisms,
    common_offers,
    ehlo_reply,
    needs_of,
    size_limit,
)
from smtplb.smtp.replies import MAX_REPLY_LINE_BYTES, Reply, ReplyReader
from tests.effort import examples

A_WHILE_S = 0.5  # what takes microseconds; the cubic reading of the same takes minutes

POSTFIX = [
    b"mx1.lab.test",
    b"PIPELINING",
    b"SIZE 10240000",
    b"VRFY",
    b"ETRN",
    b"STARTTLS",
    b"AUTH PLAIN LOGIN",
    b"AUTH=PLAIN LOGIN",
    b"XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT",
    b"ENHANCEDSTATUSCODES",
    b"8BITMIME",
    b"DSN",
    b"SMTPUTF8",
    b"CHUNKING",
]
EXIM = [
    b"exim.lab.test Hello client.test [192.0.2.7]",
    b"SIZE 52428800",
    b"LIMITS MAILMAX=1000 RCPTMAX=50000",
]
EXIM += [b"8BITMIME", b"PIPELINING", b"PIPECONNECT", b"CHUNKING", b"PRDR", b"HELP"]
SENDMAIL = [b"sendmail.lab.test Hello client.test [192.0.2.7], pleased to meet you", b"ENHANCEDSTATUSCODES"]
SENDMAIL += [b"PIPELINING", b"EXPN", b"VERB", b"8BITMIME", b"SIZE", b"DSN", b"ETRN", b"DELIVERBY", b"HELP"]
EXCHANGE = [
    b"ex1.lab.test Hello [192.0.2.7]",
    b"SIZE 37748736",
    b"PIPELINING",
    b"DSN",
    b"ENHANCEDSTATUSCODES",
]
EXCHANGE += [b"STARTTLS", b"X-ANONYMOUSTLS", b"AUTH NTLM LOGIN", b"X-EXPS GSSAPI NTLM", b"8BITMIME"]
EXCHANGE += [b"BINARYMIME", b"CHUNKING", b"XRDST"]


@pytest.mark.parametrize(
    ("lines", "size_limit_bytes", "has_codes"),
    [
        (POSTFIX, 10240000, True),
        (EXIM, 52428800, False),
        (SENDMAIL, None, True),
        (EXCHANGE, 37748736, True),
    ],
    ids=["Postfix", "Exim", "Sendmail", "Exchange"],
)
def test_what_real_servers_offer_is_known(
    lines: list[bytes], size_limit_bytes: int | None, has_codes: bool
) -> None:
    offered = Capabilities(Reply(250, lines))
    assert offered.pipelining
    assert b"8BITMIME" in offered
    assert offered.size_limit_bytes == size_limit_bytes
    assert (b"ENHANCEDSTATUSCODES" in offered) is has_codes
    assert set(offered.keywords) == {line.replace(b"=", b" ").split()[0] for line in lines[1:]}


def test_parameters_of_a_keyword_are_kept() -> None:
    assert Capabilities(Reply(250, POSTFIX)).keywords[b"AUTH"] == b"PLAIN LOGIN"
    assert Capabilities(Reply(250, EXIM)).keywords[b"LIMITS"] == b"MAILMAX=1000 RCPTMAX=50000"


def test_after_helo_nothing_is_offered() -> None:
    offered = Capabilities()
    assert not offered.keywords
    assert not offered.pipelining
    assert offered.size_limit_bytes is None


def test_the_first_line_is_a_greeting_and_no_keyword() -> None:
    assert b"PIPELINING" not in Capabilities(Reply(250, [b"PIPELINING"]))
    assert Capabilities(Reply(250, [b"SIZE 1000", b"HELP"])).size_limit_bytes is None


@pytest.mark.parametrize(
    ("line", "keyword", "parameters"),
    [
        (b"pipelining", b"PIPELINING", b""),
        (b"PIPELINING ", b"PIPELINING", b""),
        (b"PIPELINING\t", b"PIPELINING", b""),
        (b"SIZE  1000  ", b"SIZE", b"1000"),
        (b"SIZE\t1000", b"SIZE", b"1000"),
        (b"AUTH=LOGIN PLAIN", b"AUTH", b"LOGIN PLAIN"),
        (b"AUTH =LOGIN", b"AUTH", b"LOGIN"),
        (b"8bitmime", b"8BITMIME", b""),
        (b"X-EXPS GSSAPI", b"X-EXPS", b"GSSAPI"),
    ],
)
def test_a_keyword_is_read_in_any_spelling(line: bytes, keyword: bytes, parameters: bytes) -> None:
    assert Capabilities(Reply(250, [b"x", line])).keywords == {keyword: parameters}


@pytest.mark.parametrize(
    "line", [b"", b" ", b"-PIPELINING", b" PIPELINING", b"PIPE_LINING", b"SIZE \xe9", b"\xe9"]
)
def test_what_is_no_keyword_line_is_passed_over(line: bytes) -> None:
    assert set(Capabilities(Reply(250, [b"x", line, b"DSN"])).keywords) == {b"DSN"}


@pytest.mark.parametrize(
    ("line", "size_limit_bytes"),
    [
        (b"SIZE", None),  # RFC 1870 3: unknown
        (b"SIZE 0", None),  # no fixed limit
        (b"SIZE 00", None),
        (b"SIZE 1", 1),
        (b"SIZE 9999999999999999999", 9999999999999999999),
        (b"SIZE 1_0", None),
        (b"SIZE +5", None),
        (b"SIZE -5", None),
        (b"SIZE 0x10", None),
        (b"SIZE 10 20", None),
        (b"SIZE 10K", None),
        (b"SIZE \xef\xbc\x91", None),
    ],
)
def test_the_size_limit_is_ascii_digits_or_unknown(line: bytes, size_limit_bytes: int | None) -> None:
    assert Capabilities(Reply(250, [b"x", line])).size_limit_bytes == size_limit_bytes


def test_a_keyword_twice_counts_as_it_was_said_first() -> None:
    assert Capabilities(Reply(250, [b"x", b"SIZE 10", b"SIZE 20"])).size_limit_bytes == 10


@pytest.mark.parametrize("filling", [b" ", b"=", b"\t", b" \t", b"= ", b"a", b"a "])
@pytest.mark.parametrize("end", [b"\xff", b""])
def test_a_long_line_costs_no_more_than_its_length(filling: bytes, end: bytes) -> None:
    """A backend, or who speaks in its place, must not be able to stop a worker by one line."""
    room = MAX_REPLY_LINE_BYTES - len(b"250-A\r\n") - len(end)
    line = b"A" + (filling * room)[:room] + end
    start = time.process_time()
    Capabilities(Reply(250, [b"x", line]))
    assert time.process_time() - start < A_WHILE_S


# -- parameters ----------------------------------------------------------------------------------------------------

ALL = [
    b"SIZE 1000",
    b"8BITMIME",
    b"SMTPUTF8",
    b"DSN",
    b"REQUIRETLS",
    b"AUTH PLAIN",
    b"BINARYMIME",
    b"CHUNKING",
]


@pytest.mark.parametrize(
    ("keywords", "parameters", "sent"),
    [
        (ALL, {}, b""),
        (ALL, {b"SIZE": b"100"}, b" SIZE=100"),
        (ALL, {b"SIZE": b"100", b"BODY": b"8BITMIME"}, b" SIZE=100 BODY=8BITMIME"),
        (ALL, {b"SMTPUTF8": None, b"BODY": b"8BITMIME"}, b" SMTPUTF8 BODY=8BITMIME"),
        (ALL, {b"RET": b"hdrs", b"ENVID": b"QQ+3Da"}, b" RET=hdrs ENVID=QQ+3Da"),  # RFC 3461 5.2: unchanged
        (ALL, {b"AUTH": b"<>", b"REQUIRETLS": None}, b" AUTH=<> REQUIRETLS"),
        ([b"SIZE 1000"], {b"SIZE": b"100", b"BODY": b"7BIT"}, b" SIZE=100"),
        ([b"8BITMIME"], {b"SIZE": b"100", b"BODY": b"7BIT"}, b" BODY=7BIT"),
        ([b"BINARYMIME", b"CHUNKING"], {b"BODY": b"BINARYMIME"}, b" BODY=BINARYMIME"),
        ([], {b"SIZE": b"100", b"AUTH": b"<>"}, b""),
    ],
)
def test_a_backend_is_given_only_mail_parameters_that_it_offers(
    keywords: list[bytes], parameters: Parameters, sent: bytes
) -> None:
    assert Capabilities(Reply(250, [b"x", *keywords])).mail_parameters(parameters) == sent


@pytest.mark.parametrize(
    ("keywords", "parameters", "sent"),
    [
        (ALL, {}, b""),
        (
            ALL,
            {b"NOTIFY": b"success,FAILURE", b"ORCPT": b"rfc822;A@b.test"},
            b" NOTIFY=success,FAILURE ORCPT=rfc822;A@b.test",
        ),
        ([b"SIZE"], {b"NOTIFY": b"NEVER"}, b""),
    ],
)
def test_a_backend_is_given_only_rcpt_parameters_that_it_offers(
    keywords: list[bytes], parameters: Parameters, sent: bytes
) -> None:
    assert Capabilities(Reply(250, [b"x", *keywords])).rcpt_parameters(parameters) == sent


@pytest.mark.parametrize(
    ("parameters", "needs"),
    [
        ({}, set()),
        ({b"SIZE": b"100"}, set()),
        ({b"AUTH": b"<>"}, set()),
        ({b"BODY": b"7BIT"}, set()),
        ({b"BODY": b"8bitmime"}, {b"8BITMIME"}),
        ({b"BODY": b"BinaryMime"}, {b"BINARYMIME", b"CHUNKING"}),
        ({b"SMTPUTF8": None}, {b"SMTPUTF8"}),
        ({b"RET": b"FULL"}, {b"DSN"}),
        ({b"ENVID": b"x"}, {b"DSN"}),
        ({b"NOTIFY": b"NEVER"}, {b"DSN"}),
        ({b"ORCPT": b"rfc822;a"}, {b"DSN"}),
        ({b"REQUIRETLS": None}, {b"REQUIRETLS"}),
        ({b"SIZE": b"1", b"SMTPUTF8": None, b"BODY": b"8BITMIME"}, {b"SMTPUTF8", b"8BITMIME"}),
    ],
)
def test_what_says_something_about_the_message_needs_a_backend_that_knows_it(
    parameters: Parameters, needs: set[bytes]
) -> None:
    assert needs_of(parameters) == needs


VALUES = {b"SMTPUTF8": None, b"REQUIRETLS": None, b"BODY": b"8BITMIME"}
KNOWN = [*MAIL_PARAMETERS, *RCPT_PARAMETERS]


@settings(max_examples=examples(300))
@given(
    st.sets(st.sampled_from(KNOWN)),
    st.sampled_from([b"7BIT", b"8BITMIME", b"BINARYMIME"]),
    st.sets(st.sampled_from(ALL)),
)
def test_a_backend_that_has_what_is_needed_is_given_all_but_courtesies(
    names: set[bytes], body: bytes, keywords: set[bytes]
) -> None:
    parameters = {name: body if name == b"BODY" else VALUES.get(name, b"x") for name in sorted(names)}
    offered = Capabilities(Reply(250, [b"x", *sorted(keywords)]))
    if not needs_of(parameters) <= set(offered.keywords):
        return
    mail = {name: value for name, value in parameters.items() if name in MAIL_PARAMETERS}
    rcpt = {name: value for name, value in parameters.items() if name in RCPT_PARAMETERS}
    sent = {
        word.partition(b"=")[0]
        for word in (offered.mail_parameters(mail) + offered.rcpt_parameters(rcpt)).split()
    }
    assert sent <= names
    assert names - sent <= {b"SIZE", b"AUTH"} | ({b"BODY"} if body == b"7BIT" else set())


# -- what we offer -------------------------------------------------------------------------------------------------

Offers = dict[bytes, bytes]


def offers(*lines: bytes) -> Offers:
    return Capabilities(Reply(250, [b"x", *lines])).keywords


FULL = offers(*ALL)


@pytest.mark.parametrize(
    ("backends", "common"),
    [
        ([], set()),
        ([None], set()),
        ([FULL, None], set()),
        ([FULL], set(END_TO_END)),
        ([FULL, offers(b"8BITMIME", b"DSN")], {b"8BITMIME", b"DSN"}),
        ([FULL, offers()], set()),
        ([offers(b"8BITMIME", b"BINARYMIME")], {b"8BITMIME"}),  # RFC 3030 3: only with CHUNKING
        ([FULL, offers(b"8BITMIME", b"BINARYMIME")], {b"8BITMIME"}),
        ([offers(b"SMTPUTF8", b"DSN")], {b"DSN"}),  # RFC 6531 3.1: only with 8BITMIME
        ([offers(b"XCLIENT ADDR", b"PRDR", b"XEXCH50", b"DSN")], {b"DSN"}),
    ],
)
def test_what_all_backends_have_is_offered_and_nothing_while_one_is_unknown(
    backends: list[Offers | None], common: set[bytes]
) -> None:
    assert common_offers(backends) == common


@pytest.mark.parametrize(
    ("backends", "mechanisms"),
    [
        ([], []),
        ([None], []),
        ([offers(b"AUTH PLAIN LOGIN"), None], []),
        ([offers(b"AUTH PLAIN LOGIN")], [b"PLAIN", b"LOGIN"]),
        ([offers(b"AUTH plain LOGIN"), offers(b"AUTH LOGIN PLAIN CRAM-MD5")], [b"PLAIN", b"LOGIN"]),
        ([offers(b"AUTH PLAIN"), offers(b"DSN")], []),
        ([offers(b"AUTH PLAIN"), offers(b"AUTH LOGIN")], []),
        # bound to the TLS channel, which ends here
        ([offers(b"AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL external")], [b"SCRAM-SHA-256"]),
    ],
)
def test_mechanisms_are_those_of_all_backends_that_can_be_relayed(
    backends: list[Offers | None], mechanisms: list[bytes]
) -> None:
    assert common_mechanisms(backends) == mechanisms


@pytest.mark.parametrize(
    ("backends", "limit"),
    [
        ([], None),
        ([None], None),
        ([offers(b"SIZE 1000")], 1000),
        ([offers(b"SIZE 1000"), offers(b"SIZE 2000")], 2000),
        ([offers(b"SIZE 1000"), offers(b"SIZE 0")], None),
        ([offers(b"SIZE 1000"), offers(b"SIZE")], None),
        ([offers(b"SIZE 1000"), offers()], None),
        ([offers(b"SIZE 1000"), None], None),
        ([offers(b"SIZE 1_0")], None),
    ],
)
def test_the_size_that_some_backend_takes_is_the_limit_of_all(
    backends: list[Offers | None], limit: int | None
) -> None:
    assert size_limit(backends) == limit


NEVER_OFFERED = {
    *(b"XFORWARD", b"PIPECONNECT", b"PRDR", b"XVERP", b"ETRN", b"TURN", b"ATRN", b"BURL", b"X-ANONYMOUSTLS"),
    *(b"X-EXPS", b"XEXCH50", b"XRDST", b"XSHADOW", b"XPROXY", b"XOORG", b"VRFY", b"EXPN", b"HELP"),
}


def read_back(wire: bytes) -> Capabilities:
    reader = ReplyReader()
    reader.feed(wire)
    reply = reader.next_reply()
    assert isinstance(reply, Reply)
    assert reader.empty
    assert reply.lines[0] == b"lb1.example.net"
    return Capabilities(reply)


def test_hop_by_hop_extensions_are_always_offered_and_no_other() -> None:
    offered = read_back(ehlo_reply(b"lb1.example.net", frozenset(), size_limit_bytes=None))
    assert offered.keywords == {
        b"PIPELINING": b"",
        b"SIZE": b"0",
        b"CHUNKING": b"",
        b"ENHANCEDSTATUSCODES": b"",
    }


def test_everything_that_can_be_offered_reads_back() -> None:
    wire = ehlo_reply(
        b"lb1.example.net",
        frozenset({*END_TO_END, *NEVER_OFFERED}),
        size_limit_bytes=1000,
        starttls=True,
        mechanisms=[b"PLAIN", b"LOGIN"],
        xclient=True,
        limits=b"RCPTMAX=1000",
    )
    offered = read_back(wire)
    assert offered.size_limit_bytes == 1000
    assert offered.keywords[b"AUTH"] == b"PLAIN LOGIN"
    assert offered.keywords[b"LIMITS"] == b"RCPTMAX=1000"
    assert set(END_TO_END) <= set(offered.keywords)
    assert {b"STARTTLS", b"XCLIENT"} <= set(offered.keywords)
    assert not NEVER_OFFERED & set(offered.keywords), "a keyword of a backend never reaches a client"


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_any_ehlo_reply_gives_upper_case_keywords_of_letters_digits_and_hyphens(lines: list[bytes]) -> None:
    for keyword, parameters in Capabilities(Reply(250, [b"x", *lines])).keywords.items():
        assert keyword.replace(b"-", b"A").isalnum()
        assert keyword == keyword.upper()
        assert parameters == parameters.strip()
        assert all(0x20 <= octet < 0x7F or octet == 0x09 for octet in parameters)
