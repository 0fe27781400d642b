"""The check of nodes: every replica of a plan is put down anew, on a node or on whole nodes of one island."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from solvers.fleet import ANYWHERE, GpuClass, Node
from solvers.plan import Placement, Plan
from solvers.problem import Problem


@dataclass(slots=True, kw_only=True)
class _Place:
    """What one location has of a class: free GPUs by node, and the whole nodes of each island by index."""

    free: list[int]
    islands: list[list[int]]


def groups(plan: Plan, problem: Problem) -> Iterator[str]:
    """Put every replica down: larger ones first, on the fullest node or island that still fits."""
    for gpu_class in sorted({row.pool.gpu_class for row in plan.placements}):
        rows = [row for row in plan.placements if row.pool.gpu_class == gpu_class]
        nodes = sorted((n for n in problem.nodes if n.gpu_class == gpu_class), key=lambda n: n.name)
        full = max((node.gpus_total for node in nodes), default=1)
        here = {where: [n for n in nodes if n.location == where] for where in sorted({n.location for n in nodes})}
        places = {where: _place(members, problem.gpu_classes[gpu_class], full) for where, members in here.items()}
        yield from _spans(plan, gpu_class, full)
        yield from _of_class(gpu_class, rows, places, full)


def _spans(plan: Plan, gpu_class: str, full: int) -> Iterator[str]:
    for pool in (p for p in plan.pools if p.pool.gpu_class == gpu_class):
        taken = math.ceil(pool.pool.config.gpus / full)
        if pool.nodes_per_replica != taken:
            yield f"nodes[{pool.pool}]: said {pool.nodes_per_replica} nodes a replica, it takes {taken} of {full} GPUs"


def _place(nodes: Sequence[Node], gpu_class: GpuClass, full: int) -> _Place:
    is_one_link = full < gpu_class.link_island_gpus and sum(n.gpus_total for n in nodes) <= gpu_class.link_island_gpus
    named: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.gpus_usable == full and (node.island or is_one_link):
            named.setdefault(node.island, []).append(index)
    return _Place(free=[n.gpus_usable for n in nodes], islands=[named[name] for name in sorted(named)])


def _of_class(gpu_class: str, rows: Sequence[Placement], places: dict[str, _Place], full: int) -> Iterator[str]:
    inside: dict[str, list[int]] = {
        where: [r.pool.config.gpus for r in rows if r.location == where for _ in range(r.replicas)] for where in places
    }
    roaming = [r.pool.config.gpus for r in rows if r.location == ANYWHERE for _ in range(r.replicas)]
    for size in sorted(roaming, reverse=True):  # where most groups of its size stay free beside what must be there
        spare = {where: _spare(places[where], inside[where], size, full) for where in sorted(places)}
        best = max(spare, key=lambda where: (spare[where], where), default=None)
        if best is None or spare[best] <= 0:
            yield f"gpus[{gpu_class}]: no node has room for a replica of {size} GPUs placed anywhere"
            return
        inside[best].append(size)
    for where, sizes in sorted(inside.items()):
        place = places[where]
        if not _fit(place, sizes, full):
            yield (
                f"gpus[{gpu_class}@{where}]: {sum(sizes)} GPUs in groups of {sorted(set(sizes), reverse=True)} "
                f"do not fit on nodes with {place.free} free"
                + (f", islands of {[len(i) for i in place.islands]} whole nodes" if max(sizes) > full else "")
            )


def _fit(place: _Place, sizes: Sequence[int], full: int) -> bool:
    free, whole = list(place.free), [list(island) for island in place.islands]
    for size in sorted(sizes, reverse=True):
        if size > full:
            span = math.ceil(size / full)
            able = [island for island in whole if len(island) >= span]
            if not able:
                return False
            island = min(able, key=len)
            for _ in range(span):
                free[island.pop()] = 0
            continue
        fitting = [index for index, left in enumerate(free) if left >= size]
        if not fitting:
            return False
        free[min(fitting, key=lambda index: free[index])] -= size
    return True


def _spare(place: _Place, held: Sequence[int], gpus: int, full: int) -> int:
    """Groups of so many GPUs still possible, by whole-group counts at every size up to it."""
    return min(
        (_room(place, size, full) - sum(_worth(h, size, full) for h in held)) // _worth(gpus, size, full)
        for size in {gpus, *(size for size in held if size < gpus)}
    )


def _room(place: _Place, size: int, full: int) -> int:
    if size > full:
        return sum(len(island) // math.ceil(size / full) for island in place.islands)
    return sum(free // size for free in place.free)


def _worth(gpus: int, size: int, full: int) -> int:
    """Groups of ``size`` that fit where a replica of so many GPUs stands; none when it is the smaller one."""
    if gpus < size or gpus <= full:
        return gpus // size
    nodes = math.ceil(gpus / full)
    return nodes * (full // size) if size <= full else nodes // math.ceil(size / full)
