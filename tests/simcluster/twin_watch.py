"""What the fleet twin sees of a cluster: pods, nodes, services, profiles and GPU classes, kept by list and watch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller import schema
from controller.kinds import node_record, pod_record
from controller.records import MANAGED_BY, MANAGED_BY_LABEL, NodeRecord, PodRecord
from controller.resources import parse_engine_profile, parse_gpu_class
from controller.validation import validate_spec
from solvers.engine import EngineProfile
from solvers.errors import InvalidInput
from solvers.fleet import GpuClass
from solvers.workload import Slo
from tests.simcluster.api import ApiError, Json, KubeApi, UnreachableError

PENSTOCK = "/apis/penstock.dev/v1alpha1"
RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinService:
    """What gateway and engines know of one service; ``name`` is ``namespace/name``."""

    name: str
    model: str
    inference_pool: str
    slos: tuple[Slo, ...] = ()

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The cluster at one moment; pods by uid, the others by name. ``faults`` says which objects are unreadable."""

    pods: Mapping[str, PodRecord] = field(default_factory=dict)
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    services: Mapping[str, TwinService] = field(default_factory=dict)
    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    gpu_classes: Mapping[str, GpuClass] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


def twin_service(body: Json) -> TwinService:
    """Read of a ServedModel what its traffic needs; whether the policy admits it is not the gateway's business."""
    spec = validate_spec(body, schema.ServedModelSpec)
    name = body["metadata"]["name"]
    return TwinService(
        name=f"{body['metadata'].get('namespace', 'default')}/{name}",
        model=spec.model,
        inference_pool=spec.demand.inference_pool or name,
        slos=tuple(
            Slo(metric=slo.metric, percentile_ratio=round(slo.percentile / 100, 9), limit_s=slo.milliseconds / 1e3)
            for slo in spec.slos
        ),
    )


class Watched:
    """One collection, reduced object by object, kept in step by its own thread.

    Parameters
    ----------
    reduce : callable
        From a body to what is kept; None drops the object, ``InvalidInput`` makes it a fault.
    """

    def __init__(self, api: KubeApi, path: str, reduce: Callable[[Json], Any], selector: str = "") -> None:
        self._api, self._path, self._reduce, self._selector = api, path, reduce, selector
        self._lock = threading.Lock()
        self._kept: dict[str, Any] = {}
        self._faults: dict[str, str] = {}
        self._stopping = threading.Event()
        self.listed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"twin watches {path}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does at the next event, or when the server ends the watch."""
        self._stopping.set()

    def snapshot(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(objects by uid, faults) as last seen."""
        with self._lock:
            return dict(self._kept), tuple(self._faults.values())

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                version = self._list()
                self.listed.set()
                while not self._stopping.is_set():
                    version = self._follow(version)
            except (ApiError, UnreachableError):
                self._stopping.wait(RETRY_S)  # the server is away, or forgot the version: list again

    def _list(self) -> str:
        query = {"labelSelector": self._selector} if self._selector else None
        answer = self._api.request("GET", self._path, query=query)
        with self._lock:
            self._kept.clear()
            self._faults.clear()
            for body in answer["items"]:
                self._keep(body)
        return str(answer["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> str:
        for event in self._api.watch(self._path, version):
            body = event["object"]
            if event["type"] == "ERROR":
                raise ApiError("WATCH", self._path, body.get("code", 410), body)
            version = body["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK" and self._is_selected(body):
                with self._lock:
                    self._keep(body, is_gone=event["type"] == "DELETED")
            if self._stopping.is_set():
                break
        return version

    def _is_selected(self, body: Json) -> bool:
        name, _, value = self._selector.partition("=")
        return not name or (body["metadata"].get("labels") or {}).get(name) == value

    def _keep(self, body: Json, *, is_gone: bool = False) -> None:
        uid = body["metadata"]["uid"]
        self._kept.pop(uid, None)
        self._faults.pop(uid, None)
        if is_gone:
            return
        try:
            reduced = self._reduce(body)
        except InvalidInput as fault:
            self._faults[uid] = str(fault)
            return
        if reduced is not None:
            self._kept[uid] = reduced


class ClusterWatch:
    """Watches a cluster for the twin; calling it gives the present ``ClusterView``."""

    def __init__(self, kubeconfig: Path) -> None:
        self._api = KubeApi(kubeconfig)
        self._pods = Watched(self._api, "/api/v1/pods", pod_record, f"{MANAGED_BY_LABEL}={MANAGED_BY}")
        self._nodes = Watched(self._api, "/api/v1/nodes", node_record)
        self._services = Watched(self._api, f"{PENSTOCK}/servedmodels", twin_service)
        self._profiles = Watched(self._api, f"{PENSTOCK}/engineprofiles", parse_engine_profile)
        self._gpu_classes = Watched(self._api, f"{PENSTOCK}/gpuclasses", parse_gpu_class)
        self._all = (self._pods, self._nodes, self._services, self._profiles, self._gpu_classes)

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Begin, and wait until pods and nodes were listed once (or the time is over: it goes on trying)."""
        for watched in self._all:
            watched.start()
        for watched in (self._pods, self._nodes):
            watched.listed.wait(timeout_s)

    def stop(self) -> None:
        """Stop watching."""
        for watched in self._all:
            watched.stop()

    def __call__(self) -> ClusterView:
        pods, _ = self._pods.snapshot()
        nodes, _ = self._nodes.snapshot()
        services, bad_services = self._services.snapshot()
        profiles, bad_profiles = self._profiles.snapshot()
        gpu_classes, bad_classes = self._gpu_classes.snapshot()
        return ClusterView(
            pods=pods,
            nodes={node.name: node for node in nodes.values()},
            services={service.name: service for service in services.values()},
            profiles=profiles,
            gpu_classes={gpu_class.name: gpu_class for gpu_class in gpu_classes.values()},
            faults=(*bad_services, *bad_profiles, *bad_classes),
        )
