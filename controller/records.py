"""Small records that the cache keeps of the cluster's objects, reduced from raw JSON at once.

Full bodies are never kept: at 10,000 pods they are what fills the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODEL_LABEL = "penstock.dev/model"  # name of the ServedModel, in the pod's namespace
ROLE_LABEL = "penstock.dev/role"
ROUTER_ROLE_LABEL = "llm-d.ai/role"
GPU_CLASS_LABEL = "penstock.dev/gpu-class"
CONFIG_LABEL = "penstock.dev/engine-config"  # EngineConfig.label
ENGINE_LABEL = "penstock.dev/engine"
LOCATION_LABEL = "penstock.dev/location"  # absent under placement Class
ISLAND_LABEL = "topology.penstock.dev/island"  # the fast fabric that a node hangs on
CLIQUE_LABEL = "nvidia.com/gpu.clique"  # cluster and clique of an NVLink rack, as GPU feature discovery writes it
SIZES_LABEL = "penstock.dev/prompt-tokens"  # which requests it serves; absent for all of the service's
POOL_LABEL = "penstock.dev/pool"  # name of the Deployment
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "penstock"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """What placement needs of a ``v1/Node``. Resources are extended-resource counts by name.

    ``host`` is the CPU (thousandths) and memory (bytes) that pods may hold, as far as the node says.
    """

    name: str
    labels: Mapping[str, str]
    capacity: Mapping[str, int]
    allocatable: Mapping[str, int]
    is_ready: bool
    is_cordoned: bool
    is_out_of_service: bool  # tainted node.kubernetes.io/out-of-service: its pods are gone for sure
    resource_version: str = ""
    host: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    """What placement needs of a ``v1/Pod``; ``requests`` holds extended resources only, ``host`` CPU and memory."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    node: str | None
    phase: str
    is_ready: bool
    is_leaving: bool
    requests: Mapping[str, int]
    created_at_s: float
    deletion_cost: int = 0
    owner: str = ""
    host: Mapping[str, int] = field(default_factory=dict)
    resource_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    """What the executor needs of an ``apps/v1`` Deployment that carries our pool label.

    ``replicas_manager`` is the field manager that owns ``spec.replicas``, empty when nobody does.
    """

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    replicas: int
    ready_replicas: int
    generation: int
    observed_generation: int
    replicas_manager: str = ""
    template_hash: str = ""
    resource_version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
