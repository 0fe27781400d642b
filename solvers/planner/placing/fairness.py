"""Who may be short by how much: weighted max-min shares inside each tier, tiers and guarantees first.

Found on the relaxation, before the decision. The decision itself pays more for what a service is short beyond its share
(``penalties``), so whole replicas may round a share up or down but nobody is sacrificed for a neighbour's convenience.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import scipy.sparse as sp

from solvers.errors import SolveFailed
from solvers.planner.model.relax import Arrays, Solution, Word, solve_linear
from solvers.planner.pools.cells import Cells, Floats

HELD = 1e-6  # slack of a share that is held while the next ones are found
CLEAR = 1e-6  # smaller shortages and prices are rounding
MOST_STEPS = 20_000  # of the simplex method in one solve; those of 2,000 cells take a few hundred
MOST_CELLS = 3000  # beyond, finding shares would take as long as the decision: the tiers' weights alone decide


def fair_ratios(cells: Cells, arrays: Arrays, *, time_limit_s: float, most_steps: int = MOST_STEPS) -> dict[str, float]:
    """Find the part of its demand that each service may be short of.

    Parameters
    ----------
    time_limit_s : float
        A safety net for one solve; ``most_steps`` of the simplex method are its limit, the same on any machine.

    Returns
    -------
    dict of service to float
        Only services of tiers that are short and have several; empty when nothing is, or the fleet is too large.

    Raises
    ------
    SolveFailed
        When a solve takes more than its limits: shares that are not the least are of no use.
    """
    if len(cells.cell_pool) > MOST_CELLS:
        return {}
    solve = partial(solve_linear, time_limit_s=time_limit_s, most_steps=most_steps)
    found: dict[str, float] = {}
    ranks = sorted({service.tier_rank for service in cells.services})
    for rank in ranks:
        mine = [s for s, service in enumerate(cells.services) if service.tier_rank == rank]
        arrays, ratios = _share_tier(cells, arrays, mine, solve)
        if len(mine) > 1 and max(ratios.values()) > CLEAR:
            found |= {cells.services[s].name: ratio for s, ratio in ratios.items()}
    return found


def _share_tier(
    cells: Cells, arrays: Arrays, mine: Sequence[int], solve: Callable[[Arrays], Solution]
) -> tuple[Arrays, dict[int, float]]:
    """Fill the services of one tier evenly: guarantees first, then those that can still be better off, and so on."""
    promised = {s: 1.0 - ratio for s in mine if (ratio := guaranteed_ratio(cells, s)) > 0.0}
    if promised:
        least, _ = _least_worst(arrays, {s: (1.0, room) for s, room in promised.items()}, solve)
        arrays = _hold(arrays, {s: room + least for s, room in promised.items()})
    ratios: dict[int, float] = {}
    active = {s: (cells.services[s].fair_weight, 0.0) for s in mine}
    while active:
        worst, prices = _least_worst(arrays, active, solve)
        stuck = [s for s, price in zip(active, prices, strict=True) if price > CLEAR] if worst > CLEAR else []
        for s in stuck or list(active):
            ratios[s] = min(1.0, worst / active.pop(s)[0])
        arrays = _hold(arrays, ratios)
    return arrays, ratios


def guaranteed_ratio(cells: Cells, service: int) -> float:
    """Part of the service's demand that its namespace is guaranteed before others of its tier get more."""
    namespace = cells.services[service].namespace
    return max((q.guaranteed_ratio for q in cells.policy.quotas if q.namespace == namespace), default=0.0)


def _least_worst(
    arrays: Arrays, rows: Mapping[int, tuple[float, float]], solve: Callable[[Arrays], Solution]
) -> tuple[float, Floats]:
    """Minimise t ≥ 0 with weight · unserved − t ≤ room for every service given as service → (weight, room).

    Returns
    -------
    t, prices
        ``prices`` (rows,) are above 0 for the services that t cannot fall for.
    """
    start, size = arrays.columns["unserved"].start, len(arrays.cost)
    weights = [weight for weight, _ in rows.values()]
    added = sp.csr_array((weights, (np.arange(len(rows)), [start + s for s in rows])), shape=(len(rows), size))
    matrix = sp.block_array([[arrays.matrix, None], [added, sp.csr_array(-np.ones((len(rows), 1)))]], format="csc")
    most = max(weights)
    solution = solve(
        replace(
            arrays,
            cost=np.append(np.zeros(size), 1.0),
            matrix=sp.csc_array(matrix),
            row_lower=np.concatenate([arrays.row_lower, np.full(len(rows), -np.inf)]),
            row_upper=np.concatenate([arrays.row_upper, [room for _, room in rows.values()]]),
            lower=np.append(arrays.lower, 0.0),
            upper=np.append(arrays.upper, most),
            whole=np.append(arrays.whole, False),
        )
    )
    if solution.word is not Word.OPTIMAL:
        raise SolveFailed("fair shares were not found within the steps that are allowed")
    duals = np.zeros(len(rows)) if solution.duals is None else -solution.duals[-len(rows) :]
    return float(solution.x[-1]), duals


def _hold(arrays: Arrays, ratios: Mapping[int, float]) -> Arrays:
    upper, start = arrays.upper.copy(), arrays.columns["unserved"].start
    for s, ratio in ratios.items():
        upper[start + s] = min(upper[start + s], ratio + HELD)
    return replace(arrays, upper=upper)
