"""Balancers that are looked at behind the test, and the certificates of one authority and of another."""

from pathlib import Path

import pytest

from tests.e2e.conftest import begin
from tests.identity.parties import Authorities

__all__ = ["authorities", "begin"]


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    return Authorities(tmp_path)
