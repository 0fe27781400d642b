"""The check of bounds under rules on places: what nobody can have is paid for, and no bound passes the best plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner import make_plan
from solvers.planner.crew import WIDE_GPUS
from solvers.problem import Problem
from solvers.verify.bound import BoundCheck, verify_bound
from solvers.verify.stock import Stock, first_apart
from solvers.verify.ways import Asked, least
from solvers.workload import Pin
from tests import fleets
from tests.test_against_brute_force import Tiny, best_by_trying, drawn
from tests.test_pairing import grouped
from tests.test_pins import pinned_somewhere
from tests.test_rules_together import Together, with_rules
from tests.test_spread import spread

WITHIN = 1e-3  # of what the planner claims, what a bound that is found again may lie below it
Rule = Callable[[Problem, np.random.Generator], Problem]


def free(problem: Problem, rng: np.random.Generator) -> Problem:
    return problem


def pinned(problem: Problem, rng: np.random.Generator) -> Problem:
    return replace(problem, services=tuple(pinned_somewhere(s, rng) for s in problem.services))


def spread_out(problem: Problem, rng: np.random.Generator) -> Problem:
    return replace(problem, services=tuple(spread(s, rng) for s in problem.services))


def on_spot(problem: Problem, rng: np.random.Generator) -> Problem:
    nodes = tuple(replace(n, reclaims_per_hour=float(rng.choice([0.0, 2.0]))) for n in problem.nodes)
    services = tuple(replace(s, max_spot_ratio=float(rng.choice([0.0, 0.5]))) for s in problem.services)
    return replace(problem, nodes=nodes, services=services)


def in_groups(problem: Problem, rng: np.random.Generator) -> Problem:
    return grouped(problem, rng)


def at_locations(problem: Problem, rng: np.random.Generator) -> Problem:
    return replace(problem, services=tuple(replace(s, kv_may_cross=False) for s in problem.services))


def with_cpus(problem: Problem, rng: np.random.Generator) -> Problem:
    services = tuple(
        replace(s, requests={role: {"cpu": int(rng.integers(1, 4))} for role in s.roles}) for s in problem.services
    )
    nodes = tuple(replace(n, resources={"cpu": int(rng.integers(1, 9))}) for n in problem.nodes)
    return replace(problem, services=services, nodes=nodes)


def checked(case: Tiny, wide_gpus: int) -> BoundCheck:
    plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=wide_gpus)
    check = verify_bound(plan, case.problem, capacity_of=case.capacity_of)
    assert check is not None
    return check


@pytest.mark.parametrize("rule", [in_groups, at_locations, with_cpus])
def test_no_bound_is_refused_for_a_rule_that_no_certificate_tells_of(
    rule: Rule,
) -> None:
    """What rests on pairs or on resources is told as searched; what is found lies below the plan all the same."""
    for seed, tiny in drawn(9002, 12):
        case = Together(problem=rule(tiny.problem, np.random.default_rng(seed)), table=tiny.table)
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=0)
        check = verify_bound(plan, case.problem, capacity_of=case.capacity_of)
        assert check is not None
        assert check.is_supported, (seed, str(check))
        assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-6) + 1e-6, seed


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize(
    ("rule", "least_supported"), [(free, 8), (pinned, 7), (spread_out, 4), (on_spot, 6), (with_rules, 4)]
)
def test_no_recomputed_bound_passes_the_best_of_all_counts(rule: Rule, least_supported: int, is_wide: bool) -> None:
    """Tiny fleets: below the best in all, and in most as high as claimed where prices are all that was claimed."""
    wide_gpus = 0 if is_wide else WIDE_GPUS
    supported = 0
    for seed, tiny in drawn(9000, 10):
        case = Together(problem=rule(tiny.problem, np.random.default_rng(seed)), table=tiny.table)
        check, best = checked(case, wide_gpus), best_by_trying(case, wide_gpus)
        assert check.is_supported, (seed, str(check))
        if not check.is_held:
            assert check.recomputed_usd_per_hour <= best * (1.0 + 1e-6) + 1e-6, (seed, str(check))
        assert check.recomputed_usd_per_hour >= check.priced_usd_per_hour * (1.0 - WITHIN) - 1e-6, (seed, str(check))
        supported += str(check).startswith("bound supported: ")
    assert supported >= least_supported - (0 if is_wide else 4)


def racks(**how: Any) -> Problem:
    """A mixed service that two racks of H100 hold with ease, and needs one of."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("h100-sxm", 1, "rack-2"))
    served = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), **how)
    return fleets.problem([(served, 6.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])


def found(problem: Problem) -> BoundCheck:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    check = verify_bound(plan, problem, capacity_of=fleets.plain_capacity)
    assert check is not None
    assert check.is_supported, str(check)
    assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-6)
    return check


def test_replicas_that_a_pin_cannot_have_are_paid_for() -> None:
    """Eight of nine fit at the rack: the ninth costs ten times the tier's weight on a replica."""
    usual = found(racks()).recomputed_usd_per_hour
    missing = found(racks(pins=(Pin(location="rack-1", replicas=9),))).recomputed_usd_per_hour
    assert missing - usual >= 60.0 * 10.0 * 2.5 * (1.0 - 1e-4)
    assert found(racks(pins=(Pin(location="rack-1", replicas=8),))).recomputed_usd_per_hour < usual + 8 * 6.0
    held = found(racks(pins=(Pin(location="rack-1", replicas=5),), max_replicas=5)).recomputed_usd_per_hour
    assert held < usual + 8 * 6.0


def test_locations_that_there_are_not_are_paid_for() -> None:
    usual = found(racks()).recomputed_usd_per_hour
    three = found(racks(min_locations=3)).recomputed_usd_per_hour  # of two, in both chains
    assert three - usual >= 2.0 * 60.0 * 10.0 * 2.5 * (1.0 - 1e-4)
    assert found(racks(min_locations=2)).recomputed_usd_per_hour < usual + 8 * 6.0


def test_what_may_not_be_lost_is_not_served_from_one_place() -> None:
    """At one rack nothing may be served that must survive its loss; at two, each carries its part."""
    lost = racks(max_share_per_location_ratio=0.5, locations=("rack-1",))
    plan = make_plan(lost, capacity_of=fleets.plain_capacity)
    assert plan.services[0].served_requests_per_s == 0.0
    assert found(lost).recomputed_usd_per_hour == pytest.approx(plan.report.objective_usd_per_hour, rel=1e-3)
    usual = found(racks()).recomputed_usd_per_hour
    quarter = found(racks(max_share_per_location_ratio=0.25)).recomputed_usd_per_hour  # 1.5 times the capacity
    assert quarter > 1.3 * usual


def test_a_chain_that_could_only_stand_on_spot_nodes_serves_nothing() -> None:
    problem = racks(max_spot_ratio=0.5)
    spot = replace(problem, nodes=tuple(replace(n, reclaims_per_hour=0.5) for n in problem.nodes))
    plan = make_plan(spot, capacity_of=fleets.plain_capacity)
    assert plan.services[0].served_requests_per_s == 0.0
    assert found(spot).recomputed_usd_per_hour == pytest.approx(plan.report.objective_usd_per_hour, rel=1e-3)


def carrying(rate: float, size: int) -> tuple[float, float]:
    return rate, 2.0


@pytest.mark.parametrize("count", [3, 200])
def test_replicas_that_are_cheaper_kept_than_stopped_are_all_kept(count: int) -> None:
    """Each saves 5 USD/h of stopping and costs 2 to run; only one is needed, and none of another pool."""
    kept = [
        Stock(
            pair=(Role.MIXED, str(rate)),
            role=Role.MIXED,
            units_usd_per_hour=np.full(count, -5.0),
            price_usd_per_hour=2.0,
            idle_usd_per_hour=2.0,
            sized=partial(carrying, rate),
        )
        for rate in (10.0, 0.001)
    ]
    for stock in kept:
        stock.ask(stock.most)
    asked = Asked(demand_per_s=5.0, unserved_usd_per_hour=1e3, fair_ratio=1.0, floor=0, floor_usd_per_hour=0.0)
    value = least(kept, first_apart(kept), asked, 1000).usd_per_hour
    assert value <= -3.0 * 2 * count + 1e-9
    assert value >= -3.0 * 2 * count - 3.0
