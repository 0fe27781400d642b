"""How many replicas of each size the free nodes hold, before anything is decided, and why none at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from solvers.fleet import Node, PoolKey
from solvers.planner.bays.quotas import QuotaLedger
from solvers.planner.bays.reclaim import Reclaims
from solvers.problem import Problem
from solvers.spans import node_sizes, nodes_taken, whole_nodes
from solvers.workload import ServedModel

SlotsKind = tuple[tuple[str, ...], bool, bool]
"""Locations (empty for all), whether what may be taken away is refused, whether a replica is one pod."""


def kind_of(service: ServedModel) -> SlotsKind:
    """What of a service decides which nodes count for it."""
    return service.locations, service.max_spot_ratio <= 0.0, service.is_one_pod


def find_slots(problem: Problem, kind: SlotsKind) -> Mapping[tuple[str, int], int]:
    """Replicas that the free nodes of a class hold for a kind of services, by (class, GPUs of a replica)."""
    locations, is_refusing, is_one_pod = kind
    reclaims = Reclaims.of(problem)
    sizes = {(key.gpu_class, key.config.gpus) for key in problem.profiles}
    members: dict[str, list[Node]] = {}
    for node in (n for n in problem.nodes if not locations or n.location in locations):
        if not (is_refusing and reclaims.is_spot(node.location, node.gpu_class)):
            members.setdefault(node.gpu_class, []).append(node)
    node_gpus = node_sizes(problem.nodes)
    slots: dict[tuple[str, int], int] = {}
    for gpu_class, nodes in sorted(members.items()):
        mine = sorted(gpus for name, gpus in sizes if name == gpu_class)
        is_spanned = any(nodes_taken(size, node_gpus[gpu_class]) > 1 for size in mine)
        whole = _whole(problem, nodes, node_gpus[gpu_class]) if is_spanned else []
        for size in mine:
            span = nodes_taken(size, node_gpus[gpu_class])
            on_islands = (count // span for count in whole)
            on_nodes = (max(0, node.gpus_usable) // size for node in nodes)
            slots[gpu_class, size] = sum(on_nodes) if span == 1 else 0 if is_one_pod else sum(on_islands)
    return slots


def _whole(problem: Problem, nodes: Iterable[Node], node_gpus: int) -> list[int]:
    """Whole nodes of a class on each island of each location."""
    by_location: dict[str, list[Node]] = {}
    for node in nodes:
        by_location.setdefault(node.location, []).append(node)
    return [
        count
        for here in by_location.values()
        for count in whole_nodes(here, problem.gpu_classes[here[0].gpu_class], node_gpus)
    ]


def no_room(problem: Problem, service: ServedModel, pool: PoolKey, quotas: QuotaLedger) -> str:
    """Say why not one replica of the pool has a place."""
    if service.max_replicas <= 0:
        return "maxReplicas is 0"
    for row, _ in quotas.tight(pool):
        return f"one replica takes {row.use(pool, problem.gpu_classes):g}, {row.limit}[{row.subject}] is {row.most:g}"
    node_gpus = node_sizes(problem.nodes).get(pool.gpu_class, 0)
    span = nodes_taken(pool.config.gpus, node_gpus)
    if service.is_one_pod and span > 1:
        remedy = "add a profile that fits a node, or run groups of pods under management Observe"
        return f"one replica takes {span} nodes, and Deployments are made of one pod each; {remedy}"
    nodes = [n for n in problem.nodes if n.gpu_class == pool.gpu_class and service.allows_location(n.location)]
    where = f" at {', '.join(service.locations)}" if service.locations else ""
    if span > 1:
        most = max(_whole(problem, nodes, node_gpus), default=0)
        asked = f"one replica takes {pool.config.gpus} GPUs, {span} whole nodes of {node_gpus} on one island"
        if not most:
            return f"{asked}, no two of {len(nodes)} nodes{where} are whole and share one"
        return f"{asked}, the roomiest of {len(nodes)} nodes{where} has {most}"
    if not nodes:
        return f"there is no node of {pool.gpu_class}{where}"
    asked, largest = f"{pool.config.gpus} GPU{'s' * (pool.config.gpus > 1)}", max(n.gpus_usable for n in nodes)
    return f"one replica takes {asked}, the roomiest of {len(nodes)} nodes{where} has {largest} free"
