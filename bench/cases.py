"""What is sent: the loads that every subject gets, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
QUICK_PART = 8  # --quick sends this part of the messages


@dataclass(frozen=True, slots=True)
class Case:
    """`messages` take some seconds at the rates of one core: CPU time is counted in ticks of 10 ms."""

    name: str
    sessions: int
    messages: int
    size_bytes: int
    keep_sessions: bool

    def quick(self) -> Case:
        return Case(
            self.name, self.sessions, self.messages // QUICK_PART, self.size_bytes, self.keep_sessions
        )

    def describe(self) -> str:
        size = f"{self.size_bytes // KIB} KiB" if self.size_bytes < KIB * KIB else "1 MiB"
        how = "many messages a session" if self.keep_sessions else "a session for each message"
        return f"{self.name}: {self.sessions} sessions, {size}, {how}, {self.messages} messages a round"


CASES = (
    Case("new", sessions=20, messages=10_000, size_bytes=4 * KIB, keep_sessions=False),
    Case("kept", sessions=20, messages=20_000, size_bytes=4 * KIB, keep_sessions=True),
    Case("large", sessions=4, messages=600, size_bytes=KIB * KIB, keep_sessions=True),
)
