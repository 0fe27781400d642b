"""Time the operator on many nodes and pods: to the first plan, from a change to the write, and its memory.

Run ``python -m tests.bench_operator --nodes 1000 --pods 10000``. The pods are other teams': they hold GPUs that the
operator must count but not touch. Times are what this machine took; compare them with each other, not with limits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from controller.render import render_engine_profile
from controller.schema import API_VERSION
from tests import fleets
from tests.bench_simcluster import MEBIBYTE, deployments, lap, nodes, wait_for_pods
from tests.operator_harness import CRDS
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import ClusterConfig
from tests.simcluster.nodes import RACK_LABEL
from tests.simcluster.poll import wait_until
from tests.simcluster.process import free_ports
from tests.world_bodies import body_of, class_of, fleet_policy, served_model

PRODUCTS = {"h100-sxm": "NVIDIA-H100-80GB-HBM3", "h200-sxm": "NVIDIA-H200", "l40s": "NVIDIA-L40S"}
MODEL_SIZES = {"org/chat-8b": 8.0, "org/chat-30b": 30.0, "org/chat-70b": 70.0}
PLANS = f"/apis/{API_VERSION}/fleetplans"


def world(racks: set[str], services: int, requests_per_s: float) -> list[Json]:
    """Classes, curves, one power domain for each rack, a policy, and so many services of three models."""
    classes = [
        class_of(replace(fleets.gpu_class(name), node_selector={"nvidia.com/gpu.product": product}))
        for name, product in PRODUCTS.items()
    ]
    curves = (
        fleets.profile(model, name, degree, billions)
        for model, billions in MODEL_SIZES.items()
        for name in PRODUCTS
        for degree in (2, 4, 8)
    )
    profiles = [render_engine_profile(profile) for profile in curves if profile.kv_capacity_tokens]
    inside = {"parents": ["site"], "topologyLabel": RACK_LABEL, "budgetWatts": 150_000}
    domains = [
        body_of("PowerDomain", "site", {"budgetWatts": 20_000_000}),
        *(body_of("PowerDomain", r, inside) for r in racks),
    ]
    models = list(MODEL_SIZES)
    served = [
        served_model(
            f"service-{number}",
            requests_per_s,
            model=models[number % len(models)],
            gpuClasses=[],
            replicas={"max": 2000},
            roles=["prefill", "decode", "mixed"],
        )
        for number in range(services)
    ]
    policy = fleet_policy(churn={"maxStartsPerTurn": 100}, solver={"timeLimitSeconds": 60})
    return [*classes, *profiles, *domains, policy, *served]


class Process:
    """``penstock run`` in a process of its own."""

    def __init__(self, cluster: SimCluster) -> None:
        (self.port,) = free_ports(1)
        flags = {"kubeconfig": cluster.kubeconfig, "identity": "bench", "metrics-port": self.port}
        command = [sys.executable, "-m", "controller", "run", *(f"--{name}={value}" for name, value in flags.items())]
        self._process = subprocess.Popen([*command, "--solver-deadline-s=300"], stderr=subprocess.DEVNULL)
        self._pool = urllib3.PoolManager(retries=False)

    def memory_mebibytes(self) -> dict[str, float]:
        """Resident memory of the operator and of its solver."""
        pids = {"operator": self._process.pid, **{f"child {pid}": pid for pid in children(self._process.pid)}}
        return {name: resident_bytes(pid) / MEBIBYTE for name, pid in pids.items()}

    def sample(self, name: str) -> float:
        """Sum of one series of /metrics, 0 before it answers."""
        try:
            text = self._pool.request("GET", f"http://127.0.0.1:{self.port}/metrics").data.decode()
        except urllib3.exceptions.HTTPError:
            return 0.0
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return sum(sample.value for sample in samples if sample.name == name)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._pool.clear()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024


def newest_plan(cluster: SimCluster) -> int:
    return max((plan["spec"]["number"] for plan in cluster.api.list_all(PLANS)), default=0)


def asked(cluster: SimCluster) -> int:
    found = cluster.api.list_all("/apis/apps/v1/namespaces/team-a/deployments")
    return sum(deployment["spec"]["replicas"] for deployment in found)


def until(claim: Callable[[], object], what: str, timeout_s: float = 900.0) -> None:
    with lap(what):
        wait_until(claim, what, timeout_s=timeout_s, interval_s=0.1)


def run(options: argparse.Namespace) -> None:
    with SimCluster.start(ClusterConfig(node_grace_s=40, prometheus=False)) as cluster:
        for path in sorted(CRDS.glob("*.yaml")):
            cluster.apply(path)
        made = nodes(options.nodes)
        with lap(f"{options.nodes} nodes and {options.pods} pods of others"):
            cluster.add_nodes(made, timeout_s=1200.0)
            cluster.create(deployments(options.pods, 50))
            wait_for_pods(cluster, options.pods, 1200.0)
        for namespace in ("team-a", "penstock-system"):
            cluster.create_namespace(namespace)
        cluster.create(world({node.rack for node in made}, options.services, options.requests_per_s))
        operator = Process(cluster)
        try:
            measure(cluster, operator)
        finally:
            operator.close()


def measure(cluster: SimCluster, operator: Process) -> None:
    until(lambda: newest_plan(cluster) == 1, "start of the process to the first FleetPlan")
    until(lambda: asked(cluster) > 0, "first FleetPlan to the first write of replicas")
    wanted = sum(pool["replicas"] for plan in cluster.api.list_all(PLANS) for pool in plan["spec"]["pools"])
    until(lambda: asked(cluster) >= wanted, f"first write to all {wanted} replicas asked for")
    report(operator)
    path = f"/apis/{API_VERSION}/namespaces/team-a/servedmodels/service-0"
    declared = {"spec": {"demand": {"declared": {"milliRequestsPerSecond": 60_000}}}}
    before = asked(cluster)
    cluster.api.merge(path, declared)
    until(lambda: asked(cluster) != before, "changed demand to the first write")
    report(operator)
    rack = next(iter(cluster.api.list_all("/apis/apps/v1/namespaces/team-a/deployments")))["metadata"]["labels"]
    domain = rack["penstock.dev/location"]
    before = asked(cluster)
    cluster.api.merge(f"/apis/{API_VERSION}/powerdomains/{domain}", {"spec": {"budgetWatts": 1}})
    until(lambda: asked(cluster) != before, "cut budget to the first write")
    print(f"turns: {operator.sample('penstock_turns_total'):.0f}, ", end="")
    turn_s = operator.sample("penstock_turn_seconds_sum") / operator.sample("penstock_turn_seconds_count")
    solves = max(1.0, operator.sample("penstock_solver_seconds_count"))
    print(f"mean turn {turn_s:.2f} s, mean solve {operator.sample('penstock_solver_seconds_sum') / solves:.1f} s")
    report(operator)


def report(operator: Process) -> None:
    time.sleep(2.0)
    print("  ".join(f"{name}: {used:.0f} MiB" for name, used in operator.memory_mebibytes().items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_operator", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=10)
    parser.add_argument("--requests-per-s", type=float, default=20.0, help="of each service")
    run(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
