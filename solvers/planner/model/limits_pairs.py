"""The limits that keep prefill and decode in pairs; numbered as in ``solvers/README.md``."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from solvers.engine import Role
from solvers.planner.bays.links import usd_per_hour
from solvers.planner.model.columns import Limit, Variables, flowing, matrix_of, triplets
from solvers.planner.pools.cells import Cells, Floats
from solvers.problem import KvLink

SLACK = 1e-7  # relative, as of capacity
SIGNS = {Role.PREFILL: 1.0, Role.DECODE: -1.0}
"""Keys and values that a role hands over, and takes."""
WAYS = ("out", "in")


def limit_pairs(cells: Cells, v: Variables) -> Limit:
    """(20) In each pairing domain prefill and decode carry the same; what goes through cells is their pool's share."""
    shares: list[tuple[int, int, float]] = []
    through: list[tuple[int, int, float]] = []
    rows: dict[tuple[int, str, int], int] = {}
    for p, option in enumerate(cells.pools):
        if _is_grouped(cells, p):
            row = rows.setdefault((int(cells.pool_service[p]), cells.pairing.group(option.pool), -1), len(rows))
            shares.append((row, p, SIGNS[option.pool.role]))
    for c in (c for c in flowing(cells) if cells.pools[cells.cell_pool[c]].pool.service in cells.pairing.local):
        option = cells.pools[cells.cell_pool[c]]
        site = cells.grouping.group_site[cells.cell_group[c]]
        key = int(cells.pool_service[cells.cell_pool[c]]), cells.pairing.group(option.pool), site
        through.append((rows.setdefault(key, len(rows)), c, SIGNS[option.pool.role]))
    subjects = [_label(cells, *key) for key in rows]
    summed = {int(cells.cell_pool[c]): 0 for c in flowing(cells)}
    for row, p in enumerate(summed, start=len(rows)):
        summed[p] = row
        shares.append((row, p, -1.0))
        subjects.append(str(cells.pools[p].pool))
    through += [(summed[int(cells.cell_pool[c])], c, 1.0) for c in flowing(cells)]
    shape = len(rows) + len(summed)
    kept = matrix_of(*triplets(shares), (shape, len(cells.pools))) @ v.share
    kept = kept + matrix_of(*triplets(through), (shape, len(cells.cell_pool))) @ v.flow
    return Limit(name="pairs", equation=20, constraint=kept == 0.0, subjects=tuple(subjects))


def limit_flow(cells: Cells, v: Variables) -> Limit:
    """(21) No more goes through a cell than its replicas carry, at the capacity of the step of their pool's size."""
    pairs = [(c, int(t)) for c in flowing(cells) for t in np.flatnonzero(cells.step_pool == cells.cell_pool[c])]
    rates, spare = np.zeros(len(pairs)), np.zeros(len(pairs))
    for row, (c, t) in enumerate(pairs):
        option, demand = cells.pools[cells.cell_pool[c]], cells.demand_per_s[cells.pool_service[cells.cell_pool[c]]]
        best = max(step.capacity_requests_per_s for step in option.steps)
        rates[row] = cells.steps[t].capacity_requests_per_s * (1.0 + SLACK) / float(demand)
        room = cells.grouping.groups[cells.cell_group[c]].slots(option.gpus)
        if len(option.steps) > 1:
            spare[row] = best * (1.0 + SLACK) / float(demand) * room - rates[row] * room
    index, shape = np.arange(len(pairs)), (len(pairs), len(cells.cell_pool))
    carried = matrix_of(index, [c for c, _ in pairs], rates, shape)
    through = matrix_of(index, [c for c, _ in pairs], 1.0, shape)
    off = matrix_of(index, [t for _, t in pairs], spare, (len(pairs), len(cells.steps)))
    constraint = through @ v.flow - carried @ v.replicas + off @ v.chosen <= spare
    subjects = tuple(f"{cells.cell_label(c)} {cells.steps[t].lower}-{cells.steps[t].upper}" for c, t in pairs)
    return Limit(name="flow", equation=21, constraint=constraint, subjects=subjects)


def limit_crossing(cells: Cells, v: Variables) -> Limit:
    """(22) What one side of a class of links prefills beyond what it decodes leaves it, what it lacks enters it."""
    index = {key: row for row, key in enumerate(cells.crossings)}
    count = len(index)
    net: list[tuple[int, int, float]] = []
    for c in flowing(cells):
        option, link = cells.pools[cells.cell_pool[c]], _link(cells, c)
        if link >= 0 and option.pool.service in cells.links.order:
            key = int(cells.pool_service[cells.cell_pool[c]]), cells.pairing.group(option.pool), link
            net.append((index[key], c, SIGNS[option.pool.role]))
    through = matrix_of(*triplets(net), (count, len(cells.cell_pool)))
    own, none = sp.eye_array(count, format="csr"), sp.csr_array((count, count))
    rows = sp.vstack([through, -through]) @ v.flow
    rows = rows - sp.vstack([own, none]) @ v.outgoing - sp.vstack([none, own]) @ v.incoming
    labels = [f"{cells.services[s].name} {group} {_name(cells, k)}" for s, group, k in index]
    subjects = tuple(f"{label} {way}" for way in WAYS for label in labels)
    return Limit(name="crossing", equation=22, constraint=rows <= 0.0, subjects=subjects)


def limit_link(cells: Cells, v: Variables) -> Limit:
    """(23) Keys and values of all services keep to the bytes per second of every link, each way; in shares of it."""
    index = list(cells.crossings)
    count = len(cells.grouping.links) if index else 0
    sent = [
        (k, x, float(cells.demand_per_s[s]) * crossing_bytes(cells, s, group) / _of(cells, k).bytes_per_s)
        for x, (s, group, k) in enumerate(index)
    ]
    used = matrix_of(*triplets(sent), (count, len(index)))
    none = sp.csr_array(used.shape)
    rows = sp.vstack([used, none]) @ v.outgoing + sp.vstack([none, used]) @ v.incoming
    most = [len(cells.grouping.links[k]) * (1.0 + SLACK) for k in range(count)]
    subjects = tuple(f"{_name(cells, k)} {way}" for way in WAYS for k in range(count))
    return Limit(name="link", equation=23, constraint=rows <= np.array(most * len(WAYS)), subjects=subjects)


def crossing_usd_per_hour(cells: Cells) -> Floats:
    """What it costs to send all of a service's requests over a class of links one way, (X,)."""
    found: Floats = np.array(
        [
            usd_per_hour(_of(cells, k), float(cells.demand_per_s[s]) * crossing_bytes(cells, s, group))
            for s, group, k in cells.crossings
        ],
        dtype=float,
    )
    return found


def crossing_bytes(cells: Cells, service: int, group: str) -> float:
    """What one request hands over."""
    return cells.links.bytes_of.get((cells.services[service].name, group), 0.0)


def _link(cells: Cells, cell: int) -> int:
    return cells.grouping.group_link[cells.cell_group[cell]] if cells.grouping.group_link else -1


def _of(cells: Cells, link: int) -> KvLink:
    return cells.links.links[cells.grouping.links[link][0]]


def _name(cells: Cells, link: int) -> str:
    first, *more = cells.grouping.links[link]
    return f"{first}+{len(more)}" if more else first


def _is_grouped(cells: Cells, pool: int) -> bool:
    """True for prefill and decode of services that pair in several groups, wherever they are."""
    key = cells.pools[pool].pool
    return key.role is not Role.MIXED and key.service in cells.pairing.parted - cells.pairing.local


def _label(cells: Cells, service: int, group: str, site: int) -> str:
    where = f" in {site}" if site >= 0 else ""
    return f"{cells.services[service].name} {group or 'all'}{where}"
