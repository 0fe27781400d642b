"""Explanations as people read them: of services that are split, linked, pinned, on several nodes, or short of cores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine import Role
from solvers.engine.roofline import cap_curves
from solvers.explain import Explanation, explain
from solvers.explain.pricing import explain_priced
from solvers.planner import make_plan
from solvers.planner.placing.desk import Desk
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from solvers.workload import Pin
from tests import fleets, split_world
from tests.test_links import decided, only_one_role, two_kinds, uplink
from tests.test_shelves import AMPLE, CORES, problem_on, rack
from tests.test_spans import problem_on as spanning_on
from tests.test_spans import rack as island


def told_of(problem: Problem, service: str = "default/chat") -> Explanation:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    return explain(plan, problem, service, capacity_of=fleets.plain_capacity)


def test_pools_of_a_split_service_have_one_way_of_being_named() -> None:
    problem = split_world.documents()
    problem = replace(problem, nodes=(problem.nodes[0], *problem.nodes[6:8]))
    told = explain(make_plan(problem), problem, split_world.CHAT)
    pools = [name for way in told.rejected for name, _ in way.pools]
    assert pools
    for name in (*pools, *(pool.pool for pool in told.chosen)):
        assert name.startswith("default/chat/")
        assert name.endswith(("/p0-4095", "/p4096-up"))
    blocked = [row for way in told.rejected for row in way.blocked_by]
    assert blocked
    assert all(row.partition(": room for")[0].endswith(("/p0-4095", "/p4096-up")) for row in blocked)
    assert "of the requests of these sizes" in told.text()


def test_links_are_told_and_bound_what_the_replicas_carry() -> None:
    needed = decided(two_kinds(uplink("rack-1"), uplink("rack-2"))).links[0].outgoing_bytes_per_s
    problem = two_kinds(uplink("rack-1"), uplink("rack-2", bytes_per_s=needed / 3.0))
    told = explain(decided(problem), problem, "default/chat", capacity_of=only_one_role)
    assert [row.link for row in told.links] == ["up-rack-1", "up-rack-2"]
    assert "keys and values of all services through link[up-rack-2]: 0 GB/s out, 0.1 in, of 0.1" in told.text()
    assert told.demand_range is not None
    assert told.demand_range.most_requests_per_s == told.served_requests_per_s == pytest.approx(2.0, rel=1e-3)


def test_a_way_that_breaks_a_pin_says_so() -> None:
    problem = fleets.demo(4.0, budget_ratio=0.6)
    pins = (Pin(location="rack-b1", role=Role.DECODE, replicas=2),)
    services = (replace(s, pins=pins) if s.name == "default/chat-8b" else s for s in problem.services)
    problem = replace(problem, services=tuple(services))
    plan = make_plan(problem)
    there = {node.gpu_class for node in problem.nodes if node.location == "rack-b1"}
    for way in explain(plan, problem, "default/chat-8b").rejected:
        keeps = any(name.split("/")[2] == "decode" and name.split("/")[3] in there for name, _ in way.pools)
        assert keeps != ("pins[rack-b1 decode]: no pool of it may stand there" in way.blocked_by)


def test_alternatives_are_on_different_gpus() -> None:
    problem = fleets.demo(1.0)
    plan = make_plan(problem)
    for service in problem.services:
        first, second = explain(plan, problem, service.name).rejected
        kinds = [[tuple(name.split("/")[2:4]) for name, _ in way.pools] for way in (first, second)]
        assert kinds[0] != kinds[1]


def test_replicas_of_several_nodes_are_told_with_them() -> None:
    problem = spanning_on(island((8, 8, 8), ("one", "one", "one")), sizes=(16,))
    told = told_of(problem, problem.services[0].name)
    assert told.chosen[0].nodes_per_replica == 2
    assert "each on 2 whole nodes" in told.text()


def test_cores_have_a_price_by_the_core() -> None:
    problem = problem_on(rack(AMPLE | {"cpu": 16_000}, AMPLE | {"cpu": 9_000}), CORES, rate=15.0)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    told = explain_priced(plan, problem, "default/chat", capacity_of=fleets.plain_capacity)
    (price,) = [row for row in told.prices if row.limit == "resources"]
    assert (price.subject, price.unit) == ("cpu of rack-1/h100-sxm", "core")
    assert price.less_usd_per_hour > price.more_usd_per_hour >= 0.0
    assert "resources[cpu of rack-1/h100-sxm] binds: " in told.text()
    for row in plan.bindings:
        assert (row.limit == "resources") == (row.unit == "core")


def test_what_cannot_serve_is_told_once_for_each_pool_whatever_its_caps() -> None:
    problem = fleets.demo(1.0, budget_ratio=0.4)
    profiles = {
        key: replace(p, **cap_curves(p.idle_watts_per_gpu, problem.gpu_classes[key.gpu_class].max_cap_watts))
        for key, p in problem.profiles.items()
    }
    capped = replace(problem, profiles=profiles, policy=replace(problem.policy, power_caps=True))
    for service, reasons in Desk.of(capped, replica_capacity).options.unfit.items():
        names = [reason.partition(":")[0].partition(" at ")[0] for reason in reasons]
        assert len(names) == len(set(names)), service


def test_a_swap_serves_all_at_what_it_costs_more() -> None:
    problem = fleets.demo(1.5)
    plan = make_plan(problem)
    desk = Desk.of(problem, replica_capacity, plan)
    counts = {(row.pool, row.location): row.replicas for row in plan.placements}
    served = sum(row.served_requests_per_s for row in plan.services)
    options = {str(option.pool): option for option in desk.options.pools}
    tried = 0
    for service in problem.services:
        told = explain(plan, problem, service.name)
        for swap in told.swaps:
            place = options[swap.instead].pool, min(at for pool, at in counts if str(pool) == swap.pool)
            rest = {key: count for key, count in counts.items() if str(key[0]) != swap.pool}
            there = rest.get(place, 0)
            enough = desk.worth({**rest, place: there + swap.replicas})
            assert sum(enough.served_per_s.values()) == pytest.approx(served)
            fewer = desk.worth({**rest, place: there + swap.replicas - 1})
            assert sum(fewer.served_per_s.values()) < served * (1.0 - 1e-6)
            extra = enough.cost_usd_per_hour - desk.worth(counts).cost_usd_per_hour
            assert swap.extra_usd_per_hour == pytest.approx(extra, abs=0.02 * plan.report.cost_usd_per_hour)
            assert swap.instead.split("/")[3] != swap.pool.split("/")[3]
            assert f"or {swap.replicas} more of {swap.instead}: " in told.text()
            tried += 1
    assert tried >= len(problem.services)
