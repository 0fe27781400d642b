"""The check of who may pair with whom: what is served fits through pairs of prefill and decode that can be."""

from __future__ import annotations

from collections.abc import Iterator

from solvers.engine import ProfileKey, Role
from solvers.fleet import PoolKey
from solvers.plan import Plan, PoolPlan
from solvers.problem import Problem
from solvers.verify.rows import placements_of, pools_of
from solvers.workload import ServedModel

SERVED = 1e-6  # relative
TINY = 1e-9  # of a share


def pairs(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check every service: capacity in pairs, and that the shares of both sides of a group agree."""
    services = {service.name: service for service in problem.services}
    for row in plan.services:
        service = services[row.service]
        pools = {pool.pool: pool for pool in pools_of(plan, row.service)}
        able = sum(p.capacity_requests_per_s for p in pools.values() if p.pool.role is Role.MIXED)
        sides = _sides(plan, problem, service, pools)
        able += sum(min(side.get(Role.PREFILL, 0.0), side.get(Role.DECODE, 0.0)) for side in sides.values())
        if row.served_requests_per_s > able * (1.0 + SERVED) + TINY:
            inside = "inside one KV group at one location" if not service.kv_may_cross else "inside one KV group"
            said = f"serves {row.served_requests_per_s:g} requests/s"
            yield f"pairs[{row.service}]: {said}, pairs {inside} and mixed replicas carry {able:g}"
        if row.served_requests_per_s > 0.0:
            yield from _uneven(problem, service, pools)


def _sides(
    plan: Plan, problem: Problem, service: ServedModel, pools: dict[PoolKey, PoolPlan]
) -> dict[tuple[str, ...], dict[Role, float]]:
    """Capacity of both sides by sizes and group, and by location where traffic may not leave one."""
    sides: dict[tuple[str, ...], dict[Role, float]] = {}
    for row in placements_of(plan, service.name):
        if row.pool not in pools or row.pool.role is Role.MIXED:
            continue
        each = pools[row.pool].capacity_requests_per_s / max(1, pools[row.pool].replicas)
        where = () if service.kv_may_cross else (row.location,)
        side = sides.setdefault((row.pool.sizes, *kv_group(problem, service, row.pool), *where), {})
        side[row.pool.role] = side.get(row.pool.role, 0.0) + each * row.replicas
    return sides


def _uneven(problem: Problem, service: ServedModel, pools: dict[PoolKey, PoolPlan]) -> Iterator[str]:
    """Groups that are sent more prompts than they may decode, or fewer."""
    shares: dict[tuple[str, ...], dict[Role, float]] = {}
    for key, pool in pools.items():
        if key.role is not Role.MIXED:
            side = shares.setdefault((key.sizes, *kv_group(problem, service, key)), {})
            side[key.role] = side.get(key.role, 0.0) + pool.demand_ratio
    for group, side in sorted(shares.items()):
        prompts, tokens = side.get(Role.PREFILL, 0.0), side.get(Role.DECODE, 0.0)
        if not abs(prompts - tokens) <= SERVED:
            name = " ".join(word for word in group if word) or "all"
            yield f"pairs[{service.name} {name}]: prefills {prompts:.6f} of what is served, decodes {tokens:.6f}"


def kv_group(problem: Problem, service: ServedModel, pool: PoolKey) -> tuple[str, ...]:
    """KV group of a pool."""
    return group_of_profile(
        problem, service, ProfileKey(model=service.model, gpu_class=pool.gpu_class, config=pool.config)
    )


def group_of_profile(problem: Problem, service: ServedModel, key: ProfileKey) -> tuple[str, ...]:
    """Who reads whose keys and values: what the profile (else the service) names, the engine, the class's fabric."""
    profile, kind = problem.profiles.get(key), problem.gpu_classes.get(key.gpu_class)
    named = (profile.kv_compatibility_group if profile else "") or service.kv_compatibility_group
    return named, key.config.engine, kind.kv_fabric if kind else ""
