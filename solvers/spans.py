"""Replicas larger than a node: which nodes hang on one fast fabric, and how many of them a replica takes.

A node of a class is *whole* when it has as many GPUs as any node of the class and all of them are ours to give. A
replica of more GPUs than that takes whole nodes of one island, as few as hold it, and nothing else runs there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from solvers.fleet import GpuClass, Node


def node_sizes(nodes: Iterable[Node]) -> dict[str, int]:
    """GPUs of the largest node of each class, broken and foreign-held ones included."""
    sizes: dict[str, int] = {}
    for node in nodes:
        sizes[node.gpu_class] = max(sizes.get(node.gpu_class, 0), node.gpus_total)
    return dict(sorted(sizes.items()))


def nodes_taken(gpus: int, node_gpus: int) -> int:
    """Nodes that one replica of so many GPUs stands on.

    >>> nodes_taken(8, 8), nodes_taken(12, 8), nodes_taken(72, 4)
    (1, 2, 18)
    """
    return -(-gpus // node_gpus) if gpus > node_gpus > 0 else 1


@lru_cache(maxsize=4096)
def groups_taken(gpus: int, size: int, node_gpus: int) -> int:
    """Groups of ``size`` GPUs that could stand where one replica of ``gpus`` does.

    Never more than a packing has room for in its place, so sums of it are necessary; exact for sizes that divide one
    another and the node.

    >>> groups_taken(8, 4, 8), groups_taken(16, 3, 8), groups_taken(32, 16, 8)
    (2, 4, 2)
    """
    taken, wanted = nodes_taken(gpus, node_gpus), nodes_taken(size, node_gpus)
    if taken == 1:
        return gpus // size
    return taken * (node_gpus // size) if wanted == 1 else taken // wanted


def islands(nodes: Sequence[Node], gpu_class: GpuClass, node_gpus: int) -> dict[str, tuple[str, ...]]:
    """Names of the nodes of full size on each island of a bay, sorted, whatever they hold.

    A node that names its island hangs with those of the same name. The others are one island where the class's link
    reaches beyond a node and around all that the location has of it; else every node is by itself and left out.

    Parameters
    ----------
    nodes : sequence of Node
        Of one class at one location.
    """
    found: dict[str, list[str]] = {}
    is_linked = node_gpus < gpu_class.link_island_gpus >= sum(node.gpus_total for node in nodes)
    for node in sorted(nodes, key=lambda n: n.name):
        if node.gpus_total == node_gpus and (node.island or is_linked):
            found.setdefault(node.island, []).append(node.name)
    return {name: tuple(members) for name, members in sorted(found.items()) if len(members) > 1}


def whole_nodes(nodes: Sequence[Node], gpu_class: GpuClass, node_gpus: int) -> tuple[int, ...]:
    """Whole nodes on each island of a bay, descending; islands with fewer than two are left out."""
    free = {node.name: node.gpus_usable for node in nodes}
    counts = (sum(free[n] == node_gpus for n in members) for members in islands(nodes, gpu_class, node_gpus).values())
    return tuple(sorted((count for count in counts if count > 1), reverse=True))
