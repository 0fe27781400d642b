"""Bring up many simulated nodes and pods, and print how long it took and what it cost.

Run ``python -m tests.bench_simcluster --nodes 1000 --pods 10000``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import ClusterConfig
from tests.simcluster.nodes import GpuNode, gpu_deployment, is_ready
from tests.simcluster.poll import wait_until

PRODUCTS = (("NVIDIA-H100-80GB-HBM3", 81_559), ("NVIDIA-H200", 143_771), ("NVIDIA-L40S", 46_068))
GPUS_PER_NODE = 16
NODES_PER_RACK = 8
MEBIBYTE = 1 << 20


def nodes(count: int) -> list[GpuNode]:
    """Return nodes of three GPU products in turn, eight to a rack, ten racks to a row."""
    return [
        GpuNode(
            name=f"gpu-{index:05}",
            gpu_product=PRODUCTS[index % len(PRODUCTS)][0],
            memory_mebibytes=PRODUCTS[index % len(PRODUCTS)][1],
            gpus=GPUS_PER_NODE,
            rack=f"r{index // NODES_PER_RACK:03}",
            row=f"row{index // (10 * NODES_PER_RACK):02}",
        )
        for index in range(count)
    ]


def deployments(pods: int, count: int) -> list[Json]:
    """Return Deployments of one-GPU pods, as equal in size as can be."""
    sizes = [pods // count + (index < pods % count) for index in range(count)]
    return [gpu_deployment(f"engine-{index:03}", replicas=size, gpus=1) for index, size in enumerate(sizes)]


@contextmanager
def lap(what: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    print(f"{what:<44} {time.monotonic() - started_s:8.1f} s", flush=True)


def ready_pods(cluster: SimCluster) -> int:
    """Count Ready pods from what the Deployments say: cheaper for the API server than a list of the pods."""
    found = cluster.api.list_all("/apis/apps/v1/namespaces/default/deployments")
    return sum(deployment["status"].get("readyReplicas", 0) for deployment in found)


def wait_for_pods(cluster: SimCluster, pods: int, timeout_s: float) -> None:
    def what() -> str:
        return f"{pods} pods to be Ready; {ready_pods(cluster)} are"

    wait_until(lambda: ready_pods(cluster) == pods, what, timeout_s=timeout_s, interval_s=1.0)


def print_usage(cluster: SimCluster, title: str) -> None:
    print(f"\n{title:<28}{'memory MiB':>12}{'CPU s':>10}")
    memory_bytes, cpu_s = cluster.memory_bytes(), cluster.cpu_s()
    for name, used_bytes in memory_bytes.items():
        print(f"  {name:<26}{used_bytes / MEBIBYTE:>12.0f}{cpu_s[name]:>10.1f}")
    print(f"  {'total':<26}{sum(memory_bytes.values()) / MEBIBYTE:>12.0f}{sum(cpu_s.values()):>10.1f}\n", flush=True)


def time_call(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the median wall time of a call, in seconds."""
    times_s = []
    for _ in range(repeats):
        started_s = time.monotonic()
        call()
        times_s.append(time.monotonic() - started_s)
    return sorted(times_s)[repeats // 2]


def run(options: argparse.Namespace) -> None:
    started_s = time.monotonic()
    config = ClusterConfig(node_grace_s=options.node_grace_s)
    with lap("start of the control plane"):
        cluster = SimCluster.start(config)
    with cluster:
        with lap(f"{options.nodes} nodes created and Ready"):
            cluster.add_nodes(nodes(options.nodes), timeout_s=options.timeout_s)
        with lap(f"{options.pods} pods of {options.deployments} Deployments Ready"):
            cluster.create(deployments(options.pods, options.deployments))
            wait_for_pods(cluster, options.pods, options.timeout_s)
        print(f"{'total':<44} {time.monotonic() - started_s:8.1f} s")
        print_usage(cluster, "when all were Ready")
        print(f"{'list of all pods (median of 5)':<44} {time_call(cluster.pods):8.2f} s")
        before_s = cluster.cpu_s()
        with lap("idle"):
            time.sleep(options.idle_s)
        idle_cores = (sum(cluster.cpu_s().values()) - sum(before_s.values())) / options.idle_s
        print(f"{'load at rest':<44} {idle_cores:8.2f} cores")
        print_usage(cluster, "after that")
        late = [node for node in cluster.api.list_all("/api/v1/nodes") if not is_ready(node)]
        print(f"{'nodes not Ready at the end':<44} {len(late):8}")
        with lap("end of every process"):
            cluster.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_simcluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10_000, help=f"at most {GPUS_PER_NODE} for each node")
    parser.add_argument("--deployments", type=int, default=50)
    parser.add_argument("--node-grace-s", type=int, default=40, help="as Kubernetes: NotReady after this long")
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long to measure the load at rest")
    parser.add_argument("--timeout-s", type=float, default=1200.0)
    options = parser.parse_args(arguments)
    if options.pods > GPUS_PER_NODE * options.nodes:
        parser.error(f"--pods {options.pods} exceeds {GPUS_PER_NODE} GPUs on each of --nodes {options.nodes}")
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
