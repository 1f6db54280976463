"""Counts that must be right across worker processes: connections, attempts under way and who waits, per backend.

Owns the shared memory and its layout. Does not own what the counts mean (backend.py).
Invariant: each slot has one writer, its worker; everybody reads all. A dead worker's slots are cleared by the supervisor.

Over a limit a worker undoes its own addition: two that add at once may both see too many and both step back, which costs a
moment, never a connection too many.
"""

from __future__ import annotations

import mmap
import os

from smtplb.messages import BackendKey

_CONNECTIONS, _IN_FLIGHT, _WAITING, _KINDS = 0, 1, 2, 3


class Scoreboard:
    """A table of 64-bit integers: worker x backend x kind, in a memfd that is handed down to workers."""

    def __init__(self, descriptor: int, workers: int, backends: list[BackendKey], own: int) -> None:
        """`own`: the number of the worker that writes; the supervisor gives any and writes only to clear."""
        self.descriptor = descriptor
        self._workers = workers
        self._own = own
        self._row = len(backends) * _KINDS
        self._places = {key: number * _KINDS for number, key in enumerate(backends)}
        self._memory = mmap.mmap(descriptor, max(workers * self._row * 8, 8))
        self._cells = memoryview(self._memory).cast("q")

    @classmethod
    def create(cls, workers: int, backends: list[BackendKey]) -> Scoreboard:
        descriptor = os.memfd_create("smtplb-scoreboard")
        os.ftruncate(descriptor, max(workers * len(backends) * _KINDS * 8, 8))
        return cls(descriptor, workers, backends, 0)

    def view(self, backend: BackendKey) -> Counts:
        return Counts(self._cells, self._own * self._row + self._places[backend], self._row, self._workers)

    def clear(self, worker: int) -> None:
        """Of a worker that died."""
        start = worker * self._row
        for cell in range(start, start + self._row):
            self._cells[cell] = 0

    def close(self) -> None:
        self._cells.release()
        self._memory.close()
        os.close(self.descriptor)


class Counts:
    """The counts of one backend, as one worker writes and reads them."""

    __slots__ = ("_cells", "_others", "_own")

    def __init__(self, cells: memoryview, own: int, row: int, workers: int) -> None:
        self._cells = cells
        self._own = own
        first = own % row if row else 0
        self._others = [first + worker * row for worker in range(workers) if first + worker * row != own]

    def set_connections(self, count: int) -> None:
        self._cells[self._own + _CONNECTIONS] = count

    def set_in_flight(self, count: int) -> None:
        self._cells[self._own + _IN_FLIGHT] = count

    def set_waiting(self, count: int) -> None:
        """Transactions that would use a place of this backend if there were one."""
        self._cells[self._own + _WAITING] = count

    @property
    def waiting_elsewhere(self) -> int:
        return sum(self._cells[place + _WAITING] for place in self._others)

    @property
    def connections_elsewhere(self) -> int:
        return sum(self._cells[place + _CONNECTIONS] for place in self._others)

    @property
    def in_flight_elsewhere(self) -> int:
        return sum(self._cells[place + _IN_FLIGHT] for place in self._others)
