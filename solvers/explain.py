"""Why a service got these pools and not others, and what differs between two plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.fleet import ANYWHERE, PoolKey
from solvers.plan import Binding, DomainPlan, Plan, PoolPlan, ServicePlan
from solvers.planner.cells import Cells, build_cells
from solvers.planner.desk import Desk
from solvers.planner.nodes import Room
from solvers.planner.options import CapacityOf, PoolOption
from solvers.planner.quotas import quota_rows
from solvers.problem import Problem
from solvers.sizing import replica_capacity

SECONDS_PER_HOUR = 3600.0
THOUSAND = 1000.0
MOST_REJECTED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPool:
    """A pool of the service. ``usd_per_thousand_requests`` is over the requests that it carries."""

    pool: str
    locations: tuple[tuple[str, int], ...]
    replicas: int
    demand_ratio: float
    used_ratio: float
    usd_per_hour: float
    usd_per_thousand_requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way to carry the whole service: its pools, what it would cost more, and why it was left.

    Attributes
    ----------
    extra_usd_per_hour : float
        Against the chosen pools, at list prices.
    extra_at_scarcity_usd_per_hour : float
        The same when scarce GPUs and watts are paid at the worth that others would pay for them.
    blocked_by : tuple of str
        Limits that the way alone would break beside the rest of the plan.
    """

    pools: tuple[tuple[str, int], ...]
    usd_per_hour: float
    usd_per_thousand_requests: float
    extra_usd_per_hour: float
    extra_at_scarcity_usd_per_hour: float
    blocked_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The evidence for one service, as values; ``text()`` says it in words."""

    service: str
    tier: str
    demand_requests_per_s: float
    served_requests_per_s: float
    usd_per_hour: float
    chosen: tuple[ChosenPool, ...]
    rejected: tuple[Alternative, ...]
    binding: tuple[Binding, ...]
    short_because: tuple[str, ...]
    unfit: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for JSON."""
        return asdict(self)

    def text(self) -> str:
        """A few lines for a terminal."""
        return "\n".join(_lines(self))


def explain(plan: Plan, problem: Problem, service: str, *, capacity_of: CapacityOf = replica_capacity) -> Explanation:
    """Explain the plan of one service.

    Raises
    ------
    InvalidInput
        The plan holds no such service.
    """
    row = next((s for s in plan.services if s.service == service), None)
    if row is None:
        names = ", ".join(s.service for s in plan.services) or "none"
        raise InvalidInput(f"ServedModel/{service}", "", "is not in the plan", f"planned are: {names}")
    desk = Desk.of(problem, capacity_of, plan)
    scarcity = _scarcity(plan, build_cells(problem, desk.options))
    pools = [pool for pool in plan.pools if pool.pool.service == service]
    return Explanation(
        service=service,
        tier=row.tier,
        demand_requests_per_s=row.demand_requests_per_s,
        served_requests_per_s=row.served_requests_per_s,
        usd_per_hour=sum(pool.cost_usd_per_hour for pool in pools),
        chosen=tuple(_chosen(plan, pool, row) for pool in pools),
        rejected=_rejected(plan, desk, service, pools, scarcity),
        binding=plan.bindings,
        short_because=row.short_because,
        unfit=desk.options.unfit.get(service, ()),
    )


def _chosen(plan: Plan, pool: PoolPlan, row: ServicePlan) -> ChosenPool:
    rate = pool.demand_ratio * row.served_requests_per_s
    return ChosenPool(
        pool=str(pool.pool),
        locations=tuple((p.location, p.replicas) for p in plan.placements if p.pool == pool.pool),
        replicas=pool.replicas,
        demand_ratio=pool.demand_ratio,
        used_ratio=rate / pool.capacity_requests_per_s if pool.capacity_requests_per_s > 0.0 else 0.0,
        usd_per_hour=pool.cost_usd_per_hour,
        usd_per_thousand_requests=_per_thousand(pool.cost_usd_per_hour, rate),
    )


def _per_thousand(usd_per_hour: float, requests_per_s: float) -> float:
    return THOUSAND * usd_per_hour / (SECONDS_PER_HOUR * requests_per_s) if requests_per_s > 0.0 else 0.0


def _scarcity(plan: Plan, cells: Cells) -> dict[PoolKey, float]:
    """What one replica of each pool takes of scarce GPUs and watts, USD per hour, at the cheapest of its places."""
    prices = {(b.limit, b.subject): b.price_usd_per_hour for b in plan.bindings}
    least: dict[PoolKey, float] = {}
    quotas = quota_rows(cells.problem)
    for p, g in zip(cells.cell_pool, cells.cell_group, strict=True):
        option, group = cells.pools[p], cells.grouping.groups[g]
        sizes = {o.gpus for o in cells.pools if o.pool.gpu_class == option.pool.gpu_class and o.gpus <= option.gpus}
        groups = sum(prices.get(("gpus", f"{group.label} x{q}"), 0.0) * (option.gpus // q) for q in sizes)
        feeds = sum(
            prices.get(("power", domain.label), 0.0) * _times(cells, option, int(g), d)
            for d, domain in enumerate(cells.grouping.domain_groups)
        )
        allowed = sum(
            prices.get((row.limit, row.subject), 0.0) * row.use(option.pool, cells.problem.gpu_classes)
            for row in quotas
        )
        price = groups + feeds * option.reserved_watts / THOUSAND + allowed
        least[option.pool] = min(least.get(option.pool, float("inf")), price)
    return least


def _times(cells: Cells, option: PoolOption, group: int, domain: int) -> int:
    if option.is_anywhere:
        return cells.grouping.class_charges.get((option.pool.gpu_class, domain), 0)
    return cells.grouping.charges.get((group, domain), 0)


def _ways(options: Sequence[PoolOption]) -> Iterator[tuple[PoolOption, ...]]:
    """Pools that can carry the service alone: one mixed, or a prefill and a decode one."""
    by_role = {role: [o for o in options if o.pool.role is role] for role in Role}
    yield from ((option,) for option in by_role[Role.MIXED])
    yield from product(by_role[Role.PREFILL], by_role[Role.DECODE])


def _rejected(
    plan: Plan, desk: Desk, service: str, pools: Sequence[PoolPlan], scarcity: Mapping[PoolKey, float]
) -> tuple[Alternative, ...]:
    """The best ways that use a pool the plan does not have, cheapest at scarcity first."""
    row = next(s for s in plan.services if s.service == service)
    paid = sum(pool.cost_usd_per_hour for pool in pools)
    scarce = sum(pool.replicas * scarcity.get(pool.pool, 0.0) for pool in pools)
    mine = {pool.pool for pool in pools}
    found: list[tuple[float, Alternative]] = []
    for way in _ways(desk.options.of(service)):
        if {option.pool for option in way} <= mine:
            continue
        counts = _counts_for_all(way, row.demand_requests_per_s)
        cost = sum(_usd_per_hour(desk, option, count) for option, count in counts)
        extra = cost + sum(count * scarcity.get(option.pool, 0.0) for option, count in counts) - paid - scarce
        alternative = Alternative(
            pools=tuple((str(option.pool), count) for option, count in counts),
            usd_per_hour=cost,
            usd_per_thousand_requests=_per_thousand(cost, row.demand_requests_per_s),
            extra_usd_per_hour=cost - paid,
            extra_at_scarcity_usd_per_hour=extra,
            blocked_by=(),
        )
        found.append((extra, alternative))
    best = sorted(found, key=lambda pair: (pair[0], pair[1].pools))[:MOST_REJECTED]
    return tuple(_with_blocks(plan, desk, service, alternative) for _, alternative in best)


def _counts_for_all(way: Sequence[PoolOption], demand_per_s: float) -> list[tuple[PoolOption, int]]:
    """Replicas with which each pool would carry the whole demand, more than the fleet holds if it takes more."""
    counts = []
    for option in way:
        rate = option.steps[-1].capacity_requests_per_s
        needed = math.ceil(demand_per_s / rate - 1e-9) if rate > 0.0 else option.most
        counts.append((option, max(option.most, needed)))
    return counts


def _usd_per_hour(desk: Desk, option: PoolOption, count: int) -> float:
    """Cost of the pool at a size, energy included."""
    return count * option.step_usd_per_hour(option.steps[-1], desk.problem.policy.energy_usd_per_kilowatt_hour)


def _with_blocks(plan: Plan, desk: Desk, service: str, way: Alternative) -> Alternative:
    """Try the way beside what all other services hold, and name what has no room."""
    room = Room.of(desk.problem)
    room.take_all({(p.pool, p.location): p.replicas for p in plan.placements if p.pool.service != service})
    options = {str(option.pool): option for option in desk.options.of(service)}
    blocked = []
    for name, count in way.pools:
        option = options[name]
        bays = room.bays_of(option.pool)
        added = sum(room.spread(option.pool, count, bays, ANYWHERE if option.is_anywhere else None).values())
        if added < count:
            blocked.append(f"{name}: room for {added} of {count} replicas beside the other services")
    return replace(way, blocked_by=tuple(blocked))


def _lines(e: Explanation) -> Iterator[str]:
    served = f"{e.served_requests_per_s:g} of {e.demand_requests_per_s:g} requests/s served"
    yield f"{e.service} ({e.tier}): {served}, {e.usd_per_hour:.2f} USD/h"
    for pool in e.chosen:
        where = ", ".join(f"{count} at {'any node' if at == ANYWHERE else at}" for at, count in pool.locations)
        yield f"  {pool.pool}: {where}"
        use = f"{pool.demand_ratio:.0%} of the requests, {pool.used_ratio:.0%} of its capacity"
        yield f"    {use}, {pool.usd_per_thousand_requests:.4f} USD per 1000 requests"
    for way in e.rejected:
        names = " + ".join(f"{count} of {name}" for name, count in way.pools)
        yield f"  rather than {names}: {way.usd_per_hour:.2f} USD/h, {way.extra_usd_per_hour:+.2f} against the plan"
        if abs(way.extra_at_scarcity_usd_per_hour - way.extra_usd_per_hour) > 0.005:
            yield f"    {way.extra_at_scarcity_usd_per_hour:+.2f} when scarce GPUs and watts are paid for"
        yield from (f"    {block}" for block in way.blocked_by)
    for limit in e.binding:
        worth = f"one more {limit.unit} is worth {limit.price_usd_per_hour:.2f} USD/h"
        yield f"  {limit.limit}[{limit.subject}] binds: {worth}"
    yield from (f"  short because {reason}" for reason in e.short_because)
    yield from (f"  cannot serve: {reason}" for reason in e.unfit)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CountChange:
    """Replicas of one pool at one location in two plans."""

    pool: PoolKey
    location: str
    from_replicas: int
    to_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DomainChange:
    """Reserved and planned watts of one power domain, new less old."""

    domain: str
    reserved_watts: float
    planned_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDifference:
    """What changes from one plan to another; rows that stay as they are do not appear."""

    placements: tuple[CountChange, ...]
    domains: tuple[DomainChange, ...]
    served_requests_per_s: Mapping[str, float]
    cost_usd_per_hour: float

    @property
    def starting_replicas(self) -> int:
        return sum(max(0, row.to_replicas - row.from_replicas) for row in self.placements)

    @property
    def stopping_replicas(self) -> int:
        return sum(max(0, row.from_replicas - row.to_replicas) for row in self.placements)

    @property
    def is_empty(self) -> bool:
        return not self.placements


def difference(old: Plan, new: Plan) -> PlanDifference:
    """Compare two plans, row by row; numbers are new less old."""
    before = {(p.pool, p.location): p.replicas for p in old.placements}
    after = {(p.pool, p.location): p.replicas for p in new.placements}
    was, now = ({d.domain: d for d in plan.domains} for plan in (old, new))
    served, serves = ({s.service: s.served_requests_per_s for s in plan.services} for plan in (old, new))
    changes = {name: serves.get(name, 0.0) - served.get(name, 0.0) for name in sorted({*served, *serves})}
    return PlanDifference(
        placements=tuple(
            CountChange(pool=key[0], location=key[1], from_replicas=before.get(key, 0), to_replicas=after.get(key, 0))
            for key in sorted({*before, *after})
            if before.get(key, 0) != after.get(key, 0)
        ),
        domains=tuple(
            change
            for name in sorted({*was, *now})
            if (change := _domain_change(name, was.get(name), now.get(name))).reserved_watts or change.planned_watts
        ),
        served_requests_per_s={name: change for name, change in changes.items() if change},
        cost_usd_per_hour=new.report.cost_usd_per_hour - old.report.cost_usd_per_hour,
    )


def _domain_change(name: str, old: DomainPlan | None, new: DomainPlan | None) -> DomainChange:
    reserved = (new.reserved_watts if new else 0.0) - (old.reserved_watts if old else 0.0)
    planned = (new.planned_watts if new else 0.0) - (old.planned_watts if old else 0.0)
    return DomainChange(domain=name, reserved_watts=reserved, planned_watts=planned)
