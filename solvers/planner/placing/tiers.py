"""The order of the tiers, proved rather than weighed: no higher tier is short of what a lower one holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from solvers.planner.model.relax import Arrays, Solution
from solvers.planner.placing.places import cell_counts
from solvers.planner.pools.cells import CHAINS, Cells, Floats, Ints
from solvers.planner.pools.floors import missing_locations, missing_of_chain, missing_of_pin, places_of
from solvers.planner.pools.tally import CLEAR_SHARE, Worth

HELD = 1e-6  # slack of what a service lacks, in shares of its demand and in replicas

IN_ORDER_NOTE = "the bound is that of plans that leave no service of a tier but the last worse off than this one"

WholeSolve = Callable[[Arrays, Floats | None], Solution]


@dataclass(frozen=True, slots=True, kw_only=True)
class InOrder:
    """A bound of the plans that leave no service of a tier but the last more undone than ``arrays`` hold it at."""

    usd_per_hour: float
    cells: Cells
    arrays: Arrays

    def covers(self, worth: Worth) -> bool:
        """True when every plan that leaves no such service worse off than this one keeps what is held."""
        ranks = np.array([service.tier_rank for service in self.cells.services])
        above = lacking_columns(self.cells, self.arrays, np.flatnonzero(ranks < ranks.max()))
        lacks = lacking_values(self.cells, self.arrays, worth)[above]
        return bool(np.all(lacks <= self.arrays.upper[above]))


def hold_higher_tiers(cells: Cells, arrays: Arrays, x: Floats, solve: WholeSolve) -> tuple[Arrays, Floats, bool]:
    """Solve tier by tier from the top, while a short tier could serve more at the cost of those below, and hold that.

    Weighted penalties order the tiers in most cases; a service whose ways of serving differ much in price can still
    outweigh a higher tier. Each tier's least shortage is found as if the tiers below did not exist.

    Parameters
    ----------
    x : (columns,) float
        What is known so far; of it the replicas and what services lack are read.

    Returns
    -------
    arrays, x, is_changed
        The model with the shortages of every tier but the last held, a start for it, and whether ``x`` had them wrong.
    """
    is_changed, ranks = False, np.array([service.tier_rank for service in cells.services])
    for rank in sorted(set(ranks.tolist()))[:-1]:
        mine, below = (
            lacking_columns(cells, arrays, np.flatnonzero(ranks == rank)),
            _replicas_below(cells, arrays, ranks, rank),
        )
        short, clear = float(arrays.cost[mine] @ x[mine]), _clear(cells, ranks, rank)
        if short > clear and (is_changed or x[below].sum() > 0.5):
            alone = replace(arrays, cost=_only(arrays, mine), upper=_without(arrays.upper, below))
            least = solve(alone, _whole_part(arrays, _without(x, below)))
            if short - float(arrays.cost[mine] @ least.x[mine]) > clear:
                x, is_changed = least.x, True
        upper = arrays.upper.copy()
        upper[mine] = np.minimum(upper[mine], x[mine] + HELD)
        arrays = replace(arrays, upper=upper)
    return arrays, _whole_part(arrays, x), is_changed


def held_in_sum(cells: Cells, arrays: Arrays, most_usd_per_hour: Floats) -> Arrays:
    """Leave no tier but the last more short than it may be, (T,) penalties; a row each, the last ones."""
    ranks = np.array([service.tier_rank for service in cells.services])
    rows = []
    for rank in np.unique(ranks)[: len(most_usd_per_hour)]:
        columns = lacking_columns(cells, arrays, np.flatnonzero(ranks == rank))
        rows.append(sp.csr_array((arrays.cost[columns], (np.zeros(len(columns), int), columns)), (1, len(arrays.cost))))
    return replace(
        arrays,
        matrix=sp.csc_array(sp.vstack([arrays.matrix, *rows])),
        row_lower=np.append(arrays.row_lower, np.full(len(rows), -np.inf)),
        row_upper=np.append(arrays.row_upper, most_usd_per_hour),
    )


def lacking_values(cells: Cells, arrays: Arrays, worth: Worth) -> Floats:
    """Columns of placed counts: their replicas and what services lack, the rest unknown (NaN)."""
    x, count = np.full(len(arrays.cost), np.nan), len(cells.services)
    x[arrays.columns["replicas"]] = cell_counts(cells, worth.counts)
    for s, service in enumerate(cells.services):
        rate = worth.demand_per_s[service.name]
        x[arrays.columns["unserved"].start + s] = worth.unserved_per_s(service.name) / rate if rate > 0.0 else 0.0
        places = places_of(service, worth.counts)
        lacks = float(x[arrays.columns["unserved"].start + s])
        x[arrays.columns["excess"].start + s] = max(0.0, lacks - float(cells.fair_ratio[s]))
        for chain, (_, roles) in enumerate(CHAINS):
            x[arrays.columns["missing"].start + chain * count + s] = missing_of_chain(service, places, roles)
            x[arrays.columns["unparted"].start + chain * count + s] = missing_locations(service, places, roles)
    for i, (s, pin) in enumerate(cells.pins):
        places = places_of(cells.services[s], worth.counts)
        x[arrays.columns["unpinned"].start + i] = missing_of_pin(pin, places)
    return x


def lacking_above(worth: Worth) -> Floats:
    """What each tier but the last lacks, in penalties, USD per hour."""
    *above, _ = sorted(worth.lacking_usd_by_tier.items())
    return np.array([lacks for _, lacks in above], dtype=float)


def is_taken(found: Worth, best: Worth, held_usd_per_hour: Floats) -> bool:
    """True when a plan is to stand in the place of one that keeps what tiers are held at.

    It keeps that too and costs less, or clearly improves a tier and keeps what those above it are held at: then tiers
    are to be held anew. Held amounts do not move by small steps, so plans taken one after the other never drift.

    Parameters
    ----------
    held_usd_per_hour : (T,) float
        Penalties that each tier but the last may leave undone.
    """
    for rank, most in zip(sorted(best.lacking_usd_by_tier), held_usd_per_hour.tolist(), strict=False):
        if is_clearly_better(found, best, rank):
            return True
        if not _keeps(found, rank, most):
            return False
    return found.objective_usd_per_hour < best.objective_usd_per_hour


def keeps_held(worth: Worth, held_usd_per_hour: Floats) -> bool:
    """True when no tier is more short than it is held at, (T,) penalties of each tier but the last."""
    tiers = zip(sorted(worth.lacking_usd_by_tier), held_usd_per_hour.tolist(), strict=False)
    return all(_keeps(worth, rank, most) for rank, most in tiers)


def _keeps(worth: Worth, rank: int, most_usd_per_hour: float) -> bool:
    return worth.lacking_usd_by_tier[rank] <= most_usd_per_hour * (1.0 + HELD) + HELD


def is_clearly_better(found: Worth, best: Worth, rank: int) -> bool:
    """True when the tier lacks less by more than solves leave open."""
    return found.lacking_usd_by_tier[rank] < best.lacking_usd_by_tier[rank] - best.clear_usd(rank)


def lacks(worth: Worth, gap: float) -> bool:
    """True when something is short: not a little of the last tier, a share ``gap`` of all, which would cost more."""
    *above, last = (usd for _, usd in sorted(worth.lacking_usd_by_tier.items()))
    return bool(worth.short) and (any(above) or last > gap * abs(worth.objective_usd_per_hour))


def lacks_clearly(worth: Worth) -> bool:
    """True when a tier but the last lacks more than solves leave open: another plan may be clearly better there."""
    above = sorted(worth.lacking_usd_by_tier)[:-1]
    return any(worth.lacking_usd_by_tier[rank] > worth.clear_usd(rank) for rank in above)


def relaxed_lacks_clearly(cells: Cells, arrays: Arrays, x: Floats) -> bool:
    """True when divisible replicas, (columns,), leave a tier but the last short of more than solves leave open."""
    ranks = np.array([service.tier_rank for service in cells.services])
    by_tier = ((rank, lacking_columns(cells, arrays, np.flatnonzero(ranks == rank))) for rank in np.unique(ranks)[:-1])
    return any(float(arrays.cost[mine] @ x[mine]) > _clear(cells, ranks, rank) for rank, mine in by_tier)


def lacking_columns(cells: Cells, arrays: Arrays, services: Ints) -> Ints:
    """Columns of what the services leave undone: unserved demand, replicas below the floor in either chain, pins."""
    unserved, missing, parts = (arrays.columns[name] for name in ("unserved", "missing", "unparted"))
    count = unserved.stop - unserved.start
    beyond = arrays.columns["excess"].start + services
    pins = np.flatnonzero(np.isin([s for s, _ in cells.pins], services)) + arrays.columns["unpinned"].start
    starts = [columns.start + chain * count for columns in (missing, parts) for chain in range(len(CHAINS))]
    floors = [start + services for start in starts]
    return np.concatenate([unserved.start + services, beyond, *floors, pins]).astype(np.int64)


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
