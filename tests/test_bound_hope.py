"""What mixed pools cannot carry more than: never below what sizing says, and enough to leave dear ones unsized."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner import make_plan
from solvers.problem import Policy
from solvers.sizing import Capacity, most_requests_per_s, replica_capacity
from solvers.verify.bound import recomputed, verify_bound
from solvers.verify.stock import Stock, first_apart
from solvers.verify.ways import Asked, least
from tests import synthetic
from tests.test_wide import SMALL


@pytest.mark.parametrize("role", list(Role))
def test_no_size_of_a_pool_carries_more_than_the_most(role: Role) -> None:
    problem = synthetic.make_problem(synthetic.SIZES["S"], 3, load=0.5)
    compared = 0
    for service in problem.services[:5]:
        mix = problem.demands[service.name].mix
        for key, profile in sorted(problem.profiles.items()):
            if key.model != service.model or key.config.gpus > 4:
                continue
            most = most_requests_per_s(profile, role, mix)
            for slos in (service.slos, ()):
                able = replica_capacity(profile, role, mix, slos, pool_replicas=64)
                if isinstance(able, Capacity):
                    assert able.requests_per_s <= most * (1.0 + 1e-9)
                    compared += 1
    assert compared > 20
    assert role is not Role.DECODE or most == math.inf


def test_a_bound_is_found_again_where_dear_pools_are_not_sized() -> None:
    problem = synthetic.make_problem(SMALL, 1, load=0.4, policy=Policy(min_saving_ratio=0.0))
    plan = make_plan(problem)
    check = verify_bound(plan, problem, capacity_of=replica_capacity, most_of=most_requests_per_s)
    assert str(check).startswith("bound supported: ")
    assert plan.certificate is not None
    hopeful = recomputed(plan.certificate, problem, replica_capacity, most_of=lambda *_: math.inf)
    assert hopeful <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)


def test_only_pools_that_could_be_cheap_are_sized() -> None:
    """At best the second costs twice what the first does; the third might cost less, and does not."""
    asked: list[float] = []

    def stock(hoped: float, rate: float) -> Stock:
        def sized(size: int) -> tuple[float, float]:
            asked.append(hoped)
            return rate, 1.0

        return Stock(
            pair=(str(hoped),),
            role=Role.MIXED,
            units_usd_per_hour=np.zeros(3),
            price_usd_per_hour=1.0,
            idle_usd_per_hour=1.0,
            sized=sized,
            hoped_per_s=hoped,
        )

    stocks = [stock(2.0, 2.0), stock(1.0, 0.9), stock(3.0, 0.5)]
    assert first_apart(stocks) == {0}
    assert set(asked) == {2.0, 3.0}
    assert [made.is_sized for made in stocks] == [True, False, True]
    assert stocks[1].rate_per_s == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_pools_that_are_not_told_apart_come_in_whole_replicas_at_least(seed: int) -> None:
    """Against all counts of three pools, only the first of which is told apart."""
    rng = np.random.default_rng(seed)
    rates, prices = rng.uniform(0.5, 3.0, 3), rng.uniform(1.0, 9.0, 3)
    demand, penalty = float(rng.uniform(0.5, 8.0)), float(rng.uniform(5.0, 60.0))
    stocks = [
        Stock(
            pair=(str(i),),
            role=Role.MIXED,
            units_usd_per_hour=np.zeros(8),
            price_usd_per_hour=float(price),
            idle_usd_per_hour=float(price),
            sized=partial(constant, float(rate), float(price)),
        )
        for i, (rate, price) in enumerate(zip(rates, prices, strict=True))
    ]
    for stock in stocks:
        stock.ask(stock.most)
    asked = Asked(demand_per_s=demand, unserved_usd_per_hour=penalty, fair_ratio=1.0, floor=0, floor_usd_per_hour=0.0)
    best = min(
        float(np.dot(counts, prices)) + penalty * max(0.0, 1.0 - float(np.dot(counts, rates)) / demand)
        for counts in product(range(9), repeat=3)
    )
    found = least(stocks, {0}, asked, 4000).usd_per_hour
    assert found <= best * (1.0 + 1e-9)
    assert found >= min(penalty, demand * float((prices / rates).min())) * (1.0 - 1e-3)


def constant(rate: float, price: float, size: int) -> tuple[float, float]:
    return rate, price
