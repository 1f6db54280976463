"""`python -m bench.soak`: half of the highest rate for half an hour, with everything on; whether memory and descriptors stay flat.

Owns the load, the samples and the verdict. Does not own the load program (load/) or the configurations of the bench.
Invariant: samples are of one process that is never restarted; the first third, in which caches and pools fill, does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from statistics import linear_regression, mean

import uvloop

from bench.load.traffic import Outcome, Plan, Traffic
from bench.programs import TlsSink
from bench.subjects import Field, Stage
from bench.wire import client_context
from tests.e2e.balancer import Smtplb

SESSIONS = 20
SEGMENT_S = 20.0
SAMPLE_S = 5.0
MEASURE_MESSAGES = 2000
# What Python's allocator takes from the system at a time: flat memory may still take one more.
STEP_KIB = 1024.0
# Between the least and the most: each session and its connection to a backend.
MOST_DESCRIPTORS = 2 * SESSIONS


def everything(stage: Stage) -> Smtplb:
    """TLS at both ends, identity, limits, guard, ejection, queue, replay, metrics, transaction log."""
    certificates = [{"certificate": stage.tls.certificate, "key": stage.tls.key}]
    return Smtplb(
        {
            "relays": {
                "backends": [f"127.0.0.1:{port}" for port in stage.ports],
                "policy": "least-connection",
                "max_connections": 40,
                "queue": {"length": 100, "timeout": "10s"},
                "tls": {"mode": "required", "verify": False},
                "eject": {"after": 5, "for": "30s"},
            }
        },
        listener={
            "accept": [{"recipient_domain": ["b.test"]}],
            "tls": {"mode": "starttls", "certificates": certificates},
            "limits": {"sessions": 2000, "sessions_per_client": 1000, "recipients": 1000},
        },
        warnings=False,
    )


class Soak:
    def __init__(self, balancer: Smtplb, minutes: float) -> None:
        self._balancer = balancer
        self._seconds = minutes * 60
        self.samples: list[tuple[float, float, int]] = []  # seconds, resident KiB, descriptors
        self.messages = 0
        self.errors: list[str] = []
        self.rate = 0.0

    async def run(self) -> None:
        highest = await self._traffic(self._plan(MEASURE_MESSAGES, keep=True, rate=None), tls=False)
        self.rate = len(highest.latencies_s) / highest.duration_s / 2
        print(f"half of the highest rate: {self.rate:,.0f} messages/s", flush=True)
        began = time.monotonic()
        sampler = asyncio.get_running_loop().create_task(self._sample(began))
        # Kept and new sessions, in clear and with TLS, of all sizes, in turn: new sessions with TLS at a fifth of the rate.
        kinds = itertools.cycle(
            [(True, False, 4096), (False, False, 4096), (True, True, 100_000), (False, True, 4096)]
        )
        for keep, tls, size in kinds:
            if time.monotonic() - began >= self._seconds:
                break
            rate = self.rate * (1.0 if keep and not tls else 0.2 if tls else 0.5)
            plan = self._plan(max(SESSIONS, int(rate * SEGMENT_S)), keep=keep, rate=rate, size=size)
            outcome = await self._traffic(plan, tls=tls)
            self.messages += len(outcome.latencies_s)
            self.errors += outcome.errors
        sampler.cancel()

    def _plan(self, messages: int, *, keep: bool, rate: float | None, size: int = 4096) -> Plan:
        return Plan(self._balancer.port, messages, SESSIONS, size, keep_sessions=keep, rate=rate)

    async def _traffic(self, plan: Plan, *, tls: bool) -> Outcome:
        return await Traffic(plan, client_context() if tls else None).run()

    async def _sample(self, began: float) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            resident = await asyncio.to_thread(self._balancer.rss_bytes)
            descriptors = len(os.listdir(f"/proc/{self._balancer.pid}/fd"))
            self.samples.append((time.monotonic() - began, resident / 1024, descriptors))
            if len(self.samples) % 12 == 0:
                print(
                    f"  {self.samples[-1][0] / 60:5.1f} min: {resident / 2**20:.1f} MiB, {descriptors} descriptors",
                    flush=True,
                )

    def verdict(self) -> bool:
        settles_s = self._seconds / 3
        settled = [sample for sample in self.samples if sample[0] > settles_s]
        slope = linear_regression([at / 60 for at, _, _ in settled], [kib for _, kib, _ in settled]).slope
        descriptors = [count for _, _, count in settled]
        print(
            f"{self.messages:,} messages, {len(self.errors)} errors; resident {mean(kib for _, kib, _ in settled) / 1024:.1f} MiB, "
            f"{slope:+.1f} KiB a minute; descriptors {min(descriptors)} to {max(descriptors)}"
        )
        allowed = steepest_step((self._seconds - settles_s) / 60)
        print(
            f"flat: at most {allowed:.1f} KiB a minute and {MOST_DESCRIPTORS} descriptors between least and most"
        )
        flat = slope <= allowed and max(descriptors) - min(descriptors) <= MOST_DESCRIPTORS
        return flat and not self.errors


def steepest_step(minutes: float) -> float:
    """KiB a minute: the slope of a line through memory that is flat but for one step, where it weighs most, in the middle.

    The longer a run, the less this is: half an hour sees a leak of one octet a message at 1,300 messages a second.
    """
    return 1.5 * STEP_KIB / minutes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    with Field() as field, everything(field.stage(TlsSink)) as balancer:
        soak = Soak(balancer, options.minutes)
        uvloop.run(soak.run())
        complaints = balancer.complaints()
    for line in [*soak.errors[:10], *complaints]:
        print(line, file=sys.stderr)
    return 0 if soak.verdict() and not complaints else 1


if __name__ == "__main__":
    sys.exit(main())
