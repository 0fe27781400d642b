"""What a user would see: the operator on a real control plane, one story a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from controller.loop import Operator
from controller.turn import Turn
from solvers.fleet import ReplicaState
from tests.operator_harness import (
    Gateway,
    OperatorProcess,
    World,
    costs_at_leaving,
    holds_for,
    is_done,
    latest,
    pods_version,
    running,
    wait_settled,
)
from tests.processes import child_pids
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.nodes import condition
from tests.simcluster.poll import PATIENCE_S, wait_until
from tests.world_bodies import NAMESPACE, autoscaler, power_domain


@pytest.fixture
def world(simcluster: SimCluster) -> World:
    return World(simcluster)


def names(world: World) -> set[str]:
    """Our pods that are not leaving, Ready or not."""
    return {pod["metadata"]["name"] for pod in world.pods()}


def holds(operator: Operator) -> str:
    """Why the plan is not carried out now."""
    return "; ".join(latest(operator).report.holds)


def serving_nodes(operator: Operator) -> set[str | None]:
    replicas = latest(operator).snapshot.replicas
    return {replica.node for replica in replicas if replica.state is not ReplicaState.LOST}


def settled_off(operator: Operator, node: str) -> bool:
    """Say whether what is planned runs, none of it on the node."""
    turn = latest(operator)
    ready = [replica for replica in turn.snapshot.replicas if replica.state is ReplicaState.READY]
    wanted = sum(row.replicas for row in turn.plan.placements)
    return len(ready) >= wanted > 0 and node not in {replica.node for replica in ready} and not turn.report.violations


def served(operator: Operator) -> list[str]:
    return [row.service for row in latest(operator).plan.services]


def number_of(turn: Turn | None) -> int:
    return turn.number if turn is not None else 0


def holder(world: World) -> str:
    """Who holds the Lease."""
    lease = world.cluster.api.find("/apis/coordination.k8s.io/v1/namespaces/penstock-system/leases/penstock")
    name: str = (lease or {"spec": {}})["spec"].get("holderIdentity", "")
    return name


def says(world: World, name: str, condition: str) -> str:
    """Reason of a service's condition."""
    return world.condition(condition, "servedmodels", name, NAMESPACE)[1]


def of_chat(world: World, condition: str) -> tuple[str, str]:
    """Status and reason of a condition of the service that most tests have."""
    return world.condition(condition, "servedmodels", "chat", NAMESPACE)


def fresh(world: World) -> tuple[str, str]:
    """What the service says of its telemetry."""
    return of_chat(world, "TelemetryFresh")


def counts(world: World, name: str) -> str:
    """Ready and wanted mixed replicas, as the service's status has them."""
    found: str = world.get("servedmodels", name, NAMESPACE).get("status", {}).get("mixed", "")
    return found


def events(world: World, reason: str) -> list[str]:
    """Messages of the events with a reason."""
    found = world.cluster.api.list_all(f"/api/v1/namespaces/{NAMESPACE}/events")
    return [event["message"] for event in found if event["reason"] == reason]


def is_complete(deployment: Json) -> bool:
    """Say whether the Deployment's controller has seen its last change carried out, and so writes no more."""
    wanted, status = deployment["spec"]["replicas"], deployment["status"]
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    counted = (status.get(f"{what}Replicas", 0) for what in ("ready", "updated", "available"))
    is_told = not wanted or condition(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
    return is_seen and is_told and set(counted) == {wanted}


def _deployments(world: World) -> list[Json]:
    return world.cluster.api.list_all(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")


def test_first_placement_and_a_second_turn_that_does_nothing(world: World) -> None:
    world.install().serve(requests_per_s=6.0)
    with running(world.cluster) as operator:
        turn = wait_settled(operator, world, chat=6.0)
        assert not turn.plan.is_short
        assert len(world.ready()) == sum(row.replicas for row in turn.plan.placements) >= 2
        wait_until(lambda: all(map(is_complete, _deployments(world))), "the last word of their own controller")
        versions = {d["metadata"]["name"]: d["metadata"]["resourceVersion"] for d in _deployments(world)}
        wait_until(lambda: latest(operator).problem is not turn.problem, "another decision")
        decided_s = latest(operator).taken_at_s
        wait_until(lambda: latest(operator).taken_at_s > decided_s + 1.0, "turns after it")
        assert {d["metadata"]["name"]: d["metadata"]["resourceVersion"] for d in _deployments(world)} == versions
        assert [plan["spec"]["number"] for plan in world.plans()] == [1]
        assert latest(operator).report.actions == ()
        replicas = len(world.ready())
        wait_until(
            lambda: counts(world, "chat") == f"{replicas}/{replicas}", lambda: f"counts: {counts(world, 'chat')}"
        )
        wait_until(lambda: of_chat(world, "Ready") == ("True", "Serving"), "Ready to be said")
        wait_until(lambda: of_chat(world, "Applied") == ("True", "Applied"), "Applied to be said")
    assert world.get("fleetpolicies", "default")["status"]["activePlan"] == "plan-000001"


def test_a_surge_is_met_without_a_new_replica_set_and_the_right_pods_leave_after_it(world: World) -> None:
    world.install().serve(requests_per_s=4.0)
    with running(world.cluster) as operator:
        small = wait_settled(operator, world, chat=4.0)
        world.demand(24.0)
        large = wait_settled(operator, world, chat=24.0)
        assert len(large.snapshot.replicas) > len(small.snapshot.replicas)
        crowd, version = world.ready(), pods_version(world)
        world.demand(8.0)
        wait_settled(operator, world, chat=8.0)
        left = crowd - world.ready()
    assert len(world.ready()) < len(crowd)
    costs = costs_at_leaving(world, version, left)
    assert left <= costs.keys()
    assert all(cost < 0 for cost in costs.values()), f"who leaves is marked first: {costs}"
    assert world.replica_sets() == sorted(world.deployments()), "a change of counts must not change a template"


def test_a_cut_budget_is_kept_at_once_and_the_service_moves(world: World) -> None:
    world.install().serve(requests_per_s=12.0)
    with running(world.cluster) as operator:
        turn = wait_settled(operator, world, chat=12.0)
        rack = max(turn.snapshot.desired, key=lambda place: turn.snapshot.desired[place])[1]
        other = {"rack-1": "rack-2", "rack-2": "rack-1"}[rack]
        idle_watts = 8 * 35
        world.budget(rack, idle_watts + 500)  # one replica's extra is 395 W
        wait_until(
            lambda: (
                world.get("powerdomains", rack)["status"].get("reservedWatts", 9e9) <= idle_watts + 500
                and world.get("powerdomains", rack)["status"]["observedGeneration"] == 2
            ),
            f"{rack} to be inside its budget",
        )
        turn = wait_settled(operator, world, chat=12.0)
        within = ("True", "WithinBudget")
        wait_until(lambda: world.condition("WithinPowerBudget", "powerdomains", rack) == within, "that to be said")
    by_rack: dict[str, int] = {"rack-1": 0, "rack-2": 0}
    for row in turn.plan.placements:
        by_rack[row.location] += row.replicas * row.pool.config.gpus
    assert by_rack[rack] <= 1
    assert by_rack[other] > 1
    assert not turn.plan.is_short


def test_replicas_of_a_lost_node_are_placed_elsewhere_and_its_watts_stay_reserved(world: World) -> None:
    world.install({"rack-1": 1, "rack-2": 2}).serve(requests_per_s=6.0)
    with running(world.cluster) as operator:
        turn = wait_settled(operator, world, chat=6.0)
        node = next(replica.node for replica in turn.snapshot.replicas if replica.node)
        world.cluster.fail_node(node)
        wait_until(lambda: node not in serving_nodes(operator), "the loss to be seen")
        wait_until(lambda: settled_off(operator, node), "replicas elsewhere")
        after = latest(operator)
        assert not after.plan.is_short
        assert next(n for n in after.snapshot.nodes if n.name == node).gpus_usable == 0
        world.cluster.delete_node(node)
        wait_until(lambda: node not in {n.name for n in latest(operator).snapshot.nodes}, "the node to be forgotten")
        wait_settled(operator, world, chat=6.0)


def test_nothing_moves_while_no_node_is_heard_of(world: World) -> None:
    world.install({"rack-1": 1, "rack-2": 1}).serve(requests_per_s=4.0)
    with running(world.cluster) as operator:
        wait_settled(operator, world, chat=4.0)
        nodes = [node.name for node in latest(operator).snapshot.nodes]
        for node in nodes:
            world.cluster.fail_node(node, wait=False)
        wait_until(lambda: "none of the 2 managed nodes is Ready" in holds(operator), "the silence to be told")
        pods = names(world)
        assert pods
        assert holds_for(lambda: names(world) == pods, 3.0)
        for node in nodes:
            world.cluster.recover_node(node)
        wait_until(lambda: not holds(operator), "the nodes to be heard of again")
        wait_settled(operator, world, chat=4.0)


def test_a_model_is_added_and_removed_and_its_pods_keep_serving(world: World) -> None:
    world.install().serve(requests_per_s=4.0)
    with running(world.cluster) as operator:
        wait_settled(operator, world, chat=4.0)
        world.serve("code", 4.0)
        world.serve("passing", 2.0, deletionPolicy="Delete")
        wait_settled(operator, world, chat=4.0, code=4.0, passing=2.0)
        orphans, others = world.ready("code"), world.ready("chat")
        world.cluster.api.delete(f"/apis/penstock.dev/v1alpha1/namespaces/{NAMESPACE}/servedmodels/code")
        world.cluster.api.delete(f"/apis/penstock.dev/v1alpha1/namespaces/{NAMESPACE}/servedmodels/passing")
        # The garbage collector looks for new kinds every 30 s.
        wait_until(lambda: not world.pods("passing"), "pods of a model with deletionPolicy Delete to go")
        wait_until(
            lambda: [s.service for s in latest(operator).plan.services] == ["team-a/chat"], "a plan without them"
        )
        wait_settled(operator, world, chat=4.0, others=("code",))
        assert world.ready("code") == orphans
        assert world.ready("chat") == others


def test_a_rollout_goes_on_where_a_killed_operator_left_it(world: World) -> None:
    world.install(churn={"maxStartsPerTurn": 1}).serve(requests_per_s=20.0, cold_start_s=2.0)
    with OperatorProcess(world.cluster, "one", tick_s=2.0) as first:  # slow, to be killed before its end
        wait_until(lambda: len(world.pods()) >= 2, "the rollout to be under way")
        first.kill()
    begun, recorded = {pod["metadata"]["name"] for pod in world.pods()}, world.plans()
    assert len(recorded) == 1
    with running(world.cluster, "two") as operator:
        turn = wait_settled(operator, world, chat=20.0)
        assert len(turn.snapshot.replicas) > len(begun)
        assert begun <= world.ready(), "what had begun was not begun again"
        assert [plan["spec"]["number"] for plan in world.plans()] == [1], "the same decision is not recorded twice"


def test_of_two_operators_one_leads_and_the_other_takes_over(world: World) -> None:
    world.install().serve(requests_per_s=4.0)
    with OperatorProcess(world.cluster, "first") as first:
        wait_until(lambda: holder(world) == "first", "the first to lead")
        with running(world.cluster, "second") as standby:
            wait_until(lambda: number_of(standby.latest()) == 1, "the standby to read the recorded plan")
            assert not standby.elector.is_leader
            wait_until(lambda: not standby.unready_because(), standby.unready_because)
            first.kill()
            wait_until(lambda: standby.elector.is_leader, "the standby to take over")
            world.demand(12.0)
            wait_settled(standby, world, chat=12.0)
    assert holder(world) == "", "a leader that stops gives the Lease back"


def test_uninstalling_and_removing_the_kinds_leaves_pods_serving(world: World) -> None:
    world.install().serve(requests_per_s=6.0)
    with running(world.cluster) as operator:
        wait_settled(operator, world, chat=6.0)
        serving = world.ready()
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for crd in world.cluster.api.list_all(crds):
            world.cluster.api.delete(
                f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
            )
        operator.cache.suspect_all()
        wait_until(lambda: "not installed" in "".join(latest(operator).report.holds), "a word on it")
        assert holds_for(lambda: world.ready() == serving, 2.0)
    assert holds_for(lambda: world.ready() == serving, 1.0)


def test_no_ghosts_after_a_pause_in_which_pods_went_and_the_api_server_restarted(world: World) -> None:
    world.install().serve(requests_per_s=12.0)
    with OperatorProcess(world.cluster, "one", relist_s=3600.0) as operator:
        wait_until(lambda: len(world.ready()) >= 3 and len(operator.cache()) >= 3, "the first placement")
        operator.pause()
        paused = {pod["metadata"]["name"] for pod in world.pods()}
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
        for name in world.deployments():
            world.cluster.api.delete(f"{path}/{name}")
        wait_until(lambda: not world.cluster.pods(NAMESPACE), "the pods to go while nobody looks")
        world.cluster.stop_component("kube-apiserver")
        world.cluster.start_component("kube-apiserver")
        operator.resume()

        def equal() -> bool:
            there = {f"{NAMESPACE}/{pod['metadata']['name']}" for pod in world.cluster.pods(NAMESPACE)}
            return bool(there) and set(operator.cache()) == there and not there & {f"{NAMESPACE}/{p}" for p in paused}

        wait_until(equal, lambda: f"no ghosts: cache {sorted(operator.cache())}")


def test_an_autoscaler_that_takes_the_replicas_keeps_them(world: World) -> None:
    world.install().serve(requests_per_s=4.0)
    with running(world.cluster) as operator:
        turn = wait_settled(operator, world, chat=4.0)
        (name, count), *_ = world.deployments().items()
        world.cluster.create([autoscaler(name, count + 1)])
        wait_until(lambda: world.deployments()[name] == count + 1, "the autoscaler to act")
        wait_until(
            lambda: of_chat(world, "Applied") == ("False", "ReplicasOwnedByOther"),
            "the operator to yield and say so",
        )
        assert holds_for(lambda: world.deployments()[name] == count + 1, 2.0)
        said = wait_until(lambda: events(world, "ReplicasOwnedByOther"), "an event")
        assert "kube-controller-manager owns the replicas" in said[0]
        assert turn.number == 1


def test_without_prometheus_nothing_changes_and_the_conditions_say_so(world: World) -> None:
    with Gateway(world.cluster, NAMESPACE, "chat") as gateway:
        world.install()
        gateway.requests_per_s = 6.0
        wait_until(gateway.is_known, "the rate to be known to Prometheus")
        world.serve(demand={"source": "Gateway", "inferencePool": "chat"})
        with running(world.cluster, prometheus_url=world.cluster.prometheus_url) as operator:
            wait_until(lambda: world.ready(), "a placement for what was measured")
            wait_until(lambda: is_done(latest(operator)), "the placement to be done")
            demand = latest(operator).problem.demands["team-a/chat"]
            assert demand.source.startswith("Gateway")
            assert 3.0 < demand.requests_per_s < 12.0
            world.cluster.stop_component("prometheus")
            wait_until(lambda: fresh(world) == ("False", "Held"), lambda: f"stale telemetry to be said; {fresh(world)}")
            asked, number = world.deployments(), latest(operator).number
            gateway.requests_per_s = 60.0
            assert holds_for(lambda: world.deployments() == asked and latest(operator).number == number, 4.0)
            world.cluster.start_component("prometheus")
            wait_until(lambda: fresh(world)[0] == "True", "fresh telemetry to be said")
            wait_until(lambda: sum(world.deployments().values()) > sum(asked.values()), "the surge to be met")


def test_an_api_server_that_was_down_is_caught_up_with(world: World) -> None:
    world.install().serve(requests_per_s=4.0)
    with running(world.cluster) as operator:
        wait_settled(operator, world, chat=4.0)
        serving = world.ready()
        world.cluster.stop_component("kube-apiserver")
        wait_until(lambda: not operator.elector.is_leader, "the leader to stop by itself")
        assert holds_for(lambda: not operator.elector.is_leader, 2.0)
        world.cluster.start_component("kube-apiserver")
        wait_until(lambda: operator.elector.is_leader, "the leader to lead again")
        assert holds_for(lambda: names(world) == serving, 2.0)  # some are not Ready until their nodes are heard of
        wait_until(lambda: world.ready() == serving, "the same pods to be Ready")
        world.demand(12.0)
        wait_settled(operator, world, chat=12.0)


def test_wrong_objects_are_named_and_the_others_served(world: World) -> None:
    world.install().serve(requests_per_s=4.0)
    world.serve("unknown-class", gpuClasses=["tpu-v9"])
    world.serve("impossible", slos=[{"metric": "ITL", "percentile": 95, "milliseconds": 1}])
    for name, parent in (("loop-a", "loop-b"), ("loop-b", "loop-a")):
        world.cluster.create([power_domain(name, parents=[parent])])
    with running(world.cluster) as operator:
        wait_settled(operator, world, chat=4.0)
        wait_until(lambda: says(world, "unknown-class", "Ready") == "Invalid", "the unknown class to be named")
        wait_until(lambda: says(world, "impossible", "PlanFeasible") == "NothingFits", "the impossible SLO to be named")
        wait_until(lambda: says(world, "chat", "Ready") == "Serving", "the sound service to serve")
        wait_until(lambda: world.condition("Ready", "powerdomains", "loop-a")[1] == "Invalid", "the cycle to be named")
        messages = " ".join(c["message"] for c in world.get("powerdomains", "loop-a")["status"]["conditions"])
        assert "loop-a" in messages
        assert "loop-b" in messages


def test_the_command_runs_leads_and_stops_cleanly_on_sigterm(world: World, tmp_path: Path) -> None:
    world.install().serve(requests_per_s=4.0)
    flags = {"kubeconfig": world.cluster.kubeconfig, "identity": "command", "metrics-port": 0, "tick-s": 0.5}
    command = [sys.executable, "-m", "controller", "run", *(f"--{name}={value}" for name, value in flags.items())]
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            # Ready means that all that is planned runs, so that no pod comes while the command stops.
            wait_until(lambda: says(world, "chat", "Ready") == "Serving", log.read_text)
            serving = world.ready()
            assert holder(world) == "command"
            children = child_pids(process.pid)
            assert children, "the solver has a process of its own"
            process.terminate()
            assert process.wait(timeout=PATIENCE_S) == 0, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
    assert holder(world) == "", "the Lease is given back"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its children to be gone")
    assert world.ready() == serving
