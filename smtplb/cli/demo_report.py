"""What the demo saw and how it says so.

Owns counting by backend and stage, what the balancer's events told, and the words and tables at the end. Does
not own the ledger's laws (demo_ledger.py) nor the course of events (demo.py).
Invariant: plain ASCII, so that it reads the same in a terminal, a pipe and a log of a build.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from smtplb.cli.demo_ledger import Audit, Ledger, Told
from smtplb.cli.demo_traffic import TrafficCounts
from smtplb.cli.embedded import Taken
from smtplb.messages import BackendState
from smtplb.observe.ended import TransactionEnded
from smtplb.observe.events import BackendChanged, Event
from smtplb.observe.outcomes import TransactionOutcome

MAX_DISAGREEMENTS_SHOWN = 10


class Stage(StrEnum):
    BEFORE = "before"
    WITHOUT = "without"  # the victim is dead, or not found well again yet
    AFTER = "after"


@dataclass(slots=True)
class Tally:
    """What backends took, by stage, and what the balancer's events told."""

    ledger: Ledger
    victim: str
    tell: Callable[[str], None]  # a line for the one who watches
    stage: Stage = Stage.BEFORE
    taken: Counter[tuple[str, Stage]] = field(default_factory=Counter)
    found_down: asyncio.Event = field(default_factory=asyncio.Event)
    found_up: asyncio.Event = field(default_factory=asyncio.Event)
    moved: int = 0  # transactions that ended well at another backend than the first one asked
    in_doubt: int = 0

    def message_taken(self, taken: Taken) -> None:
        self.taken[taken.backend, self.stage] += 1
        if taken.message_id:
            self.ledger.backend_took(taken.backend, taken.message_id)

    def emit(self, event: Event) -> None:
        """What the balancer gets as the place for its events."""
        if isinstance(event, TransactionEnded):
            self.moved += event.outcome is TransactionOutcome.OK and event.attempts > 1
            self.in_doubt += event.outcome is TransactionOutcome.IN_DOUBT
        elif isinstance(event, BackendChanged):
            self._backend_changed(event)

    def _backend_changed(self, event: BackendChanged) -> None:
        if event.old == BackendState.UNPROVEN:
            return  # the first checks: that is how it starts
        self.tell(f"the balancer finds {event.backend} {event.new} ({event.reason})")
        if event.backend == self.victim:
            well = event.new == BackendState.UP
            (self.found_up if well else self.found_down).set()
            if well and self.stage is Stage.WITHOUT:
                self.stage = Stage.AFTER


@contextmanager
def progress(console: Console, messages: int, tell: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """What to call with the number delivered so far: a bar on a terminal, elsewhere a line at each fifth."""
    if console.is_terminal:
        columns = (TextColumn("messages"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("messages", total=messages)
            yield lambda count: bar.update(task, completed=count)
    else:
        fifths = {messages * fifth // 5 for fifth in range(1, 6)}
        yield lambda count: tell(f"{count:,} of {messages:,} delivered") if count in fifths else None


def backends_table(tally: Tally, backends: Sequence[str]) -> Table:
    table = Table(title="messages taken", title_justify="left", box=box.ASCII)
    table.add_column("backend")
    for heading in ("before", f"without {tally.victim}", "after", "all"):
        table.add_column(heading, justify="right")
    for backend in backends:
        counts = [tally.taken[backend, stage] for stage in Stage]
        table.add_row(backend, *(f"{count:,}" for count in (*counts, sum(counts))))
    table.add_section()
    totals = [sum(tally.taken[backend, stage] for backend in backends) for stage in Stage]
    table.add_row("all", *(f"{count:,}" for count in (*totals, sum(totals))))
    return table


def client_table(
    tally: Tally, backends: Sequence[str], counts: TrafficCounts, audit: Audit, sessions: int
) -> Table:
    table = Table(title="what the client saw", title_justify="left", box=box.ASCII, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    again = counts.sessions - sessions
    table.add_row("sessions", f"{sessions:,}" + (f", opened again: {again:,}" if again else ", none cut"))
    reached: defaultdict[int, set[str]] = defaultdict(set)
    for transaction, session in counts.session_of.items():
        reached[session] |= tally.ledger.backends_of(transaction)
    everywhere = sum(len(each) == len(backends) for each in reached.values())
    table.add_row("  of which reached every backend", f"{everywhere:,}")
    table.add_row("messages", f"{audit.messages:,}")
    table.add_row("transactions", f"{counts.transactions:,}")
    for reply, count in sorted(counts.replies.items()):
        table.add_row(f"  that ended with {reply}", f"{count:,}")
    table.add_row("  moved to another backend, unseen by the client", f"{tally.moved:,}")
    table.add_row("  in doubt by the balancer's own record", f"{tally.in_doubt:,}")
    return table


def verdict(audit: Audit) -> str:
    """What the audit says, in words."""
    if audit.disagreements:
        lines = [f"THE BOOKS DO NOT AGREE, in {len(audit.disagreements):,} places:"]
        lines += [f"  {each}" for each in audit.disagreements[:MAX_DISAGREEMENTS_SHOWN]]
        return "\n".join(lines)
    text = (
        f"Nothing lost: the client saw 250 {audit.told[Told.TAKEN]:,} times, and each is exactly one message"
        " at a backend."
    )
    if doubts := audit.told[Told.IN_DOUBT]:
        arrived = audit.in_doubt_taken
        text += (
            f" In doubt: {doubts}. There the backend died between the final dot and its reply; the client"
            f" kept the message and sent it again. Arrived all the same, and so there twice: {arrived}"
            " (RFC 1047: no relay can rule that out)."
        )
    return text


def print_report(
    console: Console,
    *,
    tally: Tally,
    backends: Sequence[str],
    counts: TrafficCounts,
    audit: Audit,
    sessions: int,
    kept: bool,
) -> None:
    console.print()
    console.print(backends_table(tally, backends))
    console.print(client_table(tally, backends, counts, audit, sessions))
    console.print(verdict(audit), style="red" if audit.disagreements else "green")
    if not audit.disagreements:
        text = f"Shown: {tally.victim} died under load and came back, and no mail was lost."
        if not kept:
            text += " Next: `smtplb demo --keep` leaves all this running, for mail of your own and a drain."
        console.print(text)
