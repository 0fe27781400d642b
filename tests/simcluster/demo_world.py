"""The demo's world: a simulated cluster with the sample fleet, the twin that plays its traffic, and the operator."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml

from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import SIMULATED_LABEL, ClusterConfig
from tests.simcluster.kinds import install_kinds
from tests.simcluster.monitoring import ScrapeJob, answers_ok
from tests.simcluster.nodes import COLD_START_ANNOTATION, go_duration, is_ready
from tests.simcluster.poll import wait_until
from tests.simcluster.process import Command, Listener, Supervisor, free_ports, minimal_environment

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "deploy" / "crds"
SAMPLE = ROOT / "deploy" / "samples" / "demo"
GROUP = "/apis/penstock.dev/v1alpha1"
SYSTEM_NAMESPACE = "penstock-system"
SERVED_NAMESPACE = "demo"
COLD_START_S = 120.0  # virtual; EngineProfile.coldStartSeconds of the sample
NOT_READY_TOLERATION_S = 300.0  # virtual; Kubernetes' own default


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One service's load: copies of a trace, shifted against each other until they make the rate."""

    service: str
    requests_per_s: float


class World:
    """Everything that runs during a demo, and the handles on it."""

    def __init__(self, cluster: SimCluster, supervisor: Supervisor, time_scale: float) -> None:
        self.cluster = cluster
        self.time_scale = time_scale
        self._supervisor = supervisor
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(60.0))
        self._twin_port, self._operator_port, self.grpc_port = free_ports(3)

    def start_twin(self, traffic: Sequence[Traffic], trace: Path | None) -> None:
        """Start gateway, engines and GPUs; the clock of the requests stands until ``control(start=True)``."""
        options = ["--kubeconfig", str(self.cluster.kubeconfig), "--port", str(self._twin_port)]
        options += ["--time-scale", f"{self.time_scale:g}"]
        for each in traffic:
            options += ["--traffic", f"{each.service}={trace or 'synthetic'}@{each.requests_per_s:g}"]
        self._start("twin", "tests.simcluster.twin", options)
        self._wait_answer("twin", f"{self._twin}/state")

    def open_gateway(self) -> None:
        """Let requests come: start the virtual clock, and scrape what the twin shows from now on.

        Before, there is no telemetry at all, as for a service that is new: the declared demand is placed first.
        """
        jobs = [("gateway", "/gateway/metrics"), ("engines", "/engines/metrics"), ("dcgm", "/dcgm/metrics")]
        self.control(start=True)
        self.cluster.set_scrape_jobs(
            ScrapeJob(name=name, url=self._twin + path, honor_labels=True, interval_s=0.5) for name, path in jobs
        )

    def start_operator(self, decision_s: float, tick_s: float) -> None:
        """Start ``penstock run`` as a process of its own, as in a pod."""
        options = ["run", "--kubeconfig", str(self.cluster.kubeconfig), "--namespace", SYSTEM_NAMESPACE]
        options += ["--prometheus-url", self.cluster.prometheus_url, "--time-scale", f"{self.time_scale:g}"]
        options += ["--rate-window-s", "3", "--decision-s", f"{decision_s:g}", "--tick-s", f"{tick_s:g}"]
        options += ["--metrics-port", str(self._operator_port), "--grpc-port", str(self.grpc_port)]
        self._start("operator", "controller", options)
        self._wait_answer("operator", f"{self.operator_url}/healthz")

    @property
    def operator_url(self) -> str:
        return f"http://127.0.0.1:{self._operator_port}"

    @property
    def _twin(self) -> str:
        return f"http://127.0.0.1:{self._twin_port}"

    def twin_state(self) -> dict[str, Any]:
        """Read what the twin knows of the world."""
        state: dict[str, Any] = self._pool.request("GET", f"{self._twin}/state").json()
        return state

    def control(self, **command: Any) -> None:
        """Tell the twin something; it answers 200 or the demo stops."""
        answer = self._pool.request("POST", f"{self._twin}/control", body=json.dumps(command).encode())
        if answer.status != 200:
            raise RuntimeError(f"the twin refused {command}: {answer.data.decode(errors='replace')}")

    def list_kind(self, plural: str) -> list[Json]:
        """List one of our kinds over all namespaces."""
        return self.cluster.api.list_all(f"{GROUP}/{plural}")

    def serving_pods(self) -> list[Json]:
        return self.cluster.pods(SERVED_NAMESPACE)

    def wait_served(self, timeout_s: float) -> None:
        """Wait until every ServedModel says that what the plan wants of it is Ready."""

        def late() -> list[str]:
            self.check()
            bodies = self.list_kind("servedmodels")
            return [body["metadata"]["name"] for body in bodies if not is_ready(body)]

        wait_until(lambda: not late(), lambda: f"{', '.join(late())} to be Ready", timeout_s=timeout_s, interval_s=0.5)

    def set_budget(self, domain: str, watts: int) -> None:
        """Change a PowerDomain's budget, as an administrator would."""
        self.cluster.api.merge(f"{GROUP}/powerdomains/{domain}", {"spec": {"budgetWatts": watts}})

    def check(self) -> None:
        """Raise when twin or operator ended by itself."""
        self._supervisor.check()

    def log_tail(self, name: str, lines: int = 20) -> str:
        return self._supervisor.log_tail(name, lines)

    def listeners(self) -> list[Listener]:
        """Every TCP socket on which the cluster, the twin or the operator accepts connections."""
        return [*self.cluster.listening_addresses(), *self._supervisor.listeners()]

    def pids(self) -> dict[str, int]:
        """Process ids of everything that the demo started."""
        return {**self.cluster.pids(), **self._supervisor.pids()}

    def conditions(self) -> str:
        """List every condition that is not True, to find out what holds the operator back."""
        rows = [
            f"{kind} {body['metadata']['name']}: {each['type']}={each['status']} {each['reason']}: {each['message']}"
            for kind in ("fleetpolicies", "servedmodels", "powerdomains", "gpuclasses")
            for body in self.list_kind(kind)
            for each in body.get("status", {}).get("conditions", ())
            if each["status"] != "True"
        ]
        return "\n".join(rows)

    def memory_bytes(self) -> Mapping[str, int]:
        return {**self.cluster.memory_bytes(), **self._supervisor.memory_bytes()}

    def cpu_s(self) -> Mapping[str, float]:
        return {**self.cluster.cpu_s(), **self._supervisor.cpu_s()}

    def _start(self, name: str, module: str, options: Sequence[str]) -> None:
        environment = minimal_environment(self.cluster.folder, (("PYTHONPATH", str(ROOT)),))
        arguments = (sys.executable, "-m", module, *options)
        self._supervisor.start(Command(name=name, arguments=arguments, environment=environment))

    def _wait_answer(self, name: str, url: str) -> None:
        def answers() -> bool:
            self.check()
            return answers_ok(self._pool, url)

        wait_until(answers, f"the {name} to answer at {url}")


@contextmanager
def start_world(time_scale: float, cold_start_s: float = COLD_START_S) -> Iterator[World]:
    """Bring up the cluster with CRDs and the sample fleet in it; everything is stopped at the end."""
    toleration_s = round(NOT_READY_TOLERATION_S / time_scale)
    with SimCluster.start(ClusterConfig(node_grace_s=4, not_ready_toleration_s=toleration_s)) as cluster:
        supervisor = Supervisor(cluster.folder / "demo-logs")
        try:
            _install_sample(cluster, cold_start_s / time_scale)
            yield World(cluster, supervisor, time_scale)
        finally:
            supervisor.close()
            _keep_logs(supervisor)


def _keep_logs(supervisor: Supervisor) -> None:
    """Copy logs to ``$PENSTOCK_DEMO_LOGS`` when that is set, to look at after the cluster's folder is gone."""
    target = os.environ.get("PENSTOCK_DEMO_LOGS")
    if target:
        Path(target).mkdir(parents=True, exist_ok=True)
        for log in supervisor.logs_dir.glob("*.log"):
            (Path(target) / log.name).write_bytes(log.read_bytes())


def _install_sample(cluster: SimCluster, cold_start_s: float) -> None:
    install_kinds(cluster.api, (yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))))
    for namespace in (SYSTEM_NAMESPACE, SERVED_NAMESPACE):
        cluster.create_namespace(namespace)
    objects = sample_objects()
    nodes = [_simulated(obj) for obj in objects if obj["kind"] == "Node"]
    cluster.create(nodes)
    cluster.wait_ready()
    cluster.apply(_with_cold_start(obj, cold_start_s) for obj in objects if obj["kind"] != "Node")


def sample_objects() -> list[Json]:
    """Read the sample fleet, lists flattened."""
    found: list[Json] = []
    for path in sorted(SAMPLE.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found += document["items"] if document and document["kind"] == "List" else [document] if document else []
    return found


def _simulated(node: Json) -> Json:
    metadata = node["metadata"]
    labels = {**metadata.get("labels", {}), SIMULATED_LABEL: "true", "kubernetes.io/hostname": metadata["name"]}
    addresses = [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": metadata["name"]}]
    return {
        **node,
        "metadata": {**metadata, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {**node["status"], "addresses": addresses},
    }


def _with_cold_start(obj: Json, cold_start_s: float) -> Json:
    if obj["kind"] != "ServedModel":
        return obj
    copied: Json = json.loads(json.dumps(obj))
    metadata = copied["spec"]["template"].setdefault("metadata", {})
    metadata.setdefault("annotations", {})[COLD_START_ANNOTATION] = go_duration(cold_start_s)
    return copied
