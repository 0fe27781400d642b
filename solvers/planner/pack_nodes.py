"""Replicas onto named nodes: best fit by decreasing size; those of several nodes go first, onto islands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from solvers.fleet import ANYWHERE, Node, PoolKey
from solvers.planner.nodes import Counts, Room, in_packing_order
from solvers.problem import Problem
from solvers.spans import islands, node_sizes, nodes_taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Which nodes the replicas go to. ``left`` counts what found no node; rows are sorted."""

    on_node: tuple[tuple[PoolKey, str, str, int], ...]
    """(pool, location, node, replicas that stand there, whole or in part)"""
    left: Mapping[tuple[PoolKey, str], int]


def pack(problem: Problem, counts: Counts) -> Packing:
    """Put every replica on nodes of its class (and location), best fit by decreasing group size.

    Replicas placed ``Class`` are first given a bay in which every located replica still fits.
    """
    bound, left = _bind_anywhere(problem, counts)
    floor = _Floor(problem)
    rows: dict[tuple[PoolKey, str, str], int] = {}
    order = sorted(bound.items(), key=lambda row: (-row[0][0].config.gpus, row[0]))
    for (pool, location, inside), count in order:
        for _ in range(count):
            names = floor.take(inside, pool.gpu_class, pool.config.gpus)
            for name in names:
                rows[pool, location, name] = rows.get((pool, location, name), 0) + 1
            if not names:
                left[pool, location] = left.get((pool, location), 0) + 1
    return Packing(on_node=tuple((*key, count) for key, count in sorted(rows.items())), left=left)


class _Floor:
    """Nodes and the GPUs that are free on them, as replicas are put down one by one."""

    def __init__(self, problem: Problem) -> None:
        self._free = {n.name: n.gpus_usable for n in problem.nodes}
        self._classes, self._sizes = problem.gpu_classes, node_sizes(problem.nodes)
        self._nodes: dict[tuple[str, str], list[Node]] = {}
        self._islands: dict[tuple[str, str], tuple[tuple[str, ...], ...]] = {}
        for node in sorted(problem.nodes, key=lambda n: n.name):
            self._nodes.setdefault((node.location, node.gpu_class), []).append(node)

    def take(self, location: str, gpu_class: str, gpus: int) -> tuple[str, ...]:
        """Names of the nodes that hold one replica from now on; empty when none can."""
        node_gpus = self._sizes.get(gpu_class, 0)
        if nodes_taken(gpus, node_gpus) > 1:
            names, each = self._island_fit(location, gpu_class, node_gpus, nodes_taken(gpus, node_gpus)), node_gpus
        else:
            names, each = self._best_fit(location, gpu_class, gpus), gpus
        for name in names:
            self._free[name] -= each
        return names

    def _best_fit(self, location: str, gpu_class: str, gpus: int) -> tuple[str, ...]:
        nodes = self._nodes.get((location, gpu_class), ())
        able = [node.name for node in nodes if self._free[node.name] >= gpus]
        best = min(able, key=lambda name: (self._free[name], name), default=None)
        return () if best is None else (best,)

    def _island_fit(self, location: str, gpu_class: str, node_gpus: int, span: int) -> tuple[str, ...]:
        """Whole nodes of the island that has fewest of them and enough."""
        key = (location, gpu_class)
        if key not in self._islands:
            nodes = self._nodes.get(key, ())
            self._islands[key] = tuple(islands(nodes, self._classes[gpu_class], node_gpus).values())
        whole = [[name for name in names if self._free[name] == node_gpus] for names in self._islands[key]]
        able = [names for names in whole if len(names) >= span]
        return tuple(min(able, key=lambda names: (len(names), names), default=[])[:span])


def _bind_anywhere(
    problem: Problem, counts: Counts
) -> tuple[dict[tuple[PoolKey, str, str], int], dict[tuple[PoolKey, str], int]]:
    """Split every count by the location it is packed in: (pool, location, location inside)."""
    if not any(location == ANYWHERE for _, location in counts):
        return {(pool, location, location): count for (pool, location), count in in_packing_order(counts)}, {}
    bays = Room.of(problem)
    bays.free_watts = dict.fromkeys(bays.free_watts, float("inf"))  # places only; watts are charged class-wide anyway
    bays.quotas = replace(bays.quotas, rows=())
    bound: dict[tuple[PoolKey, str, str], int] = {}
    left: dict[tuple[PoolKey, str], int] = {}
    for (pool, location), count in in_packing_order(counts):
        if location != ANYWHERE:
            bays.take(pool, location, count)
            bound[pool, location, location] = count
            continue
        for _ in range(count):
            bay = bays.anywhere_bay(pool)
            if bay is None:
                left[pool, location] = left.get((pool, location), 0) + 1
                continue
            bays.take(pool, ANYWHERE, 1, bay)
            key = (pool, location, bay.location)
            bound[key] = bound.get(key, 0) + 1
    return bound, left
