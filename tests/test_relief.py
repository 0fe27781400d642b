"""The cheapest way out of a shortage: named, priced, and enough when it is granted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine import Role
from solvers.plan import Plan, Relief
from solvers.planner import desk_for, make_plan
from solvers.planner.relief import find_relief
from solvers.problem import Policy, Problem, Quota
from solvers.verify import verify
from tests import fleets, synthetic
from tests.test_links import decided, two_kinds, uplink
from tests.test_shelves import AMPLE, CORES, problem_on, rack


def one_class(rate: float, *, nodes: int = 1, site_watts: float = 1e9, **how: object) -> Problem:
    """A mixed service on two like racks."""
    fleet = tuple(node for n in (1, 2) for node in fleets.nodes("h100-sxm", nodes, f"rack-{n}"))
    served = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), **how)  # type: ignore[arg-type]
    profiles = [fleets.profile("chat", "h100-sxm", 1, 8.0)]
    return fleets.problem([(served, rate)], fleet, profiles, budgets={"site": site_watts})


def planned(problem: Problem) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def granted(problem: Problem, relief: tuple[Relief, ...]) -> Problem:
    """Give what was asked for: GPUs as a node more at the place, watts in the domain, words in quota and ceiling."""
    for row in relief:
        first = row.subject.split("+")[0].split("/")[0]
        if row.limit == "gpus":
            like = next(n for n in problem.nodes if (n.location, n.gpu_class) == (first, row.subject.split("/")[1]))
            size = max(n.gpus_total for n in problem.nodes if n.gpu_class == like.gpu_class)
            for left in range(int(row.amount), 0, -size):
                gpus = min(left, size)
                more = replace(like, name=f"{first}-more-{left}", gpus_total=gpus, gpus_usable=gpus)
                problem = replace(problem, nodes=(*problem.nodes, more))
        elif row.limit == "power":
            domain = problem.domains[first]
            wider = replace(domain, budget_watts=domain.budget_watts + 1000.0 * row.amount)
            problem = replace(problem, domains={**problem.domains, first: wider})
        elif row.limit == "quota_gpus":
            quotas = tuple(replace(q, max_gpus=(q.max_gpus or 0) + int(row.amount)) for q in problem.policy.quotas)
            problem = replace(problem, policy=replace(problem.policy, quotas=quotas))
        elif row.limit == "ceiling":
            services = tuple(replace(s, max_replicas=s.max_replicas + int(row.amount)) for s in problem.services)
            problem = replace(problem, services=services)
    return problem


def test_a_plan_that_serves_all_asks_for_nothing() -> None:
    assert planned(one_class(6.0)).relief == ()


def test_too_few_gpus_are_asked_for_by_class_and_place() -> None:
    problem = one_class(30.0)
    plan = planned(problem)
    assert [(row.limit, row.unit) for row in plan.relief] == [("gpus", "GPU")]
    (row,) = plan.relief
    assert row.subject == "rack-1+1/h100-sxm"
    assert 30.0 / 1.5 - 16 <= row.amount <= 30.0 / 1.5 - 16 + 2
    assert row.usd_per_hour == pytest.approx(row.amount * (2.5 + 0.12 * 0.07), rel=1e-6)
    assert not planned(granted(problem, plan.relief)).is_short


def test_watts_are_asked_for_where_they_are_short() -> None:
    """Sixteen GPUs idle at 70 W; a replica adds 780 W; twelve requests/s need nine replicas."""
    problem = one_class(12.0, site_watts=16 * 70.0 + 4 * 780.0)
    plan = planned(problem)
    assert [(row.limit, row.subject, row.unit) for row in plan.relief] == [("power", "site", "kW")]
    assert plan.relief[0].amount == pytest.approx(5 * 0.78, abs=0.1)
    assert not planned(granted(problem, plan.relief)).is_short


def test_a_word_comes_before_hardware() -> None:
    quota = (Quota(namespace="default", max_gpus=3),)
    quoted = replace(one_class(6.0), policy=Policy(quotas=quota))
    plan = planned(quoted)
    assert [(row.limit, row.subject, row.amount) for row in plan.relief] == [("quota_gpus", "default", 2.0)]
    assert not planned(granted(quoted, plan.relief)).is_short
    few = one_class(6.0, max_replicas=2)
    plan = planned(few)
    assert [(row.limit, row.unit, row.amount) for row in plan.relief] == [("ceiling", "replica", 3.0)]
    assert not planned(granted(few, plan.relief)).is_short


def test_an_overloaded_fleet_is_told_what_is_enough() -> None:
    """Two classes under nested budgets: racks and site are named together, and hardly anything stays short."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("l40s", 1, "rack-2", row="row-b"))
    services = ((fleets.service("chat", "chat"), 25.0), (fleets.service("long", "long", rank=1), 10.0))
    sizes = [("chat", 8.0, (1, 2)), ("long", 30.0, (2, 4))]
    profiles = [fleets.profile(m, g, tp, b) for m, b, tps in sizes for g in ("h100-sxm", "l40s") for tp in tps]
    problem = fleets.problem(services, fleet, profiles, budgets={"rack-1": 4000.0, "row-b": 2500.0, "site": 6000.0})
    plan = planned(problem)
    assert plan.is_short
    assert {row.limit for row in plan.relief} == {"gpus", "power"}
    assert {"rack-1", "site"} <= {row.subject for row in plan.relief}
    before = sum(s.unserved_requests_per_s for s in plan.services)
    after = planned(granted(problem, plan.relief))
    assert sum(s.unserved_requests_per_s for s in after.services) <= 0.1 * before


def test_relief_of_no_amount_or_for_nothing_is_caught() -> None:
    problem = one_class(30.0)
    plan = planned(problem)
    nothing = replace(plan, relief=(replace(plan.relief[0], amount=float("nan")),))
    assert any(fault.startswith("relief[gpus rack-1+1/h100-sxm]") for fault in verify(nothing, problem))
    calm = planned(one_class(6.0))
    assert any(f.startswith("relief: 1 limits") for f in verify(replace(calm, relief=plan.relief), one_class(6.0)))


def test_each_limit_says_what_its_first_unit_does_alone() -> None:
    """A GPU carries 1.5 requests/s at the planned size; row and site hold together, and neither helps alone."""
    (row,) = planned(one_class(30.0)).relief
    assert row.first_serves_requests_per_s == pytest.approx(1.5, rel=0.05)
    assert row.first_saves_usd_per_hour > row.usd_per_hour / row.amount
    problem, watts = one_class(12.0), 16 * 70.0 + 4 * 780.0
    narrow = {"row-a": watts, "site": watts + 100.0}
    domains = {name: replace(problem.domains[name], budget_watts=budget) for name, budget in narrow.items()}
    both = {row.subject: row for row in planned(replace(problem, domains={**problem.domains, **domains})).relief}
    assert set(both) == {"row-a", "site"}
    assert both["site"].first_serves_requests_per_s == 0.0 == both["site"].first_saves_usd_per_hour
    assert 0.0 < both["row-a"].first_serves_requests_per_s < 0.5, "a tenth of a kW, then the site is full"
    assert not any(row.is_estimate for row in both.values())


def test_cores_are_asked_for_where_nodes_have_too_few() -> None:
    """Eight cores for each replica, and a node of four: none fits, whatever GPUs there are."""
    problem = problem_on(rack(AMPLE | {"cpu": 4_000}), CORES, rate=6.0)
    plan = planned(problem)
    (row,) = plan.relief
    assert (row.limit, row.subject, row.unit) == ("resources", "cpu of rack-1/h100-sxm", "core")
    assert row.amount % 8.0 == 0.0
    nodes = (replace(n, resources={**n.resources, "cpu": 4_000 + 1000 * int(row.amount)}) for n in problem.nodes)
    assert not planned(replace(problem, nodes=tuple(nodes))).is_short


def test_nodes_that_are_asked_for_come_with_their_own_cores() -> None:
    plan = planned(problem_on(rack(AMPLE | {"cpu": 48_000}), CORES, rate=40.0))
    assert {row.limit for row in plan.relief} == {"gpus"}


def test_room_of_a_link_is_asked_for_where_keys_and_values_wait_for_it() -> None:
    needed = decided(two_kinds(uplink("rack-1"), uplink("rack-2"))).links[0].outgoing_bytes_per_s
    problem = two_kinds(uplink("rack-1"), uplink("rack-2", bytes_per_s=needed / 3.0))
    plan = decided(problem)
    (row,) = plan.relief
    assert (row.limit, row.subject, row.unit) == ("link", "up-rack-2", "GB/s")
    assert 1e9 * row.amount >= needed * 2.0 / 3.0
    links = tuple(replace(link, bytes_per_s=link.bytes_per_s + 1e9 * row.amount) for link in problem.policy.kv_links)
    assert not decided(replace(problem, policy=replace(problem.policy, kv_links=links))).is_short


def test_relief_does_not_depend_on_seconds() -> None:
    problem = fleets.demo(9.0, budget_ratio=0.6)
    found = []
    for seconds in (5.0, 500.0):
        policy = replace(problem.policy, time_limit_s=seconds)
        found.append(find_relief(desk_for(replace(problem, policy=policy))))
    assert found[0]
    assert found[0] == found[1]


def test_a_large_fleet_is_told_estimates_that_serve_more() -> None:
    """More than 512 GPUs: the relaxation decides, and greedy filling serves more with what it asks for."""
    problem = synthetic.make_problem(synthetic.Size(nodes=80, services=8, rows=4, designs=4), 1, load=1.0)
    desk = desk_for(problem)
    relief = find_relief(desk)
    assert desk.is_wide
    assert relief
    assert all(row.is_estimate for row in relief)
    assert any(row.first_serves_requests_per_s > 0.0 < row.first_saves_usd_per_hour for row in relief)
    domains = dict(problem.domains)
    for row in (row for row in relief if row.limit == "power" and "+" not in row.subject):
        more = replace(domains[row.subject], budget_watts=domains[row.subject].budget_watts + 1000.0 * row.amount)
        domains[row.subject] = more
    served = [sum(d.repaired({}).served_per_s.values()) for d in (desk, desk_for(replace(problem, domains=domains)))]
    assert served[1] > served[0]
