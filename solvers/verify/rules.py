"""The check of what policy and services ask beyond room, power and demand, in plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import inf

from solvers.engine import Role
from solvers.plan import Plan
from solvers.problem import Problem, Quota
from solvers.verify.rows import placements_of
from solvers.workload import Pin, ServedModel

RELATIVE = 1e-9
SERVED = 1e-6
CHAINS = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))


def pins(plan: Plan, problem: Problem) -> Iterator[tuple[str, str]]:
    """Find the pins that are not kept: (service, what is missing)."""
    for service in problem.services:
        for pin, missing in pins_missing(plan, service):
            count = pin.replicas - missing
            yield service.name, f"pins[{service.name} {pin}]: {count} replicas, at least {pin.replicas}"


def pins_missing(plan: Plan, service: ServedModel) -> Iterator[tuple[Pin, int]]:
    """Find the service's pins that are not kept, and how many replicas each lacks."""
    rows = placements_of(plan, service.name)
    for pin in service.pins:
        there = [r for r in rows if r.location == pin.location and pin.role in (None, r.pool.role)]
        count = sum(r.replicas for r in there if pin.gpu_class in ("", r.pool.gpu_class))
        if count < pin.replicas:
            yield pin, pin.replicas - count


def locations(plan: Plan, problem: Problem) -> Iterator[tuple[str, str]]:
    """Find the chains at too few locations: (service, what is missing)."""
    for service in problem.services:
        for chain, missing in locations_missing(plan, service):
            count = service.min_locations - missing
            fault = f"{' + '.join(chain)} at {count} locations, at least {service.min_locations}"
            yield service.name, f"locations[{service.name}]: {fault}"


def locations_missing(plan: Plan, service: ServedModel) -> Iterator[tuple[tuple[Role, Role], int]]:
    """Find the service's chains at too few locations, and how many each lacks."""
    rows = placements_of(plan, service.name)
    for chain in CHAINS if service.min_locations > 1 else ():
        count = len({row.location for row in rows if row.pool.role in chain})
        if count < service.min_locations:
            yield chain, service.min_locations - count


OWNED = (0.0, 1.0)
"""Reclaims an hour and price ratio of a node that stays, at list price."""


def terms_by_bay(problem: Problem) -> dict[tuple[str, str], tuple[float, float]]:
    """Reclaims an hour and price ratio by (location, GPU class): the worst of the nodes there with GPUs to give."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for node in (n for n in problem.nodes if n.gpus_usable > 0):
        key = (node.location, node.gpu_class)
        reclaims, ratio = found.get(key, (0.0, 0.0))
        found[key] = max(reclaims, node.reclaims_per_hour), max(ratio, node.price_ratio)
    return found


def on_spot(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check that what may be taken away carries no more of a service than it allows."""
    each = {pool.pool: pool.capacity_requests_per_s / max(1, pool.replicas) for pool in plan.pools}
    served = {row.service: row.served_requests_per_s for row in plan.services}
    had = terms_by_bay(problem)
    for service in (s for s in problem.services if s.max_spot_ratio < 1.0):
        rows = placements_of(plan, service.name)
        stays = tuple(row for row in rows if had.get((row.location, row.pool.gpu_class), OWNED)[0] <= 0.0)
        if service.max_spot_ratio <= 0.0 and stays != rows:
            yield f"spot[{service.name}]: replicas on nodes that may be taken away, none allowed"
        wanted = (1.0 - service.max_spot_ratio) * served.get(service.name, 0.0)
        for chain in CHAINS:
            left = sum(each[row.pool] * row.replicas for row in stays if row.pool.role in chain)
            if left < wanted * (1.0 - SERVED) - SERVED:
                fault = f"{' + '.join(chain)} carry {left:g} requests/s on nodes that stay, {wanted:g} asked"
                yield f"spot[{service.name}]: {fault}"


def losses(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check that the loss of any location leaves each chain what the service asks for, at the capacity planned."""
    each = {pool.pool: pool.capacity_requests_per_s / max(1, pool.replicas) for pool in plan.pools}
    served = {row.service: row.served_requests_per_s for row in plan.services}
    for service in (s for s in problem.services if s.max_share_per_location_ratio < 1.0):
        rows = placements_of(plan, service.name)
        wanted = (1.0 - service.max_share_per_location_ratio) * served.get(service.name, 0.0)
        for chain, lost in product(CHAINS, sorted({row.location for row in rows})):
            left = sum(each[row.pool] * row.replicas for row in rows if row.pool.role in chain and row.location != lost)
            if left < wanted * (1.0 - SERVED) - SERVED:
                fault = f"{' + '.join(chain)} carry {left:g} requests/s without {lost}, {wanted:g} asked"
                yield f"share[{service.name}]: {fault}"


def relief(plan: Plan) -> Iterator[str]:
    """Check that what would help is said in finite amounts, and only where something is short."""
    for row in plan.relief:
        first = (row.first_serves_requests_per_s, row.first_saves_usd_per_hour)
        if not (0.0 < row.amount < inf and all(0.0 <= value < inf for value in (row.usd_per_hour, *first))):
            yield f"relief[{row.limit} {row.subject}]: {row.amount:g} {row.unit} for {row.usd_per_hour:g} USD/h"
    if plan.relief and not any(service.short_because for service in plan.services):
        yield f"relief: {len(plan.relief)} limits should give way while nothing is short"


def quotas(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check what every namespace holds against what it may hold."""
    for quota in problem.policy.quotas:
        gpus, watts = _held(plan, problem, quota)
        name = f"{quota.namespace} {quota.gpu_class}".strip()
        if quota.max_gpus is not None and gpus > quota.max_gpus:
            yield f"quota_gpus[{name}]: holds {gpus} GPUs, at most {quota.max_gpus}"
        if quota.max_watts is not None and watts > quota.max_watts * (1.0 + RELATIVE) + 0.01:
            yield f"quota_power[{name}]: holds {watts:,.0f} W, at most {quota.max_watts:,.0f} W"


def _held(plan: Plan, problem: Problem, quota: Quota) -> tuple[int, float]:
    """GPUs, and their watts at the highest cap, that the quota counts."""
    gpus, watts = 0, 0.0
    for row in plan.placements:
        is_counted = quota.gpu_class in ("", row.pool.gpu_class)
        if is_counted and row.pool.service.split("/")[0] == quota.namespace:
            held, kind = row.replicas * row.pool.config.gpus, problem.gpu_classes[row.pool.gpu_class]
            gpus += held
            watts += held * max(kind.idle_watts, kind.max_cap_watts + kind.host_share_watts)
    return gpus, watts
