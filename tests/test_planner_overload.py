"""Overloaded fleets: who goes without, and the proof that nobody above could have had more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solvers.engine import Role
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.placing.desk import Desk
from solvers.problem import Policy, Problem
from tests import fleets
from tests.test_planner import problems, with_demand


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.floats(2.0, 20.0))
def test_no_tier_is_short_of_what_lower_tiers_hold(problem: Problem, factor: float) -> None:
    """Take the lower tiers away and decide again: the higher ones get no more than they had beside them."""
    crowded = with_demand(replace(problem, running={}), factor)
    plan = make_plan(crowded, capacity_of=fleets.plain_capacity)
    ranks = sorted({service.tier_rank for service in crowded.services})
    for rank in ranks[:-1]:
        above = tuple(service for service in crowded.services if service.tier_rank <= rank)
        alone = replace(crowded, services=above, demands={s.name: crowded.demands[s.name] for s in above})
        best = make_plan(alone, capacity_of=fleets.plain_capacity)
        desk = Desk.of(crowded, fleets.plain_capacity)
        beside, apart = (lacking(desk, p, crowded, rank) for p in (plan, best))
        whole = sum(desk.penalties.unserved_usd_per_hour[s.name] for s in above if s.tier_rank == rank)
        if all(
            lacking(desk, p, crowded, r) == pytest.approx(0.0, abs=1e-6)
            for p in (plan, best)
            for r in ranks
            if r < rank
        ):
            assert beside <= apart * 1.02 + 0.01 * whole + 1e-6


def lacking(desk: Desk, plan: Plan, problem: Problem, rank: int) -> float:
    """Penalty of what the services of a tier go without, USD per hour."""
    total, rows = 0.0, {row.service: row for row in plan.services}
    for service in (s for s in problem.services if s.tier_rank == rank and s.name in rows):
        row, count = rows[service.name], dict.fromkeys(Role, 0)
        for placement in plan.placements:
            if placement.pool.service == service.name:
                count[placement.pool.role] += placement.replicas
        for role in (Role.PREFILL, Role.DECODE):
            missing = max(0, service.min_replicas - count[role] - count[Role.MIXED])
            total += missing * desk.penalties.floor_usd_per_hour[service.name]
        if row.demand_requests_per_s > 0.0:
            ratio = row.unserved_requests_per_s / row.demand_requests_per_s
            total += ratio * desk.penalties.unserved_usd_per_hour[service.name]
    return total


@pytest.mark.parametrize("scale", [12.0, 16.0, 30.0])
def test_an_overloaded_demo_serves_from_the_top(scale: float) -> None:
    problem = fleets.demo(scale, policy=Policy(relative_gap=0.015))
    plan = make_plan(problem)
    rows = sorted(plan.services, key=lambda row: fleets.TIERS.index(row.tier))
    ratios = [row.served_requests_per_s / row.demand_requests_per_s for row in rows]
    assert plan.is_short
    assert ratios[0] == pytest.approx(1.0) or ratios[1] <= 0.05
    assert ratios[1] == pytest.approx(1.0) or ratios[2] <= 0.05


def test_demand_that_nobody_can_serve_leaves_what_can_be_served() -> None:
    """Penalties of the hopeless rest must not fill the gap at which the search stops."""
    problem, name = fleets.demo(4.0, budget_ratio=0.7), "default/chat-8b"
    served = []
    for rate in (800.0, 240_000.0):
        demand = replace(problem.demands[name], requests_per_s=rate)
        plan = make_plan(replace(problem, demands={**problem.demands, name: demand}))
        served.append(next(row.served_requests_per_s for row in plan.services if row.service == name))
    assert served[1] >= 0.95 * served[0] > 100.0
