"""The chart and the manifests on a real control plane: they apply, the pods come up, and an uninstall is harmless."""

from __future__ import annotations

import pytest

from tests.rbac_audit import Right, may, wait_granted
from tests.render_chart import CHART, CRDS, NAMESPACE, ROOT
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.nodes import GpuNode, gpu_deployment
from tests.simcluster.poll import wait_until

DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/penstock"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@pytest.fixture
def cluster(simcluster: SimCluster) -> SimCluster:
    """A cluster with one node."""
    simcluster.add_nodes([GpuNode(name="gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", rack="r1")])
    return simcluster


def is_up(cluster: SimCluster) -> bool:
    """Both replicas Ready, at the generation that was asked for."""
    found = cluster.api.get(DEPLOYMENT)
    status = found.get("status", {})
    is_seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
    counts = (status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
    return bool(is_seen and counts == (2, 2))


def definitions(cluster: SimCluster) -> dict[str, Json]:
    found = cluster.api.list_all(DEFINITIONS)
    return {each["metadata"]["name"]: each for each in found if each["spec"]["group"] == "penstock.dev"}


def serving_pods(cluster: SimCluster) -> list[str]:
    """Uids of the pods that serve, none of them on the way out."""
    pods = cluster.pods(label_selector="app=engine")
    return sorted(pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"])


def test_install_upgrade_and_uninstall_leave_what_serves_alone(cluster: SimCluster) -> None:
    cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}})
    cluster.create([gpu_deployment("engine", replicas=2, gpus=4)])
    wait_until(lambda: len(serving_pods(cluster)) == 2, "the serving pods")
    before = serving_pods(cluster)

    cluster.helm("install", "penstock", str(CHART), "--namespace", NAMESPACE)
    wait_until(lambda: is_up(cluster), "both replicas of the operator")  # admitted under the restricted standard
    assert len(definitions(cluster)) == len(list(CRDS.iterdir()))

    cluster.helm("upgrade", "penstock", str(CHART), "--namespace", NAMESPACE, "--set", "logLevel=DEBUG")
    wait_until(lambda: is_up(cluster), "both replicas after the upgrade")

    cluster.helm("uninstall", "penstock", "--namespace", NAMESPACE)
    wait_until(lambda: cluster.api.find(DEPLOYMENT) is None, "the operator to be gone")
    assert len(definitions(cluster)) == len(list(CRDS.iterdir()))  # so the served models stay
    assert serving_pods(cluster) == before


def test_an_upgrade_brings_newer_definitions(cluster: SimCluster) -> None:
    name = "gpuclasses.penstock.dev"
    cluster.create_namespace(NAMESPACE)
    cluster.helm("install", "penstock", str(CHART), "--namespace", NAMESPACE)
    older = definitions(cluster)[name]["spec"]["versions"]
    older[0]["additionalPrinterColumns"] = older[0]["additionalPrinterColumns"][:1]
    patch = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name}}
    cluster.api.apply(patch | {"spec": {**definitions(cluster)[name]["spec"], "versions": older}}, field_manager="helm")
    cluster.helm("upgrade", "penstock", str(CHART), "--namespace", NAMESPACE)
    assert len(definitions(cluster)[name]["spec"]["versions"][0]["additionalPrinterColumns"]) > 1


def test_the_manifests_apply_without_helm(cluster: SimCluster) -> None:
    manifest = ROOT / "deploy" / "operator.yaml"
    cluster.kubectl("apply", "--server-side", "--filename", str(CRDS), "--filename", str(manifest))
    wait_until(lambda: is_up(cluster), "both replicas of the operator")
    account = f"system:serviceaccount:{NAMESPACE}:penstock"
    wait_granted(cluster.api, account, [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])
    for verb, resource in (("get", "secrets"), ("delete", "nodes")):
        assert not may(cluster.api, account, Right(group="", resource=resource, verb=verb))
