"""What makes a certificate worthless by itself: prices of nothing, weights nobody pays, tiers held at other amounts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from solvers.certificate import (
    CEILING,
    GPUS,
    LINK_IN,
    LINK_OUT,
    POWER,
    POWER_WHOLE,
    QUOTA_GPUS,
    QUOTA_POWER,
    RESOURCES,
    RESOURCES_WHOLE,
    Certificate,
    PricedRow,
)
from solvers.engine import Role
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.verify.branches import branch_faults
from solvers.verify.rules import CHAINS, locations_missing, pins_missing
from solvers.workload import ServedModel

RELATIVE = 1e-5
SERVED = 1e-5  # of a demand, what sums of loads round by
USD_PER_HOUR = 1e-5
SIZED = (GPUS, POWER_WHOLE, RESOURCES, RESOURCES_WHOLE)


def evidence_faults(plan: Plan, problem: Problem, shown: Certificate) -> Iterator[str]:
    """Find what is wrong with the evidence, whatever it adds up to."""
    if not math.isfinite(shown.usd_per_hour):
        yield f"the prices are said to support {shown.usd_per_hour} USD/h"
    yield from branch_faults(shown, [service.name for service in problem.services])
    for rows in (shown.rows, *(branch.rows for branch in shown.branches)):
        yield from _price_faults(problem, rows)
    ratios = [ratio for branch in shown.branches for ratio in branch.held_ratios]
    yield from (f"the price of a held tier is {ratio:g} in a branch" for ratio in ratios if not 0.0 <= ratio < math.inf)
    yield from _weight_faults(problem, shown)
    yield from _light_failures(plan, problem, shown)
    yield from _tier_faults(plan, problem, shown)


def _price_faults(problem: Problem, rows: Sequence[PricedRow]) -> Iterator[str]:
    """Find prices that are no amount of money, or of places and quotas that there are not."""
    known = _known(problem)
    for row in rows:
        what = f"{row.limit} {row.resource}".strip()
        name = f"the price of {what} of {', '.join(row.places) or 'nowhere'} {row.gpu_class}{row.role}".strip()
        if not 0.0 <= row.usd_per_hour < math.inf:
            yield f"{name} is {row.usd_per_hour:g} USD/h"
        is_there = known.get(row.limit)
        if is_there is None or not row.places or not all(is_there(row, place) for place in row.places):
            yield f"{name} is of nothing that there is"
        if row.limit in SIZED and not 0.0 < row.size < math.inf:
            yield f"{name} is of replicas of size {row.size:g}"


def _known(problem: Problem) -> Mapping[str, Callable[[PricedRow, str], bool]]:
    """By limit, what says whether it is one of a place."""
    bays = {(node.gpu_class, node.location) for node in problem.nodes}
    fed = {domain for node in problem.nodes for domain in node.domains}
    roles = {(service.name, str(role)) for service in problem.services for role in service.roles}
    quotas = {(quota.namespace, quota.gpu_class) for quota in problem.policy.quotas}
    stocked = {(n.gpu_class, n.location, name) for n in problem.nodes for name in n.resources}
    links = {link.name for link in problem.policy.kv_links}

    def is_bay(row: PricedRow, place: str) -> bool:
        return (row.gpu_class, place) in bays

    def is_domain(row: PricedRow, place: str) -> bool:
        return place in problem.domains and place in fed

    def is_quota(row: PricedRow, place: str) -> bool:
        return (place, row.gpu_class) in quotas and len(row.places) == 1

    def is_ceiling(row: PricedRow, place: str) -> bool:
        return (place, row.role) in roles and len(row.places) == 1

    def is_stock(row: PricedRow, place: str) -> bool:
        return (row.gpu_class, place, row.resource) in stocked

    def is_link(row: PricedRow, place: str) -> bool:
        return place in links

    return {
        GPUS: is_bay,
        POWER: is_domain,
        POWER_WHOLE: is_domain,
        QUOTA_GPUS: is_quota,
        QUOTA_POWER: is_quota,
        CEILING: is_ceiling,
        RESOURCES: is_stock,
        RESOURCES_WHOLE: is_stock,
        LINK_OUT: is_link,
        LINK_IN: is_link,
    }


def _weight_faults(problem: Problem, shown: Certificate) -> Iterator[str]:
    weighed = [row.service for row in shown.weights]
    for service in sorted(s.name for s in problem.services):
        if weighed.count(service) != 1:
            yield f"{service} has {weighed.count(service)} weights"
    for row in shown.weights:
        for what, amount in (("what stays unserved", row.unserved_usd_per_hour), ("a floor", row.floor_usd_per_hour)):
            if not 0.0 <= amount < math.inf:
                yield f"{row.service} weighs {what} {amount:g} USD/h"
        if not 0.0 <= row.fair_ratio <= 1.0:
            yield f"{row.service} has a fair share of {row.fair_ratio:g}"


def _light_failures(plan: Plan, problem: Problem, shown: Certificate) -> Iterator[str]:
    """Find services that pay less for failing than the weights say: such a bound is of another problem."""
    weights, services = {row.service: row for row in shown.weights}, {s.name: s for s in problem.services}
    for row in (row for row in plan.services if row.service in weights and row.service in services):
        w, asked = weights[row.service], row.demand_requests_per_s
        lacks = row.unserved_requests_per_s / asked if asked > 0.0 else 0.0
        due = w.unserved_usd_per_hour * (lacks + max(0.0, lacks - w.fair_ratio))
        due += w.floor_usd_per_hour * _missing(plan, services[row.service])
        if row.penalty_usd_per_hour < due * (1.0 - SERVED) - w.unserved_usd_per_hour * SERVED:
            paid = f"pays {row.penalty_usd_per_hour:.6f} USD/h for what it lacks"
            yield f"{row.service} {paid}, its weights say {due:.6f}"


def _missing(plan: Plan, service: ServedModel) -> int:
    """Replicas below the floor of each chain, below every pin, and for locations that each chain is short of."""
    counts = dict.fromkeys(Role, 0)
    for row in plan.placements:
        if row.pool.service == service.name:
            counts[row.pool.role] += row.replicas
    below = sum(max(0, service.min_replicas - sum(counts[role] for role in chain)) for chain in CHAINS)
    pins = sum(missing for _, missing in pins_missing(plan, service))
    return below + pins + sum(missing for _, missing in locations_missing(plan, service))


def _tier_faults(plan: Plan, problem: Problem, shown: Certificate) -> Iterator[str]:
    """Find held tiers that may not be, and those held at another amount than the plan itself leaves undone."""
    ranks = {service.name: service.tier_rank for service in problem.services}
    may_be_held, seen = sorted(set(ranks.values()))[:-1], set[int]()
    for tier in shown.held:
        name = f"tier {tier.tier_rank}"
        if tier.tier_rank not in may_be_held or tier.tier_rank in seen:
            yield f"{name} is none that may be held, or is held twice"
        if not 0.0 <= tier.price_ratio < math.inf:
            yield f"the price of {name} is {tier.price_ratio:g}"
        lacks = lacking_usd_per_hour(plan, problem, tier.tier_rank)
        if not abs(tier.lacking_usd_per_hour - lacks) <= USD_PER_HOUR + RELATIVE * lacks:
            yield f"{name} is held at {tier.lacking_usd_per_hour:.6f} USD/h, the plan lacks {lacks:.6f}"
        seen.add(tier.tier_rank)


def lacking_usd_per_hour(plan: Plan, problem: Problem, tier_rank: int) -> float:
    """What the services of a tier pay for what the plan leaves undone."""
    mine = {service.name for service in problem.services if service.tier_rank == tier_rank}
    return math.fsum(row.penalty_usd_per_hour for row in plan.services if row.service in mine)
