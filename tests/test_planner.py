from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solvers.engine import EngineConfig, Role
from solvers.errors import InvalidInput, SolveFailed
from solvers.fleet import ANYWHERE, Node, PoolKey, PowerDomain
from solvers.plan import Plan, SolveStatus
from solvers.planner import make_plan, search
from solvers.planner.model import relax
from solvers.problem import Policy, Problem
from solvers.sizing import Capacity, replica_capacity
from solvers.verify import verify
from solvers.workload import PlacementMode
from tests import fleets


def running(plan: Plan) -> dict[tuple[PoolKey, str], int]:
    return {(row.pool, row.location): row.replicas for row in plan.placements}


def with_demand(problem: Problem, factor: float) -> Problem:
    demands = {n: replace(d, requests_per_s=d.requests_per_s * factor) for n, d in problem.demands.items()}
    return replace(problem, demands=demands)


def with_budget(problem: Problem, name: str, watts: float) -> Problem:
    return replace(problem, domains={**problem.domains, name: PowerDomain(name=name, budget_watts=watts)})


def chat_only(**how: Any) -> Problem:
    """One chat service on two racks of two H100 nodes, plain capacities."""
    fleet = (*fleets.nodes("h100-sxm", 2, "rack-1"), *fleets.nodes("h100-sxm", 2, "rack-2"))
    rate = how.pop("rate", 12.0)
    budgets = how.pop("budgets", None)
    served = fleets.service("chat", "chat", **how)
    return fleets.problem([(served, rate)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)], budgets=budgets)


def test_a_demo_fleet_is_served_at_a_proved_cost_with_pools_of_several_classes() -> None:
    problem = fleets.demo(3.0)
    plan = make_plan(problem)
    assert verify(plan, problem) == ()
    assert not plan.is_short
    assert plan.report.status is SolveStatus.OPTIMAL
    assert 0.0 <= plan.report.gap_ratio <= problem.policy.relative_gap
    assert len({p.pool.gpu_class for p in plan.pools}) > 1
    assert {p.pool.role for p in plan.pools} >= {Role.PREFILL, Role.DECODE}
    assert plan.report.cost_usd_per_hour <= sum(n.gpus_total * 4.5 for n in problem.nodes)


def test_no_pool_carries_more_than_its_own_size_was_sized_for() -> None:
    problem = fleets.demo(3.0)
    plan = make_plan(problem)
    services = {s.name: s for s in problem.services}
    served = {s.service: s.served_requests_per_s for s in plan.services}
    for pool in plan.pools:
        service = services[pool.pool.service]
        profile = next(
            p
            for k, p in problem.profiles.items()
            if (k.model, k.gpu_class, k.config) == (service.model, pool.pool.gpu_class, pool.pool.config)
        )
        mix = problem.demands[service.name].mix
        sized = replica_capacity(profile, pool.pool.role, mix, service.slos, pool_replicas=pool.replicas)
        assert isinstance(sized, Capacity)
        load = pool.demand_ratio * served[service.name]
        assert load <= pool.replicas * sized.requests_per_s * (1 + 1e-6)


def test_the_same_problem_gives_the_same_plan_to_the_letter() -> None:
    first, second = make_plan(fleets.demo(2.0, budget_ratio=0.6)), make_plan(fleets.demo(2.0, budget_ratio=0.6))
    assert first == second
    assert repr(first) == repr(second)


def test_the_order_in_which_things_are_listed_changes_nothing() -> None:
    problem = fleets.demo(2.0)
    turned = replace(
        problem,
        services=problem.services[::-1],
        nodes=problem.nodes[::-1],
        profiles=dict(reversed(list(problem.profiles.items()))),
        domains=dict(reversed(list(problem.domains.items()))),
    )
    assert make_plan(turned) == make_plan(problem)


def test_a_changed_placement_mode_starts_over_without_a_fault() -> None:
    located = chat_only(rate=6.0, roles=(Role.MIXED,))
    plan = make_plan(located, capacity_of=fleets.plain_capacity)
    free = replace(chat_only(rate=6.0, roles=(Role.MIXED,), placement=PlacementMode.CLASS), running=running(plan))
    again = make_plan(free, previous=plan, capacity_of=fleets.plain_capacity)
    assert {row.location for row in again.placements} == {ANYWHERE}
    assert verify(again, free) == ()
    assert again.report.notes == ()


def test_the_second_turn_decides_the_same_before_and_after_the_rollout() -> None:
    problem = fleets.demo(3.0)
    plan = make_plan(problem)
    while_pods_start = make_plan(problem, previous=plan)
    after = make_plan(replace(problem, running=running(plan)), previous=plan)
    restarted = make_plan(replace(problem, running=running(plan)))
    hashes = {p.decision_hash for p in (plan, while_pods_start, after, restarted)}
    assert len(hashes) == 1


@pytest.mark.parametrize("factor", [0.98, 0.95, 1.02])
def test_a_small_change_of_demand_moves_nothing(factor: float) -> None:
    problem = fleets.demo(1.0)
    plan = make_plan(with_demand(problem, 1.03))  # planned with room, as a forecast's quantile is
    changed = with_demand(replace(problem, running=running(plan)), factor)
    again = make_plan(changed, previous=plan)
    assert again.decision_hash == plan.decision_hash
    assert verify(again, changed) == ()


def test_a_large_drop_of_demand_is_worth_moving_for() -> None:
    problem = fleets.demo(3.0)
    plan = make_plan(problem)
    changed = with_demand(replace(problem, running=running(plan)), 0.3)
    again = make_plan(changed, previous=plan)
    assert again.decision_hash != plan.decision_hash
    assert again.report.cost_usd_per_hour < 0.6 * plan.report.cost_usd_per_hour


def test_more_demand_is_met_by_adding_to_what_runs() -> None:
    problem = fleets.demo(1.0)
    plan = make_plan(problem)
    changed = with_demand(replace(problem, running=running(plan)), 1.25)
    again = make_plan(changed, previous=plan)
    kept = sum(min(count, running(again).get(key, 0)) for key, count in running(plan).items())
    assert not again.is_short
    assert kept >= 0.5 * sum(running(plan).values())


def test_a_lost_node_moves_only_what_it_held() -> None:
    problem = fleets.demo(3.0, budget_ratio=1.0)
    plan = make_plan(problem)
    place = plan.placements[0]
    lost = {n.name for n in problem.nodes if (n.location, n.gpu_class) == (place.location, place.pool.gpu_class)}
    nodes = tuple(replace(n, gpus_usable=0) if n.name in lost else n for n in problem.nodes)
    changed = replace(problem, nodes=nodes, running=running(plan))
    again = make_plan(changed, previous=plan)
    assert verify(again, changed) == ()
    assert all((p.location, p.pool.gpu_class) != (place.location, place.pool.gpu_class) for p in again.placements)


def test_a_budget_cut_is_obeyed_and_said() -> None:
    problem = fleets.demo(3.0, budget_ratio=0.7)
    plan = make_plan(problem)
    site = problem.domains["site"].budget_watts
    changed = with_budget(replace(problem, running=running(plan)), "site", 0.3 * site)
    again = make_plan(changed, previous=plan)
    assert verify(again, changed) == ()
    reserved = {d.domain: d.reserved_watts for d in again.domains}
    assert reserved["site"] <= 0.3 * site
    assert any("power[" in reason for s in again.services for reason in s.short_because)


def test_scarcity_hits_the_lowest_tier_first() -> None:
    problem = fleets.demo(10.0, budget_ratio=0.5)
    plan = make_plan(problem)
    by_tier = {s.tier: s for s in plan.services}
    assert plan.is_short
    assert by_tier["critical"].unserved_requests_per_s == pytest.approx(0.0, abs=1e-6)
    assert by_tier["best-effort"].unserved_requests_per_s > 0.0
    assert verify(plan, problem) == ()


def test_a_higher_tier_keeps_its_order_where_the_weights_alone_would_not() -> None:
    """The lower tier can be served very dearly too, which makes its penalty outweigh the higher tier's."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1", gpus=4), *fleets.nodes("l40s", 1, "rack-2", gpus=4))
    high = fleets.service("high", "high", rank=0, roles=(Role.MIXED,), gpu_classes=("h100-sxm",))
    low = fleets.service("low", "low", rank=2, roles=(Role.MIXED,))
    profiles = [fleets.profile("high", "h100-sxm", 1, 8.0)]
    profiles += [fleets.profile("low", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    problem = fleets.problem([(high, 8.0), (low, 400.0)], fleet, profiles)

    def capacity_of(profile: Any, role: Role, *_: object, pool_replicas: int) -> Capacity:
        rate = {"high": 2.0, "low": {"h100-sxm": 100.0, "l40s": 0.1}[profile.key.gpu_class]}[profile.key.model]
        return Capacity(requests_per_s=rate, utilisation_ratio=0.5, gpu_watts=100.0)

    plan = make_plan(problem, capacity_of=capacity_of)
    served = {s.service: s.served_requests_per_s for s in plan.services}
    assert served["default/high"] == pytest.approx(8.0)
    assert served["default/low"] < 400.0
    assert any("lower tier gave way" in note for note in plan.report.notes)
    assert verify(plan, problem) == ()


def test_reasons_name_the_limit_and_its_numbers() -> None:
    problem = chat_only(rate=10_000.0, roles=(Role.MIXED,))
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    (row,) = plan.services
    assert row.short_because == ("gpus[h100-sxm]: 32 of 32 in use",)
    tight = chat_only(rate=10_000.0, roles=(Role.MIXED,), budgets={"site": 2240.0 + 3 * 780.0})
    (row,) = make_plan(tight, capacity_of=fleets.plain_capacity).services
    assert row.short_because == ("power[site]: 4 580 W all reserved",)
    few = chat_only(rate=10_000.0, roles=(Role.MIXED,), max_replicas=2)
    (row,) = make_plan(few, capacity_of=fleets.plain_capacity).services
    assert row.short_because == ("maxReplicas: 2 mixed replicas of at most 2",)


def test_an_slo_that_nothing_can_keep_is_a_short_plan_that_says_why() -> None:
    problem = chat_only(ttft_s=0.001, roles=(Role.MIXED,))
    plan = make_plan(problem)
    (row,) = plan.services
    assert plan.placements == ()
    assert row.served_requests_per_s == 0.0
    assert row.short_because[0].startswith("nothing can serve its prompts: mixed on h100-sxm/tp1: ")
    assert verify(plan, problem) == ()


def test_a_budget_below_idle_draw_keeps_its_domain_empty_and_is_named() -> None:
    problem = with_budget(chat_only(rate=1000.0, roles=(Role.MIXED,)), "rack-1", 500.0)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert {row.location for row in plan.placements} == {"rack-2"}
    (row,) = plan.services
    assert "power[rack-1]: idle GPUs draw 1 120 W, usable 500 W" in row.short_because
    assert verify(plan, problem) == ()


def test_minimum_replicas_are_kept_without_demand_and_missed_with_a_reason() -> None:
    problem = chat_only(rate=0.0, min_replicas=3)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert sum(p.replicas for p in plan.pools if p.pool.role is not Role.DECODE) == 3
    assert verify(plan, problem) == ()
    crowded = chat_only(rate=0.0, min_replicas=40, roles=(Role.MIXED,))
    plan = make_plan(crowded, capacity_of=fleets.plain_capacity)
    assert sum(p.replicas for p in plan.pools) == 32
    assert plan.services[0].short_because[0] == "minReplicas: 8 replicas have no place"
    assert verify(plan, crowded) == ()


def test_nothing_asked_means_nothing_placed() -> None:
    problem = chat_only(rate=0.0)
    plan = make_plan(problem)
    assert plan.placements == ()
    assert not plan.is_short


def test_an_empty_fleet_is_a_short_plan() -> None:
    problem = replace(chat_only(), nodes=(), domains={})
    plan = make_plan(problem)
    assert plan.is_short
    assert verify(plan, problem) == ()
    assert plan.services[0].short_because


def test_no_services_are_an_empty_plan() -> None:
    problem = replace(chat_only(), services=(), demands={})
    plan = make_plan(problem)
    assert (plan.placements, plan.services, plan.is_short) == ((), (), False)


def test_groups_of_eight_go_only_where_eight_are_free() -> None:
    whole, broken = fleets.nodes("h100-sxm", 1, "rack-1"), fleets.nodes("h100-sxm", 3, "rack-2", usable=7)
    served = fleets.service("big", "big", roles=(Role.MIXED,))
    problem = fleets.problem([(served, 1000.0)], (*whole, *broken), [fleets.profile("big", "h100-sxm", 8, 70.0)])
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert [(row.location, row.replicas) for row in plan.placements] == [("rack-1", 1)]
    assert plan.services[0].short_because == ("gpus[h100-sxm]: 8 of 29 in use, no 8 free on one node that may be used",)


def test_only_allowed_classes_and_roles_are_used() -> None:
    problem = fleets.demo(1.0)
    services = tuple(replace(s, gpu_classes=("a100-sxm", "h200-sxm"), roles=(Role.MIXED,)) for s in problem.services)
    plan = make_plan(replace(problem, services=services))
    assert {p.pool.gpu_class for p in plan.pools} <= {"a100-sxm", "h200-sxm"}
    assert {p.pool.role for p in plan.pools} == {Role.MIXED}


def test_class_placement_names_no_location_and_charges_every_feed_it_could_land_on() -> None:
    problem = chat_only(rate=6.0, roles=(Role.MIXED,), placement=PlacementMode.CLASS)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    (row,) = plan.placements
    assert row.location == ANYWHERE
    reserved = {d.domain: d.reserved_watts for d in plan.domains}
    assert reserved["rack-1"] == reserved["rack-2"] == 16 * 70.0 + row.replicas * 780.0
    assert verify(plan, problem) == ()
    tight = with_budget(problem, "rack-2", 16 * 70.0 + 2 * 780.0)
    plan = make_plan(tight, capacity_of=fleets.plain_capacity)
    assert sum(p.replicas for p in plan.pools) == 2


def test_located_and_class_wide_pools_share_nodes_that_hold_both() -> None:
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("h100-sxm", 1, "rack-2", usable=4))
    here = fleets.service("here", "m", roles=(Role.MIXED,))
    there = fleets.service("there", "big", roles=(Role.MIXED,), placement=PlacementMode.CLASS)
    profiles = [fleets.profile("m", "h100-sxm", 1, 8.0), fleets.profile("big", "h100-sxm", 4, 70.0)]
    problem = fleets.problem([(here, 6.5), (there, 3.0)], fleet, profiles)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem) == ()
    assert {row.location for row in plan.placements} >= {ANYWHERE}
    assert not plan.is_short


def test_replicas_are_not_split_over_two_feeds() -> None:
    """Each rack has watts for one and a half replicas of four GPUs: two fit, not three."""
    problem = chat_only(rate=1000.0, roles=(Role.MIXED,))
    problem = replace(problem, profiles={p.key: p for p in [fleets.profile("chat", "h100-sxm", 4, 8.0)]})
    for rack in ("rack-1", "rack-2"):
        problem = with_budget(problem, rack, 16 * 70.0 + 1.5 * 4 * 780.0)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert {(row.location, row.replicas) for row in plan.placements} == {("rack-1", 1), ("rack-2", 1)}
    assert plan.report.status is SolveStatus.OPTIMAL


def failing(*_: object, **__: object) -> Any:
    raise SolveFailed("HiGHS gave no solution: Unknown")


@pytest.mark.parametrize("broken", ["solve_whole", "solve_linear", "state"])
def test_a_failing_solver_still_leaves_a_checked_plan(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = fleets.demo(3.0)
    best = make_plan(problem)
    monkeypatch.setattr(search, broken, failing)
    plan = make_plan(problem)
    assert verify(plan, problem) == ()
    assert not plan.is_short
    assert any("solve" in note for note in plan.report.notes)
    assert plan.report.objective_usd_per_hour >= best.report.bound_usd_per_hour * (1 - 1e-9)


def test_wrong_solver_output_never_becomes_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that claims twice the replicas that fit is cut back to what has room."""
    problem = fleets.demo(3.0)
    true = relax.solve_whole

    def lying(arrays: Any, **how: Any) -> Any:
        found = true(arrays, **how)
        return replace(found, x=found.x * 2.0)

    monkeypatch.setattr(search, "solve_whole", lying)
    assert verify(make_plan(problem), problem) == ()


Change = Callable[[Problem], Problem]


def _service(**how: Any) -> Change:
    return lambda p: replace(p, services=(replace(p.services[0], **how),))


def _node(**how: Any) -> Change:
    return lambda p: replace(p, nodes=(replace(p.nodes[0], **how), *p.nodes[1:]))


def _demand(**how: Any) -> Change:
    return lambda p: replace(p, demands={n: replace(d, **how) for n, d in p.demands.items()})


@pytest.mark.parametrize(
    ("change", "subject", "field"),
    [
        (lambda p: replace(p, services=(*p.services, *p.services)), "ServedModel/default/chat", "name"),
        (lambda p: replace(p, nodes=(*p.nodes, p.nodes[0])), "Node/n-rack-1-h100-sxm-00", "name"),
        (lambda p: replace(p, demands={}), "ServedModel/default/chat", "demand"),
        (_service(min_replicas=5, max_replicas=4), "ServedModel/default/chat", "minReplicas"),
        (_demand(requests_per_s=-1.0), "ServedModel/default/chat", "demand.requestsPerSecond"),
        (_demand(requests_per_s=math.nan), "ServedModel/default/chat", "demand.requestsPerSecond"),
        (_demand(requests_per_s=math.inf), "ServedModel/default/chat", "demand.requestsPerSecond"),
        (_demand(mix=()), "ServedModel/default/chat", "demand.mix"),
        (_demand(mix=(replace(fleets.CHAT[0], weight_ratio=0.0),)), "ServedModel/default/chat", "demand.mix"),
        (_node(gpu_class="tpu"), "Node/n-rack-1-h100-sxm-00", "gpuClass"),
        (_node(domains=("moon",)), "Node/n-rack-1-h100-sxm-00", "powerDomain"),
        (_node(gpus_usable=9), "Node/n-rack-1-h100-sxm-00", "gpus"),
        (lambda p: with_budget(p, "site", math.nan), "PowerDomain/site", "budgetWatts"),
    ],
)
def test_a_malformed_problem_is_named(change: Change, subject: str, field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make_plan(change(chat_only()))
    assert (error.value.subject, error.value.field) == (subject, field)
    assert error.value.remedy


def test_an_absurd_demand_is_a_short_plan_in_bounded_work() -> None:
    problem = with_demand(fleets.demo(1.0), 1e9)
    plan = make_plan(problem)
    assert plan.is_short
    assert verify(plan, problem) == ()


def test_a_plan_is_plain_numbers() -> None:
    plan = make_plan(chat_only(), capacity_of=fleets.plain_capacity)
    numbers = [row.replicas for row in plan.placements] + [p.demand_ratio for p in plan.pools]
    numbers += [s.served_requests_per_s for s in plan.services] + [plan.report.objective_usd_per_hour]
    assert json.loads(json.dumps(numbers)) == numbers
    assert all(type(number) in (int, float) for number in numbers)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small fleets of any shape: degraded nodes, shared feeds, tight budgets, Class and Location, things running."""
    classes = draw(st.lists(st.sampled_from(sorted(fleets.CLASSES)), min_size=1, max_size=3, unique=True))
    fleet: list[Node] = []
    for index in range(draw(st.integers(1, 5))):
        name, rack = draw(st.sampled_from(classes)), f"rack-{draw(st.integers(1, 3))}"
        usable, row = draw(st.integers(0, 8)), f"row-{draw(st.integers(1, 2))}"
        fleet += fleets.nodes(name, draw(st.integers(1, 2)), rack, usable=usable, row=row, prefix=f"n{index}")
    services = []
    for index in range(draw(st.integers(1, 3))):
        served = fleets.service(
            f"s{index}",
            draw(st.sampled_from(["m8", "m30"])),
            rank=draw(st.integers(0, 2)),
            roles=draw(st.lists(st.sampled_from(list(Role)), min_size=1, unique=True)),
            min_replicas=draw(st.integers(0, 2)),
            max_replicas=draw(st.integers(2, 30)),
            placement=draw(st.sampled_from(list(PlacementMode))),
        )
        services.append((served, draw(st.floats(0.0, 60.0))))
    profiles = [
        fleets.profile(model, name, tp, size)
        for model, size in (("m8", 8.0), ("m30", 30.0))
        for name in classes
        for tp in draw(st.sampled_from([(1,), (1, 2), (2, 4), (1, 3, 8)]))
    ]
    problem = fleets.problem(services, fleet, profiles, policy=Policy(time_limit_s=10.0))
    built = replace(problem, domains=fleets.budgets(problem, draw(st.floats(0.1, 1.2))))
    pool = PoolKey(
        service=services[0][0].name,
        role=draw(st.sampled_from(list(Role))),
        gpu_class=classes[0],
        config=EngineConfig(tensor_parallel=draw(st.sampled_from([1, 2, 3]))),
    )
    place = draw(st.sampled_from(["rack-1", "rack-9", ANYWHERE]))
    return replace(built, running={(pool, place): draw(st.integers(0, 4))})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_every_plan_verifies_and_the_next_turn_keeps_it(problem: Problem) -> None:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem) == ()
    settled = replace(problem, running=running(plan))
    again = make_plan(settled, previous=plan, capacity_of=fleets.plain_capacity)
    assert verify(again, settled) == ()
    assert again.decision_hash == plan.decision_hash
