"""The laws of the demo's books: books in order pass; a message lost, doubled or invented is named."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import assume, given
from hypothesis import strategies as st

from smtplb.cli.demo_ledger import Breach, Disagreement, Ledger, Told

BACKENDS = ["mx1", "mx2", "mx3"]


@dataclass
class History:
    """What happened to each message: tries that failed, then one that was told 250."""

    told: dict[str, Told]
    taken: list[tuple[str, str]]  # backend, transaction
    messages: int

    def audit(self) -> list[Disagreement]:
        ledger = Ledger()
        for transaction, told in self.told.items():
            ledger.client_told(transaction, told)
        for backend, transaction in self.taken:
            ledger.backend_took(backend, transaction)
        return ledger.audit(self.messages).disagreements


_FAILED_TRY = st.one_of(
    st.just((Told.REFUSED, None)),
    st.tuples(st.just(Told.IN_DOUBT), st.one_of(st.none(), st.sampled_from(BACKENDS))),
)


@st.composite
def faithful(draw: st.DrawFn) -> History:
    """Any history in which nobody lied."""
    told: dict[str, Told] = {}
    taken: list[tuple[str, str]] = []
    messages = draw(st.integers(1, 6))
    for message in range(messages):
        tries = draw(st.lists(_FAILED_TRY, max_size=3))
        for serial, (answer, backend) in enumerate([*tries, (Told.TAKEN, draw(st.sampled_from(BACKENDS)))]):
            told[f"{message}.{serial}"] = answer
            if backend is not None:
                taken.append((backend, f"{message}.{serial}"))
    return History(told, draw(st.permutations(taken)), messages)


def of(history: History, answer: Told) -> list[str]:
    return [transaction for transaction, told in history.told.items() if told is answer]


@given(faithful())
def test_books_in_order_pass(history: History) -> None:
    assert history.audit() == []


@given(faithful(), st.data())
def test_a_250_without_a_message_is_lost(history: History, data: st.DataObject) -> None:
    victim = data.draw(st.sampled_from(of(history, Told.TAKEN)))
    history.taken = [(backend, each) for backend, each in history.taken if each != victim]
    assert history.audit() == [Disagreement(Breach.LOST, victim)]


@given(faithful(), st.data())
def test_a_message_taken_twice_is_doubled_at_one_backend_or_two(
    history: History, data: st.DataObject
) -> None:
    _, victim = data.draw(st.sampled_from(history.taken))
    history.taken.append((data.draw(st.sampled_from(BACKENDS)), victim))
    assert history.audit() == [Disagreement(Breach.DOUBLED, victim)]


@given(faithful(), st.data())
def test_a_message_of_a_refused_transaction_is_invented(history: History, data: st.DataObject) -> None:
    assume(of(history, Told.REFUSED))
    victim = data.draw(st.sampled_from(of(history, Told.REFUSED)))
    history.taken.append(("mx1", victim))
    assert history.audit() == [Disagreement(Breach.INVENTED, victim)]


@given(faithful(), st.sampled_from(["", "999.1", "0"]))
def test_a_message_nobody_sent_is_invented(history: History, stranger: str) -> None:
    history.taken.append(("mx1", stranger))
    assert history.audit() == [Disagreement(Breach.INVENTED, stranger)]


@given(faithful(), st.data())
def test_a_message_never_told_250_is_undelivered(history: History, data: st.DataObject) -> None:
    victim = data.draw(st.sampled_from(of(history, Told.TAKEN)))
    history.told[victim] = Told.IN_DOUBT
    assert history.audit() == [Disagreement(Breach.UNDELIVERED, victim.partition(".")[0])]


@given(faithful())
def test_what_was_in_doubt_is_counted_and_not_held_against_anyone(history: History) -> None:
    ledger = Ledger()
    for transaction, told in history.told.items():
        ledger.client_told(transaction, told)
    for backend, transaction in history.taken:
        ledger.backend_took(backend, transaction)
    audit = ledger.audit(history.messages)
    assert audit.taken == audit.told[Told.TAKEN] + audit.in_doubt_taken == len(history.taken)
    assert audit.transactions == len(history.told)


def test_disagreements_are_told_in_words() -> None:
    ledger = Ledger()
    ledger.client_told("0.1", Told.TAKEN)
    lost, undelivered = map(str, ledger.audit(2).disagreements)
    assert lost == "lost: transaction 0.1: the client saw 250, and no backend has it"
    assert undelivered == "undelivered: message 1: never saw a 250"
