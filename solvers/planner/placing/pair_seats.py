"""Prefill and decode of one service inside a class of locations, given places anew by a small integer model.

Bundles are taken in one after another, the best first, and may leave behind what nothing pairs with. Where a service
comes out short of its demand for that, all of its replicas there are taken up again and the model says where they pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.room_rows import Row, Stand, group_rows, watt_rows
from solvers.planner.pools.cells import Floats
from solvers.programme import Programme, Run, stacked

MOST_NODES = 50
GAP = 1e-7  # of what pairs: the last of it is what is short


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Up to ``most`` replicas of a pool that want to stand in any of some bays; ``role`` is 0 for prefill, 1 else."""

    pool: PoolKey
    role: int
    rate_per_s: float
    most: int
    bays: tuple[Bay, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    """What is to be given places, and where it may have them.

    Attributes
    ----------
    before : mapping of location to (float, float)
        What prefill and decode carry there already, requests/s.
    room : Room
        What is free when none of the seats is taken.
    start : mapping of (pool, location) to int
        Where they stood, to begin with.
    wanted_per_s : float
        What pairs need carry in all these locations.
    """

    seats: Sequence[Seat]
    before: Mapping[str, tuple[float, float]]
    room: Room
    start: Mapping[tuple[PoolKey, str], int]
    wanted_per_s: float


def seated_by_pairs(seating: Seating, *, run: Run, time_limit_s: float) -> dict[tuple[PoolKey, str], int]:
    """Say where replicas stand so that pairs of them carry most, no more than is wanted; by pool and location.

    Where nothing is found they stand where they stood.
    """
    model = _Model.of(seating)
    try:
        x = run(model.programme(time_limit_s)).x
    except (SolveFailed, ArithmeticError):
        return dict(seating.start)
    found = {key: round(float(x[column])) for key, column in model.stands.items()}
    return {key: count for key, count in found.items() if count > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Columns: replicas by pool and location, then what pairs carry by location."""

    seating: Seating
    stands: Mapping[tuple[PoolKey, str], int]
    flows: Mapping[str, int]

    @classmethod
    def of(cls, seating: Seating) -> _Model:
        keys = [(seat.pool, bay.location) for seat in seating.seats for bay in seat.bays]
        sites = sorted({at for _, at in keys})
        return cls(
            seating=seating,
            stands={key: column for column, key in enumerate(keys)},
            flows={at: len(keys) + column for column, at in enumerate(sites)},
        )

    def programme(self, time_limit_s: float) -> Programme:
        """Most flow, no more than is wanted."""
        replicas, columns = len(self.stands), len(self.stands) + len(self.flows)
        rows, most = zip(*self._rows(), strict=True)
        upper: Floats = np.full(columns, np.inf)
        upper[:replicas] = [seat.most for seat in self.seating.seats for _ in seat.bays]
        first = np.full(columns, np.nan)
        first[:replicas] = [self.seating.start.get(key, 0) for key in self.stands]
        return Programme(
            matrix=stacked(rows, columns),
            cost=np.append(np.zeros(replicas), -np.ones(len(self.flows))),
            columns=(np.zeros(columns), upper),
            rows=(np.full(len(most), -np.inf), np.array(most)),
            whole=np.arange(columns) < replicas,
            options={"time_limit": time_limit_s, "mip_rel_gap": GAP, "mip_max_nodes": MOST_NODES},
            start=first,
        )

    def _rows(self) -> Iterator[Row]:
        """What pairs, sums of seats, groups of GPUs, watts, what is wanted."""
        standing, room = self._standing(), self.seating.room
        yield from self._paired()
        yield from self._sums()
        yield from group_rows(standing, room)
        yield from watt_rows(standing, room, are_whole=False)
        yield dict.fromkeys(self.flows.values(), 1.0), self.seating.wanted_per_s

    def _paired(self) -> Iterator[Row]:
        for at, flow in self.flows.items():
            for role in range(2):
                mine = (seat for seat in self.seating.seats if seat.role == role and (seat.pool, at) in self.stands)
                row = {self.stands[seat.pool, at]: -seat.rate_per_s for seat in mine}
                yield row | {flow: 1.0}, self.seating.before.get(at, (0.0, 0.0))[role]

    def _sums(self) -> Iterator[Row]:
        for seat in self.seating.seats:
            yield {self.stands[seat.pool, bay.location]: 1.0 for bay in seat.bays}, float(seat.most)

    def _standing(self) -> list[Stand]:
        """The columns of replicas, bay by bay."""
        found = [
            Stand(
                column=self.stands[seat.pool, bay.location],
                bay=bay,
                gpus=seat.pool.config.gpus,
                watts=self.seating.room.extra_watts(seat.pool),
            )
            for seat in self.seating.seats
            for bay in seat.bays
        ]
        return sorted(found, key=lambda stand: (stand.bay.key, stand.column))
