from __future__ import annotations

import json
from dataclasses import replace

import pytest

from solvers.baselines import greedy
from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.explain import difference, explain
from solvers.explain.brief import MOST_SERVICES, with_reasons
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from tests import fleets


@pytest.fixture(scope="module")
def problem() -> Problem:
    return fleets.demo(1.0)


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return make_plan(problem)


def test_chosen_pools_add_up_to_the_service(plan: Plan, problem: Problem) -> None:
    for served in plan.services:
        told = explain(plan, problem, served.service)
        assert told.usd_per_hour == pytest.approx(sum(pool.usd_per_hour for pool in told.chosen))
        assert all(0.0 < pool.used_ratio <= 1.0 + 1e-6 for pool in told.chosen)
        rate = 3.6 * served.served_requests_per_s  # thousands of requests per hour
        paid = sum(rate * pool.demand_ratio * pool.usd_per_thousand_requests for pool in told.chosen)
        assert paid == pytest.approx(told.usd_per_hour)


def test_two_alternatives_are_priced_and_dearer_where_nothing_is_scarce(problem: Problem) -> None:
    roomy = replace(problem, domains=fleets.budgets(problem, 1.2))
    best = make_plan(replace(roomy, policy=replace(roomy.policy, relative_gap=1e-6)))
    told = explain(best, roomy, "default/chat-8b")
    chosen = {pool.pool for pool in told.chosen}
    assert len(told.rejected) == 2
    for way in told.rejected:
        assert {name for name, _ in way.pools} - chosen
        assert way.blocked_by == ()
        assert way.extra_usd_per_hour == pytest.approx(way.usd_per_hour - told.usd_per_hour)
        assert way.extra_usd_per_hour + 0.3 * way.usd_per_hour >= 0.0  # starts are paid once, in either case
    assert told.rejected[0].extra_usd_per_hour <= told.rejected[1].extra_usd_per_hour


def test_forcing_a_rejected_way_costs_what_was_said(problem: Problem) -> None:
    """The extra cost is checked by planning the service with nothing but that way."""
    served = next(s for s in problem.services if s.name == "default/chat-8b")
    alone = replace(
        problem,
        services=(served,),
        demands={served.name: problem.demands[served.name]},
        domains=fleets.budgets(problem, 1.2),
        policy=replace(problem.policy, relative_gap=1e-6),
    )
    best = make_plan(alone)
    told = explain(best, alone, served.name)
    for way in told.rejected:
        labels = {name for name, _ in way.pools}
        roles = tuple(Role(label.split("/")[2]) for label in sorted(labels))
        profiles = {
            key: profile
            for key, profile in alone.profiles.items()
            if any(label.endswith(f"/{key.gpu_class}/{key.config.label}") for label in labels)
        }
        forced = make_plan(replace(alone, profiles=profiles, services=(replace(served, roles=roles),)))
        assert forced.report.cost_usd_per_hour <= way.usd_per_hour * (1 + 1e-6)
        assert forced.report.objective_usd_per_hour >= best.report.objective_usd_per_hour - 1e-6


def test_what_is_scarce_is_named_with_its_worth() -> None:
    problem = fleets.demo(6.0, budget_ratio=0.6)
    told = explain(make_plan(problem), problem, "default/chat-8b")
    assert any(limit.limit == "power" and limit.price_usd_per_hour > 0.0 for limit in told.binding)
    assert any(way.blocked_by for way in told.rejected)
    assert "binds: one more kW is worth" in told.text()


def test_a_short_service_says_why_and_what_could_not_serve_it() -> None:
    problem = fleets.demo(1.0)
    hard = tuple(replace(s, slos=fleets.slos(0.001, 0.05)) if s.name == "default/moe" else s for s in problem.services)
    problem = replace(problem, services=hard)
    told = explain(make_plan(problem), problem, "default/moe")
    assert told.chosen == ()
    assert told.rejected == ()
    assert told.short_because
    assert any(reason.startswith("prefill on ") for reason in told.unfit)
    assert "short because nothing can serve its prompts" in told.text()


def test_a_short_service_says_what_would_serve_it_most_cheaply() -> None:
    problem = fleets.demo(2.0, budget_ratio=0.25)
    plan = make_plan(problem)
    assert plan.relief
    for row in plan.services:
        told = explain(plan, problem, row.service)
        assert told.relief == (plan.relief if row.short_because else ())
        assert ("all that is short would be served with" in told.text()) == bool(row.short_because)


def test_an_explanation_is_json_and_text(plan: Plan, problem: Problem) -> None:
    told = explain(plan, problem, "default/chat-70b")
    again = json.loads(json.dumps(told.to_dict()))
    assert again["service"] == "default/chat-70b"
    assert len(again["rejected"]) == 2
    text = told.text()
    assert text.startswith("default/chat-70b (standard): 6 of 6 requests/s served, ")
    assert text.count("rather than") == 2


def test_a_plan_says_why_in_a_few_lines_a_service(plan: Plan, problem: Problem) -> None:
    told = with_reasons(plan, problem)
    assert replace(told, whys=()) == plan
    assert [why.service for why in told.whys] == sorted(s.service for s in plan.services)
    for why in told.whys:
        assert 3 <= len(why.lines) <= 4
        assert all(0 < len(line) <= 253 for line in why.lines)
        assert why.lines[0].startswith("the same replicas carry up to ")
        assert why.lines[1].startswith("rather than ")


def test_of_many_services_the_short_and_the_dearest_are_told(problem: Problem) -> None:
    names = [f"default/s{n:02d}" for n in range(MOST_SERVICES + 4)]
    like = next(s for s in problem.services if s.name == "default/chat-8b")
    many = replace(
        problem,
        services=tuple(replace(like, name=name, min_replicas=0) for name in names),
        demands={
            name: replace(problem.demands[like.name], service=name, requests_per_s=1.0 + n)
            for n, name in enumerate(names)
        },
    )
    plan = greedy(many)
    told = {why.service for why in with_reasons(plan, many).whys}
    assert len(told) == MOST_SERVICES
    assert {s.service for s in plan.services if s.short_because} <= told or len(told) == MOST_SERVICES
    assert names[0] not in told  # asks least, costs least


def test_an_unknown_service_is_named(plan: Plan, problem: Problem) -> None:
    with pytest.raises(InvalidInput, match="default/ghost: is not in the plan; planned are: default/chat-70b"):
        explain(plan, problem, "default/ghost")


def test_a_plan_does_not_differ_from_itself(plan: Plan) -> None:
    same = difference(plan, plan)
    assert same.is_empty
    assert (same.domains, same.served_requests_per_s, same.cost_usd_per_hour) == ((), {}, 0.0)


def test_a_difference_counts_what_starts_and_stops(plan: Plan, problem: Problem) -> None:
    grown = {n: replace(d, requests_per_s=2 * d.requests_per_s) for n, d in problem.demands.items()}
    new = make_plan(replace(problem, demands=grown))
    change, back = difference(plan, new), difference(new, plan)
    before, after = (sum(p.replicas for p in one.placements) for one in (plan, new))
    assert change.starting_replicas - change.stopping_replicas == after - before
    assert (change.starting_replicas, change.stopping_replicas) == (back.stopping_replicas, back.starting_replicas)
    assert change.cost_usd_per_hour == pytest.approx(-back.cost_usd_per_hour)
    assert change.served_requests_per_s["default/moe"] == pytest.approx(10.0)
    site = next(row for row in change.domains if row.domain == "site")
    assert site.reserved_watts > 0.0
