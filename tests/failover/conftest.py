"""Fixtures of tests/e2e for this folder."""

from __future__ import annotations

from tests.e2e.conftest import begin, embed

__all__ = ["begin", "embed"]
