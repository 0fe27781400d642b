"""Counts and evidence into a ``Plan``: sorted rows, watts, prices, and what binds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from solvers.fleet import PoolKey
from solvers.plan import Binding, DomainPlan, LinkPlan, Placement, Plan, PoolPlan, ServicePlan, SolveReport, SolveStatus
from solvers.planner.bays.nodes import Counts
from solvers.planner.model.limits_resources import resource_unit, row_units
from solvers.planner.model.relax import Arrays
from solvers.planner.pools.caps import by_pool
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.tally import PoolWorth, Worth
from solvers.problem import Problem, feeds_of
from solvers.spans import node_sizes, nodes_taken

PRICE_FLOOR = 1e-6  # USD/h per unit; smaller duals are rounding
UNITS = {
    "gpus": "group of GPUs",
    "power": "kW",
    "floor": "replica",
    "pin": "replica",
    "locations": "location",
    "share": "percent of the demand",
    "spot": "percent of the demand",
    "link": "percent of the link",
    "ceiling": "replica",
    "quota_gpus": "GPU",
    "quota_power": "kW",
    "resources": "unit",
}
SIGNS = dict.fromkeys((*UNITS, "power_whole"), -1.0)  # every row is written as at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Worth of one more unit of each limit at the relaxation's optimum, USD per hour."""

    by_limit: Mapping[tuple[str, str], float] = field(default_factory=dict)
    by_domain_kilowatt: Mapping[str, float] = field(default_factory=dict)


def read_prices(cells: Cells, arrays: Arrays, duals: Floats) -> Prices:
    """Name the duals of the limits that a user can move; a group's price holds for each of its members."""
    by_limit: dict[tuple[str, str], float] = {}
    for (limit, subject), dual in zip(arrays.rows, duals, strict=True):
        key, price = (limit, subject), SIGNS.get(limit, 0.0) * float(dual)
        if limit in ("share", "spot", "link"):
            price /= 100.0
        if limit == "resources":
            thing, units = row_units(cells, subject)
            key, price = (limit, thing), price / units
        if limit == "power_whole":  # priced by whole replicas of so many watts; said by the kW like the plain limit
            domain, _, watts = subject.removesuffix(" W").rpartition(" by ")
            key, price = ("power", domain), 1000.0 * price / float(watts)
        if price > PRICE_FLOOR:
            by_limit[key] = by_limit.get(key, 0.0) + price
    return Prices(
        by_limit=by_limit,
        by_domain_kilowatt={
            domain: by_limit[("power", group.label)]
            for group in cells.grouping.domain_groups
            for domain in group.domains
            if ("power", group.label) in by_limit
        },
    )


def assemble(
    problem: Problem,
    worth: Worth,
    *,
    prices: Prices,
    bound_usd_per_hour: float,
    rounds: int,
    notes: tuple[str, ...],
    reasons: Mapping[str, tuple[str, ...]],
) -> Plan:
    """Write the decision down."""
    sizes = node_sizes(problem.nodes)
    pools = tuple(sorted((_pool_plan(problem, pool, sizes) for pool in worth.pools), key=lambda row: row.pool))
    return Plan(
        placements=tuple(
            sorted(Placement(pool=pool, location=loc, replicas=n) for (pool, loc), n in by_pool(worth.counts).items())
        ),
        pools=pools,
        services=tuple(
            ServicePlan(
                service=service.name,
                tier=service.tier,
                demand_requests_per_s=worth.demand_per_s[service.name],
                served_requests_per_s=worth.served_per_s[service.name],
                short_because=reasons.get(service.name, ()),
                penalty_usd_per_hour=worth.lacking_usd_per_hour[service.name],
            )
            for service in sorted(problem.services, key=lambda s: s.name)
        ),
        domains=_domain_plans(problem, worth, prices),
        links=tuple(
            LinkPlan(
                link=load.link.name,
                bytes_per_s=load.link.bytes_per_s,
                outgoing_bytes_per_s=load.outgoing_bytes_per_s,
                incoming_bytes_per_s=load.incoming_bytes_per_s,
                usd_per_hour=load.usd_per_hour,
            )
            for load in worth.links
        ),
        bindings=_bindings(prices),
        report=_report(problem, worth, bound_usd_per_hour, rounds, notes),
    )


def _report(problem: Problem, worth: Worth, bound: float, rounds: int, notes: tuple[str, ...]) -> SolveReport:
    value = worth.objective_usd_per_hour
    bound = min(bound, value)
    gap = (value - bound) / max(abs(value), 1e-9)
    proved = gap <= problem.policy.relative_gap + 1e-9
    return SolveReport(
        status=SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE,
        objective_usd_per_hour=value,
        bound_usd_per_hour=bound,
        gap_ratio=gap,
        cost_usd_per_hour=worth.cost_usd_per_hour,
        rounds=rounds,
        notes=notes,
    )


def _pool_plan(problem: Problem, worth: PoolWorth, node_gpus: Mapping[str, int]) -> PoolPlan:
    return PoolPlan(
        pool=worth.pool.uncapped,
        replicas=worth.replicas,
        demand_ratio=worth.share_ratio,
        capacity_requests_per_s=worth.capacity_requests_per_s,
        cap_watts=worth.pool.cap_watts or problem.gpu_classes[worth.pool.gpu_class].max_cap_watts,
        reserved_watts=worth.reserved_watts,
        planned_watts=worth.planned_watts,
        cost_usd_per_hour=worth.cost_usd_per_hour,
        nodes_per_replica=nodes_taken(worth.pool.config.gpus, node_gpus.get(worth.pool.gpu_class, 0)),
    )


def _domain_plans(problem: Problem, worth: Worth, prices: Prices) -> tuple[DomainPlan, ...]:
    reserved = feeds_of(problem).reserved_watts(worth.counts)
    planned = _planned_watts(problem, worth.counts, {w.pool: w.planned_watts / w.replicas for w in worth.pools})
    return tuple(
        DomainPlan(
            domain=name,
            budget_watts=domain.budget_watts,
            reserved_watts=reserved.get(name, 0.0),
            planned_watts=min(planned.get(name, 0.0), reserved.get(name, 0.0)),
            price_usd_per_kilowatt_hour=prices.by_domain_kilowatt.get(name, 0.0),
        )
        for name, domain in sorted(problem.domains.items())
    )


def _planned_watts(problem: Problem, counts: Counts, per_replica: Mapping[PoolKey, float]) -> dict[str, float]:
    """Idle draw of every GPU plus what the replicas are planned to draw above it, by domain."""
    feeds = feeds_of(problem)
    planned, reach = dict(feeds.base_watts), feeds.by_place
    for (pool, location), count in counts.items():
        idle = pool.config.gpus * problem.gpu_classes[pool.gpu_class].idle_watts
        for domain in reach.get((pool.gpu_class, location), ()):
            planned[domain] += count * max(0.0, per_replica[pool] - idle)
    return planned


def unit_of(limit: str, subject: str) -> str:
    """Unit in which a limit is priced.

    >>> unit_of("power", "site"), unit_of("resources", "cpu of rack-1/h100-sxm")
    ('kW', 'core')
    """
    return resource_unit(subject.partition(" of ")[0])[0] if limit == "resources" else UNITS.get(limit, "unit")


def _bindings(prices: Prices) -> tuple[Binding, ...]:
    rows = [
        Binding(limit=limit, subject=subject, unit=unit_of(limit, subject), price_usd_per_hour=price)
        for (limit, subject), price in prices.by_limit.items()
    ]
    return tuple(sorted(rows, key=lambda b: (b.limit, b.subject)))
