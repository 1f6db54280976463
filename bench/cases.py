"""What is sent through whom: a row for each case. Subjects are named here and made in subjects.py.

Invariant: a row says all there is to say; nothing else in this package knows single cases, but reach.py, which names them.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024

DIRECT, HAPROXY, FAIR, NGINX, HARAKA = "direct", "HAProxy", "HAProxy, fair", "nginx mail", "Haraka"
RELAY, SMTPLB = "bare relay", "smtplb"
NGINX_TLS, SMTPLB_TLS = "nginx mail, STARTTLS", "smtplb, TLS at both ends"
BESIDE_IDLE = "smtplb, 10,000 idle"
ONE_WORKER, TWO_WORKERS = "1 worker", "2 workers"
POSTFIX, HAPROXY_POSTFIX, SMTPLB_POSTFIX = "one Postfix", "HAProxy, 2 Postfix", "smtplb, 2 Postfix"
FEW, MANY = "3 backends, 1 route", "300 backends, 1,000 routes"
GROWTH = (FEW, "30 backends", "300 backends", "10 routes", "1,000 routes", "100 pools", MANY)

SIDE_BY_SIDE = (DIRECT, HAPROXY, FAIR, RELAY, SMTPLB)
EVERYBODY = (DIRECT, HAPROXY, FAIR, NGINX, HARAKA, RELAY, SMTPLB)
THREE = (FAIR, RELAY, SMTPLB)


@dataclass(frozen=True, slots=True)
class Case:
    """A load that each of its subjects gets in turn.

    sessions      at a time
    keep          many messages a session, else a session for each message
    rate          messages a second in all; None: as many as go
    seconds       of load for each subject in each round, about
    growth        compares the first subject with the others: they are all smtplb
    """

    name: str
    subjects: tuple[str, ...]
    size_bytes: int = 4 * KIB
    sessions: int = 20
    keep: bool = True
    pipelining: bool = False
    tls: bool = False
    recipients: int = 1
    rate: float | None = None
    seconds: float = 1.5
    rounds: int = 5

    @property
    def own_load(self) -> bool:
        """smtp-source is in C and costs less, but knows none of these."""
        return self.pipelining or self.tls or self.rate is not None

    def describe(self) -> str:
        size = f"{self.size_bytes // MIB} MB" if self.size_bytes >= MIB else f"{self.size_bytes / KIB:.0f} KB"
        words = [f"{self.sessions} sessions", size]
        words.append("many messages a session" if self.keep else "a session for each message")
        if self.recipients > 1:
            words.append(f"{self.recipients} recipients")
        words += [
            word for word, holds in (("pipelining client", self.pipelining), ("STARTTLS", self.tls)) if holds
        ]
        if self.rate is not None:
            words.append(f"{self.rate:.0f} messages a second")
        return f"{self.name}: {', '.join(words)}"


CASES = (
    # Most of the goals are about these three: more rounds, since one alone is off by a tenth.
    Case("new", EVERYBODY, keep=False, rounds=9),
    Case("kept", EVERYBODY, rounds=9),
    Case("pipelining", SIDE_BY_SIDE, pipelining=True, rounds=9),
    Case("1 KB new", THREE, size_bytes=KIB, keep=False, rounds=3),
    Case("1 KB kept", THREE, size_bytes=KIB, rounds=3),
    Case("100 KB", SIDE_BY_SIDE, size_bytes=100 * KIB, rounds=3),
    Case("1 MB", (DIRECT, HAPROXY, FAIR, HARAKA, RELAY, SMTPLB), size_bytes=MIB, sessions=4),
    Case("25 MB", SIDE_BY_SIDE, size_bytes=25 * MIB, sessions=4, seconds=2.5),
    Case("STARTTLS new", (NGINX_TLS, SMTPLB_TLS), keep=False, tls=True),
    Case("STARTTLS kept", (NGINX_TLS, SMTPLB_TLS), tls=True, rounds=3),
    Case("STARTTLS 100 KB", (NGINX_TLS, SMTPLB_TLS), size_bytes=100 * KIB, tls=True, rounds=3),
    Case("10 recipients", THREE, recipients=10, rounds=3),
    Case("100 recipients", THREE, recipients=100, rounds=3),
    Case("1 session new", THREE, sessions=1, keep=False, rounds=3),
    Case("1 session kept", THREE, sessions=1, rounds=3),
    Case("500 sessions new", THREE, sessions=500, keep=False, rounds=3),
    Case("500 sessions kept", THREE, sessions=500, rounds=3),
    Case("latency new", SIDE_BY_SIDE, keep=False, rate=200, seconds=4, rounds=3),
    Case("latency kept", SIDE_BY_SIDE, rate=300, seconds=4, rounds=3),
    Case("idle sessions", (SMTPLB, BESIDE_IDLE), rate=300, seconds=4),
    Case("workers new", (ONE_WORKER, TWO_WORKERS), keep=False, seconds=2.5),
    Case("workers kept", (ONE_WORKER, TWO_WORKERS), seconds=2.5),
    Case("workers new, 100", (ONE_WORKER, TWO_WORKERS), sessions=100, keep=False, seconds=2.5, rounds=3),
    Case("workers kept, 100", (ONE_WORKER, TWO_WORKERS), sessions=100, seconds=2.5, rounds=3),
    Case("Postfix new", (POSTFIX, HAPROXY_POSTFIX, SMTPLB_POSTFIX), keep=False, rounds=3),
    Case("Postfix kept", (POSTFIX, HAPROXY_POSTFIX, SMTPLB_POSTFIX), rounds=3),
    Case("growth", GROWTH),
)
