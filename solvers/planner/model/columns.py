"""The columns of the model, and what its limits are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from solvers.derived import derived
from solvers.engine import Role
from solvers.planner.pools.cells import CHAINS, Cells, Floats
from solvers.planner.pools.floors import least_locations


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variables:
    """Columns of the model; (axis) as in ``Cells``.

    Attributes
    ----------
    replicas : (C,) whole
        Replicas of a pool in a group of bays.
    sized : (T,)
        Replicas of the pool while its size lies in the step.
    chosen : (T,) 0 or 1
        The step that the pool's size lies in.
    share : (P,)
        Part of the service's demand that the pool carries.
    started : (H,)
        Replicas beyond those that run.
    stopped : (H,)
        Replicas that run and are not kept.
    unserved : (S,)
        Part of the service's demand that nobody carries.
    excess : (S,)
        What of that is beyond the service's fair share.
    missing : (2 S,)
        Replicas short of ``min_replicas``, prompt chain then token chain.
    unpinned : (I,)
        Replicas short of each pin, by service.
    parted : (K,)
        Locations of a class that hold replicas of a service's chain; ``Cells.parted``.
    unparted : (2 S,)
        Locations short of ``min_locations``, prompt chain then token chain.
    hung : (C,)
        Requests/s, in shares of the demand, that the replicas of a cell carry where a service spreads its load.
    flow : (C,)
        Part of the demand that goes through the replicas of a cell, where a service pairs prefill with decode by place.
    outgoing, incoming : (X,)
        Part of the demand that is prefilled on one side of a class of links and decoded on the other, leaving it and
        entering it; ``Cells.crossings``.
    """

    replicas: Any
    sized: Any
    chosen: Any
    share: Any
    started: Any
    stopped: Any
    unserved: Any
    excess: Any
    missing: Any
    unpinned: Any
    parted: Any
    unparted: Any
    hung: Any
    flow: Any
    outgoing: Any
    incoming: Any

    @property
    def all(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limit:
    """One family of rows: its name, its equation in ``solvers/README.md``, and whom each row is about."""

    name: str
    equation: int
    constraint: Any
    subjects: tuple[str, ...]


def make_variables(cells: Cells) -> Variables:
    """Declare the columns with their plain bounds."""
    room = cells.room_replicas()
    upper = np.array([step.upper for step in cells.steps], dtype=float)
    return Variables(
        replicas=_column(len(room), room.astype(float), integer=True),
        sized=_column(len(upper), upper),
        chosen=_column(len(upper), np.ones(len(upper)), integer=True),
        share=_column(len(cells.pools), np.ones(len(cells.pools))),
        started=_column(len(cells.held_now), _most_at_any_cap(cells)[cells.held_pool]),
        stopped=_column(len(cells.held_now), cells.held_now.astype(float)),
        unserved=_column(len(cells.services), np.ones(len(cells.services))),
        excess=_column(len(cells.services), np.ones(len(cells.services))),
        missing=_column(2 * len(cells.services), np.tile([float(s.min_replicas) for s in cells.services], 2)),
        unpinned=_column(len(cells.pins), np.array([float(pin.replicas) for _, pin in cells.pins])),
        parted=_column(len(cells.parted), np.array([float(cells.grouping.sites[k]) for _, _, k in cells.parted])),
        unparted=_column(2 * len(cells.services), np.tile([float(least_locations(s)) for s in cells.services], 2)),
        hung=_column(len(room), hung_most(cells) * room),
        flow=_column(len(room), np.isin(np.arange(len(room)), flowing(cells)).astype(float)),
        outgoing=_column(len(cells.crossings), np.ones(len(cells.crossings))),
        incoming=_column(len(cells.crossings), np.ones(len(cells.crossings))),
    )


def _most_at_any_cap(cells: Cells) -> Floats:
    """(P,) Largest useful size over the caps of each pool, at the first of them."""
    most = np.zeros(len(cells.pools))
    np.maximum.at(most, cells.pool_base, np.array([option.most for option in cells.pools], dtype=float))
    return most


def hung_most(cells: Cells) -> Floats:
    """The most that one replica of each cell carries, in shares of its service's demand; 0 where nothing is spread."""
    return derived(cells, _hung_most)


def _hung_most(cells: Cells) -> Floats:
    hangs, most = [service.hangs for service in cells.services], np.zeros(len(cells.pools))
    for pool, service in enumerate(cells.pool_service.tolist()):
        rate = float(cells.demand_per_s[service])
        if hangs[service] and rate > 0.0:
            most[pool] = max(step.capacity_requests_per_s for step in cells.pools[pool].steps) / rate
    found: Floats = most[cells.cell_pool]
    return found


def flowing(cells: Cells) -> list[int]:
    """Cells that it matters what goes through: those of prefill and decode of services that pair by place."""
    return derived(cells, _flowing)


def _flowing(cells: Cells) -> list[int]:
    by_place = [cells.by_place(service.name) for service in cells.services]
    flows = [
        by_place[s] and option.pool.role is not Role.MIXED and float(cells.demand_per_s[s]) > 0.0
        for s, option in zip(cells.pool_service.tolist(), cells.pools, strict=True)
    ]
    found: list[int] = np.flatnonzero(np.array(flows, dtype=bool)[cells.cell_pool]).tolist()
    return found


def _column(size: int, upper: Floats, *, integer: bool = False) -> Any:
    import cvxpy as cp  # here, for workers that size and price would only wait for it

    return cp.Variable(size, integer=integer, bounds=[np.zeros(size), upper])


def matrix_of(rows: object, columns: object, values: object, shape: tuple[int, int]) -> Any:
    """Sparse matrix from parallel arrays; a scalar value goes everywhere."""
    row, column = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    return sp.csr_array((np.broadcast_to(np.asarray(values, dtype=float), row.shape), (row, column)), shape=shape)


def sum_cells(cells: Cells) -> Any:
    """(P, C): adds up the cells of each pool."""
    count = len(cells.cell_pool)
    return matrix_of(cells.cell_pool, np.arange(count), 1.0, (len(cells.pools), count))


def sum_steps(cells: Cells, values: object = 1.0) -> Any:
    """(P, T): adds up the steps of each pool."""
    count = len(cells.step_pool)
    return matrix_of(cells.step_pool, np.arange(count), values, (len(cells.pools), count))


def sum_pools(cells: Cells, roles: tuple[Role, ...]) -> Any:
    """(S, P): adds up the pools of the roles of each service."""
    inside = [p for p, option in enumerate(cells.pools) if option.pool.role in roles]
    return matrix_of(cells.pool_service[inside], inside, 1.0, (len(cells.services), len(cells.pools)))


def chain_subjects(cells: Cells) -> tuple[str, ...]:
    return tuple(f"{service.name} {chain}" for chain, _ in CHAINS for service in cells.services)


def pool_subjects(cells: Cells) -> tuple[str, ...]:
    return tuple(str(option.pool) for option in cells.pools)


def triplets(rows: Sequence[tuple[int, int, float]]) -> tuple[list[int], list[int], list[float]]:
    return [row for row, _, _ in rows], [column for _, column, _ in rows], [value for _, _, value in rows]
