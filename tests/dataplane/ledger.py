"""The law of design 4.1, as a check over what a client heard and what backends took.

Owns the comparison. Invariant: each message has a sender of its own, so that a message taken is known by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.dataplane.harness import FakeStage
from tests.dataplane.mta import ModelMta, Taken


@dataclass
class Told:
    """One transaction as its client saw it. `last`: the reply to DATA or to the final dot; "" if the client left before."""

    sender: str
    body: bytes = field(repr=False)  # without the dots of DATA
    recipients: dict[str, str] = field(default_factory=dict)  # recipient -> reply
    last: str = ""

    @property
    def accepted(self) -> tuple[str, ...]:
        return tuple(recipient for recipient, reply in self.recipients.items() if reply.startswith("2"))


def check(stage: FakeStage, told: Told, *, may_be_in_doubt: bool = False) -> None:
    """Also: what is in doubt was recorded."""
    taken = check_taken(stage.mtas, told, in_doubt=may_be_in_doubt)
    if taken and not told.last.startswith("2"):
        in_doubt = [line for line in stage.record.failures if " in_doubt " in line]
        assert in_doubt or not told.last, "no record of a message in doubt"


def check_taken(mtas: dict[str, ModelMta], told: Told, *, in_doubt: bool = False) -> list[Taken]:
    """Each 250 to the final dot is exactly one message at exactly one backend, and whole; a 5xx is none."""
    taken = [taken for mta in mtas.values() for taken in mta.taken if taken.sender == told.sender]
    assert len(taken) <= 1, (told, taken)
    if told.last.startswith("2"):
        assert len(taken) == 1, told
        assert taken[0].recipients == told.accepted
        assert taken[0].body == told.body
    elif told.last.startswith("5"):
        assert not taken, told
    else:
        assert told.last.startswith("4") or not told.last, told
        assert in_doubt or not taken, told
    return taken
