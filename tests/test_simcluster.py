"""The simulated cluster does what its documentation says: nodes, pods, faults, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from tests.simcluster.api import ApiError, KubeApi
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import ClusterConfig
from tests.simcluster.drivers import UnsupportedError, is_api_ready
from tests.simcluster.monitoring import ScrapeJob
from tests.simcluster.nodes import GPU_RESOURCE, RACK_LABEL, GpuNode, condition, gpu_deployment, gpu_pod, is_ready
from tests.simcluster.poll import PATIENCE_S, DeadlineError, wait_until
from tests.simcluster.process import ProcessError
from tests.test_simcluster_assets import pinned_version

LONG_S = 2 * round(PATIENCE_S)  # nobody waits so long: what takes less was not this
H100 = "NVIDIA-H100-80GB-HBM3"
ROOT = Path(__file__).parents[1]


def h100_nodes(count: int) -> list[GpuNode]:
    return [GpuNode(name=f"gpu-{index}", gpu_product=H100, rack=f"r{index % 2}") for index in range(count)]


def pod(cluster: SimCluster, name: str) -> dict[str, Any]:
    return cluster.api.get(f"/api/v1/namespaces/default/pods/{name}")


def wait_pod_ready(cluster: SimCluster, name: str) -> dict[str, Any]:
    wait_until(lambda: is_ready(pod(cluster, name)), f"{name} to be Ready")
    return pod(cluster, name)


def states(cluster: SimCluster, name: str, version: str) -> Iterator[dict[str, Any]]:
    """Every state that a pod had after a version, however late we ask; the last one is that in which it went."""
    for event in cluster.api.watch("/api/v1/namespaces/default/pods", version, timeout_s=round(PATIENCE_S)):
        if event["object"]["metadata"].get("name") == name:
            yield event["object"]
            if event["type"] == "DELETED":
                return


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def is_alive(pid: int) -> bool:
    """Say whether a process runs; a zombie that waits for its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


# Nodes and pods


def test_nodes_become_ready_with_their_labels_and_gpus(simcluster: SimCluster) -> None:
    degraded = GpuNode(name="l40s-0", gpu_product="NVIDIA-L40S", gpus=4, memory_mebibytes=46_068, allocatable_gpus=3)
    simcluster.add_nodes([*h100_nodes(2), degraded])
    nodes = {node["metadata"]["name"]: node for node in simcluster.api.list_all("/api/v1/nodes")}
    assert {name: is_ready(node) for name, node in nodes.items()} == {"gpu-0": True, "gpu-1": True, "l40s-0": True}
    assert nodes["gpu-1"]["metadata"]["labels"][RACK_LABEL] == "r1"
    assert nodes["l40s-0"]["metadata"]["labels"]["nvidia.com/gpu.memory"] == "46068"
    assert nodes["l40s-0"]["status"]["capacity"][GPU_RESOURCE] == "4"
    assert nodes["l40s-0"]["status"]["allocatable"][GPU_RESOURCE] == "3"


def test_the_scheduler_packs_gpu_pods_and_holds_back_what_does_not_fit(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(4))
    for index in range(4):  # one after the other: each sees where the former went
        simcluster.create([gpu_pod(f"small-{index}", gpus=2)])
        wait_pod_ready(simcluster, f"small-{index}")
    assert len({found["spec"]["nodeName"] for found in simcluster.pods()}) == 1
    simcluster.create([gpu_pod("large", gpus=9)])
    wait_until(
        lambda: condition(pod(simcluster, "large"), "PodScheduled").get("reason") == "Unschedulable", "a refusal"
    )


def test_a_cold_start_runs_first_and_is_ready_only_later(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(1))
    (created,) = simcluster.create([gpu_pod("cold", gpus=8, cold_start_s=2.0)])
    seen = states(simcluster, "cold", created["metadata"]["resourceVersion"])
    running = next(state for state in seen if state["status"]["phase"] == "Running")
    assert not is_ready(running)
    assert running["status"]["podIP"].startswith("127.32.")
    ready = condition(wait_pod_ready(simcluster, "cold"), "Ready")
    # Kubernetes drops the fraction of both times: whole seconds between them stay.
    assert seconds(ready["lastTransitionTime"]) - seconds(running["status"]["startTime"]) >= 2.0


def test_changing_a_starting_pod_does_not_start_its_cold_start_anew(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(1))
    simcluster.create([gpu_pod("cold", gpus=1, cold_start_s=12.0)])
    before = wait_until(lambda: _promise(simcluster, "cold"), "a time to be Ready")
    promised = int(seconds(before.removeprefix("ready at ")))
    wait_until(lambda: time.time() > promised - 4.0, "most of the delay to be over")
    cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "5"}}}
    changed = simcluster.api.merge("/api/v1/namespaces/default/pods/cold", cost)
    assert condition(changed, "ContainersReady")["message"] == before
    ready = condition(wait_pod_ready(simcluster, "cold"), "Ready")["lastTransitionTime"]
    assert seconds(ready) - promised < 8.0  # a delay that had begun anew would end this much later


def _promise(cluster: SimCluster, name: str) -> str:
    message: str = condition(pod(cluster, name), "ContainersReady").get("message", "")
    return message


def test_a_deleted_pod_drains_as_long_as_its_annotation_says(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(1))
    simcluster.create([gpu_pod("leaving", gpus=1, drain_s=1.0)])
    version = wait_pod_ready(simcluster, "leaving")["metadata"]["resourceVersion"]
    simcluster.api.delete("/api/v1/namespaces/default/pods/leaving", grace_s=LONG_S)
    draining, *_ = states(simcluster, "leaving", version)
    assert draining["metadata"]["deletionGracePeriodSeconds"] == LONG_S
    assert is_ready(draining)
    assert not simcluster.pods()


def test_a_deleted_pod_without_that_annotation_drains_for_its_grace_period(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(1))
    leaving = gpu_pod("leaving", gpus=1)
    leaving["spec"]["terminationGracePeriodSeconds"] = LONG_S
    simcluster.create([leaving])
    version = wait_pod_ready(simcluster, "leaving")["metadata"]["resourceVersion"]
    simcluster.api.delete("/api/v1/namespaces/default/pods/leaving", grace_s=1)
    draining, *_ = states(simcluster, "leaving", version)
    assert draining["metadata"]["deletionGracePeriodSeconds"] == 1
    assert not simcluster.pods()


# Faults


def test_a_failed_node_is_not_ready_and_its_pods_are_replaced_elsewhere(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(3))
    simcluster.create([gpu_deployment("engine", replicas=1, gpus=8, drain_s=0.5)])
    (first,) = wait_until(lambda: [found for found in simcluster.pods() if is_ready(found)], "a Ready pod")
    lost = first["spec"]["nodeName"]
    simcluster.create([gpu_pod("starting", gpus=0, cold_start_s=4.0) | {"spec": _pinned(lost)}])
    wait_until(lambda: pod(simcluster, "starting")["status"]["phase"] == "Running", "a pod in its cold start")

    simcluster.fail_node(lost)
    node = simcluster.api.get(f"/api/v1/nodes/{lost}")
    assert condition(node, "Ready")["status"] == "Unknown"
    assert not is_ready(pod(simcluster, "starting"))  # its cold start is over, but its node is dead

    def replaced() -> list[dict[str, Any]]:
        pods = simcluster.pods(label_selector="app=engine")
        return [found for found in pods if is_ready(found) and found["metadata"]["uid"] != first["metadata"]["uid"]]

    (second,) = wait_until(replaced, "a replacement")
    assert second["spec"]["nodeName"] != lost
    assert "deletionTimestamp" in pod(simcluster, first["metadata"]["name"])["metadata"]  # nobody ends it

    simcluster.recover_node(lost)
    wait_until(lambda: len(simcluster.pods(label_selector="app=engine")) == 1, "the old pod to be gone")


def _pinned(node: str) -> dict[str, Any]:
    return {"nodeName": node, "containers": [{"name": "engine", "image": "example.com/engine"}]}


def test_a_deleted_node_is_gone(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(2))
    simcluster.delete_node("gpu-0")
    assert [node["metadata"]["name"] for node in simcluster.api.list_all("/api/v1/nodes")] == ["gpu-1"]
    with pytest.raises(LookupError, match="no node 'gpu-0'"):
        simcluster.delete_node("gpu-0")


@pytest.mark.parametrize(("component", "kill"), [("kube-apiserver", False), ("etcd", True)])
def test_a_restarted_component_keeps_objects_and_the_cluster_goes_on(
    simcluster: SimCluster, component: str, kill: bool
) -> None:
    simcluster.add_nodes(h100_nodes(1))
    simcluster.create([gpu_pod("before", gpus=1)])
    uid = wait_pod_ready(simcluster, "before")["metadata"]["uid"]
    simcluster.stop_component(component, kill=kill)
    assert component not in simcluster.pids()
    wait_until(lambda: not is_api_ready(simcluster.api), "the API server to say that it is not ready")
    simcluster.start_component(component)
    simcluster.wait_ready()
    assert pod(simcluster, "before")["metadata"]["uid"] == uid
    simcluster.create([gpu_pod("after", gpus=1)])
    wait_pod_ready(simcluster, "after")


@pytest.mark.parametrize("component", ["kube-scheduler", "kube-controller-manager", "kwok"])
def test_work_waits_for_a_stopped_controller_and_is_done_once_it_is_back(
    simcluster: SimCluster, component: str
) -> None:
    simcluster.add_nodes(h100_nodes(1))
    simcluster.stop_component(component)
    simcluster.create([gpu_deployment("engine", replicas=1, gpus=1)])
    assert not any(is_ready(found) for found in simcluster.pods())
    simcluster.start_component(component)
    wait_until(lambda: any(is_ready(found) for found in simcluster.pods()), "a Ready pod")


def test_reconnect_makes_the_controllers_go_on_at_once_after_an_outage(simcluster: SimCluster) -> None:
    simcluster.add_nodes(h100_nodes(1))
    before = simcluster.pids()
    simcluster.stop_component("etcd", kill=True)
    simcluster.stop_component("kube-apiserver", kill=True)
    simcluster.start_component("etcd")
    simcluster.start_component("kube-apiserver")
    simcluster.reconnect()
    simcluster.wait_ready()
    simcluster.create([gpu_deployment("engine", replicas=1, gpus=8)])
    wait_until(lambda: any(is_ready(found) for found in simcluster.pods()), "a Ready pod")
    after = simcluster.pids()
    assert {name for name in before if after[name] == before[name]} == {"prometheus"}


def test_unknown_components_are_refused_by_name(simcluster: SimCluster) -> None:
    with pytest.raises(ProcessError, match=r"no component 'kubelet' here; there are .*kube-apiserver"):
        simcluster.stop_component("kubelet")
    with pytest.raises(ProcessError, match="etcd runs already, as pid"):
        simcluster.start_component("etcd")


# Prometheus


@pytest.fixture
def exporter() -> Iterator[tuple[str, prometheus_client.Gauge]]:
    """A gauge, and the address that it is served at."""
    registry = prometheus_client.CollectorRegistry()
    gauge = prometheus_client.Gauge("sim_watts", "A number to scrape.", ["job"], registry=registry)
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    yield f"http://127.0.0.1:{server.server_port}/metrics", gauge
    server.shutdown()
    server.server_close()
    thread.join()


def test_prometheus_scrapes_what_it_is_told_and_keeps_it_over_a_restart(
    simcluster: SimCluster, exporter: tuple[str, prometheus_client.Gauge]
) -> None:
    url, gauge = exporter
    gauge.labels(job="engine").set(350)
    job = ScrapeJob(name="plain", url=url, labels={"rack": "r1"}, interval_s=0.2)
    honoured = ScrapeJob(name="honoured", url=url, honor_labels=True, interval_s=0.2)
    simcluster.set_scrape_jobs([job, honoured])
    monitoring = simcluster.monitoring
    (plain,) = monitoring.wait_for('sim_watts{job="plain"}')
    assert (plain["metric"]["exported_job"], plain["metric"]["rack"], plain["value"][1]) == ("engine", "r1", "350")
    monitoring.wait_for('sim_watts{job="engine"}')

    simcluster.stop_component("prometheus")
    gauge.labels(job="engine").set(700)
    simcluster.start_component("prometheus")
    monitoring.wait_for('sim_watts{job="plain"} == 700')
    assert monitoring.query('min_over_time(sim_watts{job="plain"}[5m])')[0]["value"][1] == "350"

    simcluster.set_scrape_jobs([])
    wait_until(lambda: not monitoring.query("sim_watts"), "the series of removed jobs to end")


# Identities


def test_a_service_account_can_do_what_it_was_given_and_no_more(simcluster: SimCluster) -> None:
    simcluster.create_namespace("team-a")
    api = KubeApi(simcluster.kubeconfig_for("team-a", "default"))
    with pytest.raises(ApiError, match="nodes is forbidden") as refusal:
        api.list_all("/api/v1/nodes")
    assert (refusal.value.status, refusal.value.reason) == (403, "Forbidden")
    simcluster.kubectl("create", "clusterrole", "reader", "--verb=list", "--resource=nodes")
    simcluster.kubectl(
        "create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=team-a:default"
    )
    wait_until(lambda: _may_list_nodes(api), "the new role to count")
    api.close()


def _may_list_nodes(api: KubeApi) -> bool:
    try:
        api.list_all("/api/v1/nodes")
    except ApiError:
        return False
    return True


def test_kubectl_and_helm_speak_to_the_cluster(simcluster: SimCluster) -> None:
    versions = json.loads(simcluster.kubectl("version", "--output=json"))
    assert versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"] == pinned_version()
    assert json.loads(simcluster.helm("list", "--output=json")) == []
    with pytest.raises(RuntimeError, match=r"kubectl get pods nothing failed: .*NotFound"):
        simcluster.kubectl("get", "pods", "nothing")


# Cleaning up

WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets, singular: widget}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
"""


def test_reset_leaves_only_what_was_there_at_the_start(simcluster: SimCluster) -> None:
    before = _names(simcluster)
    simcluster.add_nodes(h100_nodes(2))
    simcluster.create_namespace("team-a")
    simcluster.create([gpu_deployment("engine", replicas=3, gpus=1, namespace="team-a")])
    simcluster.create([gpu_deployment("engine", replicas=3, gpus=1)])
    simcluster.apply(WIDGETS)
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com"
    wait_until(lambda: condition(simcluster.api.get(path), "Established").get("status") == "True", "the new kind")
    widget = {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "stuck", "finalizers": ["example.com/x"]},
    }
    wait_until(lambda: simcluster.api.find("/apis/example.com/v1/widgets"), "the new kind to be served")
    simcluster.apply([widget])
    simcluster.stop_component("kube-scheduler")
    simcluster.reset()
    assert _names(simcluster) == before
    assert set(simcluster.components) == set(simcluster.pids())


def _names(cluster: SimCluster) -> dict[str, list[str]]:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    paths = ("/api/v1/namespaces", "/api/v1/nodes", "/api/v1/pods", "/apis/apps/v1/deployments", crds)
    return {path: sorted(found["metadata"]["name"] for found in cluster.api.list_all(path)) for path in paths}


def test_everything_listens_on_loopback_only(simcluster: SimCluster) -> None:
    listeners = simcluster.listening_addresses()
    serving = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "prometheus"}
    assert {listener.component for listener in listeners} == serving
    assert {listener.address for listener in listeners} == {"127.0.0.1"}


def test_closing_leaves_no_process_and_no_file() -> None:
    with SimCluster.start(ClusterConfig(audit=True, prometheus=False)) as cluster:
        pids, folder = cluster.pids(), cluster.folder
        assert set(pids) == set(cluster.components)
        assert all(is_alive(pid) for pid in pids.values())
        cluster.api.get("/api/v1/namespaces/default/configmaps")
        wait_until(lambda: [event for event in cluster.audit_events() if _lists_configmaps(event)], "an audit event")
        with pytest.raises(LookupError, match="no Prometheus"):
            cluster.set_scrape_jobs([])
    assert not [name for name, pid in pids.items() if is_alive(pid)]
    assert not folder.exists()


def _lists_configmaps(event: dict[str, Any]) -> bool:
    return (
        (event["user"]["username"], event["verb"], event["objectRef"]["resource"])
        == (
            "penstock-test-admin",
            "list",
            "configmaps",
        )
        if "objectRef" in event
        else False
    )


KILLED = """
import json, sys
from tests.simcluster.cluster import SimCluster
cluster = SimCluster.start()
print(json.dumps(cluster.pids()), flush=True)
sys.stdin.read()
"""


def test_a_killed_program_leaves_no_process(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"TMPDIR": str(tmp_path)}  # nobody is left to remove its folder
    command = [sys.executable, "-c", KILLED]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        pids: dict[str, int] = json.loads(program.stdout.readline())
        assert all(is_alive(pid) for pid in pids.values())
        program.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids.values()), f"the end of {pids}")


# Drivers


def test_an_existing_cluster_takes_nodes_but_refuses_to_be_stopped(
    fresh_cluster: SimCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_cluster.stop_component("kwok")  # the second one's own takes over
    monkeypatch.setenv("KUBECONFIG", str(fresh_cluster.kubeconfig))
    with SimCluster.start(driver="existing") as cluster:
        cluster.add_nodes(h100_nodes(1))
        cluster.create([gpu_pod("engine", gpus=1)])
        wait_pod_ready(cluster, "engine")
        assert set(cluster.components) == {"kwok", "prometheus"}
        with pytest.raises(UnsupportedError, match="the `existing` driver cannot stop etcd"):
            cluster.stop_component("etcd")
        cluster.reset()
        assert not cluster.api.list_all("/api/v1/nodes")
    assert fresh_cluster.api.get("/readyz")


def test_drivers_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(UnsupportedError, match="KUBECONFIG=''"):
        SimCluster.start(driver="existing")
    with pytest.raises(ValueError, match="'minikube' is not a driver; choose one of assets, kind, existing"):
        SimCluster.start(driver="minikube")


def test_kind_schedules_as_the_built_binaries_do() -> None:
    ours = yaml.safe_load((ROOT / "tests" / "simcluster" / "config" / "scheduler.yaml").read_text())
    kinds = yaml.safe_load((ROOT / "deploy" / "kind" / "scheduler.yaml").read_text())
    assert kinds["clientConnection"].pop("kubeconfig") == "/etc/kubernetes/scheduler.conf"
    assert kinds == ours


def test_a_wait_that_ends_in_vain_says_what_it_waited_for() -> None:
    with pytest.raises(DeadlineError, match=r"waited 0\.01 s for the moon"):
        wait_until(lambda: False, "the moon", timeout_s=0.01, interval_s=0.001)
