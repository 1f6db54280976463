"""docs/problems.md explains every problem and every refusal there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smtplb.controlplane.problems import ANCHORS
from smtplb.policy.refusal import Refusal

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "problems.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z0-9-]+)\n(.*?)(?=^##? |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def labels() -> set[str]:
    """Every reason that `refusals_total` can count: those of refusals, and those without a reply."""
    found = {refusal.label for refusal in Refusal}
    for path in (ROOT / "smtplb" / "dataplane").glob("*.py"):
        found |= set(re.findall(r"\.refused\(\"([a-z-]+)\"\)", path.read_text(encoding="utf-8")))
    return found


def test_a_section_for_every_problem_in_the_order_of_the_list_then_one_for_every_refusal_by_name() -> None:
    assert list(SECTIONS) == [*ANCHORS, *sorted(labels())]


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_says_what_to_do(name: str) -> None:
    text = SECTIONS[name]
    assert len(text.split()) > 25
    assert re.search(r"^- ", text, re.MULTILINE)


@pytest.mark.parametrize("refusal", Refusal, ids=lambda refusal: refusal.name)
def test_every_refusal_is_quoted_word_by_word(refusal: Refusal) -> None:
    assert f"`{refusal.line.decode()}`" in SECTIONS[refusal.label].replace("\n", " ")


def test_every_link_leads_to_a_section() -> None:
    links = re.findall(r"\]\(#([^)]*)\)", PAGE)
    assert set(links) <= {*SECTIONS, "refusals"}


def test_no_section_speaks_of_nobody() -> None:
    """Each names a side: here, the client, a backend, a front."""
    sides = re.compile(r"\b(here|client|backends?|front|listener)\b", re.IGNORECASE)
    assert [name for name, text in SECTIONS.items() if not sides.search(text)] == []
