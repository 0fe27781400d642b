"""Baselines decide as what they imitate, and every plan of theirs keeps the limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from solvers.baselines import BASELINES, best_fit, greedy, per_service, watt_clamp
from solvers.baselines.compare import Verdict, compare
from solvers.baselines.watt_clamp import fleet_watts
from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.fleet import Node
from solvers.plan import Plan, SolveStatus
from solvers.planner import make_plan
from solvers.problem import Policy, Problem, Quota
from solvers.verify import verify
from solvers.workload import Pin, PlacementMode
from tests import fleets

NO_STARTS = Policy(start_cost_hours=0.0, relative_gap=1e-6)


def random_fleet(seed: int) -> Problem:
    """Draw a small fleet with degraded nodes, floors, ceilings, both placement modes and budgets that may bind."""
    rng = fleets.seeded(seed)
    kinds = ("a100-sxm", "h100-sxm", "l40s")
    nodes: list[Node] = []
    for index in range(int(rng.integers(2, 7))):
        kind, usable = kinds[int(rng.integers(3))], int(rng.integers(0, 9))
        nodes += fleets.nodes(kind, 1, f"rack-{rng.integers(3)}", usable=usable, prefix=f"n{index}")
    services = [
        (
            fleets.service(
                f"s{index}",
                f"m{index % 2}",
                rank=int(rng.integers(3)),
                ttft_s=2.0,
                itl_s=0.1,
                roles=((Role.MIXED,), (Role.PREFILL, Role.DECODE), tuple(Role))[int(rng.integers(3))],
                min_replicas=int(rng.integers(3)),
                max_replicas=int(rng.integers(2, 9)),
                placement=tuple(PlacementMode)[int(rng.integers(2))],
            ),
            float(rng.choice([0.0, 2.0, 10.0, 60.0])),
        )
        for index in range(int(rng.integers(1, 5)))
    ]
    profiles = [fleets.profile(f"m{m}", kind, tp, (8.0, 20.0)[m]) for m in (0, 1) for kind in kinds for tp in (1, 2, 4)]
    built = fleets.problem(services, nodes, [p for p in profiles if p.kv_capacity_tokens > 20_000], policy=NO_STARTS)
    return replace(built, domains=fleets.budgets(built, float(rng.uniform(0.2, 1.1))))


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_plan_keeps_every_limit_and_says_what_is_short(name: str) -> None:
    short = 0
    for seed in range(25):
        problem = random_fleet(seed)
        plan = BASELINES[name](problem)
        assert verify(plan, problem) == ()
        short += plan.is_short
    assert 0 < short < 25


def test_ours_is_never_worse_than_it_says() -> None:
    """More short never; dearer only within the gap that the plan itself admits."""
    for seed in range(8):
        problem = random_fleet(seed)
        ours = make_plan(problem)
        plans = {"ours": ours, **{name: decide(problem) for name, decide in BASELINES.items()}}
        for row in compare(problem, plans):
            assert row.verdict is not Verdict.MORE_SHORT, f"seed {seed}: {row}"
            assert row.verdict is not Verdict.DEARER or ours.report.status is SolveStatus.FEASIBLE, (
                f"seed {seed}: {row}"
            )
        for plan in (
            () if ours.is_short else plans.values()
        ):  # when tiers are held, the bound is of plans that hold them
            assert plan.report.objective_usd_per_hour >= ours.report.bound_usd_per_hour * (1.0 - 1e-6)


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_same_problem_gives_the_same_plan(name: str) -> None:
    problem = fleets.demo(2.0, budget_ratio=0.6)
    turned = replace(problem, services=problem.services[::-1], nodes=problem.nodes[::-1])
    assert BASELINES[name](problem) == BASELINES[name](turned)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_malformed_problem_is_refused(name: str) -> None:
    problem = fleets.demo()
    with pytest.raises(InvalidInput):
        BASELINES[name](replace(problem, services=(*problem.services, problem.services[0])))


@pytest.mark.parametrize("name", list(BASELINES))
def test_quotas_hold_for_baselines_too(name: str) -> None:
    problem = fleets.demo(4.0, budget_ratio=0.6)
    free = BASELINES[name](problem)
    held = sum(row.replicas * row.pool.config.gpus for row in free.placements)
    quota = Quota(namespace="default", max_gpus=held // 2)
    bound = replace(problem, policy=replace(problem.policy, quotas=(quota,)))
    plan = BASELINES[name](bound)
    assert verify(plan, bound) == ()
    assert held // 2 - 8 < sum(row.replicas * row.pool.config.gpus for row in plan.placements) <= held // 2


@pytest.mark.parametrize("name", list(BASELINES))
def test_pins_and_locations_hold_for_baselines_too(name: str) -> None:
    problem = fleets.demo(2.0, budget_ratio=0.9)
    where = ("rack-a2", "rack-b2")
    pinned = tuple(replace(s, locations=where, pins=(Pin(location="rack-a2", replicas=2),)) for s in problem.services)
    bound = replace(problem, services=pinned)
    plan = BASELINES[name](bound)
    assert verify(plan, bound) == ()
    assert {row.location for row in plan.placements} <= set(where)
    for service in pinned:
        there = [r.replicas for r in plan.placements if (r.pool.service, r.location) == (service.name, "rack-a2")]
        assert sum(there) >= 2


@pytest.mark.parametrize("name", list(BASELINES))
def test_spread_services_are_spread_by_baselines_too(name: str) -> None:
    served = fleets.service("chat", "m", min_replicas=2)
    spread = replace(served, min_locations=2, max_share_per_location_ratio=0.7)
    nodes = [node for rack in ("rack-a", "rack-b", "rack-c") for node in fleets.nodes("h100-sxm", 1, rack)]
    problem = fleets.problem([(spread, 60.0)], nodes, [fleets.profile("m", "h100-sxm", 1, 8.0)], policy=NO_STARTS)
    plan = BASELINES[name](problem)
    assert verify(plan, problem) == ()
    assert len({row.location for row in plan.placements}) >= 2
    assert plan.services[0].served_requests_per_s > 0.0


def one_service(**changes: object) -> Problem:
    """One service that two classes could serve; the cheaper one has only one node."""
    service = fleets.service("chat", "m", **changes)  # type: ignore[arg-type]
    nodes = (*fleets.nodes("h100-sxm", 4, "rack-a"), *fleets.nodes("l40s", 1, "rack-b"))
    profiles = [fleets.profile("m", kind, 1, 8.0) for kind in ("h100-sxm", "l40s")]
    return fleets.problem([(service, 40.0)], nodes, profiles, policy=NO_STARTS)


def classes(plan: Plan) -> set[str]:
    return {row.pool.gpu_class for row in plan.placements}


def test_greedy_takes_the_cheapest_class_and_then_the_next() -> None:
    problem = one_service()
    alone = {
        kind: greedy(replace(problem, services=(replace(problem.services[0], gpu_classes=(kind,)),)))
        for kind in ("h100-sxm", "l40s")
    }
    assert not any(plan.is_short for plan in alone.values())
    cheapest = min(alone, key=lambda kind: alone[kind].report.cost_usd_per_hour)
    assert classes(greedy(problem)) == {cheapest}
    crowded = replace(problem, demands={n: replace(d, requests_per_s=900.0) for n, d in problem.demands.items()})
    assert classes(greedy(crowded)) == {"h100-sxm", "l40s"}


def test_per_service_is_optimal_for_a_service_alone() -> None:
    for seed in range(12):
        problem = random_fleet(seed)
        first = sorted(problem.services, key=lambda s: (s.tier_rank, s.name))[0]
        roomy = {name: replace(domain, budget_watts=1e9) for name, domain in problem.domains.items()}
        alone = replace(problem, services=(first,), demands={first.name: problem.demands[first.name]}, domains=roomy)
        ours, theirs = make_plan(alone), per_service(alone)
        assert theirs.report.objective_usd_per_hour == pytest.approx(ours.report.objective_usd_per_hour, rel=1e-3)


def test_per_service_pairs_inside_kv_groups() -> None:
    """Only H100 prefills fast enough, and L40S decodes for less: of use where keys and values can be read there."""
    nodes = (*fleets.nodes("h100-sxm", 4, "rack-a"), *fleets.nodes("l40s", 4, "rack-b"))
    chat = fleets.service("chat", "m", roles=(Role.PREFILL, Role.DECODE), ttft_s=0.3, itl_s=0.08)
    plans = []
    for groups in (("a", "b"), ("a", "a")):
        profiles = [
            replace(fleets.profile("m", kind, 1, 8.0), kv_compatibility_group=group)
            for kind, group in zip(("h100-sxm", "l40s"), groups, strict=True)
        ]
        problem = fleets.problem([(chat, 60.0)], nodes, profiles, policy=NO_STARTS)
        ours, theirs = make_plan(problem), per_service(problem)
        assert not theirs.is_short
        assert theirs.report.objective_usd_per_hour == pytest.approx(ours.report.objective_usd_per_hour, rel=1e-3)
        plans.append({(row.pool.role, row.pool.gpu_class) for row in theirs.placements if row.replicas})
    apart, together = plans
    assert len({name for _, name in together}) == 2
    assert {name for role, name in apart if role is Role.PREFILL} == {
        name for role, name in apart if role is Role.DECODE
    }


def test_per_service_pays_for_deciding_one_after_the_other() -> None:
    """The first service takes the class that the second cannot do without."""
    first, second = (
        fleets.service("a", "small", ttft_s=2.0),
        fleets.service("b", "large", rank=1, ttft_s=4.0, itl_s=0.1),
    )
    nodes = (*fleets.nodes("l40s", 1, "rack-a"), *fleets.nodes("h200-sxm", 1, "rack-b"))
    profiles = [fleets.profile("small", kind, 1, 8.0) for kind in ("l40s", "h200-sxm")]
    profiles.append(fleets.profile("large", "h200-sxm", 8, 70.0))
    dear = replace(fleets.gpu_class("l40s"), price_usd_per_hour=9.0)
    problem = fleets.problem([(first, 20.0), (second, 2.0)], nodes, profiles, policy=NO_STARTS)
    problem = replace(problem, gpu_classes={**problem.gpu_classes, "l40s": dear})
    ours, theirs = make_plan(problem), per_service(problem)
    assert not ours.is_short
    assert [s.service for s in theirs.services if s.unserved_requests_per_s] == ["default/b"]


def test_the_watt_clamp_shares_watts_without_regard_to_tiers() -> None:
    nodes = fleets.nodes("h100-sxm", 4, "rack-a")
    profiles = [fleets.profile("m", "h100-sxm", 1, 8.0)]
    services = [(fleets.service(f"s{rank}", "m", rank=rank), 150.0) for rank in (0, 2)]
    problem = fleets.problem(services, nodes, profiles, budgets={"site": 12_000.0}, policy=NO_STARTS)
    plan = watt_clamp(problem)
    share = {s.tier: s.served_requests_per_s / s.demand_requests_per_s for s in plan.services}
    assert 0.0 < share["critical"] < 1.0
    assert share["critical"] == pytest.approx(share["best-effort"], abs=0.1)
    assert not next(s for s in make_plan(problem).services if s.tier == "critical").unserved_requests_per_s


def test_the_watts_of_a_fleet_are_counted_once_at_its_widest_feed() -> None:
    problem = one_service()
    full = 8 * (4 * (700 + 150 - 70) + 350 + 80 - 35)
    assert fleet_watts(problem) == full  # nothing limits
    tight = fleets.problem(
        [(problem.services[0], 1.0)],
        problem.nodes,
        list(problem.profiles.values()),
        budgets={"site": 9_000.0, "rack-a": 5_000.0},
    )
    assert fleet_watts(tight) == 9_000.0 - 8 * (4 * 70 + 35)


def test_best_fit_stays_on_one_class_and_fills_nodes() -> None:
    problem = one_service(gpu_classes=("l40s", "h100-sxm"), roles=(Role.MIXED,))
    plan = best_fit(replace(problem, demands={n: replace(d, requests_per_s=500.0) for n, d in problem.demands.items()}))
    assert plan.is_short  # there are free GPUs of the other class
    assert classes(plan) == {"l40s"}
    two = replace(problem, nodes=(*fleets.nodes("l40s", 1, "rack-a"), *fleets.nodes("l40s", 1, "rack-b", usable=3)))
    two = replace(two, domains=fleets.budgets(two, 1.2), gpu_classes={"l40s": fleets.gpu_class("l40s")})
    few = best_fit(replace(two, demands={n: replace(d, requests_per_s=2.0) for n, d in two.demands.items()}))
    assert {row.location for row in few.placements} == {"rack-b"}  # the node with fewest free GPUs


@pytest.mark.parametrize("decide", [greedy, per_service, watt_clamp, best_fit])
def test_no_demand_keeps_the_floor(decide: Callable[[Problem], Plan]) -> None:
    problem = one_service(min_replicas=2)
    plan = decide(replace(problem, demands={n: replace(d, requests_per_s=0.0) for n, d in problem.demands.items()}))
    by_role = {role: sum(r.replicas for r in plan.placements if r.pool.role is role) for role in Role}
    assert by_role[Role.MIXED] + min(by_role[Role.PREFILL], by_role[Role.DECODE]) == 2


def test_plans_are_compared_by_tier_first_and_then_by_cost() -> None:
    problem = fleets.demo(4.0, budget_ratio=0.6)
    ours = make_plan(problem)
    rows = {row.name: row for row in compare(problem, {"ours": ours, "again": ours, "best_fit": best_fit(problem)})}
    assert rows["again"].verdict is Verdict.EVEN
    assert rows["again"].cost_ratio == 1.0
    assert rows["best_fit"].verdict is Verdict.LESS_SHORT
    assert rows["best_fit"].unserved_ratio["critical"] == 0.0
    assert rows["best_fit"].unserved_ratio["standard"] == pytest.approx(15.1 / 24.0, abs=0.01)
    assert np.sign(rows["best_fit"].shortage_ratio["standard"]) == 1.0
    back = compare(problem, {"best_fit": best_fit(problem), "ours": ours})[1]
    assert back.verdict is Verdict.MORE_SHORT
