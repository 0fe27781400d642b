"""The limits that keep a service from hanging on one location; numbered as in ``solvers/README.md``."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from solvers.planner.model.columns import Limit, Variables, hung_most, matrix_of, sum_pools, sum_steps, triplets
from solvers.planner.pools.cells import CHAINS, Cells

SLACK = 1e-7  # relative, as of capacity


def limit_locations(cells: Cells, v: Variables) -> Limit:
    """(15) Each chain of a service is at ``min_locations`` locations; what is missing is paid for."""
    counted = [s for s, service in enumerate(cells.services) if service.min_locations > 1]
    chains = [(s, chain) for chain in range(len(CHAINS)) for s in counted]
    count, parted = len(cells.cell_pool), cells.parted
    inside = [(k, c, 1.0) for k, (s, chain, site) in enumerate(parted) for c in _site_cells(cells, s, chain, site)]
    summed = [(chains.index((s, chain)), k, 1.0) for k, (s, chain, _) in enumerate(parted)]
    lacking = [(i, chain * len(cells.services) + s, 1.0) for i, (s, chain) in enumerate(chains)]
    replicas = sp.vstack([matrix_of(*triplets(inside), (len(parted), count)), sp.csr_array((len(chains), count))])
    used = sp.vstack([-sp.eye_array(len(parted)), matrix_of(*triplets(summed), (len(chains), len(parted)))])
    missing = matrix_of(*triplets(lacking), (len(chains), 2 * len(cells.services)))
    missing = sp.vstack([sp.csr_array((len(parted), missing.shape[1])), missing])
    least = [0.0] * len(parted) + [float(cells.services[s].min_locations) for s, _ in chains]
    rows = sp.csr_array(replicas) @ v.replicas + sp.csr_array(used) @ v.parted + sp.csr_array(missing) @ v.unparted
    sites = [f"{cells.services[s].name} {CHAINS[chain][0]} in {site}" for s, chain, site in parted]
    subjects = (*sites, *(f"{cells.services[s].name} {CHAINS[chain][0]}" for s, chain in chains))
    return Limit(name="locations", equation=15, constraint=rows >= np.array(least), subjects=subjects)


def limit_hung(cells: Cells, v: Variables) -> Limit:
    """(16) What the replicas of a cell carry, at the capacity of the step that their pool's size lies in."""
    spread: list[int] = np.flatnonzero(hung_most(cells) > 0.0).tolist()
    pairs = [(c, int(t)) for c in spread for t in np.flatnonzero(cells.step_pool == cells.cell_pool[c])]
    rates = [_rate(cells, c, t) for c, t in pairs]
    room = np.array([float(cells.grouping.groups[cells.cell_group[c]].slots(_gpus(cells, c))) for c, _ in pairs])
    stepped = [len(cells.pools[cells.cell_pool[c]].steps) > 1 for c, _ in pairs]
    off = np.array([rate * n if many else 0.0 for rate, n, many in zip(rates, room, stepped, strict=True)])
    index = np.arange(len(pairs))
    shape = (len(pairs), len(cells.cell_pool))
    carried = matrix_of(index, [c for c, _ in pairs], rates, shape)
    hung = matrix_of(index, [c for c, _ in pairs], 1.0, shape)
    chosen = matrix_of(index, [t for _, t in pairs], off, (len(pairs), len(cells.steps)))
    subjects = tuple(f"{cells.cell_label(c)} {cells.steps[t].lower}-{cells.steps[t].upper}" for c, t in pairs)
    constraint = carried @ v.replicas - hung @ v.hung + chosen @ v.chosen <= off
    return Limit(name="hung", equation=16, constraint=constraint, subjects=subjects)


def limit_share(cells: Cells, v: Variables) -> Limit:
    """(17) Without any one location the rest carries all but ``max_share_per_location_ratio`` of what is served."""
    spread = [s for s in range(len(cells.services)) if _share(cells, s) < 1.0 and cells.demand_per_s[s] > 0.0]
    keys = [(s, chain, k) for s in spread for chain in range(len(CHAINS)) for k in range(len(cells.grouping.sites))]
    load = np.maximum(cells.demand_per_s, 1e-12)[cells.pool_service[cells.step_pool]]
    rates = np.array([step.capacity_requests_per_s for step in cells.steps], dtype=float) * (1.0 + SLACK) / load
    able = [sum_pools(cells, roles) @ sum_steps(cells, rates) for _, roles in CHAINS]
    lost = [
        (i, c, 1.0 / cells.grouping.sites[k]) for i, (s, ch, k) in enumerate(keys) for c in _site_cells(cells, s, ch, k)
    ]
    left = np.array([1.0 - _share(cells, s) for s, _, _ in keys])
    services = np.array([s for s, _, _ in keys], dtype=np.int64)
    whole = [sp.csr_array(able[chain])[[s]] for s, chain, _ in keys] or [sp.csr_array((0, len(cells.steps)))]
    hangs = matrix_of(*triplets(lost), (len(keys), len(cells.cell_pool)))
    unserved = matrix_of(np.arange(len(keys)), services, left, (len(keys), len(cells.services)))
    rows = sp.csr_array(sp.vstack(whole)) @ v.sized - hangs @ v.hung + unserved @ v.unserved
    subjects = tuple(f"{cells.services[s].name} {CHAINS[chain][0]} without one of {k}" for s, chain, k in keys)
    return Limit(name="share", equation=17, constraint=rows >= left, subjects=subjects)


def limit_spot(cells: Cells, v: Variables) -> Limit:
    """(19) Without all that may be taken away the rest carries all but ``max_spot_ratio`` of what is served."""
    bounded = [s for s, service in enumerate(cells.services) if 0.0 < service.max_spot_ratio < 1.0]
    keys = [(s, chain) for s in bounded for chain in range(len(CHAINS)) if cells.demand_per_s[s] > 0.0]
    load = np.maximum(cells.demand_per_s, 1e-12)[cells.pool_service[cells.step_pool]]
    rates = np.array([step.capacity_requests_per_s for step in cells.steps], dtype=float) * (1.0 + SLACK) / load
    able = [sp.csr_array(sum_pools(cells, roles) @ sum_steps(cells, rates)) for _, roles in CHAINS]
    lost = [(i, c, 1.0) for i, (s, chain) in enumerate(keys) for c in _spot_cells(cells, s, chain)]
    left = np.array([1.0 - cells.services[s].max_spot_ratio for s, _ in keys])
    whole = [able[chain][[s]] for s, chain in keys] or [sp.csr_array((0, len(cells.steps)))]
    hangs = matrix_of(*triplets(lost), (len(keys), len(cells.cell_pool)))
    unserved = matrix_of(np.arange(len(keys)), [s for s, _ in keys], left, (len(keys), len(cells.services)))
    rows = sp.csr_array(sp.vstack(whole)) @ v.sized - hangs @ v.hung + unserved @ v.unserved
    subjects = tuple(f"{cells.services[s].name} {CHAINS[chain][0]}" for s, chain in keys)
    return Limit(name="spot", equation=19, constraint=rows >= left, subjects=subjects)


def _spot_cells(cells: Cells, service: int, chain: int) -> list[int]:
    """Cells of a service's chain in bays that may be taken away."""
    return [
        c
        for c, (p, g) in enumerate(zip(cells.cell_pool, cells.cell_group, strict=True))
        if cells.pool_service[p] == service
        and cells.pools[p].pool.role in CHAINS[chain][1]
        and cells.grouping.groups[g].bays[0].terms.reclaims_per_hour > 0.0
    ]


def _site_cells(cells: Cells, service: int, chain: int, site: int) -> list[int]:
    return cells.site_cells(service, CHAINS[chain][1], site)


def _share(cells: Cells, service: int) -> float:
    return cells.services[service].max_share_per_location_ratio


def _gpus(cells: Cells, cell: int) -> int:
    return int(cells.pools[cells.cell_pool[cell]].gpus)


def _rate(cells: Cells, cell: int, step: int) -> float:
    """What one replica carries in a step, in shares of the service's demand."""
    service = cells.pool_service[cells.cell_pool[cell]]
    return cells.steps[step].capacity_requests_per_s / float(cells.demand_per_s[service])
