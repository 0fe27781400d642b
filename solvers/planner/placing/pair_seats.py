"""Prefill and decode of one service inside a class of locations, given places anew by a small integer model.

Bundles are taken in one after another, the best first, and may leave behind what nothing pairs with. Where a service
comes out short of its demand for that, all of its replicas there are taken up again and the model says where they pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Room
from solvers.planner.pools.cells import Floats
from solvers.programme import Programme, Solution
from solvers.spans import groups_taken

MOST_NODES = 50
GAP = 1e-7  # of what pairs: the last of it is what is short
KILO = 1e3

Run = Callable[[Programme], Solution]
Row = tuple[dict[int, float], float]
"""Entries by column, and the most that they may come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Up to ``most`` replicas of a pool that want to stand in any of some bays; ``role`` is 0 for prefill, 1 else."""

    pool: PoolKey
    role: int
    rate_per_s: float
    most: int
    bays: tuple[Bay, ...]


def seats_chosen(
    seats: Sequence[Seat],
    before: Mapping[str, tuple[float, float]],
    room: Room,
    start: Mapping[tuple[PoolKey, str], int],
    *,
    wanted_per_s: float,
    run: Run,
    time_limit_s: float,
) -> dict[tuple[PoolKey, str], int]:
    """Say where replicas stand so that pairs of them carry most, no more than is wanted; by pool and location.

    Parameters
    ----------
    before : mapping of location to (float, float)
        What prefill and decode carry there already, requests/s.
    room : Room
        What is free when none of the seats is taken.
    start : mapping
        Where they stood, to begin with; returned where nothing better is found.
    """
    model = _Model.of(seats, before, room)
    programme = model.programme(wanted_per_s, start, time_limit_s)
    try:
        x = run(programme).x
    except (SolveFailed, ArithmeticError):
        return dict(start)
    found = {key: round(float(x[column])) for key, column in model.stands.items()}
    return {key: count for key, count in found.items() if count > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Columns: replicas by pool and location, then what pairs carry by location."""

    seats: Sequence[Seat]
    stands: Mapping[tuple[PoolKey, str], int]
    flows: Mapping[str, int]
    before: Mapping[str, tuple[float, float]]
    room: Room

    @classmethod
    def of(cls, seats: Sequence[Seat], before: Mapping[str, tuple[float, float]], room: Room) -> _Model:
        keys = [(seat.pool, bay.location) for seat in seats for bay in seat.bays]
        sites = sorted({at for _, at in keys})
        return cls(
            seats=seats,
            stands={key: column for column, key in enumerate(keys)},
            flows={at: len(keys) + column for column, at in enumerate(sites)},
            before=before,
            room=room,
        )

    def programme(
        self, wanted_per_s: float, start: Mapping[tuple[PoolKey, str], int], time_limit_s: float
    ) -> Programme:
        """Most flow, no more than is wanted."""
        rows = [*self._paired(), *self._sums(), *self._groups(), *self._watts()]
        rows.append((dict.fromkeys(self.flows.values(), 1.0), wanted_per_s))
        replicas, columns = len(self.stands), len(self.stands) + len(self.flows)
        at = np.repeat(np.arange(len(rows)), [len(row) for row, _ in rows])
        entries = [(column, value) for row, _ in rows for column, value in row.items()]
        matrix = sp.csc_array(
            ([value for _, value in entries], (at, [column for column, _ in entries])), shape=(len(rows), columns)
        )
        upper: Floats = np.full(columns, np.inf)
        upper[:replicas] = [seat.most for seat in self.seats for _ in seat.bays]
        first = np.full(columns, np.nan)
        first[:replicas] = [start.get(key, 0) for key in self.stands]
        return Programme(
            matrix=matrix,
            cost=np.append(np.zeros(replicas), -np.ones(len(self.flows))),
            columns=(np.zeros(columns), upper),
            rows=(np.full(len(rows), -np.inf), np.array([most for _, most in rows])),
            whole=np.arange(columns) < replicas,
            options={"time_limit": time_limit_s, "mip_rel_gap": GAP, "mip_max_nodes": MOST_NODES},
            start=first,
        )

    def _paired(self) -> Iterator[Row]:
        for at, flow in self.flows.items():
            for role in range(2):
                mine = (seat for seat in self.seats if seat.role == role and (seat.pool, at) in self.stands)
                row = {self.stands[seat.pool, at]: -seat.rate_per_s for seat in mine}
                yield row | {flow: 1.0}, self.before.get(at, (0.0, 0.0))[role]

    def _sums(self) -> Iterator[Row]:
        for seat in self.seats:
            yield {self.stands[seat.pool, bay.location]: 1.0 for bay in seat.bays}, float(seat.most)

    def _groups(self) -> Iterator[Row]:
        """Whole groups of GPUs at each bay, less what others hold."""
        bays = {bay.key: bay for seat in self.seats for bay in seat.bays}
        for key, bay in sorted(bays.items()):
            here = [
                (self.stands[seat.pool, bay.location], seat.pool.config.gpus)
                for seat in self.seats
                if seat.pool.gpu_class == bay.gpu_class and (seat.pool, bay.location) in self.stands
            ]
            held = {gpus: count for gpus, count in self.room.held.get(key, {}).items() if count}
            for size in sorted({gpus for _, gpus in here} | held.keys()):
                used = sum(n * groups_taken(gpus, size, bay.node_gpus) for gpus, n in held.items() if gpus >= size)
                row = {c: float(groups_taken(gpus, size, bay.node_gpus)) for c, gpus in here if gpus >= size}
                if row:
                    yield row, float(bay.slots(size) - used)

    def _watts(self) -> Iterator[Row]:
        drawing: dict[str, dict[int, float]] = {}
        for seat in self.seats:
            watts = self.room.extra_watts(seat.pool)
            for bay in seat.bays:
                for domain in bay.charged if watts > 0.0 else ():
                    drawing.setdefault(domain, {})[self.stands[seat.pool, bay.location]] = watts / KILO
        for domain, row in sorted(drawing.items()):
            yield row, max(0.0, self.room.free_watts[domain]) / KILO
