"""The cheapest way out of a shortage: the same model with limits that give way at a price.

What may move: GPUs (beside those that are there), watts of a power domain, quotas, and replica ceilings. Their
prices are what they cost to have, in USD per hour; words cost next to nothing, so a quota is raised before a node is
bought. Floors, pins, spread, SLOs and which classes a service allows stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from solvers.errors import SolveFailed
from solvers.plan import Relief
from solvers.planner.cells import Cells, build_cells
from solvers.planner.desk import Desk
from solvers.planner.grouping import find_bays
from solvers.planner.options import Options, find_options
from solvers.planner.relax import Arrays, Solution, solve_linear, solve_whole, state
from solvers.spans import node_sizes

KILOWATT_USD_PER_HOUR = 0.25  # 180 USD for a kW and month: what colocation asks for power and cooling to go with it
WORD_USD_PER_HOUR = 0.02  # for a GPU, kW or replica more in a quota or ceiling: a word, but not one too many
MUCH = 64  # times the fleet, as far as the sizes of pools look
MOST_CELLS = 3000  # beyond, a decision has no time left for this
WHOLE_CELLS = 1000  # up to so many, whole replicas count; beyond, their relaxation, which asks for a little less
NODE_LIMIT = 20
GAP = 0.05
LEAST = 1e-6
MOST_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One limit that may give way: rows it eases by how much for a unit, and what a unit costs."""

    limit: str
    subject: str
    unit: str
    eases: tuple[tuple[int, float], ...]
    usd_per_hour: float
    per_unit: float = 1.0
    is_whole: bool = False


def find_relief(desk: Desk) -> tuple[Relief, ...]:
    """Name the least that would have to change for everything to be served that anything can serve.

    Returns
    -------
    tuple of Relief
        Sorted; together they are enough as far as the model over groups sees. Empty when nothing helps or the fleet is
        too large to look.
    """
    if len(desk.options.pools) > MOST_CELLS:
        return ()
    options = _open_options(desk)
    cells = build_cells(desk.problem, options)
    if not cells.pools or len(cells.cell_pool) > MOST_CELLS:
        return ()
    arrays = state(cells)
    ways = list(_ways(cells, arrays))
    eased = _eased(cells, arrays, ways)
    seconds, is_small = desk.problem.policy.time_limit_s / 10.0, len(cells.cell_pool) <= WHOLE_CELLS
    solution = _solve(desk, eased, seconds) if is_small else solve_linear(eased, time_limit_s=seconds)
    amounts = solution.x[len(arrays.cost) :]
    found = [_relief(way, float(amount)) for way, amount in zip(ways, amounts, strict=True) if amount > LEAST]
    return tuple(sorted(found, key=lambda r: (-r.usd_per_hour, r.limit, r.subject))[:MOST_ROWS])


def _open_options(desk: Desk) -> Options:
    """Pools of the sizes that they would have if there were enough of everything."""
    problem = desk.problem
    roomiest: dict[str, int] = {}
    for bay in find_bays(problem, ()):
        joined = bay.islands[0] * bay.node_gpus if bay.islands else 0
        roomiest[bay.gpu_class] = max(roomiest.get(bay.gpu_class, 0), bay.free[0], joined)
    grown = replace(
        problem,
        nodes=tuple(
            replace(n, gpus_usable=MUCH * n.gpus_usable, gpus_total=MUCH * n.gpus_total) for n in problem.nodes
        ),
        services=tuple(replace(s, max_replicas=MUCH * max(1, s.max_replicas)) for s in problem.services),
        policy=replace(problem.policy, quotas=()),
    )
    options = find_options(grown, desk.sizer, wanted=desk.wanted)
    sizes, single = node_sizes(problem.nodes), {s.name for s in problem.services if s.is_one_pod}
    fit = tuple(
        option
        for option in options.pools
        if option.gpus <= roomiest.get(option.pool.gpu_class, 0)
        and not (option.pool.service in single and option.gpus > sizes[option.pool.gpu_class])
    )
    return replace(options, pools=fit)


def _ways(cells: Cells, arrays: Arrays) -> Iterator[_Way]:
    for row, (limit, subject) in enumerate(arrays.rows):
        if limit == "power":
            unit = {"unit": "kW", "eases": ((row, 1.0),), "usd_per_hour": KILOWATT_USD_PER_HOUR}
            yield _Way(limit=limit, subject=subject, **unit)  # type: ignore[arg-type]
        elif limit in ("quota_gpus", "quota_power", "ceiling"):
            unit_name = {"quota_gpus": "GPU", "quota_power": "kW", "ceiling": "replica"}[limit]
            eases = ((row, 1.0),)
            yield _Way(limit=limit, subject=subject, unit=unit_name, eases=eases, usd_per_hour=WORD_USD_PER_HOUR)
    yield from (_node_way(cells, arrays, g) for g in range(len(cells.grouping.groups)))


def _node_way(cells: Cells, arrays: Arrays, g: int) -> _Way:
    """GPUs more in a group of bays, as many as its largest replicas take, less the watts that they idle at."""
    group, problem = cells.grouping.groups[g], cells.problem
    gpu_class = problem.gpu_classes[group.gpu_class]
    named = [
        (row, *subject.rpartition(" x")[::2]) for row, (limit, subject) in enumerate(arrays.rows) if limit == "gpus"
    ]
    sizes = [(row, int(size)) for row, label, size in named if label == group.label]
    gpus = max(size for _, size in sizes)
    eases = [(row, float(gpus // size)) for row, size in sizes]
    power = {subject: row for row, (limit, subject) in enumerate(arrays.rows) if limit == "power"}
    for d, domain in enumerate(cells.grouping.domain_groups):
        if times := cells.grouping.charges.get((g, d), 0):
            eases.append((power[domain.label], -times * gpus * gpu_class.idle_watts / 1000.0))
    energy = problem.policy.energy_usd_per_kilowatt_hour * gpu_class.idle_watts / 1000.0
    return _Way(
        limit="gpus",
        subject=group.label,
        unit="GPU",
        eases=tuple(eases),
        usd_per_hour=gpus * (gpu_class.price_usd_per_hour + energy),
        per_unit=float(gpus),
        is_whole=True,
    )


def _eased(cells: Cells, arrays: Arrays, ways: list[_Way]) -> Arrays:
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


def _solve(desk: Desk, arrays: Arrays, seconds: float) -> Solution:
    """Whole replicas where that is quick, else the relaxation, which asks for a little less."""
    try:
        return solve_whole(arrays, relative_gap=GAP, time_limit_s=seconds, node_limit=NODE_LIMIT, run=desk.crew.whole)
    except SolveFailed:
        return solve_linear(arrays, time_limit_s=seconds)


def _relief(way: _Way, amount: float) -> Relief:
    """Round up to what can be asked for: whole GPUs and replicas, tenths of a kW."""
    asked = (math.ceil(amount - 1e-6) if way.is_whole else amount) * way.per_unit
    parts = 10.0 if way.unit == "kW" else 1.0
    rounded = math.ceil(asked * parts - 1e-6) / parts
    price = rounded * way.usd_per_hour / way.per_unit
    return Relief(limit=way.limit, subject=way.subject, unit=way.unit, amount=rounded, usd_per_hour=price)
