"""Whole replicas without the solver: fill what is short from what is free, and shave what nobody needs.

Repairs a solution whose pools came out smaller than they were sized for, completes a plan that keeps only part of what
ran, and, from nothing, is the plan of last resort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import ANYWHERE_INSIDE
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Counts, Room
from solvers.planner.pools.cells import PROMPT_ROLES, TOKEN_ROLES
from solvers.planner.pools.floors import Places, missing_locations, missing_of_chain, missing_of_pin, places_of
from solvers.planner.pools.options import Options, PoolOption
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.spread import loses_nothing, spread_evenly, worst_loss
from solvers.planner.pools.tally import ROUNDING, pairs_of, rates_by_place
from solvers.problem import Problem
from solvers.workload import ServedModel

RATE_SLACK = 1.1  # a pool of the largest useful size carries most per replica, but for a few percent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """So many replicas of one pool, and what they cost per useful request per second; ``site`` empty for anywhere."""

    option: PoolOption
    replicas: int
    usd_per_request_per_s: float
    site: str

    def is_place(self, bay: Bay) -> bool:
        return self.site in (ANYWHERE_INSIDE, bay.location)


def fill(
    problem: Problem, sizer: Sizer, options: Options, room: Room, counts: Counts, least: Counts | None = None
) -> dict[tuple[PoolKey, str], int]:
    """Add replicas for what is short, tier by tier, always the block that is cheapest per useful request.

    ``room`` is what the counts leave free; it is used up along the way. Nothing of ``least`` is shaved off.
    """
    by_service = _by_service(problem, counts)
    growing = [
        _Growing(problem=problem, sizer=sizer, options=options, room=room, service=s, counts=by_service[s.name])
        for s in sorted(problem.services, key=lambda s: (s.tier_rank, s.name))
    ]
    for one in growing:
        one.fill()
    for one in growing:
        one.shave(least or {})
    kept = [row for grown in by_service.values() for row in grown.items()]
    return {key: count for key, count in sorted(kept) if count > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growing:
    """One service: its replicas by (pool, location), what is free, and what may be added; ``sizer`` says what carries.

    ``counts`` and ``room`` change as it is filled.
    """

    problem: Problem
    sizer: Sizer
    options: Options
    room: Room
    service: ServedModel
    counts: dict[tuple[PoolKey, str], int]

    @property
    def demand_per_s(self) -> float:
        return self.problem.demands[self.service.name].requests_per_s

    def places(self) -> Places:
        return places_of(self.service, self.counts)

    def fill(self) -> None:
        """Add what pins, floors and spread ask for, then what is short, then what the loss of a place would take."""
        self._fill_pins()
        self._fill_floor()
        self._fill_locations()
        self._fill_demand()
        self._fill_share()

    def _fill_pins(self) -> None:
        for pin in self.service.pins:
            able = [
                option
                for option in self._cheapest_first(tuple(Role))
                if pin.counts(option.pool.role, option.pool.gpu_class, pin.location)
            ]
            while missing_of_pin(pin, self.places()):
                if not self._add_one(able, lambda bay, at=pin.location: bay.location == at):  # type: ignore[misc]
                    break

    def _fill_floor(self) -> None:
        for roles in (PROMPT_ROLES, TOKEN_ROLES):
            able = self._cheapest_first(roles)
            while missing_of_chain(self.service, self.places(), roles):
                if not self._add_one(able):
                    break

    def _fill_locations(self) -> None:
        for roles in (PROMPT_ROLES, TOKEN_ROLES):
            able = self._cheapest_first(roles)
            while missing_locations(self.service, places := self.places(), roles):
                held = {at for pool, at in places if pool.role in roles}
                if not self._add_one(able, lambda bay, held=held: bay.location not in held):  # type: ignore[misc]
                    break

    def _fill_demand(self) -> None:
        """Add the cheapest block for what is short, again and again, until nothing is or nothing has room."""
        blocked: set[tuple[PoolKey, str]] = set()
        totals, least = _totals(self.counts, self.service), dict[PoolKey, float]()
        while block := self._cheapest_block(totals, least, blocked):
            pool, is_place = block.option.pool, block.is_place if block.site else None
            added = self._add(block.option, block.replicas, is_place)
            if added:
                totals[pool] = totals.get(pool, 0) + added
                del least[pool]
            if added < block.replicas:
                blocked.add((pool, block.site))  # there is no room for any more

    def _fill_share(self) -> None:
        """Add replicas elsewhere while the loss of a location would leave too little of what could be served."""
        while self.service.hangs:
            worst = worst_loss(self.service, rates_by_place(self.problem, self.sizer, self.places()))
            if worst is None or worst.survivable_per_s >= self.demand_per_s * (1.0 - ROUNDING):
                return
            if not self._add_one(self._cheapest_first(worst.roles), worst.spares):
                return

    def _cheapest_first(self, roles: tuple[Role, ...]) -> list[PoolOption]:
        able = (option for option in self.options.of(self.service.name) if option.pool.role in roles)
        return sorted(able, key=lambda o: (o.price_usd_per_hour, o.pool))

    def _add_one(self, options: Sequence[PoolOption], is_place: Callable[[Bay], bool] | None = None) -> bool:
        """Add a replica of the first pool that has room for it, under the ceiling of its role."""
        for option in _at_one_cap(options, _totals(self.counts, self.service)):
            totals = _totals(self.counts, self.service)
            in_role = sum(n for pool, n in totals.items() if pool.role is option.pool.role)
            if in_role < self.service.max_replicas and self._add(option, 1, is_place):
                return True
        return False

    def _add(self, option: PoolOption, count: int, is_place: Callable[[Bay], bool] | None) -> int:
        """Add up to ``count`` replicas where their feeds keep most watts, evenly if asked; says how many had room."""
        bays = self.room.bays_of(option.pool)
        if is_place is not None:
            bays = tuple(bay for bay in bays if is_place(bay))
        if self.service.is_spread:
            added = spread_evenly(self.room, option.pool, count, bays, self.places())
        else:
            added = self.room.spread(option.pool, count, bays, ANYWHERE if option.is_anywhere else None)
        for location, taken in added.items():
            self.counts[option.pool, location] = self.counts.get((option.pool, location), 0) + taken
        return sum(added.values())

    def _cheapest_block(
        self, totals: Mapping[PoolKey, int], least_usd: dict[PoolKey, float], blocked: Collection[tuple[PoolKey, str]]
    ) -> _Block | None:
        """The block that is cheapest per useful request; ``least_usd`` keeps what ``_least_price`` said of pools."""
        name, sizer, demand = self.service.name, self.sizer, self.demand_per_s
        if demand <= 0.0:
            return None
        is_parted = name in sizer.pairing.parted  # else it does not matter where anything stands
        places = self.places() if is_parted else {(p, ANYWHERE_INSIDE): n for p, n in totals.items()}
        pairs = pairs_of(self.problem, sizer, self.service, places)
        if demand - pairs.able_per_s <= ROUNDING * demand:
            return None
        best: _Block | None = None
        able = _at_one_cap(self.options.of(name), totals)
        least_usd |= {o.pool: self._least_price(o, totals) for o in able if o.pool not in least_usd}
        for least, option in sorted(((least_usd[o.pool], o) for o in able), key=lambda row: (row[0], row[1].pool)):
            if math.isinf(least) or (best is not None and least > best.usd_per_request_per_s):
                break  # the rest is not worth being sized
            for site, most in self._sites(option.pool):
                if (option.pool, site) in blocked:
                    continue
                wanted = pairs.wants(option.pool.role, sizer.pairing.domain(option.pool, site), demand)
                block = self._block(option, wanted, totals, site, most)
                if block is not None and (best is None or _rank(block) < _rank(best)):
                    best = block
        return best

    def _least_price(self, option: PoolOption, totals: Mapping[PoolKey, int]) -> float:
        """What a request per second costs at least in a block of the pool, if every chain wants it at its best rate.

        Infinite where there is no room for it.
        """
        if not self.room.has_room(option.pool, ANYWHERE if option.is_anywhere else None):
            return math.inf
        now = totals.get(option.pool, 0)
        rate = RATE_SLACK * option.steps[-1].capacity_requests_per_s
        gain = rate + max(0.0, now * rate - self._carried(option, now))  # what runs gains too when a pool grows
        counts_twice = option.pool.role is Role.MIXED or option.pool.service in self.sizer.pairing.parted
        chains = 2.0 if counts_twice else 1.0  # ``Pairs.wants``
        return option.price_usd_per_hour / (chains * gain) if gain > 0.0 else 0.0

    def _sites(self, pool: PoolKey) -> list[tuple[str, float]]:
        """Locations with room, and for how many, where the service pairs inside them only; else one for all."""
        if pool.role is Role.MIXED or pool.service not in self.sizer.pairing.local:
            return [(ANYWHERE_INSIDE, math.inf)]
        rooms = ((bay.location, self.room.room(pool, bay.location, bay)) for bay in self.room.bays_of(pool))
        return sorted((at, most) for at, most in rooms if most)

    def _block(
        self, option: PoolOption, wanted: Sequence[float], totals: Mapping[PoolKey, int], site: str, most: float
    ) -> _Block | None:
        """As many of one pool as carry what some chain wants, or one fewer, at ``most`` so many: what costs less.

        A replica carries no less in a larger pool, so from nothing no other block is cheaper per useful request. To a
        pool that gains most by its first few more they would be added next.
        """
        now = totals.get(option.pool, 0)
        in_role = sum(n for pool, n in totals.items() if pool.role is option.pool.role)
        useful_most = option.most if math.isinf(most) else now + most  # at a place of its own a pair may serve little
        limit = int(min(useful_most - now, self.service.max_replicas - in_role, most))
        base, best = self._carried(option, now), None
        for size in self._sizes(option, now, {base + want for want in wanted}, limit):
            gain = self._carried(option, now + size) - base
            useful = sum(min(gain, want) for want in wanted)
            if useful > 0.0:
                price = size * option.price_usd_per_hour / useful
                block = _Block(option=option, replicas=size, usd_per_request_per_s=price, site=site)
                best = block if best is None or _rank(block) < _rank(best) else best
        return best

    def _sizes(self, option: PoolOption, now: int, targets: Collection[float], limit: int) -> list[int]:
        """Replicas to add for the pool to carry each target, requests per second, and one fewer; within the limit."""
        enough = [self._enough(option, now, target, limit) for target in targets]
        return sorted({size for most in enough for size in (most - 1, most) if size > 0})

    def _enough(self, option: PoolOption, now: int, target_per_s: float, limit: int) -> int:
        """The fewest replicas to add that carry the target, or the limit.

        At the rate of a larger pool fewer than these would do, at that of a smaller one no more are needed.
        """
        low, high, rate = 0, limit, option.steps[-1].capacity_requests_per_s
        guess = math.ceil(target_per_s / rate) - now if rate > 0.0 else limit
        while high - low > 1:
            size = min(max(guess, low + 1), high - 1)
            carried = self._carried(option, now + size)
            guess = math.ceil(target_per_s / carried * (now + size)) - now if carried > 0.0 else limit
            if carried >= target_per_s:
                high = size
            else:
                low, high, guess = size, min(high, max(guess, size + 1)), guess - 1
        return high

    def _carried(self, option: PoolOption, replicas: int) -> float:
        return self.sizer.carried(option.pool, option.profile, replicas) if replicas else 0.0

    def shave(self, least: Counts) -> None:
        """Take away replicas that change neither what is served nor a floor: the dearest first, running ones last."""
        kept, totals, running_at = self.counts, _totals(self.counts, self.service), self.problem.running
        for pool in sorted(totals, key=lambda p: (-_price(self.problem, p), p)):
            free = {loc: n - least.get((key, loc), 0) for (key, loc), n in kept.items() if key == pool}
            free = {loc: n for loc, n in free.items() if n > 0}
            running = {loc: running_at.get((pool.uncapped, loc), 0) for loc in free}
            while free and self._can_spare(totals, pool):
                location = max((kept[pool, loc] > running[loc], loc) for loc in free)[1]
                free[location] -= 1
                if not free[location]:
                    del free[location]
                if not self._spares_place(pool, location):
                    continue
                totals[pool] -= 1
                kept[pool, location] -= 1

    def _can_spare(self, totals: Mapping[PoolKey, int], pool: PoolKey) -> bool:
        less = {**totals, pool: totals[pool] - 1}
        sums = [{(p, ANYWHERE_INSIDE): n for p, n in counts.items() if n} for counts in (totals, less)]
        floors = all(
            sum(n for p, n in less.items() if p.role in roles)
            >= min(self.service.min_replicas, sum(n for p, n in totals.items() if p.role in roles))
            for roles in (PROMPT_ROLES, TOKEN_ROLES)
        )
        return floors and self._serves_as_much(*sums)

    def _spares_place(self, pool: PoolKey, location: str) -> bool:
        """True when one replica less there breaks no pin, no pair and no spread that is kept."""
        service, is_local = self.service, self.service.name in self.sizer.pairing.local
        if not (service.pins or service.is_spread or is_local):
            return True
        before = self.places()
        after = {**before, (pool, location): before[pool, location] - 1}
        if is_local and not self._serves_as_much(before, after):
            return False
        rates = [rates_by_place(self.problem, self.sizer, places) for places in (before, after)]
        return loses_nothing(service, before, after, self.demand_per_s, (rates[0], rates[1]))

    def _serves_as_much(self, before: Places, after: Places) -> bool:
        demand = self.demand_per_s
        able, left = (pairs_of(self.problem, self.sizer, self.service, places) for places in (before, after))
        return min(demand, left.able_per_s) >= min(demand, able.able_per_s) * (1.0 - ROUNDING)


def _by_service(problem: Problem, counts: Counts) -> dict[str, dict[tuple[PoolKey, str], int]]:
    """Split the counts by service, those that are not planned for left in a part of their own."""
    parts: dict[str, dict[tuple[PoolKey, str], int]] = {service.name: {} for service in problem.services}
    for (pool, location), count in counts.items():
        parts.setdefault(pool.service, {})[pool, location] = count
    return parts


def _totals(counts: Counts, service: ServedModel) -> dict[PoolKey, int]:
    totals: dict[PoolKey, int] = {}
    for (pool, _), count in counts.items():
        if pool.service == service.name and count > 0:
            totals[pool] = totals.get(pool, 0) + count
    return totals


def _at_one_cap(options: Iterable[PoolOption], totals: Mapping[PoolKey, int]) -> list[PoolOption]:
    """Leave out the other caps of pools that have replicas: a plan has one cap for a pool."""
    caps = {pool.uncapped: pool.cap_watts for pool in totals}
    return [o for o in options if caps.get(o.pool.uncapped, o.pool.cap_watts) == o.pool.cap_watts]


def _rank(block: _Block) -> tuple[float, int, PoolKey, str]:
    return block.usd_per_request_per_s, block.replicas, block.option.pool, block.site


def _price(problem: Problem, pool: PoolKey) -> float:
    return pool.config.gpus * problem.gpu_classes[pool.gpu_class].price_usd_per_hour
