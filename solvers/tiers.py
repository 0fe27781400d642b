"""The order of the tiers, proved rather than weighed: no higher tier is short of what a lower one holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from solvers.cells import Cells, Floats, Ints
from solvers.relax import Arrays, Solution
from solvers.tally import CLEAR_SHARE

HELD = 1e-6  # slack of what a service lacks, in shares of its demand and in replicas

WholeSolve = Callable[[Arrays, Floats | None], Solution]


def protect_higher_tiers(cells: Cells, arrays: Arrays, whole: Solution, solve: WholeSolve) -> Solution:
    """Solve again, tier by tier from the top, while a short tier could serve more at the cost of those below.

    Weighted penalties order the tiers in most cases; a service whose ways of serving differ much in price can still
    outweigh a higher tier. Each tier's least shortage is found as if the tiers below did not exist, and held.
    """
    first, ranks = whole, np.array([service.tier_rank for service in cells.services])
    for rank in sorted(set(ranks.tolist()))[:-1]:
        mine, below = (
            lacking_columns(arrays, np.flatnonzero(ranks == rank)),
            _replicas_below(cells, arrays, ranks, rank),
        )
        short, clear = float(arrays.cost[mine] @ whole.x[mine]), _clear(cells, ranks, rank)
        if short > clear and (whole is not first or whole.x[below].sum() > 0.5):
            alone = replace(arrays, cost=_only(arrays, mine), upper=_without(arrays.upper, below))
            least = solve(alone, _whole_part(arrays, _without(whole.x, below)))
            if short - float(arrays.cost[mine] @ least.x[mine]) > clear:
                whole = least
        upper = arrays.upper.copy()
        upper[mine] = np.minimum(upper[mine], whole.x[mine] + HELD)
        arrays = replace(arrays, upper=upper)
    return first if whole is first else solve(arrays, whole.x)


def lacking_columns(arrays: Arrays, services: Ints) -> Ints:
    """Columns of what the services leave undone: unserved demand, and replicas below the floor in either chain."""
    unserved, missing = arrays.columns["unserved"], arrays.columns["missing"]
    count = unserved.stop - unserved.start
    return np.concatenate([unserved.start + services, missing.start + services, missing.start + count + services])


def _clear(cells: Cells, ranks: Ints, rank: int) -> float:
    return CLEAR_SHARE * float(cells.penalty_usd_per_hour[ranks == rank].sum()) + 1e-6


def _replicas_below(cells: Cells, arrays: Arrays, ranks: Ints, rank: int) -> Ints:
    """Columns of the replicas of lower tiers."""
    below: Ints = np.flatnonzero(ranks[cells.pool_service[cells.cell_pool]] > rank)
    return below + np.int64(arrays.columns["replicas"].start)


def _without(values: Floats, columns: Ints) -> Floats:
    left = values.copy()
    left[columns] = 0.0
    return left


def _whole_part(arrays: Arrays, x: Floats) -> Floats:
    """Keep the replicas of a solution as a start; everything else follows from them."""
    start, replicas = np.full(len(x), np.nan), arrays.columns["replicas"]
    start[replicas] = x[replicas]
    return start


def _only(arrays: Arrays, columns: Sequence[int] | Ints) -> Floats:
    cost = np.zeros_like(arrays.cost)
    cost[columns] = arrays.cost[columns]
    return cost
