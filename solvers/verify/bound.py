"""The check of a plan's bound: found again from the problem at the prices that the plan shows, by its own arithmetic.

At any prices of what services share, no plan costs less than what each service would pay by itself, its cheapest way,
less what all of the room would fetch. The prices are the planner's word; rooms, places, rates and cheapest ways are
worked out here, from the problem, without its modeller or anything else of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solvers.certificate import Certificate, HeldTier, ServiceWeights
from solvers.engine import EngineProfile
from solvers.engine.curves import capped
from solvers.errors import OutOfRange
from solvers.fleet import ANYWHERE, GpuClass, PoolKey
from solvers.plan import Plan
from solvers.power import extra_watts
from solvers.problem import Problem
from solvers.verify.claims import CapacityOf
from solvers.verify.evidence import evidence_faults
from solvers.verify.market import Market
from solvers.verify.reach import Reach
from solvers.verify.ways import Asked, Least, Stock, Tables, first_apart, least, refine, tell_apart
from solvers.workload import PlacementMode, ServedModel

Floats = NDArray[np.float64]

LOOKS = ((4000, False), (4000, True), (16000, True))
"""Parts of a service's demand that loads are rounded up to, and whether floors are counted: closer and closer looks."""

MOST_ROUNDS = 40
LARGE = 50_000  # parts of all services together, from which on a look takes long
MOST_FLOOR = 6  # replicas below a floor that are counted in the close look; more count for nothing
FLOOR_UNITS = 4096  # replicas of a pool up to which floors are counted: they are small print of large fleets
RELATIVE = 1e-9
GRID_TOLERANCE = 1e-3
"""Of the bound: loads are rounded up to parts here and elsewhere, by at most a part for each pool of a way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCheck:
    """What came of it.

    Attributes
    ----------
    claimed_usd_per_hour : float
        The bound that the plan states.
    priced_usd_per_hour : float
        What of it the plan says to follow from prices.
    recomputed_usd_per_hour : float
        What follows from them here.
    is_searched : bool
        The rest comes from a solver's branch and bound, which leaves no evidence.
    is_held : bool
        The bound is of the plans that leave no tier but the last more short than this one.
    fault : str
        What makes the evidence worthless by itself; empty for nothing.
    """

    claimed_usd_per_hour: float
    priced_usd_per_hour: float
    recomputed_usd_per_hour: float
    is_searched: bool
    is_held: bool = False
    fault: str = ""

    @property
    def supported_ratio(self) -> float:
        """How much of the claimed bound was found again, at most all of it; 0 where the evidence is worthless."""
        if self.fault or not self.recomputed_usd_per_hour > 0.0:
            return 0.0 if self.fault or self.claimed_usd_per_hour > 0.0 else 1.0
        return min(1.0, self.recomputed_usd_per_hour / max(self.claimed_usd_per_hour, 1e-9))

    @property
    def is_supported(self) -> bool:
        """True when what follows from prices was found again, up to the rounding of loads."""
        slack = GRID_TOLERANCE * abs(self.priced_usd_per_hour) + 1e-6
        return not self.fault and self.recomputed_usd_per_hour >= self.priced_usd_per_hour - slack

    @property
    def is_all_found(self) -> bool:
        """True when the whole of the claimed bound was found again, whoever found it."""
        return self.recomputed_usd_per_hour >= self.claimed_usd_per_hour * (1.0 - GRID_TOLERANCE) - 1e-6

    def __str__(self) -> str:
        claimed, recomputed = f"{self.claimed_usd_per_hour:.6f}", f"{self.recomputed_usd_per_hour:.6f}"
        if self.fault:
            return f"claimed bound not supported: {self.fault}"
        if not self.is_supported:
            claimed = f"{self.priced_usd_per_hour:.6f}"
            return f"claimed bound not supported: claimed {claimed}, recomputed {recomputed}"
        if self.is_searched and not self.is_all_found:
            share = f"{math.floor(1000.0 * self.supported_ratio) / 10.0:.1f} %"  # never rounded up to all of it
            return f"bound by search: claimed {claimed}, prices alone support {recomputed} ({share})"
        of = ", of plans that leave no tier but the last more short" if self.is_held else ""
        return f"bound supported: claimed {claimed}, recomputed {recomputed}{of}"


def verify_bound(plan: Plan, problem: Problem, *, capacity_of: CapacityOf) -> BoundCheck | None:
    """Find the plan's bound again; None when the plan shows no prices.

    Parameters
    ----------
    capacity_of : callable
        The sizing, by which every rate is worked out anew.

    Notes
    -----
    What services share is whole groups of GPUs, watts, quotas and ceilings. Pins and spread count as far as places that
    there are not make them cost (``reach.py``); KV pairs, links, resources beside GPUs and shares of spot nodes above
    zero are left out. Leaving a rule out keeps the bound true: one that rests on it may not be found again.
    """
    shown = plan.certificate
    if shown is None:
        return None
    claimed, fault = plan.report.bound_usd_per_hour, next(evidence_faults(plan, problem, shown), "")
    is_searched = shown.is_searched and claimed > shown.usd_per_hour * (1.0 + RELATIVE)
    priced = min(claimed, shown.usd_per_hour) if shown.is_searched else claimed
    return BoundCheck(
        claimed_usd_per_hour=claimed,
        priced_usd_per_hour=priced,
        recomputed_usd_per_hour=-math.inf
        if fault
        else recomputed(shown, problem, capacity_of, enough=claimed, will_do=priced),
        is_searched=is_searched,
        is_held=bool(shown.held),
        fault=fault,
    )


def recomputed(
    shown: Certificate,
    problem: Problem,
    capacity_of: CapacityOf,
    *,
    enough: float = math.inf,
    will_do: float = math.inf,
) -> float:
    """Bound every plan's objective at the prices, USD per hour; looks no closer once there is enough.

    In large fleets it looks no closer either once it has what will do.

    Prices below 0 count as 0, and weights are taken as shown: with them the objective is told.
    """
    market = Market.of(problem, shown)
    weights = _weights(problem, shown)
    if any(service.name not in weights for service in problem.services):
        return -math.inf
    cases = [
        _Case(problem=problem, service=service, market=market, capacity_of=capacity_of)
        for service in sorted(problem.services, key=lambda s: s.name)
    ]
    fetched = market.fetched_usd_per_hour() + math.fsum(
        price * max(0.0, tier.lacking_usd_per_hour) for tier, price in _held(shown)
    )
    for parts, with_floors in LOOKS:
        for case in cases:
            w = weights[case.service.name]
            case.look(parts, with_floors, w.unserved_usd_per_hour, w.floor_usd_per_hour, w.fair_ratio)
        is_large = parts * len(cases) > LARGE
        for _ in range(MOST_ROUNDS):
            if (total := _sum(cases, fetched)) >= (min(enough, will_do) if is_large and will_do > 0.0 else enough):
                return total
            changed = [case.refine() for case in cases]
            if not any(changed):
                break
        if is_large and _sum(cases, fetched) >= will_do:
            break
    return _sum(cases, fetched)


def _held(shown: Certificate) -> list[tuple[HeldTier, float]]:
    """Held tiers with what their prices count as; a price of no amount is none."""
    return [(tier, tier.price_ratio if 0.0 < tier.price_ratio < math.inf else 0.0) for tier in shown.held]


def _weights(problem: Problem, shown: Certificate) -> dict[str, ServiceWeights]:
    """What failing weighs by service: those of a held tier pay its price too."""
    times: dict[int, float] = {}
    for tier, price in _held(shown):
        times[tier.tier_rank] = times.get(tier.tier_rank, 1.0) + price
    ranks = {service.name: service.tier_rank for service in problem.services}
    weights: dict[str, ServiceWeights] = {}
    for row in shown.weights:
        w = times.get(ranks.get(row.service, -1), 1.0)
        weights[row.service] = replace(
            row, unserved_usd_per_hour=w * row.unserved_usd_per_hour, floor_usd_per_hour=w * row.floor_usd_per_hour
        )
    return weights


def _sum(cases: Sequence[_Case], fetched: float) -> float:
    values = [case.usd_per_hour for case in cases]
    return math.fsum(values) - fetched - RELATIVE * (math.fsum(map(abs, values)) + abs(fetched))


@dataclass(slots=True, kw_only=True, eq=False)
class _Case:
    """One service at the prices. ``usd_per_hour`` is the least that it pays, as far as looked into."""

    problem: Problem
    service: ServedModel
    market: Market
    capacity_of: CapacityOf
    stocks: list[Stock] | None = None
    apart: set[int] = field(default_factory=set)
    pools: list[PoolKey] = field(default_factory=list)
    reach: Reach = field(default_factory=Reach)
    lost_usd_per_hour: float = 0.0
    stop_all_usd_per_hour: float = 0.0
    asked: Asked | None = None
    parts: int = 0
    found: Least | None = None
    tables: Tables = field(default_factory=dict)

    @property
    def usd_per_hour(self) -> float:
        fixed = self.stop_all_usd_per_hour + self.lost_usd_per_hour
        return fixed + (self.found.usd_per_hour if self.found else -math.inf)

    def look(self, parts: int, with_floors: bool, unserved: float, floor: float, fair_ratio: float) -> None:
        """Find the least value anew on so many parts."""
        if self.stocks is None:
            self.stocks = self._stocks()
            self.apart = first_apart(self.stocks)
            able = {pool for pool, stock in zip(self.pools, self.stocks, strict=True) if stock.rate_per_s > 0.0}
            self.reach = Reach.of(self.service, self.market, sorted(able))
        self.lost_usd_per_hour = floor * self.reach.missing
        count = self._floor() if with_floors else 0
        if count:
            self.apart = set(range(len(self.stocks)))
            for stock in self.stocks:
                tell_apart(stock)
        self.asked = Asked(
            demand_per_s=self.reach.carried_ratio * self.problem.demands[self.service.name].requests_per_s,
            unserved_usd_per_hour=unserved,
            fair_ratio=fair_ratio,
            floor=count,
            floor_usd_per_hour=floor,
            served_ratio=self.reach.served_ratio,
        )
        self.parts = parts
        self.found = least(self.stocks, self.apart, self.asked, parts, self.tables)

    def refine(self) -> bool:
        """Make exact what the value rests on; False when all of it was."""
        if self.found is None or self.asked is None or self.stocks is None:
            return False
        if not refine(self.stocks, self.apart, self.found):
            return False
        self.found = least(self.stocks, self.apart, self.asked, self.parts, self.tables)
        return True

    def _floor(self) -> int:
        units = max((len(stock.units_usd_per_hour) for stock in self.stocks or ()), default=0)
        spread = min(self.service.min_locations, self.reach.locations) if self.service.min_locations > 1 else 0
        wanted = max(self.service.min_replicas, spread)
        return min(wanted, MOST_FLOOR) if units <= FLOOR_UNITS else 0

    def _stocks(self) -> list[Stock]:
        """Every pool that the service may have somewhere, at every cap; and what stopping all that runs costs."""
        found: list[Stock] = []
        for key, profile in sorted(self.problem.profiles.items()):
            if key.model != self.service.model or not self.service.allows(key.gpu_class, key.config):
                continue
            kind = self.problem.gpu_classes.get(key.gpu_class)
            if kind is None or key.gpu_class not in self.market.kinds:
                continue
            for role in sorted(self.service.roles):
                pool = PoolKey(service=self.service.name, role=role, gpu_class=key.gpu_class, config=key.config)
                levels = [s for cap in self._caps(profile, kind) if (s := self._stock(pool, profile, kind, cap))]
                found += levels
                self.pools += [pool] * len(levels)
                if levels:
                    stop = self.problem.policy.stop_cost_hours * levels[0].price_usd_per_hour
                    self.stop_all_usd_per_hour += stop * sum(self._running(pool).values())
        return found

    def _running(self, pool: PoolKey) -> dict[str, int]:
        """What runs of the pool where it could stay, by location."""
        is_anywhere = self.service.placement is PlacementMode.CLASS
        runs = self.market.running.get(pool, {}).items()
        known = self.market.kind_of
        return {at: n for at, n in runs if (at == ANYWHERE if is_anywhere else (pool.gpu_class, at) in known)}

    def _caps(self, profile: EngineProfile, kind: GpuClass) -> tuple[float, ...]:
        if not self.problem.policy.power_caps or kind.name not in self.market.limited:
            return (0.0,)
        return (0.0, *(w for w in profile.cap_watts_per_gpu if kind.min_cap_watts <= w < kind.max_cap_watts))

    def _stock(self, pool: PoolKey, profile: EngineProfile, kind: GpuClass, cap_watts: float) -> Stock | None:
        try:
            curves = capped(profile, cap_watts or None)
        except OutOfRange:
            return None
        units = self._units(pool, kind, extra_watts(kind, pool.config, cap_watts or None))
        mix, gpus = self.problem.demands[self.service.name].mix, pool.config.gpus
        if not len(units):
            return None
        price, energy = gpus * kind.price_usd_per_hour, self.problem.policy.energy_usd_per_kilowatt_hour

        def run(gpu_watts: float) -> float:
            return price + energy * gpus * (gpu_watts + kind.host_share_watts) / 1000.0

        def sized(size: int) -> tuple[float, float]:
            able = self.capacity_of(curves, pool.role, mix, self.service.slos, pool_replicas=size) if mix else None
            rate = float(getattr(able, "requests_per_s", 0.0))
            return rate, run(float(getattr(able, "gpu_watts", profile.idle_watts_per_gpu)))

        stock = Stock(
            pair=(pool.role, pool.gpu_class, pool.config.label),
            role=pool.role,
            units_usd_per_hour=units,
            price_usd_per_hour=price,
            idle_usd_per_hour=run(profile.idle_watts_per_gpu),
            sized=sized,
        )
        stock.ask(stock.most)
        return stock

    def _units(self, pool: PoolKey, kind: GpuClass, watts: float) -> Floats:
        """What replica after replica costs beside running, cheapest first, as many as fit; (U,)."""
        policy, market = self.problem.policy, self.market
        price = pool.config.gpus * kind.price_usd_per_hour
        start, stop = policy.start_cost_hours * price, policy.stop_cost_hours * price
        running = self._running(pool)
        is_anywhere = self.service.placement is PlacementMode.CLASS
        asked = market.asked_usd_per_hour(pool, watts, is_anywhere=is_anywhere) + market.quota_usd_per_hour(pool)
        slots = np.where(self._allowed(pool), market.slots_of_kinds(pool.gpu_class, pool.config.gpus), 0)
        kept = np.zeros(len(slots), dtype=np.int64)
        for location, count in () if is_anywhere else running.items():
            k = market.kind_of[pool.gpu_class, location]
            kept[k] += min(count, market.slots(pool.gpu_class, location, pool.config.gpus)) if slots[k] else 0
        costs = np.concatenate([asked - stop, asked + (0.0 if is_anywhere else start)])
        counts = np.concatenate([kept, slots - kept])
        order = np.argsort(costs, kind="stable")
        counts = counts[order]
        left = np.clip(self.service.max_replicas - np.cumsum(counts) + counts, 0, None)
        units: Floats = np.repeat(costs[order], np.minimum(counts, left))
        if is_anywhere:
            units = units + np.where(np.arange(len(units)) < running.get(ANYWHERE, 0), -stop, start)
        return units

    def _allowed(self, pool: PoolKey) -> NDArray[np.bool_]:
        """Kinds of places that the service may use; (K,)."""
        kinds = self.market.kinds[pool.gpu_class]
        if self.service.is_one_pod and pool.config.gpus > self.market.node_gpus[pool.gpu_class]:
            return np.zeros(len(kinds), dtype=bool)
        refuses = self.service.max_spot_ratio <= 0.0
        return np.array(
            [
                self.service.allows_location(kind.locations[0]) and not (refuses and kind.terms[0] > 0.0)
                for kind in kinds
            ],
            dtype=bool,
        )
