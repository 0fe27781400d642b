from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import EngineConfig, Role
from solvers.fleet import ANYWHERE, Node, PoolKey
from solvers.planner.bays.grouping import group_bays
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.pack_nodes import Packing, pack
from solvers.planner.placing.places import place
from solvers.planner.pools.cells import build_cells
from solvers.planner.pools.options import find_options
from solvers.planner.pools.sizer import Sizer
from solvers.power import reserved_watts
from solvers.problem import Problem
from tests import fleets


def pool(gpus: int, service: str = "default/chat", name: str = "h100-sxm") -> PoolKey:
    return PoolKey(service=service, role=Role.MIXED, gpu_class=name, config=EngineConfig(tensor_parallel=gpus))


def fleet_of(*usable: int, location: str = "rack-1") -> tuple[Node, ...]:
    nodes = fleets.nodes("h100-sxm", len(usable), location)
    return tuple(replace(node, gpus_usable=free) for node, free in zip(nodes, usable, strict=True))


def problem_on(nodes: tuple[Node, ...], budgets: dict[str, float] | None = None) -> Problem:
    served = fleets.service("chat", "chat", roles=(Role.MIXED,))
    profiles = [fleets.profile("chat", "h100-sxm", tp, 8.0) for tp in (1, 2, 4, 8)]
    return fleets.problem([(served, 1.0)], nodes, profiles, budgets=budgets)


def held_by_node(packing: Packing) -> dict[str, int]:
    held: dict[str, int] = {}
    for key, _, node, count in packing.on_node:
        held[node] = held.get(node, 0) + count * key.config.gpus
    return held


def fits_by_trying(free: tuple[int, ...], groups: tuple[int, ...]) -> bool:
    if not groups:
        return True
    return any(
        left >= groups[0] and fits_by_trying((*free[:i], left - groups[0], *free[i + 1 :]), groups[1:])
        for i, left in enumerate(free)
        if left not in free[:i]
    )


@pytest.mark.parametrize("seed", range(4))
def test_group_counts_and_best_fit_agree_with_trying_everything(seed: int) -> None:
    """For sizes that divide one another the counted test is exact, on degraded nodes too."""
    rng = np.random.default_rng(seed)
    outcomes = set()
    for _ in range(75):
        usable = tuple(int(n) for n in rng.choice([8, 8, 7, 6, 5, 4, 3, 1], rng.integers(1, 4)))
        wanted = {size: int(rng.integers(0, 1 + sum(usable) // (2 * size))) for size in (1, 2, 4, 8)}
        problem = problem_on(fleet_of(*usable))
        counts = {(pool(size), "rack-1"): n for size, n in wanted.items() if n}
        groups = tuple(size for size in (8, 4, 2, 1) for _ in range(wanted[size]))
        possible = fits_by_trying(usable, groups)
        assert (not pack(problem, counts).left) is possible
        assert (not Room.of(problem).take_all(counts)) is possible
        outcomes.add(possible)
    assert outcomes == {True, False}


def test_no_node_holds_more_than_it_has() -> None:
    usable = (8, 7, 5, 3)
    problem = problem_on(fleet_of(*usable))
    counts = {(pool(4), "rack-1"): 3, (pool(2), "rack-1"): 4, (pool(1), "rack-1"): 9}
    packing = pack(problem, counts)
    held = held_by_node(packing)
    free = {node.name: node.gpus_usable for node in problem.nodes}
    assert all(held[name] <= free[name] for name in held)
    placed = sum(held.values()) + sum(n * key.config.gpus for (key, _), n in packing.left.items())
    assert placed == 3 * 4 + 4 * 2 + 9


def test_best_fit_leaves_whole_nodes_for_whole_groups() -> None:
    problem = problem_on(fleet_of(8, 4, 2))
    packing = pack(problem, {(pool(8), "rack-1"): 1, (pool(4), "rack-1"): 1, (pool(2), "rack-1"): 1})
    assert packing.left == {}
    assert sorted(held_by_node(packing).values()) == [2, 4, 8]


def test_sizes_that_do_not_divide_are_packed_or_left_by_name() -> None:
    problem = problem_on(fleet_of(8, 8))
    packing = pack(problem, {(pool(3), "rack-1"): 5})
    assert packing.left == {(pool(3), "rack-1"): 1}


def test_a_class_wide_group_goes_where_the_located_ones_leave_room() -> None:
    nodes = (*fleet_of(8), *fleet_of(4, location="rack-2"))
    problem = problem_on(nodes)
    packing = pack(problem, {(pool(1), "rack-1"): 6, (pool(4, "default/free"), ANYWHERE): 1})
    assert packing.left == {}
    assert held_by_node(packing)["n-rack-2-h100-sxm-00"] == 4


def test_the_ledger_takes_no_watt_more_than_a_feed_has() -> None:
    nodes = (*fleet_of(8), *fleet_of(8, location="rack-2"))
    problem = problem_on(nodes, {"rack-1": 8 * 70.0 + 3 * 780.0, "site": 16 * 70.0 + 8 * 780.0})
    room = Room.of(problem)
    left = room.take_all({(pool(1), "rack-1"): 5, (pool(1), "rack-2"): 7})
    assert left == {(pool(1), "rack-1"): 2, (pool(1), "rack-2"): 2}
    counts = {(pool(1), "rack-1"): 3, (pool(1), "rack-2"): 5}
    reserved = reserved_watts(problem.nodes, problem.gpu_classes, counts)
    assert reserved["rack-1"] == problem.domains["rack-1"].budget_watts
    assert reserved["site"] == problem.domains["site"].budget_watts


def test_new_replicas_go_to_the_feed_with_most_watts_left() -> None:
    nodes = (*fleet_of(8), *fleet_of(8, location="rack-2"))
    problem = problem_on(nodes, {"rack-1": 8 * 70.0 + 3 * 780.0, "rack-2": 8 * 70.0 + 6 * 780.0})
    room = Room.of(problem)
    assert room.spread(pool(1), 3, room.bays_of(pool(1))) == {"rack-2": 3}


def test_what_runs_stays_where_it_runs() -> None:
    nodes = tuple(itertools.chain.from_iterable(fleet_of(8, location=f"rack-{i}") for i in range(1, 5)))
    problem = replace(problem_on(nodes), running={(pool(1), "rack-3"): 3, (pool(1), "rack-4"): 1})
    sizer = Sizer(problem=problem, capacity_of=fleets.plain_capacity)
    options = find_options(problem, sizer, wanted={pool(1)})
    cells = build_cells(problem, options, split_running=False)
    replicas = np.array([4.0 if o.pool == pool(1) else 0.0 for o in (cells.pools[p] for p in cells.cell_pool)])
    placed = place(cells, replicas)
    assert placed.left == 0
    assert placed.counts == {(pool(1), "rack-3"): 3, (pool(1), "rack-4"): 1}


def test_like_racks_are_one_group_and_unlike_ones_are_not() -> None:
    racks = [fleet_of(8, 8, location=f"rack-{i}") for i in range(1, 6)]
    racks[3] = fleet_of(8, 7, location="rack-4")
    nodes = tuple(itertools.chain.from_iterable(racks))
    budgets = {f"rack-{i}": 5000.0 for i in range(1, 6)} | {"rack-5": 4000.0}
    grouping = group_bays(problem_on(nodes, budgets), {"h100-sxm": {1, 2, 4, 8}})
    members = sorted(tuple(bay.location for bay in group.bays) for group in grouping.groups)
    assert members == [("rack-1", "rack-2", "rack-3"), ("rack-4",), ("rack-5",)]
    assert {d.domains for d in grouping.domain_groups} == {("rack-1", "rack-2", "rack-3"), ("rack-4",), ("rack-5",)}


def test_rows_with_different_neighbours_keep_their_racks_apart() -> None:
    """Two like racks under unlike rows must not be mixed: their rows leave different room."""
    nodes = (
        *fleets.nodes("h100-sxm", 2, "rack-1", row="row-a"),
        *fleets.nodes("h100-sxm", 2, "rack-2", row="row-b"),
        *fleets.nodes("h100-sxm", 2, "rack-3", row="row-b"),
    )
    budgets = {"row-a": 9000.0, "row-b": 9000.0}
    grouping = group_bays(problem_on(nodes, budgets), {"h100-sxm": {1}})
    members = sorted(tuple(bay.location for bay in group.bays) for group in grouping.groups)
    assert members == [("rack-1",), ("rack-2", "rack-3")]


def test_domains_that_full_nodes_cannot_fill_limit_nothing() -> None:
    nodes = (*fleet_of(8), *fleet_of(8, location="rack-2"))
    grouping = group_bays(problem_on(nodes, {"rack-1": 8 * 850.0, "rack-2": 1e6}), {"h100-sxm": {1}})
    assert grouping.domain_groups == ()
    assert len(grouping.groups) == 1


def test_what_a_class_wide_replica_draws_is_missing_from_every_feed_it_could_land_on() -> None:
    racks = {rack: fleet_of(8, 8, location=rack) for rack in ("rack-1", "rack-2")}
    problem = problem_on((*racks["rack-1"], *racks["rack-2"]), budgets={"rack-1": 9_000.0, "rack-2": 9_000.0})
    room = Room.of(problem)
    bays = room.bays_of(pool(1))
    assert sum(room.spread(pool(1), 1, bays).values()) == 1  # from here on the bays are kept as arrays too
    assert room.spread(pool(1, "default/free"), 2, bays, ANYWHERE) == {ANYWHERE: 2}
    tables = room.tables
    assert tables is not None
    assert {name: tables.watts[row] for name, row in tables.domain_of.items()} == room.free_watts
