"""CPU, memory and what else nodes have, in the check of a bound: what pods ask and nodes hold, at prices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from solvers.certificate import RESOURCES, RESOURCES_WHOLE, PricedRow
from solvers.engine import Role
from solvers.fleet import Node
from solvers.problem import Problem

Asks = tuple[tuple[str, int], ...]
"""What a pod asks for beside GPUs: (resource, amount), sorted."""

Good = tuple[str, str, float, float]
"""Limit, resource, amount that is priced as one (or pod that is), and its price."""

Bay = tuple[str, str]
"""GPU class and location."""

MANY = 10**9
"""Pods that nothing limits."""


def asks_of(problem: Problem) -> dict[tuple[str, Role], Asks]:
    """What pods ask for, by service and role."""
    return {
        (service.name, role): tuple(sorted((name, amount) for name, amount in asks.items() if amount > 0))
        for service in problem.services
        for role, asks in service.requests.items()
    }


def pods_on(node: Node, asks: Asks) -> int:
    """Pods that ask so much on an empty node, GPUs left aside."""
    return min(
        (max(0, node.resources[name]) // amount for name, amount in asks if name in node.resources), default=MANY
    )


def goods_by_bay(rows: Iterable[PricedRow]) -> dict[Bay, tuple[Good, ...]]:
    """Prices of what nodes have, by (class, location)."""
    found: dict[Bay, list[Good]] = {}
    for row in rows:
        for place in row.places if row.limit in (RESOURCES, RESOURCES_WHOLE) else ():
            good = row.limit, row.resource, row.size, row.usd_per_hour
            found.setdefault((row.gpu_class, place), []).append(good)
    return {bay: tuple(sorted(goods)) for bay, goods in found.items()}


def goods_usd_per_hour(goods: Sequence[Good], asks: Asks) -> float:
    """What one pod pays for what it asks."""
    asked, paid = dict(asks), 0.0
    for limit, name, size, price in goods:
        times = asked.get(name, 0) / size
        paid += price * (math.floor(times) if limit == RESOURCES_WHOLE else times)
    return paid


def room_of_goods(
    row: PricedRow, problem: Problem, bays: Mapping[Bay, Sequence[Node]], node_gpus: Mapping[str, int]
) -> float:
    """What the nodes of the row's places hold, in its unit; infinite where one says nothing of the resource.

    Of whole pods that ask for so much no more stand on a node than its GPUs allow: each takes as many as the smallest
    of them, and counts for as many as the largest ask.
    """
    total = 0.0
    for place in row.places:
        nodes = [node for node in bays.get((row.gpu_class, place), ()) if node.gpus_usable > 0]
        if any(row.resource not in node.resources for node in nodes) and row.limit == RESOURCES:
            return math.inf
        if row.limit == RESOURCES:
            total += sum(max(0, node.resources[row.resource]) for node in nodes) / row.size
            continue
        pods = list(_pods(row, problem, place, node_gpus.get(row.gpu_class, 0)))
        fewest = min((gpus for gpus, _ in pods), default=1)
        most = max((times for _, times in pods), default=0)
        total += sum(_whole(row, node, fewest, most) for node in nodes)
    return total


def _whole(row: PricedRow, node: Node, fewest_gpus: int, most_times: int) -> float:
    by_gpus = node.gpus_usable // fewest_gpus * most_times
    if row.resource not in node.resources:
        return by_gpus
    return min(math.floor(max(0, node.resources[row.resource]) / row.size), by_gpus)


def _pods(row: PricedRow, problem: Problem, place: str, full: int) -> Iterable[tuple[int, int]]:
    """GPUs that a pod takes on a node, and how often its ask holds the row's size: all that could stand there."""
    for service in problem.services:
        if not service.allows_location(place):
            continue
        times = {math.floor(asks.get(row.resource, 0) / row.size) for asks in service.requests.values()}
        for key in problem.profiles:
            if (key.gpu_class, key.model) == (row.gpu_class, service.model) and service.allows(
                key.gpu_class, key.config
            ):
                yield from ((min(key.config.gpus, full), n) for n in times if n > 0)
