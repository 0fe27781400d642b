"""Replicas are placed within every limit, as many as brute force can, and what is not placed is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from solvers.errors import InvalidInput
from solvers.packing import NodeRoom, Placing, ReplicaKind, node_patterns, place_replicas
from solvers.packing.rack_ledger import Scene

RESOURCES = ("gpus", "cpu_milli", "memory_mib", "nics")


def made(rng: np.random.Generator, nodes: int, kinds: int, most: int) -> tuple[list[NodeRoom], list[ReplicaKind]]:
    rooms = [
        NodeRoom(
            name=f"n{n}",
            rack=f"r{n % 2}",
            gpu_class="h100" if rng.random() < 0.8 else "l40s",
            gpus=int(rng.choice([8, 8, 7, 4])),
            cpu_milli=int(rng.choice([96_000, 192_000])),
            memory_mib=int(rng.choice([500_000, 1_000_000])),
            nics=8,
        )
        for n in range(nodes)
    ]
    wanted = []
    for k in range(kinds):
        gpus = int(rng.choice([1, 2, 3, 4, 8]))
        wanted.append(
            ReplicaKind(
                name=f"k{k}",
                gpu_class="h100" if rng.random() < 0.8 else "l40s",
                count=int(rng.integers(1, most + 1)),
                gpus=gpus,
                cpu_milli=gpus * int(rng.choice([4_000, 12_000, 30_000])),
                memory_mib=gpus * int(rng.choice([30_000, 120_000])),
                nics=int(rng.choice([0, 1, gpus])),
                watts=gpus * 700.0,
                most_per_rack=int(rng.integers(1, most + 1)) if rng.random() < 0.3 else None,
                kv_group="g" if rng.random() < 0.3 else "",
                weight=float(rng.choice([1.0, gpus])),
            )
        )
    return rooms, wanted


def is_within(nodes: list[NodeRoom], kinds: list[ReplicaKind], rows: Any, rack_watts: dict[str, float]) -> bool:
    """Every limit, by plain arithmetic over (kind, node, replicas)."""
    kind_of, node_of = {k.name: k for k in kinds}, {n.name: n for n in nodes}
    for node in nodes:
        here = [(kind_of[k], count) for k, n, count in rows if n == node.name]
        if any(kind.gpu_class != node.gpu_class for kind, _ in here):
            return False
        if any(sum(getattr(kind, r) * c for kind, c in here) > getattr(node, r) for r in RESOURCES):
            return False
    for rack in {node.rack for node in nodes}:
        inside = [(kind_of[k], count) for k, n, count in rows if node_of[n].rack == rack]
        if sum(kind.watts * count for kind, count in inside) > rack_watts.get(rack, np.inf) + 1e-3:
            return False
        for kind in kinds:
            count = sum(c for k, c in inside if k is kind)
            if kind.most_per_rack is not None and count > kind.most_per_rack:
                return False
    for group in {kind.kv_group for kind in kinds} - {""}:
        if len({node_of[n].rack for k, n, count in rows if count and kind_of[k].kv_group == group}) > 1:
            return False
    return all(sum(c for k, _, c in rows if k == kind.name) <= kind.count for kind in kinds)


def stocks_of(nodes: list[NodeRoom], kinds: list[ReplicaKind], watts: dict[str, float]) -> list[node_patterns.Stock]:
    """Patterns rack by rack."""
    scene = Scene(nodes, kinds, watts)
    stocks = node_patterns.find_stocks(scene, [[rack] for rack in range(len(scene.racks))])
    assert stocks is not None
    return stocks


def spreads(count: int, places: int) -> Iterator[tuple[int, ...]]:
    """Every way of putting up to so many replicas on nodes."""
    if places == 0:
        yield ()
        return
    for here in range(count + 1):
        for rest in spreads(count - here, places - 1):
            yield (here, *rest)


def most_worth(nodes: list[NodeRoom], kinds: list[ReplicaKind], rack_watts: dict[str, float]) -> float:
    best = 0.0

    def place(at: int, rows: list[tuple[str, str, int]], worth: float) -> None:
        nonlocal best
        if not is_within(nodes, kinds, rows, rack_watts):  # limits only tighten as replicas are added
            return
        best = max(best, worth)
        if at < len(kinds):
            for counts in spreads(kinds[at].count, len(nodes)):
                more = [(kinds[at].name, n.name, c) for n, c in zip(nodes, counts, strict=True) if c]
                place(at + 1, rows + more, worth + kinds[at].weight * sum(counts))

    place(0, [], 0.0)
    return best


def assert_sound(found: Placing, nodes: list[NodeRoom], kinds: list[ReplicaKind], watts: dict[str, float]) -> None:
    assert is_within(nodes, kinds, found.on_node, watts)
    for kind in kinds:
        assert sum(c for k, _, c in found.on_node if k == kind.name) + found.left.get(kind.name, 0) == kind.count
    assert found.left_worth == pytest.approx(sum(k.weight * found.left.get(k.name, 0) for k in kinds))
    assert found.least_left_worth <= found.left_worth


@pytest.mark.parametrize("seed", range(40))
def test_tiny_fleets_as_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, kinds = made(rng, 3, 3, 3)
    watts = {"r0": float(rng.choice([3000.0, 9000.0])), "r1": 7000.0}
    found = place_replicas(nodes, kinds, rack_watts=watts)
    assert_sound(found, nodes, kinds, watts)
    wanted = sum(kind.weight * kind.count for kind in kinds)
    assert wanted - found.left_worth == pytest.approx(most_worth(nodes, kinds, watts))
    assert found.is_proved


@pytest.mark.parametrize("seed", range(6))
def test_larger_fleets_keep_every_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, kinds = made(rng, 24, 6, 12)
    watts = {"r0": 60_000.0}
    found = place_replicas(nodes, kinds, rack_watts=watts)
    assert_sound(found, nodes, kinds, watts)
    assert found == place_replicas(nodes[::-1], kinds[::-1], rack_watts=watts)


@pytest.mark.parametrize("seed", range(12))
def test_racks_alike_may_share_their_patterns(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many patterns rack by rack: what is placed stays within every limit, and the bound below the least left."""
    rng = np.random.default_rng(seed)
    _, kinds = made(rng, 1, 6, 10)
    nodes = [
        NodeRoom(
            name=f"n{n}", rack=f"r{n // 2}", gpu_class="h100", gpus=8, cpu_milli=130_000, memory_mib=900_000, nics=8
        )
        for n in range(16)
    ]
    watts = {f"r{rack}": 9_000.0 for rack in range(8)}
    exact = place_replicas(nodes, kinds, rack_watts=watts)
    columns = sum(len(stock.patterns) for stock in stocks_of(nodes, kinds, watts))
    monkeypatch.setattr(node_patterns, "MOST_COLUMNS", columns // 4)
    found = place_replicas(nodes, kinds, rack_watts=watts)
    assert_sound(found, nodes, kinds, watts)
    assert exact.is_proved
    assert found.least_left_worth <= exact.left_worth + 1e-6
    assert exact.left_worth <= found.left_worth + 1e-6


@pytest.mark.parametrize("seed", range(60))
def test_sizes_that_divide_are_placed_exactly_when_whole_groups_suffice(seed: int) -> None:
    """The group test of planner/bays/nodes.py, degraded nodes included, decides alone when only GPUs are asked for."""
    rng = np.random.default_rng(seed)
    nodes = [
        NodeRoom(name=f"n{n}", rack="r", gpu_class="g", gpus=int(rng.choice([8, 8, 7, 6, 5, 3])))
        for n in range(int(rng.integers(1, 8)))
    ]
    total = sum(node.gpus for node in nodes)
    kinds = [
        ReplicaKind(name=f"k{q}", gpu_class="g", gpus=q, count=int(rng.integers(0, 1 + total // (2 * q))))
        for q in (1, 2, 4, 8)
    ]
    suffices = all(
        sum((k.gpus // q) * k.count for k in kinds if k.gpus >= q) <= sum(n.gpus // q for n in nodes)
        for q in (1, 2, 4, 8)
    )
    assert (not place_replicas(nodes, kinds).left) == suffices


def test_patterns_place_what_best_fit_cannot() -> None:
    # by GPUs and CPU alone the two thirsty ones could share a node with nobody: each needs a modest one beside it
    nodes = [NodeRoom(name=f"n{n}", rack="r", gpu_class="g", gpus=8, cpu_milli=80) for n in range(2)]
    kinds = [
        ReplicaKind(name="thirsty", gpu_class="g", count=2, gpus=4, cpu_milli=60),
        ReplicaKind(name="modest", gpu_class="g", count=2, gpus=4, cpu_milli=20),
    ]
    found = place_replicas(nodes, kinds)
    assert found.left == {}
    assert {row[2] for row in found.on_node} == {1}


def test_a_group_shares_one_rack_and_a_spread_kind_does_not() -> None:
    nodes = [NodeRoom(name=f"n{n}", rack=f"r{n // 2}", gpu_class="g", gpus=8) for n in range(6)]
    kinds = [
        ReplicaKind(name="prefill", gpu_class="g", count=2, gpus=4, kv_group="chat"),
        ReplicaKind(name="decode", gpu_class="g", count=1, gpus=8, kv_group="chat"),
        ReplicaKind(name="spread", gpu_class="g", count=2, gpus=2, most_per_rack=1),
    ]
    found = place_replicas(nodes, kinds)
    assert found.left == {}
    rack_of = {node.name: node.rack for node in nodes}
    assert len({rack_of[n] for k, n, _ in found.on_node if k in {"prefill", "decode"}}) == 1
    assert len({rack_of[n] for k, n, _ in found.on_node if k == "spread"}) == 2


def test_nothing_wanted_and_nothing_there() -> None:
    assert place_replicas([], []).on_node == ()
    found = place_replicas([], [ReplicaKind(name="k", gpu_class="g", count=2, gpus=1)])
    assert found.left == {"k": 2}
    assert place_replicas([NodeRoom(name="n", rack="r", gpu_class="g", gpus=8)], []).left == {}


NODE = NodeRoom(name="n", rack="r", gpu_class="g", gpus=8)
KIND = ReplicaKind(name="k", gpu_class="g", count=1, gpus=1)


@pytest.mark.parametrize(
    ("nodes", "kinds", "watts", "says"),
    [
        ([NODE, NODE], [KIND], {}, "Node/n name: is given twice"),
        ([NODE], [KIND, KIND], {}, "replicas/k name: is given twice"),
        ([NodeRoom(name="m", rack="r", gpu_class="g", gpus=-1)], [KIND], {}, "Node/m gpus: is -1"),
        ([NODE], [ReplicaKind(name="j", gpu_class="g", count=1, gpus=1, watts=float("nan"))], {}, "watts: is nan"),
        ([NODE], [KIND], {"r": -5.0}, "rack r watts: are -5"),
    ],
)
def test_what_makes_no_sense_is_named(
    nodes: list[NodeRoom], kinds: list[ReplicaKind], watts: dict[str, float], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        place_replicas(nodes, kinds, rack_watts=watts)
