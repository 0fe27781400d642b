"""The check of what policy and services ask beyond room, power and demand, in plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from solvers.plan import Plan
from solvers.problem import Problem, Quota

RELATIVE = 1e-9


def pins(plan: Plan, problem: Problem) -> Iterator[tuple[str, str]]:
    """Find the pins that are not kept: (service, what is missing)."""
    for service in problem.services:
        rows = [row for row in plan.placements if row.pool.service == service.name]
        for pin in service.pins:
            there = [r for r in rows if r.location == pin.location and pin.role in (None, r.pool.role)]
            count = sum(r.replicas for r in there if pin.gpu_class in ("", r.pool.gpu_class))
            if count < pin.replicas:
                yield service.name, f"pins[{service.name} {pin}]: {count} replicas, at least {pin.replicas}"


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
