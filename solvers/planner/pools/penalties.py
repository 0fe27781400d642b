"""What unserved demand and missing floors weigh in the objective, by tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.planner.pools.options import Options, PoolOption
from solvers.problem import Problem

EXCESS_WEIGHT = 1.0
"""What a service lacks beyond its fair share weighs so much more: enough to level, too little to outweigh a tier."""

FLOOR_WEIGHT = 10.0
"""A replica missing below ``min_replicas`` weighs so many times its tier's penalty on the service's dearest replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """Prices of failing, USD per hour: of a service's whole demand unserved, and of one replica below its floor.

    ``fair_ratio`` is the part of its demand that a service may be short of; what it lacks beyond costs
    ``1 + EXCESS_WEIGHT`` times as much. Services that it does not name may be short of everything.
    """

    unserved_usd_per_hour: Mapping[str, float]
    floor_usd_per_hour: Mapping[str, float]
    fair_ratio: Mapping[str, float] = field(default_factory=dict)

    def of_unserved(self, service: str, ratio: float) -> float:
        """Price of so much of the service's demand unserved, USD per hour."""
        beyond = max(0.0, ratio - self.fair_ratio.get(service, 1.0))
        return self.unserved_usd_per_hour[service] * (ratio + EXCESS_WEIGHT * beyond)


def worth_serving_per_s(
    near_per_s: float,
    able_per_s: float,
    usd_per_request: float,
    *,
    demand_per_s: float,
    unserved_usd_per_hour: float,
    fair_ratio: float,
) -> float:
    """What is served where requests beyond some pay for it: no request that costs more than leaving it.

    Parameters
    ----------
    near_per_s, able_per_s : float
        What pays nothing, and what can be served in all.
    usd_per_request : float
        What one request per second beyond pays, USD per hour.
    unserved_usd_per_hour : float
        Of the whole demand; what lacks beyond ``fair_ratio`` of it weighs more, see ``EXCESS_WEIGHT``.
    """
    each = unserved_usd_per_hour / demand_per_s if demand_per_s > 0.0 else 0.0
    if able_per_s <= near_per_s or usd_per_request <= each:
        return able_per_s
    least = near_per_s
    if usd_per_request <= each * (1.0 + EXCESS_WEIGHT):
        least = max(near_per_s, (1.0 - fair_ratio) * demand_per_s)
    return min(able_per_s, least)


def find_penalties(problem: Problem, options: Options, fair_ratio: Mapping[str, float] | None = None) -> Penalties:
    """Weigh every service by its tier and the dearest way to serve it (GPU price of the pools that could)."""
    energy = problem.policy.energy_usd_per_kilowatt_hour
    costs = {service.name: dearest_usd_per_request(options.of(service.name), energy) for service in problem.services}
    costs |= {name: cost for name, cost in problem.serving_usd_per_request.items() if name in costs}
    # a service that nothing can serve still shows in the objective, at the dearest rate of the others
    fallback = max((cost for cost in costs.values() if cost > 0.0), default=1.0)
    dearest = max((replica_usd_per_hour(option, energy) for option in options.pools), default=1.0) or 1.0
    return Penalties(
        unserved_usd_per_hour={
            service.name: problem.policy.tier_weight(service.tier_rank)
            * (costs[service.name] or fallback)
            * problem.demands[service.name].requests_per_s
            for service in problem.services
        },
        floor_usd_per_hour={
            service.name: FLOOR_WEIGHT
            * problem.policy.tier_weight(service.tier_rank)
            * (max((replica_usd_per_hour(o, energy) for o in options.of(service.name)), default=0.0) or dearest)
            for service in problem.services
        },
        fair_ratio=fair_ratio or {},
    )


def replica_usd_per_hour(option: PoolOption, energy_usd_per_kilowatt_hour: float) -> float:
    """What a replica weighs: its GPUs' price, or its energy at full draw where that is more, as where GPUs are free."""
    watts = option.reserved_watts + option.gpus * option.profile.idle_watts_per_gpu
    return max(option.price_usd_per_hour, energy_usd_per_kilowatt_hour * watts / 1000.0)


def dearest_usd_per_request(pools: tuple[PoolOption, ...], energy_usd_per_kilowatt_hour: float) -> float:
    """Hourly cost of carrying one request per second by the dearest pair of pools, or the dearest mixed pool.

    Every pool counts at its fastest cap: a plan that may cap weighs shortage like one that may not.
    """
    fastest: dict[PoolKey, float] = {}
    for option in pools:
        cost = _cost(option, energy_usd_per_kilowatt_hour)
        if cost > 0.0:
            fastest[option.pool.uncapped] = min(cost, fastest.get(option.pool.uncapped, cost))
    worst = {role: max((cost for pool, cost in fastest.items() if pool.role is role), default=0.0) for role in Role}
    pair = worst[Role.PREFILL] + worst[Role.DECODE] if worst[Role.PREFILL] and worst[Role.DECODE] else 0.0
    return max(pair, worst[Role.MIXED])


def _cost(option: PoolOption, energy_usd_per_kilowatt_hour: float) -> float:
    """Price of one request per second for an hour, at the pool's largest useful size."""
    rate = option.steps[-1].capacity_requests_per_s
    return replica_usd_per_hour(option, energy_usd_per_kilowatt_hour) / rate if rate > 0.0 else 0.0
