"""Cuts of a fleet whose services may be split: none is begun when time is over, and the best so far stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from solvers.deadline import Deadline
from solvers.errors import SolveFailed
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.pools.crew import Crew
from solvers.planner.splits.parted import plan_parts
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests.clocks import Stepped, Ticking
from tests.split_world import CHAT, documents, lengths, readers


def crowded() -> Problem:
    """Requests of four lengths on two nodes, far more than they serve: no cut is known to be the best before it is."""
    mix = lengths((300, 150, 0.5), (1000, 250, 0.36), (3000, 200, 0.09), (8000, 200, 0.05))
    problem = documents(200.0)
    nodes = [next(n for n in problem.nodes if n.gpu_class == name) for name in ("h100-sxm", "l40s")]
    return replace(problem, nodes=tuple(nodes), demands={CHAT: replace(problem.demands[CHAT], mix=mix)})


def small() -> Problem:
    """The same lengths of requests, most of them served by ways at prices: those of one cut say the next."""
    return readers(2, nodes=4, services=2)


def until_told(problem: Problem, most: int, wide_gpus: int) -> tuple[Plan, list[Plan]]:
    """The plan for which time is over once so many cuts are decided, and the plans of these."""
    clock, told = Stepped(), list[Plan]()

    def tell(plan: Plan) -> None:
        told.append(plan)
        if len(told) >= most:
            clock.now_s = problem.policy.time_limit_s

    return make_plan(problem, on_plan=tell, clock=clock, wide_gpus=wide_gpus), told


@pytest.mark.parametrize(("make", "wide_gpus", "cuts"), [(crowded, 10_000, 4), (small, 0, 3)])
def test_no_further_cut_is_decided_when_time_is_over(make: Callable[[], Problem], wide_gpus: int, cuts: int) -> None:
    problem = make()
    for most in (*range(1, cuts), 2 * cuts):
        plan, told = until_told(problem, most, wide_gpus)
        assert len(told) == min(most, cuts)
        assert any(plan.placements == each.placements for each in told)
        assert verify(plan, problem, capacity_of=replica_capacity) == ()


def test_where_the_first_cut_led_to_no_plan_another_is_decided_though_it_is_late() -> None:
    problem, asked = documents(), list[Problem]()

    def failing_once(parted: Problem, before: Plan | None) -> Plan:
        asked.append(parted)
        if len(asked) == 1:
            raise SolveFailed("nothing whole was found")
        return make_plan(parted, previous=before)

    crew = Crew(deadline=Deadline.after(1.0, Ticking(step_s=1.0)))
    plan = plan_parts(problem, None, failing_once, replica_capacity, crew=crew)
    assert [len(parted.services) for parted in asked] == [1, 2]
    assert len(plan.parts) == 2
    assert verify(plan, problem, capacity_of=replica_capacity) == ()
