"""What a replica is worth to its service while a rollout goes on, and who misses it least."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine import EngineConfig, ProfileKey, Role
from solvers.fleet import PoolKey, ReplicaState
from solvers.problem import Problem
from solvers.rollout.chains import Chains, carried_requests_per_s
from solvers.sizing import Capacity, replica_capacity
from tests import fleets
from tests.rollout_world import node, plan, pool, replicas, snapshot

LARGE, SMALL = pool(gpus=4), pool(gpus=1)


def chains(served: float, carried: dict[PoolKey, float] | None = None, *, planned: bool = True) -> Chains:
    """One large and one small replica are Ready; a GPU carries one request per second."""
    want = {(LARGE, "a"): 1, (SMALL, "a"): 1} if planned else {(LARGE, "a"): 2}
    kept = {(of, "a"): replicas(of, "a", 1, "a1") for of in (LARGE, SMALL)}
    return Chains(plan(want, {"demo/chat": served}), want, kept, carried or {})


def test_what_is_left_without_a_replica_is_counted_in_requests() -> None:
    (large,), (small,) = (replicas(of, "a", 1, "a1") for of in (LARGE, SMALL))
    all_needed = chains(5.0)
    assert all_needed.left_ratio(large) == pytest.approx(1.0 / 5.0)
    assert all_needed.left_ratio(small) == pytest.approx(4.0 / 5.0)


def test_where_nobody_knows_what_a_replica_carries_replicas_are_counted() -> None:
    (small,) = replicas(SMALL, "a", 1, "a1")
    assert chains(8.0, planned=False).left_ratio(small) == pytest.approx((2 - 1) / 2)
    assert chains(8.0, {SMALL: 1.0}, planned=False).left_ratio(small) == pytest.approx(4.0 / 8.0)
    assert chains(0.0).left_ratio(small) == pytest.approx((2 - 1) / 2)


def running(problem: Problem) -> PoolKey:
    key = next(key for key in problem.profiles if (key.model, key.gpu_class) == ("chat-8b", "h100-sxm"))
    return PoolKey(service="default/chat-8b", role=Role.MIXED, gpu_class=key.gpu_class, config=key.config)


@pytest.mark.parametrize(("ready", "counted"), [(1, 1), (2, 1), (4, 3)])
def test_a_running_pool_is_sized_as_large_as_it_is_once_one_left(ready: int, counted: int) -> None:
    problem = fleets.demo()
    mine = running(problem)
    leaving = replicas(mine, "a", 3, "a1", state=ReplicaState.LEAVING)
    seen = snapshot([node("a1")], (*replicas(mine, "a", ready, "a1"), *leaving))
    service = next(s for s in problem.services if s.name == mine.service)
    profile = problem.profiles[ProfileKey(model="chat-8b", gpu_class="h100-sxm", config=mine.config)]
    mix = problem.demands[mine.service].mix
    sized = replica_capacity(profile, Role.MIXED, mix, service.slos, pool_replicas=counted)
    assert isinstance(sized, Capacity)
    assert carried_requests_per_s(problem, seen) == {mine: sized.requests_per_s}
    assert sized.requests_per_s > 0.0


def test_nothing_is_counted_on_of_what_cannot_be_sized() -> None:
    problem = fleets.demo()
    mine = running(problem)
    unknown = replace(mine, config=EngineConfig(tensor_parallel=64))
    gone = replace(mine, service="default/gone")
    idle = replace(problem, demands={**problem.demands, mine.service: replace(problem.demands[mine.service], mix=())})
    for of, world in ((unknown, problem), (gone, problem), (mine, idle)):
        assert carried_requests_per_s(world, snapshot([node("a1")], replicas(of, "a", 2, "a1"))) == {of: 0.0}
