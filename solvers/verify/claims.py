"""What a plan claims of its pools and of failing, recomputed: capacity and draw by the sizing, penalties by sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from solvers.engine import ProfileKey
from solvers.engine.curves import capped
from solvers.errors import OutOfRange
from solvers.fleet import GpuClass
from solvers.plan import Plan, PoolPlan
from solvers.problem import Problem
from solvers.verify.parts import mix_of

CapacityOf = Callable[..., Any]
"""Signature of ``solvers.sizing.replica_capacity``; an answer without ``requests_per_s`` means that nothing is carried.

Handed in, because the check stands apart from what it checks.
"""

MostOf = Callable[..., float]
"""Signature of ``solvers.sizing.most_requests_per_s``: what no size of a pool carries more than, under any SLO."""

RELATIVE = 1e-6
WATTS = 0.01
SAID_LESS = 0.5  # a claim below half of what the sizing gives is no rounding: it hides capacity that is paid for


def claims(plan: Plan, problem: Problem, capacity_of: CapacityOf) -> Iterator[str]:
    """Check what each pool says it carries and draws at its size.

    The rows of the plan must be known to be well formed: services, classes and profiles exist.
    """
    services = {service.name: service for service in problem.services}
    for pool in plan.pools:
        service = services[pool.pool.service]
        key = ProfileKey(model=service.model, gpu_class=pool.pool.gpu_class, config=pool.pool.config)
        mix = mix_of(problem, pool.pool)
        is_capped = pool.cap_watts < problem.gpu_classes[key.gpu_class].max_cap_watts
        try:
            curves = capped(problem.profiles[key], pool.cap_watts if is_capped else None)
        except OutOfRange as unknown:
            yield f"cap[{pool.pool}]: {unknown}"
            continue
        sized = capacity_of(curves, pool.pool.role, mix, service.slos, pool_replicas=pool.replicas) if mix else None
        yield from _claim(pool, sized, problem.profiles[key].idle_watts_per_gpu, problem.gpu_classes[key.gpu_class])


def _claim(pool: PoolPlan, sized: object, idle_watts: float, gpu_class: GpuClass) -> Iterator[str]:
    able = pool.replicas * float(getattr(sized, "requests_per_s", 0.0))
    if not SAID_LESS * able - 1e-9 <= pool.capacity_requests_per_s <= able * (1.0 + RELATIVE) + 1e-9:
        yield f"capacity[{pool.pool}]: said {pool.capacity_requests_per_s:g} requests/s, sized for {able:g}"
    gpu_watts = float(getattr(sized, "gpu_watts", idle_watts))
    planned = pool.replicas * pool.pool.config.gpus * (gpu_watts + gpu_class.host_share_watts)
    if not abs(pool.planned_watts - planned) <= max(WATTS, RELATIVE * planned):
        yield f"watts[{pool.pool}]: planned {pool.planned_watts:,.0f} W, sized for {planned:,.0f} W"


def penalties(plan: Plan) -> Iterator[str]:
    """Check that whoever is short pays for it, and that nobody is paid."""
    for row in plan.services:
        is_short = row.unserved_requests_per_s > RELATIVE * max(1.0, row.demand_requests_per_s)
        if not row.penalty_usd_per_hour >= 0.0 or (is_short and row.penalty_usd_per_hour <= 0.0):
            lacks = f"{row.unserved_requests_per_s:g} requests/s unserved"
            yield f"penalty[{row.service}]: said {row.penalty_usd_per_hour:g} USD/h with {lacks}"
