"""The check of nodes: every replica of a plan is put down anew, on a node or on whole nodes of one island."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import le

from solvers.fleet import ANYWHERE, GpuClass, Node
from solvers.plan import Placement, Plan
from solvers.problem import Problem

Item = tuple[int, tuple[int, ...]]
"""GPUs of a replica, and what each of its pods asks for beside them."""

UNLIMITED = 2**53  # of what a node does not name
MOST_TRIES = 20_000
MOST_ITEMS = 200  # replicas at a place that are tried on other nodes than the best


@dataclass(slots=True, kw_only=True)
class _Place:
    """What one location has of a class: by node GPUs and other resources, and the whole nodes of each island."""

    free: list[int]
    others: list[tuple[int, ...]]
    islands: list[list[int]]
    full: int


def groups(plan: Plan, problem: Problem) -> Iterator[str]:
    """Put every replica down: larger ones first, on the fullest node or island that still fits."""
    asked = {(s.name, role): asks for s in problem.services for role, asks in s.requests.items()}
    for gpu_class in sorted({row.pool.gpu_class for row in plan.placements}):
        rows = [row for row in plan.placements if row.pool.gpu_class == gpu_class]
        nodes = sorted((n for n in problem.nodes if n.gpu_class == gpu_class), key=lambda n: n.name)
        full = max((node.gpus_total for node in nodes), default=1)
        names = sorted({name for row in rows for name in asked.get((row.pool.service, row.pool.role), ())})
        here: dict[str, list[Node]] = {where: [] for where in sorted({n.location for n in nodes})}
        for node in nodes:
            here[node.location].append(node)
        places = {where: _place(at, problem.gpu_classes[gpu_class], full, names) for where, at in here.items()}
        items = [(row, _item(row, asked.get((row.pool.service, row.pool.role), {}), names)) for row in rows]
        yield from _spans(plan, gpu_class, full)
        yield from _of_class(gpu_class, items, places, names)


def _item(row: Placement, asks: Mapping[str, int], names: Sequence[str]) -> Item:
    return row.pool.config.gpus, tuple(asks.get(name, 0) for name in names)


def _spans(plan: Plan, gpu_class: str, full: int) -> Iterator[str]:
    for pool in (p for p in plan.pools if p.pool.gpu_class == gpu_class):
        taken = math.ceil(pool.pool.config.gpus / full)
        if pool.nodes_per_replica != taken:
            yield f"nodes[{pool.pool}]: said {pool.nodes_per_replica} nodes a replica, it takes {taken} of {full} GPUs"


def _place(nodes: Sequence[Node], gpu_class: GpuClass, full: int, names: Sequence[str]) -> _Place:
    is_one_link = full < gpu_class.link_island_gpus and sum(n.gpus_total for n in nodes) <= gpu_class.link_island_gpus
    named: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.gpus_usable == full and (node.island or is_one_link):
            named.setdefault(node.island, []).append(index)
    return _Place(
        free=[n.gpus_usable for n in nodes],
        others=[tuple(max(0, n.resources.get(name, UNLIMITED)) for name in names) for n in nodes],
        islands=list(named.values()),
        full=full,
    )


def _of_class(
    gpu_class: str, rows: Sequence[tuple[Placement, Item]], places: dict[str, _Place], names: Sequence[str]
) -> Iterator[str]:
    inside: dict[str, list[Item]] = {where: [] for where in places}
    for row, item in rows:
        if row.location in inside:
            inside[row.location] += [item] * row.replicas
    roaming = [item for r, item in rows if r.location == ANYWHERE for _ in range(r.replicas)]
    for item in sorted(roaming, reverse=True):  # where most groups of its size stay free beside what must be there
        spare = {where: _spare(places[where], inside[where], item) for where in sorted(places)}
        best = max(spare, key=lambda where: (spare[where], where), default=None)
        if best is None or spare[best] <= 0:
            yield f"gpus[{gpu_class}]: no node has room for a replica of {item[0]} GPUs placed anywhere"
            return
        inside[best].append(item)
    for where, items in sorted(inside.items()):
        place, sizes = places[where], [gpus for gpus, _ in items]
        if not _fit(place, [(gpus, ()) for gpus in sizes]):
            yield (
                f"gpus[{gpu_class}@{where}]: {sum(sizes)} GPUs in groups of {sorted(set(sizes), reverse=True)} "
                f"do not fit on nodes with {place.free} free"
                + (f", islands of {[len(i) for i in place.islands]} whole nodes" if max(sizes) > place.full else "")
            )
        elif names and not _fit(place, items) and not _found(place, items):
            yield f"resources[{gpu_class}@{where}]: no nodes have {_asked(place, items, names)}"


def _asked(place: _Place, items: Sequence[Item], names: Sequence[str]) -> str:
    """How much is asked for in sum, and free."""
    parts = []
    for at, name in enumerate(names):
        free = [rest[at] for rest in place.others if rest[at] < UNLIMITED]
        asked = sum(asks[at] * math.ceil(gpus / place.full) for gpus, asks in items)
        parts.append(f"{asked} {name} of {sum(free)}")
    return ", ".join(parts) + f" for {len(items)} replicas beside their GPUs"


def _fit(place: _Place, items: Sequence[Item]) -> bool:
    """Best fit by falling size, and by name among equal nodes."""
    free, others = list(place.free), [list(rest) for rest in place.others]
    for gpus, asks in sorted(items, reverse=True):
        own, span = min(gpus, place.full), math.ceil(gpus / place.full)
        able = [i for i, left in enumerate(free) if left >= own and (not asks or all(map(le, asks, others[i])))]
        if span > 1:
            joined = [[i for i in island if i in able] for island in place.islands]
            able = min((found for found in joined if len(found) >= span), key=lambda f: (len(f), f[0]), default=[])
        if len(able) < span:
            return False
        for index in able[:span] if span > 1 else [min(able, key=lambda i: free[i])]:
            free[index] -= own
            if asks:
                others[index] = [have - ask for have, ask in zip(others[index], asks, strict=True)]
    return True


def _found(place: _Place, items: Sequence[Item]) -> bool:
    """Try other nodes than the best ones too, a bounded number of times; replicas of several nodes stay at the best."""
    order, tries = sorted(items, reverse=True), 0

    def put(at: int, free: list[tuple[int, ...]]) -> bool:
        nonlocal tries
        if at == len(order):
            return True
        gpus, asks = order[at]
        need, seen = (gpus, *asks), set[tuple[int, ...]]()
        for index, left in enumerate(free):
            if left in seen or not all(map(le, need, left)):
                continue
            seen.add(left)
            tries += 1
            if tries > MOST_TRIES:
                return False
            rest = tuple(have - ask for have, ask in zip(left, need, strict=True))
            if put(at + 1, [*free[:index], rest, *free[index + 1 :]]):
                return True
        return False

    if any(gpus > place.full for gpus, _ in items) or len(items) > MOST_ITEMS:
        return False
    return put(0, [(gpus, *rest) for gpus, rest in zip(place.free, place.others, strict=True)])


def _spare(place: _Place, held: Sequence[Item], item: Item) -> int:
    """Replicas like one still possible, by whole-group counts at every size up to it; none where it does not fit."""
    gpus, full = item[0], place.full
    most = min(
        (_room(place, size) - sum(_worth(h, size, full) for h, _ in held)) // _worth(gpus, size, full)
        for size in {gpus, *(size for size, _ in held if size < gpus)}
    )
    return most if most <= 0 or not item[1] or _fit(place, [*held, item]) else 0


def _room(place: _Place, size: int) -> int:
    if size > place.full:
        return sum(len(island) // math.ceil(size / place.full) for island in place.islands)
    return sum(free // size for free in place.free)


def _worth(gpus: int, size: int, full: int) -> int:
    """Groups of ``size`` that fit where a replica of so many GPUs stands; none when it is the smaller one."""
    if gpus < size or gpus <= full:
        return gpus // size
    nodes = math.ceil(gpus / full)
    return nodes * (full // size) if size <= full else nodes // math.ceil(size / full)
