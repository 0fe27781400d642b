"""Time the operator on many nodes and pods: to the first plan, from a change to the write, memory, load at rest.

Run ``python -m tests.bench_operator --nodes 1000 --pods 10000``, or ``--small`` for a fifth of that. The pods are
other teams': they hold GPUs that the operator must count but not touch. Times are what this machine took, and the
simulated cluster shares it; compare them with each other, not with limits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from controller.records import LOCATION_LABEL, MODEL_LABEL
from controller.render import render_engine_profile
from controller.schema import API_VERSION
from controller.tables import Cell, render_table
from tests import fleets
from tests.bench_simcluster import MEBIBYTE, deployments, lap, nodes, wait_for_pods
from tests.list_costs import compare
from tests.processes import child_pids, cpu_s, resident_bytes
from tests.resource_cases import crd_bodies
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import ClusterConfig
from tests.simcluster.demo_world import ROOT
from tests.simcluster.kinds import install_kinds
from tests.simcluster.nodes import RACK_LABEL
from tests.simcluster.poll import DeadlineError, wait_until
from tests.simcluster.process import Command, Supervisor, free_ports, minimal_environment
from tests.world_bodies import NAMESPACE, body_of, class_of, fleet_policy, served_model

PRODUCTS = {"h100-sxm": "NVIDIA-H100-80GB-HBM3", "h200-sxm": "NVIDIA-H200", "l40s": "NVIDIA-L40S"}
MODEL_SIZES = {"org/chat-8b": 8.0, "org/chat-30b": 30.0, "org/chat-70b": 70.0}
PLANS = f"/apis/{API_VERSION}/fleetplans"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
SURGED = "service-0"
RAISED_RATIO = 3.0
PATIENCE_S = 900.0
QUIET_S = 10.0


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
        *(body_of("PowerDomain", r, inside) for r in sorted(racks)),
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


class OperatorProcess:
    """``penstock run`` in a process of its own, with its defaults."""

    def __init__(self, cluster: SimCluster) -> None:
        self.folder = cluster.folder / "operator"
        self._supervisor = Supervisor(self.folder)
        self._pool = urllib3.PoolManager(retries=False)
        (self._port,) = free_ports(1)
        flags = {"kubeconfig": cluster.kubeconfig, "identity": "bench", "metrics-port": self._port}
        arguments = [*(f"--{name}={value}" for name, value in flags.items()), "--solver-deadline-s=300"]
        environment = minimal_environment(cluster.folder, (("PYTHONPATH", str(ROOT)),))
        command = (sys.executable, "-m", "controller", "run", *arguments)
        self._supervisor.start(Command(name="operator", arguments=command, environment=environment))

    def check(self) -> None:
        """Raise when it ended by itself."""
        self._supervisor.check()

    def pids(self) -> dict[str, int]:
        """The operator's own process, and the solver's where one runs."""
        (pid,) = self._supervisor.pids().values()
        solver = max(child_pids(pid), key=resident_bytes, default=None)  # beside it only multiprocessing's own helper
        return {"operator": pid} | ({} if solver is None else {"solver": solver})

    def series(self) -> dict[str, float]:
        """Every series of /metrics, summed over its labels; empty before it answers."""
        try:
            text = self._pool.request("GET", f"http://127.0.0.1:{self._port}/metrics").data.decode()
        except urllib3.exceptions.HTTPError:
            return {}
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums

    def close(self) -> None:
        self._supervisor.close()
        self._pool.clear()


def version_of(cluster: SimCluster, path: str) -> str:
    """The collection's version now, to watch from."""
    return str(cluster.api.get(f"{path}?limit=1")["metadata"]["resourceVersion"])


def wait_event(
    cluster: SimCluster, operator: OperatorProcess, path: str, version: str, claim: Callable[[Json], bool]
) -> Json:
    """Watch a collection until one of its objects fits, and tell how it goes meanwhile."""
    began_s = time.monotonic()
    while (waited_s := time.monotonic() - began_s) < PATIENCE_S:
        for event in cluster.api.watch(path, version, timeout_s=15):
            found: Json = event["object"]
            version = found["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK" and claim(found):
                return found
        operator.check()
        say(f"  {time.monotonic() - began_s:.0f} s: {progress(operator.series())}")
    raise DeadlineError(f"waited {waited_s:.0f} s for a change of {path}")


def say(text: str) -> None:
    print(text, flush=True)


def progress(series: Mapping[str, float]) -> str:
    names = {"turns": "penstock_turns_total", "plan": "penstock_plan_number", "solves": "penstock_solver_solves_total"}
    known = {name: series.get(key, 0.0) for name, key in names.items()}
    return ", ".join(f"{name} {value:.0f}" for name, value in known.items())


def replicas(cluster: SimCluster) -> dict[str, tuple[int, int]]:
    """Replicas of our Deployments: asked for and Ready, by name."""
    found = cluster.api.list_all(DEPLOYMENTS)
    return {d["metadata"]["name"]: (d["spec"]["replicas"], d["status"].get("readyReplicas", 0)) for d in found}


def settle(cluster: SimCluster, operator: OperatorProcess, what: str) -> None:
    """Wait until nothing is asked for and nothing becomes Ready any more, and print how that stands to the plan."""
    quiet_since_s, last = time.monotonic(), dict[str, tuple[int, int]]()

    def is_settled() -> bool:
        nonlocal quiet_since_s, last
        operator.check()
        now = replicas(cluster)
        if now != last:
            quiet_since_s, last = time.monotonic(), now
        return time.monotonic() - quiet_since_s >= QUIET_S

    with lap(f"{what} (with {QUIET_S:.0f} s of quiet)"):
        wait_until(is_settled, what, timeout_s=PATIENCE_S, interval_s=0.5)
    asked, ready = (sum(each[place] for each in last.values()) for place in (0, 1))
    series = operator.series()
    say(f"  plan {series['penstock_plan_number']:.0f}: {series['penstock_desired_replicas']:.0f} replicas wanted, "
        f"{asked} asked for, {ready} Ready")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Bring up cluster and pods, then measure one operator on it."""
    with SimCluster.start(ClusterConfig(node_grace_s=40, prometheus=False)) as cluster:
        install_kinds(cluster.api, crd_bodies())
        made = nodes(options.nodes)
        with lap(f"{options.nodes} nodes and {options.pods} pods of others"):
            cluster.add_nodes(made, timeout_s=1200.0)
            cluster.create(deployments(options.pods, 50))
            wait_for_pods(cluster, options.pods, 1200.0)
        for namespace in (NAMESPACE, "penstock-system"):
            cluster.create_namespace(namespace)
        cluster.create(world({node.rack for node in made}, options.services, options.requests_per_s))
        print_lists(compare(cluster.kubeconfig))
        with operating(cluster) as operator:
            measure(cluster, operator, options)


@contextmanager
def operating(cluster: SimCluster) -> Iterator[OperatorProcess]:
    operator = OperatorProcess(cluster)
    try:
        yield operator
    except DeadlineError:
        say((operator.folder / "operator.log").read_text()[-4000:])
        raise
    finally:
        operator.close()


def measure(cluster: SimCluster, operator: OperatorProcess, options: argparse.Namespace) -> None:
    plans, writes = (version_of(cluster, path) for path in (PLANS, DEPLOYMENTS))
    with lap("start of the process to the first FleetPlan"):
        wait_event(cluster, operator, PLANS, plans, lambda plan: True)
    with lap("first FleetPlan to the first replicas asked for"):
        wait_event(cluster, operator, DEPLOYMENTS, writes, lambda found: bool(found["spec"]["replicas"]))
    settle(cluster, operator, "from there to all replicas Ready")
    report(operator, "after the first placement")
    time_raise(cluster, operator, options.requests_per_s)
    settle(cluster, operator, "from there to all replicas Ready")
    time_cut(cluster, operator)
    settle(cluster, operator, "from there to all replicas Ready")
    rest(operator, options.idle_s)
    report(operator, "at the end")


def time_raise(cluster: SimCluster, operator: OperatorProcess, requests_per_s: float) -> None:
    """Raise one service's demand; the write that follows changes one of its Deployments."""
    asked = {name: count for name, (count, _) in replicas(cluster).items()}

    def follows(found: Json) -> bool:
        count, known = int(found["spec"]["replicas"]), asked.get(found["metadata"]["name"], 0)
        return bool(found["metadata"]["labels"].get(MODEL_LABEL) == SURGED and count != known)

    version = version_of(cluster, DEPLOYMENTS)
    declared = {"milliRequestsPerSecond": round(RAISED_RATIO * requests_per_s * 1e3)}
    with lap(f"{RAISED_RATIO:g} times the demand for {SURGED} to the write"):
        cluster.api.merge(
            f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/servedmodels/{SURGED}",
            {"spec": {"demand": {"declared": declared}}},
        )
        wait_event(cluster, operator, DEPLOYMENTS, version, follows)


def time_cut(cluster: SimCluster, operator: OperatorProcess) -> None:
    """Cut a rack's budget below what is reserved; the write that follows lowers one of its Deployments."""
    asked = {name: count for name, (count, _) in replicas(cluster).items()}
    found = cluster.api.list_all(DEPLOYMENTS)
    rack = max(found, key=lambda each: int(each["spec"]["replicas"]))["metadata"]["labels"][LOCATION_LABEL]
    newest = max(cluster.api.list_all(PLANS), key=lambda plan: int(plan["spec"]["number"]))
    reserved = next(row["reservedWatts"] for row in newest["spec"]["domains"] if row["domain"] == rack)

    def follows(found: Json) -> bool:
        count, known = int(found["spec"]["replicas"]), asked.get(found["metadata"]["name"], 0)
        return bool(found["metadata"]["labels"].get(LOCATION_LABEL) == rack and count < known)

    version, budget = version_of(cluster, DEPLOYMENTS), round(0.95 * reserved)
    with lap(f"budget of {rack} cut to {budget} W of {reserved} W reserved to the write"):
        cluster.api.merge(f"/apis/{API_VERSION}/powerdomains/{rack}", {"spec": {"budgetWatts": budget}})
        wait_event(cluster, operator, DEPLOYMENTS, version, follows)


def rest(operator: OperatorProcess, seconds: float) -> None:
    """Let nothing happen for a while, and print what the operator uses meanwhile."""
    pids, before = operator.pids(), operator.series()
    began_s = {name: cpu_s(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    after = operator.series()
    for name, pid in pids.items():
        tell(f"processor of the {name} at rest", (cpu_s(pid) - began_s[name]) / seconds, "cores", digits=3)
    turns = after["penstock_turn_seconds_count"] - before["penstock_turn_seconds_count"]
    took_s = after["penstock_turn_seconds_sum"] - before["penstock_turn_seconds_sum"]
    tell(f"mean of {turns:.0f} turns at rest", 1e3 * took_s / max(1.0, turns), "ms")


def tell(what: str, value: float, unit: str, digits: int = 0) -> None:
    say(f"{what:<44} {value:8.{digits}f} {unit}")


def report(operator: OperatorProcess, when: str) -> None:
    """Print memory, and what turns and solves took since the start."""
    for name, pid in operator.pids().items():
        tell(f"memory of the {name} {when}", resident_bytes(pid) / MEBIBYTE, "MiB")
    series = operator.series()
    for what, name in (("turns", "penstock_turn_seconds"), ("solves", "penstock_solver_seconds")):
        count = series.get(f"{name}_count", 0.0)
        tell(f"mean of {count:.0f} {what} so far", 1e3 * series.get(f"{name}_sum", 0.0) / max(1.0, count), "ms")


def print_lists(costs: Mapping[str, Mapping[str, float]]) -> None:
    """Print what a list of all nodes and pods costs by each method, and how many times ours that is."""
    ours, columns = costs["reduced"], ("wall_s", "cpu_s", "kept_mebibytes", "peak_mebibytes")
    headers = ("LIST OF NODES AND PODS", "WALL S", "CPU S", "KEPT MIB", "PEAK MIB", "CPU ÷ OURS", "KEPT ÷ OURS")
    rows: list[tuple[Cell, ...]] = [
        (method, *(cost[name] for name in columns), *(cost[name] / ours[name] for name in columns[1:3]))
        for method, cost in costs.items()
    ]
    say("\n" + render_table(headers, rows) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_operator", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10_000, help="of other teams, one GPU each")
    parser.add_argument("--services", type=int, default=10)
    parser.add_argument("--requests-per-s", type=float, default=20.0, help="of each service")
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long to measure the load at rest")
    parser.add_argument("--small", action="store_true", help="200 nodes and 2,000 pods")
    options = parser.parse_args(arguments)
    if options.small:
        options.nodes, options.pods = 200, 2000
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
