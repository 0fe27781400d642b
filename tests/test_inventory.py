"""Nodes and pods as the cache holds them → usable GPUs and held watts, on the safe side."""

from __future__ import annotations

import pytest

from controller.inventory import LANDING_S
from controller.observe import Observation
from controller.readings import NodeReading, Readings
from controller.records import LOCATION_LABEL, MANAGED_BY, MANAGED_BY_LABEL, ROLE_LABEL
from solvers.engine import EngineConfig, Role
from solvers.fleet import ANYWHERE, Node
from solvers.ledger import reserved_now_watts
from tests.observed import GPU, NOW_S, deployment, fault_texts, node, observe, our_labels, pod

EXTRA = 700 + 125 - 75.0  # one GPU at its cap above idle


def first(seen: Observation) -> Node:
    return seen.problem.nodes[0]


def foreign(name: str, at: str | None = "n1", gpus: int = 3, **fields: object) -> object:
    return pod(name, at, {}, requests={GPU: gpus}, **fields)


def test_foreign_pods_are_charged_in_full() -> None:
    one = first(observe(pods=[foreign("f1"), pod("p1")]))
    assert (one.gpus_total, one.gpus_usable, one.held_watts) == (8, 5, 3 * EXTRA)


def test_a_pod_with_our_labels_that_somebody_else_manages_is_foreign() -> None:
    theirs = [our_labels() | {MANAGED_BY_LABEL: "Helm"}, {MANAGED_BY_LABEL: MANAGED_BY}]
    seen = observe(pods=[pod(f"p{i}", labels=labels) for i, labels in enumerate(theirs)])
    assert seen.snapshot.replicas == ()
    assert (first(seen).gpus_usable, first(seen).held_watts) == (4, 4 * EXTRA)


def test_a_young_foreign_pod_is_charged_to_the_fullest_node_where_it_fits() -> None:
    nodes = (node("n1"), node("n2"), node("n3", is_cordoned=True))
    pods = [foreign("f1", "n1", 4), foreign("new", None, 4, created_at_s=NOW_S - 5.0)]
    usable = {one.name: one.gpus_usable for one in observe(nodes=nodes, pods=pods).problem.nodes}
    assert usable == {"n1": 0, "n2": 8, "n3": 0}


def test_an_old_foreign_pod_without_a_node_fits_nowhere_and_is_not_charged() -> None:
    old = foreign("old", None, 8, created_at_s=NOW_S - LANDING_S - 1.0)
    assert first(observe(pods=[old])).gpus_usable == 8


def test_what_a_service_that_is_not_planned_asks_for_is_charged_before_it_is_seen() -> None:
    gone = our_labels("removed", config="tp2")
    nodes = (node("n1"), node("n2", "r2"))
    seen = observe(nodes=nodes, deployments=[deployment(3, gone)], pods=[pod("p1", labels=gone)])
    assert {one.name: one.gpus_usable for one in seen.problem.nodes} == {"n1": 2, "n2": 8}
    assert reserved_now_watts(seen.snapshot)["r1"] == 8 * 75 + 6 * EXTRA
    assert seen.snapshot.desired == {}
    more = observe(nodes=nodes, deployments=[deployment(9, gone)], pods=[pod("p1", labels=gone)])
    assert {one.name: one.gpus_usable for one in more.problem.nodes} == {"n1": 0, "n2": 8}, "no more fit there"


def test_an_old_pending_replica_of_a_service_that_is_not_planned_stays_charged() -> None:
    gone = our_labels("removed", config="tp2")
    old = pod("p1", None, gone, created_at_s=NOW_S - LANDING_S - 1.0)
    assert first(observe(pods=[old], deployments=[deployment(1, gone)])).gpus_usable == 6


def test_a_lost_replica_of_a_service_that_is_not_planned_may_be_replaced_while_it_draws() -> None:
    gone = our_labels("removed", config="tp2")
    nodes = (node("n1"), node("dead", is_ready=False))
    seen = observe(nodes=nodes, pods=[pod("p1", "dead", gone)], deployments=[deployment(1, gone)])
    assert {one.name: one.held_watts for one in seen.problem.nodes} == {"n1": 2 * EXTRA, "dead": 2 * EXTRA}


def test_finished_and_vanished_pods_hold_nothing() -> None:
    pods = [foreign("done", phase="Succeeded"), foreign("ghost", "no-such-node"), pod("p", "no-such-node")]
    seen = observe(pods=pods)
    assert first(seen).gpus_usable == 8
    assert seen.snapshot.replicas == ()


def test_a_degraded_node_draws_for_all_its_gpus_and_offers_the_healthy_ones() -> None:
    one = first(observe(nodes=(node("n1", allocatable={GPU: 6}),)))
    assert (one.gpus_total, one.gpus_usable) == (8, 6)


def test_a_cordoned_node_keeps_what_is_ours_and_takes_nothing_new() -> None:
    seen = observe(nodes=(node("n1", is_cordoned=True),), pods=[pod("p1"), foreign("f1")], deployments=[deployment(1)])
    assert (first(seen).gpus_usable, first(seen).held_watts) == (2, 3 * EXTRA)
    assert reserved_now_watts(seen.snapshot)["r1"] == 8 * 75 + 5 * EXTRA


def test_a_node_that_is_not_ready_offers_nothing_and_holds_everything() -> None:
    seen = observe(nodes=(node("n1", is_ready=False),), pods=[pod("p1"), foreign("f1")])
    assert (first(seen).gpus_usable, first(seen).held_watts) == (0, 5 * EXTRA)
    assert reserved_now_watts(seen.snapshot)["r1"] == 8 * 75 + 5 * EXTRA


def test_a_dead_node_is_released_when_its_meter_reads_zero_or_it_is_out_of_service() -> None:
    dark = {"n1": NodeReading(node="n1", draw_watts=0.0, as_of_s=NOW_S - 1.0)}
    nodes = (node("n1", is_ready=False), node("n2"))
    metered = observe(nodes=nodes, pods=[pod("p1")], readings=Readings(taken_at_s=NOW_S, nodes=dark))
    tainted = observe(nodes=(node("n1", is_ready=False, is_out_of_service=True), node("n2")), pods=[pod("p1")])
    for seen in (metered, tainted):
        assert [one.name for one in seen.problem.nodes] == ["n2"]
        assert seen.snapshot.replicas == ()


def test_a_ready_node_is_not_believed_dark() -> None:
    dark = {"n1": NodeReading(node="n1", draw_watts=0.0, as_of_s=NOW_S - 1.0)}
    assert first(observe(readings=Readings(taken_at_s=NOW_S, nodes=dark))).gpus_usable == 8


def test_a_node_without_a_location_takes_nothing_new_and_its_watts_still_count() -> None:
    seen = observe(nodes=(node("n1", rack=None), node("n2")), pods=[pod("p1")], deployments=[deployment(1)])
    assert first(seen).gpus_usable == 0
    assert first(seen).held_watts == 2 * EXTRA
    where = "Node/n1 metadata.labels.topology.penstock.dev/rack"
    assert fault_texts(seen) == [
        f"{where}: is missing; nothing new is placed on n1; label the node with its rack or row"
    ]


def test_nodes_that_are_not_managed_are_passed_over() -> None:
    other = node("n2", labels={"gpu": "H100"})
    assert [one.name for one in observe(nodes=(node("n1"), other)).problem.nodes] == ["n1"]


def test_pods_become_replicas_of_their_pool() -> None:
    busy = Readings(taken_at_s=NOW_S, outstanding_requests={"demo/p1": 7.0})
    labels = our_labels(role="prefill", config="tp4-pp2", location=None)
    replica = observe(pods=[pod("p1", labels=labels)], readings=busy).snapshot.replicas[0]
    assert replica.pool.role is Role.PREFILL
    assert replica.pool.config == EngineConfig(tensor_parallel=4, pipeline_parallel=2)
    assert (replica.location, replica.age_s, replica.outstanding_requests) == (ANYWHERE, 500.0, 7.0)


@pytest.mark.parametrize(
    ("label", "value", "shown"),
    [
        (ROLE_LABEL, None, f"Pod/demo/p1 metadata.labels.{ROLE_LABEL}: is missing"),
        (ROLE_LABEL, "chef", "'chef' is not a valid Role"),
        ("penstock.dev/engine-config", "huge", "huge: is no engine configuration"),
    ],
)
def test_a_pod_with_spoilt_labels_is_named_and_held(label: str, value: str | None, shown: str) -> None:
    labels = {name: text for name, text in {**our_labels(), label: value}.items() if text is not None}
    seen = observe(pods=[pod("p1", labels=labels)])
    assert shown in fault_texts(seen)[0]
    assert seen.snapshot.replicas == ()
    assert first(seen).gpus_usable == 6


def test_replicas_on_a_class_that_is_gone_stay_as_they_are() -> None:
    seen = observe(pods=[pod("p1", labels=our_labels(on="v100"))], deployments=[deployment(1, our_labels(on="v100"))])
    assert "GpuClass/v100: does not exist, and demo/chat runs on it" in fault_texts(seen)[0]
    assert seen.snapshot.desired == {}


def test_deployments_of_one_place_add_up() -> None:
    both = [deployment(2), deployment(1, {**our_labels(), "extra": "label"}, "again")]
    assert list(observe(deployments=both).snapshot.desired.values()) == [3]
    labels = our_labels()
    del labels[LOCATION_LABEL]
    assert [location for _, location in observe(deployments=[deployment(1, labels)]).snapshot.desired] == [ANYWHERE]


def test_a_node_says_which_fabric_it_hangs_on() -> None:
    said = {"nvidia.com/gpu.clique": "7b968a6d-c8aa-45e1-9e07-e1e51be99c31.0"}
    alone = {"nvidia.com/gpu.clique": "00000000-0000-0000-0000-000000000000.0"}
    given = {"n1": said, "n2": alone, "n3": {"topology.penstock.dev/island": "leaf-4"} | said}
    nodes = [node(name, labels=dict(node(name).labels) | more) for name, more in given.items()]
    seen = {one.name: one.island for one in observe(nodes=nodes).problem.nodes}
    assert seen == {"n1": said["nvidia.com/gpu.clique"], "n2": "", "n3": "leaf-4"}
