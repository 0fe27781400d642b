"""Which pools a service may have, and what each carries at each size: profiles and SLOs become coefficients.

Pools have economies of scale: a larger pool carries more per replica. Sizes are therefore cut into steps, each with
one capacity per replica, taken at the step's upper end. That is hopeful inside a wide step, never below the truth, so
a bound proved with steps holds for the exact curve; the planner narrows the steps around the sizes a solution takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from solvers.derived import derived
from solvers.engine import EngineProfile
from solvers.fleet import GpuClass, PoolKey
from solvers.pairing import Pairing, more_beside
from solvers.planner.bays.grouping import limited_bays
from solvers.planner.bays.quotas import QuotaLedger
from solvers.planner.bays.slots import SlotsKind, find_slots, kind_of, no_room
from solvers.planner.pools.caps import at_cap, highest_levels, levels_watts, limited_classes, sorted_profiles
from solvers.planner.pools.crew import Crew, of_service
from solvers.planner.pools.floors import spread_demand
from solvers.planner.pools.keeping import least_of
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.sizings import UnknownSize, refuse
from solvers.power import pool_extra_watts
from solvers.problem import Problem
from solvers.sizing import Capacity, CapacityOf, Unfit
from solvers.spans import groups_taken, node_sizes
from solvers.workload import Demand, PlacementMode, ServedModel

EVERY_SIZE_UP_TO = 12  # pools that never grow past this get a step for every size
STEP_GROWTH = 1.5
SERVED_TOLERANCE = 1e-9
CEILING_SLACK = 4  # a role mixes few pools, and each of them alone could carry everything with its ``most``


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A range of pool sizes with one capacity and draw per replica; ``gpu_watts`` is the mean draw of one GPU."""

    lower: int
    upper: int
    capacity_requests_per_s: float
    gpu_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOption:
    """A pool that could exist.

    Attributes
    ----------
    steps : tuple of Step
        Ascending, without holes, from one replica to the most that could be of use.
    reserved_watts : float
        What one replica adds to its domains at the pool's cap.
    """

    pool: PoolKey
    profile: EngineProfile
    is_anywhere: bool
    gpus: int
    price_usd_per_hour: float
    reserved_watts: float
    host_watts: float
    steps: tuple[Step, ...]

    @property
    def most(self) -> int:
        return self.steps[-1].upper

    def replica_watts(self, gpu_watts: float) -> float:
        """Planned draw of one replica, host share included."""
        return self.gpus * gpu_watts + self.host_watts

    def step_usd_per_hour(self, step: Step, energy_usd_per_kilowatt_hour: float) -> float:
        return self.price_usd_per_hour + energy_usd_per_kilowatt_hour * self.replica_watts(step.gpu_watts) / 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Pools of every service, sorted by key, and why other candidates fell out, by service."""

    pools: tuple[PoolOption, ...]
    unfit: Mapping[str, tuple[str, ...]]
    _by_service: dict[str, tuple[PoolOption, ...]] = field(default_factory=dict)

    def of(self, service: str) -> tuple[PoolOption, ...]:
        """Pools of one service."""
        if not self._by_service:
            found: dict[str, list[PoolOption]] = {}
            for option in self.pools:
                found.setdefault(option.pool.service, []).append(option)
            self._by_service.update({name: tuple(options) for name, options in found.items()})
        return self._by_service.get(service, ())


Ask = tuple[PoolKey, EngineProfile, int, int]
"""Pool, profile, room and the least that is of use: what its largest useful size is searched with."""


def size_pools(problem: Problem, capacity_of: CapacityOf, asks: Sequence[Ask]) -> list[dict[int, Capacity | Unfit]]:
    """Find the useful size of each pool, and return all capacities looked up on the way, by size.

    Parameters
    ----------
    problem : Problem
        Of which only the services and demands of the pools are read.
    """
    services, found = {service.name: service for service in problem.services}, []
    for pool, profile, room, least in asks:
        sizer = Sizer(problem=problem, capacity_of=capacity_of)
        demand = spread_demand(services[pool.service], problem.demands[pool.service])
        _useful_size(pool, profile, demand, room, least, sizer)
        found.append({size: sized for (_, size), sized in sizer.known.items()})
    return found


def find_options(
    problem: Problem,
    sizer: Sizer,
    *,
    refined: Mapping[PoolKey, Collection[int]] | None = None,
    wanted: Collection[PoolKey] = (),
    is_wide: bool = False,
    left_out: Collection[PoolKey] = (),
    crew: Crew | None = None,
) -> Options:
    """List the pools that could serve something, with their steps.

    Parameters
    ----------
    wanted : collection of PoolKey
        Pools that stay listed although others do the same for less: what runs and what the last plan asks for.
    refined : mapping of pool to collection of int
        Sizes that get a step of their own, besides the usual cuts.
    is_wide : bool
        One step for each pool, and none left out: sizing every pool at many sizes is most of the time of a large fleet.
    left_out : collection of PoolKey
        Pools that are not looked at.
    """
    if is_wide and crew is not None:
        crew.start()
    pools: list[PoolOption] = []
    unfit: dict[str, tuple[str, ...]] = {}
    slots = {kind: find_slots(problem, kind) for kind in {kind_of(service) for service in problem.services}}
    levels, sizes_of_nodes = _levels_of(problem, wanted), node_sizes(problem.nodes)
    scarce = frozenset(bay.gpu_class for bay in limited_bays(problem) if bay.shelf is not None)
    able = {service.name: list(_candidates(problem, service, sizer, levels)) for service in problem.services}
    if is_wide and crew is not None and crew.workers > 1:
        _size_ahead(problem, sizer, slots, able, crew)
    for service in sorted(problem.services, key=lambda s: s.name):
        reasons: dict[PoolKey, str] = {}
        found: list[PoolOption] = []
        for pool, profile in (c for c in able[service.name] if c[0] not in left_out):
            mine = slots[kind_of(service)]
            sizes = None if is_wide else (refined or {}).get(pool, ())
            option = _option(problem, service, pool, profile, sizer, mine, sizes)
            if isinstance(option, PoolOption):
                found.append(option)
            else:
                cap = f" at {pool.cap_watts:.0f} W" if pool.cap_watts else ""
                reasons[pool] = f"{pool.role} on {pool.gpu_class}/{pool.config.label}{cap}: {option}"
        kept = (found, wanted, sizes_of_nodes, sizer.pairing, scarce)
        pools += found if is_wide else _without_dominated(service, *kept)
        unfit[service.name] = tuple(reasons[pool] for pool in highest_levels(reasons).values())
    return Options(pools=tuple(sorted(pools, key=lambda o: o.pool)), unfit=unfit)


def _levels_of(problem: Problem, wanted: Collection[PoolKey]) -> Callable[[PoolKey, EngineProfile], Iterable[float]]:
    """Which caps a pool may have: those of its profile where power limits its class, and those that are wanted."""
    limited = limited_classes(problem)
    kept: dict[PoolKey, set[float]] = {}
    for pool in wanted:
        if pool.cap_watts:
            kept.setdefault(pool.uncapped, set()).add(pool.cap_watts)

    def levels(pool: PoolKey, profile: EngineProfile) -> Iterable[float]:
        known = levels_watts(problem, pool.gpu_class, profile) if pool.gpu_class in limited else (0.0,)
        return sorted({*known, *kept.get(pool, ())})

    return levels


def _size_ahead(
    problem: Problem,
    sizer: Sizer,
    slots: Mapping[SlotsKind, Mapping[tuple[str, int], int]],
    able: Mapping[str, Sequence[tuple[PoolKey, EngineProfile]]],
    crew: Crew,
) -> None:
    """Let the crew size every pool that is not known in full, so that what follows looks it up."""
    work, known = list[tuple[Problem, CapacityOf, tuple[Ask, ...]]](), replace(sizer, capacity_of=refuse)
    is_new = not sizer.known
    for service in sorted(problem.services, key=lambda s: s.name):
        asks = []
        for pool, profile in able[service.name]:
            mine = slots[kind_of(service)]
            room = min(service.max_replicas, mine.get((pool.gpu_class, pool.config.gpus), 0))
            ask = (pool, profile, room, least_of(problem, service, pool))
            if room > 0 and (is_new or not _is_known(service, problem.demands[service.name], ask, known)):
                asks.append(ask)
        work.append((of_service(problem, service), sizer.capacity_of, tuple(asks)))
    for (_, _, asked), found in zip(work, crew.each(size_pools, work), strict=True):
        for (pool, *_), sizes in zip(asked, found, strict=True):
            sizer.known.update({(pool, size): sized for size, sized in sizes.items()})


def _is_known(service: ServedModel, demand: Demand, ask: Ask, known: Sizer) -> bool:
    """True when the search for the useful size asks for nothing new."""
    try:
        _useful_size(*ask[:2], spread_demand(service, demand), *ask[2:], known)
    except UnknownSize:
        return False
    return True


def _candidates(
    problem: Problem, service: ServedModel, sizer: Sizer, levels: Callable[[PoolKey, EngineProfile], Iterable[float]]
) -> Iterable[tuple[PoolKey, EngineProfile]]:
    """Every pool that could be asked for, at every cap that it may have."""
    for key, profile in derived(problem, sorted_profiles):
        if key.model != service.model or not service.allows(key.gpu_class, key.config):
            continue
        for role in sorted(service.roles):
            pool = PoolKey(service=service.name, role=role, gpu_class=key.gpu_class, config=key.config)
            for cap_watts in levels(pool, profile):
                level = at_cap(pool, cap_watts)
                if (curves := sizer.profile(level)) is not None:
                    yield level, curves


def _option(
    problem: Problem,
    service: ServedModel,
    pool: PoolKey,
    profile: EngineProfile,
    sizer: Sizer,
    slots: Mapping[tuple[str, int], int],
    refined: Collection[int] | None,
) -> PoolOption | str:
    """Return the pool, or why it cannot be."""
    gpus, demand = pool.config.gpus, problem.demands[service.name]
    quotas = derived(problem, QuotaLedger.of)  # asked, never taken from
    room = min(service.max_replicas, slots.get((pool.gpu_class, gpus), 0))
    if room <= 0 or quotas.room(pool, 1) == 0:
        return no_room(problem, service, pool, quotas)
    least = least_of(problem, service, pool)
    most = _useful_size(pool, profile, spread_demand(service, demand), room, least, sizer)
    if isinstance(most, str):
        return most
    most = min(room, most + int(service.is_spread) + more_beside(problem, service, pool))
    gpu_class = problem.gpu_classes[pool.gpu_class]
    if demand.mix and (too_much := _draws_too_much(pool, profile, gpu_class, sizer, most)):
        return too_much
    return PoolOption(
        pool=pool,
        profile=profile,
        is_anywhere=service.placement is PlacementMode.CLASS,
        gpus=gpus,
        price_usd_per_hour=gpus * gpu_class.price_usd_per_hour,
        reserved_watts=pool_extra_watts(problem.gpu_classes, pool),
        host_watts=gpus * gpu_class.host_share_watts,
        steps=_one_step(pool, profile, most, sizer) if refined is None else _steps(pool, profile, most, refined, sizer),
    )


def _draws_too_much(pool: PoolKey, profile: EngineProfile, kind: GpuClass, sizer: Sizer, replicas: int) -> str:
    """Why a pool's profile says nothing of GPUs that may draw no more than their class allows; empty where it does."""
    cap_watts = pool.cap_watts or kind.max_cap_watts
    if max(profile.prefill_watts_per_gpu, *profile.decode_watts_per_gpu) <= cap_watts or kind.idle_watts > cap_watts:
        return ""
    sized = sizer.at(pool, profile, replicas)
    if isinstance(sized, Unfit) or sized.gpu_watts <= cap_watts:
        return ""
    remedy = "raise maxCapWatts, or give a profile that was measured under it"
    return f"its GPUs would draw {sized.gpu_watts:,.0f} W each, {kind.name} allows {cap_watts:,.0f} W; {remedy}"


def _useful_size(
    pool: PoolKey, profile: EngineProfile, demand: Demand, room: int, least: int, sizer: Sizer
) -> int | str:
    """Replicas with which the pool alone carries the whole demand, within the room; or why it carries nothing."""
    if not demand.mix:
        return min(room, max(1, least))
    best = sizer.at(pool, profile, room)
    if isinstance(best, Unfit):
        return best.reason
    if best.requests_per_s <= 0.0:
        return "it carries no load"

    def wanted(replicas: int) -> int:
        """Replicas needed if each carried what it does in a pool of that size."""
        rate = sizer.carried(pool, profile, replicas) / replicas
        return room if rate <= 0.0 else min(room, max(1, math.ceil(demand.requests_per_s / rate - SERVED_TOLERANCE)))

    low = wanted(room)  # every replica at its best: never too many
    high = low if wanted(low) <= low else wanted(low)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if wanted(middle) <= middle else (middle + 1, high)
    return min(room, max(high, least))


def _steps(
    pool: PoolKey, profile: EngineProfile, most: int, refined: Collection[int], sizer: Sizer
) -> tuple[Step, ...]:
    """Cut 1…most into steps; neighbours with the same coefficients become one."""
    steps: list[Step] = []
    lower, below_watts = 1, profile.idle_watts_per_gpu
    for upper in _cuts(most, refined):
        step = _step(pool, profile, lower, upper, sizer)
        own_watts = step.gpu_watts
        if lower < upper:  # draw rises with load: no size inside draws less than the size below the step
            step = replace(step, gpu_watts=min(step.gpu_watts, below_watts))
        if steps and _alike(steps[-1], step):
            steps[-1] = replace(steps[-1], upper=upper)
        else:
            steps.append(step)
        lower, below_watts = upper + 1, own_watts
    return tuple(steps)


def _one_step(pool: PoolKey, profile: EngineProfile, most: int, sizer: Sizer) -> tuple[Step, ...]:
    """Every size with the rate of the largest and the draw of an idle replica: no size does better."""
    return (replace(_step(pool, profile, 1, most, sizer), gpu_watts=profile.idle_watts_per_gpu),)


def _cuts(most: int, refined: Collection[int]) -> list[int]:
    """Upper ends of the steps: every size when few, geometric when many, and each refined size by itself."""
    cuts = {most}
    size = 1.0
    while int(size) < most:
        cuts.add(int(size))
        size = size + 1.0 if most <= EVERY_SIZE_UP_TO else max(size + 1.0, size * STEP_GROWTH)
    cuts |= {c for size in refined for c in (size - 1, size) if 0 < c < most}
    return sorted(cuts)


def _step(pool: PoolKey, profile: EngineProfile, lower: int, upper: int, sizer: Sizer) -> Step:
    sized = sizer.at(pool, profile, upper) if sizer.problem.demands[pool.service].mix else None
    if not isinstance(sized, Capacity):
        return Step(lower=lower, upper=upper, capacity_requests_per_s=0.0, gpu_watts=profile.idle_watts_per_gpu)
    return Step(lower=lower, upper=upper, capacity_requests_per_s=sized.requests_per_s, gpu_watts=sized.gpu_watts)


def _alike(one: Step, other: Step) -> bool:
    pairs = ((one.capacity_requests_per_s, other.capacity_requests_per_s), (one.gpu_watts, other.gpu_watts))
    return all(abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-9) for a, b in pairs)


def _without_dominated(
    service: ServedModel,
    found: Sequence[PoolOption],
    wanted: Collection[PoolKey],
    node_gpus: Mapping[str, int],
    pairing: Pairing,
    scarce: Collection[str],
) -> list[PoolOption]:
    """Leave out what others of the same class replace at no loss, size for size; wanted pools stay.

    Others are the same pool at a lower cap, and smaller groups, except where replicas are counted, as by their ceiling,
    or by the CPU and the like that each asks for on nodes that may run out (``scarce`` classes): there few large ones
    are worth something.
    """
    kept = [o for o in found if o.pool in wanted or not any(_is_lower_level(p, o) and _replaces(p, o) for p in found)]
    if service.max_replicas < CEILING_SLACK * max((option.most for option in found), default=0):
        return kept

    def is_replaced(large: PoolOption) -> bool:
        whole, asks = node_gpus.get(large.pool.gpu_class, 0), service.requests.get(large.pool.role, {})
        if large.pool.gpu_class in scarce and any(asks.values()):
            return False
        alike = (p for p in kept if p.gpus < large.gpus and pairing.group(p.pool) == pairing.group(large.pool))
        return any(_has_room(p, large, whole) and _replaces(p, large) for p in alike)

    return [o for o in kept if o.pool.uncapped in wanted or not is_replaced(o)]


def _has_room(small: PoolOption, large: PoolOption, node_gpus: int) -> bool:
    """True when as many GPUs in replicas of ``small`` fit where one of ``large`` stands."""
    return groups_taken(large.gpus, small.gpus, node_gpus) * small.gpus >= large.gpus


def _is_lower_level(one: PoolOption, other: PoolOption) -> bool:
    """True for the same pool at a lower cap."""
    return one.pool.uncapped == other.pool.uncapped and one.reserved_watts < other.reserved_watts


def _replaces(small: PoolOption, large: PoolOption) -> bool:
    """True when ``ratio`` replicas of ``small`` do what one of ``large`` does, at every size, for no more watts."""
    same = (small.pool.role, small.pool.gpu_class) == (large.pool.role, large.pool.gpu_class)
    ratio, rest = divmod(large.gpus, small.gpus)
    if not same or rest or ratio * small.reserved_watts > large.reserved_watts * (1.0 + 1e-9):
        return False
    return all(
        (inside := step_at(small, min(step.lower * ratio, small.most))) is not None
        and ratio * inside.capacity_requests_per_s >= step.capacity_requests_per_s
        and inside.gpu_watts <= step.gpu_watts
        for step in large.steps
    )


def step_at(option: PoolOption, replicas: int) -> Step | None:
    """Return the step that holds the size, None outside 1…most."""
    return next((s for s in option.steps if s.lower <= replicas <= s.upper), None)
