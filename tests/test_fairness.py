"""Who is short when not all can be served: equal shares inside a tier, by weight, guarantees first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput, SolveFailed
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.model.relax import state
from solvers.planner.placing.fairness import fair_ratios
from solvers.planner.pools.cells import build_cells
from solvers.problem import Policy, Problem, Quota
from solvers.verify import verify
from solvers.workload import ServedModel
from tests import fleets

RATE = 5.0  # what one H100 decodes in the plain table; decode has no economies of scale
GPUS = 16


def decoders(*asked: tuple[ServedModel, float], quotas: tuple[Quota, ...] = (), nodes: int = 2) -> Problem:
    """Services on one rack of H100 nodes; prompts are cheap, so tokens decide."""
    fleet = fleets.nodes("h100-sxm", nodes, "rack-1")
    profiles = [fleets.profile(model, "h100-sxm", 1, 8.0) for model in sorted({s.model for s, _ in asked})]
    return replace(fleets.problem(asked, fleet, profiles), policy=Policy(quotas=quotas))


def named(name: str, *, rank: int = 1, weight: float = 1.0) -> ServedModel:
    served = fleets.service("any", "chat", rank=rank, roles=(Role.MIXED,))
    return replace(served, name=name, fair_weight=weight)


def served_ratios(problem: Problem) -> dict[str, float]:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return ratios(plan)


def ratios(plan: Plan) -> dict[str, float]:
    return {s.service: s.served_requests_per_s / s.demand_requests_per_s for s in plan.services}


def shares(problem: Problem) -> dict[str, float]:
    desk = desk_for(problem, fleets.plain_capacity)
    cells = build_cells(problem, desk.options)
    return fair_ratios(cells, state(cells), time_limit_s=10.0)


def test_shares_that_take_too_many_steps_are_given_up_whatever_the_clock_says() -> None:
    problem = decoders((named("a/chat"), 20.0), (named("b/chat"), 20.0))
    desk = desk_for(problem, fleets.plain_capacity)
    cells = build_cells(problem, desk.options)
    with pytest.raises(SolveFailed, match="Iteration limit"):
        fair_ratios(cells, state(cells), time_limit_s=10.0, most_steps=0)


ONE = 1.5  # one mixed replica in a large pool: 1.5 requests/s, less a half over the pool's size


def test_two_equals_are_short_of_the_same() -> None:
    got = served_ratios(decoders((named("a/chat"), 20.0), (named("b/chat"), 20.0)))
    assert abs(got["a/chat"] - got["b/chat"]) <= ONE / 20.0
    assert 0.4 < got["a/chat"] < 0.7


def test_a_large_service_is_short_of_the_same_part_as_a_small_one() -> None:
    got = served_ratios(decoders((named("a/chat"), 40.0), (named("b/chat"), 8.0)))
    assert abs(got["a/chat"] - got["b/chat"]) <= ONE / 8.0


def test_a_service_that_takes_more_gpus_for_a_request_is_not_sacrificed() -> None:
    """Weights alone would serve whoever needs least for the penalty that it saves."""
    small, large = named("a/chat"), replace(named("b/chat"), model="large")
    fleet = fleets.nodes("h100-sxm", 2, "rack-1")
    profiles = [fleets.profile("chat", "h100-sxm", 1, 8.0), fleets.profile("large", "h100-sxm", 4, 70.0)]
    got = served_ratios(fleets.problem([(small, 16.0), (large, 16.0)], fleet, profiles))
    assert abs(got["a/chat"] - got["b/chat"]) <= 4 * ONE / 16.0
    assert min(got.values()) > 0.3


def test_a_service_of_twice_the_weight_is_half_as_short() -> None:
    problem = decoders((named("a/chat", weight=2.0), 20.0), (named("b/chat"), 20.0))
    short = shares(problem)
    assert short["b/chat"] == pytest.approx(2.0 * short["a/chat"], rel=1e-3)
    got = served_ratios(problem)
    assert (1.0 - got["a/chat"]) * 2.0 == pytest.approx(1.0 - got["b/chat"], abs=3 * ONE / 20.0)


def test_who_needs_little_is_served_and_the_rest_share_what_is_left() -> None:
    """Water filling: the tier above takes all it needs, a quota sticks one service, the others split the rest."""
    problem = decoders(
        (named("a/chat", rank=0), 4.0),
        (named("b/chat"), 20.0),
        (named("c/chat"), 20.0),
        (named("d/chat"), 20.0),
        quotas=(Quota(namespace="d", max_gpus=1),),
    )
    short = shares(problem)
    assert "a/chat" not in short
    assert short["d/chat"] > short["b/chat"] > 0.1
    assert short["b/chat"] == pytest.approx(short["c/chat"], rel=1e-6)
    got = served_ratios(problem)
    assert got["a/chat"] == 1.0
    assert abs(got["b/chat"] - got["c/chat"]) <= ONE / 20.0


def test_a_guarantee_is_kept_before_others_of_the_tier_get_more() -> None:
    quota = Quota(namespace="a", guaranteed_ratio=0.8)
    got = served_ratios(decoders((named("a/chat"), 20.0), (named("b/chat"), 20.0), quotas=(quota,)))
    assert got["a/chat"] >= 0.8 - ONE / 20.0
    assert got["b/chat"] < 0.5
    above = served_ratios(decoders((named("a/chat"), 20.0), (named("b/chat", rank=0), 20.0), quotas=(quota,)))
    assert above["b/chat"] == 1.0


def test_nothing_is_shared_where_nothing_is_short() -> None:
    problem = decoders((named("a/chat"), 5.0), (named("b/chat"), 5.0))
    assert desk_for(problem, fleets.plain_capacity).penalties.fair_ratio == {}
    assert shares(problem) == {}


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match="fairWeight"):
        make_plan(decoders((named("a/chat", weight=weight), 1.0)))
    with pytest.raises(InvalidInput, match="guaranteed"):
        make_plan(decoders((named("a/chat"), 1.0), quotas=(Quota(namespace="a", guaranteed_ratio=-0.1),)))
