"""An exact integer programme for each service by itself, in order of tier, on the GPUs that are left.

Imitates optimisers of one model at a time:

- Mélange (Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity",
  arXiv:2404.14527, section 5): whole GPUs of every type at their prices, chosen so that their summed throughput covers
  the slices of the demand;
- the GPU optimizer of AIBrix (arXiv:2504.03648, section 3.2.7), the same programme inside a control loop.

Differs from them, each time in its favour: throughput is that of the pool at its size instead of one number per GPU
type; prefill, decode and mixed pools compete in the same programme; GPUs are bounded by what earlier services left,
in whole groups; prefill and decode carry the same in every KV group; and when watts or nodes refuse replicas, which
neither work knows of, the programme is solved again without them. Slices differ by size of request there; here every
pool gets the same mix, so each chain has one row.

It does not know that keys and values may have to stay at a location, or of links: replicas go where watts are, and
the plan says what pairs carry then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from solvers.baselines.stage import Stage
from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.pairing import Pairing
from solvers.plan import Plan
from solvers.planner.model.relax import Arrays, solve_whole
from solvers.planner.pools.cells import CHAINS
from solvers.planner.pools.options import PoolOption
from solvers.planner.pools.penalties import FLOOR_WEIGHT
from solvers.problem import Problem
from solvers.sizing import Capacity, CapacityOf, replica_capacity
from solvers.workload import ServedModel

NAME = "per_service"
RELATIVE_GAP = 1e-4  # of one service's cost; far below a replica of most
MOST_NODES = 20_000  # of the search; bounds its work without a clock
LONGEST_S = 600.0  # a safety net only
UNSERVED_WEIGHT = 60.0  # times the dearest way: within one service, serving always comes first
Floats = NDArray[np.float64]


def per_service(problem: Problem, *, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Solve one service after the other, each exactly.

    Raises
    ------
    InvalidInput
        The problem itself is malformed.
    SolveFailed
        The solver gave no answer to a programme that always has one.
    """
    stage = Stage.of(problem, capacity_of)
    for service in stage.services:
        _decide(stage, service)
    return stage.write(NAME)


def _decide(stage: Stage, service: ServedModel) -> None:
    """Solve, place, and solve again without what was refused, until nothing is."""
    options = stage.desk.options.of(service.name)
    if not options:
        return
    most = {option.pool: option.most for option in options}
    while True:
        mark = stage.mark()
        wanted = _solve(stage, service, options, most)
        placed = {o.pool: stage.place(service, o, wanted[o.pool]) for o in _largest_first(options) if wanted[o.pool]}
        refused = {pool: count for pool, count in placed.items() if count < wanted[pool]}
        if not refused:
            return
        stage.reset(mark)
        most |= refused


def _largest_first(options: Sequence[PoolOption]) -> list[PoolOption]:
    return sorted(options, key=lambda o: (-o.gpus, o.pool))


def _solve(
    stage: Stage, service: ServedModel, options: Sequence[PoolOption], limits: dict[PoolKey, int]
) -> dict[PoolKey, int]:
    """Replicas by pool, at least cost for as much of the demand as the GPUs left allow.

    Columns: replicas by step, chosen by step, unserved share, replicas missing below the floor (prompts, tokens), and
    where pools are of several KV groups the share that each serves.
    Beyond a dozen replicas a step holds several sizes; it counts what its smallest carries, so the promise is kept.
    """
    steps = [(p, step) for p, option in enumerate(options) for step in option.steps]
    count, pools = len(steps), np.array([p for p, _ in steps])
    lower, upper = (np.array([getattr(step, end) for _, step in steps], dtype=float) for end in ("lower", "upper"))
    upper = np.minimum(upper, [limits[options[p].pool] for p in pools])
    energy = stage.desk.problem.policy.energy_usd_per_kilowatt_hour
    price = np.array([options[p].step_usd_per_hour(step, energy) for p, step in steps])
    carried = np.array([_capacity_per_s(stage, options[p], step.lower) for p, step in steps])
    dearest = max(option.price_usd_per_hour for option in options)
    unserved = UNSERVED_WEIGHT * dearest * max(1, max(option.most for option in options))
    pairing = Pairing.of(stage.desk.problem)
    kv_groups = pairing.groups_of(service, [option.pool for option in options])
    shares = np.ones(len(kv_groups)) if len(kv_groups) > 1 else np.zeros(0)
    rows = [
        *_size_rows(pools, lower, upper),
        *_chain_rows(stage, service, options, pools, carried, is_paired=len(shares) > 0),
        *_group_rows(stage, options, pools),
    ]
    rows = [(np.append(row, 0.0 * shares), low, high) for row, low, high in rows]
    if len(shares):
        names = [pairing.group(option.pool) for option in options]
        rows += _pair_rows(
            stage, service, options, pools, carried, [[name == group for name in names] for group in kv_groups]
        )
    cost = np.concatenate([price, np.zeros(count), [unserved], np.full(2, FLOOR_WEIGHT * unserved), 0.0 * shares])
    most = np.concatenate([np.maximum(0.0, upper), (upper >= lower).astype(float), [1.0], np.full(2, np.inf), shares])
    programme = Arrays(
        cost=cost,
        matrix=sp.csc_array(np.array([row for row, _, _ in rows])),
        row_lower=np.array([low for _, low, _ in rows]),
        row_upper=np.array([high for _, _, high in rows]),
        lower=np.zeros(len(cost)),
        upper=most,
        whole=np.arange(len(cost)) < 2 * count,
        columns={},
        rows=(),
    )
    found = solve_whole(programme, relative_gap=RELATIVE_GAP, time_limit_s=LONGEST_S, node_limit=MOST_NODES)
    totals = np.bincount(pools, weights=np.round(found.x[:count]), minlength=len(options))
    return {option.pool: int(n) for option, n in zip(options, totals, strict=True)}


def _capacity_per_s(stage: Stage, option: PoolOption, size: int) -> float:
    if not stage.desk.problem.demands[option.pool.service].mix:
        return 0.0
    sized = stage.desk.sizer.at(option.pool, option.profile, size)
    return sized.requests_per_s if isinstance(sized, Capacity) else 0.0


Row = tuple[Floats, float, float]
"""Coefficients, least and most."""


def _row(count: int, replicas: Floats, chosen: Floats | None = None, slack: int | None = None) -> Floats:
    """Lay one row out over (replicas, chosen, unserved, missing prompts, missing tokens)."""
    row = np.zeros(2 * count + 3)
    row[:count] = replicas
    if chosen is not None:
        row[count : 2 * count] = chosen
    if slack is not None:
        row[2 * count + slack] = 1.0
    return row


def _size_rows(pools: NDArray[np.int64], lower: Floats, upper: Floats) -> list[Row]:
    """One step of each pool, and sizes inside it."""
    count, unit = len(pools), np.eye(len(pools))
    inside = [(_row(count, unit[t], -upper[t] * unit[t]), -np.inf, 0.0) for t in range(count)]
    above = [(_row(count, unit[t], -lower[t] * unit[t]), 0.0, np.inf) for t in range(count)]
    single = [(_row(count, np.zeros(count), (pools == p).astype(float)), 0.0, 1.0) for p in np.unique(pools)]
    return [*inside, *above, *single]


def _chain_rows(
    stage: Stage,
    service: ServedModel,
    options: Sequence[PoolOption],
    pools: NDArray[np.int64],
    carried: Floats,
    *,
    is_paired: bool,
) -> list[Row]:
    """Both chains carry the demand or leave it (pairs: elsewhere), and keep floors; ceilings hold for each role."""
    count, rate, found = len(pools), stage.missing_per_s(service), list[Row]()
    for slack, (_, roles) in enumerate(CHAINS, start=1):
        mine = np.array([options[p].pool.role in roles for p in pools], dtype=float)
        if rate > 0.0 and not is_paired:
            found.append((_row(count, mine * carried / rate, slack=0), 1.0, np.inf))
        standing = sum(n for pool, n in stage.totals(service).items() if pool.role in roles)
        found.append((_row(count, mine, slack=slack), float(service.min_replicas - standing), np.inf))
    for role in sorted({option.pool.role for option in options}):
        mine = np.array([options[p].pool.role is role for p in pools], dtype=float)
        found.append((_row(count, mine), -np.inf, float(stage.spare_in_role(service, role))))
    return found


def _pair_rows(
    stage: Stage,
    service: ServedModel,
    options: Sequence[PoolOption],
    pools: NDArray[np.int64],
    carried: Floats,
    in_group: Sequence[Sequence[bool]],
) -> list[Row]:
    """Prefill and decode of each KV group carry its share; these and mixed pools serve the demand or leave it."""
    count, rate, shares = len(pools), stage.missing_per_s(service), np.eye(len(in_group))
    if rate <= 0.0:
        return []
    roles = np.array([options[p].pool.role for p in pools])
    all_of_it = _row(count, (roles == Role.MIXED) * carried / rate, slack=0)
    found = [(np.append(all_of_it, np.ones(len(shares))), 1.0, np.inf)]
    for k, share in enumerate(shares):
        for role in (Role.PREFILL, Role.DECODE):
            mine = (roles == role) & np.array(in_group[k])[pools]
            found.append((np.append(_row(count, mine * carried / rate), -share), 0.0, np.inf))
    return found


def _group_rows(stage: Stage, options: Sequence[PoolOption], pools: NDArray[np.int64]) -> list[Row]:
    """Whole groups of GPUs that the earlier services left, by class and size."""
    found = []
    for gpu_class, size in sorted({(option.pool.gpu_class, option.gpus) for option in options}):
        bays = stage.room.bays_of(next(option.pool for option in options if option.pool.gpu_class == gpu_class))
        taken = [options[p].gpus // size if options[p].pool.gpu_class == gpu_class else 0 for p in pools]
        left = sum(stage.room.spare_groups(bay, size) for bay in bays)
        found.append((_row(len(pools), np.array(taken, dtype=float)), -np.inf, float(left)))
    return found
