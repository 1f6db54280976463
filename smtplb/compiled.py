"""What the compiled form must be told of a class, and nothing else does anything.

Owns the one word for it. mypyc knows `mypyc_attr` by its name and takes it away; where mypy_extensions is not installed, it means
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    try:
        from mypy_extensions import mypyc_attr
    except ImportError:

        def mypyc_attr(**options):
            return lambda decorated: decorated


__all__ = ["mypyc_attr"]
