"""Bring a cluster back to what it held when it started, so that one cluster serves many tests."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simcluster.api import ApiError, Json, KubeApi
from tests.simcluster.components import SIMULATED_LABEL
from tests.simcluster.poll import wait_until

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
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What was there at the start, by uid: never deleted, whoever made it."""

    uids: frozenset[str]


def take_baseline(api: KubeApi) -> Baseline:
    """Remember every object that `reset` might otherwise delete."""
    paths = (_NODES, _NAMESPACES, *_CLUSTER_SCOPED, *_in_namespace("default"))
    return Baseline(uids=frozenset(obj["metadata"]["uid"] for path in paths for obj in api.list(path)))


def reset(api: KubeApi, baseline: Baseline, *, timeout_s: float = 60.0) -> None:
    """Delete what came since the baseline: simulated nodes, namespaces, workloads, custom resources, cluster roles.

    Pods go at once, whatever their grace period; finalizers of custom resources are removed.
    """
    for path in _CLUSTER_SCOPED:
        for obj in _new(api, path, baseline):
            if path == _CRDS:
                _strip_finalizers(api, obj)
            api.delete(f"{path}/{obj['metadata']['name']}")
    for namespace in _new_namespaces(api, baseline):
        _empty(api, namespace, baseline)
        api.delete(f"{_NAMESPACES}/{namespace}")
    _empty(api, "default", baseline)
    for node in _simulated_nodes(api):
        api.delete(f"{_NODES}/{node['metadata']['name']}")
    wait_until(
        lambda: _is_clean(api, baseline), lambda: f"a clean cluster; left: {_left(api, baseline)}", timeout_s=timeout_s
    )


def _in_namespace(namespace: str) -> tuple[str, ...]:
    return tuple(path.replace("|", f"/namespaces/{namespace}/") for path in _NAMESPACED)


def _new(api: KubeApi, path: str, baseline: Baseline) -> list[Json]:
    return [obj for obj in api.list(path) if obj["metadata"]["uid"] not in baseline.uids]


def _new_namespaces(api: KubeApi, baseline: Baseline) -> list[str]:
    names = (obj["metadata"]["name"] for obj in _new(api, _NAMESPACES, baseline))
    return [name for name in names if name not in _SYSTEM_NAMESPACES]


def _simulated_nodes(api: KubeApi) -> list[Json]:
    return api.list(_NODES, label_selector=f"{SIMULATED_LABEL}=true")


def _empty(api: KubeApi, namespace: str, baseline: Baseline) -> None:
    for path in _in_namespace(namespace):
        grace_s = 0 if path.endswith("/pods") else None
        for obj in _new(api, path, baseline):
            api.delete(f"{path}/{obj['metadata']['name']}", grace_s=grace_s)


def _strip_finalizers(api: KubeApi, crd: Json) -> None:
    """Let instances go whose controller is no longer there to release them."""
    spec = crd["spec"]
    version = next(version["name"] for version in spec["versions"] if version["storage"])
    base, plural = f"/apis/{spec['group']}/{version}", spec["names"]["plural"]
    for obj in (api.find(f"{base}/{plural}") or {"items": ()})["items"]:
        if obj["metadata"].get("finalizers"):
            namespace = obj["metadata"].get("namespace")
            scope = f"/namespaces/{namespace}" if namespace else ""
            _merge_if_there(
                api, f"{base}{scope}/{plural}/{obj['metadata']['name']}", {"metadata": {"finalizers": None}}
            )


def _merge_if_there(api: KubeApi, path: str, patch: Json) -> None:
    try:
        api.merge(path, patch)
    except ApiError as error:
        if error.status != 404:
            raise


def _is_clean(api: KubeApi, baseline: Baseline) -> bool:
    """Ask, and delete again the pods that a controller made while its owner went."""
    _empty_pods(api, baseline)
    return not _left(api, baseline)


def _empty_pods(api: KubeApi, baseline: Baseline) -> None:
    for pod in _new(api, "/api/v1/pods", baseline):
        meta = pod["metadata"]
        if meta["namespace"] not in _SYSTEM_NAMESPACES:
            api.delete(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", grace_s=0)


def _left(api: KubeApi, baseline: Baseline) -> list[str]:
    nodes = [f"node {node['metadata']['name']}" for node in _simulated_nodes(api)]
    namespaces = [f"namespace {name}" for name in _new_namespaces(api, baseline)]
    crds = [f"crd {crd['metadata']['name']}" for crd in _new(api, _CRDS, baseline)]
    pods = [
        f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in _new(api, "/api/v1/pods", baseline)
        if pod["metadata"]["namespace"] not in _SYSTEM_NAMESPACES
    ]
    return nodes + namespaces + crds + pods
