"""Watts by the one accounting that planner, checker, rollout and ledger share.

A GPU of the fleet draws at least ``idle_watts``, whoever holds it. A replica adds, for each of its GPUs, its cap
plus the host's share less that idle draw. So a domain's reserved watts are base + Σ extra over the replicas that
could run in it, and never more than every GPU of the domain at its highest cap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from solvers.engine import EngineConfig
from solvers.fleet import ANYWHERE, GpuClass, Node, PoolKey


def base_watts(nodes: Iterable[Node], gpu_classes: Mapping[str, GpuClass]) -> float:
    """Sum what the nodes draw before any replica of ours: idle GPUs and held watts."""
    return sum(node.gpus_total * gpu_classes[node.gpu_class].idle_watts + node.held_watts for node in nodes)


def ceiling_watts(nodes: Iterable[Node], gpu_classes: Mapping[str, GpuClass]) -> float:
    """Sum what the nodes could draw at most: every usable GPU at its highest cap, the others as they are held."""
    per_gpu = {name: (kind.idle_watts, extra_watts(kind, EngineConfig())) for name, kind in gpu_classes.items()}
    total = 0.0
    for node in nodes:
        idle_watts, added_watts = per_gpu[node.gpu_class]
        total += node.gpus_total * idle_watts + node.held_watts + node.gpus_usable * added_watts
    return total


def extra_watts(gpu_class: GpuClass, config: EngineConfig, gpu_watts: float | None = None) -> float:
    """Watts that one replica adds to its domains at ``gpu_watts`` a GPU (default: the class's highest cap)."""
    at_gpu = gpu_class.max_cap_watts if gpu_watts is None else gpu_watts
    return config.gpus * max(0.0, at_gpu + gpu_class.host_share_watts - gpu_class.idle_watts)


def worst_watts(gpu_class: GpuClass, gpus: int) -> float:
    """Watts of so many GPUs at work at the class's highest cap, host share included."""
    return gpus * max(gpu_class.idle_watts, gpu_class.max_cap_watts + gpu_class.host_share_watts)


def pool_extra_watts(gpu_classes: Mapping[str, GpuClass], pool: PoolKey, gpu_watts: float | None = None) -> float:
    """Watts that one replica of the pool adds to its domains, at its cap when nothing else is said."""
    return extra_watts(gpu_classes[pool.gpu_class], pool.config, gpu_watts or pool.cap_watts or None)


def nodes_by_domain(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Group the nodes by every power domain that feeds them."""
    members: dict[str, list[Node]] = {}
    for node in nodes:
        for domain in node.domains:
            members.setdefault(domain, []).append(node)
    return dict(sorted(members.items()))


def charged_domains(nodes: Iterable[Node], gpu_class: str, location: str) -> tuple[str, ...]:
    """Domains that a replica of the class placed at the location could draw from, sorted.

    The scheduler chooses the node inside a location, so every domain that feeds any candidate is charged in full.
    """
    candidates = (n for n in nodes if n.gpu_class == gpu_class and location in (n.location, ANYWHERE))
    return tuple(sorted({domain for node in candidates for domain in node.domains}))


def domains_by_place(nodes: Iterable[Node]) -> dict[tuple[str, str], tuple[str, ...]]:
    """``charged_domains`` of every (GPU class, location) that has a node, anywhere included."""
    reach: dict[tuple[str, str], set[str]] = {}
    for node in nodes:
        for location in (node.location, ANYWHERE):
            reach.setdefault((node.gpu_class, location), set()).update(node.domains)
    return {place: tuple(sorted(domains)) for place, domains in sorted(reach.items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """What the power domains of a fleet draw and which replicas they feed.

    Attributes
    ----------
    base_watts, ceiling_watts : mapping of domain to float, W
        What the nodes draw before any replica of ours, and what they could draw at most.
    by_place : mapping of (GPU class, location) to tuple of str
        Domains that a replica there charges, see ``domains_by_place``.
    """

    base_watts: Mapping[str, float]
    ceiling_watts: Mapping[str, float]
    by_place: Mapping[tuple[str, str], tuple[str, ...]]
    gpu_classes: Mapping[str, GpuClass]

    @classmethod
    def of(cls, nodes: Iterable[Node], gpu_classes: Mapping[str, GpuClass]) -> Feeds:
        members = nodes_by_domain(nodes := tuple(nodes))
        return cls(
            base_watts={domain: base_watts(inside, gpu_classes) for domain, inside in members.items()},
            ceiling_watts={domain: ceiling_watts(inside, gpu_classes) for domain, inside in members.items()},
            by_place=domains_by_place(nodes),
            gpu_classes=gpu_classes,
        )

    def reserved_watts(
        self, counts: Mapping[tuple[PoolKey, str], int], gpu_watts: Mapping[PoolKey, float] | None = None
    ) -> dict[str, float]:
        """Sum the worst case of every power domain with ``counts`` replicas, see ``reserved_watts``."""
        reserved = dict(self.base_watts)
        for (pool, location), count in sorted(counts.items()):
            extra = pool_extra_watts(self.gpu_classes, pool, (gpu_watts or {}).get(pool))
            for domain in self.by_place.get((pool.gpu_class, location), ()):
                reserved[domain] += count * extra
        return {domain: min(watts, self.ceiling_watts[domain]) for domain, watts in reserved.items()}


def reserved_watts(
    nodes: tuple[Node, ...],
    gpu_classes: Mapping[str, GpuClass],
    counts: Mapping[tuple[PoolKey, str], int],
    gpu_watts: Mapping[PoolKey, float] | None = None,
) -> dict[str, float]:
    """Sum the worst case of every power domain with ``counts`` replicas by (pool, location).

    Parameters
    ----------
    counts : mapping of (pool, location) to int
        Replicas that hold watts, leaving ones too.
    gpu_watts : mapping of pool to float W, optional
        Draw of one GPU; without it the pool's own cap, or the class's highest.

    Returns
    -------
    dict of domain to float, W
        Fixed draw of the domain itself not included (see ``PowerDomain.usable_watts``).
    """
    return Feeds.of(nodes, gpu_classes).reserved_watts(counts, gpu_watts)
