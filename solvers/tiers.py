"""The order of the tiers, proved rather than weighed: no higher tier is short of what a lower one holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from solvers.cells import Cells, Floats
from solvers.relax import Arrays, Solution
from solvers.tally import CLEAR_SHARE

HELD = 1e-6  # of a service's demand; slack of what a tier holds

WholeSolve = Callable[[Arrays, Floats | None], Solution]


def protect_higher_tiers(cells: Cells, arrays: Arrays, whole: Solution, solve: WholeSolve) -> Solution:
    """Solve again, tier by tier from the top, while a short tier could serve more at the cost of those below.

    Weighted penalties order the tiers in nearly every case; a service whose ways of serving differ much in price can
    still outweigh a higher tier. Each tier's least shortfall is found with the tiers above it held, then kept.
    """
    first = arrays.columns["unserved"].start
    ranks = np.array([service.tier_rank for service in cells.services])
    penalty = cells.penalty_usd_per_hour
    for rank in sorted(set(ranks.tolist()))[:-1]:
        mine, below = np.flatnonzero(ranks == rank), np.flatnonzero(ranks > rank)
        short = float(penalty[mine] @ whole.x[first + mine])
        served_below = float(penalty[below] @ (1.0 - whole.x[first + below]))
        if short <= CLEAR_SHARE * float(penalty[mine].sum()) or served_below <= 0.0:
            continue
        least = solve(replace(arrays, cost=_only(arrays, first + mine, penalty[mine])), whole.x)
        gained = short - float(penalty[mine] @ least.x[first + mine])
        if gained <= CLEAR_SHARE * float(penalty[mine].sum()):
            continue
        upper = arrays.upper.copy()
        above = np.flatnonzero(ranks <= rank)
        upper[first + above] = np.minimum(upper[first + above], least.x[first + above] + HELD)
        arrays = replace(arrays, upper=upper)
        whole = solve(arrays, least.x)
    return whole


def _only(arrays: Arrays, columns: Floats, prices: Floats) -> Floats:
    cost = np.zeros_like(arrays.cost)
    cost[columns] = prices
    return cost
