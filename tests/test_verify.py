"""Corrupted plans: each broken limit is found and named, and a sound plan is left alone."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solvers import verify as module
from solvers.engine import EngineConfig, Role
from solvers.fleet import ANYWHERE, PowerDomain
from solvers.plan import Placement, Plan, PoolPlan, SolveStatus
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify, verify_places
from solvers.verify.claims import claims
from solvers.workload import PlacementMode
from tests import fleets


@pytest.fixture(scope="module")
def problem() -> Problem:
    return fleets.demo(3.0)


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return make_plan(problem)


Corrupt = Callable[[Plan], Plan]


def first_pool(change: Callable[[PoolPlan], PoolPlan]) -> Corrupt:
    return lambda plan: replace(plan, pools=(change(plan.pools[0]), *plan.pools[1:]))


def placed(plan: Plan, index: int, **how: Any) -> Plan:
    """Change one placement and keep the pool's sum right."""
    rows = list(plan.placements)
    rows[index] = replace(rows[index], **how)
    totals: dict[Any, int] = {}
    for row in rows:
        totals[row.pool] = totals.get(row.pool, 0) + row.replicas
    pools = tuple(replace(p, replicas=totals.get(p.pool, 0)) for p in plan.pools)
    return replace(plan, placements=tuple(rows), pools=pools)


def report(**how: Any) -> Corrupt:
    return lambda plan: replace(plan, report=replace(plan.report, **how))


def service(**how: Any) -> Corrupt:
    return lambda plan: replace(plan, services=(replace(plan.services[0], **how), *plan.services[1:]))


def foreign_pool(plan: Plan, **how: Any) -> Plan:
    """Move a whole pool to another key."""
    key = replace(plan.pools[0].pool, **how)
    placements = [replace(p, pool=key) if p.pool == plan.pools[0].pool else p for p in plan.placements]
    pools = (replace(plan.pools[0], pool=key), *plan.pools[1:])
    return replace(plan, placements=tuple(sorted(placements)), pools=tuple(sorted(pools, key=lambda p: p.pool)))


def domain(**how: Any) -> Corrupt:
    return lambda plan: replace(plan, domains=(replace(plan.domains[0], **how), *plan.domains[1:]))


def shares_of(plan: Plan, role: Role, factor: float) -> Plan:
    """Let the pools of one role carry so much of what they should."""
    pools = tuple(replace(p, demand_ratio=p.demand_ratio * factor) if p.pool.role is role else p for p in plan.pools)
    return replace(plan, pools=pools)


def cheaper(pool: PoolPlan, factor: float) -> PoolPlan:
    """Plan for less draw, and pay for less energy to match."""
    saved = 0.12 * pool.planned_watts * (1.0 - factor) / 1000.0
    return replace(pool, planned_watts=factor * pool.planned_watts, cost_usd_per_hour=pool.cost_usd_per_hour - saved)


CORRUPTED: dict[str, tuple[Corrupt, str]] = {
    "half a replica": (lambda p: placed(p, 0, replicas=1.5), "must be a whole number above 0"),
    "a negative count": (lambda p: placed(p, 0, replicas=-1), "must be a whole number above 0"),
    "a zero row": (lambda p: placed(p, 0, replicas=0), "must be a whole number above 0"),
    "unsorted places": (lambda p: replace(p, placements=p.placements[::-1]), "placements["),
    "a repeated place": (
        lambda p: replace(p, placements=(p.placements[0], *p.placements)),
        "rows are not sorted or repeat",
    ),
    "unsorted pools": (lambda p: replace(p, pools=p.pools[::-1]), "pools["),
    "a repeated service": (lambda p: replace(p, services=(p.services[0], *p.services)), "services["),
    "a lost pool": (lambda p: replace(p, pools=p.pools[1:]), "missing"),
    "a wrong pool sum": (
        first_pool(lambda p: replace(p, replicas=p.replicas + 1)),
        "its placements sum to another number",
    ),
    "an unknown service": (lambda p: foreign_pool(p, service="default/ghost"), "no such service"),
    "an unknown class": (lambda p: foreign_pool(p, gpu_class="tpu"), "no such GPU class"),
    "no profile": (lambda p: foreign_pool(p, config=EngineConfig(tensor_parallel=7)), "no profile"),
    "an empty location": (lambda p: placed(p, 0, location="rack-zz"), "no node of the class there"),
    "the wrong mode": (lambda p: placed(p, 0, location=ANYWHERE), "placement mode is Location"),
    "too many GPUs": (lambda p: placed(p, 0, replicas=200), "do not fit on nodes with"),
    "too many watts": (lambda p: placed(p, 0, replicas=200), "power["),
    "served twice": (service(served_requests_per_s=1e6), "serves 1e+06 of"),
    "negative service": (service(served_requests_per_s=-1.0, short_because=("x",)), "serves -1 of"),
    "another demand": (service(demand_requests_per_s=1.0, served_requests_per_s=1.0), "asked"),
    "short in silence": (service(served_requests_per_s=0.0), "without a reason"),
    "a lost service": (lambda p: replace(p, services=p.services[1:]), "planned and asked services differ"),
    "a share twice": (first_pool(lambda p: replace(p, demand_ratio=p.demand_ratio + 0.5)), "shares["),
    "a negative share": (first_pool(lambda p: replace(p, demand_ratio=-p.demand_ratio)), "shares["),
    "too little capacity": (first_pool(lambda p: replace(p, capacity_requests_per_s=0.01)), "capacity["),
    "no capacity at all": (first_pool(lambda p: replace(p, capacity_requests_per_s=float("nan"))), "capacity["),
    "a wrong pool cost": (first_pool(lambda p: replace(p, cost_usd_per_hour=0.5 * p.cost_usd_per_hour)), "cost["),
    "a cap too high": (first_pool(lambda p: replace(p, cap_watts=5000.0)), "cap["),
    "reserved too little": (first_pool(lambda p: replace(p, reserved_watts=1.0)), "watts["),
    "planned beyond the cap": (first_pool(lambda p: replace(p, planned_watts=1e6)), "watts["),
    "a domain's watts": (domain(reserved_watts=1.0), "W reserved, is"),
    "a lost domain": (lambda p: replace(p, domains=p.domains[1:]), "planned and existing domains differ"),
    "a wrong total cost": (report(cost_usd_per_hour=1.0), "pools sum to"),
    "a wrong objective": (report(objective_usd_per_hour=1.0), "cost and churn are"),
    "a dearer objective": (report(objective_usd_per_hour=900.0), "cost and churn are"),
    "a bound above": (report(bound_usd_per_hour=1e6), "lies above the objective"),
    "a wrong gap": (report(gap_ratio=0.5), "gap: said 0.5"),
    "a false proof": (report(bound_usd_per_hour=0.0, gap_ratio=1.0), "said Optimal at a gap of 1.0000"),
    "a failed plan": (report(status=SolveStatus.FAILED), "Failed is no plan"),
    "a bound of no number": (report(bound_usd_per_hour=float("nan")), "lies above the objective"),
    "an objective of no number": (report(objective_usd_per_hour=float("nan")), "cost and churn are"),
    "prompts without tokens": (lambda p: shares_of(p, Role.DECODE, 0.5), "shares["),
    "tokens without prompts": (lambda p: shares_of(p, Role.PREFILL, 0.5), "shares["),
    "a share of no number": (first_pool(lambda p: replace(p, demand_ratio=float("nan"))), "shares["),
    "capacity out of thin air": (first_pool(lambda p: replace(p, capacity_requests_per_s=1e6)), "sized for"),
    "a draw out of thin air": (first_pool(lambda p: cheaper(p, 0.5)), "sized for"),
    "a penalty for nothing": (service(penalty_usd_per_hour=5.0), "penalties"),
    "a penalty below nothing": (service(penalty_usd_per_hour=-5.0), "penalty["),
    "a domain's plan": (domain(planned_watts=1e9), "planned 1,000,000,000 W"),
    "a domain's budget": (domain(budget_watts=1.0), "said a budget of 1 W"),
}


def found(plan: Plan, problem: Problem) -> Iterator[str]:
    """Every violation; claims are looked at even where the money would give the plan away first."""
    yield from verify(plan, problem, capacity_of=replica_capacity)
    if not module.verify_places(plan, problem):
        yield from claims(plan, problem, replica_capacity)


@pytest.mark.parametrize("name", CORRUPTED)
def test_a_corrupted_plan_is_caught_and_named(name: str, plan: Plan, problem: Problem) -> None:
    corrupt, words = CORRUPTED[name]
    violations = tuple(found(corrupt(plan), problem))
    assert any(words in violation for violation in violations), violations


def test_a_sound_plan_is_left_alone(plan: Plan, problem: Problem) -> None:
    assert verify(plan, problem, capacity_of=replica_capacity) == ()


def test_a_short_plan_is_sound_and_its_penalties_cannot_be_hidden() -> None:
    problem = fleets.demo(30.0)
    plan = make_plan(problem)
    assert plan.is_short
    assert verify(plan, problem, capacity_of=replica_capacity) == ()
    cheap = plan.report.objective_usd_per_hour - sum(s.penalty_usd_per_hour for s in plan.services)
    forgiven = tuple(replace(s, penalty_usd_per_hour=0.0) for s in plan.services)
    lied = replace(plan, services=forgiven, report=replace(plan.report, objective_usd_per_hour=cheap))
    assert any(v.startswith("penalty[") for v in verify(lied, problem))
    hidden = replace(plan, report=replace(plan.report, objective_usd_per_hour=cheap))
    assert any(v.startswith("objective:") for v in verify(hidden, problem))


def changed_problems(problem: Problem, plan: Plan) -> Iterator[tuple[str, Problem, str]]:
    """The same plan against a world in which it no longer holds."""
    pool = plan.placements[0].pool
    services = {s.name: s for s in problem.services}

    def with_service(**how: Any) -> Problem:
        changed = {**services, pool.service: replace(services[pool.service], **how)}
        return replace(problem, services=tuple(changed[s.name] for s in problem.services))

    others = tuple(c for c in problem.gpu_classes if c != pool.gpu_class)
    yield "class", with_service(gpu_classes=others), "class is not allowed"
    yield "role", with_service(roles=tuple(r for r in Role if r is not pool.role)), "role is not among"
    yield "mode", with_service(placement=PlacementMode.CLASS), "placement mode is Class"
    yield "floor", with_service(min_replicas=500), "floor["
    yield "ceiling", with_service(max_replicas=0), "ceiling["
    for name in ("rack-b3", "row-b", "site"):
        tight = PowerDomain(name=name, budget_watts=problem.domains[name].budget_watts, headroom_ratio=0.7)
        yield name, replace(problem, domains={**problem.domains, name: tight}), f"power[{name}]"
    held = tuple(replace(n, held_watts=1e6) for n in problem.nodes)
    yield "held", replace(problem, nodes=held), "power["
    broken = tuple(replace(n, gpus_usable=0) for n in problem.nodes)
    yield "nodes", replace(problem, nodes=broken), "gpus["
    nowhere = {n: d for n, d in problem.domains.items() if n != "site"}
    yield "domain", replace(problem, domains=nowhere), "feeds a node and is not defined"


def test_a_plan_is_caught_when_the_world_has_changed(plan: Plan, problem: Problem) -> None:
    for name, changed, words in changed_problems(problem, plan):
        violations = verify(plan, changed)
        assert any(words in violation for violation in violations), (name, violations)


def test_a_step_of_a_rollout_may_check_places_alone(plan: Plan, problem: Problem) -> None:
    """Demand moves between plan and step; places and watts must still hold."""
    grown = {n: replace(d, requests_per_s=2 * d.requests_per_s) for n, d in problem.demands.items()}
    changed = replace(problem, demands=grown)
    assert verify(plan, changed) != ()
    assert verify_places(plan, changed) == ()


def test_node_row_and_rack_feeds_are_all_recomputed() -> None:
    """A node with a feed of its own: the rack's replicas could all land there, so all are charged."""
    nodes = fleets.nodes("h100-sxm", 2, "rack-1")
    nodes = (replace(nodes[0], domains=("feed-0", *nodes[0].domains)), nodes[1])
    served = fleets.service("chat", "chat", roles=(Role.MIXED,))
    open_budget = fleets.problem([(served, 6.0)], nodes, [fleets.profile("chat", "h100-sxm", 1, 8.0)])
    plan = make_plan(open_budget, capacity_of=fleets.plain_capacity)
    count = plan.placements[0].replicas
    limit = 8 * 70.0 + (count - 1) * 780.0
    tight = replace(
        open_budget, domains={**open_budget.domains, "feed-0": PowerDomain(name="feed-0", budget_watts=limit)}
    )
    assert verify_places(plan, tight) == (f"power[feed-0]: needs {limit + 780:,.0f} W, usable {limit:,.0f} W",)
    again = make_plan(tight, capacity_of=fleets.plain_capacity)
    assert sum(p.replicas for p in again.pools) == count - 1


def test_class_wide_groups_are_tried_beside_what_must_be_there() -> None:
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("h100-sxm", 1, "rack-2", usable=4))
    here = fleets.service("here", "m", roles=(Role.MIXED,))
    there = fleets.service("there", "big", roles=(Role.MIXED,), placement=PlacementMode.CLASS)
    profiles = [fleets.profile("m", "h100-sxm", 1, 8.0), fleets.profile("big", "h100-sxm", 4, 70.0)]
    problem = fleets.problem([(here, 0.5), (there, 3.0)], fleet, profiles)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    located = next(p for p in plan.placements if p.location != ANYWHERE)
    crowded = tuple(
        sorted(
            Placement(pool=p.pool, location="rack-1", replicas=5) if p == located else replace(p, replicas=2)
            for p in plan.placements
        )
    )
    pools = tuple(replace(p, replicas=5 if p.pool == located.pool else 2) for p in plan.pools)
    violations = verify_places(replace(plan, placements=crowded, pools=pools), problem)
    assert violations == ("gpus[h100-sxm]: no node has room for a replica of 4 GPUs placed anywhere",)


def test_the_check_shares_nothing_with_the_modeller() -> None:
    parts = sorted(Path(module.__file__).parent.glob("*.py"))
    assert {"__init__", "bound", "links", "ways"} <= {path.stem for path in parts}
    trees = [ast.parse(path.read_text()) for path in parts]
    imported = {n.module for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    allowed = {
        "certificate",
        "derived",  # keeps what a function makes of a value
        "engine",
        "engine.curves",
        "errors",
        "fleet",
        "plan",
        "power",
        "problem",
        "workload",
        *(f"verify.{path.stem}" for path in parts),
    }
    assert {name.removeprefix("solvers.") for name in imported if name.startswith("solvers")} <= allowed
