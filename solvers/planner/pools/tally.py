"""What a set of counts is worth, at the exact capacity of every pool size: served demand, cost, churn, penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solvers.derived import derived
from solvers.engine import ProfileKey, Role
from solvers.fleet import PoolKey
from solvers.pairing import Carried, Pairs
from solvers.planner.bays.links import LinkLoad, Route
from solvers.planner.bays.nodes import Counts
from solvers.planner.bays.reclaim import OWNED, Reclaims, loss_usd_per_hour, rent_usd_per_hour
from solvers.planner.pools.caps import by_pool
from solvers.planner.pools.floors import Places, missing_replicas
from solvers.planner.pools.penalties import Penalties, worth_serving_per_s
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.spread import place_rates, survivable_per_s
from solvers.power import pool_extra_watts
from solvers.problem import Problem
from solvers.sizing import Capacity
from solvers.workload import ServedModel

SAME_SHORTAGE = 0.02  # relative; shortages this close are one: a solve stops at a gap of about as much
CLEAR_SHARE = 2e-3  # of a tier's demand; smaller gains are within what a solve leaves open
ROUNDING = 1e-7  # relative; a demand met to this is met, as ``limits.CAPACITY_SLACK`` allows


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWorth:
    """One pool at its size. ``share_ratio`` is its part of what the service serves, in its chain."""

    pool: PoolKey
    replicas: int
    capacity_requests_per_s: float
    share_ratio: float
    reserved_watts: float
    planned_watts: float
    cost_usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Counts with all that follows from them; ``served_per_s`` and ``missing`` (replicas below floors) by service.

    ``lacking_usd_per_hour`` is the penalty of both by service, ``lacking_usd_by_tier`` its sum, ``demand_usd_by_tier``
    that of a tier's whole demand unserved.
    """

    counts: Counts
    pools: tuple[PoolWorth, ...]
    demand_per_s: Mapping[str, float]
    served_per_s: Mapping[str, float]
    missing: Mapping[str, int]
    lacking_usd_per_hour: Mapping[str, float]
    lacking_usd_by_tier: Mapping[int, float]
    demand_usd_by_tier: Mapping[int, float]
    cost_usd_per_hour: float
    churn_usd_per_hour: float
    penalty_usd_per_hour: float
    links: tuple[LinkLoad, ...] = ()

    @property
    def objective_usd_per_hour(self) -> float:
        return self.paid_usd_per_hour + self.penalty_usd_per_hour

    @property
    def short(self) -> tuple[str, ...]:
        """Services that lack capacity or replicas."""
        return tuple(s for s in self.demand_per_s if self.unserved_per_s(s) > 0.0 or self.missing[s])

    def unserved_per_s(self, service: str) -> float:
        return self.demand_per_s[service] - self.served_per_s[service]

    @property
    def paid_usd_per_hour(self) -> float:
        """Money alone: what runs, what starts and what stops, what goes over links."""
        return self.cost_usd_per_hour + self.churn_usd_per_hour + self.links_usd_per_hour

    @property
    def links_usd_per_hour(self) -> float:
        return sum(load.usd_per_hour for load in self.links)

    def serves_no_less_than(self, other: Worth) -> bool:
        """True when no tier lacks more here, or a higher tier clearly lacks less; read from the top."""
        for rank, mine in sorted(self.lacking_usd_by_tier.items()):
            theirs = other.lacking_usd_by_tier[rank]
            if mine > theirs * (1.0 + SAME_SHORTAGE) + 1e-6:
                return False
            if mine < theirs - CLEAR_SHARE * self.demand_usd_by_tier[rank] - SAME_SHORTAGE * theirs:
                return True
        return True

    def is_better_than(self, other: Worth) -> bool:
        """True when the first tier that clearly differs lacks less here, or none differs and the objective is lower."""
        difference = self._clear_difference_usd(other)
        return difference < 0.0 if difference else self.objective_usd_per_hour < other.objective_usd_per_hour

    def is_clearly_less_short_than(self, other: Worth) -> bool:
        """True when the first tier that clearly differs lacks less here."""
        return self._clear_difference_usd(other) < 0.0

    def _clear_difference_usd(self, other: Worth) -> float:
        """By how much the first tier that clearly differs lacks more here; 0 when none does."""
        for rank, mine in sorted(self.lacking_usd_by_tier.items()):
            theirs = other.lacking_usd_by_tier[rank]
            if abs(mine - theirs) > self.clear_usd(rank):
                return mine - theirs
        return 0.0

    def clear_usd(self, rank: int) -> float:
        """More than solves leave open of what a tier lacks, USD per hour."""
        return CLEAR_SHARE * self.demand_usd_by_tier[rank] + 1e-6


def best_of(worths: Sequence[Worth]) -> Worth:
    """Choose the best, the first among equals."""
    best = worths[0]
    for worth in worths[1:]:
        best = worth if worth.is_better_than(best) else best
    return best


def weigh(problem: Problem, sizer: Sizer, penalties: Penalties, counts: Counts) -> Worth:
    """Work out what the counts serve and cost; places are taken as they come, unchecked."""
    kept = {key: count for key, count in sorted(counts.items()) if count > 0}
    places: dict[str, dict[tuple[PoolKey, str], int]] = {service.name: {} for service in problem.services}
    for (pool, location), count in kept.items():
        places[pool.service][pool, location] = count
    stands = {
        service.name: _Stand.of(problem, sizer, service, places[service.name])
        for service in sorted(problem.services, key=lambda s: s.name)
    }
    served = {name: stand.able_per_s(problem, sizer) for name, stand in stands.items()}
    routes = {name: sizer.links.route(name, stands[name].carried) for name in sizer.links.order}
    wanted = {
        name: _worth_serving_per_s(problem, sizer, penalties, name, routes[name], served[name]) for name in routes
    }
    served = sizer.links.allowed(routes, served | wanted)
    links = sizer.links.loads(route.traffic(served[name]) for name, route in routes.items())
    pools = [
        worth
        for name, stand in stands.items()
        for worth in stand.pool_worths(problem, sizer, routes.get(name), served[name])
    ]
    demands = {s: problem.demands[s].requests_per_s for s in served}
    missing = {service.name: missing_replicas(service, places[service.name]) for service in problem.services}
    whole = {s: penalties.unserved_usd_per_hour[s] for s in served}
    unserved = {
        s: penalties.of_unserved(s, 1.0 - served[s] / rate) if rate > 0.0 else 0.0 for s, rate in demands.items()
    }
    lacking = {s: unserved[s] + penalties.floor_usd_per_hour[s] * missing[s] for s in served}
    return Worth(
        counts=kept,
        pools=tuple(sorted(pools, key=lambda w: w.pool)),
        demand_per_s=demands,
        served_per_s=served,
        missing=missing,
        lacking_usd_per_hour=lacking,
        lacking_usd_by_tier=_by_tier(problem, lacking),
        demand_usd_by_tier=_by_tier(problem, whole),
        cost_usd_per_hour=sum(worth.cost_usd_per_hour for worth in pools),
        churn_usd_per_hour=_churn_usd_per_hour(problem, kept) + _losses_usd_per_hour(problem, sizer.reclaims, kept),
        penalty_usd_per_hour=sum(lacking.values()),
        links=links,
    )


def _worth_serving_per_s(
    problem: Problem, sizer: Sizer, penalties: Penalties, service: str, route: Route, able_per_s: float
) -> float:
    """What of a service's requests crosses links for less than leaving it would cost, with all that crosses none."""
    return worth_serving_per_s(
        route.near_per_s,
        able_per_s,
        route.usd_per_request(able_per_s, sizer.links.links),
        demand_per_s=problem.demands[service].requests_per_s,
        unserved_usd_per_hour=penalties.unserved_usd_per_hour[service],
        fair_ratio=penalties.fair_ratio.get(service, 1.0),
    )


def _by_tier(problem: Problem, by_service: Mapping[str, float]) -> dict[int, float]:
    sums = dict.fromkeys(sorted({service.tier_rank for service in problem.services}), 0.0)
    for service in sorted(problem.services, key=lambda s: s.name):
        sums[service.tier_rank] += by_service[service.name]
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """What stands of one service: replicas by place, what each carries at the size of its pool."""

    service: ServedModel
    places: Places
    totals: Mapping[PoolKey, int]
    sized: Mapping[PoolKey, Capacity]
    carried: Carried

    @classmethod
    def of(cls, problem: Problem, sizer: Sizer, service: ServedModel, places: Places) -> _Stand:
        totals: dict[PoolKey, int] = {}
        for (pool, _), count in sorted(places.items()):
            totals[pool] = totals.get(pool, 0) + count
        totals = {pool: count for pool, count in sorted(totals.items()) if count}
        sized = {pool: _capacity(problem, sizer, pool, count) for pool, count in totals.items()}
        carried = {(pool, at): n * sized[pool].requests_per_s for (pool, at), n in places.items() if n}
        return cls(service=service, places=places, totals=totals, sized=sized, carried=carried)

    def pairs(self, sizer: Sizer) -> Pairs:
        """What the replicas carry by pairing domain: mixed pools, and pairs of prefill and decode."""
        return sizer.pairing.pairs(self.service.name, self.carried)

    def able_per_s(self, problem: Problem, sizer: Sizer) -> float:
        """What of the demand the replicas serve, links left aside."""
        demand = problem.demands[self.service.name].requests_per_s
        survivable = _survivable_per_s(sizer.reclaims, self.service, self.places, self.sized)
        able = min(self.pairs(sizer).able_per_s, survivable)
        return demand if able >= demand * (1.0 - ROUNDING) else able

    def pool_worths(self, problem: Problem, sizer: Sizer, route: Route | None, served: float) -> list[PoolWorth]:
        """Each pool at its size, with its part of what is served."""
        shares = self._shares(sizer) if route is None else sizer.links.shares(route, self.carried, served)
        rents = _rents(problem, sizer.reclaims, self.places)
        return [
            _pool_worth(problem, pool, self.totals[pool], capacity, shares[pool], rents.get(pool, 0.0))
            for pool, capacity in self.sized.items()
        ]

    def _shares(self, sizer: Sizer) -> dict[PoolKey, float]:
        """Part of what is served that goes to each pool: in proportion, mixed against the tighter side of a domain."""
        shares, pairs = dict.fromkeys(self.sized, 0.0), self.pairs(sizer)
        for (pool, at), rate in self.carried.items():
            shares[pool] += rate * pairs.share_ratio(pool.role, sizer.pairing.domain(pool, at))
        return shares


def pairs_of(problem: Problem, sizer: Sizer, service: ServedModel, places: Places) -> Pairs:
    """What a service's replicas carry by pairing domain, at the sizes of their pools."""
    return _Stand.of(problem, sizer, service, places).pairs(sizer)


def _rents(problem: Problem, reclaims: Reclaims, places: Places) -> dict[PoolKey, float]:
    """What each pool pays beside list prices, USD per hour, by where its replicas are."""
    rents: dict[PoolKey, float] = {}
    for (pool, location), count in places.items():
        if (terms := reclaims.at(pool, location)) != OWNED:
            rents[pool] = rents.get(pool, 0.0) + count * rent_usd_per_hour(problem, pool, terms)
    return rents


def _losses_usd_per_hour(problem: Problem, reclaims: Reclaims, counts: Counts) -> float:
    """What nodes that are taken away are expected to cost in starts."""
    return sum(
        count * loss_usd_per_hour(problem, pool, reclaims.at(pool, location))
        for (pool, location), count in sorted(counts.items())
    )


def _survivable_per_s(
    reclaims: Reclaims, service: ServedModel, places: Places, sized: Mapping[PoolKey, Capacity]
) -> float:
    if not service.hangs:
        return float("inf")
    rates = {pool: capacity.requests_per_s for pool, capacity in sized.items()}
    return survivable_per_s(service, place_rates(places, rates, reclaims))


def rates_by_place(problem: Problem, sizer: Sizer, places: Places) -> dict[tuple[Role, str, bool], float]:
    """Requests per second that a service's replicas carry by role and place, at the sizes of their pools."""
    totals: dict[PoolKey, int] = {}
    for (pool, _), count in places.items():
        totals[pool] = totals.get(pool, 0) + count
    sized = {pool: _capacity(problem, sizer, pool, count) for pool, count in totals.items() if count}
    rates = {pool: capacity.requests_per_s for pool, capacity in sized.items()}
    return place_rates(places, rates, sizer.reclaims)


def carried_by_role(problem: Problem, sizer: Sizer, totals: Mapping[PoolKey, int]) -> dict[Role, float]:
    """Requests per second that the pools of each role carry at their sizes."""
    rates = dict.fromkeys(Role, 0.0)
    for pool, count in sorted((pool, count) for pool, count in totals.items() if count):
        rates[pool.role] += count * _capacity(problem, sizer, pool, count).requests_per_s
    return rates


def _capacity(problem: Problem, sizer: Sizer, pool: PoolKey, count: int) -> Capacity:
    """Capacity of one replica; nothing at the idle draw when the pool cannot serve the mix (or none is asked)."""
    profile = sizer.profile(pool)
    idle_watts = profile.idle_watts_per_gpu if profile else problem.gpu_classes[pool.gpu_class].idle_watts
    sized = sizer.at(pool, profile, count) if profile and problem.demands[pool.service].mix else None
    if isinstance(sized, Capacity):
        return sized
    return Capacity(requests_per_s=0.0, utilisation_ratio=0.0, gpu_watts=idle_watts)


def profile_key(problem: Problem, pool: PoolKey) -> ProfileKey:
    """Name the profile that a pool of the problem is sized by."""
    model = next(s.model for s in problem.services if s.name == pool.service)
    return ProfileKey(model=model, gpu_class=pool.gpu_class, config=pool.config)


def _pool_worth(
    problem: Problem, pool: PoolKey, replicas: int, capacity: Capacity, share: float, rent: float
) -> PoolWorth:
    gpu_class, gpus = problem.gpu_classes[pool.gpu_class], replicas * pool.config.gpus
    planned = gpus * (capacity.gpu_watts + gpu_class.host_share_watts)
    energy = problem.policy.energy_usd_per_kilowatt_hour * planned / 1000.0
    return PoolWorth(
        pool=pool,
        replicas=replicas,
        capacity_requests_per_s=replicas * capacity.requests_per_s,
        share_ratio=share,
        reserved_watts=replicas
        * (pool_extra_watts(problem.gpu_classes, pool) + pool.config.gpus * gpu_class.idle_watts),
        planned_watts=planned,
        cost_usd_per_hour=gpus * gpu_class.price_usd_per_hour + energy + rent,
    )


def _churn_usd_per_hour(problem: Problem, counts: Counts) -> float:
    """Starts and stops against what runs; what runs for nobody we plan for, or on unknown GPUs, has no price."""
    wanted = by_pool(counts)
    changes = {key: count - problem.running.get(key, 0) for key, count in wanted.items()}
    changes |= {key: -now for key, now in derived(problem, priced_running).items() if key not in wanted}
    start, stop = problem.policy.start_cost_hours, problem.policy.stop_cost_hours
    return sum(
        (start * change if change > 0 else -stop * change)
        * pool.config.gpus
        * problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        for (pool, _), change in sorted(changes.items())
    )


def priced_running(problem: Problem) -> dict[tuple[PoolKey, str], int]:
    """What runs for planned services on known GPU classes."""
    planned = {service.name for service in problem.services}
    return {
        key: now
        for key, now in sorted(problem.running.items())
        if key[0].service in planned and key[0].gpu_class in problem.gpu_classes
    }
