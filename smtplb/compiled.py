"""What the compiled form must be told of a class, and nothing else does anything.

Owns the two words for it. mypyc knows them by their names and takes them away; where mypy_extensions is not installed, they mean
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr, trait
else:
    try:
        from mypy_extensions import mypyc_attr, trait
    except ImportError:

        def mypyc_attr(**options):
            return lambda decorated: decorated

        def trait(decorated):
            return decorated


__all__ = ["mypyc_attr", "trait"]
