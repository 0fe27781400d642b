"""Bounds where stopping what runs is dear: replicas may be worth keeping that nobody needs, and no bound forgets it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.planner import make_plan
from solvers.planner.pools.crew import WIDE_GPUS
from solvers.planner.wide.least_value import least_value
from solvers.planner.wide.stocks import choose_kept
from solvers.problem import Policy
from solvers.sizing import replica_capacity
from solvers.verify import verify
from solvers.verify.bound import verify_bound
from tests import synthetic
from tests.test_against_brute_force import TOLERANCE, Tiny, best_by_trying, drawn, spots
from tests.test_wide import SMALL, line, stocks

DEAR = (6000.0, 2000.0, 700.0)  # penalties that no start outweighs: whoever can be served is


def running(case: Tiny, rng: np.random.Generator) -> Tiny:
    """Much that runs, little that is asked, and starts that cost up to twenty hours."""
    problem = case.problem
    runs = {
        (pool, where): int(rng.integers(1, most + 1))
        for pool, where, most in spots(problem)
        if case.table[pool.service, pool.role, pool.gpu_class][0] > 0.0 and rng.random() < 0.5
    }
    less = float(rng.choice([0.05, 0.3, 1.0]))
    demands = {n: replace(d, requests_per_s=less * d.requests_per_s) for n, d in problem.demands.items()}
    hours = float(rng.choice([0.0, 1.0, 3.0, 8.0, 20.0]))
    policy = replace(problem.policy, start_cost_hours=hours, tier_penalties=DEAR)
    return replace(case, problem=replace(problem, running=runs, demands=demands, policy=policy))


@pytest.mark.parametrize("first", [200, 310])
def test_no_bound_passes_the_best_of_all_counts_where_stops_are_dear(first: int) -> None:
    """Planned as small fleets and as large ones in turn."""
    compared = 0
    for seed, tiny in drawn(first, 25):
        case, wide_gpus = running(tiny, np.random.default_rng(seed)), WIDE_GPUS if seed % 2 else 0
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=wide_gpus)
        assert verify(plan, case.problem, capacity_of=case.capacity_of) == ()
        check = verify_bound(plan, case.problem, capacity_of=case.capacity_of)
        assert check is not None
        assert check.is_supported, (seed, str(check))
        if plan.is_short:  # the order of tiers may cost more than the weights ask
            continue
        best = best_by_trying(case, wide_gpus) * (1.0 + TOLERANCE) + 1e-6
        assert plan.report.bound_usd_per_hour <= best, seed
        assert check.recomputed_usd_per_hour <= best, (seed, str(check))
        assert plan.report.objective_usd_per_hour <= best or wide_gpus == 0, seed
        compared += 1
    assert compared >= 5


def test_what_a_large_fleet_keeps_counts_in_its_bound_once() -> None:
    """All that runs is worth keeping when a tenth is asked: the plan costs what the bounds say, and none says more."""
    problem = synthetic.make_problem(SMALL, 1, load=0.6, policy=Policy(min_saving_ratio=0.0))
    before = make_plan(problem)
    less = {n: replace(d, requests_per_s=0.1 * d.requests_per_s) for n, d in problem.demands.items()}
    runs = {(row.pool, row.location): row.replicas for row in before.placements}
    policy = replace(problem.policy, start_cost_hours=8.0)
    now = replace(problem, demands=less, running=runs, policy=policy)
    plan = make_plan(now)
    check = verify_bound(plan, now, capacity_of=replica_capacity)
    assert check is not None
    assert check.is_supported, str(check)
    assert sum(row.replicas for row in plan.placements) == sum(runs.values())
    assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)
    assert plan.report.gap_ratio < 0.01


@pytest.mark.parametrize("told", [(), (0,), (0, 1), (1,)])
@pytest.mark.parametrize("demand", [0.0, 3.0, 150.0])
def test_the_least_value_knows_what_is_worth_keeping_beyond_the_sizes_told_apart(
    demand: float, told: tuple[int, ...]
) -> None:
    """Of 300 and 20 replicas that run, each costs 2 and 3 to run and 5 to stop: all stay."""
    made = stocks(demand, [1.0, 2.0], [2.0, 3.0], most=400)
    made = replace(
        made, now=np.array([300, 20]), stop_usd_per_hour=np.array([5.0, 5.0]), stop_all_usd_per_hour=5.0 * 320
    )
    curves = {0: line(1.0, 2.0, 400), 1: line(2.0, 3.0, 400)}
    pick = least_value(made, curves, frozenset(told), np.zeros(2))
    assert pick.value_usd_per_hour <= 300 * 2.0 + 20 * 3.0 + 1e-9
    assert pick.value_usd_per_hour >= 300 * 2.0 + 20 * 3.0 - demand * 1e-2 - 1e-9


def test_pools_that_are_worth_keeping_are_told_apart() -> None:
    made = replace(stocks(5.0, [1.0, 9.0], [2.0, 3.0], most=400), now=np.array([300, 0]))
    assert choose_kept(made, np.zeros(2), frozenset()) == {1}
    assert choose_kept(replace(made, stop_usd_per_hour=np.array([5.0, 0.0])), np.zeros(2), frozenset()) >= {0}
    many = stocks(5.0, [1.0] * 20, [2.0] * 20, most=400)
    many = replace(many, now=np.full(20, 300), stop_usd_per_hour=np.full(20, 5.0))
    assert choose_kept(many, np.zeros(20), frozenset()) == set(range(20))
