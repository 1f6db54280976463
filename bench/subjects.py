"""What stands between load and sinks: nothing, HAProxy, smtplb. All are up during the whole run, in front of the same sinks.

Owns starting them and measuring one round. Invariant: a round counts only if every message reached a sink.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.cases import Case
from tests.e2e.balancer import Smtplb
from tests.lab import HAProxy, Instance, LabError, SmtpSink, SmtpSource, wait_until

SINKS = 2
HAPROXY, SMTPLB, DIRECT = "HAProxy", "smtplb", "direct"


@dataclass(frozen=True, slots=True)
class Measured:
    """One round. `cpu_us`: user and system time of the subject for each message, None where there is none."""

    messages_per_s: float
    cpu_us: float | None


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
        cpu_us = (process.cpu_s() - cpu_s) / case.messages * 1e6 if process is not None else None
        return Measured(load.messages_per_s, cpu_us)

    def _taken(self) -> int:
        return sum(sink.messages() for sink in self._sinks)


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
