"""The pools a service got, and the best ways it could have been served instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import Pairing
from solvers.plan import Plan, PoolPlan, ServicePlan
from solvers.planner.bays.nodes import Room
from solvers.planner.bays.quotas import quota_rows
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.caps import planned_counts, planned_levels
from solvers.planner.pools.cells import Cells
from solvers.planner.pools.options import PoolOption
from solvers.power import pool_extra_watts
from solvers.sizing import Capacity

SECONDS_PER_HOUR = 3600.0
THOUSAND = 1000.0

Way = tuple[tuple[PoolOption, int], ...]
"""Pools that carry a whole service, with their replicas: one mixed, or a prefill and a decode one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPool:
    """A pool of the service. ``usd_per_thousand_requests`` is over the requests that it carries."""

    pool: str
    locations: tuple[tuple[str, int], ...]
    replicas: int
    demand_ratio: float
    used_ratio: float
    usd_per_hour: float
    usd_per_thousand_requests: float
    nodes_per_replica: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way to carry the whole service: its pools, what it would cost more, and why it was left.

    Attributes
    ----------
    extra_usd_per_hour : float
        Against the chosen pools, at list prices.
    extra_at_scarcity_usd_per_hour : float
        The same when scarce GPUs and watts are paid at the worth that others would pay for them.
    fleet_low_usd_per_hour, fleet_high_usd_per_hour, fleet_expected_usd_per_hour : float or None
        Bounds on what the whole fleet would pay more, starts and shortages included, if the service had to be served
        that way and all others were decided anew, and what is expected; None where that was not worked out.
    blocked_by : tuple of str
        Limits that the way alone would break beside the rest of the plan.
    """

    pools: tuple[tuple[str, int], ...]
    usd_per_hour: float
    usd_per_thousand_requests: float
    extra_usd_per_hour: float
    extra_at_scarcity_usd_per_hour: float
    blocked_by: tuple[str, ...]
    fleet_low_usd_per_hour: float | None = None
    fleet_high_usd_per_hour: float | None = None
    fleet_expected_usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A way with its price against the chosen pools, as ``Alternative`` counts it."""

    way: Way
    usd_per_hour: float
    extra_usd_per_hour: float
    extra_at_scarcity_usd_per_hour: float


def chosen_pool(plan: Plan, pool: PoolPlan, row: ServicePlan) -> ChosenPool:
    """Say what a pool of the plan carries and costs."""
    rate = pool.demand_ratio * row.served_requests_per_s
    return ChosenPool(
        pool=str(pool.pool),
        locations=tuple((p.location, p.replicas) for p in plan.placements if p.pool == pool.pool),
        replicas=pool.replicas,
        demand_ratio=pool.demand_ratio,
        used_ratio=rate / pool.capacity_requests_per_s if pool.capacity_requests_per_s > 0.0 else 0.0,
        usd_per_hour=pool.cost_usd_per_hour,
        usd_per_thousand_requests=_per_thousand(pool.cost_usd_per_hour, rate),
        nodes_per_replica=pool.nodes_per_replica,
    )


def _per_thousand(usd_per_hour: float, requests_per_s: float) -> float:
    return THOUSAND * usd_per_hour / (SECONDS_PER_HOUR * requests_per_s) if requests_per_s > 0.0 else 0.0


def scarcity(plan: Plan, cells: Cells) -> dict[PoolKey, float]:
    """What one replica of each pool takes of scarce GPUs and watts, USD per hour, at the cheapest of its places."""
    prices = {(b.limit, b.subject): b.price_usd_per_hour for b in plan.bindings}
    least: dict[PoolKey, float] = {}
    quotas = quota_rows(cells.problem)
    for p, g in zip(cells.cell_pool, cells.cell_group, strict=True):
        option, group = cells.pools[p], cells.grouping.groups[g]
        sizes = {o.gpus for o in cells.pools if o.pool.gpu_class == option.pool.gpu_class and o.gpus <= option.gpus}
        groups = sum(prices.get(("gpus", f"{group.label} x{q}"), 0.0) * (option.gpus // q) for q in sizes)
        feeds = sum(
            prices.get(("power", domain.label), 0.0) * _times(cells, option, int(g), d)
            for d, domain in enumerate(cells.grouping.domain_groups)
        )
        allowed = sum(
            prices.get((row.limit, row.subject), 0.0) * row.use(option.pool, cells.problem.gpu_classes)
            for row in quotas
        )
        for pool, watts in {option.pool: option.reserved_watts, **_uncapped(cells, option)}.items():
            price = groups + feeds * watts / THOUSAND + allowed
            least[pool] = min(least.get(pool, float("inf")), price)
    return least


def _uncapped(cells: Cells, option: PoolOption) -> dict[PoolKey, float]:
    """The pool at its highest cap, which may be no option itself, and what a replica of it reserves."""
    pool = option.pool.uncapped
    return {pool: pool_extra_watts(cells.problem.gpu_classes, pool)}


def _times(cells: Cells, option: PoolOption, group: int, domain: int) -> int:
    if option.is_anywhere:
        return cells.grouping.class_charges.get((option.pool.gpu_class, domain), 0)
    return cells.grouping.charges.get((group, domain), 0)


def ranked_ways(
    desk: Desk, plan: Plan, row: ServicePlan, pools: Sequence[PoolPlan], scarce: Mapping[PoolKey, float]
) -> list[Ranked]:
    """Ways that use a pool the plan does not have, each at its best power caps, cheapest at scarcity first."""
    levels = planned_levels(desk.problem, plan)
    paid = sum(pool.cost_usd_per_hour for pool in pools)
    worth = sum(pool.replicas * scarce.get(levels[pool.pool], 0.0) for pool in pools)
    mine = {pool.pool for pool in pools}
    found = []
    for options in _ways(desk.options.of(row.service), desk.sizer.pairing):
        if {option.pool.uncapped for option in options} <= mine:
            continue
        way = tuple((option, _count_for_all(option, row.demand_requests_per_s)) for option in options)
        cost = sum(pool_usd_per_hour(desk, option, count) for option, count in way)
        extra = cost + sum(count * scarce.get(option.pool, 0.0) for option, count in way) - paid - worth
        found.append(
            Ranked(way=way, usd_per_hour=cost, extra_usd_per_hour=cost - paid, extra_at_scarcity_usd_per_hour=extra)
        )
    found.sort(key=lambda r: (r.extra_at_scarcity_usd_per_hour, [(str(o.pool), n) for o, n in r.way]))
    best: dict[tuple[PoolKey, ...], Ranked] = {}
    for ranked in found:
        best.setdefault(tuple(option.pool.uncapped for option, _ in ranked.way), ranked)
    return list(best.values())


def apart_by_class(ways: Sequence[Ranked]) -> list[Ranked]:
    """The same ways, each first of its roles and GPU classes before others that only start otherwise there."""
    seen: set[tuple[tuple[str, str], ...]] = set()
    first: list[Ranked] = []
    rest: list[Ranked] = []
    for ranked in ways:
        kind = tuple((str(option.pool.role), option.pool.gpu_class) for option, _ in ranked.way)
        (rest if kind in seen else first).append(ranked)
        seen.add(kind)
    return [*first, *rest]


def _ways(options: Sequence[PoolOption], pairing: Pairing) -> Iterator[tuple[PoolOption, ...]]:
    """Pools that can carry the service alone: one mixed, or a prefill and a decode one that may pair."""
    by_role = {role: [o for o in options if o.pool.role is role] for role in Role}
    yield from ((option,) for option in by_role[Role.MIXED])
    pairs = product(by_role[Role.PREFILL], by_role[Role.DECODE])
    yield from (pair for pair in pairs if pairing.group(pair[0].pool) == pairing.group(pair[1].pool))


def _count_for_all(option: PoolOption, demand_per_s: float) -> int:
    """Replicas with which the pool would carry the whole demand, more than the fleet holds if it takes more."""
    rate = option.steps[-1].capacity_requests_per_s
    needed = math.ceil(demand_per_s / rate - 1e-9) if rate > 0.0 else option.most
    return max(option.most, needed)


def pool_usd_per_hour(desk: Desk, option: PoolOption, count: int) -> float:
    """Price of a pool at a size, with the energy that it draws at its planned load."""
    sized = desk.sizer.at(option.pool, option.profile, count) if desk.problem.demands[option.pool.service].mix else None
    watts = sized.gpu_watts if isinstance(sized, Capacity) else option.profile.idle_watts_per_gpu
    energy = desk.problem.policy.energy_usd_per_kilowatt_hour * option.replica_watts(watts) / THOUSAND
    return count * (option.price_usd_per_hour + energy)


def alternative(plan: Plan, desk: Desk, row: ServicePlan, ranked: Ranked) -> Alternative:
    """Write a way down, with what stands in its way beside all that other services hold."""
    return Alternative(
        pools=tuple((str(option.pool), count) for option, count in ranked.way),
        usd_per_hour=ranked.usd_per_hour,
        usd_per_thousand_requests=_per_thousand(ranked.usd_per_hour, row.demand_requests_per_s),
        extra_usd_per_hour=ranked.extra_usd_per_hour,
        extra_at_scarcity_usd_per_hour=ranked.extra_at_scarcity_usd_per_hour,
        blocked_by=_blocks(plan, desk, row.service, ranked.way),
    )


def _blocks(plan: Plan, desk: Desk, service: str, way: Way) -> tuple[str, ...]:
    """Try the way beside what all other services hold, and name what has no room, and pins that it breaks."""
    pins = (f"{pin}: no pool of it may stand there" for pin in _broken_pins(desk, service, way))
    return (*pins, *blocks_of(plan, desk, way, lambda pool: pool.service != service))


def blocks_of(plan: Plan, desk: Desk, way: Way, is_kept: Callable[[PoolKey], bool]) -> Iterator[str]:
    """Try the way beside the pools of the plan that are kept, and name what has no room."""
    room = Room.of(desk.problem)
    counts = {(pool, at): n for (pool, at), n in planned_counts(desk.problem, plan).items() if is_kept(pool.uncapped)}
    room.take_all(counts)
    for option, count in way:
        bays = room.bays_of(option.pool)
        added = sum(room.spread(option.pool, count, bays, ANYWHERE if option.is_anywhere else None).values())
        if added < count:
            yield f"{option.pool}: room for {added} of {count} replicas beside the others"


def _broken_pins(desk: Desk, service: str, way: Way) -> Iterator[str]:
    """Pins of the service that no pool of the way could keep."""
    there = {(node.location, node.gpu_class) for node in desk.problem.nodes if node.gpus_usable}
    pins = next(s.pins for s in desk.problem.services if s.name == service)
    for pin in pins:
        kept = (pin.counts(o.pool.role, o.pool.gpu_class, pin.location) for o, _ in way)
        stands = ((pin.location, o.pool.gpu_class) in there for o, _ in way)
        if not any(a and b for a, b in zip(kept, stands, strict=True)):
            yield f"pins[{pin}]"


def with_fleet_cost(way: Alternative, low: float, expected: float, high: float) -> Alternative:
    """Add what the whole fleet would pay."""
    return replace(way, fleet_low_usd_per_hour=low, fleet_high_usd_per_hour=high, fleet_expected_usd_per_hour=expected)
