"""What the demo sees of its world, second by second, with its own check of every power budget.

The check does not ask the operator: it lists nodes, pods and Deployments itself, sums the worst case of all that
exists or is asked for, and reads what the twin's meters say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.inventory import Records
from controller.kinds import deployment_record, node_record, pod_record
from controller.observe import build_problem
from controller.readings import Readings
from controller.records import GPU_CLASS_LABEL, MODEL_LABEL, ROLE_LABEL, PodRecord
from controller.specs import Specs, parse_specs
from solvers.fleet import Replica, ReplicaState, Snapshot
from solvers.ledger import WattBook, measured_watts
from tests.simcluster.demo_world import SERVED_NAMESPACE, World

PLURALS = {
    "GpuClass": "gpuclasses",
    "PowerDomain": "powerdomains",
    "FleetPolicy": "fleetpolicies",
    "EngineProfile": "engineprofiles",
    "ServedModel": "servedmodels",
}
PODS = f"/api/v1/namespaces/{SERVED_NAMESPACE}/pods"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{SERVED_NAMESPACE}/deployments"
SLOWLY_CHANGING = frozenset(PLURALS) - {"PowerDomain"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainNow:
    """Watts of one power domain. ``fixed_watts`` count against the budget beside what is reserved and measured."""

    name: str
    budget_watts: float
    usable_watts: float
    reserved_watts: float
    measured_watts: float
    fixed_watts: float

    @property
    def drawn_watts(self) -> float:
        """What counts against the budget now."""
        return self.measured_watts + self.fixed_watts

    @property
    def is_over(self) -> bool:
        """True when the meters show more than the budget, or the worst case is more than may be used."""
        return self.drawn_watts > self.budget_watts or self.reserved_watts > self.usable_watts + 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the world.

    Attributes
    ----------
    at_s : float
        Virtual seconds since the requests began.
    services : mapping of service to what the twin says of it: its windows and the whole run
    replicas : mapping of (service, role, GPU class) to int
        Ready ones.
    pods : int
        All of them, in whatever state.
    gpus : mapping of GPU class to int
        Held by pods.
    """

    at_s: float
    services: Mapping[str, Mapping[str, Any]]
    replicas: Mapping[tuple[str, str, str], int]
    pods: int
    gpus: Mapping[str, int]
    usd_per_hour: float
    domains: tuple[DomainNow, ...]


class Watcher:
    """Takes samples of a world. Resources that nobody changes during a demo are read once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._bodies = {kind: world.list_kind(PLURALS[kind]) for kind in sorted(SLOWLY_CHANGING)}
        self.samples: list[Sample] = []

    def look(self) -> Sample:
        """Take one sample and keep it."""
        state = self._world.twin_state()
        specs = parse_specs(self._bodies | {"PowerDomain": self._world.list_kind(PLURALS["PowerDomain"])})
        records = self._records()
        pods = [pod for pod in records.pods if MODEL_LABEL in pod.labels]
        gpus = _gpus_by_class(pods)
        prices = {each.name: each.price_usd_per_hour for each in specs.gpu_classes}
        sample = Sample(
            at_s=state["virtual_s"],
            services=state["services"],
            replicas=Counter(_group(pod) for pod in pods if pod.is_ready and not pod.is_leaving),
            pods=len(pods),
            gpus=gpus,
            usd_per_hour=sum(prices[name] * count for name, count in gpus.items()),
            domains=tuple(_domains(specs, records, state)),
        )
        self.samples.append(sample)
        return sample

    def _records(self) -> Records:
        """List pods, Deployments and nodes as they stood at one moment: at the version of the first list.

        Lists of different moments would count a replica twice that moves from one pool to another between them.
        """
        api = self._world.cluster.api
        version = api.get(f"{PODS}?limit=1")["metadata"]["resourceVersion"]
        moment = {"resourceVersion": version, "resourceVersionMatch": "Exact"}
        deployments, pods, nodes = (
            api.request("GET", path, query=moment)["items"] for path in (DEPLOYMENTS, PODS, "/api/v1/nodes")
        )
        return Records(
            deployments=[deployment_record(body) for body in deployments],
            pods=[record for body in pods if (record := pod_record(body))],
            nodes=[node_record(body) for body in nodes],
        )


def _group(pod: PodRecord) -> tuple[str, str, str]:
    service = f"{pod.namespace}/{pod.labels[MODEL_LABEL]}"
    return service, pod.labels.get(ROLE_LABEL, ""), pod.labels.get(GPU_CLASS_LABEL, "")


def _gpus_by_class(pods: Iterable[PodRecord]) -> dict[str, int]:
    held: Counter[str] = Counter()
    for pod in pods:
        held[pod.labels.get(GPU_CLASS_LABEL, "")] += sum(pod.requests.values())
    return dict(sorted(held.items()))


def _domains(specs: Specs, records: Records, state: Mapping[str, Any]) -> Iterable[DomainNow]:
    known = {spec.model.name: spec.declared for spec in specs.served_models if spec.declared}
    silence = Readings(taken_at_s=0.0)  # no demand is asked here, only what exists
    snapshot = build_problem(specs, records, silence, now_s=0.0, previous_demands=known).snapshot
    draws = {name: node["draw_watts"] for name, node in state["power"]["nodes"].items()}
    measured = measured_watts(snapshot, {node.name: 0.0 for node in snapshot.nodes} | draws)
    reserved = _reserved_watts(snapshot)
    fixed = {spec.domain.name: spec.domain.fixed_watts for spec in specs.power_domains}
    for name, domain in sorted(snapshot.domains.items()):
        yield DomainNow(
            name=name,
            budget_watts=domain.budget_watts,
            usable_watts=domain.usable_watts,
            reserved_watts=reserved.get(name, 0.0),
            measured_watts=measured.get(name) or 0.0,
            fixed_watts=fixed[name],
        )


def _reserved_watts(snapshot: Snapshot) -> dict[str, float]:
    """Worst case of every pod that exists, on lost nodes too, and of those that are asked for beyond them.

    The operator's own ledger is stricter: it also expects a second pod for each one on a lost node.
    """
    book = WattBook(snapshot)
    staying = Counter((r.pool, r.location) for r in snapshot.replicas if r.state is not ReplicaState.LEAVING)
    for replica in snapshot.replicas:
        book.charge(replica)
    for (pool, location), count in sorted(snapshot.desired.items()):
        for _ in range(count - staying[pool, location]):
            state = ReplicaState.PENDING
            book.charge(Replica(name="", pool=pool, location=location, node=None, state=state))
    return book.reserved()
