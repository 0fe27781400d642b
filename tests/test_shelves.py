"""CPU, memory and ports of nodes in the plan: nothing changes where there is enough, and never more than there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import EngineConfig, Role
from solvers.errors import InvalidInput
from solvers.fleet import Node, PoolKey
from solvers.plan import Placement, Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.bays.nodes import Room
from solvers.planner.bays.shelves import Shelf, Spot, arrange
from solvers.planner.model.relax import state
from solvers.planner.placing.pack_nodes import pack
from solvers.problem import Problem
from solvers.verify import verify, verify_places
from solvers.workload import PlacementMode
from tests import fleets
from tests.test_against_brute_force import TOLERANCE, Placed, Tiny, domain_holds, spots, tiny, value
from tests.test_limits import cells_of

FLEETS, PER_TEST, MOST_TRIES = 80, 40, 500


def on_nodes(nodes: Sequence[tuple[int, ...]], groups: Sequence[tuple[int, ...]]) -> bool:
    """Try every node for every group; both are vectors of GPUs and the rest."""
    if not groups:
        return True
    return any(
        all(have >= ask for have, ask in zip(left, groups[0], strict=True))
        and on_nodes(
            (*nodes[:i], tuple(h - a for h, a in zip(left, groups[0], strict=True)), *nodes[i + 1 :]), groups[1:]
        )
        for i, left in enumerate(nodes)
        if left not in nodes[:i]
    )


# ---------------------------------------------------------------- plans against every count


def drawn(first: int) -> Iterator[tuple[int, Tiny]]:
    """Tiny fleets with few cores on some nodes, and roles that ask for some."""
    for seed in range(first, first + PER_TEST):
        rng = np.random.default_rng([seed, 5])
        case = tiny(rng)
        while math.prod(most + 1 for _, _, most in spots(case.problem)) > MOST_TRIES:
            case = tiny(rng)
        nodes = tuple(
            replace(n, resources={"cpu": int(rng.choice([2, 4, 7])), "ports": 2}) if rng.random() < 0.8 else n
            for n in case.problem.nodes
        )
        asked = ({"cpu": int(rng.integers(1, 6)), "ports": int(rng.integers(0, 2))} for _ in itertools.count())
        services = tuple(replace(s, requests=dict(zip(Role, asked, strict=False))) for s in case.problem.services)
        yield seed, replace(case, problem=replace(case.problem, nodes=nodes, services=services))


def is_possible(problem: Problem, counts: Placed) -> bool:
    asked = {(s.name, role): s.requests[role] for s in problem.services for role in s.requests}
    for where, g in itertools.product(("left", "right"), problem.gpu_classes):
        nodes = tuple(
            (n.gpus_usable, n.resources.get("cpu", 99), n.resources.get("ports", 99))
            for n in problem.nodes
            if (n.gpu_class, n.location) == (g, where)
        )
        groups = [
            (p.config.gpus, asked[p.service, p.role]["cpu"], asked[p.service, p.role]["ports"])
            for (p, at), n in counts.items()
            if (p.gpu_class, at) == (g, where)
            for _ in range(n)
        ]
        if sum(group[0] for group in groups) > sum(node[0] for node in nodes):
            return False
        if not on_nodes(nodes, sorted(groups, reverse=True)):
            return False
    for service, role in itertools.product(problem.services, Role):
        if sum(n for (p, _), n in counts.items() if (p.service, p.role) == (service.name, role)) > service.max_replicas:
            return False
    return all(domain_holds(problem, counts, name) for name in problem.domains)


def reached(case: Tiny, problem: Problem) -> tuple[Plan, float]:
    """The plan, and the least objective of all counts."""
    plan = make_plan(problem, capacity_of=case.capacity_of)
    assert verify(plan, problem, capacity_of=case.capacity_of) == ()
    penalties, places = desk_for(problem, case.capacity_of).penalties, spots(problem)
    places = [s for s in places if case.table[s[0].service, s[0].role, s[0].gpu_class][0] > 0.0]
    every = itertools.product(*(range(most + 1) for _, _, most in places))
    tried = ({(p, at): n for (p, at, _), n in zip(places, numbers, strict=True) if n} for numbers in every)
    return plan, min(value(case, counts, penalties) for counts in tried if is_possible(problem, counts))


@pytest.mark.parametrize("first", range(0, FLEETS, PER_TEST))
def test_no_counts_are_cheaper_than_the_plan(first: int) -> None:
    """As near to the best as without these limits: a plan that would be short otherwise may cost more there too."""
    dearer = 0
    for seed, case in drawn(first):
        plan, best = reached(case, case.problem)
        bare = replace(case.problem, nodes=tuple(replace(n, resources={}) for n in case.problem.nodes))
        plain, least = reached(case, bare)
        dearer += best > least * (1.0 + TOLERANCE)
        if any("lower tier gave way" in note or note.startswith("kept") for note in plan.report.notes):
            continue
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
        if plain.report.objective_usd_per_hour == pytest.approx(least, rel=TOLERANCE):
            assert plan.report.objective_usd_per_hour == pytest.approx(best, rel=TOLERANCE), seed
    assert dearer > PER_TEST // 8


# ---------------------------------------------------------------- nodes of one rack


def rack(*resources: Mapping[str, int], gpus: int = 8) -> tuple[Node, ...]:
    made = fleets.nodes("h100-sxm", len(resources), "rack-1", gpus=gpus)
    return tuple(replace(node, resources=has) for node, has in zip(made, resources, strict=True))


def problem_on(nodes: Sequence[Node], requests: Mapping[Role, Mapping[str, int]], rate: float = 6.0) -> Problem:
    served = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), requests=requests)
    return fleets.problem([(served, rate)], nodes, [fleets.profile("chat", "h100-sxm", tp, 8.0) for tp in (1, 2, 4)])


def planned(problem: Problem) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def pool(gpus: int) -> PoolKey:
    config = EngineConfig(tensor_parallel=gpus)
    return PoolKey(service="default/chat", role=Role.MIXED, gpu_class="h100-sxm", config=config)


CORES = {Role.MIXED: {"cpu": 8_000, "memory": 2**36, "rdma/hca": 1}}
AMPLE = {"cpu": 64_000, "memory": 2**39, "rdma/hca": 8}


def test_nothing_changes_where_there_is_room_for_everything() -> None:
    asking, silent = problem_on(rack(AMPLE, AMPLE), CORES), problem_on(rack({}, {}), {})
    assert planned(asking) == planned(silent)
    assert all(bay.shelf is None for bay in Room.of(asking).bays.values())
    rows = [row for row in state(cells_of(asking)).rows if row[0] == "resources"]
    assert rows == []


def test_ports_bound_the_replicas_and_the_shortage_names_them() -> None:
    plan = planned(problem_on(rack(AMPLE | {"rdma/hca": 2}, AMPLE | {"rdma/hca": 1}), CORES, rate=400.0))
    assert sum(row.replicas for row in plan.placements) == 3
    (short,) = plan.services
    words = "resources[rdma/hca of nodes of class h100-sxm]: 1 asked for by one replica, at most 0 free on a node"
    assert any(words in reason for reason in short.short_because), short.short_because
    none = planned(problem_on(rack(AMPLE | {"cpu": 4_000}), CORES))
    assert none.pools == ()
    assert "cpu of nodes of class h100-sxm" in str(none.services[0].short_because)


def test_large_replicas_stay_where_pods_run_out_of_cores() -> None:
    """Two pods have cores: of two GPUs each they carry twice as much, though four of one GPU would carry more still."""
    problem = problem_on(rack({"cpu": 8}, gpus=4), {Role.MIXED: {"cpu": 4}}, rate=400.0)
    problem = replace(problem, profiles={k: p for k, p in problem.profiles.items() if k.config.gpus <= 2})
    plan = planned(problem)
    assert [(row.pool.config.gpus, row.replicas) for row in plan.placements] == [(2, 2)]
    few = replace(problem, profiles={k: p for k, p in problem.profiles.items() if k.config.gpus == 1})
    assert plan.services[0].served_requests_per_s > 1.5 * planned(few).services[0].served_requests_per_s


def test_what_only_patterns_place_fits_and_stays() -> None:
    """Best fit gives the node with fewer GPUs to decode; prefill, which needs its cores, then finds no place."""
    asks = {Role.PREFILL: {"cpu": 4, "ports": 2}, Role.DECODE: {"cpu": 1, "ports": 3}}
    one, other = rack({"cpu": 2, "ports": 3}, {"cpu": 4, "ports": 4})
    problem = problem_on((replace(one, gpus_usable=2), replace(other, gpus_usable=1)), asks, rate=0.01)
    served = replace(problem.services[0], roles=tuple(asks))
    only = {k: p for k, p in problem.profiles.items() if k.config.gpus == 1}
    problem = replace(problem, services=(served,), profiles=only)
    counts = {(replace(pool(1), role=role), "rack-1"): 1 for role in asks}
    assert Room.of(problem).take_all(counts)
    assert desk_for(problem, fleets.plain_capacity).fits(counts)
    kept = planned(replace(problem, running=counts))
    assert {(row.pool, row.location): row.replicas for row in kept.placements} == counts


def test_class_wide_replicas_know_cores_too() -> None:
    problem = problem_on(rack(AMPLE | {"cpu": 20_000}, AMPLE | {"cpu": 9_000}), CORES, rate=400.0)
    anywhere = replace(problem, services=(replace(problem.services[0], placement=PlacementMode.CLASS),))
    assert sum(row.replicas for row in planned(anywhere).placements) == 3


def test_parts_of_a_replica_ask_on_every_node_that_it_stands_on() -> None:
    nodes = tuple(replace(node, island="a") for node in rack(*({"cpu": cores} for cores in (9, 9, 7, 9)), gpus=2))
    problem = replace(
        problem_on(nodes, {Role.MIXED: {"cpu": 8}}, rate=50.0),
        profiles={p.key: p for p in [fleets.profile("chat", "h100-sxm", 4, 8.0)]},
    )
    plan = planned(problem)
    assert [(row.replicas, row.pool.config.gpus) for row in plan.placements] == [(1, 4)]
    stands = {node for _, _, node, _ in pack(problem, {(pool(4), "rack-1"): 1}).on_node}
    assert nodes[2].name not in stands


def test_corrupted_plans_are_caught_and_named() -> None:
    problem = problem_on(rack(AMPLE | {"rdma/hca": 2}, AMPLE | {"rdma/hca": 2}), CORES, rate=400.0)
    plan = planned(problem)
    (row,) = plan.placements
    assert row.replicas == 4

    def faults(nodes: Sequence[Node], requests: Mapping[Role, Mapping[str, int]] = CORES) -> str:
        service = replace(problem.services[0], requests=requests)
        return "; ".join(verify_places(plan, replace(problem, nodes=tuple(nodes), services=(service,))))

    assert faults(problem.nodes) == ""
    words = "resources[h100-sxm@rack-1]: no nodes have"
    assert words in faults(rack(AMPLE | {"rdma/hca": 2}, AMPLE | {"rdma/hca": 1}))
    assert "4 rdma/hca of 3" in faults(rack(AMPLE | {"rdma/hca": 2}, AMPLE | {"rdma/hca": 1}))
    assert words in faults(problem.nodes, {Role.MIXED: {"cpu": 33_000}})


def test_what_best_fit_leaves_over_patterns_place_and_the_check_finds() -> None:
    """Two that want cores and two that want ports on two nodes: best fit puts the first two together."""
    thirsty, modest = "default/thirsty", "default/modest"
    asks = {thirsty: {Role.MIXED: {"cpu": 40, "ports": 1}}, modest: {Role.MIXED: {"cpu": 30, "ports": 2}}}
    services = [
        (replace(fleets.service(n.partition("/")[2], "chat", roles=(Role.MIXED,)), requests=asks[n]), 1.0) for n in asks
    ]
    nodes = rack({"cpu": 80, "ports": 3}, {"cpu": 80, "ports": 3})
    problem = fleets.problem(services, nodes, [fleets.profile("chat", "h100-sxm", 4, 8.0)])
    counts = {(replace(pool(4), service=name), "rack-1"): 2 for name in asks}
    shelf = next(iter(Room.of(problem).bays.values())).shelf
    assert shelf is not None
    assert arrange(shelf, {(4, (40, 1)): 2, (4, (30, 2)): 2}).left
    packing = pack(problem, counts)
    assert packing.left == {}
    for spot in shelf.spots:
        assert {key.service for key, _, node, _ in packing.on_node if node == spot.name} == {thirsty, modest}
    plan = planned(problem)
    rows = tuple(sorted(Placement(pool=key, location=at, replicas=n) for (key, at), n in counts.items()))
    totals = tuple(replace(plan.pools[0], pool=row.pool, replicas=2) for row in rows)
    assert verify_places(replace(plan, placements=rows, pools=totals), problem) == ()


@pytest.mark.parametrize("seed", range(3))
def test_what_a_room_takes_in_can_be_put_down(seed: int) -> None:
    """Whatever the order in which replicas come, best fit finds a node for each from the counts alone."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        nodes = rack(*({"cpu": int(rng.integers(0, 30)), "ports": int(rng.integers(0, 5))} for _ in range(4)))
        asks = {role: {"cpu": int(rng.integers(0, 9)), "ports": int(rng.integers(0, 3))} for role in Role}
        served = replace(fleets.service("chat", "chat"), requests=asks)
        problem = fleets.problem(
            [(served, 1.0)], nodes, [fleets.profile("chat", "h100-sxm", tp, 8.0) for tp in (1, 2, 4)]
        )
        room, counts = Room.of(problem), dict[tuple[PoolKey, str], int]()
        for _ in range(12):
            key = (replace(pool(int(rng.choice([1, 2, 4]))), role=rng.choice(list(Role))), "rack-1")
            counts[key] = counts.get(key, 0) + room.take(*key, int(rng.integers(1, 4)))
        assert pack(problem, counts).left == {}
        vectors = [(8, n.resources["cpu"], n.resources["ports"]) for n in nodes]
        held = [0] * 3
        for (taken, _), count in counts.items():
            asked = (taken.config.gpus, asks[taken.role]["cpu"], asks[taken.role]["ports"])
            held = [have + count * ask for have, ask in zip(held, asked, strict=True)]
        assert all(have <= sum(v[at] for v in vectors) for at, have in enumerate(held))


def test_shelves_alike_but_for_names_are_interchangeable() -> None:
    spots_of = [(Spot(name=f"{n}{i}", gpus=8, amounts=(9 - i,)) for i in range(2)) for n in "ab"]
    one, other = (Shelf(names=("cpu",), spots=tuple(found), node_gpus=8) for found in spots_of)
    assert one.outline == other.outline
    assert one.outline != replace(other, spots=(replace(other.spots[0], amounts=(8,)), other.spots[1])).outline


def test_amounts_that_mean_nothing_are_refused() -> None:
    for problem in (problem_on(rack({"cpu": -1}), CORES), problem_on(rack(AMPLE), {Role.MIXED: {"cpu": -5}})):
        with pytest.raises(InvalidInput, match="cpu"):
            make_plan(problem)
