"""Why a count, for which demand, at which prices: what an explanation says is what happens when it is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine.roofline import cap_curves
from solvers.explain import Explanation, explain
from solvers.explain.changes import RemoveWatts
from solvers.explain.predict import Predictor
from solvers.explain.reasons import KeptBy
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.placing.desk import Desk
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests import bench_explain, fleets

EXACT = Policy(start_cost_hours=0.0, relative_gap=1e-6)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """One service on a roomy fleet: what is said of it can be tried without others in the way."""
    built = fleets.demo(2.0, budget_ratio=1.2, policy=EXACT)
    served = next(s for s in built.services if s.name == "default/chat-8b")
    return replace(built, services=(served,), demands={served.name: built.demands[served.name]})


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return make_plan(problem)


@pytest.fixture(scope="module")
def told(plan: Plan, problem: Problem) -> Explanation:
    return explain(plan, problem, "default/chat-8b")


def with_demand(problem: Problem, requests_per_s: float) -> Problem:
    return replace(problem, demands={n: replace(d, requests_per_s=requests_per_s) for n, d in problem.demands.items()})


def test_one_replica_fewer_serves_what_is_said(told: Explanation, plan: Plan, problem: Problem) -> None:
    assert {reason.pool for reason in told.counts} == {pool.pool for pool in told.chosen}
    desk = Desk.of(problem, replica_capacity, plan)
    for reason in told.counts:
        counts = {(r.pool, r.location): r.replicas for r in plan.placements}
        key = next(key for key in sorted(counts) if str(key[0]) == reason.pool)
        counts[key] -= 1
        served = desk.worth(counts).served_per_s["default/chat-8b"]
        assert served == pytest.approx(reason.one_less_serves_requests_per_s)
        assert (reason.kept_by is KeptBy.DEMAND) == (served < told.served_requests_per_s * (1.0 - 1e-6))


def test_the_replicas_carry_the_range_and_no_more(told: Explanation, plan: Plan, problem: Problem) -> None:
    assert told.demand_range is not None
    least, most = told.demand_range.least_requests_per_s, told.demand_range.most_requests_per_s
    assert least < told.demand_requests_per_s <= most
    counts = {(r.pool, r.location): r.replicas for r in plan.placements}
    for rate, is_enough in ((0.999 * most, True), (1.001 * most, False)):
        worth = Desk.of(with_demand(problem, rate), replica_capacity, plan).worth(counts)
        assert (not worth.short) == is_enough
    fewer = make_plan(with_demand(problem, 0.999 * least))
    assert fewer.report.cost_usd_per_hour < plan.report.cost_usd_per_hour


def test_the_floor_is_named_when_it_alone_keeps_a_replica(problem: Problem) -> None:
    served = replace(problem.services[0], min_replicas=3)
    idle = with_demand(replace(problem, services=(served,)), 1.0)
    told = explain(make_plan(idle), idle, served.name)
    assert {reason.kept_by for reason in told.counts} == {KeptBy.FLOOR}
    assert "one fewer than 3: minReplicas or a pin would be broken" in told.text()
    assert told.demand_range is not None
    assert told.demand_range.least_requests_per_s == 0.0


def test_past_the_price_that_is_said_another_class_is_chosen(told: Explanation, problem: Problem) -> None:
    assert told.switches
    mine = {pool.pool for pool in told.chosen}
    for switch in told.switches:
        for share, is_past in ((0.5, False), (1.1, True)):
            price = switch.now_usd_per_hour + share * (switch.at_usd_per_hour - switch.now_usd_per_hour)
            if price < 0.0:
                continue
            kind = replace(problem.gpu_classes[switch.gpu_class], price_usd_per_hour=price)
            dearer = replace(problem, gpu_classes={**problem.gpu_classes, switch.gpu_class: kind})
            plan = make_plan(dearer)
            assert verify(plan, dearer) == ()
            if is_past:  # before it other ways, mixes of pools among them, may win already; past it ours never does
                assert {str(pool.pool) for pool in plan.pools} != mine


def test_a_service_without_replicas_has_no_range(problem: Problem) -> None:
    hard = replace(problem.services[0], slos=fleets.slos(0.001, 0.05), min_replicas=0)
    impossible = replace(problem, services=(hard,))
    told = explain(make_plan(impossible), impossible, hard.name)
    assert (told.counts, told.demand_range, told.switches) == ((), None, ())


def test_what_a_lost_location_must_leave_is_counted_in(problem: Problem) -> None:
    spread = replace(problem.services[0], min_locations=2, max_share_per_location_ratio=0.6)
    problem = replace(problem, services=(spread,))
    plan = make_plan(problem)
    told = explain(plan, problem, spread.name)
    assert told.demand_range is not None
    desk, counts = Desk.of(problem, replica_capacity, plan), {(r.pool, r.location): r.replicas for r in plan.placements}
    for reason in told.counts:
        keys = [key for key in counts if str(key[0]) == reason.pool]
        best = max(desk.worth({**counts, key: counts[key] - 1}).served_per_s[spread.name] for key in keys)
        assert reason.one_less_serves_requests_per_s <= best + 1e-9
    over = with_demand(problem, 1.001 * told.demand_range.most_requests_per_s)
    assert Desk.of(over, replica_capacity, plan).worth(counts).short


def test_a_power_cap_is_told_with_what_it_costs_and_saves() -> None:
    problem = fleets.demo(1.5, budget_ratio=0.3, policy=replace(EXACT, relative_gap=0.02, power_caps=True))
    known = {
        key: replace(
            profile, **cap_curves(profile.idle_watts_per_gpu, problem.gpu_classes[key.gpu_class].max_cap_watts)
        )
        for key, profile in problem.profiles.items()
    }
    problem = replace(problem, profiles=known)
    plan = make_plan(problem)
    capped = {str(p.pool): p for p in plan.pools if p.cap_watts < problem.gpu_classes[p.pool.gpu_class].max_cap_watts}
    assert capped
    for service in plan.services:
        told = explain(plan, problem, service.service)
        mine = {pool.pool for pool in told.chosen}
        lowered = [cap for cap in told.caps if cap.cap_watts < cap.max_cap_watts]
        assert {cap.pool for cap in lowered} == mine & capped.keys()
        for cap in told.caps:
            assert 0.0 <= cap.lower_speed_ratio <= 1.0
            assert cap.lower_cap_watts < cap.cap_watts
        for cap in lowered:
            pool = capped[cap.pool]
            gpus = pool.replicas * pool.pool.config.gpus
            assert cap.saved_watts == pytest.approx(gpus * (cap.max_cap_watts - cap.cap_watts))
            assert 0.0 < cap.speed_ratio <= 1.0
            assert f"capped at {cap.cap_watts:g} of {cap.max_cap_watts:g} W: " in told.text()
        assert all(reason.one_less_serves_requests_per_s <= told.served_requests_per_s for reason in told.counts)
        assert told.demand_range is not None
        assert told.demand_range.most_requests_per_s >= told.served_requests_per_s
        ways = [{name.split("W")[0] for name, _ in way.pools} for way in told.rejected]
        assert not any(way <= mine for way in ways)  # another cap of the same pools is no other way
    predictor = Predictor.of(problem, plan)
    domain = next(name for name in problem.domains if name.startswith("rack"))
    case = bench_explain.judged("capped", predictor, RemoveWatts(domain=domain))
    assert case.is_within, case
