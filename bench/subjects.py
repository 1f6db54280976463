"""What stands between load and sinks: nothing, HAProxy, smtplb. All are up during the whole run, in front of the same sinks.

Owns starting them and measuring each. Invariant: a figure counts only if every message reached a sink.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Case
from tests.e2e.balancer import Smtplb
from tests.lab import HAProxy, Instance, LabError, SmtpSink, SmtpSource, wait_until

SINKS = 2
HAPROXY, SMTPLB, DIRECT = "HAProxy", "smtplb", "direct"


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """One subject in one round.

    `cpu_us`: user and system time of the subject for each message, None where there is none.
    `others`: part of the machine that was busy with what is not ours; interrupts count as others.
    """

    messages_per_s: float
    cpu_us: float | None
    others: float


class Subjects:
    """`names` is the order of a round."""

    names = (DIRECT, HAPROXY, SMTPLB)

    def __init__(self, sinks: list[SmtpSink], haproxy: HAProxy, smtplb: Smtplb) -> None:
        self._sinks = sinks
        self.processes: dict[str, Instance | None] = {DIRECT: None, HAPROXY: haproxy, SMTPLB: smtplb}

    def measure(self, name: str, case: Case) -> Measured:
        process = self.processes[name]
        port = process.port if process is not None else self._sinks[0].port
        taken = self._taken()
        cpu_s = process.cpu_s() if process is not None else 0.0
        busy_s, all_s, ours_s = *_machine_s(), self._ours_s()
        load = SmtpSource.run(
            port,
            messages=case.messages,
            sessions=case.sessions,
            size_bytes=case.size_bytes,
            keep_sessions=case.keep_sessions,
            timeout_s=600.0,
        )
        if load.returncode != 0 or load.errors:
            raise LabError(f"{name}, {case.name}: smtp-source failed: {load.errors[:3]}")
        wait_until(lambda: self._taken() >= taken + case.messages, f"{name}: all messages at the sinks")
        if self._taken() != taken + case.messages:
            raise LabError(f"{name}, {case.name}: sinks took {self._taken() - taken} of {case.messages}")
        now_busy_s, now_all_s = _machine_s()
        others_s = (now_busy_s - busy_s) - (self._ours_s() - ours_s)
        cpu_us = (process.cpu_s() - cpu_s) / case.messages * 1e6 if process is not None else None
        return Measured(load.messages_per_s, cpu_us, max(0.0, others_s / (now_all_s - all_s)))

    def _taken(self) -> int:
        return sum(sink.messages() for sink in self._sinks)

    def _ours_s(self) -> float:
        """CPU time of all that takes part, the load included."""
        running = [*self._sinks, *(process for process in self.processes.values() if process is not None)]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = time.process_time()
        return sum(each.cpu_s() for each in running) + ended.ru_utime + ended.ru_stime + own


def _machine_s() -> tuple[float, float]:
    """CPU time of the whole machine: busy, and all."""
    user, nice, system, idle, iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    busy = user + nice + system + irq + softirq
    return busy / _TICKS_PER_S, (busy + idle + iowait) / _TICKS_PER_S


@contextmanager
def running() -> Iterator[Subjects]:
    with ExitStack() as started:
        sinks = [started.enter_context(SmtpSink(f"sink{number}")) for number in range(1, SINKS + 1)]
        haproxy = started.enter_context(HAProxy([sink.port for sink in sinks]))
        # Nothing but addresses: checks, limits, log and the rest are what everybody gets who writes no more.
        backends = [sink.address for sink in sinks]
        smtplb = started.enter_context(
            Smtplb(
                {"relays": {"backends": backends}},
                sections={"log": {"destination": "./smtplb.log"}},
                warnings=False,
            )
        )
        yield Subjects(sinks, haproxy, smtplb)
