"""The check: every limit recomputed in plain arithmetic, from the plan and the problem alone.

Shares no code with the modeller. What it takes from elsewhere is the types and the one watt accounting
(``solvers.power``). An empty answer means that the plan may be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from solvers.engine import ProfileKey, Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.plan import Placement, Plan, SolveStatus
from solvers.problem import Problem, feeds_of
from solvers.verify.claims import CapacityOf, claims, penalties
from solvers.verify.links import links
from solvers.verify.nodes import groups
from solvers.verify.pairs import pairs
from solvers.verify.parts import part_sizes, parts
from solvers.verify.rows import placements_of, pools_of
from solvers.verify.rules import OWNED, locations, losses, on_spot, pins, quotas, relief, terms_by_bay
from solvers.workload import PlacementMode, ServedModel

RELATIVE = 1e-6
WATTS = 0.01  # far below one GPU's draw, far above the rounding of sums
MONEY_USD_PER_HOUR = 1e-6


def verify(plan: Plan, problem: Problem, *, capacity_of: CapacityOf | None = None) -> tuple[str, ...]:
    """Return every violation, with names and numbers; empty when the plan is sound.

    Parameters
    ----------
    capacity_of : callable, optional
        Sizing by which what pools claim to carry and draw is recomputed; without it the claims are taken as said.
    """
    found = (*verify_places(plan, problem), *verify_service(plan, problem), *verify_evidence(plan, problem))
    return found if found or capacity_of is None else tuple(claims(plan, problem, capacity_of))


def verify_places(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """Check what a step of a rollout relies on: counts, allowed places, whole groups on nodes, power."""
    shape = tuple(_shape(plan))
    if shape:
        return shape  # sums over malformed rows would only repeat the fault
    unknown = (*_allowed(plan, problem), *part_sizes(plan, problem))
    return unknown or (
        *groups(plan, problem),
        *_power(plan, problem),
        *_ceilings(plan, problem),
        *quotas(plan, problem),
    )


def verify_service(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """Check demand: rates, shares, capacity, floors, and that whatever is short says why."""
    found = list(_services_match(plan, problem))
    return (
        tuple(found)
        if found
        else (
            *_shares(plan),
            *_capacities(plan),
            *pairs(plan, problem),
            *links(plan, problem),
            *_floors(plan, problem),
            *losses(plan, problem),
            *on_spot(plan, problem),
            *(() if tuple(part_sizes(plan, problem)) else parts(plan, problem)),
        )
    )


def verify_evidence(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """Recompute money, watts, objective and gap."""
    if tuple(_shape(plan)) or tuple(_allowed(plan, problem)):
        return ()
    return (*_costs(plan, problem), *_watts(plan, problem), *_objective(plan, problem))


def _close(one: float, other: float, absolute: float = 1e-9) -> bool:
    return abs(one - other) <= max(absolute, RELATIVE * max(abs(one), abs(other)))


def _totals(plan: Plan) -> dict[PoolKey, int]:
    totals: dict[PoolKey, int] = {}
    for row in plan.placements:
        totals[row.pool] = totals.get(row.pool, 0) + row.replicas
    return totals


def _rows_of_pool(plan: Plan) -> dict[PoolKey, list[Placement]]:
    rows: dict[PoolKey, list[Placement]] = {}
    for row in plan.placements:
        rows.setdefault(row.pool, []).append(row)
    return rows


def _shape(plan: Plan) -> Iterator[str]:
    """Whole positive counts, sorted rows without repeats, pools that add up to their placements."""
    for row in plan.placements:
        if type(row.replicas) is not int or row.replicas <= 0:
            yield f"placements[{row.pool}@{row.location}]: {row.replicas!r} replicas, must be a whole number above 0"
            return
        if row.pool.cap_watts:
            yield f"placements[{row.pool}@{row.location}]: the cap belongs into the pool's row, not into its name"
            return
    places = [(row.pool, row.location) for row in plan.placements]
    yield from _ordered("placements", places)
    yield from _ordered("pools", [p.pool for p in plan.pools])
    yield from _ordered("services", [s.service for s in plan.services])
    totals = _totals(plan)
    for pool in plan.pools:
        if pool.replicas != totals.pop(pool.pool, 0):
            yield f"pools[{pool.pool}]: {pool.replicas} replicas, its placements sum to another number"
    for name, count in totals.items():
        yield f"pools[{name}]: missing, {count} replicas are placed"


def _ordered(what: str, keys: Sequence[Any]) -> Iterator[str]:
    for one, other in pairwise(keys):
        if not one < other:
            label = "@".join(map(str, other)) if isinstance(other, tuple) else other
            yield f"{what}[{label}]: rows are not sorted or repeat"


def _allowed(plan: Plan, problem: Problem) -> Iterator[str]:
    services = {service.name: service for service in problem.services}
    largest: dict[tuple[str, str], int] = {}  # GPUs of the largest node, by class and location
    for node in problem.nodes:
        for at in ((node.gpu_class, node.location), (node.gpu_class, ANYWHERE)):
            largest[at] = max(largest.get(at, 0), node.gpus_total)
    for row in plan.placements:
        service = services.get(row.pool.service)
        fault = "no such service" if service is None else _forbidden(row.pool, row.location, service, problem, largest)
        if fault:
            yield f"placements[{row.pool}@{row.location}]: {fault}"


def _forbidden(
    pool: PoolKey, location: str, service: ServedModel, problem: Problem, largest: Mapping[tuple[str, str], int]
) -> str:
    is_anywhere = location == ANYWHERE
    key = ProfileKey(model=service.model, gpu_class=pool.gpu_class, config=pool.config)
    checks = (
        (pool.gpu_class in problem.gpu_classes, "no such GPU class"),
        (pool.role in service.roles, f"role is not among {', '.join(service.roles)}"),
        (not service.gpu_classes or pool.gpu_class in service.gpu_classes, "class is not allowed by the service"),
        (not pool.sizes or service.splits_by_size, "the service does not split by size"),
        (service.allows_location(location), "location is not allowed by the service"),
        (is_anywhere == (service.placement is PlacementMode.CLASS), f"placement mode is {service.placement}"),
        (key in problem.profiles, "no profile for this model, class and configuration"),
        ((pool.gpu_class, location) in largest, "no node of the class there"),
        (
            not service.is_one_pod or pool.config.gpus <= largest.get((pool.gpu_class, ANYWHERE), 0),
            "one pod cannot stand on several nodes",
        ),
    )
    return next((fault for holds, fault in checks if not holds), "")


def _power(plan: Plan, problem: Problem) -> Iterator[str]:
    counts = {(row.pool, row.location): row.replicas for row in plan.placements}
    reserved = feeds_of(problem).reserved_watts(counts, {p.pool: p.cap_watts for p in plan.pools})
    idle = feeds_of(problem).base_watts
    for name, watts in sorted(reserved.items()):
        if name not in problem.domains:
            yield f"power[{name}]: feeds a node and is not defined"
        elif watts > max(problem.domains[name].usable_watts, idle[name]) + WATTS:  # idle draw is there without us
            yield f"power[{name}]: needs {watts:,.0f} W, usable {problem.domains[name].usable_watts:,.0f} W"


def _by_role(plan: Plan, service: str) -> dict[Role, int]:
    counts = dict.fromkeys(Role, 0)
    for row in placements_of(plan, service):
        counts[row.pool.role] += row.replicas
    return counts


def _ceilings(plan: Plan, problem: Problem) -> Iterator[str]:
    for service in problem.services:
        for role, count in _by_role(plan, service.name).items():
            if count > service.max_replicas:
                yield f"ceiling[{service.name}]: {count} {role} replicas, at most {service.max_replicas}"


def _services_match(plan: Plan, problem: Problem) -> Iterator[str]:
    planned = {s.service: s for s in plan.services}
    for name in sorted(set(planned) ^ {service.name for service in problem.services}):
        yield f"services[{name}]: planned and asked services differ"
        return
    for name, row in planned.items():
        asked = problem.demands[name].requests_per_s
        if not _close(row.demand_requests_per_s, asked):
            yield f"demand[{name}]: planned for {row.demand_requests_per_s:g} requests/s, asked {asked:g}"
        if not 0.0 <= row.served_requests_per_s <= asked * (1.0 + RELATIVE):
            yield f"demand[{name}]: serves {row.served_requests_per_s:g} of {asked:g} requests/s"
        if row.unserved_requests_per_s > RELATIVE * max(asked, 1.0) and not row.short_because:
            yield f"demand[{name}]: short by {row.unserved_requests_per_s:g} requests/s without a reason"


def _shares(plan: Plan) -> Iterator[str]:
    """Each chain carries everything that is served, exactly once."""
    for service in plan.services:
        if service.served_requests_per_s <= 0.0:
            continue
        for chain in ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED)):
            shares = [p.demand_ratio for p in pools_of(plan, service.service) if p.pool.role in chain]
            if any(share < 0.0 for share in shares) or not _close(sum(shares), 1.0, RELATIVE):
                yield f"shares[{service.service}]: {' + '.join(chain)} carry {sum(shares):.6f} of what is served"


def _capacities(plan: Plan) -> Iterator[str]:
    served = {s.service: s.served_requests_per_s for s in plan.services}
    for pool in plan.pools:
        load = pool.demand_ratio * served.get(pool.pool.service, 0.0)
        if not load <= pool.capacity_requests_per_s * (1.0 + RELATIVE):
            yield f"capacity[{pool.pool}]: {load:g} requests/s, carries {pool.capacity_requests_per_s:g}"


def _floors(plan: Plan, problem: Problem) -> Iterator[str]:
    reasons = {s.service: s.short_because for s in plan.services}
    for service in problem.services:
        counts = _by_role(plan, service.name)
        for chain in ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED)):
            able = sum(counts[role] for role in chain)
            if able < service.min_replicas and not reasons[service.name]:
                yield f"floor[{service.name}]: {able} replicas of {' + '.join(chain)}, at least {service.min_replicas}"
    lacks = (*pins(plan, problem), *locations(plan, problem))
    yield from (lack for service, lack in lacks if not reasons[service])


def _costs(plan: Plan, problem: Problem) -> Iterator[str]:
    had, rows = terms_by_bay(problem), _rows_of_pool(plan)
    for pool in plan.pools:
        gpu_class, gpus = problem.gpu_classes[pool.pool.gpu_class], pool.replicas * pool.pool.config.gpus
        energy = problem.policy.energy_usd_per_kilowatt_hour * pool.planned_watts / 1000.0
        placed = rows.get(pool.pool, [])
        ratios = [(row.replicas, had.get((row.location, row.pool.gpu_class), OWNED)[1]) for row in placed]
        paid = sum(count * pool.pool.config.gpus * ratio for count, ratio in ratios)
        cost = paid * gpu_class.price_usd_per_hour + energy
        if not _close(pool.cost_usd_per_hour, cost, MONEY_USD_PER_HOUR):
            yield f"cost[{pool.pool}]: said {pool.cost_usd_per_hour:.6f} USD/h, is {cost:.6f}"
        if not gpu_class.min_cap_watts <= pool.cap_watts <= gpu_class.max_cap_watts:
            allowed = f"{gpu_class.min_cap_watts:g}-{gpu_class.max_cap_watts:g}"
            yield f"cap[{pool.pool}]: {pool.cap_watts:g} W, the class allows {allowed} W"
        if pool.cap_watts != gpu_class.max_cap_watts and not problem.policy.power_caps:
            yield f"cap[{pool.pool}]: {pool.cap_watts:g} W, but the policy allows no caps below the highest"
        worst = gpus * max(gpu_class.idle_watts, pool.cap_watts + gpu_class.host_share_watts)
        if not _close(pool.reserved_watts, worst, WATTS):
            yield f"watts[{pool.pool}]: reserved {pool.reserved_watts:,.0f} W, worst case is {worst:,.0f} W"
        if not 0.0 <= pool.planned_watts <= worst + WATTS:
            yield f"watts[{pool.pool}]: planned {pool.planned_watts:,.0f} W, worst case is {worst:,.0f} W"


def _watts(plan: Plan, problem: Problem) -> Iterator[str]:
    counts = {(row.pool, row.location): row.replicas for row in plan.placements}
    reserved = feeds_of(problem).reserved_watts(counts, {p.pool: p.cap_watts for p in plan.pools})
    for domain in plan.domains:
        watts = reserved.get(domain.domain, 0.0)
        if not _close(domain.reserved_watts, watts, WATTS):
            yield f"watts[{domain.domain}]: said {domain.reserved_watts:,.0f} W reserved, is {watts:,.0f} W"
        if not 0.0 <= domain.planned_watts <= domain.reserved_watts + WATTS:
            planned, worst = f"{domain.planned_watts:,.0f} W", f"{domain.reserved_watts:,.0f} W"
            yield f"watts[{domain.domain}]: planned {planned}, reserved {worst}"
        budget = problem.domains[domain.domain].budget_watts if domain.domain in problem.domains else 0.0
        if not _close(domain.budget_watts, budget, WATTS):
            yield f"watts[{domain.domain}]: said a budget of {domain.budget_watts:,.0f} W, is {budget:,.0f} W"
    missing = set(problem.domains) ^ {domain.domain for domain in plan.domains}
    for name in sorted(missing):
        yield f"watts[{name}]: planned and existing domains differ"


def _churn_usd_per_hour(plan: Plan, problem: Problem) -> float:
    """Starts and stops of planned services on known GPU classes, at the policy's hours of their GPU price."""
    policy, planned = problem.policy, {service.name for service in problem.services}
    wanted = {(row.pool, row.location): row.replicas for row in plan.placements}
    known = {key for key in problem.running if key[0].service in planned and key[0].gpu_class in problem.gpu_classes}
    total, had = 0.0, terms_by_bay(problem)
    for pool, location in sorted({*wanted, *known}):
        change = wanted.get((pool, location), 0) - problem.running.get((pool, location), 0)
        hours = policy.start_cost_hours * change if change > 0 else -policy.stop_cost_hours * change
        reclaims = had.get((location, pool.gpu_class), OWNED)[0]  # each costs the start of what was there
        hours += policy.start_cost_hours * reclaims * wanted.get((pool, location), 0)
        total += hours * pool.config.gpus * problem.gpu_classes[pool.gpu_class].price_usd_per_hour
    return total


def _objective(plan: Plan, problem: Problem) -> Iterator[str]:
    report = plan.report
    cost = sum(pool.cost_usd_per_hour for pool in plan.pools)
    if not _close(report.cost_usd_per_hour, cost, MONEY_USD_PER_HOUR):
        yield f"cost: said {report.cost_usd_per_hour:.6f} USD/h, pools sum to {cost:.6f}"
    paid = cost + _churn_usd_per_hour(plan, problem) + sum(row.usd_per_hour for row in plan.links)
    penalty = sum(service.penalty_usd_per_hour for service in plan.services)
    if not _close(report.objective_usd_per_hour, paid + penalty, 1e-4):
        said = f"objective: said {report.objective_usd_per_hour:.6f} USD/h, cost and churn are {paid:.6f}"
        yield f"{said}, penalties {penalty:.6f}"
    if penalty > 1e-4 and not plan.is_short and not any(_floors_missing(plan, problem)):
        yield f"objective: {penalty:.6f} USD/h of penalties while nothing is short"
    yield from penalties(plan)
    yield from relief(plan)
    yield from _certificate(plan, problem)


def _floors_missing(plan: Plan, problem: Problem) -> Iterable[bool]:
    for service in problem.services:
        counts = _by_role(plan, service.name)
        yield counts[Role.MIXED] + min(counts[Role.PREFILL], counts[Role.DECODE]) < service.min_replicas
    yield from (True for _ in (*pins(plan, problem), *locations(plan, problem)))


def _certificate(plan: Plan, problem: Problem) -> Iterator[str]:
    report = plan.report
    value, bound = report.objective_usd_per_hour, report.bound_usd_per_hour
    gap = (value - bound) / max(abs(value), 1e-9)
    if not bound <= value + max(MONEY_USD_PER_HOUR, RELATIVE * abs(value)):
        yield f"bound: {bound:.6f} USD/h lies above the objective {value:.6f}"
    if not _close(report.gap_ratio, gap, RELATIVE):
        yield f"gap: said {report.gap_ratio:.6f}, is {gap:.6f}"
    if report.status is SolveStatus.OPTIMAL and not gap <= problem.policy.relative_gap + RELATIVE:
        yield f"status: said Optimal at a gap of {gap:.4f}, asked {problem.policy.relative_gap:.4f}"
    if report.status is SolveStatus.FAILED:
        yield "status: Failed is no plan"
