"""What the log says about each kind of event, and how loud.

Owns levels, messages and field names (Elastic Common Schema where one fits, `smtplb.` where none does).
Does not own how lines are written (logs.py) or how words from outside are encoded (encode.py).
Invariant: every text in the fields went through encode.py, and every address of a person through People.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from smtplb.observe.encode import People, fill, in_json, octets, words, words_in_json
from smtplb.observe.ended import SessionEnded, TransactionEnded
from smtplb.observe.events import AttemptFailed, BackendBlamed, BackendChanged, Event, GroupShifted, Notice
from smtplb.observe.outcomes import AttemptOutcome, TransactionOutcome

# A function from outside what is compiled is looked up by name each time: here once.
_fill: Final = fill

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40
LEVELS: Final = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
NAMES: Final = {number: name for name, number in LEVELS.items()}

MAX_NOTICE_FIELD: Final = 8192  # room for the stack of a bug

Value = str | int | float | bool
Fields = dict[str, Value]

MESSAGE: Final = "message"
ACTION: Final = "event.action"
ECS_VERSION: Final = "8.11.0"
SERVICE: Final = "smtplb"
_COMMON_JSON: Final = f'"ecs.version":"{ECS_VERSION}","service.name":"{SERVICE}",'

# Field -> its name in text. Fields that are not here repeat what the message says, and are for machines.
TEXT_NAMES: Final = {
    "smtplb.transaction.id": "transaction",
    "smtplb.session.id": "session",
    "smtplb.listener": "listener",
    "client.address": "client",
    "smtplb.helo": "helo",
    "email.from.address": "from",
    "email.to.address": "to",
    "smtplb.recipients.accepted": "rcpts",
    "smtplb.recipients.refused": "rcpts_refused",
    "smtplb.pool": "pool",
    "smtplb.backend": "backend",
    "smtplb.phase": "phase",
    "smtplb.reply": "reply",
    "smtplb.message_bytes": "bytes",
    "smtplb.attempts": "attempts",
    "smtplb.digest": "digest",
    "smtplb.transactions": "transactions",
    "smtplb.blamed": "blamed",
    "smtplb.detail": "detail",
    "smtplb.shares.old": "old",
    "smtplb.shares.new": "new",
    "smtplb.down_for_s": "down_for_s",
    "smtplb.duration_ms": "ms",
}
NOTICE_PREFIX: Final = "smtplb.notice."

# Members of an enumeration of strings are looked up by name each time, compiled, too: here once.
_IN_DOUBT: Final = TransactionOutcome.IN_DOUBT
_TEMPFAIL: Final = TransactionOutcome.TEMPFAIL

_ECS_OUTCOMES: Final = {
    TransactionOutcome.OK: "success",
    TransactionOutcome.ABORTED: "unknown",  # the client's own decision
    _IN_DOUBT: "unknown",
    AttemptOutcome.IN_DOUBT: "unknown",
}


# -- levels: a warning is what somebody may have to look at; what the mail deserved is information ----------


def _transaction_level(event: TransactionEnded) -> int:
    if event.outcome is _IN_DOUBT:
        return WARNING
    # A 4xx without a backend is our own trouble; a backend's 4xx (greylisting, quotas) is its verdict.
    if event.outcome is _TEMPFAIL and not event.backend:
        return WARNING
    return INFO


_ATTEMPT_LEVELS: Final = {
    AttemptOutcome.FAULT: WARNING,
    AttemptOutcome.IN_DOUBT: WARNING,
    AttemptOutcome.REPLACED: DEBUG,  # a kept connection had gone stale: everyday life
}


def _attempt_level(event: AttemptFailed) -> int:
    return _ATTEMPT_LEVELS.get(event.outcome, INFO)


def _blame_level(event: BackendBlamed) -> int:
    return DEBUG  # the attempt that failed has its line


def _session_level(event: SessionEnded) -> int:
    return DEBUG  # its transactions have lines of their own


def _backend_level(event: BackendChanged) -> int:
    return WARNING if event.new in ("down", "ejected") else INFO


def _group_level(event: GroupShifted) -> int:
    return WARNING


def _notice_level(event: Notice) -> int:
    return LEVELS.get(event.level, ERROR)


# -- what is said ------------------------------------------------------------------------------------------


# What stands between the values of a transaction's line, in pieces.
_PIECES: Final = tuple(
    f'{{"@timestamp":"%","log.level":"%","message":"transaction %: %",{_COMMON_JSON}"event.action":"transaction-ended",'
    '"event.outcome":"%","event.reason":"%","event.duration":%,"smtplb.outcome":"%","smtplb.transaction.id":"%",'
    '"smtplb.session.id":"%","smtplb.listener":"%","client.address":"%","smtplb.helo":"%","email.from.address":"%",'
    '"email.to.address":"%","smtplb.recipients.accepted":%,"smtplb.recipients.refused":%,"smtplb.pool":"%",'
    '"smtplb.backend":"%","smtplb.phase":"%","smtplb.reply":"%","smtplb.message_bytes":%,"smtplb.attempts":%,'
    '"smtplb.duration_ms":%}\n'.encode().split(b"%")
)


def transaction_json(event: TransactionEnded, people: People, stamp: str) -> bytes:
    """The whole line, line end included. There is one for each message: plain words are filled in as they are."""
    sender, recipient = event.sender, event.recipient
    bare = sender and recipient and sender[0] != 0x3C and recipient[0] != 0x3C  # not `<>`
    if bare and not people.hides and not event.digest:
        outcome, cause = event.outcome, event.cause
        line = _fill(
            _PIECES,
            (
                stamp,
                NAMES[_transaction_level(event)],
                outcome,
                cause,
                _ECS_OUTCOMES.get(outcome, "failure"),
                cause,
                int(event.duration_s * 1e9),
                outcome,
                event.transaction_id,
                event.session_id,
                event.listener,
                event.client,
                event.helo,
                sender,
                recipient,
                event.recipients,
                event.recipients_refused,
                event.pool,
                event.backend,
                event.phase,
                event.reply,
                event.message_bytes,
                event.attempts,
                int(event.duration_s * 1000),
            ),
        )
        if line is not None:
            return line
    return careful_transaction_json(event, people, stamp).encode()


def careful_transaction_json(event: TransactionEnded, people: People, stamp: str) -> str:
    """The same, whatever the words are."""
    outcome = event.outcome
    cause, reply, helo = words(event.cause), octets(event.reply), octets(event.helo)
    if people.hides:
        known = (event.sender, event.recipient)
        cause, reply, helo = (people.prose(said, *known) for said in (cause, reply, helo))
    cause = in_json(cause)
    sender = people.address(event.sender)
    from_whom = "" if sender is None else f'"email.from.address":"{in_json(sender)}",'
    recipient = people.address(event.recipient) if event.recipient else None
    to_whom = "" if recipient is None else f'"email.to.address":"{in_json(recipient)}",'
    digest = f'"smtplb.digest":"{words_in_json(event.digest)}",' if event.digest else ""
    return (
        f'{{"@timestamp":"{stamp}","log.level":"{NAMES[_transaction_level(event)]}",'
        f'"message":"transaction {outcome}: {cause}",{_COMMON_JSON}"event.action":"transaction-ended",'
        f'"event.outcome":"{_ECS_OUTCOMES.get(outcome, "failure")}","event.reason":"{cause}",'
        f'"event.duration":{int(event.duration_s * 1e9)},"smtplb.outcome":"{outcome}",'
        f'"smtplb.transaction.id":"{words_in_json(event.transaction_id)}",'
        f'"smtplb.session.id":"{words_in_json(event.session_id)}",'
        f'"smtplb.listener":"{words_in_json(event.listener)}","client.address":"{words_in_json(event.client)}",'
        f'"smtplb.helo":"{in_json(helo)}",{from_whom}{to_whom}'
        f'"smtplb.recipients.accepted":{event.recipients},"smtplb.recipients.refused":{event.recipients_refused},'
        f'"smtplb.pool":"{words_in_json(event.pool)}","smtplb.backend":"{words_in_json(event.backend)}",'
        f'"smtplb.phase":"{words_in_json(event.phase)}","smtplb.reply":"{in_json(reply)}",'
        f'"smtplb.message_bytes":{event.message_bytes},"smtplb.attempts":{event.attempts},{digest}'
        f'"smtplb.duration_ms":{int(event.duration_s * 1000)}}}\n'
    )


def _attempt(event: AttemptFailed, people: People, fields: Fields) -> None:
    fields |= {
        MESSAGE: f"attempt {event.outcome}: {words(event.reason)}",
        ACTION: "attempt-failed",
        "event.outcome": _ECS_OUTCOMES.get(event.outcome, "failure"),
        "event.reason": words(event.reason),
        "smtplb.outcome": event.outcome,
        "smtplb.transaction.id": words(event.transaction_id),
        "smtplb.session.id": words(event.session_id),
        "client.address": words(event.client),
        "smtplb.pool": words(event.pool),
        "smtplb.backend": words(event.backend),
        "smtplb.phase": words(event.phase),
        "smtplb.blamed": event.blamed,
        "smtplb.detail": people.prose(octets(event.detail)),
    }


def _blame(event: BackendBlamed, people: People, fields: Fields) -> None:
    reason, pool, backend = words(event.reason), words(event.pool), words(event.backend)
    fields |= {
        MESSAGE: f"backend {pool}/{backend} blamed: {reason}",
        ACTION: "backend-blamed",
        "event.reason": reason,
        "smtplb.session.id": words(event.session_id),
        "client.address": words(event.client),
        "smtplb.pool": pool,
        "smtplb.backend": backend,
    }


def _session(event: SessionEnded, people: People, fields: Fields) -> None:
    reason = people.prose(words(event.reason))
    fields |= {
        MESSAGE: f"session ended: {reason}",
        ACTION: "session-ended",
        "event.reason": reason,
        "event.duration": int(event.duration_s * 1e9),
        "smtplb.session.id": words(event.session_id),
        "smtplb.listener": words(event.listener),
        "client.address": words(event.client),
        "smtplb.transactions": event.transactions,
        "smtplb.duration_ms": int(event.duration_s * 1000),
    }


def _backend(event: BackendChanged, people: People, fields: Fields) -> None:
    old, new = words(event.old), words(event.new)
    reason = people.prose(words(event.reason))
    pool, backend = words(event.pool), words(event.backend)
    # An operator's weight changes without a change of state.
    step = f"{old} -> {new}" if old != new else f"still {new}"
    fields |= {
        MESSAGE: f"backend {pool}/{backend} {step}" + (f": {reason}" if reason else ""),
        ACTION: "backend-changed",
        "event.reason": reason,
        "smtplb.pool": pool,
        "smtplb.backend": backend,
        "smtplb.state.old": old,
        "smtplb.state.new": new,
    }
    if event.down_for_s is not None:
        fields["smtplb.down_for_s"] = round(event.down_for_s, 3)


def _group(event: GroupShifted, people: People, fields: Fields) -> None:
    reason, group = people.prose(words(event.reason)), words(event.group)
    fields |= {
        MESSAGE: f"group {group} shifted: {reason}",
        ACTION: "group-shifted",
        "event.reason": reason,
        "smtplb.group": group,
        "smtplb.shares.old": _shares(event.old),
        "smtplb.shares.new": _shares(event.new),
    }


def _shares(shares: tuple[tuple[str, int], ...]) -> str:
    return ",".join(f"{words(pool)}={share}" for pool, share in shares)


def _notice(event: Notice, people: People, fields: Fields) -> None:
    fields[MESSAGE] = people.prose(words(event.text))
    fields[ACTION] = words(event.what)
    for name, value in event.fields.items():
        shown = people.prose(words(value, MAX_NOTICE_FIELD)) if isinstance(value, str) else value
        fields[NOTICE_PREFIX + words(name)] = shown


def level_of(event: Event) -> int:
    return _transaction_level(event) if isinstance(event, TransactionEnded) else KINDS[type(event)][0](event)


def json_line(event: Event, people: People, stamp: str) -> bytes:
    if isinstance(event, TransactionEnded):
        return transaction_json(event, people, stamp)
    level, describe = KINDS[type(event)]
    fields: Fields = {
        "@timestamp": stamp,
        "log.level": NAMES[level(event)],
        MESSAGE: "",
        "ecs.version": ECS_VERSION,
        "service.name": SERVICE,
        ACTION: "",
    }
    describe(event, people, fields)
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def text_line(event: Event, people: People, stamp: str) -> str:
    """The same for people to read: what the JSON says, without what only machines want."""
    fields: Fields = orjson.loads(json_line(event, people, stamp))
    parts = [stamp, str(fields["log.level"]).ljust(7), str(fields[MESSAGE])]
    for field, value in fields.items():
        name = field.removeprefix(NOTICE_PREFIX) if field.startswith(NOTICE_PREFIX) else TEXT_NAMES.get(field)
        if name is not None and value != "":
            parts.append(f"{name}={_text_value(value)}")
    return " ".join(parts) + "\n"


def _text_value(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if " " in text or '"' in text or "=" in text:
        return '"' + text.replace('"', "\\x22") + '"'
    return text


# Kind of event, but TransactionEnded -> its level, and what puts what it says into a line's fields.
# Any: each function takes its own kind of event.
KINDS: Final[dict[type, tuple[Callable[[Any], int], Callable[[Any, People, Fields], None]]]] = {
    AttemptFailed: (_attempt_level, _attempt),
    BackendBlamed: (_blame_level, _blame),
    SessionEnded: (_session_level, _session),
    BackendChanged: (_backend_level, _backend),
    GroupShifted: (_group_level, _group),
    Notice: (_notice_level, _notice),
}
