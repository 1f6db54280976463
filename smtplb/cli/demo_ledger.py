"""The demo's books: what the client was told, what backends took, and whether the two agree.

Owns both columns and the audit. Does not own sending or receiving.
Invariant: each transaction of the client has its own id ("17.2": message 17, the second try), so a message at
a backend belongs to exactly one reply.

The laws (design: no responsibility without a backend's 250):
- told 250: at exactly one backend, exactly once
- in doubt (451 4.4.2, or the connection was lost behind the terminator): at most once; RFC 1047
- told anything else, or nothing: nowhere
- in the end every message was told 250: the client sends again what was not, as any MTA does
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Told(StrEnum):
    """What the client learned of a transaction."""

    TAKEN = "taken"  # 250
    IN_DOUBT = "in doubt"
    REFUSED = "refused"  # any other reply, or the connection was lost before the terminator left


class Breach(StrEnum):
    """How books can disagree."""

    LOST = "lost"
    DOUBLED = "doubled"
    INVENTED = "invented"
    UNDELIVERED = "undelivered"


_WORDS = {
    Breach.LOST: "the client saw 250, and no backend has it",
    Breach.DOUBLED: "taken more than once for one transaction",
    Breach.INVENTED: "at a backend, though the client was not told so",
    Breach.UNDELIVERED: "never saw a 250",
}


@dataclass(frozen=True, slots=True)
class Disagreement:
    breach: Breach
    id: str  # of a transaction; UNDELIVERED: of a message

    def __str__(self) -> str:
        what = "message" if self.breach is Breach.UNDELIVERED else "transaction"
        return f"{self.breach}: {what} {self.id}: {_WORDS[self.breach]}"


@dataclass(slots=True)
class Audit:
    """`disagreements` is empty exactly when the laws hold."""

    messages: int
    transactions: int
    told: Counter[Told]
    taken: int  # messages at backends, all together
    in_doubt_taken: int  # of those in doubt: a backend has it, so the message is there twice
    disagreements: list[Disagreement] = field(default_factory=list)


class Ledger:
    """To be written by client and backends as things happen, in any order."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._taken: dict[str, Counter[str]] = {}  # transaction -> backend -> how often

    def client_told(self, transaction: str, told: Told) -> None:
        assert transaction not in self._told, f"transaction {transaction} ended twice"
        self._told[transaction] = told

    def backend_took(self, backend: str, transaction: str) -> None:
        self._taken.setdefault(transaction, Counter())[backend] += 1

    def backends_of(self, transaction: str) -> frozenset[str]:
        """Who took it: one, where the books are in order."""
        return frozenset(self._taken.get(transaction, ()))

    def audit(self, messages: int) -> Audit:
        """Compares both columns. `messages`: ids "0" to `messages` - 1 were to be delivered."""
        audit = Audit(
            messages=messages,
            transactions=len(self._told),
            told=Counter(self._told.values()),
            taken=sum(backends.total() for backends in self._taken.values()),
            in_doubt_taken=sum(
                told is Told.IN_DOUBT and transaction in self._taken
                for transaction, told in self._told.items()
            ),
        )
        found = audit.disagreements
        for transaction, told in self._told.items():
            if told is Told.TAKEN and transaction not in self._taken:
                found.append(Disagreement(Breach.LOST, transaction))
        for transaction, backends in self._taken.items():
            if self._told.get(transaction, Told.REFUSED) is Told.REFUSED:
                found.append(Disagreement(Breach.INVENTED, transaction))
            if backends.total() > 1:
                found.append(Disagreement(Breach.DOUBLED, transaction))
        delivered = Counter(
            transaction.partition(".")[0] for transaction, told in self._told.items() if told is Told.TAKEN
        )
        for message in map(str, range(messages)):
            if not delivered[message]:
                found.append(Disagreement(Breach.UNDELIVERED, message))
        return audit
