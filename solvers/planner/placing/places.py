"""Between model and fleet: counts per group of bays become counts per location, and counts a start for the solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from solvers.derived import derived
from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Counts, Room
from solvers.planner.model.relax import Arrays
from solvers.planner.placing.pair_places import Mend, Standing, pair_up
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.floors import places_of
from solvers.planner.pools.options import step_at
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.spread import spread_evenly
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Replicas by (pool, location), the room that remains, and how many found no place."""

    counts: Mapping[tuple[PoolKey, str], int]
    room: Room
    left: int


def place(
    cells: Cells,
    replicas: Floats,
    sizer: Sizer | None = None,
    first: Mapping[int, int] | None = None,
    mend: Mend | None = None,
) -> Placed:
    """Spread whole counts per cell over the bays of its group.

    What runs stays where it runs, as far as the count goes; then pairs that may not be apart are placed together; the
    rest goes in by decreasing group size, each replica to the bay whose feed keeps most watts.

    Parameters
    ----------
    replicas : (C,) float
        Whole up to the solver's tolerance.
    sizer : Sizer, optional
        Says what replicas carry; those of the largest pool without it.
    first : mapping of cell to int, optional
        Replicas that are given a place before all others, those that stay among them.
    mend : callable, optional
        Finds places for pairs of services that come out short.
    """
    room = Room.of(cells.problem)
    counts: dict[tuple[PoolKey, str], int] = {}
    wanted = {c: round(float(n)) for c, n in enumerate(replicas) if round(float(n)) > 0}
    order = sorted(wanted, key=lambda c: (-cells.pools[cells.cell_pool[c]].gpus, c))
    for c in (c for c in order if c in (first or {})):
        wanted[c] -= _spread(cells, c, min(wanted[c], (first or {})[c]), room, counts)
    for c in order:
        wanted[c] -= _keep_running(cells, c, wanted[c], room, counts)
    pair_up(Standing.of(cells, replicas, counts, sizer), wanted, room, mend)
    for c in order:
        wanted[c] -= _spread(cells, c, wanted[c], room, counts)
    return Placed(counts=dict(sorted(counts.items())), room=room, left=sum(wanted.values()))


def _bays(cells: Cells, cell: int) -> tuple[Bay, ...]:
    return cells.grouping.groups[int(cells.cell_group[cell])].bays


def _keep_running(cells: Cells, cell: int, wanted: int, room: Room, counts: dict[tuple[PoolKey, str], int]) -> int:
    option = cells.pools[cells.cell_pool[cell]]
    runs = derived(cells.problem, _running_by_pool).get(option.pool.uncapped)
    if option.is_anywhere or not runs:
        return 0
    kept = 0
    for bay in _bays(cells, cell):
        running = runs.get(bay.location, 0)
        if running <= 0:
            continue
        if kept >= wanted:
            break
        taken = room.take(option.pool, bay.location, min(running, wanted - kept), bay)
        if taken:
            key = option.pool, bay.location
            counts[key] = counts.get(key, 0) + taken
        kept += taken
    return kept


def _running_by_pool(problem: Problem) -> dict[PoolKey, dict[str, int]]:
    """What runs of each pool, by location."""
    found: dict[PoolKey, dict[str, int]] = {}
    for (pool, location), count in problem.running.items():
        found.setdefault(pool, {})[location] = count
    return found


def _spread(cells: Cells, cell: int, wanted: int, room: Room, counts: dict[tuple[PoolKey, str], int]) -> int:
    option = cells.pools[cells.cell_pool[cell]]
    service = cells.services[cells.pool_service[cells.cell_pool[cell]]]
    if cells.by_place(service.name) and option.pool.role is not Role.MIXED:
        added = _pair_up(cells, cell, wanted, room, counts)
    elif service.is_spread:
        added = spread_evenly(room, option.pool, wanted, _bays(cells, cell), places_of(service, counts))
    else:
        added = room.spread(option.pool, wanted, _bays(cells, cell), ANYWHERE if option.is_anywhere else None)
    for location, taken in added.items():
        counts[option.pool, location] = counts.get((option.pool, location), 0) + taken
    return sum(added.values())


def _pair_up(cells: Cells, cell: int, wanted: int, room: Room, counts: Counts) -> dict[str, int]:
    """Take in replicas, each where the service's other side of their pairing domain is most ahead of their own."""
    option = cells.pools[cells.cell_pool[cell]]
    ahead: dict[str, float] = {}
    for (pool, at), n in counts.items():
        is_pair = pool.service == option.pool.service and cells.pairing.group(pool) == cells.pairing.group(option.pool)
        if is_pair and pool.role is not Role.MIXED:
            sign = -1.0 if pool.role is option.pool.role else 1.0
            ahead[_side(cells, pool, at)] = ahead.get(_side(cells, pool, at), 0.0) + sign * n * _rate(cells, pool)
    added: dict[str, int] = {}
    for _ in range(wanted):
        able = [bay for bay in _bays(cells, cell) if room.room(option.pool, bay.location, bay) > 0]
        lead = {bay.location: ahead.get(_side(cells, option.pool, bay.location), 0.0) for bay in able}
        most = max(lead.values(), default=0.0)
        bay = room.best_bay(option.pool, [bay for bay in able if lead[bay.location] == most])
        if bay is None:
            break
        room.take(option.pool, bay.location, 1, bay)
        side = _side(cells, option.pool, bay.location)
        ahead[side] = ahead.get(side, 0.0) - _rate(cells, option.pool)
        added[bay.location] = added.get(bay.location, 0) + 1
    return added


def _side(cells: Cells, pool: PoolKey, location: str) -> str:
    """Where the pool's pairs must be together: at the location, else on one side of a link."""
    return location if pool.service in cells.pairing.local else cells.links.side(location)


def _rate(cells: Cells, pool: PoolKey) -> float:
    """What one replica of the pool carries at its largest size."""
    return next((o.steps[-1].capacity_requests_per_s for o in cells.pools if o.pool == pool), 0.0)


def start_columns(cells: Cells, arrays: Arrays, counts: Counts) -> Floats | None:
    """Turn placed counts into a value for every whole column (the others are NaN), None when a pool has no cell."""
    x = np.full(len(arrays.cost), np.nan)
    x[arrays.whole] = 0.0
    cells_of = cell_counts(cells, counts)
    if cells_of.sum() < sum(counts.values()):
        return None
    x[arrays.columns["replicas"]] = cells_of
    totals: dict[PoolKey, int] = {}
    for (pool, _), count in sorted(counts.items()):
        totals[pool] = totals.get(pool, 0) + count
    return x if _choose_steps(cells, arrays, totals, x) else None


def cell_counts(cells: Cells, counts: Counts) -> Floats:
    """Add placed counts up by cell; pools placed ``Class`` and what has no cell are left out.

    Returns
    -------
    (C,) float
    """
    index, found = derived(cells, _index_of_cells), np.zeros(len(cells.cell_pool))
    for (pool, location), count in counts.items():
        cell = index.of_pool.get(pool, {}).get(index.group_of.get((location, pool.gpu_class), -1))
        if cell is not None:
            found[cell] += count
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """Where a bay's group and a pool's cells, by group, are found."""

    group_of: Mapping[tuple[str, str], int]
    of_pool: Mapping[PoolKey, Mapping[int, int]]


def lost_counts(cells: Cells, replicas: Floats, placed: Placed) -> Floats:
    """Replicas by cell, (C,), that found no place."""
    return np.maximum(0.0, np.round(replicas) - cell_counts(cells, placed.counts))


def _index_of_cells(cells: Cells) -> _Index:
    by_pool: list[dict[int, int]] = [{} for _ in cells.pools]
    for c, (p, g) in enumerate(zip(cells.cell_pool.tolist(), cells.cell_group.tolist(), strict=True)):
        by_pool[p][g] = c
    return _Index(
        group_of={bay.key: g for g, group in enumerate(cells.grouping.groups) for bay in group.bays},
        of_pool={option.pool: inside for option, inside in zip(cells.pools, by_pool, strict=True)},
    )


def _choose_steps(cells: Cells, arrays: Arrays, totals: Mapping[PoolKey, int], x: Floats) -> bool:
    chosen, step_index = arrays.columns["chosen"], 0
    for option in cells.pools:
        total = totals.get(option.pool, 0)
        if total:
            step = step_at(option, total)
            if step is None:
                return False
            if chosen.stop > chosen.start:  # no pool has more than one step otherwise
                x[chosen.start + step_index + option.steps.index(step)] = 1.0
        step_index += len(option.steps)
    return True


def with_totals(cells: Cells, arrays: Arrays, totals: Mapping[PoolKey, float]) -> Arrays:
    """The same model with so many replicas of each pool, no more and no fewer."""
    at = arrays.columns["replicas"].start + np.arange(len(cells.cell_pool))
    ones = (np.ones(len(at)), (cells.cell_pool, at))
    wanted = np.array([totals.get(option.pool, 0.0) for option in cells.pools], dtype=float)
    sums = sp.csc_array(ones, shape=(len(wanted), len(arrays.cost)))
    return replace(
        arrays,
        matrix=sp.csc_array(sp.vstack([arrays.matrix, sums])),
        row_lower=np.concatenate([arrays.row_lower, wanted]),
        row_upper=np.concatenate([arrays.row_upper, wanted]),
    )


def narrowed(cells: Cells, replicas: Floats, refined: dict[PoolKey, set[int]]) -> bool:
    """Give the sizes that came out a step of their own in ``refined`` where the step promised more than they carry.

    Returns
    -------
    bool
        True when any is new.
    """
    changed = False
    totals = np.bincount(cells.cell_pool, weights=np.round(replicas), minlength=len(cells.pools))
    for option, total in zip(cells.pools, totals.astype(int), strict=True):
        step = step_at(option, int(total))
        if step is None or step.lower == step.upper:
            continue
        sizes = refined.setdefault(option.pool, set())
        changed = changed or total not in sizes
        sizes |= {int(total), int(total) + 1}
    return changed
