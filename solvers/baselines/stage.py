"""What every baseline stands on: the planner's own sizing, prices and accounting of room; only decisions differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from solvers.engine import Role
from solvers.errors import PlanRejected
from solvers.explain.ways import pool_usd_per_hour
from solvers.fleet import ANYWHERE, PoolKey
from solvers.plan import Plan
from solvers.planner.assemble import Prices, assemble
from solvers.planner.bays.nodes import Room
from solvers.planner.checks import check_problem
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.shortage import reasons_by_service
from solvers.planner.pools.cells import PROMPT_ROLES, TOKEN_ROLES
from solvers.planner.pools.floors import missing_of_pin, places_of
from solvers.planner.pools.options import PoolOption, find_options
from solvers.planner.pools.spread import spread_evenly
from solvers.planner.pools.tally import ROUNDING, pairs_of
from solvers.problem import Problem
from solvers.sizing import CapacityOf
from solvers.verify import verify
from solvers.workload import ServedModel

Way = tuple[PoolOption, ...]
"""Pools of one GPU class that carry a service together: one mixed, or a prefill and a decode one."""

HALVINGS = 8  # of the rate, in search of the largest that has room


@dataclass(slots=True, kw_only=True)
class Stage:
    """A fleet that fills up, one decision after the other. ``counts`` is what stands, ``room`` what it leaves."""

    desk: Desk
    room: Room
    counts: dict[tuple[PoolKey, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, capacity_of: CapacityOf) -> Stage:
        """Start with an empty fleet, but for what is pinned to a location.

        Raises
        ------
        InvalidInput
            The problem itself is malformed.
        """
        check_problem(problem)
        plain = replace(problem, policy=replace(problem.policy, power_caps=False))  # none of them chooses caps so
        desk = Desk.of(plain, capacity_of)
        desk = replace(desk, options=find_options(plain, desk.sizer))  # at every size, however large the fleet
        stage = cls(desk=desk, room=desk.empty_room())
        for service in stage.services:
            stage._keep_pins(service)
        return stage

    @property
    def services(self) -> list[ServedModel]:
        """Services in the order in which they are decided: higher tiers first, then by name."""
        return sorted(self.desk.problem.services, key=lambda s: (s.tier_rank, s.name))

    def ways(self, service: ServedModel) -> list[Way]:
        """Ways to carry the service on one GPU class, the cheapest for its whole demand first."""
        options = self.desk.options.of(service.name)
        return sorted(_ways(options), key=lambda way: (self.usd_per_hour(way, service), [o.pool for o in way]))

    def usd_per_hour(self, way: Way, service: ServedModel) -> float:
        """List price and energy of carrying the whole demand that way, per unit of what it then carries."""
        rate = self.demand_per_s(service)
        sizes = [self.needed(option, rate) for option in way]
        cost = sum(pool_usd_per_hour(self.desk, option, size) for option, size in zip(way, sizes, strict=True))
        able = min(self.carried(o, n) for o, n in zip(way, sizes, strict=True))
        return cost * max(1.0, rate / able) if able > 0.0 else cost

    def demand_per_s(self, service: ServedModel) -> float:
        return self.desk.problem.demands[service.name].requests_per_s

    def needed(self, option: PoolOption, requests_per_s: float) -> int:
        """Fewest replicas that carry the rate as one pool, or the most that could be of use."""
        if requests_per_s <= 0.0:
            return 0
        low, high, rate = 1, option.most, requests_per_s * (1.0 - ROUNDING)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.carried(option, middle) >= rate else (middle + 1, high)
        return high

    def carried(self, option: PoolOption, replicas: int) -> float:
        """Requests per second that so many replicas carry as one pool."""
        if replicas <= 0 or not self.desk.problem.demands[option.pool.service].mix:
            return 0.0
        return self.desk.sizer.carried(option.pool, option.profile, replicas)

    def missing_per_s(self, service: ServedModel) -> float:
        """Demand that what stands does not carry."""
        rate = self.demand_per_s(service)
        pairs = pairs_of(self.desk.problem, self.desk.sizer, service, places_of(service, self.counts))
        missing = rate - pairs.able_per_s
        return missing if missing > ROUNDING * rate else 0.0

    def totals(self, service: ServedModel) -> dict[PoolKey, int]:
        """Replicas that stand, by pool of the service."""
        totals: dict[PoolKey, int] = {}
        for (pool, _), count in self.counts.items():
            if pool.service == service.name:
                totals[pool] = totals.get(pool, 0) + count
        return totals

    def spare_in_role(self, service: ServedModel, role: Role) -> int:
        """Replicas of the role that its ceiling still allows."""
        return service.max_replicas - sum(n for pool, n in self.totals(service).items() if pool.role is role)

    def place(self, service: ServedModel, option: PoolOption, count: int) -> int:
        """Place up to so many replicas where feeds keep most watts, evenly where the service asks so; say how many."""
        wanted = min(count, self.spare_in_role(service, option.pool.role))
        bays, pool = self.room.bays_of(option.pool), option.pool
        if service.is_spread and not option.is_anywhere:
            added = spread_evenly(self.room, pool, max(0, wanted), bays, places_of(service, self.counts))
        else:
            added = self.room.spread(pool, max(0, wanted), bays, ANYWHERE if option.is_anywhere else None)
        for location, taken in added.items():
            self.add(option.pool, location, taken)
        return sum(added.values())

    def add(self, pool: PoolKey, location: str, count: int) -> None:
        """Note down replicas whose room is already taken."""
        if count:
            self.counts[pool, location] = self.counts.get((pool, location), 0) + count

    def place_way(self, service: ServedModel, way: Way, requests_per_s: float) -> None:
        """Place a way for the rate, or for as much of it as has room: neither role more than the other can use."""
        mark, high = self.mark(), requests_per_s
        low = self._tried(service, way, high)
        if low >= high * (1.0 - ROUNDING):
            return
        for _ in range(HALVINGS):
            self.reset(mark)
            able = self._tried(service, way, middle := (low + high) / 2.0)
            low, high = max(low, able), (high if able >= middle * (1.0 - ROUNDING) else middle)
        self.reset(mark)
        self._tried(service, way, low)

    def _tried(self, service: ServedModel, way: Way, requests_per_s: float) -> float:
        """Place the way for the rate; returns how much of it both roles carry then."""
        placed = [self.place(service, option, self.needed(option, requests_per_s)) for option in way]
        able = min(self.carried(option, count) for option, count in zip(way, placed, strict=True))
        return min(able, requests_per_s)

    def mark(self) -> Stage:
        """A copy to return to."""
        return Stage(desk=self.desk, room=self.room.copy(), counts=dict(self.counts))

    def reset(self, mark: Stage) -> None:
        """Return to what stood at the mark, which stays as it is."""
        fresh = mark.mark()
        self.room, self.counts = fresh.room, fresh.counts

    def keep_floor(self, service: ServedModel, ways: Sequence[Way]) -> None:
        """Add replicas of the first way that has room until ``min_replicas`` stand in both chains."""
        for option in (option for way in ways for option in way):
            for roles in (PROMPT_ROLES, TOKEN_ROLES):
                able = sum(n for pool, n in self.totals(service).items() if pool.role in roles)
                if option.pool.role in roles and able < service.min_replicas:
                    self.place(service, option, service.min_replicas - able)

    def _keep_pins(self, service: ServedModel) -> None:
        """Add replicas at the locations that pins name, of the cheapest pools that have room there."""
        options = sorted(self.desk.options.of(service.name), key=lambda o: (o.price_usd_per_hour, o.pool))
        for pin in service.pins:
            for option in options:
                bays = [bay for bay in self.room.bays_of(option.pool) if bay.location == pin.location]
                if not pin.counts(option.pool.role, option.pool.gpu_class, pin.location) or option.is_anywhere:
                    continue
                missing = missing_of_pin(pin, places_of(service, self.counts))
                wanted = min(missing, self.spare_in_role(service, option.pool.role))
                added = sum(self.room.spread(option.pool, max(0, wanted), bays).values())
                self.add(option.pool, pin.location, added)

    def write(self, name: str) -> Plan:
        """Write what stands as a checked plan; it proves nothing, so its bound is 0.

        Raises
        ------
        PlanRejected
            A limit is broken: the baseline is wrong.
        """
        problem, worth = self.desk.problem, self.desk.worth(self.counts)
        plan = assemble(
            problem,
            worth,
            prices=Prices(),
            bound_usd_per_hour=0.0,
            rounds=0,
            notes=(f"baseline {name}: nothing is proved",),
            reasons=reasons_by_service(problem, self.desk.options, worth),
        )
        if violations := verify(plan, problem):
            raise PlanRejected(violations)
        return plan


def _ways(options: Sequence[PoolOption]) -> Iterator[Way]:
    for option in options:
        if option.pool.role is Role.MIXED:
            yield (option,)
        elif option.pool.role is Role.PREFILL:
            pairs = (o for o in options if o.pool.role is Role.DECODE and o.pool.gpu_class == option.pool.gpu_class)
            yield from ((option, other) for other in pairs)
