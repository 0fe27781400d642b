"""What was observed becomes a problem; what is wrong becomes a fault that names it, and the rest goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from controller.inventory import Records
from controller.manifests import load_folder
from controller.observe import build_problem
from controller.readings import LoadSample, NodeReading, Readings, ServiceReading
from controller.specs import PLAN_FEASIBLE, READY, TELEMETRY_FRESH, Fault, specs_of_manifests
from solvers.engine import Role
from solvers.fleet import ReplicaState
from solvers.ledger import reserved_now_watts
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.rollout import next_step
from solvers.workload import Demand, SizeBucket
from tests.observed import (
    DECLARED,
    NOW_S,
    deployment,
    domain,
    fault_texts,
    gpu_class,
    node,
    observe,
    our_labels,
    pod,
    policy,
    profile,
    served,
    sound,
)

SAMPLES = Path(__file__).parent.parent / "deploy" / "samples"
KNOWN = Demand(
    service="demo/chat",
    requests_per_s=3.0,
    mix=(SizeBucket(prompt_tokens=500, output_tokens=100, weight_ratio=1.0),),
    source="Gateway",
)


def only_fault(*bodies: object, **more: object) -> Fault:
    found = observe(*bodies, **more).faults  # type: ignore[arg-type]
    assert len(found) == 1, found
    return found[0]


def others(kind: str) -> list[dict[str, object]]:
    return [one for one in sound() if one["kind"] != kind]


def test_a_sound_cluster_has_no_faults_and_one_planned_service() -> None:
    seen = observe()
    assert seen.faults == ()
    assert [service.name for service in seen.problem.services] == ["demo/chat"]
    assert seen.problem.nodes[0].domains == ("r1", "site")
    assert seen.snapshot.nodes == seen.problem.nodes
    assert seen.tier_ranks == {"demo/chat": 1}


@pytest.mark.parametrize("sample", ["demo", "minimal"])
def test_the_samples_are_sound_and_plannable(sample: str) -> None:
    manifests = load_folder(SAMPLES / sample)
    records = Records(nodes=manifests.nodes)
    seen = build_problem(specs_of_manifests(manifests), records, Readings(taken_at_s=0.0), 0.0, is_advice=True)
    assert fault_texts_of(seen.faults) == []
    assert len(seen.problem.services) == len(manifests.served_models)
    assert len(seen.problem.nodes) == len(manifests.nodes)
    assert seen.problem.running == {}


def fault_texts_of(faults: tuple[Fault, ...]) -> list[str]:
    return [str(fault) for fault in faults]


def test_two_fleet_policies_the_one_named_default_counts() -> None:
    fault = only_fault(policy("another"), *sound())
    assert str(fault) == (
        "FleetPolicy/another metadata.name: is a second FleetPolicy and has no effect; FleetPolicy/default counts; "
        "remove it"
    )


def test_no_fleet_policy_only_advises() -> None:
    seen = observe(*others("FleetPolicy"))
    assert "FleetPolicy/default: there is none" in fault_texts(seen)[0]
    assert seen.policy.modes.replicas == "Advise"


def test_a_broken_fleet_policy_pauses() -> None:
    seen = observe(policy(churn={"maxStartsPerTurn": 0}), *others("FleetPolicy"))
    assert seen.policy.is_paused
    assert "FleetPolicy/default spec.churn.maxStartsPerTurn" in fault_texts(seen)[0]


def test_an_unknown_gpu_class_is_named_and_the_known_ones_still_serve() -> None:
    seen = observe(*others("ServedModel"), served(gpuClasses=["h100", "h9000"]))
    assert fault_texts(seen) == [
        "ServedModel/demo/chat spec.gpuClasses: there is no GpuClass h9000; create it or use one of h100"
    ]
    assert seen.problem.services[0].gpu_classes == ("h100",)


def test_a_service_that_allows_only_unknown_classes_keeps_what_runs_and_the_other_goes_on() -> None:
    seen = observe(*others("ServedModel"), served(gpuClasses=["h9000"]), served("code"))
    assert [service.name for service in seen.problem.services] == ["demo/code"]
    assert seen.pinned == {"demo/chat": "it allows no GpuClass that exists"}


def test_an_unknown_tier_and_a_namespace_that_may_not_use_one() -> None:
    tiers = [{"name": "critical", "namespaces": ["prod"]}, {"name": "standard"}]
    bodies = [policy(tiers=tiers), *others("FleetPolicy"), served("a", tier="gold"), served("b", tier="critical")]
    texts = fault_texts(observe(*bodies))
    assert "ServedModel/demo/a spec.tier: FleetPolicy/default has no tier gold; use one of critical, standard" in texts
    assert any(t.startswith("ServedModel/demo/b spec.tier: namespace demo may not use tier critical") for t in texts)


def test_a_model_without_a_profile_says_how_to_make_one() -> None:
    fault = only_fault(*others("ServedModel"), served(model="mystery"))
    assert (fault.subject, fault.field) == ("ServedModel/demo/chat", "spec.model")
    assert "penstock profile --model mystery" in fault.remedy


def test_configurations_without_a_profile_are_told_from_no_profile_at_all() -> None:
    fault = only_fault(*others("ServedModel"), served(engineConfigs=["tp8"]))
    assert "only h100/tp1, h100/tp2" in fault.problem


def test_an_impossible_slo_names_the_numbers() -> None:
    slow = served(slos=[{"metric": "TTFT", "percentile": 99, "milliseconds": 5}])
    seen = observe(*others("ServedModel"), slow, served("code"))
    fault = seen.faults[0]
    assert (fault.subject, fault.field, fault.condition) == ("ServedModel/demo/chat", "spec.slos", PLAN_FEASIBLE)
    assert "no profile fits" in fault.problem
    assert "h100" in fault.problem
    assert seen.pinned == {"demo/chat": "no profile keeps its SLOs"}
    assert [service.name for service in seen.problem.services] == ["demo/code"]


def test_split_roles_need_both_a_prefill_and_a_decode_that_fit() -> None:
    """ITL out of reach for decode alone: the prefill side fits, and that is not enough."""
    slos = [{"metric": "ITL", "percentile": 95, "milliseconds": 5}]
    fault = only_fault(*others("ServedModel"), served(slos=slos, roles=["prefill", "decode"]))
    assert "decode" in fault.problem
    assert "prefill:" not in fault.problem


def test_two_profiles_for_the_same_thing() -> None:
    fault = only_fault(*sound(), profile(name="zz-again"))
    assert fault.subject == "EngineProfile/zz-again"
    assert "is also in EngineProfile/llama-h100-tp1" in fault.problem


def test_a_profile_of_an_unknown_gpu_class_is_a_fault_of_the_profile() -> None:
    fault = only_fault(*sound(), profile(on="h9000", name="lost"))
    assert (fault.subject, fault.field, fault.condition) == ("EngineProfile/lost", "spec.gpuClass", READY)
    assert "there is no GpuClass h9000" in fault.problem
    assert fault.remedy == "create it or use one of h100"


def test_a_folder_with_a_profile_of_an_unknown_gpu_class_says_so(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([*sound(), profile(on="h9000", name="lost")]))
    assert [fault.subject for fault in specs_of_manifests(load_folder(tmp_path)).faults] == ["EngineProfile/lost"]


def test_a_profile_of_a_refused_gpu_class_is_the_fault_of_the_class() -> None:
    broken = gpu_class("b200", "B200", max_cap_watts=100)
    fault = only_fault(*sound(), broken, profile(on="b200"))
    assert fault.subject == "GpuClass/b200"


def test_a_node_with_an_unknown_gpu_and_one_with_two_classes() -> None:
    bodies = (*sound(), gpu_class("b200", "B200"), gpu_class("b200-too", "B200"))
    nodes = (node("n1"), node("odd", product="X9"), node("twice", product="B200"), node("cpu", gpus=0, product=""))
    seen = observe(*bodies, nodes=nodes)
    left_out = "the node and its watts are left out"
    assert fault_texts(seen) == [
        f"Node/odd metadata.labels: match no GpuClass; {left_out}; create a GpuClass whose nodeSelector fits",
        f"Node/twice metadata.labels: match GpuClass b200 and b200-too; {left_out}; make their nodeSelectors exclusive",
    ]
    assert [one.name for one in seen.problem.nodes] == ["n1"]


def test_a_cyclic_power_graph_takes_its_nodes_out_of_use_and_says_so() -> None:
    bodies = [*others("PowerDomain"), domain("r1", ("row",)), domain("row", ("r1",), is_rack=False), domain("r2")]
    seen = observe(*bodies, nodes=(node("n1"), node("n2", "r2")))
    assert [one.gpus_usable for one in seen.problem.nodes] == [0, 8]
    assert [fault.subject for fault in seen.faults] == ["PowerDomain/r1", "PowerDomain/row"]
    assert "cycle r1 → row → r1" in seen.faults[0].problem


def test_replicas_of_a_service_that_cannot_be_planned_keep_gpus_and_watts_and_are_left_alone() -> None:
    bodies = [*others("ServedModel"), served(tier="gold"), served("code")]
    pods = [pod("p1"), pod("p2", is_ready=False)]
    seen = observe(*bodies, pods=pods, deployments=[deployment(2)])
    assert seen.pinned == {"demo/chat": "its ServedModel is refused"}
    assert seen.snapshot.replicas == ()
    assert seen.snapshot.desired == {}
    assert seen.problem.nodes[0].gpus_usable == 4
    assert seen.problem.nodes[0].held_watts == 4 * 750.0


def test_replicas_of_a_removed_service_keep_running_too() -> None:
    seen = observe(*others("ServedModel"), served("code"), pods=[pod("p1")], deployments=[deployment(1)])
    assert seen.problem.nodes[0].gpus_usable == 6
    assert seen.snapshot.desired == {}


def test_running_counts_follow_what_is_asked_for_less_what_is_lost() -> None:
    nodes = (node("n1"), node("dead", is_ready=False))
    pods = [pod("p1"), pod("p2", at=None), pod("gone", at="dead"), pod("off", is_leaving=True)]
    seen = observe(nodes=nodes, pods=pods, deployments=[deployment(3)])
    assert list(seen.problem.running.values()) == [2]
    assert list(seen.snapshot.desired.values()) == [3]
    states = {replica.name: replica.state for replica in seen.snapshot.replicas}
    assert states == {
        "p1": ReplicaState.READY,
        "p2": ReplicaState.PENDING,
        "gone": ReplicaState.LOST,
        "off": ReplicaState.LEAVING,
    }


def test_observed_services_are_planned_only_where_nothing_acts() -> None:
    watched = served("watched", management="Observe")
    assert len(observe(*others("ServedModel"), watched).problem.services) == 1
    acting = observe(*sound(), watched)
    assert [service.name for service in acting.problem.services] == ["demo/chat"]
    assert "demo/watched" in acting.pinned
    assert len(observe(*sound(), watched, is_advice=True).problem.services) == 2


def test_mode_off_keeps_what_runs() -> None:
    seen = observe(*others("ServedModel"), served(modes={"replicas": "Off"}))
    assert seen.pinned == {"demo/chat": "its replicas are in mode Off"}
    assert seen.problem.services == ()


def reading(**fields: object) -> Readings:
    values = {"service": "demo/chat", "source": "Gateway", "requests_per_s": 6.0, "as_of_s": NOW_S - 5.0, **fields}
    return Readings(taken_at_s=NOW_S, services={"demo/chat": ServiceReading(**values)})  # type: ignore[arg-type]


def by_gateway(**declared: object) -> list[dict[str, object]]:
    demand = {"source": "Gateway", **({"declared": DECLARED} if not declared else {})}
    return [*others("ServedModel"), served(demand=demand)]


def test_stale_telemetry_keeps_the_last_demand() -> None:
    old = reading(as_of_s=NOW_S - 300.0)
    seen = observe(*by_gateway(), readings=old, pods=[pod("p1")], previous_demands={"demo/chat": KNOWN})
    assert seen.problem.demands == {"demo/chat": KNOWN}
    assert seen.is_stale
    assert [(f.subject, f.field, f.condition) for f in seen.faults] == [
        ("ServedModel/demo/chat", "spec.demand", TELEMETRY_FRESH)
    ]
    assert "300 s old" in seen.faults[0].problem


def test_silent_telemetry_over_a_service_that_runs_pins_it_replica_by_replica() -> None:
    seen = observe(*by_gateway(), pods=[pod("p1")], deployments=[deployment(1)])
    assert "what runs stays as it is" in seen.pinned["demo/chat"]
    assert seen.problem.services == ()
    assert seen.snapshot.desired == {}
    assert seen.is_stale


def test_a_new_service_starts_with_its_declared_demand_until_telemetry_speaks() -> None:
    seen = observe(*by_gateway())
    assert seen.problem.demands["demo/chat"].requests_per_s == pytest.approx(4.4), "ten percent of headroom by default"
    assert not seen.is_stale
    assert [fault.condition for fault in seen.faults] == [TELEMETRY_FRESH]


def test_advice_plans_the_declared_demand_and_finds_no_fault_with_silence() -> None:
    seen = observe(*by_gateway(), is_advice=True)
    assert seen.problem.demands["demo/chat"].requests_per_s == 4.0
    assert seen.faults == ()


def test_fresh_telemetry_of_one_service_is_enough_not_to_be_stale() -> None:
    history = (LoadSample(time_s=NOW_S - 5.0, requests_per_s=6.0, window_s=60.0),)
    seen = observe(*by_gateway(), served("code", demand={"source": "Gateway"}), readings=reading(history=history))
    assert not seen.is_stale
    assert seen.problem.demands["demo/chat"].requests_per_s > 6.0
    assert "declare a demand" in fault_texts(seen)[0]


def test_only_fresh_meters_count() -> None:
    meters = {
        "n1": NodeReading(node="n1", draw_watts=900.0, as_of_s=NOW_S - 1.0),
        "n2": NodeReading(node="n2", draw_watts=800.0, as_of_s=NOW_S - 900.0),
    }
    seen = observe(readings=Readings(taken_at_s=NOW_S, nodes=meters))
    assert seen.node_draw_watts == {"n1": 900.0}


def settle(steps: int = 20) -> tuple[Plan, list[str]]:
    """Plan and roll out over records alone: every asked-for pod becomes Ready on the node with room."""
    labels_of: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    pods: list[object] = []
    for _ in range(steps):
        deployments = [deployment(count, labels_of[name], name) for name, count in counts.items()]
        seen = observe(pods=pods, deployments=deployments, nodes=(node("n1"), node("n2")))
        plan = make_plan(seen.problem)
        actions = next_step(seen.snapshot, plan, seen.problem.policy, tier_ranks=seen.tier_ranks)
        if not actions:
            return plan, [replica.name for replica in seen.snapshot.replicas]
        for action in actions:
            name = str(action.pool)
            labels_of[name] = our_labels(
                role=str(action.pool.role), config=action.pool.config.label, location=action.location
            )
            counts[name] = action.to_replicas
        pods = [
            pod(
                f"{name}-{i}",
                "n1",
                labels_of[name],
                requests={"nvidia.com/gpu": int(labels_of[name]["penstock.dev/engine-config"][2])},
            )
            for name, count in counts.items()
            for i in range(count)
        ]
    raise AssertionError("the rollout does not settle")


def test_observe_plan_and_rollout_settle_together() -> None:
    plan, running = settle()
    assert len(running) == sum(placement.replicas for placement in plan.placements) > 0
    assert not plan.is_short


def test_the_same_observation_twice_is_equal() -> None:
    pods = [pod("p1"), pod("p2", at=None), pod("f1", labels={})]
    first, second = (observe(pods=order, deployments=[deployment(2)]) for order in (pods, pods[::-1]))
    assert first == second


def test_the_ledger_of_an_observation_never_loses_a_lost_node() -> None:
    pods = [pod("p1"), pod("p2")]
    before = reserved_now_watts(observe(pods=pods, deployments=[deployment(2)]).snapshot)
    dead = (node("n1", is_ready=False),)
    after = reserved_now_watts(observe(pods=pods, deployments=[deployment(2)], nodes=dead).snapshot)
    assert after["r1"] >= before["r1"] > 0
    off = (node("n1", is_ready=False, is_out_of_service=True), node("n2"))
    assert reserved_now_watts(observe(pods=pods, deployments=[deployment(0)], nodes=off).snapshot)["r1"] == 8 * 75.0


def test_roles_and_conditions_default() -> None:
    assert Fault(subject="Node/x", field="", problem="is odd").condition == READY
    assert observe().problem.services[0].roles == tuple(Role)
