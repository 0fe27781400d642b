"""A cluster in memory that answers the client's calls, for tests of the loop without processes.

Deployments make and remove pods at once, on any node that their selector allows and that has GPUs free; removed first
are the cheapest to delete. Every write is noted. Watch events reach a cache only when a test says so.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from controller.cache import Cache
from controller.client import AlreadyExists, ApiError, Body, KubeClient, NotFound, NotLeader, Unreachable
from controller.kinds import KINDS, key_of
from controller.records import DELETION_COST
from tests.world_bodies import NAMESPACE, domains, fleet_policy, gpu_classes, gpu_nodes, profiles, served_model

T = TypeVar("T")

PLURALS = {kind.name: kind.plural for kind in KINDS}
GPU = "nvidia.com/gpu"
BORN = "2027-01-15T08:00:00Z"  # of everything; the tests' clock starts there


class FakeCluster(KubeClient):
    """Objects by kind and name, with resource versions as the API server counts them."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Body]] = {kind.name: {} for kind in KINDS}
        self.writes: list[tuple[str, str]] = []
        self.statuses: dict[str, Body] = {}
        self.events: list[Body] = []
        self.is_down = False
        self.lacking: set[str] = set()
        self.refused: set[str] = set()  # plurals of which nothing can be written
        self.may_write: Callable[[], bool] = lambda: True
        self.listener: Cache | None = None
        self._version = itertools.count(1)
        self._names = itertools.count(1)

    # What a test does

    def install(self, racks: dict[str, int] | None = None, **policy: Any) -> FakeCluster:
        """Bring the small world in."""
        counts = racks or {"rack-1": 2, "rack-2": 2}
        for node in gpu_nodes(counts):
            body = node.manifest()
            body["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
            self.put("Node", body)
        for body in (*gpu_classes(), *profiles(), *domains(counts), fleet_policy(**policy)):
            self.put(body["kind"], body)
        return self

    def serve(self, name: str = "chat", requests_per_s: float = 4.0, **changes: Any) -> None:
        """Put a ServedModel in."""
        self.put("ServedModel", served_model(name, requests_per_s, **changes))

    def put(self, kind: str, body: Body) -> Body:
        """Create or change an object; a listening cache hears of it."""
        metadata = {"uid": f"{kind}-{key_of(body)}", "generation": 1, "creationTimestamp": BORN, **body["metadata"]}
        metadata["resourceVersion"] = str(next(self._version))
        kept: Body = {**copy.deepcopy(body), "metadata": metadata}
        self.objects[kind][key_of(kept)] = kept
        self._tell(kind, "MODIFIED", kept)
        return kept

    def change(self, kind: str, key: str, change: Callable[[Body], object]) -> None:
        """Change an object's spec in place, as a user would."""
        body = copy.deepcopy(self.objects[kind][key])
        change(body["spec"])
        body["metadata"]["generation"] += 1
        self.put(kind, body)

    def remove(self, kind: str, key: str) -> None:
        """Take an object away."""
        body = self.objects[kind].pop(key)
        body["metadata"]["resourceVersion"] = str(next(self._version))
        self._tell(kind, "DELETED", body)

    def _tell(self, kind: str, event: str, body: Body) -> None:
        if self.listener is not None:
            self.listener.see(kind, event, copy.deepcopy(body))

    # What the client does

    def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[Body], str]]:
        self._answer()
        kind = self._kind(path)
        if kind in self.lacking:
            raise NotFound(f"GET {path}", 404, "NotFound", "the server could not find the requested resource")
        name, _, value = selector.partition("=")
        labels = [(body, body["metadata"].get("labels") or {}) for body in self.objects[kind].values()]
        chosen = [copy.deepcopy(body) for body, own in labels if not selector or own.get(name) == value]
        yield chosen, str(next(self._version))

    def apply(self, path: str, body: Body, *, manager: str = "penstock", force: bool = True) -> Body:
        self._note("apply", path)
        if path.endswith("/status"):
            self.statuses[path.removesuffix("/status").rpartition("/")[2]] = body["status"]
            return body
        known = self.objects["Deployment"].get(key_of(body), {"spec": {"replicas": 1}, "metadata": {}})
        spec = {"replicas": known["spec"]["replicas"], **body["spec"]}
        metadata = {**known["metadata"], **body["metadata"]}
        return self.put("Deployment", {**body, "metadata": metadata, "spec": spec})

    def apply_status(self, path: str, body: Body) -> Body:
        return self.apply(path + "/status", body)

    def scale(self, path: str, replicas: int, *, force: bool = False) -> Body:
        self._note("scale", path)
        deployment = self.objects["Deployment"][f"{path.split('/')[-3]}/{path.split('/')[-1]}"]
        deployment["spec"]["replicas"] = replicas
        owner = [{"manager": "penstock-scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
        deployment["metadata"]["managedFields"] = owner
        made = self.put("Deployment", deployment)
        self._make_pods(deployment)
        return {"metadata": made["metadata"], "spec": {"replicas": replicas}}

    def create(self, path: str, body: Body) -> Body:
        self._note("create", path)
        if path.endswith("/events"):
            self.events.append(body)
            return body
        if key_of(body) in self.objects[self._kind(path)]:
            raise AlreadyExists(f"POST {path}", 409, "AlreadyExists", "")
        return self.put(self._kind(path), {**body, "metadata": {**body["metadata"], "uid": f"uid-{key_of(body)}"}})

    def merge(self, path: str, body: Body) -> Body:
        self._note("merge", path)
        if "/events/" in path:
            return body
        pod = self.objects["Pod"][f"{path.split('/')[-3]}/{path.split('/')[-1]}"]
        pod["metadata"]["annotations"] = {**pod["metadata"].get("annotations", {}), **body["metadata"]["annotations"]}
        return self.put("Pod", pod)

    def delete(self, path: str, *, uid: str = "") -> Body:
        self._note("delete", path)
        self.remove(self._kind(path.rpartition("/")[0]), path.rpartition("/")[2])
        return {}

    def in_parallel(self, jobs: Iterable[Callable[[], T]]) -> list[T]:
        return [job() for job in jobs]

    def _answer(self) -> None:
        if self.is_down:
            raise Unreachable("GET: connection refused")

    def _note(self, verb: str, path: str) -> None:
        self._answer()
        if not self.may_write():
            raise NotLeader(f"{verb} {path}: refused")
        if path.rpartition("/")[2] in self.refused:
            raise ApiError(f"{verb} {path}", 507, "InsufficientStorage", "etcdserver: mvcc: database space exceeded")
        self.writes.append((verb, path))

    def _kind(self, path: str) -> str:
        plural = path.rpartition("/")[2]
        return next(kind for kind, known in PLURALS.items() if known == plural)

    # What the cluster does

    def _make_pods(self, deployment: Body) -> None:
        name, template = deployment["metadata"]["name"], deployment["spec"]["template"]
        mine = [pod for pod in self.objects["Pod"].values() if pod["metadata"]["name"].startswith(name + "-")]
        cheapest = sorted(mine, key=lambda pod: int((pod["metadata"].get("annotations") or {}).get(DELETION_COST, 0)))
        for pod in cheapest[: max(0, len(mine) - deployment["spec"]["replicas"])]:
            self.remove("Pod", key_of(pod))
        for _ in range(deployment["spec"]["replicas"] - len(mine)):
            self.put("Pod", self._pod(f"{name}-{next(self._names)}", template))

    def _pod(self, name: str, template: Body) -> Body:
        spec, node = copy.deepcopy(template["spec"]), self._schedule(template["spec"])
        status: Body = {"phase": "Pending"}
        if node:
            spec["nodeName"] = node
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        metadata = {**copy.deepcopy(template["metadata"]), "namespace": NAMESPACE, "name": name}
        return {"metadata": metadata, "spec": spec, "status": status}

    def _schedule(self, spec: Body) -> str:
        wants = gpus_of(spec)
        for name, node in self.objects["Node"].items():
            held = sum(gpus_of(p["spec"]) for p in self.objects["Pod"].values() if p["spec"].get("nodeName") == name)
            fits = held + wants <= int(node["status"]["allocatable"][GPU])
            if fits and spec.get("nodeSelector", {}).items() <= node["metadata"]["labels"].items():
                return name
        return ""


def gpus_of(spec: Body) -> int:
    return sum(int(container["resources"]["limits"].get(GPU, 0)) for container in spec["containers"])
