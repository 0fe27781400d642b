"""What a plan in force becomes when time is over: it grows, or gives way to what was found, and no more is tried."""

from __future__ import annotations

from collections.abc import Mapping

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.plan import Plan, SolveStatus
from solvers.planner import GROWTH_RATIO, SPARE_RATIO, make_plan
from solvers.problem import Policy, Problem
from solvers.verify import verify
from tests import fleets
from tests.clocks import Ticking

LIMIT_S = 10.0
GREW = "made for 5% more than is asked"
FAST, SLOW = "h100-sxm", "a100-sxm"

Counts = Mapping[tuple[PoolKey, str], int]


def chats(rate: float, running: Counts | None = None, *, nodes: int = 4, start_cost_hours: float = 0.3) -> Problem:
    """One service on fast GPUs that are cheap by what they carry, and on slow ones."""
    fleet = (*fleets.nodes(FAST, nodes, "rack-a"), *fleets.nodes(SLOW, nodes, "rack-b"))
    served = fleets.service("chat", "chat", roles=(Role.MIXED,))
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in (FAST, SLOW)]
    policy = Policy(time_limit_s=LIMIT_S, start_cost_hours=start_cost_hours)
    return fleets.problem([(served, rate)], fleet, profiles, running=running, policy=policy)


def on_slow_ones(replicas: int) -> Counts:
    """So many replicas that run on slow GPUs."""
    (name,) = (key.config for key in chats(1.0).profiles if key.gpu_class == SLOW)
    return {(PoolKey(service="default/chat", role=Role.MIXED, gpu_class=SLOW, config=name), "rack-b"): replicas}


def decided(problem: Problem, *, is_late: bool) -> Plan:
    """The plan; where it is late no time at all is left from the beginning."""
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, clock=Ticking(step_s=LIMIT_S if is_late else 0.0))
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def carried_per_s(plan: Plan) -> float:
    return sum(row.capacity_requests_per_s for row in plan.pools)


def counts_of(plan: Plan) -> dict[str, int]:
    return {row.pool.gpu_class: row.replicas for row in plan.pools}


def is_told_late(plan: Plan) -> bool:
    return any("the time limit of 10 s ended the search" in note for note in plan.report.notes)


def has_grown(plan: Plan) -> bool:
    return any(note.startswith(GREW) for note in plan.report.notes)


def test_where_time_is_over_what_is_cheaper_is_taken_without_room_to_spare() -> None:
    asked_per_s = 11.0
    problem = chats(asked_per_s, on_slow_ones(32))
    calm, late = decided(problem, is_late=False), decided(problem, is_late=True)
    assert [calm.is_short, late.is_short] == [False, False]
    assert carried_per_s(late) < asked_per_s * (1.0 + SPARE_RATIO) <= carried_per_s(calm)
    assert late.report.cost_usd_per_hour < calm.report.cost_usd_per_hour
    assert late.report.status is SolveStatus.OPTIMAL  # no more time would find a better one
    assert not is_told_late(late)


def test_where_time_is_over_what_runs_grows_though_another_plan_would_save_much() -> None:
    asked_per_s = 13.0
    problem = chats(asked_per_s, on_slow_ones(22), start_cost_hours=0.001)
    calm, late = decided(problem, is_late=False), decided(problem, is_late=True)
    assert SLOW not in counts_of(calm)
    assert counts_of(late)[SLOW] == 22
    assert counts_of(late)[FAST] > 0
    assert carried_per_s(late) >= asked_per_s * (1.0 + GROWTH_RATIO)
    assert has_grown(calm)
    assert has_grown(late)
    assert late.report.cost_usd_per_hour > calm.report.cost_usd_per_hour
    assert (is_told_late(calm), is_told_late(late)) == (False, True)


def test_what_cannot_grow_enough_is_not_said_to_have_grown() -> None:
    """Eight GPUs of each class carry what is asked, and not a twentieth more."""
    asked_per_s = 14.5
    problem = chats(asked_per_s, on_slow_ones(4), nodes=1)
    for is_late in (False, True):
        plan = decided(problem, is_late=is_late)
        assert not plan.is_short
        assert carried_per_s(plan) < asked_per_s * (1.0 + GROWTH_RATIO)
        assert not has_grown(plan)
