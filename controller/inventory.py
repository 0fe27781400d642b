"""Nodes, pods and Deployments as the cache holds them → the core's nodes, replicas and desired counts.

What is charged where, whenever the truth is not known, errs to the safe side:

- Foreign pods (not of a service that is planned here) hold their GPUs, and watts as if they ran at the highest cap.
- A foreign pod without a node, younger than ``LANDING_S``, is charged to the fullest node where it fits: there a
  bin-packing scheduler puts it. An older one has shown that it fits nowhere now.
- On a cordoned node, and on one whose power is not proven, only what we hold there already stays usable.
- A NotReady node offers nothing; everything on it holds its watts until the node is deleted, tainted out-of-service or
  metered at zero, and the node's own idle draw stays counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from controller.power_graph import PowerGraph
from controller.readings import Readings
from controller.records import (
    CLIQUE_LABEL,
    CONFIG_LABEL,
    ENGINE_LABEL,
    GPU_CLASS_LABEL,
    ISLAND_LABEL,
    LOCATION_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    ROLE_LABEL,
    SIZES_LABEL,
    DeploymentRecord,
    NodeRecord,
    PodRecord,
)
from controller.resources import FleetPolicySpec
from controller.specs import Fault
from solvers.engine import EngineConfig, Role
from solvers.errors import InvalidInput
from solvers.fleet import ANYWHERE, GpuClass, Node, PoolKey, Replica, ReplicaState
from solvers.power import extra_watts
from solvers.sizes import SizeRange

LANDING_S = 60.0  # the scheduler binds what fits within seconds; a minute allows for a busy one
FINISHED = frozenset({"Succeeded", "Failed"})
MOST_NODE_GPUS = 100_000  # beyond, a count is a mistake; and numbers of no size would end the solver

Place = tuple[PoolKey, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What the cache has seen of the cluster; all empty but nodes when a plan is made from files."""

    nodes: Sequence[NodeRecord] = ()
    pods: Sequence[PodRecord] = ()
    deployments: Sequence[DeploymentRecord] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What exists, sorted; ``desired`` and ``replicas`` are those of planned services only."""

    nodes: tuple[Node, ...]
    replicas: tuple[Replica, ...]
    desired: Mapping[Place, int]
    faults: tuple[Fault, ...] = ()


def is_ours(labels: Mapping[str, str]) -> bool:
    """True for workloads that Penstock made."""
    return labels.get(MANAGED_BY_LABEL) == MANAGED_BY and MODEL_LABEL in labels


def service_of(record: PodRecord | DeploymentRecord) -> str:
    """Name the service that a workload of ours belongs to."""
    return f"{record.namespace}/{record.labels[MODEL_LABEL]}"


def place_of(record: PodRecord | DeploymentRecord) -> Place:
    """Read pool and location off the labels.

    Raises
    ------
    InvalidInput
        When a label is missing or says nothing known.
    """
    kind = "Pod" if isinstance(record, PodRecord) else "Deployment"
    subject, labels = f"{kind}/{record.namespace}/{record.name}", record.labels
    for name in (ROLE_LABEL, GPU_CLASS_LABEL, CONFIG_LABEL):
        if name not in labels:
            raise InvalidInput(subject, f"metadata.labels.{name}", "is missing", "restore it, or delete the object")
    try:
        role = Role(labels[ROLE_LABEL])
        config = EngineConfig.from_label(labels[CONFIG_LABEL], labels.get(ENGINE_LABEL, "vllm"))
        sizes = SizeRange.parse(labels[SIZES_LABEL]).label if SIZES_LABEL in labels else ""
    except (ValueError, InvalidInput) as error:
        raise InvalidInput(subject, "metadata.labels", str(error), "restore the label, or delete the object") from None
    gpu_class = labels[GPU_CLASS_LABEL]
    pool = PoolKey(service=service_of(record), role=role, gpu_class=gpu_class, config=config, sizes=sizes)
    return pool, labels.get(LOCATION_LABEL, ANYWHERE)


def take_stock(
    records: Records,
    *,
    policy: FleetPolicySpec,
    gpu_classes: Mapping[str, GpuClass],
    graph: PowerGraph,
    services: Container[str],
    asked: frozenset[str],
    readings: Readings,
    now_s: float,
) -> Inventory:
    """Count what exists.

    Parameters
    ----------
    services : container of str
        Services that are planned; pods of others are foreign.
    asked : frozenset of str
        Resources that replicas ask for; of GPUs more is known.
    """
    stock = _Stock(gpu_classes=gpu_classes, graph=graph, policy=policy, readings=readings, now_s=now_s, asked=asked)
    stock.add_nodes(records.nodes)
    foreign = stock.add_pods(records.pods, services)
    stock.add_foreign(foreign)
    stock.add_unseen(records.deployments, foreign, services)
    desired = stock.count_desired(records.deployments, services)
    return Inventory(
        nodes=tuple(stock.finished(record) for record in stock.records),
        replicas=tuple(sorted(stock.replicas, key=lambda r: (r.pool, r.location, r.name))),
        desired=desired,
        faults=tuple(sorted(set(stock.faults))),
    )


def _odd_counts(node: NodeRecord, resource: str) -> tuple[str, str] | None:
    """A count of GPUs that no node can have: (field, what is wrong)."""
    for name, amounts in (("capacity", node.capacity), ("allocatable", node.allocatable)):
        if not 0 <= (count := amounts.get(resource, 0)) <= MOST_NODE_GPUS:
            return name, f"says {Decimal(count):.6g} {resource}"
    return None


@dataclass(slots=True, kw_only=True)
class _Stock:
    """The count in progress: what each node holds, ours and foreign."""

    gpu_classes: Mapping[str, GpuClass]
    graph: PowerGraph
    policy: FleetPolicySpec
    readings: Readings
    now_s: float
    asked: frozenset[str]
    records: list[NodeRecord] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _class_of: dict[str, GpuClass] = field(default_factory=dict)
    _known: dict[str, NodeRecord] = field(default_factory=dict)
    _own_gpus: Counter[str] = field(default_factory=Counter)
    _own_watts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _foreign_gpus: Counter[str] = field(default_factory=Counter)
    _foreign_others: Counter[tuple[str, str]] = field(default_factory=Counter)
    _places: dict[tuple[tuple[str, str], ...], Place] = field(default_factory=dict)

    def add_nodes(self, nodes: Iterable[NodeRecord]) -> None:
        """Keep the managed nodes of exactly one class that may still draw power."""
        wanted = self.policy.managed_nodes.items()
        for node in sorted(nodes, key=lambda node: node.name):
            self._known[node.name] = node
            if wanted <= node.labels.items() and not self._is_off(node):
                gpu_class = self._find_class(node)
                if gpu_class is not None:
                    self._class_of[node.name] = gpu_class
                    self.records.append(node)

    def _is_off(self, node: NodeRecord) -> bool:
        if node.is_ready:
            return False
        meter = self.readings.nodes.get(node.name)
        is_dark = meter is not None and meter.is_fresh(self.now_s) and meter.draw_watts == 0.0
        return node.is_out_of_service or is_dark

    def _find_class(self, node: NodeRecord) -> GpuClass | None:
        matching = [c for c in self.gpu_classes.values() if c.node_selector.items() <= node.labels.items()]
        resources = {c.resource_name for c in self.gpu_classes.values()}
        has_gpus = any(n and (name in resources or name.endswith("/gpu")) for name, n in node.capacity.items())
        if len(matching) > 1:
            names = " and ".join(sorted(c.name for c in matching))
            self._node_fault(node, "metadata.labels", f"match GpuClass {names}", "make their nodeSelectors exclusive")
        elif not matching and has_gpus:
            self._node_fault(node, "metadata.labels", "match no GpuClass", "create a GpuClass whose nodeSelector fits")
        elif matching and not node.capacity.get(matching[0].resource_name):
            problem = f"has no {matching[0].resource_name}, which GpuClass/{matching[0].name} names"
            self._node_fault(node, "status.capacity", problem, "check the device plugin")
        elif matching and (odd := _odd_counts(node, matching[0].resource_name)):
            self._node_fault(node, f"status.{odd[0]}", odd[1], f"no node has more than {MOST_NODE_GPUS} GPUs")
        else:
            return matching[0] if matching else None
        return None

    def _node_fault(self, node: NodeRecord, path: str, problem: str, remedy: str) -> None:
        left_out = f"{problem}; the node and its watts are left out"
        self.faults.append(Fault(subject=f"Node/{node.name}", field=path, problem=left_out, remedy=remedy))

    def add_pods(self, pods: Iterable[PodRecord], services: Container[str]) -> list[PodRecord]:
        """Take our pods as replicas; return the foreign ones."""
        foreign = []
        for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
            if pod.phase in FINISHED or self._is_gone(pod):
                continue
            place = self._place(pod) if is_ours(pod.labels) and service_of(pod) in services else None
            if place is None:
                foreign.append(pod)
            else:
                self._add_replica(pod, place)
        return foreign

    def _is_gone(self, pod: PodRecord) -> bool:
        """True when its node was deleted or is off."""
        if pod.node is None:
            return False
        node = self._known.get(pod.node)
        return node is None or self._is_off(node)

    def _place(self, record: PodRecord | DeploymentRecord) -> Place | None:
        """Pool and location of one of ours; None, and a fault, when its labels or class are not known."""
        key = (("namespace", record.namespace), *sorted(record.labels.items()))
        if key not in self._places:
            try:
                self._places[key] = place_of(record)
            except InvalidInput as error:
                self.faults.append(Fault.of(error))
                return None
        pool = self._places[key][0]
        if pool.gpu_class in self.gpu_classes:
            return self._places[key]
        problem = f"does not exist, and {pool.service} runs on it; those replicas stay as they are"
        self.faults.append(Fault(subject=f"GpuClass/{pool.gpu_class}", field="", problem=problem, remedy="restore it"))
        return None

    def _add_replica(self, pod: PodRecord, place: Place) -> None:
        pool, location = place
        outstanding = self.readings.outstanding_requests.get(f"{pod.namespace}/{pod.name}", 0.0)
        replica = Replica(
            name=pod.name,
            pool=pool,
            location=location,
            node=pod.node,
            state=self._state(pod),
            age_s=max(0.0, self.now_s - pod.created_at_s),
            outstanding_requests=outstanding,
        )
        self.replicas.append(replica)
        if pod.node is not None:
            self._own_gpus[pod.node] += pool.config.gpus
            self._own_watts[pod.node] += extra_watts(self.gpu_classes[pool.gpu_class], pool.config)

    def _state(self, pod: PodRecord) -> ReplicaState:
        if pod.node is None:
            return ReplicaState.LEAVING if pod.is_leaving else ReplicaState.PENDING
        if not self._known[pod.node].is_ready:
            return ReplicaState.LOST
        if pod.is_leaving:
            return ReplicaState.LEAVING
        return ReplicaState.READY if pod.is_ready else ReplicaState.STARTING

    def add_foreign(self, pods: Iterable[PodRecord]) -> None:
        """Charge the foreign pods: those on a node there, young ones without one where they would land."""
        waiting = []
        for pod in pods:
            if pod.node is None:
                waiting.append(pod)
            elif pod.node in self._class_of:
                self._foreign_gpus[pod.node] += pod.requests.get(self._class_of[pod.node].resource_name, 0)
                for name in self.asked:
                    self._foreign_others[pod.node, name] += pod.requests.get(name, 0) + pod.host.get(name, 0)
        for pod in waiting:
            place = self._place(pod) if is_ours(pod.labels) else None
            is_young = self.now_s - pod.created_at_s <= LANDING_S
            if not pod.is_leaving and (place is not None or is_young):
                self._land(self._wants_of_place(place) if place else self._wants_of_pod(pod))

    def add_unseen(
        self, deployments: Iterable[DeploymentRecord], foreign: Iterable[PodRecord], services: Container[str]
    ) -> None:
        """Charge what workloads of ours ask for that are not planned, where no pod was seen of it yet."""
        missing: Counter[Place] = Counter()
        for record in deployments:
            if is_ours(record.labels) and service_of(record) not in services and (place := self._place(record)):
                missing[place] += record.replicas
        for pod in foreign:
            if missing and is_ours(pod.labels) and self._is_alive(pod) and (place := self._place(pod)):
                missing[place] -= 1
        for place, count in sorted(missing.items()):
            wants = self._wants_of_place(place)
            while count > 0 and self._land(wants):
                count -= 1

    def _is_alive(self, pod: PodRecord) -> bool:
        """True when its controller counts on it: one on a lost node may be replaced at any moment."""
        return not pod.is_leaving and (pod.node is None or self._known[pod.node].is_ready)

    def _wants_of_pod(self, pod: PodRecord) -> Callable[[NodeRecord], int]:
        return lambda node: pod.requests.get(self._class_of[node.name].resource_name, 0)

    def _wants_of_place(self, place: Place) -> Callable[[NodeRecord], int]:
        pool, location = place

        def wants(node: NodeRecord) -> int:
            is_here = location in (ANYWHERE, node.labels.get(self.policy.location_label, ""))
            return pool.config.gpus if is_here and self._class_of[node.name].name == pool.gpu_class else 0

        return wants

    def _land(self, wants: Callable[[NodeRecord], int]) -> bool:
        """Charge a pod without a node to the fullest Ready one where it fits; False when it fits nowhere.

        Parameters
        ----------
        wants : callable
            GPUs that the pod would hold of a node, 0 where it may not go.
        """
        fitting = []
        for node in self.records:
            free = self._allocatable(node) - self._foreign_gpus[node.name] - self._own_gpus[node.name]
            if 0 < wants(node) <= free and node.is_ready and not node.is_cordoned:
                fitting.append((free, node.name, node))
        if fitting:
            node = min(fitting)[2]
            self._foreign_gpus[node.name] += wants(node)
        return bool(fitting)

    def _allocatable(self, node: NodeRecord) -> int:
        return node.allocatable.get(self._class_of[node.name].resource_name, 0)

    def finished(self, record: NodeRecord) -> Node:
        """The node with all that was charged to it."""
        gpu_class, name = self._class_of[record.name], record.name
        location = record.labels.get(self.policy.location_label, "")
        spot = next((spot for spot in self.policy.spot if spot.matches(record.labels)), None)
        node = Node(
            name=name,
            gpu_class=gpu_class.name,
            location=location,
            gpus_total=max(record.capacity[gpu_class.resource_name], self._allocatable(record)),
            gpus_usable=self._usable(record, location),
            held_watts=self._foreign_gpus[name] * extra_watts(gpu_class, EngineConfig()),
            domains=self.graph.of_node[name],
            reclaims_per_hour=spot.reclaims_per_hour if spot else 0.0,
            price_ratio=spot.price_ratio if spot else 1.0,
            island=island_of(record.labels),
            resources=dict(self._resources(record, gpu_class)),
        )
        if location and record.is_ready:
            return node
        # Nothing may be placed here, and what runs must stay inside what the node may draw at most.
        return replace(node, gpus_usable=0, held_watts=node.held_watts + self._own_watts[name])

    def _resources(self, record: NodeRecord, gpu_class: GpuClass) -> Iterator[tuple[str, int]]:
        """What our replicas may hold beside GPUs; a node that says nothing of CPU is from a file and has enough."""
        for name in sorted(self.asked - {gpu_class.resource_name}):
            there = record.host.get(name, record.allocatable.get(name))
            if there is None and "/" in name and "cpu" in record.host:
                there = 0
            if there is not None:
                yield name, max(0, there - self._foreign_others[record.name, name])

    def _usable(self, record: NodeRecord, location: str) -> int:
        if not location:
            problem = f"is missing; nothing new is placed on {record.name}"
            path = f"metadata.labels.{self.policy.location_label}"
            remedy = "label the node with its rack or row"
            self.faults.append(Fault(subject=f"Node/{record.name}", field=path, problem=problem, remedy=remedy))
        own = self._own_gpus[record.name]
        if record.is_cordoned or record.name in self.graph.unproven:
            return own
        return max(own, self._allocatable(record) - self._foreign_gpus[record.name])

    def count_desired(self, deployments: Iterable[DeploymentRecord], services: Container[str]) -> dict[Place, int]:
        """Replicas that our workloads ask for, by place."""
        desired: dict[Place, int] = defaultdict(int)
        for record in sorted(deployments, key=lambda record: (record.namespace, record.name)):
            place = self._place(record) if is_ours(record.labels) and service_of(record) in services else None
            if place is not None:
                desired[place] += record.replicas
        return dict(sorted(desired.items()))


def island_of(labels: Mapping[str, str]) -> str:
    """The fast fabric that a node says it hangs on; empty when it says none.

    >>> island_of({"nvidia.com/gpu.clique": "00000000-0000-0000-0000-000000000000.0"})
    ''
    """
    clique = labels.get(CLIQUE_LABEL, "")
    is_joined = any(digit not in "0-" for digit in clique.partition(".")[0])  # zeros: links that end at the node
    return labels.get(ISLAND_LABEL) or (clique if is_joined else "")
