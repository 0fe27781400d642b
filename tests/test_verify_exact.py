"""Plans that are wrong by little, and in one thing only: the check says just that, and nothing where it is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey, PowerDomain
from solvers.plan import Plan, Relief, SolveStatus
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.verify import verify, verify_service
from solvers.workload import Pin
from tests import fleets

CHAT = "default/chat/mixed/h100-sxm/tp1"
Change = Callable[[Plan], Plan]
World = Callable[[Problem], Problem]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A mixed service on two racks of H100, and one of prefill and decode on a rack of L40S."""
    fleet = (
        *fleets.nodes("h100-sxm", 1, "rack-1"),
        *fleets.nodes("h100-sxm", 1, "rack-2"),
        *fleets.nodes("l40s", 1, "rack-1", prefix="l"),
    )
    chat = fleets.service("chat", "m", roles=(Role.MIXED,), gpu_classes=("h100-sxm",))
    talk = fleets.service("talk", "m", rank=1, roles=(Role.PREFILL, Role.DECODE), gpu_classes=("l40s",))
    profiles = [fleets.profile("m", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    return fleets.problem([(chat, 6.0), (talk, 1.0)], fleet, profiles)


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return make_plan(problem, capacity_of=fleets.plain_capacity)


def faults(plan: Plan, problem: Problem) -> tuple[str, ...]:
    return verify(plan, problem, capacity_of=fleets.plain_capacity)


def at(index: int, **how: Any) -> Change:
    """Change one pool: 0 is mixed, 1 decode, 2 prefill."""

    def changed(plan: Plan) -> Plan:
        pools = list(plan.pools)
        pools[index] = replace(pools[index], **how)
        return replace(plan, pools=tuple(pools))

    return changed


def served(index: int, **how: Any) -> Change:
    def changed(plan: Plan) -> Plan:
        rows = list(plan.services)
        rows[index] = replace(rows[index], **how)
        return replace(plan, services=tuple(rows))

    return changed


def domain(**how: Any) -> Change:
    return lambda plan: replace(plan, domains=(replace(plan.domains[0], **how), *plan.domains[1:]))


def report(**how: Any) -> Change:
    return lambda plan: replace(plan, report=replace(plan.report, **how))


def as_planned(plan: Plan) -> Plan:
    return plan


def as_it_is(problem: Problem) -> Problem:
    return problem


def service(index: int, **how: Any) -> World:
    def changed(problem: Problem) -> Problem:
        rows = list(problem.services)
        rows[index] = replace(rows[index], **how)
        return replace(problem, services=tuple(rows))

    return changed


def budget(name: str, watts: float) -> World:
    return lambda problem: replace(
        problem, domains={**problem.domains, name: PowerDomain(name=name, budget_watts=watts)}
    )


def running(now: int, **how: Any) -> World:
    """So many mixed replicas, of another pool where it says so, run on the first rack."""
    key = PoolKey(service="default/chat", role=Role.MIXED, gpu_class="h100-sxm", config=EngineConfig(tensor_parallel=1))
    return lambda problem: replace(problem, running={(replace(key, **how), "rack-1"): now})


def paying(penalty: float, index: int = 0, **how: Any) -> Change:
    """A penalty that the objective, the bound and the gap know of."""

    def changed(plan: Plan) -> Plan:
        value = plan.report.objective_usd_per_hour + penalty
        paid = report(objective_usd_per_hour=value, bound_usd_per_hour=value)(plan)
        return served(index, penalty_usd_per_hour=penalty, **how)(paid)

    return changed


def wordy(plan: Plan) -> Plan:
    """A cap in the name of a placement's pool."""
    first, *others = plan.placements
    return replace(plan, placements=(replace(first, pool=replace(first.pool, cap_watts=500.0)), *others))


def relieved(plan: Plan) -> Plan:
    more = Relief(limit="gpus", subject="h100-sxm", unit="GPUs", amount=1.0, usd_per_hour=2.5)
    return replace(plan, relief=(more,))


EXACT: dict[str, tuple[Change, World, tuple[str, ...]]] = {
    "right": (as_planned, as_it_is, ()),
    "a cap in a name": (
        wordy,
        as_it_is,
        (f"placements[{CHAT}/500W@rack-1]: the cap belongs into the pool's row, not into its name",),
    ),
    "unsorted services": (
        lambda plan: replace(plan, services=plan.services[::-1]),
        as_it_is,
        ("services[default/chat]: rows are not sorted or repeat",),
    ),
    "any class will do": (as_planned, service(0, gpu_classes=()), ()),
    "a budget that is kept exactly": (domain(budget_watts=5145.0), budget("rack-1", 5145.0), ()),
    "a budget that is passed by a watt": (
        domain(budget_watts=5144.0),
        budget("rack-1", 5144.0),
        ("power[rack-1]: needs 5,145 W, usable 5,144 W",),
    ),
    "another budget": (
        as_planned,
        budget("rack-1", 6000.0),
        ("watts[rack-1]: said a budget of 1,000,000,000 W, is 6,000 W",),
    ),
    "as many as there may be": (as_planned, service(0, max_replicas=5), ()),
    "one too many": (
        as_planned,
        service(0, max_replicas=4),
        ("ceiling[default/chat]: 5 mixed replicas, at most 4",),
    ),
    "as many as there must be": (as_planned, service(0, min_replicas=5), ()),
    "one below the floor": (
        as_planned,
        service(0, min_replicas=6),
        (
            "floor[default/chat]: 5 replicas of prefill + mixed, at least 6",
            "floor[default/chat]: 5 replicas of decode + mixed, at least 6",
        ),
    ),
    "one below the floor of one chain": (
        as_planned,
        service(1, min_replicas=2),
        ("floor[default/talk]: 1 replicas of decode + mixed, at least 2",),
    ),
    "below the floor for a reason": (served(0, short_because=("why",)), service(0, min_replicas=6), ()),
    "a pin that is kept": (as_planned, service(0, pins=(Pin(location="rack-2", replicas=1),)), ()),
    "a pin that is not": (
        as_planned,
        service(0, pins=(Pin(location="rack-2", replicas=2),)),
        ("pins[default/chat rack-2]: 1 replicas, at least 2",),
    ),
    "a pin that is not for a reason": (
        served(0, short_because=("why",)),
        service(0, pins=(Pin(location="rack-2", replicas=2),)),
        (),
    ),
    "at two racks": (as_planned, service(0, min_locations=2), ()),
    "at one rack": (
        as_planned,
        service(1, min_locations=2),
        (
            "locations[default/talk]: prefill + mixed at 1 locations, at least 2",
            "locations[default/talk]: decode + mixed at 1 locations, at least 2",
        ),
    ),
    "more than is asked": (
        served(0, served_requests_per_s=6.0001),
        as_it_is,
        ("demand[default/chat]: serves 6.0001 of 6 requests/s",),
    ),
    "less than is asked": (
        served(0, served_requests_per_s=5.9999),
        as_it_is,
        (
            "demand[default/chat]: short by 0.0001 requests/s without a reason",
            "penalty[default/chat]: said 0 USD/h with 0.0001 requests/s unserved",
        ),
    ),
    "less than is asked, for a reason that is paid": (
        paying(0.01, served_requests_per_s=5.9999, short_because=("why",)),
        as_it_is,
        (),
    ),
    "too little capacity": (
        at(0, capacity_requests_per_s=5.999),
        as_it_is,
        (
            f"capacity[{CHAT}]: 6 requests/s, carries 5.999",
            "pairs[default/chat]: serves 6 requests/s, pairs inside one KV group and mixed replicas carry 5.999",
        ),
    ),
    "just enough capacity": (at(0, capacity_requests_per_s=6.0), as_it_is, ()),
    "more capacity than it is sized for": (
        at(0, capacity_requests_per_s=6.7501),
        as_it_is,
        (f"capacity[{CHAT}]: said 6.7501 requests/s, sized for 6.75",),
    ),
    "capacity that is hidden": (
        at(1, capacity_requests_per_s=0.8, demand_ratio=1.0),
        as_it_is,
        (
            "capacity[default/talk/decode/l40s/tp1]: 1 requests/s, carries 0.8",
            "pairs[default/talk]: serves 1 requests/s, pairs inside one KV group and mixed replicas carry 0.8",
        ),
    ),
    "draw below nothing": (
        at(0, planned_watts=-1.0, cost_usd_per_hour=12.5 - 0.00012),
        as_it_is,
        (
            f"watts[{CHAT}]: planned -1 W, worst case is 4,250 W",
            "cost: said 15.302825 USD/h, pools sum to 14.991155",
            "objective: said 19.772825 USD/h, cost and churn are 19.461155, penalties 0.000000",
        ),
    ),
    "draw beyond the worst case": (
        at(0, planned_watts=4251.0, cost_usd_per_hour=12.5 + 0.51012),
        as_it_is,
        (
            f"watts[{CHAT}]: planned 4,251 W, worst case is 4,250 W",
            "cost: said 15.302825 USD/h, pools sum to 15.501395",
            "objective: said 19.772825 USD/h, cost and churn are 19.971395, penalties 0.000000",
        ),
    ),
    "a watt too many reserved": (
        at(0, reserved_watts=4251.0),
        as_it_is,
        (f"watts[{CHAT}]: reserved 4,251 W, worst case is 4,250 W",),
    ),
    "money for a pool": (
        at(0, cost_usd_per_hour=12.8116),
        as_it_is,
        (
            f"cost[{CHAT}]: said 12.811600 USD/h, is 12.811550",
            "cost: said 15.302825 USD/h, pools sum to 15.302875",
        ),
    ),
    "a domain's draw below nothing": (
        domain(planned_watts=-1.0),
        as_it_is,
        ("watts[rack-1]: planned -1 W, reserved 5,145 W",),
    ),
    "a domain's draw of nothing": (domain(planned_watts=0.0), as_it_is, ()),
    "a domain's draw beyond": (
        domain(planned_watts=5146.0),
        as_it_is,
        ("watts[rack-1]: planned 5,146 W, reserved 5,145 W",),
    ),
    "a domain's draw up to it": (domain(planned_watts=5145.0), as_it_is, ()),
    "a domain's reserve": (
        domain(reserved_watts=5146.0),
        as_it_is,
        ("watts[rack-1]: said 5,146 W reserved, is 5,145 W",),
    ),
    "an objective": (
        report(objective_usd_per_hour=19.7735, gap_ratio=3.4137e-5),
        as_it_is,
        ("objective: said 19.773500 USD/h, cost and churn are 19.772825, penalties 0.000000",),
    ),
    "a bound a little above": (
        report(bound_usd_per_hour=19.7729, gap_ratio=-3.793e-6),
        as_it_is,
        ("bound: 19.772900 USD/h lies above the objective 19.772825",),
    ),
    "a bound as high as sums round": (
        report(bound_usd_per_hour=19.772835, gap_ratio=-5.06e-7),
        as_it_is,
        (),
    ),
    "a gap": (report(gap_ratio=0.00001), as_it_is, ("gap: said 0.000010, is 0.000000",)),
    "optimal at the gap asked": (
        report(bound_usd_per_hour=0.99 * 19.772825, gap_ratio=0.01),
        as_it_is,
        (),
    ),
    "optimal beyond it": (
        report(bound_usd_per_hour=0.985 * 19.772825, gap_ratio=0.015),
        as_it_is,
        ("status: said Optimal at a gap of 0.0150, asked 0.0100",),
    ),
    "feasible beyond it": (
        report(bound_usd_per_hour=0.985 * 19.772825, gap_ratio=0.015, status=SolveStatus.FEASIBLE),
        as_it_is,
        (),
    ),
    "a penalty for nothing": (
        paying(0.01),
        as_it_is,
        ("objective: 0.010000 USD/h of penalties while nothing is short",),
    ),
    "a penalty where a floor is just kept": (
        paying(0.01, 1),
        service(1, min_replicas=1),
        ("objective: 0.010000 USD/h of penalties while nothing is short",),
    ),
    "a penalty for a floor": (paying(0.01, 1, short_because=("why",)), service(1, min_replicas=2), ()),
    "a penalty for a pin": (
        paying(0.01, short_because=("why",)),
        service(0, pins=(Pin(location="rack-2", replicas=2),)),
        (),
    ),
    "a penalty for one rack": (paying(0.01, 1, short_because=("why",)), service(1, min_locations=2), ()),
    "relief of nothing": (relieved, as_it_is, ("relief: 1 limits should give way while nothing is short",)),
    "fewer starts": (
        as_planned,
        running(3),
        ("objective: said 19.772825 USD/h, cost and churn are 17.522825, penalties 0.000000",),
    ),
    "no start there": (
        as_planned,
        running(4),
        ("objective: said 19.772825 USD/h, cost and churn are 16.772825, penalties 0.000000",),
    ),
    "two stops": (
        as_planned,
        running(6),
        ("objective: said 19.772825 USD/h, cost and churn are 17.522825, penalties 0.000000",),
    ),
    "stops of somebody else's": (as_planned, running(4, service="other/chat"), ()),
    "stops on a class that is gone": (as_planned, running(4, gpu_class="tpu"), ()),
}


@pytest.mark.parametrize("name", EXACT)
def test_just_what_is_wrong_is_said(name: str, plan: Plan, problem: Problem) -> None:
    change, world, said = EXACT[name]
    assert faults(change(plan), world(problem)) == said


def test_a_cap_that_the_class_does_not_allow_is_named_for_itself(plan: Plan, problem: Problem) -> None:
    open_caps = replace(problem, policy=replace(problem.policy, power_caps=True))
    for cap, is_allowed in ((349.0, False), (350.0, True), (700.0, True), (701.0, False)):
        found = faults(at(0, cap_watts=cap)(plan), open_caps)
        fault = f"cap[{CHAT}]: {cap:g} W, the class allows 350-700 W"
        assert (fault in found) is not is_allowed, cap
        assert not any("the policy allows no caps" in words for words in found)
    found = faults(at(0, cap_watts=500.0)(plan), problem)
    assert f"cap[{CHAT}]: 500 W, but the policy allows no caps below the highest" in found


def test_shares_below_nothing_do_not_make_up_for_others(plan: Plan, problem: Problem) -> None:
    """Two pools of one chain, half of what is served too much in one and too little in the other."""
    first = plan.pools[0]
    other = replace(first, pool=replace(first.pool, gpu_class="l40s"), demand_ratio=-0.5, capacity_requests_per_s=9.0)
    more = replace(first, demand_ratio=1.5, capacity_requests_per_s=9.0)
    split = replace(plan, pools=(more, other, *plan.pools[1:]))
    fault = "shares[default/chat]: prefill + mixed carry 1.000000 of what is served"
    assert fault in verify_service(split, problem)
    even = replace(plan, pools=(replace(more, demand_ratio=1.0), replace(other, demand_ratio=0.0), *plan.pools[1:]))
    assert verify_service(even, problem) == ()


def test_one_pod_stands_on_one_node_of_any_size() -> None:
    small = fleets.nodes("h100-sxm", 1, "rack-1", gpus=4, prefix="s")
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *small)
    chat = replace(fleets.service("chat", "m", roles=(Role.MIXED,)), is_one_pod=True)
    problem = fleets.problem([(chat, 3.0)], fleet, [fleets.profile("m", "h100-sxm", 8, 70.0)])
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert [row.replicas for row in plan.placements] == [1]
    assert faults(plan, problem) == ()
    fault = "placements[default/chat/mixed/h100-sxm/tp8@rack-1]: one pod cannot stand on several nodes"
    assert faults(plan, replace(problem, nodes=small))[:1] == (fault,)
