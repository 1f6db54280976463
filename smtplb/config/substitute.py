"""`${VAR}`, `${VAR:-x}` and `$$` in scalars.

Owns the substitution of one text. Does not own where it applies (load.py: values, after parsing).
Invariant: every `$` of the input is either part of one of the three forms or a mistake. What comes out is
text: quotes around a variable, which YAML demands inside { } and [ ], change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The shell's forms and no more. The default ends at the first closing brace; it is not substituted again.
_FORM = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<else>:-(?P<default>[^}]*))?\}|)"
)


class Substituted(str):
    """A text that came from a variable. It has no type of its own: a key that takes a number reads one from
    it.
    """

    __slots__ = ()


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """`text` with its variables replaced. ValueError: the words for the operator."""
    if "$" not in text:
        return text
    return Substituted(_FORM.sub(lambda match: _value(match, environment), text))


def _value(match: re.Match[str], environment: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    name = match["name"]
    if name is None:
        raise ValueError("a lone `$`: write ${NAME}, ${NAME:-default}, or $$ for a dollar sign")
    value = environment.get(name, "")
    if value and not value.isprintable():
        raise ValueError(f"the environment variable {name} holds characters that cannot be printed")
    if match["else"] is not None:  # as in the shell: `:-` is for unset and for empty
        return value or match["default"]
    if name not in environment:
        raise ValueError(f"the environment variable {name} is not set (a default is written ${{{name}:-x}})")
    return value
