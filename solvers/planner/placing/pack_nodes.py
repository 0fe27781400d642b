"""Replicas onto named nodes: best fit by decreasing size; those of several nodes go first, onto islands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from solvers.fleet import ANYWHERE, Node, PoolKey
from solvers.packing.rack_ledger import NodeRoom, ReplicaKind
from solvers.packing.replicas import place_replicas
from solvers.planner.bays.grouping import find_bays
from solvers.planner.bays.nodes import Counts, Room, in_packing_order
from solvers.planner.bays.shelves import Kind, Row, Shelf, arrange, kind_on, requests_by_role
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

    Replicas placed ``Class`` are first given a bay in which every located replica still fits. Where something beside
    GPUs may run out, what best fit leaves over is tried again by node patterns.
    """
    bound, left = _bind_anywhere(problem, counts)
    floor, shelves = _Floor(problem), _shelves(problem)
    rows: dict[tuple[PoolKey, str, str], int] = {}
    order = sorted(bound.items(), key=lambda row: (-row[0][0].config.gpus, row[0]))
    for (pool, location, inside), count in order:
        if (inside, pool.gpu_class) in shelves:
            continue
        for _ in range(count):
            names = floor.take(inside, pool.gpu_class, pool.config.gpus)
            for name in names:
                rows[pool, location, name] = rows.get((pool, location, name), 0) + 1
            if not names:
                left[pool, location] = left.get((pool, location), 0) + 1
    for (inside, gpu_class), shelf in shelves.items():
        here = {(p, at): n for (p, at, where), n in order if (where, p.gpu_class) == (inside, gpu_class)}
        if here:
            found, missing = fit_shelf(problem, shelf, here)
            rows |= found
            left.update({key: left.get(key, 0) + count for key, count in missing.items()})
    return Packing(on_node=tuple((*key, count) for key, count in sorted(rows.items())), left=left)


def _shelves(problem: Problem) -> dict[tuple[str, str], Shelf]:
    """Bays where something beside GPUs may run out."""
    if not any(service.requests for service in problem.services):
        return {}
    return {bay.key: bay.shelf for bay in find_bays(problem, ()) if bay.shelf}


def fit_shelf(
    problem: Problem, shelf: Shelf, counts: Counts
) -> tuple[dict[tuple[PoolKey, str, str], int], dict[tuple[PoolKey, str], int]]:
    """Put replicas on the nodes of one shelf: rows (pool, location, node) and what is left over.

    Pools that ask for the same are one kind, shared out in their order.
    """
    requests = requests_by_role(problem)
    members: dict[Kind, list[tuple[PoolKey, str]]] = {}
    for pool, location in sorted(counts):
        kind = kind_on(shelf, pool.config.gpus, requests.get((pool.service, pool.role), ()))
        members.setdefault(kind, []).append((pool, location))
    wanted = {kind: sum(counts[key] for key in keys) for kind, keys in members.items()}
    arranged = arrange(shelf, wanted)
    stands = _by_patterns(shelf, wanted, arranged.rows) if arranged.left else arranged.rows
    rows: dict[tuple[PoolKey, str, str], int] = {}
    left: dict[tuple[PoolKey, str], int] = {}
    for kind, keys in members.items():
        span = nodes_taken(kind[0], shelf.node_gpus)
        slots = [name for of, name, count in stands if of == kind for _ in range(count)]
        for key in keys:
            mine, slots = slots[: span * counts[key]], slots[span * counts[key] :]
            for name in mine:
                rows[*key, name] = rows.get((*key, name), 0) + 1
            if missing := counts[key] - len(mine) // span:
                left[key] = missing
    return rows, left


def _by_patterns(shelf: Shelf, wanted: Mapping[Kind, int], rows: Iterable[Row]) -> tuple[Row, ...]:
    """Replicas of several nodes stay where they are; the others are placed anew over the nodes that are left."""
    kept = tuple(row for row in rows if row[0][0] > shelf.node_gpus)
    taken = {name for _, name, _ in kept}
    names = {str(index): kind for index, kind in enumerate(sorted(wanted)) if kind[0] <= shelf.node_gpus}
    spots = [spot for spot in shelf.spots if spot.name not in taken]
    placing = place_replicas(
        [NodeRoom(name=s.name, rack="", gpu_class="", gpus=s.gpus, others=s.amounts) for s in spots],
        [
            ReplicaKind(name=n, gpu_class="", count=wanted[k], gpus=k[0], others=k[1], weight=float(k[0]))
            for n, k in names.items()
        ],
    )
    return (*kept, *((names[name], node, count) for name, node, count in placing.on_node))


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
        missing = count
        while missing and (bay := bays.anywhere_bay(pool)) is not None:
            if taken := bays.take(pool, ANYWHERE, 1, bay):
                key = (pool, location, bay.location)
                bound[key] = bound.get(key, 0) + taken
            missing -= taken
        if missing:
            left[pool, location] = missing
    return bound, left
