"""Statuses are written when they say something new, figures that drift only now and then."""

from __future__ import annotations

from typing import Any

import pytest

from controller.statuses import DRIFT_S, StatusOf, StatusWriter
from tests.fake_cluster import FakeCluster


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def status(now: dict[str, Any] | None = None, uid: str = "u", **wanted: Any) -> StatusOf:
    return StatusOf(kind="PowerDomain", namespace="", name="rack-1", uid=uid, now=now or {}, wanted=wanted)


def condition(state: str, reason: str, message: str) -> dict[str, str]:
    return {"type": "WithinPowerBudget", "status": state, "reason": reason, "message": message}


@pytest.fixture
def world() -> tuple[StatusWriter, FakeCluster, Clock]:
    cluster, clock = FakeCluster(), Clock()
    return StatusWriter(cluster, clock), cluster, clock


World = tuple[StatusWriter, FakeCluster, Clock]


def test_a_status_is_written_once_and_again_when_it_changes(world: World) -> None:
    writer, cluster, _ = world
    writer.write([status(reservedWatts=1)])
    writer.write([status(reservedWatts=1)])
    assert len(cluster.writes) == 1
    writer.write([status(reservedWatts=2)])
    assert cluster.writes[-1] == ("apply", "/apis/penstock.dev/v1alpha1/powerdomains/rack-1/status")
    assert cluster.statuses["rack-1"] == {"reservedWatts": 2}
    assert len(cluster.writes) == 2


def test_a_new_leader_writes_only_what_differs_from_what_is_there(world: World) -> None:
    writer, cluster, _ = world
    writer.write([status(now={"reservedWatts": 1}, reservedWatts=1)])
    assert cluster.writes == []


def test_drifting_figures_wait_and_news_does_not(world: World) -> None:
    writer, cluster, clock = world
    writer.write([status(measuredWatts=100, conditions=[condition("True", "WithinBudget", "100 W of 200 W")])])
    clock.now_s += 1.0
    writer.write([status(measuredWatts=101, conditions=[condition("True", "WithinBudget", "101 W of 200 W")])])
    assert len(cluster.writes) == 1
    writer.write([status(measuredWatts=300, conditions=[condition("False", "OverBudget", "300 W of 200 W")])])
    assert len(cluster.writes) == 2
    writer.write([status(measuredWatts=301, conditions=[condition("False", "OverBudget", "301 W of 200 W")])])
    clock.now_s += DRIFT_S
    writer.write([status(measuredWatts=301, conditions=[condition("False", "OverBudget", "301 W of 200 W")])])
    assert len(cluster.writes) == 3


def test_a_status_that_could_not_be_written_is_said_and_tried_again(world: World) -> None:
    writer, cluster, _ = world
    cluster.is_down = True
    (problem,) = writer.write([status(reservedWatts=1)])
    assert "PowerDomain/rack-1" in problem
    cluster.is_down = False
    assert writer.write([status(reservedWatts=1)]) == ()
    assert cluster.statuses["rack-1"] == {"reservedWatts": 1}


def test_an_object_made_anew_gets_its_status_again(world: World) -> None:
    writer, cluster, _ = world
    writer.write([status(reservedWatts=1)])
    writer.write([])
    writer.write([status(uid="another", reservedWatts=1)])
    assert len(cluster.writes) == 2


def test_namespaced_objects_are_found_in_their_namespace() -> None:
    model = StatusOf(kind="ServedModel", namespace="team-a", name="chat", uid="u", now={}, wanted={})
    assert model.path == "/apis/penstock.dev/v1alpha1/namespaces/team-a/servedmodels/chat"
