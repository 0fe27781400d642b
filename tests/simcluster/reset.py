"""Bring a cluster back to what it held when it started, so that one cluster serves many tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.simcluster.api import ApiError, Json, KubeApi
from tests.simcluster.components import SIMULATED_LABEL
from tests.simcluster.poll import PATIENCE_S, wait_until

_SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
_NODES = "/api/v1/nodes"
_NAMESPACES = "/api/v1/namespaces"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

# Owners before what they own: nothing is made anew while its owner goes.
_CLUSTER_SCOPED = (
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    _CRDS,
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/apis/scheduling.k8s.io/v1/priorityclasses",
)
_NAMESPACED = (
    "/apis/batch/v1|cronjobs",
    "/apis/batch/v1|jobs",
    "/apis/autoscaling/v2|horizontalpodautoscalers",
    "/apis/apps/v1|deployments",
    "/apis/apps/v1|statefulsets",
    "/apis/apps/v1|daemonsets",
    "/apis/apps/v1|replicasets",
    "/apis/apps/v1|controllerrevisions",
    "/apis/policy/v1|poddisruptionbudgets",
    "/api/v1|services",
    "/api/v1|configmaps",
    "/api/v1|secrets",
    "/api/v1|serviceaccounts",
    "/api/v1|resourcequotas",
    "/api/v1|limitranges",
    "/apis/rbac.authorization.k8s.io/v1|rolebindings",
    "/apis/rbac.authorization.k8s.io/v1|roles",
    "/apis/coordination.k8s.io/v1|leases",
    "/api/v1|pods",
    "/api/v1|persistentvolumeclaims",
    "/api/v1|events",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What was there at the start, by uid: never deleted, whoever made it."""

    uids: frozenset[str]


def take_baseline(api: KubeApi) -> Baseline:
    """Remember every object that `reset` might otherwise delete."""
    paths = (_NODES, _NAMESPACES, *_CLUSTER_SCOPED, *_in_namespace("default"))
    return Baseline(uids=frozenset(obj["metadata"]["uid"] for path in paths for obj in api.list_all(path)))


def reset(api: KubeApi, baseline: Baseline, *, force: bool, timeout_s: float = PATIENCE_S) -> None:
    """Delete what came since the baseline: simulated nodes, namespaces, workloads, custom resources, cluster roles.

    Pods go at once, whatever their grace period; finalizers of custom resources are removed.

    Parameters
    ----------
    force : bool
        Finalize emptied namespaces ourselves, where Kubernetes would look at them only after 5 s.
    """
    for path in _CLUSTER_SCOPED:
        _delete_cluster_scoped(api, path, _new(api, path, baseline))
    namespaces = _new_namespaces(api, baseline)
    for namespace in namespaces:
        api.delete(f"{_NAMESPACES}/{namespace}")  # first: what is then deleted in it is not made anew
        for path in _in_namespace(namespace):
            api.delete(path, grace_s=_grace_s(path))
    for path in _in_namespace("default"):
        api.delete_all((_path(path, obj) for obj in _new(api, path, baseline)), grace_s=_grace_s(path))
    api.delete_all(_path(_NODES, node) for node in _simulated_nodes(api))

    def what() -> str:
        return f"a clean cluster; left are {_left(api, baseline)}"

    wait_until(lambda: _is_empty(api, baseline), what, timeout_s=timeout_s)
    for namespace in namespaces if force else ():
        _finalize(api, namespace)
    wait_until(lambda: not _left(api, baseline), what, timeout_s=timeout_s)


def _in_namespace(namespace: str) -> tuple[str, ...]:
    return tuple(path.replace("|", f"/namespaces/{namespace}/") for path in _NAMESPACED)


def _path(collection: str, obj: Json) -> str:
    return f"{collection}/{obj['metadata']['name']}"


def _grace_s(path: str) -> int | None:
    return 0 if path.endswith("/pods") else None


def _new(api: KubeApi, path: str, baseline: Baseline) -> list[Json]:
    return [obj for obj in api.list_all(path) if obj["metadata"]["uid"] not in baseline.uids]


def _new_namespaces(api: KubeApi, baseline: Baseline) -> list[str]:
    names = (obj["metadata"]["name"] for obj in _new(api, _NAMESPACES, baseline))
    return [name for name in names if name not in _SYSTEM_NAMESPACES]


def _new_pods(api: KubeApi, baseline: Baseline) -> list[str]:
    found = (pod["metadata"] for pod in _new(api, "/api/v1/pods", baseline))
    return [f"{pod['namespace']}/pods/{pod['name']}" for pod in found if pod["namespace"] not in _SYSTEM_NAMESPACES]


def _simulated_nodes(api: KubeApi) -> list[Json]:
    return api.list_all(_NODES, label_selector=f"{SIMULATED_LABEL}=true")


def _delete_cluster_scoped(api: KubeApi, path: str, objs: list[Json]) -> None:
    for obj in objs:
        if path == _CRDS:
            _strip_finalizers(api, obj)
        api.delete(_path(path, obj))


def _strip_finalizers(api: KubeApi, crd: Json) -> None:
    """Let instances go whose controller is no longer there to release them."""
    spec = crd["spec"]
    version = next(version["name"] for version in spec["versions"] if version["storage"])
    base, plural = f"/apis/{spec['group']}/{version}", spec["names"]["plural"]
    for obj in (api.find(f"{base}/{plural}") or {"items": ()})["items"]:
        if obj["metadata"].get("finalizers"):
            namespace = obj["metadata"].get("namespace")
            scope = f"/namespaces/{namespace}" if namespace else ""
            _unless_gone(api.merge, _path(f"{base}{scope}/{plural}", obj), {"metadata": {"finalizers": None}})


def _finalize(api: KubeApi, namespace: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}, "spec": {"finalizers": []}}
    _unless_gone(api.put, f"{_NAMESPACES}/{namespace}/finalize", body)


def _unless_gone(change: Callable[[str, Json], Json], path: str, body: Json) -> None:
    try:
        change(path, body)
    except ApiError as error:
        if error.status != 404:
            raise


def _is_empty(api: KubeApi, baseline: Baseline) -> bool:
    """Ask, and delete again the pods that a controller made while its owner went."""
    pods = _new_pods(api, baseline)
    api.delete_all((f"{_NAMESPACES}/{pod}" for pod in pods), grace_s=0)
    return not pods and not _new(api, _CRDS, baseline) and not _simulated_nodes(api)


def _left(api: KubeApi, baseline: Baseline) -> list[str]:
    nodes = [f"node {node['metadata']['name']}" for node in _simulated_nodes(api)]
    namespaces = [f"namespace {name}" for name in _new_namespaces(api, baseline)]
    crds = [f"crd {crd['metadata']['name']}" for crd in _new(api, _CRDS, baseline)]
    return nodes + namespaces + crds + _new_pods(api, baseline)
