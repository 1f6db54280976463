"""Measuring: a case in interleaved rounds, each subject for about the same time, and who was the limit.

Owns running loads and counting CPU time. Invariant: a figure counts only if every message reached a backend that can count.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import MIB, Case
from bench.programs import module
from bench.subjects import SUBJECTS, Field, Stage, missing
from tests.lab import Instance, LabError, SmtpSource, wait_until

QUIET = 0.1  # of the machine for others: above it a round is disturbed. Interrupts alone are some 0.03
STRANGERS = (
    0.25  # of the machine for others: more than that, and messages per second say nothing of those measured
)
PATIENCE = 1.4  # so many times the rounds are measured at most to get enough quiet ones
FULL = 0.9  # of a core: who uses that much in one thread is the limit
LOAD_TIMEOUT_S = 600.0
FIRST_MESSAGES, FIRST_S = 60, 0.3  # a look, and a warm-up, before messages are counted out for a round

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """One subject in one round.

    cpu_us          user and system time of all processes of the subject for each message; None where there is none
    shares          parts of a core that were used: "load", "backend" (the busiest), "balancer"
    busy, others    parts of the machine: in use, and in use by what is not ours; interrupts count as others
    p50_ms, p99_ms  from the first octet of a message to its 250, at a fixed rate; with new sessions from connect()
    """

    messages: int
    messages_per_s: float
    cpu_us: float | None
    shares: dict[str, float]
    busy: float
    others: float
    p50_ms: float | None = None
    p99_ms: float | None = None

    @property
    def limit(self) -> str:
        """What kept messages per second from being more."""
        full = [name for name, share in self.shares.items() if share >= FULL]
        if full:
            return " and ".join(full)
        if self.others >= STRANGERS:
            return "others' work"
        return "all cores" if self.busy >= FULL else "waiting"


Rounds = dict[str, list[Measured]]  # by subject


@dataclass(frozen=True, slots=True)
class _Loaded:
    duration_s: float
    cpu_s: float
    latency_ms: dict[str, float]


def measure(field: Field, case: Case, rounds: int, seconds: float) -> Rounds:
    """So many rounds: the quiet ones, and if there are not enough, the least disturbed."""
    names = [name for name in case.subjects if missing(name) is None]
    with field.running(names) as instances:
        meters = [
            Meter(name, case, instances[name], field.stage(SUBJECTS[name].stage), instances) for name in names
        ]
        for meter in meters:
            meter.count_out(seconds)
        measured: list[dict[str, Measured]] = []
        quiet = 0
        while quiet < rounds and len(measured) < max(rounds, round(PATIENCE * rounds)):
            measured.append({meter.name: meter.measure() for meter in meters})
            quiet += disturbance(measured[-1]) <= QUIET
        if quiet < rounds:
            busiest = max(map(disturbance, measured))
            print(f"  {quiet} of {rounds} rounds quiet, up to {busiest:.0%} for others", flush=True)
    kept = sorted(measured, key=disturbance)[:rounds]
    return {name: [each[name] for each in kept] for name in names}


def disturbance(measured: dict[str, Measured]) -> float:
    return max(each.others for each in measured.values())


class Meter:
    """One subject of a case that is up."""

    def __init__(
        self,
        name: str,
        case: Case,
        instance: Instance | None,
        stage: Stage,
        everybody: dict[str, Instance | None],
    ) -> None:
        self.name = name
        self._case = case
        self._instance = instance
        self._port = instance.port if instance is not None else stage.ports[0]
        self._stage = stage
        self._everybody = [each for each in everybody.values() if each is not None]
        self._messages = 0

    def count_out(self, seconds: float) -> None:
        """How many messages take about that long; everything is warm afterwards."""
        if self._case.rate is not None:
            self._messages = round(self._case.rate * seconds)
            self._send(round(self._case.rate))
            return
        least = self._case.sessions if self._case.keep else 1
        count = max(least, min(FIRST_MESSAGES, 100 * MIB // self._case.size_bytes), 4)
        rate = count / self._send(count).duration_s
        count = max(least, round(rate * min(FIRST_S, seconds)))
        rate = count / self._send(count).duration_s
        self._messages = max(least, 4, round(rate * seconds))

    def measure(self) -> Measured:
        stage, instance, count = self._stage, self._instance, self._messages
        cpu_s = instance.cpu_s() if instance is not None else 0.0
        backends = [each.cpu_s() for each in stage.backends]
        busy_s, all_s, ours_s = *_machine_s(), self._ours_s()
        began = time.perf_counter()
        loaded = self._send(count)
        took_s = time.perf_counter() - began
        now_busy_s, now_all_s = _machine_s()
        others_s = (now_busy_s - busy_s) - (self._ours_s() - ours_s)
        used_s = instance.cpu_s() - cpu_s if instance is not None else None
        busiest = max(each.cpu_s() - before for each, before in zip(stage.backends, backends, strict=True))
        shares = {"load": loaded.cpu_s / loaded.duration_s, "backend": busiest / took_s}
        if used_s is not None:
            shares["balancer"] = used_s / took_s
        return Measured(
            messages=count,
            messages_per_s=count / loaded.duration_s,
            cpu_us=used_s / count * 1e6 if used_s is not None else None,
            shares={name: round(share, 3) for name, share in shares.items()},
            busy=(now_busy_s - busy_s) / (now_all_s - all_s),
            others=max(0.0, others_s / (now_all_s - all_s)),
            p50_ms=loaded.latency_ms.get("p50"),
            p99_ms=loaded.latency_ms.get("p99"),
        )

    def _send(self, messages: int) -> _Loaded:
        taken = self._stage.taken()
        loaded = (_own if self._case.own_load else _smtp_source)(self._case, self._port, messages)
        if taken is not None:
            wanted = taken + messages
            wait_until(
                lambda: (self._stage.taken() or 0) >= wanted, f"{self.name}: all messages at the backends"
            )
            if self._stage.taken() != wanted:
                raise LabError(f"{self.name}, {self._case.name}: not {messages} messages at the backends")
        return loaded

    def _ours_s(self) -> float:
        """CPU time of all that takes part, the load included."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        running = sum(each.cpu_s() for each in [*self._stage.backends, *self._everybody])
        return running + ended.ru_utime + ended.ru_stime + time.process_time()


def _smtp_source(case: Case, port: int, messages: int) -> _Loaded:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    load = SmtpSource.run(
        port,
        messages=messages,
        sessions=min(case.sessions, messages),
        size_bytes=case.size_bytes,
        keep_sessions=case.keep,
        options=("-r", str(case.recipients)) if case.recipients > 1 else (),
        timeout_s=LOAD_TIMEOUT_S,
    )
    if load.returncode != 0 or load.errors:
        raise LabError(f"{case.name}: smtp-source failed: {load.errors[:3]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Loaded(load.duration_s, cpu_s, {})


def _own(case: Case, port: int, messages: int) -> _Loaded:
    options: Sequence[object] = (
        *(port, "--messages", messages, "--sessions", min(case.sessions, messages)),
        *("--size", case.size_bytes, "--recipients", case.recipients),
        *(["--keep"] if case.keep else []),
        *(["--pipelining"] if case.pipelining else []),
        *(["--tls"] if case.tls else []),
        *(["--rate", case.rate] if case.rate is not None else []),
    )
    ended = subprocess.run(
        module("bench.load", *options), capture_output=True, text=True, check=False, timeout=LOAD_TIMEOUT_S
    )
    if ended.returncode != 0:
        raise LabError(f"{case.name}: the load failed: {ended.stdout[-500:]}{ended.stderr[-500:]}")
    said: dict[str, Any] = json.loads(ended.stdout)
    latency_ms = said["latency_ms"] if case.rate is not None else {}
    return _Loaded(said["duration_s"], said["cpu_s"], latency_ms)


def _machine_s() -> tuple[float, float]:
    """CPU time of the whole machine: busy, and all."""
    user, nice, system, idle, iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    busy = user + nice + system + irq + softirq
    return busy / _TICKS_PER_S, (busy + idle + iowait) / _TICKS_PER_S
