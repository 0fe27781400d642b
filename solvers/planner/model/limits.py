"""The optimisation stated once, in cvxpy: one function per limit, numbered as in ``solvers/README.md``.

Every function takes the sets (``Cells``) and the variables, and returns one vectorised constraint, a subject per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from solvers.engine import Role
from solvers.planner.bays.quotas import GPUS, POWER, quota_rows
from solvers.planner.model.columns import (
    Limit,
    Variables,
    chain_subjects,
    matrix_of,
    pool_subjects,
    sum_cells,
    sum_pools,
    sum_steps,
    triplets,
)
from solvers.planner.model.limits_pairs import (
    crossing_usd_per_hour,
    limit_crossing,
    limit_flow,
    limit_link,
    limit_pairs,
)
from solvers.planner.model.limits_resources import limit_resources
from solvers.planner.model.limits_spread import limit_hung, limit_locations, limit_share, limit_spot
from solvers.planner.pools.cells import CHAINS, Cells, Floats, Ints
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.spans import groups_taken

CAPACITY_SLACK = 1e-7  # relative; keeps a plan that meets a limit exactly from failing it by rounding

MOST_SLOTS = 500
WHOLE = 1e-7  # quotients this close to a whole number are that number


def limit_demand(cells: Cells, v: Variables) -> Limit:
    """(1) In each chain every request is carried by some pool or stays unserved; mixed pools count in both."""
    carried = sp.vstack([sum_pools(cells, roles) for _, roles in CHAINS])
    rows = carried @ v.share + sp.vstack([sp.eye_array(len(cells.services))] * len(CHAINS)) @ v.unserved
    return Limit(name="demand", equation=1, constraint=rows == 1.0, subjects=chain_subjects(cells))


def limit_capacity(cells: Cells, v: Variables) -> Limit:
    """(2) A pool carries no more than its replicas do at its size."""
    rates = np.array([step.capacity_requests_per_s for step in cells.steps], dtype=float)
    load = cells.demand_per_s[cells.pool_service]
    scale = 1.0 / np.maximum(load, 1e-12)  # rows in shares, not in requests/s: services differ by a factor of 1,000
    carried = sum_steps(cells, rates * (1.0 + CAPACITY_SLACK) * scale[cells.step_pool]) @ v.sized
    return Limit(
        name="capacity",
        equation=2,
        constraint=sp.diags_array(load * scale) @ v.share <= carried,
        subjects=pool_subjects(cells),
    )


def limit_chain(cells: Cells, v: Variables) -> Limit:
    """(3) The pools of a chain together carry what is served: implied by (1) and (2), and what the solver cuts from."""
    rates = np.array([step.capacity_requests_per_s for step in cells.steps], dtype=float)
    load = np.maximum(cells.demand_per_s, 1e-12)[cells.pool_service[cells.step_pool]]
    carried = sum_steps(cells, rates * (1.0 + CAPACITY_SLACK) / load)
    able = sp.vstack([sum_pools(cells, roles) @ carried for _, roles in CHAINS])
    rows = able @ v.sized + sp.vstack([sp.eye_array(len(cells.services))] * len(CHAINS)) @ v.unserved
    asked = np.tile((cells.demand_per_s > 0.0).astype(float), len(CHAINS))
    return Limit(name="chain", equation=3, constraint=rows >= asked, subjects=chain_subjects(cells))


def limit_pool_size(cells: Cells, v: Variables) -> Limit:
    """(4) The replicas of a pool, summed over its places, are those that its size step counts."""
    rows = sum_cells(cells) @ v.replicas - sum_steps(cells) @ v.sized
    return Limit(name="pool_size", equation=4, constraint=rows == 0.0, subjects=pool_subjects(cells))


def limit_step(cells: Cells, v: Variables) -> Limit:
    """(5) A pool's size lies in at most one step of one power cap, between that step's ends."""
    count = len(cells.steps)
    lower = np.array([step.lower for step in cells.steps], dtype=float)
    upper = np.array([step.upper for step in cells.steps], dtype=float)
    base = cells.pool_base[cells.step_pool]
    stepped = np.flatnonzero(np.bincount(base, minlength=len(cells.pools)) > 1)
    inside = np.flatnonzero(np.isin(base, stepped))
    one_step = matrix_of(base, np.arange(count), 1.0, (len(cells.pools), count))
    pick = matrix_of(np.arange(len(inside)), inside, 1.0, (len(inside), count))
    labels = [f"{cells.pools[cells.step_pool[t]].pool} {cells.steps[t].lower}-{cells.steps[t].upper}" for t in inside]
    rows = (
        sp.vstack([pick * lower, -pick * upper, one_step[stepped]]) @ v.chosen
        + sp.vstack([-pick, pick, sp.csr_array((len(stepped), count))]) @ v.sized
    )
    most = np.repeat([0.0, 1.0], [2 * len(inside), len(stepped)])
    subjects = [f"{label} lower" for label in labels] + [f"{label} upper" for label in labels]
    return Limit(
        name="step",
        equation=5,
        constraint=rows <= most,
        subjects=(*subjects, *(f"{cells.pools[p].pool.uncapped} one step" for p in stepped)),
    )


def limit_gpus(cells: Cells, v: Variables) -> Limit:
    """(6) Whole groups inside nodes and islands: at each size q, what could stand there instead, and what is there."""
    entries = _Entries()
    slots: list[int] = []
    subjects: list[str] = []
    gpus = np.array([option.gpus for option in cells.pools], dtype=np.int64)[cells.cell_pool]
    for g, group in enumerate(cells.grouping.groups):
        inside, node_gpus = np.flatnonzero(cells.cell_group == g), group.bays[0].node_gpus
        sizes, kind = np.unique(gpus[inside], return_inverse=True)
        for size in sizes.tolist():
            taken = np.array([float(n >= size and groups_taken(n, size, node_gpus)) for n in sizes.tolist()])
            counted = gpus[inside] >= size
            entries.add(len(slots), inside[counted], taken[kind][counted])
            slots.append(group.slots(size))
            subjects.append(f"{group.label} x{size}")
    held = entries.matrix((len(slots), len(cells.cell_pool)))
    limit = np.array(slots, dtype=float)
    return Limit(name="gpus", equation=6, constraint=held @ v.replicas <= limit, subjects=tuple(subjects))


@dataclass(slots=True)
class _Entries:
    """Rows of a sparse matrix in the making."""

    rows: list[Ints] = field(default_factory=list)
    columns: list[Ints] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)

    def add(self, row: int, columns: Ints, values: Floats) -> None:
        self.rows.append(np.full(len(columns), row))
        self.columns.append(columns)
        self.values.append(values)

    def matrix(self, shape: tuple[int, int]) -> Any:
        if not self.rows:
            return matrix_of([], [], [], shape)
        rows, columns, values = (np.concatenate(parts) for parts in (self.rows, self.columns, self.values))
        return matrix_of(rows, columns, values, shape)


def _charges(cells: Cells) -> dict[int, tuple[Ints, Floats]]:
    """By domain group: cells that draw from it, and the domains of it that one of their replicas charges."""
    is_anywhere = np.array([option.is_anywhere for option in cells.pools], dtype=bool)[cells.cell_pool]
    by_class: dict[str, list[int]] = {}
    for c in np.flatnonzero(is_anywhere).tolist():
        by_class.setdefault(cells.pools[cells.cell_pool[c]].pool.gpu_class, []).append(c)
    found: dict[int, tuple[list[Ints], list[Floats]]] = {}

    def charge(inside: Ints, d: int, times: int) -> None:
        columns, values = found.setdefault(d, ([], []))
        columns.append(inside)
        values.append(np.full(len(inside), float(times)))

    for (gpu_class, d), times in sorted(cells.grouping.class_charges.items()):
        charge(np.array(by_class.get(gpu_class, ()), dtype=np.int64), d, times)
    for (g, d), times in sorted(cells.grouping.charges.items()):
        charge(np.flatnonzero((cells.cell_group == g) & ~is_anywhere), d, times)
    joined = ((d, np.concatenate(columns), np.concatenate(values)) for d, (columns, values) in sorted(found.items()))
    return {d: (columns, values) for d, columns, values in joined if len(columns)}


def _cell_watts(cells: Cells) -> Floats:
    """Watts that a replica of each cell adds to its domains, (C,)."""
    watts: Floats = np.array([option.reserved_watts for option in cells.pools], dtype=float)[cells.cell_pool]
    return watts


def limit_power(cells: Cells, v: Variables) -> Limit:
    """(7) What replicas add at their cap stays inside the room above idle draw; in kW."""
    domains, watts, entries = cells.grouping.domain_groups, _cell_watts(cells), _Entries()
    for d, (inside, times) in _charges(cells).items():
        entries.add(d, inside, times * watts[inside] / 1000.0)
    room = np.array([len(d.domains) * d.room_watts / 1000.0 for d in domains], dtype=float)
    charged = entries.matrix((len(domains), len(cells.cell_pool)))
    subjects = tuple(d.label for d in domains)
    return Limit(name="power", equation=7, constraint=charged @ v.replicas <= room, subjects=subjects)


def limit_power_whole(cells: Cells, v: Variables) -> Limit:
    """(8) Watts come in whole replicas: at each size w of them, ⌊watts/w⌋ add up to at most ⌊room/w⌋ in a domain."""
    by_cell, entries = _cell_watts(cells), _Entries()
    most: list[float] = []
    subjects: list[str] = []
    for d, (inside, times) in _charges(cells).items():
        domain, drawn = cells.grouping.domain_groups[d], by_cell[inside]
        for watts in np.unique(drawn[drawn > 0.0]).tolist():
            slots = math.floor(domain.room_watts / watts + WHOLE)
            if slots > MOST_SLOTS:
                continue  # rounding down one in hundreds tells the solver nothing
            counted = drawn >= watts
            entries.add(len(most), inside[counted], times[counted] * np.floor(drawn[counted] / watts + WHOLE))
            most.append(float(len(domain.domains) * slots))
            subjects.append(f"{domain.label} by {watts:.0f} W")
    whole = entries.matrix((len(most), len(cells.cell_pool)))
    constraint = whole @ v.replicas <= np.array(most, dtype=float)
    return Limit(name="power_whole", equation=8, constraint=constraint, subjects=tuple(subjects))


def limit_floor(cells: Cells, v: Variables) -> Limit:
    """(9) At least ``min_replicas`` can take prompts, and as many can decode; what is missing is paid for."""
    least = np.array([service.min_replicas for service in cells.services], dtype=float)
    sums = sp.vstack([sum_pools(cells, roles) for _, roles in CHAINS]) @ sum_cells(cells) @ v.replicas
    return Limit(
        name="floor", equation=9, constraint=sums + v.missing >= np.tile(least, 2), subjects=chain_subjects(cells)
    )


def limit_ceiling(cells: Cells, v: Variables) -> Limit:
    """(10) No role of a service has more than ``max_replicas``."""
    most = np.array([service.max_replicas for service in cells.services], dtype=float)
    sums = sp.vstack([sum_pools(cells, (role,)) for role in Role]) @ sum_cells(cells) @ v.replicas
    subjects = tuple(f"{service.name} {role}" for role in Role for service in cells.services)
    return Limit(name="ceiling", equation=10, constraint=sums <= np.tile(most, len(Role)), subjects=subjects)


def limit_churn(cells: Cells, v: Variables) -> Limit:
    """(11) What a group holds of a running pool differs from what runs by what is started less what is stopped."""
    rows, columns = held_cells(cells)
    inside = matrix_of(rows, columns, 1.0, (len(cells.held_now), len(cells.cell_pool)))
    subjects = tuple(
        f"{cells.pools[p].pool}@{'*' if g < 0 else cells.grouping.groups[g].label}"
        for p, g in zip(cells.held_pool, cells.held_group, strict=True)
    )
    change = inside @ v.replicas - v.started + v.stopped
    return Limit(name="churn", equation=11, constraint=change == cells.held_now, subjects=subjects)


def held_cells(cells: Cells) -> tuple[Ints, Ints]:
    """Pairs (held row, cell) of the cells that a running pool's replicas count in."""
    held = zip(cells.held_pool.tolist(), cells.held_group.tolist(), strict=True)
    rows, base = {at: h for h, at in enumerate(held)}, cells.pool_base[cells.cell_pool]
    runs = np.flatnonzero(np.isin(base, cells.held_pool))
    pairs = [
        (h, c)
        for c, p, g in zip(runs.tolist(), base[runs].tolist(), cells.cell_group[runs].tolist(), strict=True)
        if (h := rows.get((p, g), rows.get((p, -1)))) is not None
    ]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def limit_quota_gpus(cells: Cells, v: Variables) -> Limit:
    """(12) A namespace holds no more GPUs, of a class or of all, than its quota allows."""
    return _quota(cells, v, GPUS, equation=12)


def limit_quota_power(cells: Cells, v: Variables) -> Limit:
    """(13) The GPUs of a namespace draw no more at their highest cap than its quota allows; in kW."""
    return _quota(cells, v, POWER, equation=13)


def _quota(cells: Cells, v: Variables, name: str, *, equation: int) -> Limit:
    rows = [row for row in quota_rows(cells.problem) if row.limit == name]
    uses = [
        (r, c, use)
        for r, row in enumerate(rows)
        for c, p in enumerate(cells.cell_pool)
        if (use := row.use(cells.pools[p].pool, cells.problem.gpu_classes)) > 0.0
    ]
    held = matrix_of(*triplets(uses), (len(rows), len(cells.cell_pool)))
    most = np.array([row.most for row in rows], dtype=float)
    subjects = tuple(row.subject for row in rows)
    return Limit(name=name, equation=equation, constraint=held @ v.replicas <= most, subjects=subjects)


def limit_pin(cells: Cells, v: Variables) -> Limit:
    """(14) At a location that a service is pinned to it has so many replicas; what is missing is paid for."""
    sites = [cells.grouping.groups[g].bays[0].location for g in cells.cell_group]
    keys = [cells.pools[p].pool for p in cells.cell_pool]
    pinned = [
        (i, c, 1.0)
        for i, (s, pin) in enumerate(cells.pins)
        for c, (key, site) in enumerate(zip(keys, sites, strict=True))
        if cells.pool_service[cells.cell_pool[c]] == s and pin.counts(key.role, key.gpu_class, site)
    ]
    there = matrix_of(*triplets(pinned), (len(cells.pins), len(keys))) @ v.replicas
    least = np.array([float(pin.replicas) for _, pin in cells.pins])
    subjects = tuple(f"{cells.services[s].name} {pin}" for s, pin in cells.pins)
    return Limit(name="pin", equation=14, constraint=there + v.unpinned >= least, subjects=subjects)


def limit_fair(cells: Cells, v: Variables) -> Limit:
    """(18) What a service is short of beyond its fair share counts once more."""
    named = np.flatnonzero(cells.fair_ratio < 1.0)
    pick = matrix_of(np.arange(len(named)), named, 1.0, (len(named), len(cells.services)))
    subjects = tuple(cells.services[s].name for s in named)
    constraint = pick @ v.unserved - pick @ v.excess <= cells.fair_ratio[named]
    return Limit(name="fair", equation=18, constraint=constraint, subjects=subjects)


LIMITS: tuple[Callable[[Cells, Variables], Limit], ...] = (
    limit_demand,
    limit_capacity,
    limit_chain,
    limit_pool_size,
    limit_step,
    limit_gpus,
    limit_power,
    limit_power_whole,
    limit_floor,
    limit_ceiling,
    limit_churn,
    limit_quota_gpus,
    limit_quota_power,
    limit_pin,
    limit_locations,
    limit_hung,
    limit_share,
    limit_fair,
    limit_spot,
    limit_pairs,
    limit_flow,
    limit_crossing,
    limit_link,
    limit_resources,
)

SHARED_LIMITS = (limit_gpus, limit_power, limit_power_whole, limit_quota_gpus, limit_quota_power, limit_resources)
"""Those of what services share, which is all that ways are priced by."""


def objective(cells: Cells, v: Variables) -> Any:
    """(25) GPU price and energy of every replica, starts, stops, unserved demand by tier, what is missing; USD/h."""
    energy = cells.policy.energy_usd_per_kilowatt_hour
    run = np.array(
        [cells.pools[p].step_usd_per_hour(s, energy) for p, s in zip(cells.step_pool, cells.steps, strict=True)],
        dtype=float,
    )
    start = cells.start_usd_per_hour(cells.cell_pool)
    start[held_cells(cells)[1]] = 0.0  # counted beyond what runs, below
    return (
        run @ v.sized
        + (start + cells.terms_usd_per_hour()) @ v.replicas
        + cells.start_usd_per_hour(cells.held_pool) @ v.started
        + cells.stop_usd_per_hour(cells.held_pool) @ v.stopped
        + cells.penalty_usd_per_hour @ (v.unserved + EXCESS_WEIGHT * v.excess)
        + np.tile(cells.floor_usd_per_hour, len(CHAINS)) @ (v.missing + v.unparted)
        + np.array([cells.floor_usd_per_hour[s] for s, _ in cells.pins], dtype=float) @ v.unpinned
        + crossing_usd_per_hour(cells) @ (v.outgoing + v.incoming)
    )
