"""What an idle session keeps in memory: behind EHLO, behind the handshake of TLS, behind a large message.

Owns that measurement. Invariant: what is counted is growth: others have done the same before and stay, so that what was
free in the heap, or is not a session's own, is not a session's.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench.cases import KIB
from bench.programs import TlsSink
from bench.subjects import Field, Holder, smtplb, with_tls
from tests.lab import SmtpSink

FIRST, SESSIONS, QUICK_SESSIONS = 350, 1200, 400  # limits.sessions is 2000
SMALL_BYTES, LARGE_BYTES = KIB, 120 * KIB


@dataclass(frozen=True, slots=True)
class Memory:
    """Octets of resident memory for each session. `process_mib` is the process before all sessions."""

    process_mib: float
    idle_bytes: float
    after_message_bytes: float


def measure_memory(field: Field, *, tls: bool, rounds: int, sessions: int = SESSIONS) -> Memory:
    found = [_once(field, tls, sessions) for _ in range(rounds)]
    return Memory(
        median(each.process_mib for each in found),
        median(each.idle_bytes for each in found),
        median(each.after_message_bytes for each in found),
    )


def _once(field: Field, tls: bool, sessions: int) -> Memory:
    """Two lives: the heap that a large message leaves behind would hide what sessions take that are opened later."""
    process_mib, idle_bytes = _growth(field, tls, sessions, SMALL_BYTES, None)
    _, after_message_bytes = _growth(field, tls, sessions, LARGE_BYTES, LARGE_BYTES)
    return Memory(process_mib, idle_bytes, after_message_bytes)


def _growth(
    field: Field, tls: bool, sessions: int, first_bytes: int, bytes_: int | None
) -> tuple[float, float]:
    """MiB before all sessions; octets by which each of `sessions` lets the process grow."""
    stage = field.stage(TlsSink if tls else SmtpSink)
    with (with_tls if tls else smtplb)(stage) as balancer:
        process_mib = balancer.rss_bytes() / 2**20
        with ExitStack() as opened:

            def stand(count: int, message_bytes: int | None) -> int:
                """The process with so many sessions more."""
                holder = opened.enter_context(Holder(balancer.port, tls=tls))
                holder.tell("open", count)
                if message_bytes is not None:
                    holder.tell("send", message_bytes)
                return balancer.rss_bytes()

            stand(FIRST, first_bytes)
            before = stand(FIRST, bytes_)  # these fill what the first ones left free
            return process_mib, (stand(sessions, bytes_) - before) / sessions
