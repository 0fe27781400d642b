"""Power caps as a choice: the levels a pool may run at, and counts by level against counts by pool.

While the planner weighs them, a pool at another cap is another pool (``PoolKey.cap_watts``), with slower curves and
fewer reserved watts. A plan holds at most one level of each pool, and a change of it moves no replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from solvers.engine import EngineProfile, ProfileKey
from solvers.engine.curves import capped
from solvers.errors import OutOfRange
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner.bays.grouping import domain_rooms
from solvers.planner.bays.nodes import Counts
from solvers.problem import Problem


def levels_watts(problem: Problem, gpu_class: str, profile: EngineProfile) -> tuple[float, ...]:
    """Caps that a pool may have, 0 (the highest) first, then those that the profile knows and the class allows."""
    kind = problem.gpu_classes[gpu_class]
    if not problem.policy.power_caps:
        return (0.0,)
    return (0.0, *(w for w in profile.cap_watts_per_gpu if kind.min_cap_watts <= w < kind.max_cap_watts))


def limited_classes(problem: Problem) -> frozenset[str]:
    """GPU classes whose watts some power domain limits; for all others a cap only slows."""
    rooms = domain_rooms(problem)
    return frozenset(node.gpu_class for node in problem.nodes if any(domain in rooms for domain in node.domains))


def sorted_profiles(problem: Problem) -> tuple[tuple[ProfileKey, EngineProfile], ...]:
    """Profiles in the order of their keys."""
    return tuple(sorted(problem.profiles.items()))


def profile_at(profile: EngineProfile, pool: PoolKey) -> EngineProfile | None:
    """Curves of the pool at its cap; None where the profile does not know the speed."""
    try:
        return capped(profile, pool.cap_watts or None)
    except OutOfRange:
        return None


def by_pool(counts: Counts) -> dict[tuple[PoolKey, str], int]:
    """Replicas by (pool, location) whatever their caps."""
    summed: dict[tuple[PoolKey, str], int] = {}
    for (pool, location), count in sorted(counts.items()):
        summed[pool.uncapped, location] = summed.get((pool.uncapped, location), 0) + count
    return summed


def one_level(counts: Counts) -> dict[tuple[PoolKey, str], int]:
    """Run every pool at the lowest of its levels: it needs no more GPUs or watts than they did."""
    lowest: dict[PoolKey, PoolKey] = {}
    for pool, _ in sorted(counts):
        found = lowest.get(pool.uncapped)
        if found is None or 0.0 < pool.cap_watts < (found.cap_watts or float("inf")):
            lowest[pool.uncapped] = pool
    return {(lowest[pool], location): count for (pool, location), count in by_pool(counts).items()}


def highest_levels(pools: Iterable[PoolKey]) -> dict[PoolKey, PoolKey]:
    """Of pools at several caps the one at the highest, by the pool without a cap."""
    highest: dict[PoolKey, PoolKey] = {}
    for pool in pools:
        known = highest.setdefault(pool.uncapped, pool)
        if known.cap_watts and (not pool.cap_watts or pool.cap_watts > known.cap_watts):
            highest[pool.uncapped] = pool
    return highest


def at_options(counts: Counts, options: Iterable[PoolKey]) -> dict[tuple[PoolKey, str], int]:
    """Counts at the highest caps as counts of options, where lower caps stand in for higher ones at no loss."""
    highest = highest_levels(options)
    return {(highest.get(pool, pool), location): count for (pool, location), count in sorted(counts.items())}


def at_plan(problem: Problem, plan: Plan | None, counts: Counts) -> dict[tuple[PoolKey, str], int]:
    """The counts at the caps of the plan, where it has the pool; at the highest cap while caps are off."""
    caps: Mapping[PoolKey, PoolKey] = {}
    if plan is not None and problem.policy.power_caps:
        caps = planned_levels(problem, plan)
    return {(caps.get(pool, pool), location): count for (pool, location), count in sorted(counts.items())}


def planned_counts(problem: Problem, plan: Plan) -> dict[tuple[PoolKey, str], int]:
    """Replicas of a plan by (pool, location), at its caps."""
    return at_plan(problem, plan, {(row.pool, row.location): row.replicas for row in plan.placements})


def planned_levels(problem: Problem, plan: Plan) -> dict[PoolKey, PoolKey]:
    """The pools of a plan with their caps in the key."""
    found: dict[PoolKey, PoolKey] = {}
    for row in plan.pools:
        kind = problem.gpu_classes.get(row.pool.gpu_class)
        is_capped = kind is not None and row.cap_watts < kind.max_cap_watts
        found[row.pool] = at_cap(row.pool, row.cap_watts if is_capped else 0.0)
    return found


def at_cap(pool: PoolKey, cap_watts: float) -> PoolKey:
    """The pool at another level."""
    return replace(pool, cap_watts=cap_watts) if cap_watts != pool.cap_watts else pool
