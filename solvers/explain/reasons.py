"""What holds a decision for one service where it is: why this count, for which demand, at which prices of GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from solvers.explain.ways import Ranked
from solvers.fleet import PoolKey
from solvers.plan import Plan, PoolPlan, ServicePlan
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.caps import at_cap, levels_watts, limited_classes, planned_counts, planned_levels
from solvers.planner.pools.floors import Places, missing_replicas, places_of
from solvers.planner.pools.spread import survivable_per_s
from solvers.planner.pools.tally import ROUNDING, carried_by_role, pairs_of, rates_by_place
from solvers.power import pool_extra_watts
from solvers.workload import ServedModel

MOST_SWITCHES = 4
FARTHEST = 5.0  # times the price, or the price over it; beyond, it says nothing about GPUs that are for sale
LEAST_CHANGE = 1e-9  # USD per GPU and hour; nearer is a tie


class KeptBy(StrEnum):
    """Why a pool has no replica fewer."""

    DEMAND = "demand"
    FLOOR = "minReplicas or a pin"
    CHURN = "what it costs to move"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountReason:
    """What one replica fewer of a pool would mean."""

    pool: str
    replicas: int
    kept_by: KeptBy
    one_less_serves_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapReason:
    """What a pool's power cap costs and saves against the class's highest, and what the next lower one would.

    Attributes
    ----------
    speed_ratio : float
        What the pool carries of what it would carry uncapped.
    saved_watts : float
        Of the reserved watts of the whole pool.
    worth_usd_per_hour : float
        Of those watts, at the worth that others would pay for them; 0 where nothing tells it.
    lower_cap_watts, lower_speed_ratio : float
        The next lower cap that the profile knows and the class allows, and what the pool would carry at it of what it
        carries now; 0 where it has none.
    """

    pool: str
    cap_watts: float
    max_cap_watts: float
    speed_ratio: float
    saved_watts: float
    worth_usd_per_hour: float
    lower_cap_watts: float = 0.0
    lower_speed_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandRange:
    """The same replicas serve all of it up to ``most``; at or below ``least`` one of them could go."""

    least_requests_per_s: float
    most_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSwitch:
    """The price of a GPU class at which another way becomes the cheaper one, everything else as it is.

    ``at`` above ``now`` makes the service leave the class, below makes it come.
    """

    gpu_class: str
    now_usd_per_hour: float
    at_usd_per_hour: float
    pools: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewer:
    """A service with one replica fewer of a pool, taken where that does least harm."""

    pool: PoolPlan
    carries_requests_per_s: float
    breaks_floor: bool


def fewer_by_one(desk: Desk, plan: Plan, pools: Sequence[PoolPlan]) -> tuple[Fewer, ...]:
    """Take one replica of each pool of a service away, one pool at a time."""
    levels, counts = planned_levels(desk.problem, plan), planned_counts(desk.problem, plan)
    found = []
    for pool in pools:
        service = _service(desk, pool.pool.service)
        places = places_of(service, counts)
        missing, level = missing_replicas(service, places), levels[pool.pool]
        where = sorted(location for other, location in places if other == level)
        tried = []
        for location in where if service.is_spread or service.pins or service.pairs_locally else where[:1]:
            less = {**places, (level, location): places[level, location] - 1}
            tried.append((missing_replicas(service, less) > missing, -carries_per_s(desk, service, less)))
        breaks, carries = min(tried)
        found.append(Fewer(pool=pool, carries_requests_per_s=-carries, breaks_floor=breaks))
    return tuple(found)


def _service(desk: Desk, name: str) -> ServedModel:
    return next(service for service in desk.problem.services if service.name == name)


def carries_per_s(desk: Desk, service: ServedModel, places: Places) -> float:
    """Requests per second that the replicas serve, with what the loss of a location must leave counted in."""
    able_per_s = pairs_of(desk.problem, desk.sizer, service, places).able_per_s
    return min(able_per_s, survivable_per_s(service, rates_by_place(desk.problem, desk.sizer, places)))


def count_reasons(row: ServicePlan, fewer: Sequence[Fewer]) -> tuple[CountReason, ...]:
    """Say what keeps each pool from one replica fewer."""
    reasons = []
    for less in fewer:
        serves = min(less.carries_requests_per_s, row.served_requests_per_s)
        if serves < row.served_requests_per_s * (1.0 - ROUNDING):
            kept_by = KeptBy.DEMAND
        else:
            kept_by = KeptBy.FLOOR if less.breaks_floor else KeptBy.CHURN
        reasons.append(
            CountReason(
                pool=str(less.pool.pool),
                replicas=less.pool.replicas,
                kept_by=kept_by,
                one_less_serves_requests_per_s=serves,
            )
        )
    return tuple(reasons)


def demand_range(desk: Desk, plan: Plan, row: ServicePlan, fewer: Sequence[Fewer]) -> DemandRange | None:
    """Demand for which the plan's replicas are neither too few nor, one by one, too many; None without replicas."""
    if not fewer:
        return None
    service = _service(desk, row.service)
    able = carries_per_s(desk, service, places_of(service, planned_counts(desk.problem, plan)))
    spare = [less.carries_requests_per_s for less in fewer if not less.breaks_floor]
    least = min(max(spare, default=0.0), row.served_requests_per_s)
    is_short = (
        row.unserved_requests_per_s > ROUNDING * row.demand_requests_per_s
    )  # links may be in the way, not replicas
    most = row.served_requests_per_s if is_short else max(able, row.served_requests_per_s)
    return DemandRange(least_requests_per_s=least, most_requests_per_s=most)


def cap_reasons(
    desk: Desk, plan: Plan, pools: Sequence[PoolPlan], scarce: Mapping[PoolKey, float]
) -> tuple[CapReason, ...]:
    """Set every pool whose cap was chosen beside itself at the highest cap and at the next lower one."""
    levels, reasons = planned_levels(desk.problem, plan), []
    for pool in pools:
        level, kind = levels[pool.pool], desk.problem.gpu_classes[pool.pool.gpu_class]
        lower = _next_lower(desk, level)
        if not level.cap_watts and lower is None:
            continue
        each = (level, pool.pool, lower or level)
        rates = [carried_by_role(desk.problem, desk.sizer, {p: pool.replicas})[p.role] for p in each]
        able, uncapped, slower = rates
        saved = [pool_extra_watts(desk.problem.gpu_classes, p) for p in (pool.pool, level)]
        reasons.append(
            CapReason(
                pool=str(pool.pool),
                cap_watts=pool.cap_watts,
                max_cap_watts=kind.max_cap_watts,
                speed_ratio=able / uncapped if uncapped > 0.0 else 1.0,
                saved_watts=pool.replicas * (saved[0] - saved[1]),
                worth_usd_per_hour=pool.replicas * (scarce.get(pool.pool, 0.0) - scarce.get(level, 0.0)),
                lower_cap_watts=lower.cap_watts if lower else 0.0,
                lower_speed_ratio=slower / able if lower and able > 0.0 else 0.0,
            )
        )
    return tuple(reasons)


def _next_lower(desk: Desk, level: PoolKey) -> PoolKey | None:
    """The pool at the next lower cap that it may have; None where there is none, or caps are not chosen."""
    profile = desk.sizer.profile(level.uncapped)
    if profile is None or level.gpu_class not in limited_classes(desk.problem):
        return None
    known = levels_watts(desk.problem, level.gpu_class, profile)
    below = [watts for watts in known if 0.0 < watts < (level.cap_watts or float("inf"))]
    return at_cap(level, max(below)) if below else None


def price_switches(desk: Desk, pools: Sequence[PoolPlan], ways: Sequence[Ranked]) -> tuple[PriceSwitch, ...]:
    """For every GPU class, the nearest prices at which one of the ways would cost no more than the chosen pools.

    Scarce GPUs and watts stay as dear as they are; ways that seem cheaper now are left because something blocks them
    or moving costs more, and say nothing about prices.
    """
    mine = _gpus((pool.pool, pool.replicas) for pool in pools)
    nearest: dict[tuple[str, bool], PriceSwitch] = {}
    for ranked in ways:
        extra, theirs = ranked.extra_at_scarcity_usd_per_hour, _gpus((o.pool, n) for o, n in ranked.way)
        for name in sorted({*mine, *theirs}) if extra > 0.0 and mine else ():
            fewer = mine.get(name, 0) - theirs.get(name, 0)
            now = desk.problem.gpu_classes[name].price_usd_per_hour
            at = now + extra / fewer if fewer else -1.0
            if abs(at - now) <= LEAST_CHANGE or not now / FARTHEST <= at <= now * FARTHEST:
                continue
            key, counts = (name, at > now), tuple((str(o.pool), n) for o, n in ranked.way)
            best = nearest.get(key)
            if best is None or abs(at - now) < abs(best.at_usd_per_hour - now):
                nearest[key] = PriceSwitch(gpu_class=name, now_usd_per_hour=now, at_usd_per_hour=at, pools=counts)
    by_share = sorted(
        nearest.values(), key=lambda s: (abs(s.at_usd_per_hour / max(s.now_usd_per_hour, 1e-9) - 1.0), s.gpu_class)
    )
    return tuple(by_share[:MOST_SWITCHES])


def _gpus(counts: Iterable[tuple[PoolKey, int]]) -> dict[str, int]:
    held: dict[str, int] = {}
    for pool, count in counts:
        held[pool.gpu_class] = held.get(pool.gpu_class, 0) + count * pool.config.gpus
    return held
