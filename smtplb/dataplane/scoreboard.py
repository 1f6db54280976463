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

STEP_BYTES = (
    256 * 1024
)  # it grows by so much, since each mapping costs a descriptor. 1,300 backends with 8 workers

_CONNECTIONS, _IN_FLIGHT, _WAITING, _KINDS = 0, 1, 2, 3


class Scoreboard:
    """A table of 64-bit integers: place x worker x kind, in a memfd that is handed down to workers.

    A backend has a place, the supervisor says which; the table only grows. What was mapped before it grew stays valid.
    """

    def __init__(self, descriptor: int, workers: int, own: int) -> None:
        """`own`: the number of the worker that writes; the supervisor gives any and writes only to clear."""
        self.descriptor = descriptor
        self._workers = workers
        self._own = own
        self._row = workers * _KINDS
        self._places: dict[BackendKey, int] = {}
        self._mappings: list[tuple[mmap.mmap, memoryview]] = []  # the last one is of all of it
        self._map()

    @classmethod
    def create(cls, workers: int) -> Scoreboard:
        return cls(os.memfd_create("smtplb-scoreboard"), workers, 0)

    def grow(self, places: int) -> None:
        """Room for so many, for everybody. The supervisor's part, before it tells workers of new places."""
        octets = -(-places * self._row * 8 // STEP_BYTES) * STEP_BYTES
        if octets > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, octets)
            self._map()

    def learn(self, places: dict[BackendKey, int]) -> None:
        """Where each backend has its place from now on."""
        self._places = places
        self._map()

    def _map(self) -> None:
        octets = os.fstat(self.descriptor).st_size
        if octets and (not self._mappings or len(self._mappings[-1][0]) < octets):
            memory = mmap.mmap(self.descriptor, octets)
            self._mappings.append((memory, memoryview(memory).cast("q")))

    @property
    def _cells(self) -> memoryview:
        return self._mappings[-1][1]

    def view(self, backend: BackendKey) -> Counts:
        first = self._places[backend] * self._row
        return Counts(self._cells, first, first + self._own * _KINDS, self._workers)

    def is_empty(self, place: int) -> bool:
        """Nobody counts anything there now."""
        first = place * self._row
        return not any(self._cells[first : first + self._row])

    def clear(self, worker: int) -> None:
        """Of a worker that died."""
        if self._mappings:
            cells = self._cells
            for row in range(0, len(cells) - self._row + 1, self._row):
                for cell in range(row + worker * _KINDS, row + (worker + 1) * _KINDS):
                    cells[cell] = 0

    def close(self) -> None:
        for memory, cells in self._mappings:
            cells.release()
            memory.close()
        self._mappings.clear()
        os.close(self.descriptor)


class Counts:
    """The counts of one backend, as one worker writes and reads them."""

    __slots__ = ("_cells", "_others", "_own")

    def __init__(self, cells: memoryview, first: int, own: int, workers: int) -> None:
        self._cells = cells
        self._own = own
        self._others = [place for n in range(workers) if (place := first + n * _KINDS) != own]

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
