"""What a user would see: the operator on a real control plane, one story a test."""

from __future__ import annotations

import pytest

from tests.operator_harness import (
    NAMESPACE,
    World,
    latest,
    running,
    wait_settled,
)
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster
from tests.simcluster.poll import wait_until


@pytest.fixture
def world(simcluster: SimCluster) -> World:
    return World(simcluster)


def test_first_placement_and_a_second_turn_that_does_nothing(world: World) -> None:
    world.install().serve(requests_per_s=6.0)
    with running(world.cluster) as operator:
        turn = wait_settled(operator, world, chat=6.0)
        assert not turn.plan.is_short
        assert len(world.ready()) == sum(row.replicas for row in turn.plan.placements) >= 2
        versions = {d["metadata"]["name"]: d["metadata"]["resourceVersion"] for d in _deployments(world)}
        wait_until(lambda: latest(operator).problem is not turn.problem, "another decision")
        decided_s = latest(operator).taken_at_s
        wait_until(lambda: latest(operator).taken_at_s > decided_s + 1.0, "turns after it")
        assert {d["metadata"]["name"]: d["metadata"]["resourceVersion"] for d in _deployments(world)} == versions
        assert [plan["spec"]["number"] for plan in world.plans()] == [1]
        assert latest(operator).report.actions == ()
    status = world.get("servedmodels", "chat", NAMESPACE)["status"]
    replicas = len(world.ready())
    assert status["mixed"] == f"{replicas}/{replicas}"
    assert world.condition("Ready", "servedmodels", "chat", NAMESPACE) == ("True", "Serving")
    assert world.condition("Applied", "servedmodels", "chat", NAMESPACE) == ("True", "Applied")
    assert world.get("fleetpolicies", "default")["status"]["activePlan"] == "plan-000001"


def _deployments(world: World) -> list[Json]:
    return world.cluster.api.list_all(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")
