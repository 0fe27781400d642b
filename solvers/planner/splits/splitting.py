"""Services whose routers split by size, as several plain services, and the plan of those as one of the whole.

A part is a range of prompt lengths: what a router knows when a request comes. It is planned like any service, with the
mix, rate and floor that are its own, under the name ``namespace/name:p0-2047``; outside the planner the range stands in
``PoolKey.sizes``. Pure: which ranges are worth a part is decided elsewhere (``cuts.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ulp

from solvers.fleet import PoolKey
from solvers.plan import PartPlan, Placement, Plan, PoolPlan, ServicePlan, ServiceWhy, SolveStatus
from solvers.problem import Problem
from solvers.sizes import SizeRange, tiles
from solvers.workload import Demand, ServedModel, SizeBucket

Cuts = Mapping[str, tuple[SizeRange, ...]]
"""Ranges of each service that is cut, ascending; services that are not named stay whole."""

Place = tuple[PoolKey, str]


def part_name(service: str, sizes: SizeRange) -> str:
    """Name of the plain service that stands for a part; no Kubernetes name holds a colon."""
    return f"{service}:{sizes.label}"


def whole_name(name: str) -> tuple[str, str]:
    """Service and label of its range; the label is empty for a service that is no part.

    >>> whole_name("team-a/chat:p0-2047"), whole_name("team-a/chat")
    (('team-a/chat', 'p0-2047'), ('team-a/chat', ''))
    """
    service, _, label = name.partition(":")
    return service, label


def as_part(pool: PoolKey) -> PoolKey:
    """The pool as a plain service's."""
    return replace(pool, service=f"{pool.service}:{pool.sizes}", sizes="") if pool.sizes else pool


def as_whole(pool: PoolKey) -> PoolKey:
    """The pool as one of the service that its part belongs to."""
    service, label = whole_name(pool.service)
    return replace(pool, service=service, sizes=label) if label else pool


def cuts_of(plan: Plan) -> dict[str, tuple[SizeRange, ...]]:
    """Ranges that the plan's services are cut into."""
    found: dict[str, list[SizeRange]] = {}
    for row in plan.parts:
        found.setdefault(row.service, []).append(SizeRange.parse(row.sizes))
    return {service: tuple(sorted(ranges)) for service, ranges in sorted(found.items())}


def cuts_running(problem: Problem) -> dict[str, tuple[SizeRange, ...]]:
    """Ranges that run, of services where they hold every prompt once."""
    found: dict[str, set[SizeRange]] = {}
    for (pool, _), count in problem.running.items():
        if pool.sizes and count > 0:
            found.setdefault(pool.service, set()).add(SizeRange.parse(pool.sizes))
    named = {service: tuple(sorted(ranges)) for service, ranges in sorted(found.items())}
    return {service: ranges for service, ranges in named.items() if tiles(ranges)}


def split(problem: Problem, cuts: Cuts) -> Problem:
    """Put the parts in the place of the services that are cut.

    The parts' demands add up to the service's exactly. Floors and ceilings are shared out replica by replica: one for
    each part that is asked anything, then by tokens asked for each replica had, so that they add up to the service's
    too. What else a service asks (spread, spot, guarantees) each part keeps for itself, and with it the whole. Replicas
    that run for ranges of another cut are left out: they stop, whatever is decided (``dropped``).
    """
    services: list[ServedModel] = []
    demands = {name: demand for name, demand in problem.demands.items() if name not in cuts}
    for service in problem.services:
        ranges = cuts.get(service.name, ())
        services += _parts_of(service, problem.demands[service.name], ranges) if ranges else [service]
        if ranges:
            demands |= {demand.service: demand for demand in demands_of(problem.demands[service.name], ranges)}
    running = {place: count for place, count in problem.running.items() if _is_kept(place[0], cuts)}
    return replace(
        problem,
        services=tuple(services),
        demands=demands,
        running={(as_part(pool), location): count for (pool, location), count in sorted(running.items())},
    )


def _is_kept(pool: PoolKey, cuts: Cuts) -> bool:
    return pool.sizes in {sizes.label for sizes in cuts.get(pool.service, ())} or (
        not pool.sizes and pool.service not in cuts
    )


def dropped(problem: Problem, cuts: Cuts) -> dict[Place, int]:
    """Replicas that run for other ranges than those of the cuts."""
    return {place: count for place, count in sorted(problem.running.items()) if not _is_kept(place[0], cuts)}


def demands_of(demand: Demand, ranges: Sequence[SizeRange]) -> tuple[Demand, ...]:
    """Demand of each range; rates are whole multiples of the last binary place of their sum, so that it is exact."""
    mixes = [_mix_within(demand.mix, sizes) for sizes in ranges]
    weights = [sum(bucket.weight_ratio for bucket in mix) for mix in mixes]
    rates = _rates(demand.requests_per_s, weights)
    return tuple(
        Demand(
            service=part_name(demand.service, sizes),
            requests_per_s=rate,
            mix=tuple(replace(bucket, weight_ratio=bucket.weight_ratio / weight) for bucket in mix),
            source=demand.source,
        )
        for sizes, mix, weight, rate in zip(ranges, mixes, weights, rates, strict=True)
    )


def _mix_within(mix: Sequence[SizeBucket], sizes: SizeRange) -> list[SizeBucket]:
    return [bucket for bucket in mix if bucket.weight_ratio > 0.0 and sizes.holds(bucket.prompt_tokens)]


def _rates(rate: float, weights: Sequence[float]) -> list[float]:
    """Share out the rate by weight, the rest of the rounding to the heaviest."""
    total, unit = sum(weights), ulp(rate)
    if total <= 0.0 or rate <= 0.0:
        return [0.0] * len(weights)
    units = [int(rate * (weight / total) / unit) for weight in weights]
    units[max(range(len(units)), key=lambda i: (weights[i], -i))] += int(rate / unit) - sum(units)
    return [count * unit for count in units]


def _parts_of(service: ServedModel, demand: Demand, ranges: Sequence[SizeRange]) -> list[ServedModel]:
    tokens = [tokens_within(demand.mix, sizes) for sizes in ranges]
    floors, ceilings = (_shared_out(count, tokens) for count in (service.min_replicas, service.max_replicas))
    return [
        replace(
            service,
            name=part_name(service.name, sizes),
            min_replicas=floor,
            max_replicas=ceiling,
            splits_by_size=False,
        )
        for sizes, floor, ceiling in zip(ranges, floors, ceilings, strict=True)
    ]


def tokens_within(mix: Sequence[SizeBucket], sizes: SizeRange) -> float:
    """Tokens of prompts and outputs that the range asks for, per request of the whole."""
    return sum(b.weight_ratio * (b.prompt_tokens + b.output_tokens) for b in _mix_within(mix, sizes))


def _shared_out(count: int, weights: Sequence[float]) -> list[int]:
    """Share out whole numbers: one for each, then to most weight for what it has (Adams); more takes none away.

    Parts of no weight get nothing, unless none has any.
    """
    given = [0] * len(weights)
    able = [i for i, weight in enumerate(weights) if weight > 0.0] or list(range(len(weights)))
    for _ in range(count):
        given[max(able, key=lambda i: (given[i] == 0, weights[i] / max(1, given[i]), -i))] += 1
    return given


def split_plan(plan: Plan, cuts: Cuts) -> Plan:
    """The plan as one of the parts: the inverse of ``joined``. Pools of other ranges are left out.

    Objective, bound, notes and prices stay as they are said of the whole.
    """
    served = {row.service: row.served_requests_per_s for row in plan.services}
    parts = {f"{row.service}:{row.sizes}": row for row in plan.parts}
    rows = [row for row in plan.services if row.service not in cuts]
    for row in plan.services:
        rows += [_as_service(row, parts[name]) for name in _names(row.service, cuts) if name in parts]
    return replace(
        plan,
        placements=tuple(sorted(replace(p, pool=as_part(p.pool)) for p in plan.placements if _is_kept(p.pool, cuts))),
        pools=_sorted(_as_part_row(p, served, parts) for p in plan.pools if _is_kept(p.pool, cuts)),
        services=tuple(sorted(rows, key=lambda row: row.service)),
        parts=(),
        splits=(),
    )


def opened(plan: Plan, problem: Problem) -> tuple[Plan, Problem]:
    """The plan and its problem of plain services, parts among them; as they are where nothing is split."""
    cuts = cuts_of(plan)
    whole = not cuts and not any(pool.sizes for pool, _ in problem.running)
    return (plan, problem) if whole else (split_plan(plan, cuts), split(problem, cuts))


def _sorted(pools: Iterator[PoolPlan]) -> tuple[PoolPlan, ...]:
    return tuple(sorted(pools, key=lambda row: row.pool))


def _names(service: str, cuts: Cuts) -> list[str]:
    return [part_name(service, sizes) for sizes in cuts.get(service, ())]


def _as_service(whole: ServicePlan, part: PartPlan) -> ServicePlan:
    return replace(
        whole,
        service=f"{part.service}:{part.sizes}",
        demand_requests_per_s=part.demand_requests_per_s,
        served_requests_per_s=part.served_requests_per_s,
    )


def _as_part_row(row: PoolPlan, served: Mapping[str, float], parts: Mapping[str, PartPlan]) -> PoolPlan:
    pool = as_part(row.pool)
    part = parts.get(pool.service)
    if part is None:
        return replace(row, pool=pool)
    ratio = row.demand_ratio * served.get(row.pool.service, 0.0) / max(part.served_requests_per_s, 1e-300)
    return replace(row, pool=pool, demand_ratio=ratio if part.served_requests_per_s > 0.0 else 0.0)


def joined(plan: Plan, problem: Problem, cuts: Cuts) -> Plan:
    """Write a plan of parts down as one of the services.

    Parameters
    ----------
    problem : Problem
        What was split.
    """
    rows = {row.service: row for row in plan.services}
    services = [_joined_service(service, problem, rows, cuts) for service in problem.services]
    served = {row.service: row.served_requests_per_s for row in (*services, *plan.services)}
    return replace(
        plan,
        placements=tuple(
            sorted(Placement(pool=as_whole(p.pool), location=p.location, replicas=p.replicas) for p in plan.placements)
        ),
        pools=_sorted(_as_whole_row(row, served) for row in plan.pools),
        services=tuple(sorted(services, key=lambda row: row.service)),
        bindings=tuple(replace(row, subject=spoken(row.subject, cuts)) for row in plan.bindings),
        relief=tuple(replace(row, subject=spoken(row.subject, cuts)) for row in plan.relief),
        whys=_joined_whys(plan),
        parts=tuple(_part_row(rows[name], sizes) for name, sizes in _named(cuts)),
    )


def _named(cuts: Cuts) -> Iterator[tuple[str, SizeRange]]:
    for service, ranges in sorted(cuts.items()):
        yield from ((part_name(service, sizes), sizes) for sizes in ranges)


def _part_row(row: ServicePlan, sizes: SizeRange) -> PartPlan:
    return PartPlan(
        service=whole_name(row.service)[0],
        sizes=sizes.label,
        demand_requests_per_s=row.demand_requests_per_s,
        served_requests_per_s=row.served_requests_per_s,
    )


def _joined_service(service: ServedModel, problem: Problem, rows: Mapping[str, ServicePlan], cuts: Cuts) -> ServicePlan:
    parts = [rows[name] for name in _names(service.name, cuts)]
    if not parts:
        return rows[service.name]
    demand = problem.demands[service.name].requests_per_s
    is_served = all(part.unserved_requests_per_s <= 0.0 for part in parts)
    reasons = (f"{whole_name(p.service)[1]}: {spoken(why, cuts)}" for p in parts for why in p.short_because)
    return ServicePlan(
        service=service.name,
        tier=service.tier,
        demand_requests_per_s=demand,
        served_requests_per_s=demand if is_served else sum(part.served_requests_per_s for part in parts),
        short_because=tuple(dict.fromkeys(reasons)),
        penalty_usd_per_hour=sum(part.penalty_usd_per_hour for part in parts),
    )


def _as_whole_row(row: PoolPlan, served: Mapping[str, float]) -> PoolPlan:
    pool = as_whole(row.pool)
    if pool == row.pool:
        return row
    whole = served[pool.service]
    return replace(row, pool=pool, demand_ratio=row.demand_ratio * served[row.pool.service] / whole if whole else 0.0)


def _joined_whys(plan: Plan) -> tuple[ServiceWhy, ...]:
    lines: dict[str, list[str]] = {}
    for row in plan.whys:
        service, label = whole_name(row.service)
        lines.setdefault(service, []).extend(f"{label}: {line}" if label else line for line in row.lines)
    return tuple(ServiceWhy(service=service, lines=tuple(said)) for service, said in sorted(lines.items()))


def spoken(text: str, cuts: Cuts) -> str:
    """Names of parts as a reader writes them: the service, then the range."""
    for name, sizes in _named(cuts):
        text = text.replace(name, f"{whole_name(name)[0]} {sizes.label}")
    return text


def with_evidence(plan: Plan, *, stops_usd_per_hour: float, bound_usd_per_hour: float, gap_ratio: float) -> Plan:
    """The plan with another bound, and with stops that were not counted in its objective.

    Parameters
    ----------
    bound_usd_per_hour : float, USD per hour
        Of all plans in question, stops included.
    gap_ratio : float
        At which the plan counts as optimal.
    """
    value = plan.report.objective_usd_per_hour + stops_usd_per_hour
    bound = min(bound_usd_per_hour, value)
    gap = (value - bound) / max(abs(value), 1e-9)
    status = SolveStatus.OPTIMAL if gap <= gap_ratio + 1e-9 else SolveStatus.FEASIBLE
    report = replace(plan.report, status=status, objective_usd_per_hour=value, bound_usd_per_hour=bound, gap_ratio=gap)
    return replace(plan, report=report)
