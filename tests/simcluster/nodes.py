"""Simulated GPU nodes, pods that hold GPUs, and the annotations that time their lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.simcluster.components import SIMULATED_LABEL

RACK_LABEL = "topology.example.com/rack"
ROW_LABEL = "topology.example.com/row"
MANAGED_LABEL = "penstock.dev/managed"
COLD_START_ANNOTATION = "penstock.dev/sim-cold-start"
DRAIN_ANNOTATION = "penstock.dev/sim-drain"
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNode:
    """A GPU node as GPU feature discovery would label it.

    Parameters
    ----------
    name : str
    gpu_product : str
        As in the label ``nvidia.com/gpu.product``, such as ``NVIDIA-H100-80GB-HBM3``.
    gpus : int
        GPUs that the node was bought with.
    memory_mebibytes : int, MiB
        Memory of one GPU.
    rack, row : str
        Where it stands; the labels are left out when empty.
    managed : bool
        Whether it carries the label of nodes given to Penstock.
    allocatable_gpus : int or None
        GPUs that work, where some do not; None means all.
    labels : mapping
        Further labels; they win over the ones above.
    """

    name: str
    gpu_product: str
    gpus: int = 8
    memory_mebibytes: int = 81_559
    rack: str = ""
    row: str = ""
    managed: bool = True
    allocatable_gpus: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        """Return the Node as an object to create; its status is honoured at creation, as for a kubelet."""
        working = self.gpus if self.allocatable_gpus is None else self.allocatable_gpus
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": self._labels(),
                "annotations": {"kwok.x-k8s.io/node": "fake"},
            },
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": "127.0.0.1"},
                    {"type": "Hostname", "address": self.name},
                ],
                "capacity": _BASE_RESOURCES | {GPU_RESOURCE: str(self.gpus)},
                "allocatable": _BASE_RESOURCES | {GPU_RESOURCE: str(working)},
            },
        }

    def _labels(self) -> dict[str, str]:
        optional = {RACK_LABEL: self.rack, ROW_LABEL: self.row, MANAGED_LABEL: "true" if self.managed else ""}
        return {
            SIMULATED_LABEL: "true",
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.product": self.gpu_product,
            "nvidia.com/gpu.count": str(self.gpus),
            "nvidia.com/gpu.memory": str(self.memory_mebibytes),
            **{label: value for label, value in optional.items() if value},
            **self.labels,
        }


_BASE_RESOURCES = {"cpu": "192", "memory": "2Ti", "ephemeral-storage": "8Ti", "pods": "250"}


def sim_annotations(*, cold_start_s: float = 0.0, drain_s: float | None = None) -> dict[str, str]:
    """Return pod annotations that set how long a pod takes to become Ready, and to leave.

    Parameters
    ----------
    cold_start_s : float, s
        Time from Running to Ready.
    drain_s : float or None, s
        Time from deletion to gone, at most the pod's grace period; None means the whole grace period.
    """
    drain = {} if drain_s is None else {DRAIN_ANNOTATION: go_duration(drain_s)}
    return {COLD_START_ANNOTATION: go_duration(cold_start_s)} | drain


def go_duration(seconds: float) -> str:
    """Write seconds as Go does, to the millisecond.

    >>> go_duration(1.5)
    '1500ms'
    """
    return f"{round(seconds * 1000)}ms"


def gpu_pod(name: str, *, gpus: int, namespace: str = "default", **timing: float) -> dict[str, Any]:
    """Return a pod that holds GPUs; ``timing`` as for `sim_annotations`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": sim_annotations(**timing)},
        "spec": gpu_pod_spec(gpus),
    }


def gpu_deployment(
    name: str, *, replicas: int, gpus: int, namespace: str = "default", **timing: float
) -> dict[str, Any]:
    """Return a Deployment of pods that hold GPUs; ``timing`` as for `sim_annotations`."""
    template = {
        "metadata": {"labels": {"app": name}, "annotations": sim_annotations(**timing)},
        "spec": gpu_pod_spec(gpus),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


def gpu_pod_spec(gpus: int) -> dict[str, Any]:
    resources = {"limits": {GPU_RESOURCE: str(gpus)}} if gpus else {}
    return {"containers": [{"name": "engine", "image": "example.com/engine", "resources": resources}]}


def is_ready(obj: Mapping[str, Any]) -> bool:
    """Say whether a node or a pod has the condition Ready."""
    return condition(obj, "Ready").get("status") == "True"


def condition(obj: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of an object, or an empty one."""
    conditions = obj.get("status", {}).get("conditions") or ()
    return next((entry for entry in conditions if entry["type"] == kind), {})
