"""The check of bounds: true ones are found again, tampered ones are not, and no prices make it claim too much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from solvers.certificate import (
    GPUS,
    POWER,
    POWER_WHOLE,
    QUOTA_GPUS,
    QUOTA_POWER,
    Certificate,
    HeldTier,
    PricedRow,
    ServiceWeights,
)
from solvers.engine import Role
from solvers.fleet import ANYWHERE
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem, Quota
from solvers.sizing import replica_capacity
from solvers.verify.bound import BoundCheck, recomputed, verify_bound
from solvers.verify.stock import Stock, first_apart
from solvers.verify.ways import MOST_STRETCHES, Asked, _stretches, least, value
from solvers.workload import PlacementMode
from tests import fleets, synthetic

WIDE = synthetic.Size(nodes=72, services=4, rows=4, designs=4)  # 576 GPUs: as small as a wide fleet can be
TEAM = fleets.demo().services[0].namespace


def checked(plan: Plan, problem: Problem) -> BoundCheck:
    check = verify_bound(plan, problem, capacity_of=replica_capacity)
    assert check is not None
    return check


def classwide(problem: Problem) -> Problem:
    services = tuple(replace(s, placement=PlacementMode.CLASS) for s in problem.services)
    return replace(problem, services=services)


def floored(problem: Problem) -> Problem:
    return replace(problem, services=tuple(replace(s, min_replicas=3) for s in problem.services))


def on_spot(problem: Problem) -> Problem:
    nodes = tuple(
        replace(n, price_ratio=0.5, reclaims_per_hour=0.05) if i % 2 else n for i, n in enumerate(problem.nodes)
    )
    return replace(problem, nodes=nodes)


def with_quota(problem: Problem) -> Problem:
    quotas = (Quota(namespace=TEAM, max_gpus=8), Quota(namespace=TEAM, gpu_class="l40s", max_watts=4000.0))
    return replace(problem, policy=replace(problem.policy, quotas=quotas))


def with_caps(problem: Problem) -> Problem:
    return replace(problem, policy=replace(problem.policy, power_caps=True))


def as_it_is(problem: Problem) -> Problem:
    return problem


CHANGES = (as_it_is, classwide, floored, on_spot, with_quota, with_caps)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_the_bound_of_a_plan_is_found_again(change: Callable[[Problem], Problem], rate: float) -> None:
    problem = change(fleets.demo(rate))
    plan = make_plan(problem)
    check = checked(plan, problem)
    assert check.is_supported, str(check)
    assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)


@pytest.fixture(scope="module")
def wide() -> tuple[Problem, Plan]:
    problem = synthetic.make_problem(WIDE, 1, load=0.4, policy=Policy(min_saving_ratio=0.0))
    return problem, make_plan(problem)


def test_the_bound_of_a_wide_plan_is_found_again(wide: tuple[Problem, Plan]) -> None:
    problem, plan = wide
    check = checked(plan, problem)
    assert str(check).startswith("bound supported: claimed ")
    assert not check.is_searched


def test_what_runs_counts_in_the_bound(wide: tuple[Problem, Plan]) -> None:
    moved = synthetic.shifted(*wide, 0.1, seed=3)
    check = checked(make_plan(moved, previous=wide[1]), moved)
    assert check.is_supported, str(check)


def claiming(plan: Plan, times: float) -> Plan:
    """The plan with a bound so many times as high."""
    bound = times * plan.report.bound_usd_per_hour
    return replace(plan, report=replace(plan.report, bound_usd_per_hour=bound))


def test_a_bound_that_claims_too_much_is_caught(wide: tuple[Problem, Plan]) -> None:
    problem, plan = wide
    said = str(checked(claiming(plan, 1.02), problem))
    claimed = 1.02 * plan.report.bound_usd_per_hour
    assert said.startswith(f"claimed bound not supported: claimed {claimed:.6f}, recomputed ")


@pytest.mark.parametrize("times", [0.0, 0.5, 2.0])
def test_prices_that_do_not_support_the_bound_are_caught(wide: tuple[Problem, Plan], times: float) -> None:
    problem, plan = wide
    shown = plan.certificate
    assert shown is not None
    rows = tuple(replace(row, usd_per_hour=times * row.usd_per_hour) for row in shown.rows)
    check = checked(replace(plan, certificate=replace(shown, rows=rows)), problem)
    assert not check.is_supported


def test_claiming_that_more_was_searched_does_not_help(wide: tuple[Problem, Plan]) -> None:
    """What is said to be searched is told as that, and what is said to be priced is still found again or not."""
    problem, plan = wide
    shown = plan.certificate
    assert shown is not None
    searched = replace(shown, is_searched=True)
    check = checked(replace(claiming(plan, 1.005), certificate=searched), problem)
    assert str(check).startswith("bound by search: claimed ")
    false = replace(searched, usd_per_hour=1.02 * shown.usd_per_hour)
    assert not checked(replace(claiming(plan, 1.03), certificate=false), problem).is_supported


def test_weights_that_the_plan_does_not_pay_are_caught() -> None:
    problem = fleets.demo(3.0)
    problem = replace(problem, nodes=problem.nodes[:2])
    plan = make_plan(problem)
    assert plan.is_short
    assert checked(plan, problem).is_supported
    shown = plan.certificate
    assert shown is not None
    weights = tuple(replace(row, unserved_usd_per_hour=1.5 * row.unserved_usd_per_hour) for row in shown.weights)
    check = checked(replace(plan, certificate=replace(shown, weights=weights)), problem)
    assert not check.is_supported
    assert "its weights say" in str(check)


def test_a_plan_without_prices_says_nothing() -> None:
    problem = fleets.demo(0.5)
    plan = replace(make_plan(problem), certificate=None)
    assert verify_bound(plan, problem, capacity_of=replica_capacity) is None


def random_rows(problem: Problem, rng: np.random.Generator) -> tuple[PricedRow, ...]:
    """Prices of any kind at any places, as no planner would ask."""
    bays = sorted({(n.gpu_class, n.location) for n in problem.nodes})
    domains = sorted(problem.domains)
    rows = []
    for gpu_class, location in bays:
        price, size = float(rng.exponential(3.0)), float(rng.choice([1.0, 2.0, 4.0, 8.0]))
        rows.append(PricedRow(limit=GPUS, places=(location,), gpu_class=gpu_class, size=size, usd_per_hour=price))
    for domain in domains:
        each, whole = (float(price) for price in rng.exponential(0.5, 2))
        watts = float(rng.choice([300.0, 780.0, 3120.0]))
        rows.append(PricedRow(limit=POWER, places=(domain,), usd_per_hour=each))
        rows.append(PricedRow(limit=POWER_WHOLE, places=(domain,), size=watts, usd_per_hour=whole))
    for limit, gpu_class in ((QUOTA_GPUS, ""), (QUOTA_POWER, "l40s")):
        rows.append(PricedRow(limit=limit, places=(TEAM,), gpu_class=gpu_class, usd_per_hour=float(rng.exponential())))
    return tuple(row for row in rows if rng.random() < 0.3)


@pytest.mark.parametrize("change", CHANGES)
def test_no_prices_give_a_bound_above_a_plan(change: Callable[[Problem], Problem]) -> None:
    problem = change(fleets.demo(3.0))
    plan = make_plan(problem)
    shown, rng = plan.certificate, fleets.seeded(11)
    assert shown is not None
    for _ in range(5):
        tried = replace(shown, rows=random_rows(problem, rng))
        found = recomputed(tried, problem, replica_capacity)
        assert found <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)


def test_nonsense_prices_are_left_out() -> None:
    problem = fleets.demo(0.5)
    shown = make_plan(problem).certificate
    assert shown is not None
    free = recomputed(replace(shown, rows=()), problem, replica_capacity)
    broken = (
        PricedRow(limit=GPUS, places=("rack-1",), gpu_class="h100-sxm", size=0.0, usd_per_hour=5.0),
        PricedRow(limit=POWER, places=(), usd_per_hour=5.0),
        PricedRow(limit=POWER, places=("rack-1",), usd_per_hour=math.nan),
        PricedRow(limit=POWER, places=("rack-1",), usd_per_hour=-5.0),
    )
    assert recomputed(replace(shown, rows=broken), problem, replica_capacity) == free


def stock(role: Role, rate: float, price: float, count: int, growth: float = 0.0) -> Stock:
    """A pool whose replicas carry a little more in a larger one."""
    made = Stock(
        pair=(role, str(rate), str(price)),
        role=role,
        units_usd_per_hour=np.zeros(count),
        price_usd_per_hour=price,
        idle_usd_per_hour=price,
        sized=lambda size: (rate * (1.0 + growth * (1.0 - 1.0 / size)), price),
    )
    made.ask(made.most)
    return made


@pytest.mark.parametrize("seed", range(12))
def test_the_least_value_is_that_of_the_cheapest_sizes(seed: int) -> None:
    """Against every pair of sizes of two mixed pools, unserved demand priced."""
    rng = fleets.seeded(seed)
    rates, prices = rng.uniform(0.5, 3.0, 2), rng.uniform(1.0, 4.0, 2)
    growth, demand, penalty = (
        float(rng.uniform(0.0, 0.3)),
        float(rng.uniform(2.0, 20.0)),
        float(rng.uniform(5.0, 200.0)),
    )
    stocks = [stock(Role.MIXED, float(r), float(p), 30, growth) for r, p in zip(rates, prices, strict=True)]
    asked = Asked(demand_per_s=demand, unserved_usd_per_hour=penalty, fair_ratio=1.0, floor=0, floor_usd_per_hour=0.0)
    best = math.inf
    for a in range(31):
        for b in range(31):
            each = [(1.0 + growth * (1.0 - 1.0 / n)) * n if n else 0.0 for n in (a, b)]
            lacks = max(0.0, 1.0 - (each[0] * rates[0] + each[1] * rates[1]) / demand)
            best = min(best, a * prices[0] + b * prices[1] + penalty * lacks)
    found = value(stocks, first_apart(stocks), asked, 4000, rounds=40)
    assert found <= best * (1.0 + 1e-9)
    assert found >= best - 2.0 * max(penalty, best) / 4000 - 1e-9


def test_large_pools_are_counted_beyond_the_sizes_told_apart() -> None:
    """A thousand requests/s of replicas that carry two and a half each: 400 of them, in prefill and in decode."""
    stocks = [stock(Role.PREFILL, 2.5, 1.0, 900), stock(Role.DECODE, 2.5, 3.0, 900)]
    asked = Asked(demand_per_s=1000.0, unserved_usd_per_hour=1e6, fair_ratio=1.0, floor=0, floor_usd_per_hour=0.0)
    assert value(stocks, first_apart(stocks), asked, 4000, rounds=40) == pytest.approx(1600.0, rel=2e-3)


def test_prices_beyond_the_sizes_told_apart_are_cut_where_they_jump() -> None:
    kept, new = np.full(4, -0.4), np.full(30, 1.1)
    cut = _stretches(np.concatenate([kept, new]))
    assert [len(bunch) for bunch in cut] == [4, 30]
    slow = _stretches(np.arange(100.0))
    assert [bunch[0] for bunch in slow] == sorted(bunch[0] for bunch in slow)
    assert len(slow) == MOST_STRETCHES
    assert sum(map(len, slow)) == 100


@pytest.mark.parametrize(("floor", "usd_per_hour"), [(0, 2.0), (1, 2.0), (3, 6.0), (5, 18.0)])
def test_replicas_below_a_floor_are_had_or_paid_for(floor: int, usd_per_hour: float) -> None:
    """One mixed replica of 2 USD/h carries all and three fit; what is missing then costs 3 USD/h in each chain."""
    stocks = [stock(Role.MIXED, 10.0, 2.0, 3)]
    asked = Asked(demand_per_s=5.0, unserved_usd_per_hour=1e3, fair_ratio=1.0, floor=floor, floor_usd_per_hour=3.0)
    assert least(stocks, first_apart(stocks), asked, 1000).usd_per_hour == pytest.approx(usd_per_hour)


def test_a_class_wide_pool_counts_what_runs_anywhere() -> None:
    problem = classwide(fleets.demo(0.5))
    plan = make_plan(problem)
    running = {(row.pool, ANYWHERE): row.replicas for row in plan.placements}
    moved = replace(problem, running=running)
    check = checked(make_plan(moved, previous=plan), moved)
    assert check.is_supported, str(check)


def test_what_a_held_tier_may_lack_is_given_back_at_its_price_and_what_it_lacks_weighs_more() -> None:
    """Nothing can serve the service: it is charged all of its demand and every replica of its floor."""
    served = fleets.service("chat", "chat", rank=0, min_replicas=3)
    problem = fleets.problem([(served, 4.0)], fleets.nodes("h100-sxm", 1, "rack-a"), [])
    weights = ServiceWeights(service=served.name, unserved_usd_per_hour=100.0, floor_usd_per_hour=5.0, fair_ratio=1.0)

    def found(price_ratio: float, lacking_usd: float) -> float:
        tier = HeldTier(tier_rank=0, lacking_usd_per_hour=lacking_usd, price_ratio=price_ratio)
        shown = Certificate(usd_per_hour=0.0, rows=(), weights=(weights,), held=(tier,))
        return recomputed(shown, problem, replica_capacity)

    alone = found(0.0, 0.0)
    assert alone >= 100.0 + 3 * 5.0
    assert found(0.0, 40.0) == pytest.approx(alone)
    assert found(0.5, 0.0) == pytest.approx(1.5 * alone)
    assert found(0.5, 40.0) == pytest.approx(1.5 * alone - 0.5 * 40.0)


def test_a_certificate_must_weigh_every_service() -> None:
    problem = fleets.demo(0.5)
    some = ServiceWeights(service="other/x", unserved_usd_per_hour=1.0, floor_usd_per_hour=1.0, fair_ratio=1.0)
    shown = Certificate(usd_per_hour=1.0, rows=(), weights=(some,))
    assert recomputed(shown, problem, replica_capacity) == -math.inf
