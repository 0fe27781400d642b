"""One service at the prices of a certificate: its pools, what their replicas cost where, and the least that it pays."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solvers.certificate import ServiceWeights
from solvers.engine import EngineProfile, Role
from solvers.engine.curves import capped
from solvers.errors import OutOfRange
from solvers.fleet import ANYWHERE, GpuClass, PoolKey
from solvers.power import extra_watts
from solvers.problem import Problem
from solvers.verify.claims import CapacityOf, MostOf
from solvers.verify.market import Market
from solvers.verify.reach import Reach
from solvers.verify.stock import Floats, Stock, first_apart, tell_apart
from solvers.verify.ways import Asked, Crossing, Least, Tables, least, refine
from solvers.workload import PlacementMode, ServedModel

MOST_FLOOR = 6  # replicas below a floor that are counted in the close look; more count for nothing
FLOOR_UNITS = 4096  # replicas of a pool up to which floors are counted: they are small print of large fleets
Span = tuple[float, float]
ANY = 0.0, math.inf
PAIR_PARTS = (16_000, 4000)  # of the demand, shared by pairs of a few groups, or of many: adding up takes their square
FEW_GROUPS = 4
MOST_ROUNDS = 40  # in which a value is made exact


@dataclass(slots=True, kw_only=True, eq=False)
class View:
    """Pools of a service in one way of looking at them; each leaves out some rules, none adds any."""

    stocks: list[Stock]
    apart: set[int]
    most_parts: int
    knows_floors: bool
    crossing_usd_per_hour: Crossing
    asked: Asked | None = None
    parts: int = 0
    found: Least | None = None
    tables: Tables = field(default_factory=dict)

    @classmethod
    def whole(cls, stocks: list[Stock]) -> View:
        """All pools, any prefill with any decode."""
        plain = [replace(stock, group=()) if stock.group else stock for stock in stocks]
        return cls(
            stocks=plain, apart=first_apart(plain), most_parts=1 << 30, knows_floors=True, crossing_usd_per_hour={}
        )

    @classmethod
    def paired(cls, stocks: list[Stock], crossing_usd_per_hour: Crossing) -> View:
        """Prefill and decode of a group pair among themselves, floors left out."""
        return cls(
            stocks=stocks,
            apart=first_apart(stocks),
            most_parts=PAIR_PARTS[len({stock.group for stock in stocks}) > FEW_GROUPS],
            knows_floors=False,
            crossing_usd_per_hour=crossing_usd_per_hour,
        )

    @property
    def usd_per_hour(self) -> float:
        return self.found.usd_per_hour if self.found else -math.inf

    def look(self, parts: int, asked: Asked) -> None:
        """Find the least value anew on so many parts."""
        if asked.floor and self.knows_floors:
            self.apart = set(range(len(self.stocks)))
            for stock in self.stocks:
                tell_apart(stock)
        self.asked = asked if self.knows_floors else self._without_floor(asked)
        self.parts = min(parts, self.most_parts)
        self._find()

    def _without_floor(self, asked: Asked) -> Asked:
        """Know of a floor only what its replicas, or the lack of them, cost at least: a mixed one counts twice."""
        cheapest = dict.fromkeys(Role, math.inf)
        for stock in (stock for stock in self.stocks if stock.rate_per_s > 0.0):
            usd = float(stock.units_usd_per_hour[0]) + stock.idle_usd_per_hour
            cheapest[stock.role] = min(cheapest[stock.role], usd)
        if (
            not self.stocks or min(cheapest.values()) < 0.0
        ):  # what is worth keeping gives back more than any floor costs
            return replace(asked, floor=0, missing=())
        pair = sum(min(asked.floor_usd_per_hour, cheapest[role]) for role in (Role.PREFILL, Role.DECODE))
        both = min(int(np.count_nonzero(asked.lacks(chain))) for chain in (0, 1))  # replicas that either chain is asked
        least_usd = both * min(pair, cheapest[Role.MIXED])
        return replace(asked, floor=0, least_usd_per_hour=least_usd, missing=())

    def refine(self) -> bool:
        """Make exact what the value rests on; False when all of it was."""
        if self.found is None or not refine(self.stocks, self.apart, self.found):
            return False
        self._find()
        return True

    def _find(self) -> None:
        if self.asked is not None:
            crossing = self.crossing_usd_per_hour
            self.found = least(self.stocks, self.apart, self.asked, self.parts, self.tables, crossing)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """One pool at one cap: what a replica reserves, and the stock of all its places."""

    key: PoolKey
    watts: float
    stock: Stock


@dataclass(slots=True, kw_only=True, eq=False)
class Case:
    """One service at the prices. ``usd_per_hour`` is the least that it pays, as far as looked into."""

    problem: Problem
    service: ServedModel
    market: Market
    capacity_of: CapacityOf
    most_of: MostOf | None = None
    pools: list[Pool] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    reach: Reach = field(default_factory=Reach)
    lost_usd_per_hour: float = 0.0
    stop_all_usd_per_hour: float = 0.0

    @property
    def usd_per_hour(self) -> float:
        fixed = self.stop_all_usd_per_hour + self.lost_usd_per_hour
        return fixed + max((view.usd_per_hour for view in self.views), default=-math.inf)

    @property
    def is_anywhere(self) -> bool:
        """True where the scheduler chooses the place."""
        return self.service.placement is PlacementMode.CLASS

    def begin(self) -> None:
        """Find the pools that the service may have somewhere, and what of its rules nobody can keep."""
        self.pools, self.stop_all_usd_per_hour = self._found(), self._stop_all_usd_per_hour()
        able: dict[PoolKey, float] = {}
        for pool in (pool for pool in self.pools if pool.stock.rate_per_s > 0.0):
            able[pool.key] = min(pool.watts, able.get(pool.key, math.inf))
        self.reach = Reach.of(self.service, self.market, able)
        self.views = [View.whole([pool.stock for pool in self.pools])]

    def look(self, parts: int, with_floors: bool, weights: ServiceWeights, undone_usd_per_hour: Span = ANY) -> None:
        """Find the least value anew on so many parts, of ways with weighed penalties between two amounts."""
        self.lost_usd_per_hour = weights.floor_usd_per_hour * self.reach.missing
        missing = self._missing() if with_floors else ()
        asked = Asked(
            demand_per_s=self.reach.carried_ratio * self.problem.demands[self.service.name].requests_per_s,
            unserved_usd_per_hour=weights.unserved_usd_per_hour,
            fair_ratio=weights.fair_ratio,
            floor=len(missing[0]) - 1 if missing else 0,
            floor_usd_per_hour=weights.floor_usd_per_hour,
            served_ratio=self.reach.served_ratio,
            least_penalty_usd_per_hour=undone_usd_per_hour[0] - self.lost_usd_per_hour,
            most_penalty_usd_per_hour=undone_usd_per_hour[1],
            missing=missing,
        )
        if self.views[0].found is not None:  # looked at before: the closer look is at those that said most
            whole, *paired = self.views
            self.views = [whole, *sorted(paired, key=lambda view: -view.usd_per_hour)[:1]]
        for view in self.views:
            view.look(parts, asked)

    def refine(self) -> bool:
        """Make exact what the value rests on; False when all of it was."""
        changed = [view.refine() for view in self.views]  # each of them
        return any(changed)

    def settle(self) -> None:
        """Make exact all that the value rests on, and keep nothing of how it was found."""
        for _ in range(MOST_ROUNDS):
            if not self.refine():
                break
        for view in self.views:
            view.tables.clear()

    def _missing(self) -> tuple[tuple[int, ...], ...]:
        """What either chain lacks with 0, 1, … replicas, each at a location of its own, beside what nobody can have."""
        units = max((len(pool.stock.units_usd_per_hour) for pool in self.pools), default=0)
        at_most, least = self.reach.locations or (0, 0), self.service.min_replicas
        spread = [min(self.service.min_locations, n) if self.service.min_locations > 1 else 0 for n in at_most]
        floor = min(MOST_FLOOR, max(least, *spread)) if units <= FLOOR_UNITS else 0
        lacks = [[max(0, least - n) + max(0, asked - n) for n in range(floor)] for asked in spread]
        return tuple((*chain, 0) for chain in lacks) if floor else ()

    def _found(self) -> list[Pool]:
        """Every pool that the service may have somewhere, at every cap."""
        found: list[Pool] = []
        for key, profile in sorted(self.problem.profiles.items()):
            if key.model != self.service.model or not self.service.allows(key.gpu_class, key.config):
                continue
            kind = self.problem.gpu_classes.get(key.gpu_class)
            if kind is None or key.gpu_class not in self.market.kinds:
                continue
            for role in sorted(self.service.roles):
                pool = PoolKey(service=self.service.name, role=role, gpu_class=key.gpu_class, config=key.config)
                found += [s for cap in self._caps(profile, kind) if (s := self._pool(pool, profile, kind, cap))]
        return found

    def _stop_all_usd_per_hour(self) -> float:
        """What stopping all that runs would cost, also what could not stay."""
        hours, classes = self.problem.policy.stop_cost_hours, self.problem.gpu_classes
        mine = [(pool, at) for pool, at in self.market.running.items() if pool.service == self.service.name]
        return math.fsum(
            hours * sum(at.values()) * pool.config.gpus * classes[pool.gpu_class].price_usd_per_hour
            for pool, at in mine
            if pool.gpu_class in classes
        )

    def _running(self, pool: PoolKey) -> dict[str, int]:
        """What runs of the pool where it could stay, by location."""
        runs = self.market.running.get(pool, {}).items()
        known = self.market.kind_of
        return {at: n for at, n in runs if (at == ANYWHERE if self.is_anywhere else (pool.gpu_class, at) in known)}

    def _caps(self, profile: EngineProfile, kind: GpuClass) -> tuple[float, ...]:
        if not self.problem.policy.power_caps or kind.name not in self.market.limited:
            return (0.0,)
        return (0.0, *(w for w in profile.cap_watts_per_gpu if kind.min_cap_watts <= w < kind.max_cap_watts))

    def _pool(self, pool: PoolKey, profile: EngineProfile, kind: GpuClass, cap_watts: float) -> Pool | None:
        try:
            curves = capped(profile, cap_watts or None)
        except OutOfRange:
            return None
        watts = extra_watts(kind, pool.config, cap_watts or None)
        units = self.units(pool, watts)
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
        if self.most_of is None or not mix or pool.role is not Role.MIXED or not Reach.is_free(self.service):
            stock.ask(stock.most)
        else:
            stock.hoped_per_s = self.most_of(curves, pool.role, mix)
        return Pool(key=pool, watts=watts, stock=stock)

    def units(
        self,
        pool: PoolKey,
        watts: float,
        at: Collection[str] | None = None,
        more_usd_per_hour: Mapping[str, float] | None = None,
    ) -> Floats:
        """What replica after replica costs beside running, cheapest first, as many as fit; (U,).

        Parameters
        ----------
        at : collection of str, optional
            Only at these locations.
        more_usd_per_hour : mapping of str to float, optional
            What a replica pays more, by the link that its place hangs on.
        """
        policy, market = self.problem.policy, self.market
        price = pool.config.gpus * self.problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        start, stop = policy.start_cost_hours * price, policy.stop_cost_hours * price
        running, kinds = self._running(pool), market.kinds[pool.gpu_class]
        asked = market.asked_usd_per_hour(pool, watts, is_anywhere=self.is_anywhere) + market.quota_usd_per_hour(pool)
        if more_usd_per_hour:
            asked = asked + np.array([more_usd_per_hour.get(place.link, 0.0) for place in kinds])
        slots = market.slots_of_kinds(pool, watts)
        if at is not None:
            inside = [[place for place in some.locations if place in at] for some in kinds]
            slots = np.array([sum(market.slots_of(pool, watts, place) for place in some) for some in inside])
        slots = np.where(self._allowed(pool), slots, 0)
        kept = np.zeros(len(slots), dtype=np.int64)
        for location, count in () if self.is_anywhere else running.items():
            k = market.kind_of[pool.gpu_class, location]
            if slots[k] and (at is None or location in at):
                kept[k] += min(count, market.slots_of(pool, watts, location))
        costs = np.concatenate([asked - stop, asked + (0.0 if self.is_anywhere else start)])
        counts = np.concatenate([kept, slots - kept])
        order = np.argsort(costs, kind="stable")
        counts = counts[order]
        most = min(self.service.max_replicas, market.most(pool, watts, is_anywhere=self.is_anywhere))
        left = np.clip(most - np.cumsum(counts) + counts, 0, None)
        units: Floats = np.repeat(costs[order], np.minimum(counts, left))
        if self.is_anywhere:
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
