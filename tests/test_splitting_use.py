"""What goes on with a plan that is split by size: ticks, explanations, replays and rollouts treat its parts right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.evaluate import in_parts
from solvers.explain import explain
from solvers.explain.brief import with_reasons
from solvers.explain.pricing import explain_priced
from solvers.fleet import PoolKey, Replica, ReplicaState, Snapshot
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.refute import poisson_load, refuted_plan, replayed
from solvers.rollout import next_step
from solvers.simulate import Clients
from solvers.sizing import replica_capacity
from solvers.tick import Ticker
from solvers.verify import verify
from tests import split_world
from tests.split_world import CHAT

CHAINS = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return split_world.documents()


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return make_plan(problem)


@pytest.mark.parametrize("rate", [60.0, 21.0])
def test_a_tick_routes_every_part_to_its_own_pools(problem: Problem, plan: Plan, rate: float) -> None:
    tick = Ticker(problem, plan).tick({CHAT: rate})
    assert tick.services == (CHAT,)
    assert tick.demand_per_s.tolist() == pytest.approx([rate])
    assert tick.served_per_s.tolist() == pytest.approx([rate])
    assert set(tick.pools) == {row.pool for row in plan.pools}
    assert set(tick.caps) == {(row.pool, row.location) for row in plan.placements}
    for part in plan.parts:
        for chain in CHAINS:
            share = sum(s for pool, s in tick.shares.items() if pool.sizes == part.sizes and pool.role in chain)
            assert share == pytest.approx(part.demand_requests_per_s / 60.0)


def test_a_tick_sheds_of_a_part_what_its_pools_cannot_carry(problem: Problem, plan: Plan) -> None:
    tick = Ticker(problem, plan).tick({CHAT: 300.0})
    able = {
        part.sizes: min(
            sum(p.capacity_requests_per_s for p in plan.pools if p.pool.sizes == part.sizes and p.pool.role in chain)
            for chain in CHAINS
        )
        for part in plan.parts
    }
    assert tick.served_per_s[0] <= sum(able.values()) * (1.0 + 1e-6)
    assert tick.unserved_per_s[CHAT] == pytest.approx(300.0 - tick.served_per_s[0])


def test_an_explanation_tells_every_part_by_the_names_of_the_plan(problem: Problem, plan: Plan) -> None:
    why = explain(plan, problem, CHAT)
    by_part = sorted((row.pool for row in plan.pools), key=lambda pool: (pool.sizes, pool))
    assert [pool.pool for pool in why.chosen] == [str(pool) for pool in by_part]
    assert why.demand_requests_per_s == 60.0
    assert why.usd_per_hour == pytest.approx(sum(row.cost_usd_per_hour for row in plan.pools))
    assert f"{CHAT}:" not in why.text().replace(f"{CHAT}: ", "")
    assert why.demand_range is not None
    assert why.demand_range.most_requests_per_s >= 60.0 * (1.0 - 1e-6)
    priced = explain_priced(plan, problem, CHAT)
    assert priced.chosen == why.chosen


def test_the_short_form_of_an_explanation_stays_short(problem: Problem, plan: Plan) -> None:
    (row,) = with_reasons(plan, problem).whys
    assert row.service == CHAT
    assert 0 < len(row.lines) <= 4
    assert {line.partition(":")[0] for line in row.lines} == {"p0-4095", "p4096-up"}


def test_a_replay_sends_requests_by_their_prompts(problem: Problem, plan: Plan) -> None:
    load = poisson_load(problem.demands, 20.0, 1)
    parted, plain, routed = in_parts(problem, plan, load)
    assert routed.workload.services == (f"{CHAT}:p0-4095", f"{CHAT}:p4096-up")
    is_long = load.workload.prompt_tokens >= 4096
    assert np.array_equal(routed.workload.service == 1, is_long)
    assert in_parts(parted, plain, routed)[2] is routed
    clients = replace(load, clients=(Clients(count=1, workload=load.workload),))
    with pytest.raises(InvalidInput, match="split by size"):
        in_parts(problem, plan, clients)


def test_a_replay_tells_each_part_and_refuting_keeps_the_plan_sound(problem: Problem, plan: Plan) -> None:
    summary = replayed(problem, plan, 1)
    assert summary is not None
    assert set(summary.services) == {f"{CHAT}:p0-4095", f"{CHAT}:p4096-up"}
    found = refuted_plan(problem)
    assert verify(found.plan, problem, capacity_of=replica_capacity) == ()


def ready(pool: PoolKey, location: str, count: int) -> list[Replica]:
    """Replicas that serve, on nodes of their location."""
    return [
        Replica(
            name=f"demo/{pool}-{index}",
            pool=pool,
            location=location,
            node=f"n-{location}-{pool.gpu_class}-{index // 4:02d}",
            state=ReplicaState.READY,
        )
        for index in range(count)
    ]


def step(problem: Problem, plan: Plan, replicas: list[Replica]) -> dict[tuple[PoolKey, str], int]:
    """What a rollout asks for next, by place."""
    desired: dict[tuple[PoolKey, str], int] = {}
    for replica in replicas:
        desired[replica.pool, replica.location] = desired.get((replica.pool, replica.location), 0) + 1
    snapshot = Snapshot(
        gpu_classes=problem.gpu_classes,
        nodes=problem.nodes,
        domains=problem.domains,
        replicas=tuple(sorted(replicas, key=lambda r: (r.pool, r.location, r.name))),
        desired=desired,
    )
    actions = next_step(snapshot, plan, problem.policy, tier_ranks={CHAT: 0})
    return {(action.pool, action.location): action.to_replicas for action in actions}


def test_what_served_every_size_leaves_only_when_all_parts_are_ready(problem: Problem, plan: Plan) -> None:
    whole = make_plan(split_world.documents(splits=False))
    before = [replica for row in whole.placements for replica in ready(row.pool, row.location, row.replicas)]
    first = step(problem, plan, before)
    assert first
    assert all(pool.sizes for pool, _ in first), "only parts start; nothing stops before they serve"
    short = [
        replica
        for row in plan.placements
        if row.pool.sizes == "p0-4095"
        for replica in ready(row.pool, row.location, row.replicas)
    ]
    assert all(pool.sizes for pool, _ in step(problem, plan, before + short)), "long prompts have nowhere to go yet"
    parts = [replica for row in plan.placements for replica in ready(row.pool, row.location, row.replicas)]
    last = step(problem, plan, before + parts)
    assert last
    assert all(not pool.sizes and count == 0 for (pool, _), count in last.items())


def test_parts_leave_only_when_what_serves_every_size_is_ready(problem: Problem, plan: Plan) -> None:
    whole = make_plan(split_world.documents(splits=False))
    parts = [replica for row in plan.placements for replica in ready(row.pool, row.location, row.replicas)]
    assert all(not pool.sizes for pool, _ in step(problem, whole, parts))
    both = parts + [replica for row in whole.placements for replica in ready(row.pool, row.location, row.replicas)]
    assert {pool.sizes for pool, _ in step(problem, whole, both)} == {"p0-4095", "p4096-up"}
