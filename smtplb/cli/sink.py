"""`smtplb sink`: a backend for tries, with faults on request.

Owns its options and what it prints. Does not own the dialogue (embedded.py).
Invariant: nothing is kept of a message but its line on stdout; the port is open before the first line is
printed, and the summary comes last, whatever ended it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import uvloop

from smtplb.cli.embedded import NO_FAULT, EmbeddedBackend, Fault, Taken, Verb
from smtplb.config.addresses import bind_address
from smtplb.config.scalars import duration, positive_size
from smtplb.settings import Address

DEFAULT_BIND = "127.0.0.1:2601"
QUIT_WITHIN_S = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
VERBS = ", ".join(Verb)


def read_by(
    read: Callable[[str], Any],
) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """The callback of an option whose text `read` understands; the words of its ValueError are the error."""

    def callback(context: click.Context, option: click.Parameter, value: Any) -> Any:
        try:
            if option.multiple:
                return tuple(read(each) for each in value)
            return None if value is None else read(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, option) from None

    return callback


def verb(text: str) -> Verb:
    try:
        return Verb(text)
    except ValueError:
        raise ValueError(f'"{text}" is none of {VERBS}') from None


def verb_reply(text: str) -> tuple[Verb, Fault]:
    """`rcpt=450 4.2.1 try later`"""
    where, reply = _split(text, "rcpt=450 4.2.1 try later")
    return verb(where), Fault(reply=reply)


def verb_delay(text: str) -> tuple[Verb, Fault]:
    """`final=2s`"""
    where, delay = _split(text, "final=2s")
    return verb(where), Fault(delay_s=duration(delay))


def _split(text: str, example: str) -> tuple[str, str]:
    where, equals, what = text.partition("=")
    if not equals:
        raise ValueError(f'"{text}" has no "=": write VERB=..., such as "{example}"')
    return where.strip(), what.strip()


def faults_of(
    replies: tuple[tuple[Verb, Fault], ...],
    delays: tuple[tuple[Verb, Fault], ...],
    drops: tuple[Verb, ...],
) -> dict[Verb, Fault]:
    """Several options may speak of one verb; ValueError when two of a kind do."""
    faults: dict[Verb, Fault] = {}
    for where, fault in (*replies, *delays, *((where, Fault(drop=True)) for where in drops)):
        known = faults.get(where, Fault())
        if (fault.reply and known.reply) or (fault.delay_s and known.delay_s):
            raise ValueError(f"{where} is given twice")
        if (fault.drop or known.drop) and (fault.reply or known.reply):
            raise ValueError(f"{where}: a connection that is dropped gives no reply")
        faults[where] = replace(
            known,
            reply=fault.reply or known.reply,
            delay_s=fault.delay_s or known.delay_s,
            drop=fault.drop or known.drop,
        )
    return faults


@click.command()
@click.option(
    "--bind",
    "binds",
    metavar="ADDRESS:PORT",
    callback=read_by(lambda text: bind_address(text, Path())),
    multiple=True,
    default=(DEFAULT_BIND,),
    show_default=True,
    help="Where to listen. May be given more than once.",
)
@click.option(
    "--fault",
    "replies",
    metavar="VERB=REPLY",
    callback=read_by(verb_reply),
    multiple=True,
    help='Answer so at VERB, such as "rcpt=450 4.2.1 try later".',
)
@click.option(
    "--delay",
    "delays",
    metavar="VERB=TIME",
    callback=read_by(verb_delay),
    multiple=True,
    help="Wait before the answer at VERB, such as final=2s.",
)
@click.option(
    "--drop",
    "drops",
    metavar="VERB",
    callback=read_by(verb),
    multiple=True,
    help="Cut the connection at VERB, unanswered.",
)
@click.option(
    "--message-size",
    metavar="SIZE",
    callback=read_by(positive_size),
    help="Refuse larger messages, such as 10MiB.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after that many messages.")
@click.option("--no-pipelining", is_flag=True, help="Do not offer PIPELINING.")
@click.option("--quiet", is_flag=True, help="No line per message, only the summary.")
def sink(
    binds: tuple[Address, ...],
    replies: tuple[tuple[Verb, Fault], ...],
    delays: tuple[tuple[Verb, Fault], ...],
    drops: tuple[Verb, ...],
    message_size: int | None,
    count: int | None,
    no_pipelining: bool,
    quiet: bool,
) -> None:
    """Be a backend that throws all mail away, with faults on request.

    One line for each message; Ctrl-C, SIGTERM or --count end it with a summary. VERB is where to misbehave:
    connect (the greeting), ehlo, helo, mail, rcpt, data, body (in the middle), final (behind the final dot),
    rset or quit. Exit status: 0, or 1 when the port cannot be had.
    """
    try:
        faults = faults_of(replies, delays, drops)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    run = _Sink(faults, message_size, count, pipelining=not no_pipelining, quiet=quiet)
    if not uvloop.run(run.serve(binds)):
        raise SystemExit(1)


class _Sink:
    def __init__(
        self,
        faults: dict[Verb, Fault],
        message_size_bytes: int | None,
        count: int | None,
        *,
        pipelining: bool,
        quiet: bool,
    ) -> None:
        self._faults = faults
        self._message_size_bytes = message_size_bytes
        self._count = count
        self._extensions = ("PIPELINING",) if pipelining else ()
        self._quiet = quiet
        self._messages = 0
        self._ended = asyncio.Event()
        self._grace_s = 0.0  # for open connections to end by themselves

    async def serve(self, binds: tuple[Address, ...]) -> bool:
        """Until a signal or the count. False when it could not listen."""
        backends = [self._backend(bind) for bind in binds]
        loop = asyncio.get_running_loop()
        try:
            for backend in backends:
                try:
                    await backend.start()
                except OSError as error:
                    words = error.strerror or str(error)
                    click.echo(f"smtplb sink: {backend.address}: {words[:1].lower()}{words[1:]}", err=True)
                    return False
            for number in STOP_SIGNALS:
                loop.add_signal_handler(number, self._ended.set)
            for backend in backends:
                click.echo(f"listening on {backend.address}; all mail is thrown away")
            await self._ended.wait()
            await asyncio.gather(*(backend.stop(self._grace_s) for backend in backends))
        finally:
            for backend in backends:
                await backend.stop()
        for backend in backends:
            click.echo(summary(backend))
        return True

    def _backend(self, bind: Address) -> EmbeddedBackend:
        return EmbeddedBackend(
            bind.host,
            bind.port,
            faults=self._faults,
            on_message=self._message_taken,
            message_size_bytes=self._message_size_bytes,
            extensions=self._extensions,
        )

    def _message_taken(self, taken: Taken) -> None:
        self._messages += 1
        if not self._quiet:
            try:
                click.echo(self._line(taken))
            except BrokenPipeError:  # nobody reads any more: end, but take this message as promised
                self._ended.set()
        if self._messages == self._count:
            # The reply to this message is still to come, and a well-behaved client says QUIT.
            self._grace_s = QUIT_WITHIN_S + self._faults.get(Verb.FINAL, NO_FAULT).delay_s
            self._ended.set()

    def _line(self, taken: Taken) -> str:
        first, *others = taken.recipients
        more = f" and {len(others)} more" if others else ""
        return (
            f"{datetime.now():%H:%M:%S} {taken.backend} message {self._messages} from <{taken.sender}>"
            f" to <{first}>{more}, {taken.message_bytes:,} octets"
        )


def summary(backend: EmbeddedBackend) -> str:
    counts = backend.counts
    words = [
        f"{backend.address}: connections {counts.connections_total:,}, messages {counts.messages:,},"
        f" octets {counts.message_bytes:,}"
    ]
    words += [f"{where} {code}: {count:,}" for (where, code), count in sorted(counts.refused.items())]
    if counts.dropped:
        words.append(f"dropped: {counts.dropped:,}")
    return "; ".join(words)
