"""The check of services that are split by size: parts that hold every request once, and pools that carry their part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.plan import PartPlan, Plan
from solvers.problem import Problem
from solvers.workload import SizeBucket

RELATIVE = 1e-6
EXACT = 1e-12  # relative; demand is only divided, never measured anew
CHAINS = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))


def _edges(label: str) -> tuple[float, float]:
    """First and last prompt of a range, read by hand; none at all for what is no range."""
    first, dash, last = label.removeprefix("p").partition("-")
    if not (label.startswith("p") and dash and first.isdigit() and (last == "up" or last.isdigit())):
        return math.inf, -math.inf
    return float(first), math.inf if last == "up" else float(last)


def mix_of(problem: Problem, pool: PoolKey) -> tuple[SizeBucket, ...]:
    """Sizes of the requests that reach the pool, weighed to sum to 1 where it serves a part."""
    mix = problem.demands[pool.service].mix
    if not pool.sizes:
        return mix
    first, last = _edges(pool.sizes)
    inside = [bucket for bucket in mix if first <= bucket.prompt_tokens <= last and bucket.weight_ratio > 0.0]
    total = math.fsum(bucket.weight_ratio for bucket in inside)
    return tuple(replace(bucket, weight_ratio=bucket.weight_ratio / total) for bucket in inside)


def part_sizes(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check that pools and parts of a service name the same ranges, and that these hold every prompt once."""
    rows: dict[str, list[str]] = {}
    for row in plan.parts:
        rows.setdefault(row.service, []).append(row.sizes)
    splitting = {service.name for service in problem.services if service.splits_by_size}
    for name, labels in sorted(rows.items()):
        if name not in splitting:
            yield f"parts[{name}]: no such service splits by size"
        if len(labels) != len(set(labels)) or not _holds_all(labels):
            yield f"parts[{name}]: {', '.join(labels)} do not hold every prompt length once, in order"
    for pool in sorted({row.pool for row in plan.placements} | {row.pool for row in plan.pools}):
        if pool.sizes not in rows.get(pool.service, [""]):
            yield f"parts[{pool}]: serves {pool.sizes or 'every size'}, which is no part of its service"


def _holds_all(labels: list[str]) -> bool:
    following = 0.0
    for label in labels:
        first, last = _edges(label)
        if first != following or last < first:
            return False
        following = last + 1.0
    return following == math.inf


def parts(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check demand, service and shares of every part, and that all parts together are the service.

    The ranges must be known to be sound (``part_sizes``).
    """
    rows: dict[str, list[PartPlan]] = {}
    for row in plan.parts:
        rows.setdefault(row.service, []).append(row)
    served = {row.service: row.served_requests_per_s for row in plan.services}
    for name, mine in sorted(rows.items()):
        yield from _demands(problem, name, mine)
        said, total = math.fsum(row.served_requests_per_s for row in mine), served.get(name, 0.0)
        if abs(said - total) > RELATIVE * max(1.0, total):
            yield f"parts[{name}]: serve {said:g} requests/s together, the service {total:g}"
        for row in mine:
            yield from _part(plan, row, total)


def _demands(problem: Problem, name: str, rows: list[PartPlan]) -> Iterator[str]:
    """Every size of the mix must be asked for as often in the parts as in the service."""
    demand = problem.demands[name]
    total = math.fsum(bucket.weight_ratio for bucket in demand.mix)
    said = math.fsum(row.demand_requests_per_s for row in rows)
    if abs(said - demand.requests_per_s) > EXACT * demand.requests_per_s:
        yield f"parts[{name}]: ask {said:g} requests/s together, the service {demand.requests_per_s:g}"
    for row in rows:
        first, last = _edges(row.sizes)
        inside = math.fsum(b.weight_ratio for b in demand.mix if first <= b.prompt_tokens <= last)
        asked = demand.requests_per_s * inside / total if total > 0.0 else 0.0
        if abs(row.demand_requests_per_s - asked) > 1e-9 * max(asked, demand.requests_per_s):
            yield f"parts[{name}]: {row.sizes} asks {row.demand_requests_per_s:g} requests/s, by its mix {asked:g}"


def _part(plan: Plan, row: PartPlan, served: float) -> Iterator[str]:
    """Each chain of a part carries what the part serves."""
    if not 0.0 <= row.served_requests_per_s <= row.demand_requests_per_s * (1.0 + RELATIVE):
        said = f"serves {row.served_requests_per_s:g} of {row.demand_requests_per_s:g} requests/s"
        yield f"parts[{row.service}]: {row.sizes} {said}"
    pools = [pool for pool in plan.pools if pool.pool.service == row.service and pool.pool.sizes == row.sizes]
    for chain in CHAINS:
        carried = math.fsum(pool.demand_ratio * served for pool in pools if pool.pool.role in chain)
        if abs(carried - row.served_requests_per_s) > RELATIVE * max(1e-3, served):
            fault = f"{' + '.join(chain)} carry {carried:g} requests/s of {row.served_requests_per_s:g} served"
            yield f"parts[{row.service}]: {row.sizes}: {fault}"
