"""What is dear to stop: replicas that cost less to keep than to give up, whether or not anybody needs them."""

from __future__ import annotations

from collections.abc import Mapping

from solvers.derived import derived
from solvers.fleet import PoolKey
from solvers.planner.pools.floors import least_useful
from solvers.problem import Problem
from solvers.workload import ServedModel


def least_of(problem: Problem, service: ServedModel, pool: PoolKey) -> int:
    """Replicas that a pool must be able to have, however little it carries."""
    return max(least_useful(service, pool), worth_keeping(problem, pool))


def worth_keeping(problem: Problem, pool: PoolKey) -> int:
    """Replicas that run of the pool, at any cap, where stopping one may cost more than it costs to run; else 0."""
    ratio = derived(problem, _least_price_ratios).get(pool.gpu_class, 1.0)
    if problem.policy.stop_cost_hours <= min(1.0, ratio):  # running costs its GPU price and energy beside
        return 0
    return derived(problem, _running).get(pool.uncapped, 0)


def _least_price_ratios(problem: Problem) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for node in problem.nodes:
        found[node.gpu_class] = min(found.get(node.gpu_class, node.price_ratio), node.price_ratio)
    return found


def _running(problem: Problem) -> Mapping[PoolKey, int]:
    found: dict[PoolKey, int] = {}
    for (pool, _), count in problem.running.items():
        found[pool.uncapped] = found.get(pool.uncapped, 0) + count
    return found
