"""What a change is predicted to cost is what deciding anew comes to, and prices hold as far as they are said to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.explain.changes import Change, RemoveGpus, RemoveService, RemoveWatts, changed
from solvers.explain.market import Market
from solvers.explain.predict import Predictor, predict
from solvers.explain.pricing import explain_priced, shadow_prices
from solvers.planner import make_plan
from solvers.planner.placing.desk import Desk
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from tests import bench_explain, fleets, split_world

CALM_OFF = Policy(start_cost_hours=0.0, min_saving_ratio=0.0)


def tight(scale: float = 4.0, budget_ratio: float = 0.55) -> Problem:
    return fleets.demo(scale, budget_ratio=budget_ratio, policy=CALM_OFF)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    problem = tight()
    return Predictor.of(problem, make_plan(problem))


CHANGES: Sequence[Change] = (
    RemoveGpus(gpu_class="l40s", location="rack-b2"),
    RemoveGpus(gpu_class="h100-sxm", location="rack-a1", gpus=8),
    RemoveWatts(domain="rack-b2"),
    RemoveWatts(domain="site", watts=4000.0),
    RemoveWatts(domain="rack-b1", watts=3000.0),
    RemoveService(service="default/moe"),
    RemoveService(service="default/chat-8b"),
)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_prediction_holds_what_deciding_anew_comes_to(predictor: Predictor, change: Change) -> None:
    case = bench_explain.judged("small", predictor, change)
    assert case.is_within, case
    assert case.low <= case.expected <= case.high
    assert case.high - case.low <= 0.05 * case.before


def test_larger_fleets_are_predicted_without_whole_ways() -> None:
    name, problem = "42 nodes", fleets.demo(20.0, budget_ratio=0.7, policy=CALM_OFF)
    nodes = [replace(n, name=f"{n.name}-{copy}") for copy in range(6) for n in problem.nodes]
    problem = replace(problem, nodes=tuple(nodes))
    problem = replace(problem, domains=fleets.budgets(problem, 0.6))
    predictor = Predictor.of(problem, make_plan(problem))
    assert predictor.market.composer is None
    for change in (RemoveWatts(domain="rack-b2"), RemoveService(service="default/moe")):
        case = bench_explain.judged(name, predictor, change)
        assert case.is_within, case


def test_what_is_free_costs_nothing_to_lose() -> None:
    problem = fleets.demo(0.5, budget_ratio=1.2, policy=CALM_OFF)
    plan = make_plan(problem)
    idle = next(n for n in problem.nodes if n.location not in {row.location for row in plan.placements})
    told = predict(problem, plan, RemoveGpus(gpu_class=idle.gpu_class, location=idle.location))
    assert told.expected_usd_per_hour == told.high_usd_per_hour == pytest.approx(0.0, abs=1e-9)
    assert told.short == ()


def test_a_loss_that_leaves_someone_short_says_whom(predictor: Predictor) -> None:
    told = predictor.after(RemoveWatts(domain="site", watts=30_000.0))
    assert told.short
    assert told.low_usd_per_hour > 0.0


SPLIT_CHANGES: Sequence[Change] = (
    RemoveGpus(gpu_class="h100-sxm", location="rack-a", gpus=4),
    RemoveGpus(gpu_class="h100-sxm", location="rack-a", gpus=8),
    RemoveGpus(gpu_class="l40s", location="rack-b", gpus=8),
    RemoveWatts(domain="rack-b", watts=4000.0),
    RemoveService(service=split_world.CHAT),
)


@pytest.fixture(scope="module")
def split() -> Predictor:
    """Chats on two nodes of cheap GPUs, documents on one of fast ones, watts scarce where the chats are."""
    problem = split_world.documents(policy=CALM_OFF)
    domains = {**problem.domains, "rack-b": replace(problem.domains["rack-b"], budget_watts=9000.0)}
    problem = replace(problem, nodes=(problem.nodes[0], *problem.nodes[6:8]), domains=domains)
    plan = make_plan(problem)
    assert [row.sizes for row in plan.parts] == ["p0-4095", "p4096-up"]
    return Predictor.of(problem, plan)


@pytest.mark.parametrize("change", SPLIT_CHANGES, ids=str)
def test_changes_of_a_service_that_is_split_by_size_are_predicted(split: Predictor, change: Change) -> None:
    """Deciding anew may split otherwise: what was predicted as least bounds that too."""
    case = bench_explain.judged("split", split, change)
    assert case.is_within, case
    told = split.after(change)
    assert not told.keeps_cuts
    assert set(told.short) <= {split_world.CHAT}


def test_a_part_of_a_service_cannot_be_taken_away_by_itself(split: Predictor) -> None:
    with pytest.raises(InvalidInput, match=r"is not planned; planned are: default/chat$"):
        split.after(RemoveService(service=f"{split_world.CHAT}:p0-4095"))


def test_the_losses_of_a_split_service_are_told_once_and_of_the_whole(split: Predictor) -> None:
    told = explain_priced(split.plan, split.problem, split_world.CHAT, with_losses=True)
    names = [loss.change for loss in told.losses]
    assert len(names) == len(set(names))
    assert names[0] == f"without {split_world.CHAT}"
    assert told.losses[0].high_usd_per_hour == pytest.approx(-split.plan.report.objective_usd_per_hour)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (RemoveGpus(gpu_class="l40s", location="rack-a1"), "takes 1 of 0 GPUs"),
        (RemoveGpus(gpu_class="l40s", location="rack-b2", gpus=9), "takes 9 of 8 GPUs"),
        (RemoveWatts(domain="rack-z"), "PowerDomain/rack-z: cannot lose 1,000 W: no such power domain"),
        (RemoveWatts(domain="site", watts=1e9), "its budget is"),
        (RemoveService(service="default/ghost"), "ServedModel/default/ghost: is not planned; planned are: default/"),
    ],
)
def test_a_change_to_what_is_not_there_is_refused(change: Change, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        changed(tight(), change)


def test_the_cost_of_another_way_holds_what_planning_with_only_it_comes_to() -> None:
    problem = tight(2.0, 0.7)
    plan = make_plan(problem)
    told = explain_priced(plan, problem, "default/chat-8b")
    assert len(told.rejected) == 2
    for way in told.rejected:
        labels = [name.split("/") for name, _ in way.pools]
        roles = tuple(sorted(Role(label[2]) for label in labels))
        kept = {tuple(label[3:5]) for label in labels}
        profiles = {
            key: profile
            for key, profile in problem.profiles.items()
            if key.model != "chat-8b" or (key.gpu_class, key.config.label) in kept
        }
        services = tuple(replace(s, roles=roles) if s.name == told.service else s for s in problem.services)
        forced = make_plan(replace(problem, profiles=profiles, services=services))
        extra = forced.report.objective_usd_per_hour - plan.report.objective_usd_per_hour
        gap = problem.policy.relative_gap * plan.report.objective_usd_per_hour
        assert way.fleet_low_usd_per_hour is not None
        assert way.fleet_high_usd_per_hour is not None
        assert way.fleet_low_usd_per_hour - gap <= extra <= way.fleet_high_usd_per_hour + gap


def test_prices_are_what_room_is_worth_when_the_problem_is_priced_anew(predictor: Predictor) -> None:
    """One more and one less of each scarce feed, by a budget that is really changed."""
    market, problem = predictor.market, predictor.problem
    prices = [price for price in shadow_prices(market) if price.limit == "power"]
    assert prices
    for price in prices:
        domain = next(g.domains[0] for g in market.cells.grouping.domain_groups if g.label == price.subject)
        for sign, unit in ((1.0, price.more_usd_per_hour), (-1.0, price.less_usd_per_hour)):
            kilowatts = price.more_holds_for if sign > 0.0 else price.less_holds_for
            budget = problem.domains[domain].budget_watts + sign * 1000.0 * kilowatts
            moved = replace(
                problem, domains={**problem.domains, domain: replace(problem.domains[domain], budget_watts=budget)}
            )
            there = Market.of(Desk.of(moved, replica_capacity, predictor.plan))
            real = abs(there.bound_usd_per_hour - market.bound_usd_per_hour)
            open_gap = 2.0 * problem.policy.relative_gap * market.bound_usd_per_hour
            assert real == pytest.approx(unit * kilowatts, rel=0.15, abs=open_gap)


def test_more_of_the_same_is_worth_no_more_than_less_of_it_costs(predictor: Predictor) -> None:
    for price in shadow_prices(predictor.market):
        assert price.more_usd_per_hour <= price.less_usd_per_hour * (1.0 + 1e-6) + 1e-6
        assert price.less_usd_per_hour > 0.0


def test_a_priced_explanation_is_json_and_says_how_far_prices_hold(predictor: Predictor) -> None:
    told = explain_priced(predictor.plan, predictor.problem, "default/chat-70b")
    assert json.loads(json.dumps(told.to_dict()))["prices"]
    assert any("one less costs" in line and "valid for about" in line for line in told.text().splitlines())
    assert "for the whole fleet, decided anew" in told.text()
