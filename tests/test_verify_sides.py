"""Pairs, links and CPUs in the check of a bound, by hand: what crosses is paid once, and no place counts twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.certificate import LINK_OUT, RESOURCES_WHOLE, Certificate, PricedRow
from solvers.engine import EngineConfig, Role
from solvers.fleet import Node
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.pools.crew import WIDE_GPUS
from solvers.problem import Problem
from solvers.verify.bound import recomputed
from solvers.verify.goods import room_of_goods
from solvers.verify.stock import Stock, first_apart
from solvers.verify.ways import Asked, least
from tests import fleets
from tests.test_links import SPLIT, only_one_role, two_kinds, uplink


def shown(plan: Plan) -> Certificate:
    """What failing weighs, and no prices."""
    assert plan.certificate is not None
    return replace(plan.certificate, rows=(), held=())


@pytest.mark.parametrize(("leaving", "entering"), [(20.0, 5.0), (200.0, 50.0)])
def test_what_crosses_links_is_paid_once(leaving: float, entering: float) -> None:
    """All prompts are computed on one side and decoded on the other; a bound without prices says all of that."""
    problem = two_kinds(uplink("rack-1", usd=leaving), uplink("rack-2", usd=entering))
    plan = make_plan(problem, capacity_of=only_one_role)
    crossing = sum(row.usd_per_hour for row in plan.links)
    assert crossing > 0.5 * plan.report.objective_usd_per_hour
    found = recomputed(shown(plan), problem, only_one_role)
    assert found <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)
    assert found >= plan.report.objective_usd_per_hour * (1.0 - 1e-3)


@pytest.mark.parametrize("usd", [0.0, 5.0, 100.0])
def test_a_price_of_a_link_that_is_full_changes_nothing(usd: float) -> None:
    """What crosses pays as much more as all of the room fetches."""
    links = uplink("rack-1", usd=20.0), uplink("rack-2", usd=5.0)
    needed = make_plan(two_kinds(*links), capacity_of=only_one_role).links[0].outgoing_bytes_per_s
    problem = two_kinds(replace(links[0], bytes_per_s=needed * (1.0 + 1e-9)), links[1])
    plan = make_plan(problem, capacity_of=only_one_role)
    row = PricedRow(limit=LINK_OUT, places=("up-rack-1",), usd_per_hour=usd)
    found = recomputed(replace(shown(plan), rows=(row,)), problem, only_one_role)
    assert found == pytest.approx(recomputed(shown(plan), problem, only_one_role), rel=1e-3)
    assert found <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)


def one_size(size: int) -> tuple[float, float]:
    return 5.0, 2.0


def test_a_load_that_was_rounded_up_pays_for_no_more_than_it_is() -> None:
    """One replica each carries the whole demand; of ten parts the last may not be all there."""
    stocks = [
        Stock(
            pair=(role,),
            role=role,
            units_usd_per_hour=np.zeros(3),
            price_usd_per_hour=2.0,
            idle_usd_per_hour=2.0,
            sized=one_size,
            group=("a",),
        )
        for role in SPLIT
    ]
    asked = Asked(demand_per_s=5.0, unserved_usd_per_hour=1e3, fair_ratio=1.0, floor=0, floor_usd_per_hour=0.0)
    for parts in (10, 1000):
        found = least(stocks, first_apart(stocks), asked, parts, crossing_usd_per_hour={("a",): 100.0})
        assert found.usd_per_hour == pytest.approx(4.0 + 100.0 * (parts - 1) / parts)


def near_pairs() -> Problem:
    """Two racks of two GPUs, each of which needs a pair."""
    fleet = tuple(node for n in (1, 2) for node in fleets.nodes("h100-sxm", 1, f"rack-{n}", usable=2))
    served = replace(fleets.service("chat", "chat", roles=SPLIT), kv_may_cross=False)
    return fleets.problem([(served, 2.8)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])


@pytest.mark.parametrize("also", [(), fleets.nodes("l40s", 1, "rack-2", prefix="m")], ids=["alike", "told apart"])
def test_pairs_at_each_place_carry_what_their_whole_pool_does(also: tuple[Node, ...]) -> None:
    """One H100 a rack prefills; of two in a pool each carries half as much again as one alone."""
    racks = (fleets.nodes("h100-sxm", 1, at, gpus=1) + fleets.nodes("l40s", 1, at) for at in ("rack-1", "rack-2"))
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    served = replace(fleets.service("chat", "chat", roles=SPLIT), kv_may_cross=False)
    problem = fleets.problem([(served, 2.8)], [*(node for rack in racks for node in rack), *also], profiles)
    plan = make_plan(problem, capacity_of=only_one_role)
    assert not plan.is_short
    assert {row.location: row.replicas for row in plan.placements if row.pool.role is Role.PREFILL} == {
        "rack-1": 1,
        "rack-2": 1,
    }
    found = recomputed(shown(plan), problem, only_one_role)
    assert found <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)


@pytest.mark.parametrize("wide_gpus", [0, WIDE_GPUS])
def test_decode_stands_at_every_place_that_prefills_though_one_replica_would_carry_all(wide_gpus: int) -> None:
    """Four GPUs in two racks: a pair at each is the only way, and one decode replica is enough for the load."""
    plan = make_plan(near_pairs(), capacity_of=fleets.plain_capacity, wide_gpus=wide_gpus)
    assert not plan.is_short
    assert sorted((row.location, row.pool.role) for row in plan.placements) == sorted(
        (rack, role) for rack in ("rack-1", "rack-2") for role in SPLIT
    )


def test_room_of_pods_is_as_many_as_the_smallest_leave() -> None:
    """Of pods that ask for two cores a node with eight GPUs holds eight, though some would take four GPUs each."""
    profiles = [fleets.profile("chat", "h100-sxm", degree, 8.0) for degree in (1, 4)]
    served = replace(fleets.service("chat", "chat"), requests={Role.MIXED: {"cpu": 2000}})
    (node,) = (replace(node, resources={"cpu": 100_000}) for node in fleets.nodes("h100-sxm", 1, "rack-1"))
    problem = fleets.problem([(served, 6.0)], (node,), profiles)
    row = PricedRow(
        limit=RESOURCES_WHOLE, places=("rack-1",), gpu_class="h100-sxm", resource="cpu", size=2000.0, usd_per_hour=1.0
    )
    bays, config = {("h100-sxm", "rack-1"): (node,)}, EngineConfig(tensor_parallel=4)
    assert room_of_goods(row, problem, bays, {"h100-sxm": 8}) == 8.0
    large = replace(problem, profiles={key: p for key, p in problem.profiles.items() if key.config == config})
    assert room_of_goods(row, large, bays, {"h100-sxm": 8}) == 2.0
    scarce = replace(node, resources={"cpu": 7000})
    assert room_of_goods(row, problem, {("h100-sxm", "rack-1"): (scarce,)}, {"h100-sxm": 8}) == 3.0
