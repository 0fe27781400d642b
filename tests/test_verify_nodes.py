"""Nodes, checked on plans written down by hand: who stands beside whom, and where what may stand anywhere goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from solvers.engine import Role
from solvers.fleet import ANYWHERE, Node, PoolKey
from solvers.verify.nodes import groups
from tests import fleets
from tests.plans_by_hand import Held
from tests.test_verify_by_hand import plan, pool, problem


def stocked(*nodes: tuple[int, int | None]) -> tuple[Node, ...]:
    """Nodes of one rack by GPUs and CPUs, which some do not name."""
    made = fleets.nodes("h100-sxm", len(nodes), "r1")
    return tuple(
        replace(node, gpus_usable=gpus, resources={} if cpus is None else {"cpu": cpus})
        for node, (gpus, cpus) in zip(made, nodes, strict=True)
    )


def packed(nodes: tuple[Node, ...], asks: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Faults when services hold so many replicas of one GPU, and so many CPUs each."""
    held: Held = {pool(name, Role.MIXED): (1.0, {"r1": count}) for name, (count, _) in asks.items()}
    requests = {name: {"requests": {Role.MIXED: {"cpu": cpus}}} for name, (_, cpus) in asks.items()}
    return tuple(groups(plan(held), problem(nodes, **requests)))


def test_replicas_are_packed_by_what_they_ask_beside_gpus() -> None:
    """Two of 3 and two of 2 CPUs: best fit would part them, and only one other way holds all."""
    assert packed(stocked((2, 4), (3, 6)), {"a": (2, 3), "b": (2, 2)}) == ()
    said = "resources[h100-sxm@r1]: no nodes have 10 cpu of 10 for 2 replicas beside their GPUs"
    assert packed(stocked((2, 4), (3, 6)), {"a": (2, 5)}) == (said,)
    assert packed(stocked((2, 5), (3, 5)), {"a": (2, 5)}) == ()
    short = packed(stocked((2, 4), (3, 6)), {"a": (2, 3), "b": (2, 3)})
    assert short == ("resources[h100-sxm@r1]: no nodes have 12 cpu of 10 for 4 replicas beside their GPUs",)


def test_replicas_that_leave_no_room_for_others_elsewhere_go_to_the_fullest_node() -> None:
    """Three GPUs and twice two, on four and three: the three fit only where nothing else would."""
    held: Held = {pool("a", Role.MIXED, gpus=3): (1.0, {"r1": 1}), pool("b", Role.MIXED, gpus=2): (1.0, {"r1": 2})}
    assert tuple(groups(plan(held), problem(stocked((4, None), (3, None))))) == ()


def test_a_node_that_names_no_amount_has_enough_and_one_below_nothing_has_none() -> None:
    assert packed(stocked((2, None), (3, 0)), {"a": (2, 50)}) == ()
    said = packed(stocked((2, None), (3, -4)), {"a": (3, 50)})
    assert said == ("resources[h100-sxm@r1]: no nodes have 150 cpu of 0 for 3 replicas beside their GPUs",)
    assert packed(stocked((2, None), (3, 0)), {"a": (5, 0)}) == ()


def test_gpus_are_counted_by_class_and_node() -> None:
    nodes = (*stocked((2, None), (3, None)), *fleets.nodes("l40s", 1, "r1"))
    five: Held = {pool("a", Role.MIXED): (1.0, {"r1": 5}), pool("b", Role.MIXED, "l40s"): (1.0, {"r1": 8})}
    assert tuple(groups(plan(five), problem(nodes))) == ()
    six: Held = {pool("a", Role.MIXED): (1.0, {"r1": 6})}
    assert tuple(groups(plan(six), problem(nodes))) == (
        "gpus[h100-sxm@r1]: 6 GPUs in groups of [1] do not fit on nodes with [2, 3] free",
    )
    pair: Held = {pool("a", Role.MIXED, gpus=2): (1.0, {"r1": 3})}
    assert len(tuple(groups(plan(pair), problem(nodes)))) == 1  # one GPU of the larger node stays over
    two: Held = {pool("a", Role.MIXED, gpus=2): (1.0, {"r1": 2}), pool("b", Role.MIXED): (1.0, {"r1": 1})}
    assert tuple(groups(plan(two), problem(nodes))) == ()


def test_replicas_of_two_nodes_stand_on_whole_nodes_of_one_island() -> None:
    one, two, three = (replace(node, island="i") for node in fleets.nodes("h100-sxm", 3, "r1"))
    wide: Held = {pool("a", Role.MIXED, gpus=16): (1.0, {"r1": 1})}
    assert tuple(groups(plan(wide), problem((one, two)))) == ()
    apart = tuple(groups(plan(wide), problem((one, replace(two, island="j")))))
    assert apart[0].startswith("gpus[h100-sxm@r1]: 16 GPUs in groups of [16] do not fit on nodes with [8, 8] free")
    assert apart[0].endswith("islands of [1, 1] whole nodes")
    broken = tuple(groups(plan(wide), problem((one, replace(two, gpus_usable=7)))))
    assert broken[0].endswith("nodes with [8, 7] free, islands of [1] whole nodes")
    assert tuple(groups(plan(wide), problem((one, replace(two, gpus_usable=7), three)))) == ()
    alone = tuple(groups(plan(wide), problem((replace(one, island=""), replace(two, island="")))))
    assert alone[0].endswith("islands of [] whole nodes")
    made = plan(wide)
    counted = replace(made, pools=(replace(made.pools[0], nodes_per_replica=1),))
    said = "nodes[default/a/mixed/h100-sxm/tp16]: said 1 nodes a replica, it takes 2 of 8 GPUs"
    assert tuple(groups(counted, problem((one, two)))) == (said,)


def anywhere(nodes: tuple[Node, ...], held: Held, **services: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(groups(plan(held), problem(nodes, **services)))


NO_ROOM = "gpus[h100-sxm]: no node has room for a replica of {} GPUs placed anywhere"


def racks(**counts: int) -> tuple[Node, ...]:
    return tuple(node for at, count in counts.items() for node in fleets.nodes("h100-sxm", count, at, prefix=at))


def test_what_may_stand_anywhere_goes_where_smaller_replicas_leave_groups_of_its_size() -> None:
    """Seven single GPUs of the second rack are no pair, though they are less than one each."""
    held: dict[PoolKey, tuple[float, dict[str, int]]] = {
        pool("a", Role.MIXED): (1.0, {"r1": 2, "r2": 7}),
        pool("b", Role.MIXED, gpus=2): (1.0, {ANYWHERE: 3}),
    }
    assert anywhere(racks(r1=1, r2=1), held) == ()
    held[pool("b", Role.MIXED, gpus=2)] = (1.0, {ANYWHERE: 4})
    assert anywhere(racks(r1=1, r2=1), held) == (NO_ROOM.format(2),)
    held[pool("b", Role.MIXED, gpus=2)] = (1.0, {ANYWHERE: 3, "r1": 1})
    assert anywhere(racks(r1=1, r2=1), held) == (NO_ROOM.format(2),)


def test_what_may_stand_anywhere_keeps_off_the_whole_nodes_of_wide_replicas() -> None:
    """One of two nodes leaves one of the second rack's three; four of four GPUs, or one of a whole node, then fit."""
    nodes = tuple(replace(node, island=node.location) for node in racks(r1=1, r2=3))
    wide = pool("a", Role.MIXED, gpus=16)
    for gpus, most in ((4, 4), (8, 2)):
        roaming = pool("b", Role.MIXED, gpus=gpus)
        assert anywhere(nodes, {wide: (1.0, {"r2": 1}), roaming: (1.0, {ANYWHERE: most})}) == ()
        over = anywhere(nodes, {wide: (1.0, {"r2": 1}), roaming: (1.0, {ANYWHERE: most + 1})})
        assert over == (NO_ROOM.format(gpus),)


def test_a_replica_that_fills_no_whole_number_of_nodes_takes_all_of_them() -> None:
    """Twelve GPUs stand on two nodes of eight; of the four groups of four that these are, none is left."""
    nodes = tuple(replace(node, island=node.location) for node in racks(r2=3))
    wide, fours = pool("a", Role.MIXED, gpus=12), pool("b", Role.MIXED, gpus=4)
    assert anywhere(nodes, {wide: (1.0, {"r2": 1}), fours: (1.0, {ANYWHERE: 2})}) == ()
    assert anywhere(nodes, {wide: (1.0, {"r2": 1}), fours: (1.0, {ANYWHERE: 3})}) == (NO_ROOM.format(4),)


def test_wide_replicas_may_stand_anywhere_that_has_an_island_left() -> None:
    """Of five nodes a replica of four leaves none for one of two; of four it is the other rack's two that do."""
    nodes = tuple(replace(node, island=node.location) for node in racks(r1=2, r2=5))
    four, two = pool("a", Role.MIXED, gpus=32), pool("b", Role.MIXED, gpus=16)
    assert anywhere(nodes, {four: (1.0, {"r2": 1}), two: (1.0, {ANYWHERE: 1})}) == ()
    assert anywhere(nodes, {four: (1.0, {"r2": 1}), two: (1.0, {ANYWHERE: 2})}) == (NO_ROOM.format(16),)
    assert anywhere(nodes, {two: (1.0, {ANYWHERE: 3})}) == ()
    assert anywhere(nodes, {two: (1.0, {ANYWHERE: 4})}) == (NO_ROOM.format(16),)


def test_what_may_stand_anywhere_goes_where_its_cpus_are_too() -> None:
    """The second rack has more free GPUs and no CPU for it."""
    one, two, three = racks(r1=1, r2=2)
    nodes = (replace(one, resources={"cpu": 6}), *(replace(node, resources={"cpu": 2}) for node in (two, three)))
    asks = {"requests": {Role.MIXED: {"cpu": 3}}}
    roaming = pool("a", Role.MIXED)
    assert anywhere(nodes, {roaming: (1.0, {ANYWHERE: 2})}, a=asks) == ()
    assert anywhere(nodes, {roaming: (1.0, {ANYWHERE: 3})}, a=asks) == (NO_ROOM.format(1),)


def test_the_largest_that_may_stand_anywhere_choose_first() -> None:
    held: Held = {pool("a", Role.MIXED): (1.0, {ANYWHERE: 8}), pool("b", Role.MIXED, gpus=8): (1.0, {ANYWHERE: 1})}
    assert anywhere(racks(r1=1, r2=1), held) == ()


def test_groups_of_gpus_that_lie_on_two_nodes_are_none() -> None:
    nodes = tuple(replace(node, gpus_usable=7) for node in racks(r1=2))
    fours = pool("a", Role.MIXED, gpus=4)
    assert anywhere(nodes, {fours: (1.0, {ANYWHERE: 2})}) == ()
    assert anywhere(nodes, {fours: (1.0, {ANYWHERE: 3})}) == (NO_ROOM.format(4),)
