"""What exists: GPU classes, nodes, power domains, pools, running replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from solvers.engine import EngineConfig, Role
from solvers.hashing import HashedOnce

ANYWHERE = "*"
"""Location of a pool whose placement is ``Class``: any node of the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClass:
    """A kind of accelerator, with its price, memory and power envelope (all per GPU).

    Attributes
    ----------
    link_island_gpus : int
        GPUs that one scale-up link joins. More than a node has (NVLink racks): the nodes of a location are one island,
        as long as the location has no more GPUs of the class than that.
    kv_fabric : str
        The network that moves keys and values; prefill and decode pair on one fabric only.
    """

    name: str
    resource_name: str
    node_selector: Mapping[str, str]
    memory_bytes: int
    link_island_gpus: int
    idle_watts: float
    min_cap_watts: float
    max_cap_watts: float
    host_share_watts: float
    price_usd_per_hour: float
    kv_fabric: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerDomain:
    """What shares one feed. A domain may have several parents (feeds A and B); each must hold."""

    name: str
    parents: tuple[str, ...] = ()
    budget_watts: float
    fixed_watts: float = 0.0
    headroom_ratio: float = 0.0

    @property
    def usable_watts(self) -> float:
        """What replicas and idle GPUs may draw together: budget less headroom less fixed draw."""
        return self.budget_watts * (1.0 - self.headroom_ratio) - self.fixed_watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One managed GPU node.

    Attributes
    ----------
    gpus_total : int
        GPUs that draw at least idle power (capacity, the broken ones included).
    gpus_usable : int
        GPUs that our replicas may hold: allocatable less foreign pods; 0 when the node is NotReady or cordoned
        and holds nothing of ours.
    held_watts : float
        Watts above idle that we cannot release: foreign pods at the enforced limit, replicas on a lost node.
    domains : tuple of str
        Power domains that feed the node, ancestors included, sorted.
    reclaims_per_hour : float
        How often its owner takes the node away, on average; 0 for one that stays.
    price_ratio : float
        What its GPUs cost, against the list price of their class.
    island : str
        The fast fabric that the node hangs on; nodes of one location that name the same one can hold a replica
        together. Empty for what the class's link says.
    resources : mapping of str to int
        What our replicas may hold beside GPUs: ``cpu`` in thousandths, ``memory`` in bytes, extended resources by their
        names. What is not named is not limited.
    """

    name: str
    gpu_class: str
    location: str
    gpus_total: int
    gpus_usable: int
    held_watts: float = 0.0
    domains: tuple[str, ...] = ()
    reclaims_per_hour: float = 0.0
    price_ratio: float = 1.0
    island: str = ""
    resources: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PoolKey(HashedOnce):
    """Replicas alike in service, role, GPU class, engine configuration and the sizes of requests they serve.

    Attributes
    ----------
    cap_watts : float
        Power cap of one GPU while the planner weighs caps against one another, 0 for the class's highest. Outside the
        planner it is 0: a cap can change while replicas run, so a plan says it in ``PoolPlan.cap_watts``.
    sizes : str
        Which requests of the service it serves, as ``solvers.sizes`` says (``p0-2047``); empty for all of them.
    """

    __hash__ = HashedOnce.__hash__

    service: str
    role: Role
    gpu_class: str
    config: EngineConfig
    cap_watts: float = 0.0
    sizes: str = ""

    @property
    def uncapped(self) -> PoolKey:
        """The pool whatever its cap."""
        return replace(self, cap_watts=0.0) if self.cap_watts else self

    @property
    def namespace(self) -> str:
        return self.service.partition("/")[0]

    def __str__(self) -> str:
        cap = f"/{self.cap_watts:.0f}W" if self.cap_watts else ""
        sizes = f"/{self.sizes}" if self.sizes else ""
        return f"{self.service}/{self.role}/{self.gpu_class}/{self.config.label}{sizes}{cap}"


class ReplicaState(StrEnum):
    """Life of a replica as the operator sees it."""

    PENDING = "Pending"  # no node yet
    STARTING = "Starting"  # on a node, not Ready
    READY = "Ready"
    LEAVING = "Leaving"  # deletion asked for; still holds GPUs and watts
    LOST = "Lost"  # on a NotReady node; holds watts, serves nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One pod (or group) of a pool. ``location`` is the one it was generated for, ``ANYWHERE`` under Class.

    ``node`` is the first pod's, ``more_nodes`` are those of the others of its group, as far as they have one.
    """

    name: str
    pool: PoolKey
    location: str
    node: str | None
    state: ReplicaState
    age_s: float = 0.0
    outstanding_requests: float = 0.0
    more_nodes: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node that it is known to stand on."""
        return self.more_nodes if self.node is None else (self.node, *self.more_nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the fleet looks like at one moment; the only thing a turn of the loop decides on.

    ``desired`` is what the workload objects ask for now: (pool, location) → replicas.
    """

    gpu_classes: Mapping[str, GpuClass]
    nodes: tuple[Node, ...]
    domains: Mapping[str, PowerDomain]
    replicas: tuple[Replica, ...]
    desired: Mapping[tuple[PoolKey, str], int]
