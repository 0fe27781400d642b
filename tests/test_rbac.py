"""Least rights, audited: the operator lives under its own role, is refused nothing, and needs every rule of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from controller import placement_pb2 as pb
from controller.loop import Operator
from controller.placement_pb2_grpc import PlacementStub
from tests.operator_harness import World, running, wait_settled
from tests.rbac_audit import Request, denied, requests_of, unused, wait_granted
from tests.render_chart import NAMESPACE, template
from tests.simcluster.api import Json, load_objects
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import ClusterConfig
from tests.simcluster.poll import wait_until
from tests.simcluster.process import free_ports
from tests.world_bodies import NAMESPACE as TENANT

pytestmark = pytest.mark.cluster

AUDIENCE = "penstock"
RIGHTS = frozenset({"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"})
USER = f"system:serviceaccount:{NAMESPACE}:penstock"
ASKER = f"system:serviceaccount:{TENANT}:asker"


@pytest.fixture
def world() -> Iterator[World]:
    """A cluster of its own, because its API server writes an audit log; with the operator's rights, and a caller."""
    with SimCluster.start(ClusterConfig(audit=True, prometheus=False)) as cluster:
        installed = World(cluster).install(planHistory={"count": 2})
        cluster.apply([obj for obj in chart_objects() if obj["kind"] in RIGHTS])
        cluster.create(caller())
        wait_granted(cluster.api, USER, rules("ClusterRole"))
        wait_granted(cluster.api, USER, rules("Role"), namespace=NAMESPACE)
        wait_granted(cluster.api, ASKER, rules("ClusterRole", "penstock-what-if"))
        yield installed


def chart_objects() -> list[Json]:
    return load_objects(template("crds.install=false", f"grpc.tokenAudience={AUDIENCE}"))


def caller() -> list[Json]:
    """A service account that holds the chart's role for those who ask."""
    api, named = "rbac.authorization.k8s.io", {"name": "asker"}
    role = {"apiGroup": api, "kind": "ClusterRole", "name": "penstock-what-if"}
    subject = {"kind": "ServiceAccount", "name": "asker", "namespace": TENANT}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named | {"namespace": TENANT}},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": named,
            "roleRef": role,
            "subjects": [subject],
        },
    ]


def rules(kind: str, name: str = "penstock") -> list[Json]:
    """Every rule of the chart's role of a kind; the operator has one of both kinds."""
    roles = [obj for obj in chart_objects() if (obj["kind"], obj["metadata"]["name"]) == (kind, name)]
    return [rule for role in roles for rule in role["rules"]]


def requests(cluster: SimCluster) -> list[Request]:
    return list(requests_of(cluster.audit_events(), USER))


def test_the_operator_needs_every_right_that_it_has_and_no_other(world: World) -> None:
    cluster = world.cluster
    (port,) = free_ports(1)
    kubeconfig = str(cluster.kubeconfig_for(NAMESPACE, "penstock"))
    options: dict[str, Any] = {
        "kubeconfig": kubeconfig,
        "namespace": NAMESPACE,
        "grpc_port": port,
        "grpc_token_audience": AUDIENCE,
    }
    both = rules("ClusterRole") + rules("Role")
    with running(cluster, **options) as operator:
        live_through_a_day(world, operator)
        ask(port, mint(cluster))
        wait_until(
            lambda: not unused(both, requests(cluster)),
            lambda: f"a use of {unused(both, requests(cluster))}",
            interval_s=1.0,
        )
    assert denied(requests(cluster)) == []


def live_through_a_day(world: World, operator: Operator) -> None:
    """First placement, more, less, a budget cut, and a model that goes."""
    world.serve("chat", 4.0)
    wait_settled(operator, world, chat=4.0)
    for requests_per_s in (30.0, 4.0):
        world.demand(requests_per_s)
        wait_settled(operator, world, chat=requests_per_s)
    world.budget("site", 9_000)
    wait_until(lambda: budget_of(operator, "site") == 9_000, "a plan within the lower budget")
    wait_settled(operator, world, chat=4.0)
    serving = world.ready("chat")
    path = f"/apis/penstock.dev/v1alpha1/namespaces/{TENANT}/servedmodels/chat"
    world.cluster.api.delete(path)
    wait_until(lambda: not services_of(operator), "a plan without the model")
    assert world.ready("chat") == serving  # orphaned: they serve on


def budget_of(operator: Operator, domain: str) -> float:
    turn = operator.latest()
    rows = turn.plan.domains if turn else ()
    return next((row.budget_watts for row in rows if row.domain == domain), 0.0)


def services_of(operator: Operator) -> list[str]:
    turn = operator.latest()
    return [row.service for row in turn.plan.services] if turn else []


def mint(cluster: SimCluster) -> str:
    path = f"/api/v1/namespaces/{TENANT}/serviceaccounts/asker/token"
    token: str = cluster.api.request("POST", path, {"spec": {"audiences": [AUDIENCE]}})["status"]["token"]
    return token


def ask(port: int, token: str) -> None:
    """Ask what the chart's role for callers allows."""
    header = (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = PlacementStub(channel)
        assert stub.GetPlan(pb.GetPlanRequest(), timeout=60.0, metadata=header).plan.number
        stub.WhatIf(pb.WhatIfRequest(), timeout=120.0, metadata=header)
