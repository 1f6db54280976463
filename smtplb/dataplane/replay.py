"""What of a body was sent, so that it can be sent again to another backend.

Owns the canonical bytes of one message while they fit the budgets. Does not own when they are replayed (transaction.py).
Invariant: `complete` holds exactly while every byte given to keep() is still here; the bytes of all buffers together stay
within the budget.
"""

from __future__ import annotations


class ReplayBudget:
    """Memory for replay: for one message and for all messages of a worker."""

    __slots__ = ("per_message_bytes", "total_bytes", "used_bytes")

    def __init__(self, per_message_bytes: int = 256 * 1024, total_bytes: int = 64 * 1024 * 1024) -> None:
        self.per_message_bytes = per_message_bytes
        self.total_bytes = total_bytes
        self.used_bytes = 0


class ReplayBuffer:
    """Chunks in the order they were sent. Over a budget all is dropped, and streaming goes on without replay."""

    __slots__ = ("_budget", "chunks", "complete", "size_bytes")

    def __init__(self, budget: ReplayBudget) -> None:
        self._budget = budget
        self.chunks: list[bytes] = []
        self.size_bytes = 0
        self.complete = True

    def keep(self, chunk: bytes) -> None:
        if not self.complete:
            return
        size = len(chunk)
        budget = self._budget
        if self.size_bytes + size > budget.per_message_bytes or budget.used_bytes + size > budget.total_bytes:
            self.drop()
            self.complete = False
            return
        self.size_bytes += size
        budget.used_bytes += size
        self.chunks.append(chunk)

    def drop(self) -> None:
        """Give the memory back; nothing can be replayed any more unless nothing was kept."""
        if self.size_bytes:
            self._budget.used_bytes -= self.size_bytes
            self.size_bytes = 0
            self.chunks.clear()
            self.complete = False
