"""The cheapest way out of a shortage: the same model with limits that give way at a price.

What may move: GPUs (beside those that are there), watts of a power domain, CPU and memory of nodes, room of links,
quotas, and replica ceilings (``relief_ways.py``). Their prices are what they cost to have, in USD per hour; words cost
next to nothing, so a quota is raised before a node is bought. Floors, pins, spread, SLOs and which classes a service
allows stay as they are.

Work is counted in columns and nodes of the search, so that the same problem gets the same relief on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import highspy
import numpy as np
import scipy.sparse as sp

from solvers.engine import Role
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.highs import pass_model, quiet_highs
from solvers.plan import Relief
from solvers.planner.bays.grouping import find_bays
from solvers.planner.bays.shelves import requests_by_role
from solvers.planner.model.relax import MOST_PRESOLVED, Arrays, Solution, solve_linear, solve_whole, state
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import Cells, build_cells
from solvers.planner.pools.options import Options, find_options
from solvers.planner.relief_ways import Way, ways_out
from solvers.problem import Problem
from solvers.spans import node_sizes

MUCH = 64  # times the fleet, as far as the sizes of pools look
SPLIT_CELLS = 3000  # up to so many, bays are told apart by what runs there
PLACE_CELLS = 1500  # up to so many, bays are told apart one by one where links count
WHOLE_COLUMNS = 1500  # up to so many, whole replicas count; beyond, their relaxation, which asks for a little less
NODE_LIMIT = 20
GAP = 0.05
LEAST = 1e-6
MOST_ROWS = 16
LACKS = ("unserved", "excess", "missing", "unpinned", "unparted")
"""Columns whose cost is a penalty."""


def find_relief(desk: Desk) -> tuple[Relief, ...]:
    """Name the least that would have to change for everything to be served that anything can serve.

    Returns
    -------
    tuple of Relief
        Sorted; together they are enough as far as the model over groups sees. Estimates where the relaxation decided.
        Each also says what its first unit would do alone, at the relaxation. Empty when nothing helps.
    """
    options = _open_options(desk)
    cells = _cells(desk, options)
    if not cells.pools:
        return ()
    arrays = state(cells)
    ways = ways_out(cells, arrays)
    eased, seconds = _eased(cells, arrays, ways), desk.problem.policy.time_limit_s
    solution = None if desk.is_wide or len(eased.cost) > WHOLE_COLUMNS else _solve_whole(desk, eased, seconds)
    is_estimate, count = solution is None, len(arrays.cost)
    if solution is None:
        solution = solve_linear(eased, time_limit_s=seconds)
    asked = [(way, float(amount), k) for k, (way, amount) in enumerate(zip(ways, solution.x[count:], strict=True))]
    rows = [(_relief(way, amount, is_estimate), k) for way, amount, k in asked if amount > LEAST]
    rows = sorted(rows, key=lambda row: (-row[0].usd_per_hour, row[0].limit, row[0].subject))[:MOST_ROWS]
    alone = _Alone.of(eased, cells, ways, seconds)
    return tuple(alone.told(row, k) for row, k in rows)


def _cells(desk: Desk, options: Options) -> Cells:
    """Groups of bays; where links count and there are few, every bay by itself, as like links are not used alike."""
    if desk.sizer.links.order:
        cells = build_cells(desk.problem, options, one_by_one=True)
        if len(cells.cell_pool) <= PLACE_CELLS:
            return cells
    cells = build_cells(desk.problem, options, split_running=False)
    if len(cells.cell_pool) > SPLIT_CELLS:
        return cells
    return build_cells(desk.problem, options)


def _open_options(desk: Desk) -> Options:
    """Pools of the sizes that they would have if there were enough of everything."""
    problem = desk.problem
    roomiest: dict[str, int] = {}
    for bay in find_bays(problem, ()):
        joined = bay.islands[0] * bay.node_gpus if bay.islands else 0
        roomiest[bay.gpu_class] = max(roomiest.get(bay.gpu_class, 0), bay.free[0], joined)
    largest = _largest_requests(problem)
    grown = replace(
        problem,
        nodes=tuple(
            replace(
                n,
                gpus_usable=MUCH * n.gpus_usable,
                gpus_total=MUCH * n.gpus_total,
                resources=_grown(n.resources, largest),
            )
            for n in problem.nodes
        ),
        services=tuple(replace(s, max_replicas=MUCH * max(1, s.max_replicas)) for s in problem.services),
        policy=replace(problem.policy, quotas=()),
    )
    left_out = _dearer(desk) if desk.is_large else ()
    options = find_options(grown, desk.sizer, wanted=desk.wanted, is_wide=desk.is_wide, left_out=left_out)
    sizes, single = node_sizes(problem.nodes), {s.name for s in problem.services if s.is_one_pod}
    fit = tuple(
        option
        for option in options.pools
        if option.gpus <= roomiest.get(option.pool.gpu_class, 0)
        and not (option.pool.service in single and option.gpus > sizes[option.pool.gpu_class])
    )
    return replace(options, pools=fit)


def _dearer(desk: Desk) -> set[PoolKey]:
    """Pools whose work another of the same role, class, cap and KV group does on fewer GPUs; not what runs."""
    alike: dict[tuple[str, Role, str, float, str], list[tuple[float, PoolKey]]] = {}
    for option in desk.options.pools:
        pool, rate = option.pool, option.steps[-1].capacity_requests_per_s
        at = pool.service, pool.role, pool.gpu_class, pool.cap_watts, desk.sizer.pairing.group(pool)
        alike.setdefault(at, []).append((option.gpus / rate if rate > 0.0 else math.inf, pool))
    return {pool for pools in alike.values() for _, pool in sorted(pools)[1:]} - desk.wanted


def _largest_requests(problem: Problem) -> dict[str, int]:
    """The most that one replica of any service asks for."""
    largest: dict[str, int] = {}
    for asked in requests_by_role(problem).values():
        for name, amount in asked:
            largest[name] = max(largest.get(name, 0), amount)
    return largest


def _grown(resources: Mapping[str, int], largest: Mapping[str, int]) -> dict[str, int]:
    """As much as so many more GPUs would come with, and at least what one replica of any service asks for."""
    return {name: MUCH * max(amount, largest.get(name, 0)) for name, amount in resources.items()}


def _eased(cells: Cells, arrays: Arrays, ways: list[Way]) -> Arrays:
    """The model without its rounding of watts, with a column for every limit that may give way."""
    kept = [row for row, (limit, _) in enumerate(arrays.rows) if limit != "power_whole"]
    entries = [(row, column, -by) for column, way in enumerate(ways) for row, by in way.eases]
    rows, columns, values = zip(*entries, strict=True)
    added = sp.csr_array((values, (rows, columns)), shape=(len(arrays.rows), len(ways)))
    matrix = sp.csr_array(sp.hstack([arrays.matrix, added]))[kept]
    upper, replicas = arrays.upper.copy(), arrays.columns["replicas"]
    upper[replicas] = [cells.pools[p].most for p in cells.cell_pool]
    return Arrays(
        cost=np.concatenate([arrays.cost, [way.usd_per_hour for way in ways]]),
        matrix=sp.csc_array(matrix),
        row_lower=arrays.row_lower[kept],
        row_upper=arrays.row_upper[kept],
        lower=np.concatenate([arrays.lower, np.zeros(len(ways))]),
        upper=np.concatenate([upper, np.full(len(ways), np.inf)]),
        whole=np.concatenate([arrays.whole, [way.is_whole for way in ways]]),
        columns=arrays.columns,
        rows=tuple(arrays.rows[row] for row in kept),
    )


def _solve_whole(desk: Desk, arrays: Arrays, seconds: float) -> Solution | None:
    """Whole replicas, to so many nodes of the search; None when that leads nowhere. Seconds are a safety net."""
    try:
        return solve_whole(arrays, relative_gap=GAP, time_limit_s=seconds, node_limit=NODE_LIMIT, run=desk.crew.whole)
    except SolveFailed:
        return None


def _relief(way: Way, amount: float, is_estimate: bool) -> Relief:
    """Round up to what can be asked for: whole GPUs, replicas, cores and GiB, tenths of a kW and of a GB/s."""
    asked = (math.ceil(amount - 1e-6) if way.is_whole else amount) * way.per_unit
    parts = 10.0 if way.unit in ("kW", "GB/s") else 1.0
    rounded = max(1, math.ceil(asked * parts - 1e-6)) / parts  # what is asked is never rounded to nothing
    price = rounded * way.usd_per_hour / way.per_unit
    return Relief(
        limit=way.limit,
        subject=way.subject,
        unit=way.unit,
        amount=rounded,
        usd_per_hour=price,
        is_estimate=is_estimate,
    )


@dataclass(slots=True, kw_only=True)
class _Alone:
    """What one unit of one limit would do, all others as they are: one linear problem, whose columns open in turn."""

    eased: Arrays
    cells: Cells
    ways: list[Way]
    highs: Any
    before: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, eased: Arrays, cells: Cells, ways: list[Way], seconds: float) -> _Alone:
        """Solve it with none of anything."""
        upper = eased.upper.copy()
        upper[len(upper) - len(ways) :] = 0.0
        presolve = {"presolve": "off"} if len(upper) > MOST_PRESOLVED else {}
        highs = quiet_highs(time_limit=seconds, solver="simplex", **presolve)
        rows = (eased.row_lower, eased.row_upper)
        pass_model(highs, matrix=eased.matrix, cost=eased.cost, columns=(eased.lower, upper), rows=rows, whole=None)
        alone = cls(eased=eased, cells=cells, ways=ways, highs=highs)
        alone.before = alone._solved()
        return alone

    def told(self, row: Relief, way: int) -> Relief:
        """Add what the first unit serves more and what it saves in penalties."""
        column, unit = len(self.eased.cost) - len(self.ways) + way, self.ways[way].per_unit
        self.highs.changeColBounds(column, 0.0, 1.0)
        served, penalties = (after - now for after, now in zip(self._solved(), self.before, strict=True))
        self.highs.changeColBounds(column, 0.0, 0.0)
        return replace(
            row,
            first_serves_requests_per_s=_clean(served / unit),
            first_saves_usd_per_hour=_clean(-penalties / unit),
        )

    def _solved(self) -> tuple[float, float]:
        """Requests/s served (less the demand) and USD/h of penalties."""
        self.highs.run()
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise SolveFailed("the worth of the relief was not found")
        x = np.array(self.highs.getSolution().col_value)
        lacking = sum(float(self.eased.cost[at] @ x[at]) for at in (self.eased.columns[name] for name in LACKS))
        return -float(self.cells.demand_per_s @ x[self.eased.columns["unserved"]]), lacking


def _clean(value: float) -> float:
    """Nothing, rather than the solver's rounding."""
    return value if value > LEAST else 0.0
