"""Fixtures of tests/e2e for this folder, and what is left out unless it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import begin, embed

__all__ = ["begin", "embed"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long campaigns run with `-m slow` or SMTPLB_SLOW=1; each has a shorter form that always runs."""
    if config.option.markexpr or os.environ.get("SMTPLB_SLOW", "") not in ("", "0"):
        return
    left_out = [item for item in items if HERE in item.path.parents and item.get_closest_marker("slow")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
