"""Replicas larger than a node: whole nodes of one island, against an oracle that tries every set of nodes.

``python -m tests.test_spans`` writes the golden file anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solvers.engine import EngineConfig, Role
from solvers.evaluate.fleet_state import RunningFleet
from solvers.evaluate.incidents import Incident, What
from solvers.fleet import GpuClass, Node, PoolKey, PowerDomain, Replica, ReplicaState, Snapshot
from solvers.ledger import reserved_now_watts
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.bays.nodes import Room
from solvers.planner.model.relax import state
from solvers.planner.placing.pack_nodes import pack
from solvers.problem import Problem
from solvers.rollout.room import Room as RolloutRoom
from solvers.simulate import Fleet
from solvers.verify import verify, verify_places
from solvers.workload import Demand, PlacementMode
from tests import fleets
from tests.test_against_brute_force import MIX, POLICY, TOLERANCE, Placed, Tiny, bare_profile, domain_holds, value
from tests.test_limits import cells_of, rows_text

GOLDEN = Path(__file__).parent / "golden" / "spans_gpus.txt"
FLEETS, PER_TEST, MOST_TRIES = 90, 30, 800


def stands(nodes: Sequence[Node], link_gpus: int, groups: Sequence[int]) -> bool:
    """Try every node, and for groups larger than a node every set of untouched whole nodes on one fabric."""
    if not nodes:
        return not groups
    full = max(node.gpus_total for node in nodes)
    is_linked = full < link_gpus and sum(node.gpus_total for node in nodes) <= link_gpus

    def place(free: tuple[int, ...], left: tuple[int, ...]) -> bool:
        if not left:
            return True
        gpus, rest = left[0], left[1:]
        if gpus <= full:
            fit = [i for i, f in enumerate(free) if f >= gpus and (f, nodes[i].island) not in seen(free[:i], nodes)]
            return any(place((*free[:i], free[i] - gpus, *free[i + 1 :]), rest) for i in fit)
        whole = [i for i, f in enumerate(free) if f == full and (nodes[i].island or is_linked)]
        return any(
            place(tuple(0 if i in chosen else f for i, f in enumerate(free)), rest)
            for chosen in itertools.combinations(whole, math.ceil(gpus / full))
            if len({nodes[i].island for i in chosen}) == 1
        )

    return place(tuple(node.gpus_usable for node in nodes), tuple(sorted(groups, reverse=True)))


def seen(free: Sequence[int], nodes: Sequence[Node]) -> set[tuple[int, str]]:
    return {(f, node.island) for f, node in zip(free, nodes, strict=False)}


# ---------------------------------------------------------------- plans against every count


def tiny(rng: np.random.Generator) -> Tiny:
    """Draw one service on two classes of two-GPU nodes, some degraded, some with a fabric between them."""
    classes = {name: _class(name, rng) for name in ("big", "small")}
    nodes = tuple(_node(i, rng) for i in range(int(rng.integers(3, 6))))
    service = replace(
        fleets.service("one", "one", roles=((Role.MIXED,), (Role.PREFILL, Role.DECODE))[int(rng.integers(0, 2))]),
        slos=(),
        max_replicas=int(rng.choice([1, 2, 10])),
        min_replicas=int(rng.choice([0, 1])),
    )
    degrees = {g: ((4,), (4,), (1, 4), (2, 3, 4), (4, 6))[int(rng.integers(0, 5))] for g in classes}
    table = {
        (service.name, role, g): (round(float(rng.uniform(0.5, 3.0)), 2), 0.0, float(rng.uniform(100, 300)))
        for role in Role
        for g in classes
    }
    domains = {
        "site": PowerDomain(name="site", budget_watts=float(rng.choice([1800, 9000]))),
        "feed-0": PowerDomain(name="feed-0", budget_watts=float(rng.choice([1500, 9000]))),
        "feed-1": PowerDomain(name="feed-1", budget_watts=9000.0),
    }
    rate = round(float(rng.uniform(1.0, 16.0)), 2)
    problem = Problem(
        services=(replace(service, model=service.name),),
        demands={service.name: Demand(service=service.name, requests_per_s=rate, mix=MIX)},
        gpu_classes=classes,
        nodes=nodes,
        domains=domains,
        profiles={p.key: p for p in (bare_profile(service.name, g, k) for g in classes for k in degrees[g])},
        policy=POLICY,
    )
    return Tiny(problem=problem, table=table)


def _class(name: str, rng: np.random.Generator) -> GpuClass:
    made = fleets.gpu_class("h100-sxm")
    return replace(
        made,
        name=name,
        link_island_gpus=int(rng.choice([1, 2, 4, 8])),
        idle_watts=40.0,
        max_cap_watts=float(rng.choice([300, 400])),
        min_cap_watts=100.0,
        host_share_watts=50.0,
        price_usd_per_hour=round(float(rng.uniform(0.5, 3.0)), 2),
    )


def _node(number: int, rng: np.random.Generator) -> Node:
    return Node(
        name=f"n{number}",
        gpu_class=str(rng.choice(["big", "big", "big", "small"])),
        location=str(rng.choice(["left", "left", "right"])),
        gpus_total=2,
        gpus_usable=int(rng.choice([1, 2, 2, 2])),
        domains=tuple(sorted(("site", f"feed-{number % 2}"))),
        island=str(rng.choice(["", "x", "x", "x", "x"])),
    )


def spots(problem: Problem) -> list[tuple[PoolKey, str, int]]:
    (service,) = problem.services
    found = []
    for key, role, where in itertools.product(sorted(problem.profiles), service.roles, ("left", "right")):
        here = [n for n in problem.nodes if (n.gpu_class, n.location) == (key.gpu_class, where)]
        gpus, most = key.config.gpus, 0
        while most < service.max_replicas and stands(here, link_of(problem, key.gpu_class), (gpus,) * (most + 1)):
            most += 1
        if most:
            found.append(
                (PoolKey(service=service.name, role=role, gpu_class=key.gpu_class, config=key.config), where, most)
            )
    return found


def link_of(problem: Problem, gpu_class: str) -> int:
    return problem.gpu_classes[gpu_class].link_island_gpus


def is_possible(problem: Problem, counts: Placed) -> bool:
    (service,) = problem.services
    for role in Role:
        if sum(n for (p, _), n in counts.items() if p.role is role) > service.max_replicas:
            return False
    for where, g in itertools.product(("left", "right"), problem.gpu_classes):
        here = [n for n in problem.nodes if (n.gpu_class, n.location) == (g, where)]
        groups = [p.config.gpus for (p, at), n in counts.items() if (p.gpu_class, at) == (g, where) for _ in range(n)]
        if groups and (sum(groups) > sum(n.gpus_usable for n in here) or not stands(here, link_of(problem, g), groups)):
            return False
    return all(domain_holds(problem, counts, name) for name in problem.domains)


@pytest.mark.parametrize("first", range(0, FLEETS, PER_TEST))
def test_no_counts_are_cheaper_than_the_plan(first: int) -> None:
    spanning = 0
    for seed in range(first, first + PER_TEST):
        rng = np.random.default_rng([seed, 17])
        case = tiny(rng)
        while math.prod(most + 1 for _, _, most in spots(case.problem)) > MOST_TRIES:
            case = tiny(rng)
        plan = make_plan(case.problem, capacity_of=case.capacity_of)
        assert verify(plan, case.problem, capacity_of=case.capacity_of) == (), seed
        penalties, places = desk_for(case.problem, case.capacity_of).penalties, spots(case.problem)
        every = itertools.product(*(range(most + 1) for _, _, most in places))
        tried = ({(p, at): n for (p, at, _), n in zip(places, numbers, strict=True) if n} for numbers in every)
        best = min(value(case, counts, penalties) for counts in tried if is_possible(case.problem, counts))
        assert plan.report.objective_usd_per_hour == pytest.approx(best, rel=TOLERANCE), seed
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
        spanning += any(pool.nodes_per_replica > 1 for pool in plan.pools)
    assert spanning > PER_TEST // 10


# ---------------------------------------------------------------- nodes and islands


def rack(usable: Sequence[int], islands: Sequence[str], location: str = "rack-1") -> tuple[Node, ...]:
    made = fleets.nodes("h100-sxm", len(usable), location)
    return tuple(replace(n, gpus_usable=u, island=i) for n, u, i in zip(made, usable, islands, strict=True))


def problem_on(nodes: Sequence[Node], sizes: Sequence[int] = (4, 8, 16), rate: float = 1.0) -> Problem:
    served = fleets.service("chat", "chat", roles=(Role.MIXED,))
    return fleets.problem([(served, rate)], nodes, [fleets.profile("chat", "h100-sxm", tp, 8.0) for tp in sizes])


def pool(gpus: int) -> PoolKey:
    config = EngineConfig(tensor_parallel=gpus)
    return PoolKey(service="default/chat", role=Role.MIXED, gpu_class="h100-sxm", config=config)


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_best_fit_agree_with_trying_everything(seed: int) -> None:
    """Exact for sizes that divide one another and the node, whatever is degraded."""
    rng = np.random.default_rng(seed)
    outcomes = set()
    for _ in range(60):
        count = int(rng.integers(2, 6))
        nodes = rack(rng.choice([8, 8, 8, 7, 4], count).tolist(), rng.choice(["a", "a", "b", ""], count).tolist())
        wanted = {size: int(rng.integers(0, 3)) for size in (4, 8, 16, 32)}
        groups = [size for size, n in wanted.items() for _ in range(n)]
        counts = {(pool(size), "rack-1"): n for size, n in wanted.items() if n}
        problem = problem_on(nodes, (4, 8, 16, 32))
        is_there = stands(nodes, 8, groups)
        assert (not pack(problem, counts).left) is is_there
        assert (not Room.of(problem).take_all(counts)) is is_there
        outcomes.add(is_there)
    assert outcomes == {True, False}


def test_a_replica_stands_on_whole_nodes_of_one_island() -> None:
    nodes = rack((8, 8, 7, 8, 8), ("a", "a", "a", "b", ""))
    packing = pack(problem_on(nodes), {(pool(16), "rack-1"): 1, (pool(4), "rack-1"): 5})
    assert packing.left == {}
    spanned = {node for key, _, node, _ in packing.on_node if key == pool(16)}
    assert spanned == {nodes[0].name, nodes[1].name}
    others = {node for key, _, node, _ in packing.on_node if key == pool(4)}
    assert not spanned & others


def test_a_large_island_stays_whole_while_a_smaller_one_will_do() -> None:
    nodes = rack((8, 8, 8, 8, 8), ("a", "a", "a", "b", "b"))
    packing = pack(problem_on(nodes), {(pool(16), "rack-1"): 1})
    assert {node for _, _, node, _ in packing.on_node} == {nodes[3].name, nodes[4].name}


def test_a_node_with_a_broken_gpu_is_no_part_of_one() -> None:
    plan = make_plan(problem_on(rack((8, 7), ("a", "a")), (16,)), capacity_of=fleets.plain_capacity)
    assert plan.pools == ()
    assert "2 whole nodes of 8 on one island, no two of 2 nodes are whole and share one" in str(plan.services[0])
    assert planned(problem_on(rack((8, 8), ("a", "a")), (16,))).pools[0].nodes_per_replica == 2


def test_nodes_of_different_fabrics_or_of_none_hold_no_replica_together() -> None:
    for islands in (("a", "b"), ("a", ""), ("", "")):
        plan = make_plan(problem_on(rack((8, 8), islands), (16,)), capacity_of=fleets.plain_capacity)
        assert plan.pools == ()
    across = (*rack((8,), ("a",)), *rack((8,), ("a",), "rack-2"))
    assert make_plan(problem_on(across, (16,)), capacity_of=fleets.plain_capacity).pools == ()


def test_a_link_around_a_location_is_its_island() -> None:
    """Eighteen nodes of four GPUs on one link hold a replica of 72; two such racks under one name do not."""
    trays = tuple(replace(n, gpus_total=4, gpus_usable=4) for n in fleets.nodes("h100-sxm", 18, "rack-1"))
    problem = problem_on(trays, (8, 72))
    joined = {"h100-sxm": replace(problem.gpu_classes["h100-sxm"], link_island_gpus=72)}
    counts = {(pool(72), "rack-1"): 1}
    assert pack(replace(problem, gpu_classes=joined), counts).left == {}
    assert pack(problem, counts).left == counts
    twice = (*trays, *(replace(n, name=n.name + "-b") for n in trays))
    assert pack(replace(problem, gpu_classes=joined, nodes=twice), counts).left == counts


def test_a_class_wide_replica_of_two_nodes_keeps_to_one_location() -> None:
    fleet = (*rack((8, 8), ("a", "a")), *rack((8,), ("a",), "rack-2"))
    problem = problem_on(fleet, (8, 16), rate=3.0)
    anywhere = replace(problem.services[0], placement=PlacementMode.CLASS)
    plan = planned(replace(problem, services=(anywhere,)))
    assert sum(row.replicas * row.pool.config.gpus for row in plan.placements) <= 24


def test_every_feed_of_the_nodes_pays() -> None:
    nodes = tuple(
        replace(node, domains=tuple(sorted(("site", f"feed-{i % 2}"))))
        for i, node in enumerate(rack((8, 8), ("a", "a")))
    )
    problem = problem_on(nodes, (16,), rate=0.5)
    plan = planned(problem)
    reserved = {row.domain: row.reserved_watts for row in plan.domains}
    assert plan.pools[0].replicas == 1
    tight = dict(problem.domains) | {"feed-1": replace(problem.domains["feed-1"], budget_watts=4000.0)}
    assert reserved["feed-1"] > 4000.0
    assert planned(replace(problem, domains=tight)).pools == ()


def test_a_service_of_single_pods_has_no_replica_of_two_nodes_and_says_the_remedy() -> None:
    problem = problem_on(rack((8, 8), ("a", "a")), (16,))
    single = replace(problem, services=(replace(problem.services[0], is_one_pod=True),))
    plan = make_plan(single, capacity_of=fleets.plain_capacity)
    assert plan.pools == ()
    assert "run groups of pods under management Observe" in str(plan.services[0].short_because)
    faults = verify_places(planned(problem), single)
    assert any("one pod cannot stand on several nodes" in fault for fault in faults)


def test_a_shortage_of_islands_is_told_what_would_relieve_it() -> None:
    problem = problem_on(rack((8, 8), ("a", "a")), (16,), rate=60.0)
    plan = planned(problem)
    assert plan.is_short
    assert [(row.limit, row.unit, row.amount % 16) for row in plan.relief] == [("gpus", "GPU", 0.0)]
    single = replace(problem, services=(replace(problem.services[0], is_one_pod=True),))
    assert planned(single).relief == (), "no node more would help"


# ---------------------------------------------------------------- groups that run


def world(*replicas: Replica) -> Snapshot:
    """Three nodes of eight GPUs with a feed each, all on one fabric."""
    joined = rack((8, 8, 8), ("a", "a", "a"))
    nodes = tuple(replace(node, domains=(f"feed-{i}", "site")) for i, node in enumerate(joined))
    problem = problem_on(nodes, (4, 16))
    return Snapshot(
        gpu_classes=problem.gpu_classes, nodes=nodes, domains=problem.domains, replicas=replicas, desired={}
    )


def group(*names: str, state: ReplicaState = ReplicaState.READY) -> Replica:
    first = names[0] if names else None
    return Replica(name="g", pool=pool(16), location="rack-1", node=first, more_nodes=names[1:], state=state)


def test_a_running_group_holds_all_of_its_nodes_and_charges_every_feed() -> None:
    names = [node.name for node in world().nodes]
    snapshot, idle = world(group(names[0], names[2])), 8 * 70.0
    reserved = reserved_now_watts(snapshot)
    assert reserved["feed-1"] == idle
    assert reserved["feed-0"] == reserved["feed-2"] > idle
    room = RolloutRoom(snapshot, snapshot.replicas)
    blocker = room.blocker(pool(16), "rack-1")
    assert blocker is not None
    assert blocker.text == "8 h100-sxm GPUs are free there and 16 are asked for"
    assert room.blocker(pool(4), "rack-1") is None
    room.release(snapshot.replicas[0])
    assert room.blocker(pool(16), "rack-1") is None


def test_a_group_that_waits_for_nodes_keeps_room_on_an_island() -> None:
    waiting = group(state=ReplicaState.PENDING)
    room = RolloutRoom(world(), (waiting,))
    assert room.blocker(pool(4), "rack-1") is None
    assert room.blocker(pool(16), "rack-1") is not None
    half = group(world().nodes[0].name, state=ReplicaState.STARTING)
    assert all(watts > 8 * 70.0 for watts in reserved_now_watts(world(half)).values())
    room = RolloutRoom(world(), (half,))
    assert room.blocker(pool(4), "rack-1") is None, "one node is left beside the second half"
    for _ in range(2):
        room.hold(replace(half, pool=pool(4), node=None))
    assert room.blocker(pool(4), "rack-1") is not None


def test_a_replay_starts_groups_on_whole_nodes_and_loses_them_with_any_of_these() -> None:
    nodes = rack((8, 8, 7, 8), ("a", "a", "a", "a"))
    running = RunningFleet(problem_on(nodes, (4, 16)), Fleet())
    running.ask({(pool(16), "rack-1"): 2})
    (lone,) = running.snapshot().replicas[:1]
    assert lone.nodes == (nodes[0].name, nodes[1].name)
    running.ask({(pool(16), "rack-1"): 1, (pool(4), "rack-1"): 5})
    held = [r for r in running.snapshot().replicas if r.node is not None]
    assert sorted(r.pool.config.gpus for r in held) == [4, 4, 4, 16], "one beside a broken GPU, two on the last node"
    failed = running.suffer(Incident(at_s=0.0, what=What.FAIL, node=nodes[1].name, repair_s=60.0))
    assert len(failed.replicas) == 1
    assert all(r.pool != pool(16) for r in running.snapshot().replicas if r.node is not None)
    running.start_pending()
    assert all(r.node != nodes[0].name for r in running.snapshot().replicas), "both of its nodes are being repaired"


# ---------------------------------------------------------------- the check, and the rows


def planned(problem: Problem) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def test_corrupted_plans_are_caught_and_named() -> None:
    problem = problem_on(rack((8, 8, 8, 8), ("a", "a", "b", "b")), (16,), rate=60.0)
    plan = planned(problem)
    assert plan.pools[0].replicas == 2

    def faults(*, replicas: int = 2, nodes: int = 2, islands: Sequence[str] = ("a", "a", "b", "b")) -> str:
        row, total = replace(plan.placements[0], replicas=replicas), plan.pools[0]
        total = replace(total, replicas=replicas, nodes_per_replica=nodes)
        world = replace(problem, nodes=rack((8, 8, 8, 8), islands))
        return "; ".join(verify_places(replace(plan, placements=(row,), pools=(total,)), world))

    assert faults() == ""
    assert "48 GPUs in groups of [16] do not fit on nodes with [8, 8, 8, 8] free, islands of [2, 2]" in faults(
        replicas=3
    )
    assert "said 1 nodes a replica, it takes 2 of 8 GPUs" in faults(nodes=1)
    assert "islands of [3] whole nodes" in faults(islands=("a", "a", "a", ""))
    degraded = replace(problem, nodes=rack((8, 8, 7, 8), ("a", "a", "b", "b")))
    assert any("do not fit" in fault for fault in verify_places(plan, degraded))


def golden_text() -> str:
    """Nodes of 8, 7 and 8 GPUs on one fabric, two more on another: rows by size, islands counted apart."""
    nodes = rack((8, 7, 8, 8, 8), ("a", "a", "a", "b", "b"))
    cells = cells_of(problem_on(nodes, (3, 8, 16), rate=40.0))
    return rows_text(cells, state(cells), "gpus")


def test_the_rows_are_those_of_the_golden_file() -> None:
    assert golden_text() == GOLDEN.read_text()


if __name__ == "__main__":
    GOLDEN.write_text(golden_text())
