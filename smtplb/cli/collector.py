"""What the garbage collector is told once a process has started.

Owns its thresholds. A message in clear leaves no cycles (tests/dataplane/test_no_cycles.py), so collecting may be rarer than usual.
"""

from __future__ import annotations

import gc

# Net new containers before the youngest are looked at; by default 700, which a burst of sessions reaches all the time. Not
# many more: what a TLS session leaves in a cycle has buffers, and waits for this.
YOUNGEST = 2_000


def settle() -> None:
    """What the start leaves behind lives as long as the process: never look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, 10, 10)
