"""Which form of smtplb is under test: Python, or C extensions (`make compiled`)."""

from __future__ import annotations

import pytest

from smtplb.dataplane import session

# Tests that put parts of their own into classes of the data plane: a compiled class cannot be changed.
interpreted_only = pytest.mark.skipif(
    not session.__file__.endswith(".py"), reason="compiled classes cannot be patched"
)
