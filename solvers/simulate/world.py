"""Memory of the simulation: the kernel's records, as objects in lists or as arrays, and how they grow.

Both forms are reached alike: ``memory["replicas"][i].kv``, ``memory.fill("requests", ...)``, ``memory.rows(...)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from solvers.simulate.kernel import loop
from solvers.simulate.kernel.clock import build_tournament
from solvers.simulate.kernel.compiled import Run, compiled_run
from solvers.simulate.kernel.records import NEVER, NONE, State, World

Ints = NDArray[np.int64]
KINDS = ("client", "link", "replica", "gateway")  # of entities, in their order on the clock after the arrivals
EMPTY = {"due": NEVER, "load": NEVER, "parent": NONE}


def _record_types() -> dict[str, Any]:
    """Field of ``World`` → record class, or int."""
    return {name: hint.__args__[0] for name, hint in get_type_hints(World).items()}


TYPES = _record_types()
NAMES = {name: tuple(f.name for f in fields(kind)) for name, kind in TYPES.items() if kind is not int}


class Memory:
    """The records of a world, with room to grow.

    Parameters
    ----------
    compiled : bool
        Arrays and the compiled kernel; lists of objects and the plain one otherwise.
    """

    def __init__(self, *, compiled: bool) -> None:
        self.is_compiled = compiled
        self.kernel: Run = compiled_run() if compiled else loop.run
        self._columns: dict[str, Any] = {name: self._empty(name, 1) for name in TYPES}
        self._world: World | None = None
        self._room = dict.fromkeys(KINDS, 1)
        self.state: State = self[("states")][0]
        self._place_entities()

    def __getitem__(self, name: str) -> Any:
        """Records or numbers by the name of their field in ``World``; records have attributes."""
        return self._columns[name]

    def world(self) -> World:
        """Everything, for the kernel."""
        if self._world is None:
            self._world = World(**self._columns)
        return self._world

    def run(self, what: int, which: int = 0, value: int = 0) -> int:
        """Let the kernel do one thing."""
        return self.kernel(self.world(), what, which, value)

    # ------------------------------------------------------------------ growing

    def _empty(self, name: str, count: int) -> Any:
        kind, value = TYPES[name], EMPTY.get(name, 0)
        if kind is int:
            return np.full(count, value, np.int64) if self.is_compiled else [value] * count
        if not self.is_compiled:
            return [kind() for _ in range(count)]
        made = np.empty((count, len(NAMES[name])), np.int64)
        made[:] = np.array([field.default for field in fields(kind)], np.int64)
        return made.view(np.dtype([(field, np.int64) for field in NAMES[name]])).reshape(count).view(np.recarray)

    def ensure(self, name: str, count: int) -> None:
        """Make room for ``count`` entries, at least doubling when there is too little."""
        have = len(self._columns[name])
        if count <= have:
            return
        more = self._empty(name, max(count, 2 * have) - have)
        if self.is_compiled:
            joined = np.concatenate([self._columns[name], more])
            self._columns[name] = joined if TYPES[name] is int else joined.view(np.recarray)
        else:
            self._columns[name].extend(more)
        self._world = None

    def replace(self, name: str, values: Ints) -> None:
        """Put whole numbers in the place of a field."""
        self._columns[name] = values.astype(np.int64) if self.is_compiled else values.tolist()
        self._world = None

    def add(self, name: str, at: int, **values: int) -> Any:
        """Make a fresh record at ``at``; return it."""
        self.ensure(name, at + 1)
        record = self._columns[name][at]
        for field, value in values.items():
            setattr(record, field, value)
        return record

    def extend(self, name: str, used: int, values: Sequence[int]) -> int:
        """Put numbers behind the first ``used`` ones; return how many are used then."""
        self.ensure(name, used + len(values))
        self._columns[name][used : used + len(values)] = values
        return used + len(values)

    # ------------------------------------------------------------------ many at once

    def rows(self, name: str, wanted: Sequence[str], which: Sequence[int] | Ints | slice) -> Ints:
        """Fields of records, (rows, fields)."""
        if self.is_compiled:
            numbers = np.asarray(self._columns[name]).view(np.int64).reshape(-1, len(NAMES[name]))
            return numbers[which][:, [NAMES[name].index(field) for field in wanted]]
        records = self._columns[name]
        some = records[which] if isinstance(which, slice) else [records[i] for i in which]
        return np.array(list(map(attrgetter(*wanted), some)), np.int64).reshape(len(some), len(wanted))

    def fill(self, name: str, at: int, columns: dict[str, Ints]) -> None:
        """Write fields of fresh records from ``at`` on."""
        count = len(next(iter(columns.values())))
        self.ensure(name, at + count)
        if self.is_compiled:
            for field, values in columns.items():
                self._columns[name][field][at : at + count] = values
            return
        records = self._columns[name][at : at + count]
        for field, values in columns.items():
            for record, value in zip(records, values.tolist(), strict=True):
                setattr(record, field, value)

    def keep_requests(self, kept: Ints, count: int) -> None:
        """Move the requests at ``kept`` to the front and forget the other ones of ``count``."""
        requests = self._columns["requests"]
        if self.is_compiled:
            requests[: len(kept)] = requests[kept]
            fresh = self._empty("requests", 1)
            requests[len(kept) : count] = fresh[0]
        else:
            self._columns["requests"][:count] = [requests[i] for i in kept.tolist()]
            self._world = None

    # ------------------------------------------------------------------ the clock

    def entity(self, kind: str, index: int) -> int:
        """Number of an entity on the clock, with room made for it."""
        while index >= self._room[kind]:
            self._widen(kind)
        return int(getattr(self.state, f"first_{kind}")) + index

    def _widen(self, kind: str) -> None:
        before = {other: self._due_of(other) for other in KINDS}
        arrival = int(self._columns["due"][0])
        self._room[kind] *= 2
        self._place_entities()
        self._columns["due"][0] = arrival
        for other, due in before.items():
            first = getattr(self.state, f"first_{other}")
            self._columns["due"][first : first + len(due)] = due
        self._rebuild()

    def _due_of(self, kind: str) -> Any:
        first = getattr(self.state, f"first_{kind}")
        return self._columns["due"][first : first + self._room[kind]]

    def _place_entities(self) -> None:
        """Give each kind its place on a clock that is large enough."""
        first = 1
        for kind in KINDS:
            setattr(self.state, f"first_{kind}", first)
            first += self._room[kind]
        size = 1 << (first - 1).bit_length()
        self.state.entities = size
        self._columns["due"], self._columns["soonest"] = self._empty("due", size), self._empty("soonest", 2 * size)
        self._world = None
        self._rebuild()

    def _rebuild(self) -> None:
        """Find the winners of the clock again."""
        size = int(self.state.entities)
        build_tournament(self._columns["due"], self._columns["soonest"], 0, size)
