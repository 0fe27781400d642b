"""What caps are chosen over, as arrays: placed pools, what they carry at each power cap, and the domains they charge.

A cell is a pool at a location, with its replicas fixed. Its cap runs from the class's lowest to its
highest; what one replica carries at a cap is read along chords between the levels that sizing was asked for, and is
nothing below the first level that serves the mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from solvers.engine import ProfileKey, Role
from solvers.engine.curves import capped
from solvers.errors import InvalidInput, OutOfRange
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import ANYWHERE_INSIDE, Domain, Pairing
from solvers.power import base_watts, ceiling_watts, charged_domains, nodes_by_domain
from solvers.problem import Problem
from solvers.sizing import CapacityOf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEAR_WATTS = 1e-9  # caps this close to a level are at it
NEAR = 1e-9  # relative, of rates


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """What one replica of a pool carries at each cap, both ascending; requests/s at every SLO kept, 0 where none is."""

    cap_watts: Floats
    requests_per_s: Floats

    def cap_for(self, rate: float) -> float:
        """The lowest cap at which one replica carries the rate; the highest when none does."""
        k = int(np.searchsorted(self.requests_per_s, rate * (1.0 - NEAR)))
        if k >= len(self.cap_watts):
            return float(self.cap_watts[-1])
        if k == 0 or self.requests_per_s[k - 1] <= 0.0:
            return float(self.cap_watts[k])
        return float(np.interp(rate, self.requests_per_s[k - 1 : k + 1], self.cap_watts[k - 1 : k + 1]))

    def segments(self) -> tuple[Floats, Floats]:
        """Watts and requests/s that each segment of the least concave curve above the levels adds, from the lowest cap.

        Segments that add nothing are left out: no cap above them is worth its watts.
        """
        hull = [0]
        for i in range(1, len(self.cap_watts)):
            while len(hull) > 1 and self._slope(hull[-2], hull[-1]) <= self._slope(hull[-1], i):
                hull.pop()
            hull.append(i)
        at = np.array(hull)
        watts, rates = np.diff(self.cap_watts[at]), np.diff(self.requests_per_s[at])
        return watts[rates > 0.0], rates[rates > 0.0]

    def _slope(self, one: int, other: int) -> float:
        rise = self.requests_per_s[other] - self.requests_per_s[one]
        return float(rise / (self.cap_watts[other] - self.cap_watts[one]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CapCells:
    """Axes: S services, P pools, C cells, D domains, all sorted.

    Attributes
    ----------
    levels : (P,) Levels
    pool_service, pool_role : (P,) int
        ``pool_role`` indexes ``tuple(Role)``.
    cell_pool : (C,) int
    cell_level_watts, cell_level_rates : (C, L) float
        The levels of the cell's pool side by side; short ones repeat their highest.
    cell_replicas : (C,) float
    cell_gpus : (C,) float
        GPUs of all replicas of the cell.
    rise_watts : (C,) float
        What one GPU draws above idle beside its cap: host share less idle.
    charged : (D, C) sparse
        1 where the cell may draw from the domain.
    idle_watts, ceiling_watts : (D,) float
        Before any replica, and with every GPU at its highest cap.
    pair_keys : tuple of (service, Domain), axis K
        Where prefill and decode of a service may be done for one another, sorted.
    cell_pair : (C,) int
        The domain of each cell.
    penalty_usd_per_request : (S,) float
        USD per hour of one request per second unserved.
    """

    services: tuple[str, ...]
    pools: tuple[PoolKey, ...]
    places: tuple[tuple[PoolKey, str], ...]
    domains: tuple[str, ...]
    levels: tuple[Levels, ...]
    pool_service: Ints
    pool_role: Ints
    cell_pool: Ints
    cell_level_watts: Floats
    cell_level_rates: Floats
    cell_replicas: Floats
    cell_gpus: Floats
    rise_watts: Floats
    charged: sp.csr_array
    idle_watts: Floats
    ceiling_watts: Floats
    pair_keys: tuple[tuple[int, Domain], ...]
    cell_pair: Ints
    penalty_usd_per_request: Floats

    @property
    def pair_service(self) -> Ints:
        """Service of each pairing domain, (K,)."""
        return np.array([s for s, _ in self.pair_keys], dtype=np.int64)

    def replica_rates(self, cap_watts: Floats) -> Floats:
        """Requests per second of one replica of every cell at its cap, (C,), along chords; plain arithmetic.

        Nothing is counted on between a level that serves nothing and the next.
        """
        caps, rates = self.cell_level_watts, self.cell_level_rates
        cell = np.arange(len(self.cell_pool))
        above = np.minimum((caps <= (cap_watts + NEAR_WATTS)[:, None]).sum(axis=1), caps.shape[1] - 1)
        below = np.maximum(above - 1, 0)
        low, high = caps[cell, below], caps[cell, above]
        share = np.clip(np.divide(cap_watts - low, high - low, out=np.ones(len(cell)), where=high > low), 0.0, 1.0)
        from_rate, to_rate = rates[cell, below], rates[cell, above]
        share = np.where((from_rate <= 0.0) & (share < 1.0), 0.0, share)
        found: Floats = from_rate + share * (to_rate - from_rate)
        return found

    def rates(self, cap_watts: Floats) -> Floats:
        """Requests per second of every pool at its cells' caps, (P,)."""
        return self.sum_by_pool(self.replica_rates(cap_watts) * self.cell_replicas)

    def sum_by_pool(self, values: Floats) -> Floats:
        """Add up values of cells, (C,), by pool, (P,)."""
        return np.bincount(self.cell_pool, weights=values, minlength=len(self.pools)).astype(float)

    def sum_by_pair(self, values: Floats) -> Floats:
        """Add up values of cells, (C,), by pairing domain, (K,)."""
        return np.bincount(self.cell_pair, weights=values, minlength=len(self.pair_keys)).astype(float)

    def sum_by_service(self, values: Floats) -> Floats:
        """Add up values of pools, (P,), by service, (S,)."""
        return np.bincount(self.pool_service, weights=values, minlength=len(self.services)).astype(float)

    def watts(self, cap_watts: Floats) -> Floats:
        """Reserved watts of every domain at the caps, (D,); plain arithmetic."""
        added = self.charged @ (self.cell_gpus * np.maximum(0.0, cap_watts + self.rise_watts))
        reserved: Floats = np.minimum(self.idle_watts + added, self.ceiling_watts)
        return reserved


def pool_cells(cells: CapCells) -> CapCells:
    """The same with one cell for each pool, over all its locations: one cap for a pool.

    Prefill and decode of a group then pair wherever they are.
    """
    gpus = cells.sum_by_pool(cells.cell_gpus)
    merge = sp.csr_array((cells.cell_gpus, (np.arange(len(cells.cell_pool)), cells.cell_pool)))
    first = np.searchsorted(cells.cell_pool, np.arange(len(cells.pools)))  # cells are sorted by pool
    keys = [cells.pair_keys[k] for k in cells.cell_pair[first]]
    pair_keys, cell_pair = _numbered([(s, replace(domain, site=ANYWHERE_INSIDE)) for s, domain in keys])
    return replace(
        cells,
        pair_keys=pair_keys,
        cell_pair=cell_pair,
        places=tuple((pool, ANYWHERE) for pool in cells.pools),
        cell_pool=np.arange(len(cells.pools)),
        cell_level_watts=cells.cell_level_watts[first],
        cell_level_rates=cells.cell_level_rates[first],
        cell_replicas=cells.sum_by_pool(cells.cell_replicas),
        cell_gpus=gpus,
        rise_watts=cells.rise_watts[first],
        charged=sp.csr_array(cells.charged @ merge @ sp.diags_array(1.0 / gpus)),
    )


def build_cap_cells(
    problem: Problem, counts: Mapping[tuple[PoolKey, str], int], capacity_of: CapacityOf, *, is_known: bool = False
) -> CapCells:
    """Size every pool of the counts at every cap that it may have; ``is_known``: that its profile knows the speed at.

    Raises
    ------
    InvalidInput
        When the plan has a pool that the problem has no profile, class or service for.
    """
    services = tuple(sorted(service.name for service in problem.services))
    rows = sorted(counts.items())
    pools = tuple(sorted({pool for (pool, _), _ in rows}))
    totals = _totals(rows)
    index, of_service = {pool: p for p, pool in enumerate(pools)}, {name: s for s, name in enumerate(services)}
    members = nodes_by_domain(problem.nodes)
    domains = tuple(name for name in members if name in problem.domains)
    levels = tuple(_levels(problem, pool, totals[pool], capacity_of, is_known=is_known) for pool in pools)
    kinds = [problem.gpu_classes[pool.gpu_class] for (pool, _), _ in rows]
    penalties = _penalties(problem, dict(zip(pools, levels, strict=True)))
    cell_pool = np.array([index[pool] for (pool, _), _ in rows], dtype=np.int64)
    level_watts, level_rates = _level_tables(levels)
    pairing = Pairing.of(problem)
    pair_keys, cell_pair = _numbered([(of_service[pool.service], pairing.domain(pool, at)) for (pool, at), _ in rows])
    return CapCells(
        pair_keys=pair_keys,
        cell_pair=cell_pair,
        services=services,
        pools=pools,
        places=tuple(place for place, _ in rows),
        domains=domains,
        levels=levels,
        pool_service=np.array([of_service[pool.service] for pool in pools], dtype=np.int64),
        pool_role=np.array([tuple(Role).index(pool.role) for pool in pools], dtype=np.int64),
        cell_pool=cell_pool,
        cell_level_watts=level_watts[cell_pool],
        cell_level_rates=level_rates[cell_pool],
        cell_replicas=np.array([n for _, n in rows], dtype=float),
        cell_gpus=np.array([n * pool.config.gpus for (pool, _), n in rows], dtype=float),
        rise_watts=np.array([kind.host_share_watts - kind.idle_watts for kind in kinds], dtype=float),
        charged=_charged(problem, [place for place, _ in rows], domains),
        idle_watts=np.array([base_watts(members[d], problem.gpu_classes) for d in domains], dtype=float),
        ceiling_watts=np.array([ceiling_watts(members[d], problem.gpu_classes) for d in domains], dtype=float),
        penalty_usd_per_request=np.array([penalties[name] for name in services], dtype=float),
    )


def _numbered(keys: Sequence[tuple[int, Domain]]) -> tuple[tuple[tuple[int, Domain], ...], Ints]:
    """Distinct keys, sorted, and the number of each key among them."""
    distinct = sorted(set(keys))
    index = {key: k for k, key in enumerate(distinct)}
    return tuple(distinct), np.array([index[key] for key in keys], dtype=np.int64)


def _level_tables(levels: Sequence[Levels]) -> tuple[Floats, Floats]:
    """Caps and rates of all pools, (P, most levels) each."""
    most = max((len(at.cap_watts) for at in levels), default=1)
    tables = np.zeros((2, len(levels), most))
    for p, at in enumerate(levels):
        rest = (0, most - len(at.cap_watts))
        tables[:, p] = [np.pad(row, rest, mode="edge") for row in (at.cap_watts, at.requests_per_s)]
    return tables[0], tables[1]


def _penalties(problem: Problem, levels: Mapping[PoolKey, Levels]) -> dict[str, float]:
    """USD per hour of one request per second unserved: by tier, on the dearest way that the plan serves it."""
    dearest: dict[tuple[str, Role], float] = {}
    for pool, at in levels.items():
        price = pool.config.gpus * problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        if (rate := float(at.requests_per_s[-1])) > 0.0:
            key = pool.service, pool.role
            dearest[key] = max(dearest.get(key, 0.0), price / rate)
    costs = {
        service.name: max(
            dearest.get((service.name, Role.PREFILL), 0.0) + dearest.get((service.name, Role.DECODE), 0.0),
            dearest.get((service.name, Role.MIXED), 0.0),
        )
        for service in problem.services
    }
    fallback = max((cost for cost in costs.values() if cost > 0.0), default=1.0)
    return {s.name: problem.policy.tier_weight(s.tier_rank) * (costs[s.name] or fallback) for s in problem.services}


def _totals(rows: Sequence[tuple[tuple[PoolKey, str], int]]) -> dict[PoolKey, int]:
    totals: dict[PoolKey, int] = {}
    for (pool, _), count in rows:
        totals[pool] = totals.get(pool, 0) + count
    return totals


def _charged(problem: Problem, places: Sequence[tuple[PoolKey, str]], domains: Sequence[str]) -> sp.csr_array:
    index = {name: d for d, name in enumerate(domains)}
    known: dict[tuple[str, str], list[int]] = {}
    by_bay: dict[tuple[str, str], set[str]] = {}
    for node in problem.nodes:
        by_bay.setdefault((node.gpu_class, node.location), set()).update(node.domains)
    entries: list[tuple[int, int]] = []
    for c, (pool, location) in enumerate(places):
        key = (pool.gpu_class, location)
        if key not in known:
            names = by_bay.get(key) or set(charged_domains(problem.nodes, *key))
            known[key] = sorted(index[name] for name in names if name in index)
        entries += [(d, c) for d in known[key]]
    row, column = ([pair[k] for pair in entries] for k in range(2))
    return sp.csr_array((np.ones(len(entries)), (row, column)), shape=(len(domains), len(places)))


def _levels(problem: Problem, pool: PoolKey, replicas: int, capacity_of: CapacityOf, *, is_known: bool) -> Levels:
    """Size the pool at every cap that its profile knows and its class allows, and at the class's ends."""
    service = next((s for s in problem.services if s.name == pool.service), None)
    kind = problem.gpu_classes.get(pool.gpu_class)
    key = ProfileKey(model=service.model if service else "", gpu_class=pool.gpu_class, config=pool.config)
    profile = problem.profiles.get(key)
    if service is None or kind is None or profile is None:
        raise InvalidInput(f"plan pool {pool}", "", "has no service, GPU class or profile here", "plan anew")
    known = [w for w in profile.cap_watts_per_gpu if kind.min_cap_watts < w < kind.max_cap_watts]
    lowest = [kind.min_cap_watts] if profile.cap_watts_per_gpu and kind.min_cap_watts < kind.max_cap_watts else []
    if is_known:
        lowest = [watts for watts in lowest if watts >= profile.cap_watts_per_gpu[0]]
    caps, mix = [*lowest, *known, kind.max_cap_watts], problem.demands[pool.service].mix

    def rate(cap: float) -> float:
        try:
            curves = capped(profile, cap if cap < kind.max_cap_watts else None)
        except OutOfRange:  # a cap whose speed is unknown may be set, and nothing is counted on
            return 0.0
        sized = capacity_of(curves, pool.role, mix, service.slos, pool_replicas=replicas) if mix else None
        return float(getattr(sized, "requests_per_s", 0.0))

    return Levels(cap_watts=np.array(caps), requests_per_s=np.maximum.accumulate([rate(cap) for cap in caps]))
