"""Watts by the one accounting that planner, checker, rollout and ledger share.

A GPU of the fleet draws at least ``idle_watts``, whoever holds it. A replica adds, for each of its GPUs, its cap
plus the host's share less that idle draw. So a domain's reserved watts are base + Σ extra over replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from solvers.engine import EngineConfig
from solvers.fleet import GpuClass, Node


def base_watts(nodes: Iterable[Node], gpu_classes: Mapping[str, GpuClass]) -> float:
    """Sum what the nodes draw before any replica of ours: idle GPUs and held watts."""
    return sum(node.gpus_total * gpu_classes[node.gpu_class].idle_watts + node.held_watts for node in nodes)


def extra_watts(gpu_class: GpuClass, config: EngineConfig, gpu_watts: float | None = None) -> float:
    """Watts that one replica adds to its domains at ``gpu_watts`` a GPU (default: the class's highest cap)."""
    at_gpu = gpu_class.max_cap_watts if gpu_watts is None else gpu_watts
    return config.gpus * max(0.0, at_gpu + gpu_class.host_share_watts - gpu_class.idle_watts)
