"""The kinds that the operator watches, and how a raw body of each becomes a small record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from controller.quantities import extended, host, pod_amounts
from controller.records import DELETION_COST, MANAGED_BY, MANAGED_BY_LABEL, DeploymentRecord, NodeRecord, PodRecord

GROUP, VERSION = "penstock.dev", "v1alpha1"
TEMPLATE_HASH = "penstock.dev/template-hash"
FINISHED = frozenset({"Succeeded", "Failed"})
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """A custom resource: its body without managed fields; they are few and small enough to keep."""

    namespace: str
    name: str
    uid: str
    generation: int
    body: Body = field(compare=False)
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    resource_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """One part of a FleetPlan, without the decision itself."""

    name: str
    uid: str
    number: int
    part: int
    parts: int
    decision_hash: str
    created_at_s: float
    resource_version: str = ""


Record = NodeRecord | PodRecord | DeploymentRecord | ObjectRecord | PlanRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One watched kind: where it lives and how its bodies are reduced (None: of no interest to us)."""

    name: str
    plural: str
    reduce: Callable[[Body], Record | None]
    group: str = ""
    version: str = "v1"
    selector: str = ""

    @property
    def path(self) -> str:
        """Collection over all namespaces."""
        root = f"/apis/{self.group}" if self.group else "/api"
        return f"{root}/{self.version}/{self.plural}"


def essence(record: Record) -> Record:
    """Leave out what changes without meaning: two equal essences need no turn of the loop."""
    return replace(record, resource_version="")


def is_minor(record: Record | None) -> bool:
    """True for what never calls for a turn by itself: foreign pods without extended resources."""
    return isinstance(record, PodRecord) and not record.labels and not record.requests


def key_of(body: Body) -> str:
    """``namespace/name``, or the name of a cluster-scoped object."""
    metadata = body["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])


def version_of(body: Body) -> int:
    """Resource version as a number: the API server defines them as comparable."""
    return int(body["metadata"].get("resourceVersion") or 0)


def seconds(timestamp: str | None) -> float:
    """Seconds since the epoch of a Kubernetes timestamp."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def node_record(body: Body) -> NodeRecord:
    """Reduce a ``v1/Node``."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return NodeRecord(
        name=metadata["name"],
        labels=dict(metadata.get("labels") or {}),
        capacity=extended(status.get("capacity")),
        allocatable=extended(status.get("allocatable")),
        host=host(status.get("allocatable")),
        is_ready=_is_ready(status),
        is_cordoned=bool(spec.get("unschedulable")),
        is_out_of_service=any(taint.get("key") == OUT_OF_SERVICE for taint in spec.get("taints") or ()),
        resource_version=metadata.get("resourceVersion", ""),
    )


def pod_record(body: Body) -> PodRecord | None:
    """Reduce a ``v1/Pod``: ours, or a foreign one that asks for something; finished pods hold nothing.

    Of foreign pods that ask for CPU and memory alone only those on a node are kept, without labels: there are many.
    """
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = dict(metadata.get("labels") or {})
    requests, asked = pod_amounts(spec, extended), pod_amounts(spec, host)
    is_major = bool(requests) or labels.get(MANAGED_BY_LABEL) == MANAGED_BY
    if status.get("phase") in FINISHED or not (is_major or (asked and spec.get("nodeName"))):
        return None
    return PodRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        labels=labels if is_major else {},
        node=spec.get("nodeName") or None,
        phase=status.get("phase", "Pending"),
        is_ready=_is_ready(status),
        is_leaving=bool(metadata.get("deletionTimestamp")),
        requests=requests,
        host=asked,
        created_at_s=seconds(metadata.get("creationTimestamp")),
        deletion_cost=_whole((metadata.get("annotations") or {}).get(DELETION_COST)),
        owner=next((owner["name"] for owner in metadata.get("ownerReferences") or ()), ""),
        resource_version=metadata.get("resourceVersion", ""),
    )


def deployment_record(body: Body) -> DeploymentRecord:
    """Reduce an ``apps/v1`` Deployment of ours."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    annotations = dict(metadata.get("annotations") or {})
    return DeploymentRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        labels=dict(metadata.get("labels") or {}),
        replicas=spec.get("replicas", 1),
        ready_replicas=status.get("readyReplicas", 0),
        generation=metadata.get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        replicas_manager=replicas_manager(metadata.get("managedFields") or ()),
        template_hash=annotations.get(TEMPLATE_HASH, ""),
        resource_version=metadata.get("resourceVersion", ""),
        annotations=annotations,
    )


def replicas_manager(managed_fields: Iterable[Body]) -> str:
    """Name who owns ``spec.replicas``: another manager first, then ours that creates, then ours that scales."""
    owners = [
        str(entry.get("manager", ""))
        for entry in managed_fields
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return min(owners, key=_rank, default="")


def _rank(manager: str) -> int:
    return {"penstock": 1, "penstock-scale": 2}.get(manager, 0)


def object_record(body: Body) -> ObjectRecord:
    """Keep a custom resource, without its managed fields."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    kept = {name: body[name] for name in ("apiVersion", "kind", "spec", "status") if name in body}
    return ObjectRecord(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        body={**kept, "metadata": metadata},
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        resource_version=metadata.get("resourceVersion", ""),
    )


def plan_record(body: Body) -> PlanRecord:
    """Keep of a FleetPlan what history needs."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    return PlanRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        number=spec.get("number", 0),
        part=spec.get("part", 1),
        parts=spec.get("parts", 1),
        decision_hash=spec.get("decisionHash", ""),
        created_at_s=seconds(metadata.get("creationTimestamp")),
        resource_version=metadata.get("resourceVersion", ""),
    )


def _is_ready(status: Body) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())


def _whole(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _custom(name: str, plural: str) -> Kind:
    return Kind(name=name, plural=plural, reduce=object_record, group=GROUP, version=VERSION)


KINDS = (
    _custom("FleetPolicy", "fleetpolicies"),
    _custom("GpuClass", "gpuclasses"),
    _custom("PowerDomain", "powerdomains"),
    _custom("EngineProfile", "engineprofiles"),
    _custom("ServedModel", "servedmodels"),
    Kind(name="FleetPlan", plural="fleetplans", reduce=plan_record, group=GROUP, version=VERSION),
    Kind(name="Node", plural="nodes", reduce=node_record),
    Kind(
        name="Deployment",
        plural="deployments",
        reduce=deployment_record,
        group="apps",
        selector=f"{MANAGED_BY_LABEL}={MANAGED_BY}",
    ),
    Kind(name="Pod", plural="pods", reduce=pod_record),
)
