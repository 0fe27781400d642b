"""The operator on the simulated cluster, for tests: a small world of two racks, and operators that run in it.

As a program (``python -m tests.operator_harness KUBECONFIG``) it runs one operator in a process of its own, which a
test can stop, continue or kill; for each line on its standard input it prints what its cache holds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from controller.loop import Operator
from controller.records import DELETION_COST, MANAGED_BY, MANAGED_BY_LABEL
from controller.schema import API_VERSION
from controller.settings import Settings
from controller.turn import Turn
from solvers.fleet import ReplicaState
from tests.resource_cases import crd_bodies
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.kinds import install_kinds
from tests.simcluster.monitoring import ScrapeJob
from tests.simcluster.nodes import is_ready
from tests.simcluster.poll import PATIENCE_S, wait_until
from tests.world_bodies import MODEL, NAMESPACE, domains, fleet_policy, gpu_classes, gpu_nodes, profiles, served_model

OURS = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def settings(cluster: SimCluster, name: str = "one", **changes: Any) -> Settings:
    """Settings that turn quickly, and keep the Lease on a busy machine."""
    quick = Settings(
        kubeconfig=str(cluster.kubeconfig),
        identity=name,
        metrics_port=0,
        tick_s=0.5,
        decision_s=3.0,
        lease_duration_s=12.0,  # twenty renewals: a busy machine must not cost the Lease
        renew_deadline_s=8.0,
        retry_period_s=0.5,
        request_timeout_s=5.0,
        rate_window_s=5.0,
    )
    return replace(quick, **changes)


class World:
    """Two racks of L40S and one of H100 with their power domains, a policy, and services to add."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster

    def install(self, nodes: Mapping[str, int] | None = None, **policy: Any) -> World:
        """Bring in the kinds, the racks, the curves and the policy.

        Parameters
        ----------
        nodes : mapping of rack to int, optional
            L40S nodes of four GPUs in each rack.
        policy : fields of the FleetPolicy's spec
        """
        install_kinds(self.cluster.api, crd_bodies())
        for namespace in (NAMESPACE, "penstock-system"):
            self.cluster.create_namespace(namespace)
        racks = nodes or {"rack-1": 2, "rack-2": 2}
        self.cluster.add_nodes(gpu_nodes(racks))
        self.cluster.create([*gpu_classes(), *profiles(), *domains(racks), fleet_policy(**policy)])
        return self

    def serve(self, name: str = "chat", requests_per_s: float = 4.0, **changes: Any) -> None:
        """Create a ServedModel with a declared demand."""
        self.cluster.create([served_model(name, requests_per_s, **changes)])

    def demand(self, requests_per_s: float, name: str = "chat") -> None:
        """Change the declared demand."""
        declared = {"milliRequestsPerSecond": round(requests_per_s * 1e3)}
        self.merge("servedmodels", name, {"spec": {"demand": {"declared": declared}}}, namespace=NAMESPACE)

    def budget(self, domain: str, watts: int) -> None:
        """Change a power budget."""
        self.merge("powerdomains", domain, {"spec": {"budgetWatts": watts}})

    def merge(self, plural: str, name: str, patch: Json, namespace: str = "") -> None:
        place = f"/namespaces/{namespace}" if namespace else ""
        self.cluster.api.merge(f"/apis/{API_VERSION}{place}/{plural}/{name}", patch)

    def get(self, plural: str, name: str, namespace: str = "") -> Json:
        place = f"/namespaces/{namespace}" if namespace else ""
        return self.cluster.api.get(f"/apis/{API_VERSION}{place}/{plural}/{name}")

    def condition(self, kind: str, plural: str, name: str, namespace: str = "") -> tuple[str, str]:
        """Status and reason of a condition, empty before there is one."""
        found = self.get(plural, name, namespace).get("status", {}).get("conditions", ())
        return next(((c["status"], c["reason"]) for c in found if c["type"] == kind), ("", ""))

    def pods(self, model: str | None = None) -> list[Json]:
        """Our pods that are not leaving."""
        chosen = OURS + (f",penstock.dev/model={model}" if model else "")
        pods = self.cluster.pods(NAMESPACE, label_selector=chosen)
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def ready(self, model: str | None = None) -> set[str]:
        """Names of our pods that are Ready and not leaving."""
        return {pod["metadata"]["name"] for pod in self.pods(model) if is_ready(pod)}

    def deployments(self) -> dict[str, int]:
        """Replicas that each Deployment of ours asks for."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
        found = self.cluster.api.list_all(path, label_selector=OURS)
        return {each["metadata"]["name"]: each["spec"]["replicas"] for each in found}

    def replica_sets(self) -> list[str]:
        """The Deployment of each ReplicaSet there is: one that comes twice has had two templates."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"
        found = self.cluster.api.list_all(path)
        return sorted(owner["name"] for each in found for owner in each["metadata"]["ownerReferences"])

    def plans(self) -> list[Json]:
        """FleetPlans, oldest first."""
        plans = self.cluster.api.list_all(f"/apis/{API_VERSION}/fleetplans")
        return sorted(plans, key=lambda plan: (plan["spec"]["number"], plan["spec"]["part"]))


@contextmanager
def running(cluster: SimCluster, name: str = "one", **changes: Any) -> Iterator[Operator]:
    """Run an operator in this process."""
    logging.getLogger("kopf").setLevel(logging.CRITICAL)  # as ``penstock run`` does
    operator = Operator(settings(cluster, name, **changes))
    operator.start()
    try:
        yield operator
    finally:
        operator.stop()


def latest(operator: Operator) -> Turn:
    """The turn in force; fails when there is none."""
    turn = operator.latest()
    assert turn is not None, "there is no plan yet"
    return turn


def is_done(turn: Turn) -> bool:
    """Say whether the cluster is as the plan in force says, every replica Ready."""
    wanted = {(row.pool, row.location): row.replicas for row in turn.plan.placements}
    asked = {place: count for place, count in turn.snapshot.desired.items() if count}
    ready = sum(replica.state is ReplicaState.READY for replica in turn.snapshot.replicas)
    is_still = turn.number > 0 and not turn.report.actions
    return is_still and wanted == asked and ready == sum(wanted.values()) == len(turn.snapshot.replicas)


def wait_settled(
    operator: Operator, world: World, *, others: Collection[str] = (), timeout_s: float = PATIENCE_S, **demands: float
) -> Turn:
    """Wait until the plan in force is for ``demands`` and the cluster is as it says.

    ``others`` are models whose pods run and are not planned for.
    """

    def settled() -> Turn | None:
        turn = operator.latest()
        if turn is None or not is_done(turn):
            return None
        planned = {row.service.partition("/")[2]: row.demand_requests_per_s for row in turn.plan.services}
        if any(abs(planned.get(name, -1.0) - rate) > 1e-6 for name, rate in demands.items()):
            return None
        planned_pods = world.ready() - set().union(*(world.ready(name) for name in others))
        return turn if len(planned_pods) == len(turn.snapshot.replicas) else None

    def seen() -> str:
        turn = operator.latest()
        if turn is None:
            return "a settled plan; there is none at all"
        report = turn.report
        return "\n".join(
            (
                f"a settled plan for {demands}, saw plan {turn.number}:",
                *(f"  plan: {row.pool} at {row.location} x {row.replicas}" for row in turn.plan.placements),
                *(f"  service: {row}" for row in turn.plan.services),
                *(f"  asked: {place[0]} at {place[1]} x {n}" for place, n in turn.snapshot.desired.items()),
                *(f"  replica: {r.name} on {r.node} is {r.state}" for r in turn.snapshot.replicas),
                *(f"  fault: {fault}" for fault in report.sight.observation.faults),
                f"  holds {report.holds}, violations {report.violations}, solve fault {report.solve_fault!r}",
                f"  actions {report.actions}",
            )
        )

    found = wait_until(settled, seen, timeout_s=timeout_s)
    assert found is not None
    return found


class Gateway:
    """A gateway's metrics of one inference pool: requests of one size at a rate that a test sets."""

    def __init__(self, cluster: SimCluster, namespace: str, pool: str) -> None:
        self.requests_per_s = 0.0
        self._cluster = cluster
        registry, labels = CollectorRegistry(), ("namespace", "inference_pool", "model_name")
        names = (namespace, pool, MODEL)
        self._requests = Counter("inference_objective_request", "Requests", labels, registry=registry).labels(*names)
        self._sizes = [
            Histogram(f"inference_objective_{name}_tokens", "Sizes", labels, buckets=edges, registry=registry).labels(
                *names
            )
            for name, edges in (("input", (256, 1024, 4096)), ("output", (64, 256, 1024)))
        ]
        self._server, self._serving = start_http_server(0, addr="127.0.0.1", registry=registry)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._arrive, daemon=True)

    def is_known(self) -> bool:
        """Say whether Prometheus knows the rate."""
        found = self._cluster.monitoring.query("sum(rate(inference_objective_request_total[5s]))")
        return bool(found) and abs(float(found[0]["value"][1]) - self.requests_per_s) < 0.1 * self.requests_per_s

    def _arrive(self) -> None:
        last_s = time.monotonic()
        while not self._stop.wait(0.05):
            now_s = time.monotonic()
            arrived = self.requests_per_s * (now_s - last_s)
            last_s = now_s
            self._requests.inc(arrived)
            for sizes, size in zip(self._sizes, (800, 200), strict=True):
                for _ in range(max(1, round(arrived))):
                    sizes.observe(size)

    def __enter__(self) -> Gateway:
        self._thread.start()
        url = f"http://127.0.0.1:{self._server.server_port}/metrics"
        self._cluster.set_scrape_jobs([ScrapeJob(name="gateway", url=url, honor_labels=True, interval_s=0.5)])
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()


def pods_version(world: World) -> str:
    """Version of the namespace's pods now, to read later what happened since."""
    return str(world.cluster.api.get(f"{PODS}?limit=1")["metadata"]["resourceVersion"])


def costs_at_leaving(world: World, version: str, left: Collection[str]) -> dict[str, int]:
    """Deletion cost that each pod had when it began to leave, from a version on until all of ``left`` did."""
    costs: dict[str, int] = {}
    for event in world.cluster.api.watch(PODS, version, timeout_s=round(PATIENCE_S)):  # what is past comes too
        metadata = event["object"]["metadata"]
        if event["type"] == "DELETED" or metadata.get("deletionTimestamp"):
            costs.setdefault(metadata["name"], int((metadata.get("annotations") or {}).get(DELETION_COST, "0")))
        if costs.keys() >= set(left):
            break
    return costs


class OperatorProcess:
    """An operator in a process of its own."""

    def __init__(self, cluster: SimCluster, name: str, **changes: Any) -> None:
        known = asdict(settings(cluster, name, **changes))
        command = [sys.executable, "-m", "tests.operator_harness", json.dumps(known)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )

    def cache(self) -> dict[str, str]:
        """Ask for the pods in its cache: name → resource version."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("cache\n")
        self.process.stdin.flush()
        answer: dict[str, str] = json.loads(self.process.stdout.readline())
        return answer

    def pause(self) -> None:
        """Freeze every thread of it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """End it and wait for it."""
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> OperatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.resume()
            self.close()


def holds_for(claim: Callable[[], bool], seconds: float, interval_s: float = 0.1) -> bool:
    """Watch a claim for a while: False as soon as it fails."""
    until_s = time.monotonic() + seconds
    stop = threading.Event()
    while time.monotonic() < until_s:
        if not claim():
            return False
        stop.wait(interval_s)
    return True


def main() -> None:
    """Run an operator until the standard input ends or a signal comes; answer each line with the cache."""
    operator = Operator(Settings(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGTERM, lambda number, frame: os.close(sys.stdin.fileno()))
    operator.start()
    try:
        for _ in sys.stdin:
            pods = {key: pod.resource_version for key, pod in operator.cache.view().pods.items()}
            print(json.dumps(pods), flush=True)
    except (OSError, ValueError):
        print("asked to stop", file=sys.stderr)
    finally:
        operator.stop()


if __name__ == "__main__":
    main()
