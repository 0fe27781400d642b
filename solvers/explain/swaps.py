"""Why a pool is of its GPU class: the cheapest other class for what it carries, all other pools as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from solvers.explain.reasons import carries_per_s
from solvers.explain.ways import blocks_of, pool_usd_per_hour
from solvers.fleet import PoolKey
from solvers.plan import Plan, PoolPlan, ServicePlan
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.caps import planned_counts, planned_levels
from solvers.planner.pools.floors import Places, places_of
from solvers.planner.pools.options import PoolOption
from solvers.planner.pools.tally import ROUNDING
from solvers.workload import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSwap:
    """A pool's requests by replicas of another GPU class instead.

    Attributes
    ----------
    extra_usd_per_hour : float
        Against the pool, at list prices.
    extra_at_scarcity_usd_per_hour : float
        The same when scarce GPUs and watts are paid at the worth that others would pay for them.
    blocked_by : tuple of str
        What has no room for it beside all other replicas.
    """

    pool: str
    instead: str
    replicas: int
    extra_usd_per_hour: float
    extra_at_scarcity_usd_per_hour: float
    blocked_by: tuple[str, ...]


def pool_swaps(
    desk: Desk, plan: Plan, row: ServicePlan, pools: Sequence[PoolPlan], scarce: Mapping[PoolKey, float]
) -> tuple[PoolSwap, ...]:
    """For each pool the best swap, cheapest at scarcity; none for services whose pools depend on where they stand."""
    service = next(service for service in desk.problem.services if service.name == row.service)
    is_placed = service.is_spread or service.pairs_locally or service.pins or service.name in desk.sizer.links.order
    if is_placed or row.served_requests_per_s <= 0.0:
        return ()
    found = (_best(desk, plan, row, service, pool, scarce) for pool in pools)
    return tuple(swap for swap in found if swap is not None)


def _best(
    desk: Desk, plan: Plan, row: ServicePlan, service: ServedModel, pool: PoolPlan, scarce: Mapping[PoolKey, float]
) -> PoolSwap | None:
    """Try the cheapest pool of every other class."""
    level = planned_levels(desk.problem, plan)[pool.pool]
    places = places_of(service, planned_counts(desk.problem, plan))
    where = min(location for other, location in places if other == level)
    rest = {key: count for key, count in places.items() if key[0] != level}
    paid, worth = pool.cost_usd_per_hour, pool.replicas * scarce.get(level, 0.0)
    swaps = []
    for option in _cheapest(desk, row.service, pool, scarce):
        count = _least(desk, service, rest, (option.pool, where), option.most, row.served_requests_per_s)
        if count:
            extra = pool_usd_per_hour(desk, option, count) - paid
            at_scarcity = extra + count * scarce.get(option.pool, 0.0) - worth
            swaps.append((at_scarcity, str(option.pool), count, extra, option))
    if not swaps:
        return None
    at_scarcity, name, count, extra, option = min(swaps, key=lambda swap: swap[:2])
    return PoolSwap(
        pool=str(pool.pool),
        instead=name,
        replicas=count,
        extra_usd_per_hour=extra,
        extra_at_scarcity_usd_per_hour=at_scarcity,
        blocked_by=tuple(blocks_of(plan, desk, ((option, count),), lambda key: key != pool.pool)),
    )


def _cheapest(desk: Desk, service: str, pool: PoolPlan, scarce: Mapping[PoolKey, float]) -> Iterator[PoolOption]:
    """Of the role's pools on each other class, the one with the least price of a request, scarce things paid for."""
    best: dict[str, tuple[float, str, PoolOption]] = {}
    for option in desk.options.of(service):
        rate = option.steps[-1].capacity_requests_per_s
        if option.pool.role is pool.pool.role and option.pool.gpu_class != pool.pool.gpu_class and rate > 0.0:
            price = (option.price_usd_per_hour + scarce.get(option.pool, 0.0)) / rate
            found = (price, str(option.pool), option)
            best[option.pool.gpu_class] = min(best.get(option.pool.gpu_class, found), found, key=lambda f: f[:2])
    yield from (option for _, _, option in best.values())


def _least(
    desk: Desk, service: ServedModel, rest: Places, place: tuple[PoolKey, str], most: int, served_per_s: float
) -> int:
    """Fewest replicas more at the place that make up for the pool; 0 when as many as are of use do not."""
    there = rest.get(place, 0)

    def is_enough(count: int) -> bool:
        carried = carries_per_s(desk, service, {**rest, place: there + count})
        return carried >= served_per_s * (1.0 - ROUNDING)

    low, high = 0, most
    if not is_enough(high):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
