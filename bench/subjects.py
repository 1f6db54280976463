"""How each subject of cases.py is made, and what stands behind it.

Owns the configurations of smtplb that are measured. Does not own measuring.
Invariant: what a subject relays to is two backends of its stage, and nobody else's.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trustme

from bench import cases, quota
from bench.programs import BareRelay, FairHAProxy, Haraka, Nginx, TlsSink, module
from tests.e2e.balancer import Smtplb
from tests.lab import HAProxy, Instance, LabError, Postfix, SmtpSink, TlsFiles

STAGE_BACKENDS = 2
IDLE_SESSIONS = 10_000
SINK_SESSIONS = "2000"  # at most at a time; smtp-sink's own default is 256
WORKER_SHARE = 0.2  # of a core for each worker: so neither load nor sinks are the limit


@dataclass(frozen=True, slots=True)
class Stage:
    """Backends of one kind. `counts` is whether they can tell how many messages they took."""

    backends: Sequence[Instance]
    tls: TlsFiles

    @property
    def ports(self) -> list[int]:
        return [backend.port for backend in self.backends]

    def taken(self) -> int | None:
        if not all(isinstance(backend, SmtpSink | TlsSink) for backend in self.backends):
            return None
        return sum(backend.messages() for backend in self.backends if isinstance(backend, SmtpSink | TlsSink))


@dataclass(frozen=True, slots=True)
class Subject:
    """make: None for nothing in between.  workers: each gets its part of a core.  idle: sessions that stand beside the load."""

    make: Callable[[Stage], Instance] | None
    stage: type[Instance] = SmtpSink
    workers: int = 0
    idle: int = 0


# -- configurations of smtplb


def smtplb(
    stage: Stage,
    *,
    listener: dict[str, Any] | None = None,
    pool: dict[str, Any] | None = None,
    **sections: Any,
) -> Smtplb:
    """Nothing but addresses: checks, limits, log and metrics are what everybody gets who writes no more."""
    backends = [f"127.0.0.1:{port}" for port in stage.ports]
    return Smtplb(
        {"relays": {"backends": backends, **(pool or {})}},
        listener=listener,
        sections={"log": {"destination": "./smtplb.log"}, **sections},
        warnings=False,
    )


def with_tls(stage: Stage) -> Smtplb:
    certificates = [{"certificate": stage.tls.certificate, "key": stage.tls.key}]
    return smtplb(
        stage,
        listener={"tls": {"mode": "starttls", "certificates": certificates}},
        pool={"tls": {"mode": "required", "verify": False}},
    )


def grown(stage: Stage, *, backends: int = 3, routes: int = 1, pools: int = 1) -> Smtplb:
    """Backends are the same sinks under many names. Mail goes where the last rule of the route sends it."""
    ports = itertools.cycle(stage.ports)

    def pool() -> dict[str, Any]:
        return {
            "backends": [
                {"name": f"mx{number}", "address": f"127.0.0.1:{next(ports)}"} for number in range(backends)
            ]
        }

    names = [f"p{number}" for number in range(pools)]
    count = max(routes, pools)
    rules: list[dict[str, Any]] = [
        {"when": {"recipient_domain": [f"d{number}.test"]}, "to": names[number % pools]}
        for number in range(count - 1)
    ]
    return Smtplb(
        {name: pool() for name in names},
        listener={"to": "way"},
        sections={"log": {"destination": "./smtplb.log"}, "routes": {"way": [*rules, {"to": names[-1]}]}},
        warnings=False,
    )


def _haproxy(stage: Stage) -> Instance:
    return HAProxy(stage.ports)


def _roomy(stage: Stage) -> Instance:
    return smtplb(stage, listener={"limits": {"sessions": IDLE_SESSIONS + 2000}})


SUBJECTS: dict[str, Subject] = {
    cases.DIRECT: Subject(None),
    cases.HAPROXY: Subject(_haproxy),
    cases.FAIR: Subject(lambda stage: FairHAProxy(stage.ports)),
    cases.NGINX: Subject(lambda stage: Nginx(stage.ports)),
    cases.HARAKA: Subject(lambda stage: Haraka(stage.ports)),
    cases.RELAY: Subject(lambda stage: BareRelay(stage.ports)),
    cases.SMTPLB: Subject(smtplb),
    cases.NGINX_TLS: Subject(lambda stage: Nginx(stage.ports, stage.tls)),
    cases.SMTPLB_TLS: Subject(with_tls, stage=TlsSink),
    cases.BESIDE_IDLE: Subject(_roomy, idle=IDLE_SESSIONS),
    cases.ONE_WORKER: Subject(partial(smtplb, workers=1), workers=1),
    cases.TWO_WORKERS: Subject(partial(smtplb, workers=2), workers=2),
    cases.POSTFIX: Subject(None, stage=Postfix),
    cases.HAPROXY_POSTFIX: Subject(_haproxy, stage=Postfix),
    cases.SMTPLB_POSTFIX: Subject(smtplb, stage=Postfix),
    cases.FEW: Subject(grown),
    "30 backends": Subject(partial(grown, backends=30)),
    "300 backends": Subject(partial(grown, backends=300)),
    "10 routes": Subject(partial(grown, routes=10)),
    "1,000 routes": Subject(partial(grown, routes=1000)),
    "100 pools": Subject(partial(grown, pools=100)),
    cases.MANY: Subject(partial(grown, backends=300, routes=1000)),
}

PROGRAMS: dict[str, type[Instance]] = {
    cases.NGINX: Nginx,
    cases.NGINX_TLS: Nginx,
    cases.HARAKA: Haraka,
}  # those that a case can do without


def missing(subject: str) -> str | None:
    """Why this subject cannot be measured here, None if it can."""
    program = PROGRAMS.get(subject)
    if program is not None:
        return program.available()
    if SUBJECTS[subject].workers:
        return quota.unavailable()
    return Postfix.available() if SUBJECTS[subject].stage is Postfix else None


# -- what runs


class Field:
    """Stages, each started when it is first needed; subjects for a case at a time."""

    def __init__(self) -> None:
        self._started = ExitStack()
        self._stages: dict[type[Instance], Stage] = {}

    def __enter__(self) -> Field:
        folder = Path(self._started.enter_context(tempfile.TemporaryDirectory(prefix="smtplb-bench-")))
        self._tls = make_certificate(folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def stage(self, kind: type[Instance]) -> Stage:
        if kind not in self._stages:
            makers: dict[type[Instance], Callable[[int], Instance]] = {
                SmtpSink: lambda number: SmtpSink(f"sink{number}", options=("-m", SINK_SESSIONS)),
                TlsSink: lambda number: TlsSink(f"tls-sink{number}", self._tls),
                Postfix: lambda number: Postfix(f"mx{number}"),
            }
            backends = [makers[kind](number) for number in range(1, STAGE_BACKENDS + 1)]
            self._stages[kind] = Stage([self._started.enter_context(each) for each in backends], self._tls)
        return self._stages[kind]

    @contextmanager
    def running(self, names: Sequence[str]) -> Iterator[dict[str, Instance | None]]:
        """These subjects, all up at the same time."""
        with ExitStack() as started:
            found: dict[str, Instance | None] = {}
            for name in names:
                subject = SUBJECTS[name]
                stage = self.stage(subject.stage)
                if subject.make is None:
                    found[name] = None
                    continue
                if subject.workers:  # entered first: a cgroup can be removed when its processes are gone
                    groups = started.enter_context(quota.groups(subject.workers, WORKER_SHARE))
                instance = found[name] = started.enter_context(subject.make(stage))
                if subject.workers:
                    groups.put(quota.workers_of(instance, subject.workers))
                if subject.idle:
                    started.enter_context(Holder(instance.port)).tell("open", subject.idle)
            yield found


class Holder:
    """bench/load/holder.py as a process."""

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self._command = module("bench.load.holder", port, *(["--tls"] if tls else []))

    def __enter__(self) -> Holder:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, word: str, number: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word} {number}\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise LabError(f"the holder of idle sessions failed at {word} {number}")


def make_certificate(folder: Path) -> TlsFiles:
    """ECDSA on P-256, as most servers have it today."""
    issued = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(
        "lb.lab.test", key_type=trustme.KeyType.ECDSA
    )
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(certificate), append=True)
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    return TlsFiles(str(certificate), str(key))
