"""Plans written down by hand: replicas, places and capacities as said; nothing is drawn, and nothing costs anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from solvers.fleet import PoolKey
from solvers.plan import Placement, Plan, PoolPlan, ServicePlan, SolveReport, SolveStatus

NODE_GPUS = 8

Held = Mapping[PoolKey, tuple[float, Mapping[str, int]]]
"""By pool: requests/s of a replica, and replicas by location."""

NO_REPORT = SolveReport(
    status=SolveStatus.FEASIBLE,
    objective_usd_per_hour=0.0,
    bound_usd_per_hour=0.0,
    gap_ratio=0.0,
    cost_usd_per_hour=0.0,
    rounds=1,
)
NOTHING = Plan(placements=(), pools=(), services=(), domains=(), bindings=(), report=NO_REPORT)


def noted(note: str) -> Plan:
    """A plan of nothing that says something."""
    return replace(NOTHING, report=replace(NO_REPORT, notes=(note,)))


def written(
    held: Held,
    served_per_s: Mapping[str, float],
    *,
    asked_per_s: Mapping[str, float] | None = None,
    tier: str = "critical",
    **how: Any,
) -> Plan:
    """Write down what is held and served; all that is asked is served unless ``asked_per_s`` says more."""
    asked = {**served_per_s, **(asked_per_s or {})}
    rows = (
        Placement(pool=key, location=at, replicas=count)
        for key, (_, places) in held.items()
        for at, count in places.items()
    )
    services = (
        ServicePlan(service=name, tier=tier, demand_requests_per_s=asked[name], served_requests_per_s=rate)
        for name, rate in served_per_s.items()
    )
    made = replace(
        NOTHING,
        placements=tuple(sorted(rows)),
        pools=tuple(_pool_plan(key, rate, sum(places.values())) for key, (rate, places) in sorted(held.items())),
        services=tuple(services),
    )
    return replace(made, **how)


def _pool_plan(pool: PoolKey, rate: float, replicas: int) -> PoolPlan:
    return PoolPlan(
        pool=pool,
        replicas=replicas,
        demand_ratio=1.0,
        capacity_requests_per_s=rate * replicas,
        cap_watts=700.0,
        reserved_watts=0.0,
        planned_watts=0.0,
        cost_usd_per_hour=0.0,
        nodes_per_replica=math.ceil(pool.config.gpus / NODE_GPUS),
    )
