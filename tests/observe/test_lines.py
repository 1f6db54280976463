"""What a log line says: one line for any event, nothing from outside raw, all that is asked at night."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.observe.encode import People, octets, words
from smtplb.observe.ended import SessionEnded, TransactionEnded
from smtplb.observe.events import AttemptFailed, BackendBlamed, BackendChanged, Event, GroupShifted, Notice
from smtplb.observe.lines import KINDS, TEXT_NAMES, careful_transaction_json, transaction_json
from smtplb.observe.logs import LogWriter
from smtplb.observe.outcomes import AttemptOutcome, TransactionOutcome
from smtplb.settings import LogSettings
from tests.observe.ends import Kept

NOON = 1_783_000_000.25


def transaction(**changes: Any) -> TransactionEnded:
    fields: dict[str, Any] = {
        "listener": "mx",
        "session_id": "k3v9",
        "transaction_id": "k3v9.2",
        "client": "192.0.2.7:40112",
        "helo": b"mail.client.test",
        "sender": b"anna@client.test",
        "recipients": 2,
        "recipients_refused": 1,
        "pool": "east",
        "backend": "mx1",
        "outcome": TransactionOutcome.OK,
        "phase": "final",
        "cause": "backend said so",
        "reply": b"250 2.0.0 Ok: queued as 4XyZ",
        "message_bytes": 4821,
        "attempts": 1,
        "duration_s": 0.0412,
        "recipient": b"bert@lab.test",
    }
    return TransactionEnded(**(fields | changes))


def written(event: Event, **settings: str) -> str:
    end = Kept()
    chosen = LogSettings(**({"format": "ecs", "level": "debug"} | settings))
    writer = LogWriter(chosen, outlet=end, clock=lambda: NOON)
    writer.emit(event)
    writer.close()
    return end.text


def as_json(event: Event, **settings: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(written(event, **settings))
    return line


def test_a_transaction_tells_all_that_is_asked_at_night() -> None:
    assert as_json(transaction()) == {
        "@timestamp": "2026-07-02T13:46:40.250Z",
        "log.level": "info",
        "message": "transaction ok: backend said so",
        "ecs.version": "8.11.0",
        "service.name": "smtplb",
        "event.action": "transaction-ended",
        "event.outcome": "success",
        "event.reason": "backend said so",
        "event.duration": 41_200_000,
        "smtplb.outcome": "ok",
        "smtplb.transaction.id": "k3v9.2",
        "smtplb.session.id": "k3v9",
        "smtplb.listener": "mx",
        "client.address": "192.0.2.7:40112",
        "smtplb.helo": "mail.client.test",
        "email.from.address": "anna@client.test",
        "email.to.address": "bert@lab.test",
        "smtplb.recipients.accepted": 2,
        "smtplb.recipients.refused": 1,
        "smtplb.pool": "east",
        "smtplb.backend": "mx1",
        "smtplb.phase": "final",
        "smtplb.reply": "250 2.0.0 Ok: queued as 4XyZ",
        "smtplb.message_bytes": 4821,
        "smtplb.attempts": 1,
        "smtplb.duration_ms": 41,
    }


def test_a_transaction_in_text_is_one_line_of_names_and_values() -> None:
    assert written(transaction(), format="text") == (
        "2026-07-02T13:46:40.250Z info    transaction ok: backend said so transaction=k3v9.2 session=k3v9 "
        "listener=mx client=192.0.2.7:40112 helo=mail.client.test from=anna@client.test "
        "to=bert@lab.test rcpts=2 rcpts_refused=1 pool=east backend=mx1 phase=final "
        'reply="250 2.0.0 Ok: queued as 4XyZ" bytes=4821 attempts=1 ms=41\n'
    )


def test_a_backend_that_goes_down_is_a_warning_and_coming_back_is_information() -> None:
    down = BackendChanged("east", "mx2", "up", "down", "check: connection refused, 3 of 3")
    back = BackendChanged("east", "mx2", "down", "up", "check: 250, 2 of 2", down_for_s=61.2345)
    assert as_json(down)["log.level"] == "warning"
    assert as_json(down)["message"] == "backend east/mx2 up -> down: check: connection refused, 3 of 3"
    assert as_json(back)["log.level"] == "info"
    assert as_json(back)["smtplb.down_for_s"] == 61.234


def test_a_shift_of_a_group_names_old_and_new_shares() -> None:
    shift = GroupShifted("site", (("east", 100), ("west", 0)), (("east", 0), ("west", 100)), "east below 50%")
    assert written(shift, format="text").endswith(
        'warning group site shifted: east below 50% old="east=100,west=0" new="east=0,west=100"\n'
    )


def test_a_notice_brings_its_own_fields() -> None:
    notice = Notice("info", "listening", "listening on 127.0.0.1:2525", {"listener": "mx", "port": 2525})
    assert as_json(notice)["smtplb.notice.port"] == 2525
    assert written(notice, format="text").endswith(
        " info    listening on 127.0.0.1:2525 listener=mx port=2525\n"
    )


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (transaction(outcome=TransactionOutcome.IN_DOUBT), "warning"),
        (transaction(outcome=TransactionOutcome.TEMPFAIL, pool="", backend=""), "warning"),
        (transaction(outcome=TransactionOutcome.TEMPFAIL), "info"),
        (transaction(outcome=TransactionOutcome.PERMFAIL), "info"),
        (transaction(outcome=TransactionOutcome.REFUSED, backend=""), "info"),
        (AttemptFailed("p", "b", "s", "c", AttemptOutcome.FAULT, "connect", "connect", b"", True), "warning"),
        (AttemptFailed("p", "b", "s", "c", AttemptOutcome.REPLACED, "mail", "stale", b"", False), "debug"),
        (BackendBlamed("east", "mx1", "k3v9", "192.0.2.7:1", "lost"), "debug"),
        (SessionEnded("mx", "k3v9", "192.0.2.7:1", "quit", 3, 1.5), "debug"),
        (Notice("error", "bug", "internal error"), "error"),
    ],
)
def test_a_warning_is_what_somebody_may_have_to_look_at(event: Event, level: str) -> None:
    assert as_json(event)["log.level"] == level


def test_events_below_the_level_are_not_written() -> None:
    assert written(transaction(), level="warning") == ""
    assert written(transaction(outcome=TransactionOutcome.IN_DOUBT), level="warning") != ""


@pytest.mark.parametrize("mode", ["hash", "omit"])
@pytest.mark.parametrize("form", ["text", "ecs"])
def test_no_address_of_a_person_is_written_when_they_are_to_be_kept_back(mode: str, form: str) -> None:
    event = transaction(
        outcome=TransactionOutcome.PERMFAIL,
        reply=b"550 5.1.1 <bert@lab.test>: no mailbox for other.person@lab.test",
        cause="backend said so about anna@client.test",
    )
    shown = written(event, addresses=mode, format=form)
    assert "@client.test" not in shown
    assert "@lab.test" not in shown
    assert "mail.client.test" in shown


def test_every_kind_of_event_has_a_line() -> None:
    assert {*KINDS, TransactionEnded} == set(get_args(Event))


# -- laws ---------------------------------------------------------------------------------------------------

anything = st.binary(max_size=80) | st.sampled_from(
    [b"\r\n", b"\x1b[2J", b'"', b"\\", b"=", b"\xe2\x80\xa8", b"a@b"]
)
any_text = st.text(alphabet=st.characters(), max_size=60)
any_transaction = st.builds(
    transaction,
    **dict.fromkeys(("listener", "session_id", "transaction_id", "client", "pool", "backend"), any_text),
    **dict.fromkeys(("helo", "sender", "reply", "recipient"), anything),
    **dict.fromkeys(("phase", "cause", "digest"), any_text),
    recipients=st.integers(0, 9),
    outcome=st.sampled_from(TransactionOutcome),
)
events = st.one_of(
    any_transaction,
    st.builds(
        AttemptFailed,
        *[any_text] * 4,
        st.sampled_from(AttemptOutcome),
        any_text,
        any_text,
        anything,
        st.booleans(),
    ),
    st.builds(BackendBlamed, *[any_text] * 5),
    st.builds(SessionEnded, *[any_text] * 4, st.integers(0, 9), st.floats(0, 1e6)),
    st.builds(BackendChanged, *[any_text] * 5, st.none() | st.floats(0, 1e6)),
    st.builds(
        GroupShifted,
        any_text,
        st.just((("east", 1),)),
        st.lists(st.tuples(any_text, st.integers(0, 9))).map(tuple),
        any_text,
    ),
    st.builds(
        Notice,
        st.sampled_from(["info", "warning", "error", "?"]),
        any_text,
        any_text,
        st.dictionaries(any_text, any_text | st.integers(-(2**40), 2**40) | st.floats(), max_size=3),
    ),
)


@given(any_transaction)
def test_a_transaction_in_json_reads_back_as_what_was_said(event: TransactionEnded) -> None:
    """The line is not made by a JSON library: what a client, a backend or a name puts into it stays in its field."""
    line = as_json(event)
    told = {
        "message": f"transaction {event.outcome}: {words(event.cause)}",
        "event.reason": words(event.cause),
        "smtplb.outcome": event.outcome.value,
        "smtplb.transaction.id": words(event.transaction_id),
        "smtplb.session.id": words(event.session_id),
        "smtplb.listener": words(event.listener),
        "client.address": words(event.client),
        "smtplb.helo": octets(event.helo),
        "smtplb.recipients.accepted": event.recipients,
        "smtplb.recipients.refused": event.recipients_refused,
        "smtplb.pool": words(event.pool),
        "smtplb.backend": words(event.backend),
        "smtplb.phase": words(event.phase),
        "smtplb.reply": octets(event.reply),
        "smtplb.message_bytes": event.message_bytes,
        "smtplb.attempts": event.attempts,
    }
    assert {name: line[name] for name in told} == told
    assert line.get("smtplb.digest", "") == words(event.digest)
    assert set(line) <= {*told, *TEXT_NAMES, *as_json(transaction())}


_ODD: dict[str, Any] = {
    **dict.fromkeys(("listener", "transaction_id", "client", "pool", "backend", "phase", "cause"), any_text),
    **dict.fromkeys(
        ("helo", "sender", "reply", "recipient"), anything | st.sampled_from([b"", b"<>", b"<a@b>"])
    ),
    "digest": st.sampled_from(["", "ab12"]),
    "cause": st.text("ab", min_size=1020, max_size=1030),
    "message_bytes": st.sampled_from([0, 1 << 62, 1 << 64]),
    "duration_s": st.floats(0, 1e9),
    "outcome": st.sampled_from(TransactionOutcome),
}


@given(st.fixed_dictionaries({}, optional=_ODD), st.sampled_from(["plain", "hash", "omit"]))
def test_the_quick_line_of_a_transaction_is_the_careful_one(odd: dict[str, Any], mode: str) -> None:
    event, people = transaction(**odd), People(mode, b"k" * 32)
    careful = careful_transaction_json(event, people, "now")
    assert transaction_json(event, people, "now") == careful.encode("utf-8", "surrogatepass")


@given(events, st.sampled_from(["plain", "hash", "omit"]))
def test_any_event_is_one_line_of_json_without_a_control_character(event: Event, mode: str) -> None:
    shown = written(event, addresses=mode)
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()
    line = json.loads(shown)
    assert line["ecs.version"]
    assert all(value.isprintable() for value in line.values() if isinstance(value, str))


@given(events, st.sampled_from(["plain", "hash", "omit"]))
def test_any_event_is_one_line_of_text_without_a_control_character(event: Event, mode: str) -> None:
    shown = written(event, addresses=mode, format="text")
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()


@given(anything)
def test_a_client_cannot_forge_a_field_in_text(said: bytes) -> None:
    shown = written(transaction(helo=said, sender=b""), format="text")
    names = [name for name, _ in re.findall(r'(\S+?)=("[^"]*"|\S*)', shown)]
    assert set(names) <= set(TEXT_NAMES.values())
    assert len(names) == len(set(names))
