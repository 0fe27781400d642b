"""Rows of a plan by service, which most checks ask for."""

from __future__ import annotations

from solvers.derived import derived
from solvers.plan import Placement, Plan, PoolPlan


def placements_of(plan: Plan, service: str) -> tuple[Placement, ...]:
    """Where the service's replicas are, in the plan's order."""
    return derived(plan, _placements).get(service, ())


def pools_of(plan: Plan, service: str) -> tuple[PoolPlan, ...]:
    """The service's pools, in the plan's order."""
    return derived(plan, _pools).get(service, ())


def _placements(plan: Plan) -> dict[str, tuple[Placement, ...]]:
    found: dict[str, list[Placement]] = {}
    for row in plan.placements:
        found.setdefault(row.pool.service, []).append(row)
    return {service: tuple(rows) for service, rows in found.items()}


def _pools(plan: Plan) -> dict[str, tuple[PoolPlan, ...]]:
    found: dict[str, list[PoolPlan]] = {}
    for row in plan.pools:
        found.setdefault(row.pool.service, []).append(row)
    return {service: tuple(rows) for service, rows in found.items()}
