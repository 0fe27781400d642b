"""Quantities as Kubernetes writes them, and what of nodes is left to our replicas beside GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from controller.kinds import node_record, pod_record
from controller.observe import Observation
from controller.quantities import extended, host, pod_amounts, quantity
from controller.resources import parse_served_model
from solvers.engine import Role
from solvers.errors import InvalidInput
from tests.observed import GPU, node, observe, pod, served, sound
from tests.test_cache import OURS, make_cache

GI = 2**30


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2.0),
        ("500m", 0.5),
        ("1.5Gi", 1.5 * GI),
        ("1e3", 1000.0),
        ("129M", 129e6),
        ("2Ti", 2048 * GI),
        ("3k", 3e3),
        ("1e300", 2.0**63),
    ],
)
def test_quantities_are_read(text: str, value: float) -> None:
    assert float(quantity(text)) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "many", "5 cores", "1Zi", "1mi", "--2"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        quantity(text)


def test_resources_are_counted_in_whole_units() -> None:
    given = {"cpu": "1500m", "memory": "1Gi", "nvidia.com/gpu": "4", "rdma/hca": "0", "ephemeral-storage": "1Ti"}
    assert host(given) == {"cpu": 1500, "memory": GI}
    assert extended(given) == {"nvidia.com/gpu": 4}
    assert host(None) == extended(None) == {}
    containers = [{"resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}, {"resources": {}}]
    spec = {"containers": containers, "initContainers": [{"resources": {"requests": {"cpu": "3"}}}]}
    assert pod_amounts(spec, host) == {"cpu": 3000}


def template(**requests: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", "image": "e", "resources": {"requests": requests}}]}}


PORTS = {"rdma/hca": "2"}


def seen(nodes: Any, pods: Any = (), **requests: str) -> Observation:
    others = [one for one in sound() if one["kind"] != "ServedModel"]
    return observe(*others, served(template=template(**requests)), nodes=nodes, pods=pods)


def test_a_template_says_what_each_replica_asks_for() -> None:
    found = seen([node("n1")], cpu="8", memory="64Gi", **PORTS, **{GPU: "1"})
    (service,) = found.problem.services
    assert service.requests[Role.MIXED] == {"cpu": 8000, "memory": 64 * GI, "rdma/hca": 2}
    assert observe().problem.services[0].requests == {}


def test_foreign_pods_take_cores_and_ports_and_ours_do_not() -> None:
    foreign = pod("f", "n1", {}, requests={"rdma/hca": 3}, host={"cpu": 5_000, "memory": GI})
    minor = pod("g", "n1", {}, requests={}, host={"cpu": 1_000})
    ours = pod("p", "n1", host={"cpu": 8_000}, requests={GPU: 2, "rdma/hca": 2})
    one = node("n1", host={"cpu": 32_000, "memory": 4 * GI}, allocatable={GPU: 8, "rdma/hca": 8})
    (found,) = seen([one], [foreign, minor, ours], cpu="8", memory="1Gi", **PORTS).problem.nodes
    assert found.resources == {"cpu": 26_000, "memory": 3 * GI, "rdma/hca": 5}
    (silent,) = observe(nodes=[one], pods=[foreign]).problem.nodes
    assert silent.resources == {}, "nobody asks"


def test_a_node_without_a_port_has_none_and_one_that_says_nothing_has_enough() -> None:
    real, written = node("n1", host={"cpu": 32_000, "memory": GI}), node("n2")
    nodes = {n.name: n.resources for n in seen([real, written], cpu="8", **PORTS).problem.nodes}
    assert nodes == {"n1": {"cpu": 32_000, "rdma/hca": 0}, "n2": {}}


def test_a_template_with_nonsense_is_refused_by_name() -> None:
    body = served(template=template(cpu="much"))
    with pytest.raises(InvalidInput, match="asks for no quantities"):
        parse_served_model(body, observe().policy)


def test_records_keep_cores_and_memory() -> None:
    status = {"allocatable": {"cpu": "63500m", "memory": "500Gi", GPU: "8"}}
    record = node_record({"metadata": {"name": "n"}, "status": status})
    assert (record.host, record.allocatable) == ({"cpu": 63_500, "memory": 500 * GI}, {GPU: 8})


def test_pods_that_only_take_cores_are_known_and_call_for_no_turn() -> None:
    cache, server, _, changes = make_cache()
    cache.refresh(server)
    changes.clear()
    for number, labels in enumerate(({}, OURS)):
        body = server.put(f"pod-{number}", labels=labels)
        body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "2"}}
        cache.see("Pod", "ADDED", body)
        assert len(changes) == number, "only ours matters at once"
    record = cache.pod("team-a/pod-0")
    assert record is not None
    assert record.host == {"cpu": 2000}
    assert pod_record(body) == cache.pod("team-a/pod-1")
