"""What the garbage collector is told once a process has started.

Owns its thresholds. Messages, sessions and connections leave no cycles (test_no_cycles.py of tests/dataplane and tests/protocol),
so collecting may be rarer than usual.
"""

from __future__ import annotations

import gc

# Net new containers before the youngest are looked at; by default 700, which a burst of sessions reaches all the time. Not
# many more: a cycle that nobody knows of may hold TLS buffers, and waits for this.
YOUNGEST = 2_000


def settle() -> None:
    """What the start leaves behind lives as long as the process: never look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, 10, 10)
