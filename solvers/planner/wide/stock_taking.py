"""The pools of a large fleet as stocks, service by service."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.fleet import PoolKey
from solvers.planner.pools.cells import Cells, Ints
from solvers.planner.pools.options import PoolOption
from solvers.planner.pools.sizer import Sizer
from solvers.planner.wide.stocks import KNOWN_SIZES, LEAST_EVERY, MOST_EVERY, PARTS, WORK_SIZES, Stocks
from solvers.problem import Problem
from solvers.sizing import Capacity, CapacityOf, Unfit


def build_stocks(cells: Cells) -> tuple[Stocks, ...]:
    """Cut the cells by service; pools whose cells are none (no place) are left out by ``build_cells`` already."""
    made: list[Stocks] = []
    every = max(LEAST_EVERY, min(MOST_EVERY, WORK_SIZES // max(1, len(cells.services))))
    most = np.array([option.most for option in cells.pools], dtype=np.int64)
    room, now = cells.room_replicas(), _running(cells)
    energy = cells.policy.energy_usd_per_kilowatt_hour
    everyone, terms = np.arange(len(cells.pools)), cells.terms_usd_per_hour()
    starts, stops = cells.start_usd_per_hour(everyone), cells.stop_usd_per_hour(everyone)
    for s in range(len(cells.services)):
        pools = np.flatnonzero(cells.pool_service == s)
        pools = pools[np.isin(pools, cells.cell_pool)]
        inside = np.flatnonzero(np.isin(cells.cell_pool, pools))
        at = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
        options = [cells.pools[p] for p in pools]
        held = np.isin(cells.held_pool, pools)
        made.append(
            Stocks(
                service=s,
                demand_per_s=float(cells.demand_per_s[s]) if len(pools) else 0.0,
                parts=PARTS,
                every=every,
                fair_ratio=float(cells.fair_ratio[s]),
                unserved_usd_per_hour=float(cells.penalty_usd_per_hour[s]),
                roles=tuple(option.pool.role for option in options),
                cells=at,
                first=np.searchsorted(cells.cell_pool[at], np.append(pools, len(cells.pools))),
                base=np.searchsorted(pools, cells.pool_base[pools]),
                terms_usd_per_hour=terms[at],
                room=room[at],
                now=now[at],
                most=most[pools],
                rate_per_s=np.array([option.steps[-1].capacity_requests_per_s for option in options]),
                run_usd_per_hour=np.array([_idle_usd_per_hour(option, energy) for option in options]),
                start_usd_per_hour=starts[pools],
                stop_usd_per_hour=stops[pools],
                groups=_groups(cells, options),
                stop_all_usd_per_hour=float(stops[cells.held_pool[held]] @ cells.held_now[held]),
                floor_replicas=cells.services[s].min_replicas,
                floor_usd_per_hour=float(cells.floor_usd_per_hour[s]),
            )
        )
    return tuple(made)


def _running(cells: Cells) -> Ints:
    """Replicas that run in each cell, whatever their cap, (C,)."""
    now = {(int(p), int(g)): int(n) for p, g, n in zip(cells.held_pool, cells.held_group, cells.held_now, strict=True)}
    base = cells.pool_base[cells.cell_pool]  # what runs stays whatever its cap
    runs, able = np.zeros(len(base), dtype=np.int64), np.flatnonzero(np.isin(base, cells.held_pool))
    runs[able] = [
        now.get((p, g), now.get((p, -1), 0))  # what runs anywhere may stay in any group
        for p, g in zip(base[able].tolist(), cells.cell_group[able].tolist(), strict=True)
    ]
    return runs


def _groups(cells: Cells, options: Sequence[PoolOption]) -> tuple[str, ...]:
    """KV group of each pool of a service; nothing where all may pair."""
    if not options or options[0].pool.service not in cells.pairing.parted:
        return ()
    named = [cells.pairing.group(option.pool) for option in options]
    first = min((g for g, o in zip(named, options, strict=True) if o.pool.role is not Role.MIXED), default="")
    return tuple(first if o.pool.role is Role.MIXED else g for g, o in zip(named, options, strict=True))


def _idle_usd_per_hour(option: PoolOption, energy: float) -> float:
    idle = option.replica_watts(option.profile.idle_watts_per_gpu)
    return option.price_usd_per_hour + energy * idle / 1000.0


def known_sizes(most: int, every: int) -> list[int]:
    """Sizes of a pool that are worked out before any way asks for them."""
    return sorted({*(n for n in KNOWN_SIZES if n < most), min(most, every)})


def size_at(
    problem: Problem, capacity_of: CapacityOf, asks: Sequence[tuple[PoolKey, EngineProfile, int]]
) -> list[Capacity | Unfit]:
    """Capacities of pools at sizes."""
    sizer = Sizer(problem=problem, capacity_of=capacity_of)
    return [sizer.at(pool, profile, size) for pool, profile, size in asks]
