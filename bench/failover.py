"""`python -m bench.failover`: what clients notice while real mail servers are killed, through HAProxy and through smtplb.

The same clients send the same number of messages through both in front of the same Postfix; the first of them is killed whole
and started again every second. Clients try each message until they hear 250. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from bench.report import machine
from tests.e2e.balancer import FALL, RISE, Smtplb, pool
from tests.failover.killing import Books, Killer, Traffic, carry
from tests.lab import HAProxy, Instance, Mta, Postfix

MESSAGES, SESSIONS, EVERY_S, ROUNDS = 2000, 20, 1.0, 3
PER_SESSION = {"kept sessions": None, "a session for each message": 1}
# Checks as often as smtplb's in the same run. redispatch and retries: what HAProxy has for a server that does not answer.
CHECK = f"check inter 300ms fastinter 100ms downinter 100ms rise {RISE} fall {FALL} on-marked-down shutdown-sessions"
LINES = ("option smtpchk EHLO lb.lab.test", "option redispatch 1", "retries 3")


@dataclass(slots=True)
class Total:
    """Of all rounds of one subject in one case."""

    books: list[Books] = field(default_factory=list)
    kills: int = 0
    seconds: list[float] = field(default_factory=list)
    slowest_s: float = 0.0

    def errors(self, wanted: Callable[[str], bool]) -> int:
        return sum(count for books in self.books for words, count in books.errors.items() if wanted(words))


def haproxy(servers: list[Postfix]) -> Instance:
    return HAProxy([server.port for server in servers], server_options=CHECK, lines=LINES)


def smtplb(servers: list[Postfix]) -> Instance:
    return Smtplb({"relays": pool(*servers)}, warnings=False)


SUBJECTS: dict[str, Callable[[list[Postfix]], Instance]] = {"HAProxy": haproxy, "smtplb": smtplb}


async def one_round(subject: str, servers: int, messages: int, per_session: int | None, total: Total) -> None:
    with ExitStack() as started:
        mtas = [started.enter_context(Postfix(f"mx{number}")) for number in range(1, servers + 1)]
        front = started.enter_context(SUBJECTS[subject](mtas))
        records: list[Mta] = list(mtas)
        traffic = Traffic(front.port, messages=messages, sessions=SESSIONS, per_session=per_session)
        killer = Killer(records[:1], EVERY_S)
        total.books.append(await carry(traffic, killer, records))
        total.kills += killer.kills
        total.seconds.append(traffic.duration_s)
        total.slowest_s = max(total.slowest_s, *(sent.took_s for sent in traffic.sent))


def row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


HEADER = (
    *("Postfix", "clients", "in front", "kills", "errors heard", "of these: connection lost", "451 in doubt"),
    *("other", "lost", "doubled", "seconds", "slowest message"),
)


def report(servers: int, case: str, subject: str, total: Total) -> str:
    lost = total.errors(lambda words: words == "lost")
    doubt = total.errors(lambda words: words.startswith(("451 4.4.2", "451 4.3.0")))
    every = total.errors(lambda words: True)
    return row(
        (
            servers,
            case,
            subject,
            total.kills,
            every,
            lost,
            doubt,
            every - lost - doubt,
            sum(len(books.lost) for books in total.books),
            sum(len(books.doubled) for books in total.books),
            f"{median(total.seconds):.1f}",
            f"{total.slowest_s * 1000:.0f} ms",
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"of a round (default {MESSAGES})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each row (default {ROUNDS})")
    options = parser.parse_args()
    for program in (Postfix, HAProxy, Smtplb):
        reason = program.available()
        if reason is not None:
            print(f"{reason}: run `make mtas` as root on Debian", file=sys.stderr)
            return 1
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{options.rounds} rounds of {options.messages} messages over {SESSIONS} sessions a row\n")
    print(row(HEADER))
    print("|---" * len(HEADER) + "|")
    others: set[str] = set()
    for servers in (2, 3):
        for case, per_session in PER_SESSION.items():
            totals = {subject: Total() for subject in SUBJECTS}
            for _ in range(
                options.rounds
            ):  # in turn, so that what the machine does to one it does to the other
                for subject, total in totals.items():
                    asyncio.run(one_round(subject, servers, options.messages, per_session, total))
            for subject, total in totals.items():
                print(report(servers, case, subject, total), flush=True)
                others |= {f"{subject}: {words}" for books in total.books for words in books.errors}
    print("\n" + "\n".join(sorted(others)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
