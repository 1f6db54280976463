"""What the documents promise is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from smtplb.admin.api import PATHS
from smtplb.observe.lines import TEXT_NAMES
from tests.observe.test_metrics import LABELS

DOCS = Path(__file__).parents[2] / "docs"


def first_cells(name: str) -> list[list[str]]:
    """Cells of every table row of a document."""
    rows = [line for line in (DOCS / name).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_metric_has_its_row_with_its_labels() -> None:
    rows = {cells[0].strip("`"): cells[1] for cells in first_cells("metrics.md") if len(cells) == 3}
    told = {
        name: " ".join(labels.replace(",", " ").split()) for name, labels in rows.items() if name in LABELS
    }
    assert told == LABELS
    assert not {name for name in rows if re.fullmatch(r"[a-z_]+_(total|ratio|seconds|info)", name)} - set(
        LABELS
    )


def test_every_log_field_has_its_row_with_its_name_in_text() -> None:
    told: dict[str, str] = {}
    for cells in first_cells("logs.md"):
        fields, names = re.findall(r"`([^`]+)`", cells[0]), re.findall(r"`([^`]+)`", cells[1])
        told |= dict(zip(fields[len(fields) - len(names) :], names, strict=False))
    assert {field: told.get(field) for field in TEXT_NAMES} == TEXT_NAMES


def test_every_path_is_described() -> None:
    text = (DOCS / "admin-api.md").read_text()
    for method, path, _ in PATHS:
        assert f"`{method} {path}" in text or f"`{path}`" in text
