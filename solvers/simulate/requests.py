"""Requests on their way into the kernel and out of its memory again: pending ones by arrival, ended ones dropped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.simulate.kernel.clock import settle_leaf
from solvers.simulate.kernel.records import NONE, WAITING
from solvers.simulate.world import Memory

Ints = NDArray[np.int64]
SLICE = 1 << 16  # requests handed to the kernel at once, so that memory stays bounded
PENDING = ("arrival", "serial", "service", "prompt", "output", "path")
CHAINS = {  # fields that hold the number of a request
    "requests": ("next", "out_next", "into_next"),
    "replicas": ("head", "tail", "fresh_head"),
    "links": ("head",),
    "services": ("head", "tail", "stranded_head", "stranded_tail"),
}
CURSORS = {"sources": ("next", "end")}  # and those that hold where one would stand


class RequestQueue:
    """Requests that have not arrived yet, in order, and the slots of those that have."""

    def __init__(self, *, compiled: bool) -> None:
        self._memory = Memory(compiled=compiled)
        self._submitted = 0
        self._names: dict[int, str] = {}
        self._new: list[tuple[int, ...]] = []
        self._more: list[Ints] = []
        self._pending: Ints = np.zeros((0, len(PENDING)), np.int64)
        self._next = 0
        self._slots = 0  # requests in the kernel's memory
        self._dropped = 0  # of them those that are over and were taken over

    def _take_names(self, rows: Ints) -> list[str]:
        """Names of requests by serial number; the number itself where none was given."""
        return [self._names.pop(serial, str(serial)) for serial in rows[:, 0].tolist()]

    def _sort_pending(self) -> None:
        """Put what was handed in since the last time where its arrival belongs; earlier ones first at equal times."""
        if not self._new and not self._more:
            return
        fresh = np.array(self._new, np.int64).reshape(-1, len(PENDING))
        rows = np.concatenate([self._pending[self._next :], fresh, *self._more])
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        self._pending, self._next, self._new, self._more = rows[order], 0, [], []

    def _feed(self, until: int) -> int:
        """Hand the next requests to the kernel; return how far it may go with them."""
        arrivals = self._pending[:, 0]
        last = int(np.searchsorted(arrivals, until, side="right"))
        end = min(last, self._next + SLICE)
        if end < last:  # all of one tick together
            end = int(np.searchsorted(arrivals, arrivals[end - 1], side="right"))
        state = self._memory.state
        if end > self._next:
            first = self._append(self._pending[self._next : end])
            state.next_arrival, state.arrivals = first, self._slots
            settle_leaf(
                self._memory["due"], self._memory["soonest"], 0, int(state.entities), 0, int(arrivals[self._next])
            )
            self._next = end
        return int(arrivals[end]) - 1 if end < last else until

    def _append(self, rows: Ints) -> int:
        """Put requests into the kernel's memory; return the number of the first."""
        first, count = self._slots, len(rows)
        if count:
            columns = {name: rows[:, i] for i, name in enumerate(PENDING)}
            self._memory.fill("requests", first, {**columns, "left": columns["prompt"]})
        self._slots += count
        for name in ("ended", "lost"):
            self._memory.ensure(name, self._slots)
        return first

    def _compact(self) -> None:
        """Drop requests that are over from memory once they are the larger part."""
        if self._dropped < 4096 or 2 * self._dropped < self._slots:
            return
        memory = self._memory
        is_kept = memory.rows("requests", ("status", "arrival"), slice(0, self._slots))[:, 0] == WAITING
        kept = np.flatnonzero(is_kept)
        place = np.concatenate([[0], np.cumsum(is_kept)])
        number = np.full(len(memory["requests"]) + 1, NONE, np.int64)
        number[kept] = np.arange(len(kept))
        memory.keep_requests(kept, self._slots)
        for name, fields in CHAINS.items():
            for field in fields:
                _renumber(memory, name, field, number)
        for name, fields in CURSORS.items():
            for field in fields:
                _renumber(memory, name, field, place)
        memory.replace("member", number[np.asarray(memory["member"], np.int64)])
        self._slots, self._dropped = len(kept), 0
        memory.state.next_arrival = memory.state.arrivals = self._slots


def _renumber(memory: Memory, name: str, field: str, number: Ints) -> None:
    """Give the requests that records point at their new numbers; -1 stays."""
    if memory.is_compiled:
        column = memory[name][field]
        column[:] = np.where(column >= 0, number[column], NONE)
        return
    for record in memory[name]:
        at = getattr(record, field)
        setattr(record, field, int(number[at]) if at >= 0 else NONE)
