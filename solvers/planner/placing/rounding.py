"""Whole replicas without the solver: fill what is short from what is free, and shave what nobody needs.

Repairs a solution whose pools came out smaller than they were sized for, completes a plan that keeps only part of what
ran, and, from nothing, is the plan of last resort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import ANYWHERE_INSIDE, Pairs
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Counts, Room
from solvers.planner.pools.cells import PROMPT_ROLES, TOKEN_ROLES
from solvers.planner.pools.floors import missing_locations, missing_of_chain, missing_of_pin, places_of
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
    for service in sorted(problem.services, key=lambda s: (s.tier_rank, s.name)):
        grown = by_service[service.name]
        _fill_pins(service, options, room, grown)
        _fill_floor(service, options, room, grown)
        _fill_locations(service, options, room, grown)
        _fill_demand(problem, sizer, service, options, room, grown)
        _fill_share(problem, sizer, service, options, room, grown)
    _shave_waste(problem, sizer, by_service, least or {})
    kept = [row for grown in by_service.values() for row in grown.items()]
    return {key: count for key, count in sorted(kept) if count > 0}


def _fill_demand(
    problem: Problem,
    sizer: Sizer,
    service: ServedModel,
    options: Options,
    room: Room,
    counts: dict[tuple[PoolKey, str], int],
) -> None:
    """Add the cheapest block for what is short, again and again, until nothing is or nothing has room."""
    blocked: set[tuple[PoolKey, str]] = set()
    totals, least = _totals(counts, service), dict[PoolKey, float]()
    while block := _cheapest_block(problem, sizer, service, options, counts, totals, least, blocked, room):
        pool, is_place = block.option.pool, block.is_place if block.site else None
        added = _add(block.option, block.replicas, room, counts, service, is_place)
        if added:
            totals[pool] = totals.get(pool, 0) + added
            del least[pool]
        if added < block.replicas:
            blocked.add((pool, block.site))  # there is no room for any more


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


def _add(
    option: PoolOption,
    count: int,
    room: Room,
    counts: dict[tuple[PoolKey, str], int],
    service: ServedModel,
    is_place: Callable[[Bay], bool] | None = None,
) -> int:
    """Add up to ``count`` replicas where their feeds keep most watts, evenly if asked; returns how many found room."""
    bays = room.bays_of(option.pool)
    if is_place is not None:
        bays = tuple(bay for bay in bays if is_place(bay))
    if service.is_spread:
        added = spread_evenly(room, option.pool, count, bays, places_of(service, counts))
    else:
        added = room.spread(option.pool, count, bays, ANYWHERE if option.is_anywhere else None)
    for location, taken in added.items():
        counts[option.pool, location] = counts.get((option.pool, location), 0) + taken
    return sum(added.values())


def _add_one(
    options: Sequence[PoolOption],
    room: Room,
    counts: dict[tuple[PoolKey, str], int],
    service: ServedModel,
    is_place: Callable[[Bay], bool] | None = None,
) -> bool:
    """Add a replica of the first pool that has room for it, under the ceiling of its role."""
    for option in _at_one_cap(options, _totals(counts, service)):
        in_role = sum(n for pool, n in _totals(counts, service).items() if pool.role is option.pool.role)
        if in_role < service.max_replicas and _add(option, 1, room, counts, service, is_place):
            return True
    return False


def _cheapest_first(options: Options, service: ServedModel, roles: tuple[Role, ...]) -> list[PoolOption]:
    able = (option for option in options.of(service.name) if option.pool.role in roles)
    return sorted(able, key=lambda o: (o.price_usd_per_hour, o.pool))


def _fill_floor(service: ServedModel, options: Options, room: Room, counts: dict[tuple[PoolKey, str], int]) -> None:
    for roles in (PROMPT_ROLES, TOKEN_ROLES):
        able = _cheapest_first(options, service, roles)
        while missing_of_chain(service, places_of(service, counts), roles):
            if not _add_one(able, room, counts, service):
                break


def _at_one_cap(options: Iterable[PoolOption], totals: Mapping[PoolKey, int]) -> list[PoolOption]:
    """Leave out the other caps of pools that have replicas: a plan has one cap for a pool."""
    caps = {pool.uncapped: pool.cap_watts for pool in totals}
    return [o for o in options if caps.get(o.pool.uncapped, o.pool.cap_watts) == o.pool.cap_watts]


def _fill_pins(service: ServedModel, options: Options, room: Room, counts: dict[tuple[PoolKey, str], int]) -> None:
    for pin in service.pins:
        able = [
            option
            for option in _cheapest_first(options, service, tuple(Role))
            if pin.counts(option.pool.role, option.pool.gpu_class, pin.location)
        ]
        while missing_of_pin(pin, places_of(service, counts)):
            if not _add_one(able, room, counts, service, lambda bay, at=pin.location: bay.location == at):  # type: ignore[misc]
                break


def _fill_locations(service: ServedModel, options: Options, room: Room, counts: dict[tuple[PoolKey, str], int]) -> None:
    for roles in (PROMPT_ROLES, TOKEN_ROLES):
        able = _cheapest_first(options, service, roles)
        while missing_locations(service, places := places_of(service, counts), roles):
            held = {at for pool, at in places if pool.role in roles}
            if not _add_one(able, room, counts, service, lambda bay, held=held: bay.location not in held):  # type: ignore[misc]
                break


def _fill_share(
    problem: Problem,
    sizer: Sizer,
    service: ServedModel,
    options: Options,
    room: Room,
    counts: dict[tuple[PoolKey, str], int],
) -> None:
    """Add replicas elsewhere while the loss of a location would leave too little of what could be served."""
    demand = problem.demands[service.name].requests_per_s
    while service.hangs:
        worst = worst_loss(service, rates_by_place(problem, sizer, places_of(service, counts)))
        if worst is None or worst.survivable_per_s >= demand * (1.0 - ROUNDING):
            return
        if not _add_one(_cheapest_first(options, service, worst.roles), room, counts, service, worst.spares):
            return


def _cheapest_block(
    problem: Problem,
    sizer: Sizer,
    service: ServedModel,
    options: Options,
    counts: Counts,
    totals: Mapping[PoolKey, int],
    least_usd: dict[PoolKey, float],
    blocked: set[tuple[PoolKey, str]],
    room: Room,
) -> _Block | None:
    """The block that is cheapest per useful request; ``least_usd`` keeps what ``_least_price`` said of pools."""
    demand = problem.demands[service.name].requests_per_s
    if demand <= 0.0:
        return None
    is_parted = service.name in sizer.pairing.parted  # else it does not matter where anything stands
    places = places_of(service, counts) if is_parted else {(p, ANYWHERE_INSIDE): n for p, n in totals.items()}
    pairs = pairs_of(problem, sizer, service, places)
    if demand - pairs.able_per_s <= ROUNDING * demand:
        return None
    best: _Block | None = None
    able = _at_one_cap(options.of(service.name), totals)
    least_usd |= {o.pool: _least_price(o, sizer, totals) for o in able if o.pool not in least_usd}
    for least, option in sorted(((least_usd[o.pool], o) for o in able), key=lambda row: (row[0], row[1].pool)):
        if best is not None and least > best.usd_per_request_per_s:
            break  # the rest is not worth being sized
        for site, most in _sites(sizer, option.pool, room):
            if (option.pool, site) in blocked:
                continue
            wanted = _wanted(option, sizer, pairs, site, demand)
            for block in _blocks(option, sizer, service, wanted, totals, site, most):
                if best is None or _rank(block) < _rank(best):
                    best = block
    return best


def _rank(block: _Block) -> tuple[float, int, PoolKey, str]:
    return block.usd_per_request_per_s, block.replicas, block.option.pool, block.site


def _least_price(option: PoolOption, sizer: Sizer, totals: Mapping[PoolKey, int]) -> float:
    """What a request per second costs at least in a block of the pool, if every chain wants it at its best rate."""
    now = totals.get(option.pool, 0)
    rate = RATE_SLACK * option.steps[-1].capacity_requests_per_s
    gain = rate + max(0.0, now * rate - _carried(option, sizer, now))  # what runs gains too when a pool grows
    counts_twice = option.pool.role is Role.MIXED or option.pool.service in sizer.pairing.parted  # ``Pairs.wants``
    chains = 2.0 if counts_twice else 1.0
    return option.price_usd_per_hour / (chains * gain) if gain > 0.0 else 0.0


def _sites(sizer: Sizer, pool: PoolKey, room: Room) -> list[tuple[str, float]]:
    """Locations with room, and for how many, where the service pairs inside them only; else one for all."""
    if pool.role is Role.MIXED or pool.service not in sizer.pairing.local:
        return [(ANYWHERE_INSIDE, math.inf)]
    rooms = ((bay.location, room.room(pool, bay.location, bay)) for bay in room.bays_of(pool))
    return sorted((at, most) for at, most in rooms if most)


def _wanted(option: PoolOption, sizer: Sizer, pairs: Pairs, site: str, demand: float) -> tuple[float, ...]:
    domain = sizer.pairing.domain(option.pool, site)
    return pairs.wants(option.pool.role, domain, demand)


def _blocks(
    option: PoolOption,
    sizer: Sizer,
    service: ServedModel,
    wanted: Sequence[float],
    totals: Mapping[PoolKey, int],
    site: str,
    most: float,
) -> list[_Block]:
    """Blocks of 1, 2, 4, … replicas of one pool, at ``most`` so many, up to the first that covers all it can."""
    now = totals.get(option.pool, 0)
    in_role = sum(n for pool, n in totals.items() if pool.role is option.pool.role)
    blocks, size, base = [], 1, _carried(option, sizer, now)
    useful_most = option.most if math.isinf(most) else now + most  # at a place of its own a pair may serve little
    while now + size <= useful_most and in_role + size <= service.max_replicas and size <= most:
        gain = _carried(option, sizer, now + size) - base
        useful = sum(min(gain, want) for want in wanted)
        if useful > 0.0:
            price = size * option.price_usd_per_hour / useful
            blocks.append(_Block(option=option, replicas=size, usd_per_request_per_s=price, site=site))
        if gain >= max(wanted):
            break
        size *= 2
    return blocks


def _carried(option: PoolOption, sizer: Sizer, replicas: int) -> float:
    return sizer.carried(option.pool, option.profile, replicas) if replicas else 0.0


def _shave_waste(
    problem: Problem, sizer: Sizer, by_service: Mapping[str, dict[tuple[PoolKey, str], int]], least: Counts
) -> None:
    """Take away replicas that change neither what is served nor a floor: the dearest first, running ones last."""
    for service in sorted(problem.services, key=lambda s: s.name):
        kept = by_service[service.name]
        totals = _totals(kept, service)
        for pool in sorted(totals, key=lambda p: (-_price(problem, p), p)):
            free = {loc: n - least.get((key, loc), 0) for (key, loc), n in kept.items() if key == pool}
            free = {loc: n for loc, n in free.items() if n > 0}
            running = {loc: problem.running.get((pool.uncapped, loc), 0) for loc in free}
            while free and _can_spare(problem, sizer, service, totals, pool):
                location = max((kept[pool, loc] > running[loc], loc) for loc in free)[1]
                free[location] -= 1
                if not free[location]:
                    del free[location]
                if not _spares_place(problem, sizer, service, kept, pool, location):
                    continue
                totals[pool] -= 1
                kept[pool, location] -= 1


def _spares_place(
    problem: Problem, sizer: Sizer, service: ServedModel, counts: Counts, pool: PoolKey, location: str
) -> bool:
    """True when one replica less there breaks no pin, no pair and no spread that is kept."""
    is_local = service.name in sizer.pairing.local
    if not (service.pins or service.is_spread or is_local):
        return True
    before = places_of(service, counts)
    after = {**before, (pool, location): before[pool, location] - 1}
    pairs = (pairs_of(problem, sizer, service, places) for places in (before, after))
    if is_local and not _serves_as_much(problem, service, *pairs):
        return False
    rates = rates_by_place(problem, sizer, before), rates_by_place(problem, sizer, after)
    return loses_nothing(service, before, after, problem.demands[service.name].requests_per_s, rates)


def _price(problem: Problem, pool: PoolKey) -> float:
    return pool.config.gpus * problem.gpu_classes[pool.gpu_class].price_usd_per_hour


def _can_spare(
    problem: Problem, sizer: Sizer, service: ServedModel, totals: Mapping[PoolKey, int], pool: PoolKey
) -> bool:
    less = {**totals, pool: totals[pool] - 1}
    sums = ({(p, ANYWHERE_INSIDE): n for p, n in counts.items() if n} for counts in (totals, less))
    pairs = (pairs_of(problem, sizer, service, counts) for counts in sums)
    floors = all(
        sum(n for p, n in less.items() if p.role in roles)
        >= min(service.min_replicas, sum(n for p, n in totals.items() if p.role in roles))
        for roles in (PROMPT_ROLES, TOKEN_ROLES)
    )
    return floors and _serves_as_much(problem, service, *pairs)


def _serves_as_much(problem: Problem, service: ServedModel, before: Pairs, after: Pairs) -> bool:
    demand = problem.demands[service.name].requests_per_s
    return min(demand, after.able_per_s) >= min(demand, before.able_per_s) * (1.0 - ROUNDING)
