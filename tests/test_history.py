"""FleetPlan history: one object a decision, numbers that nobody gets twice, trimming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.cache import Cache, CacheView
from controller.client import Body
from controller.history import PlanHistory
from controller.plan_bodies import render_fleet_plan
from solvers.engine import EngineConfig, Role
from solvers.errors import PenstockError
from solvers.fleet import PoolKey
from solvers.plan import Placement, Plan, PoolPlan
from tests.fake_cluster import FakeCluster
from tests.plans_by_hand import NOTHING

POOL = PoolKey(service="team-a/chat", role=Role.MIXED, gpu_class="l40s", config=EngineConfig())


def plan(replicas: int) -> Plan:
    row = PoolPlan(
        pool=POOL,
        replicas=replicas,
        demand_ratio=1.0,
        capacity_requests_per_s=1.0,
        cap_watts=350.0,
        reserved_watts=430.0,
        planned_watts=300.0,
        cost_usd_per_hour=0.8,
    )
    return replace(NOTHING, placements=(Placement(pool=POOL, location="r", replicas=replicas),), pools=(row,))


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def seen(cluster: FakeCluster) -> CacheView:
    cache = Cache()
    cache.refresh(cluster)
    return cache.view()


def test_a_decision_is_written_once_and_the_next_one_under_the_next_number(cluster: FakeCluster) -> None:
    history = PlanHistory(cluster)
    stale = seen(cluster)
    assert history.record(plan(1), stale) == 1
    assert history.record(plan(1), stale) == 1, "the cache may lag behind our own write"
    assert history.record(plan(2), stale) == 2
    assert PlanHistory(cluster).record(plan(2), seen(cluster)) == 2, "a new process finds what was recorded"
    assert sorted(cluster.objects["FleetPlan"]) == ["plan-000001", "plan-000002"]


def test_a_plan_reads_back_as_it_was_decided(cluster: FakeCluster) -> None:
    number = PlanHistory(cluster).record(plan(3), seen(cluster))
    loaded = PlanHistory(cluster).load(number)
    assert loaded is not None
    assert loaded.decision_hash == plan(3).decision_hash


def test_a_plan_that_lacks_a_part_is_not_the_newest_and_cannot_be_loaded(cluster: FakeCluster) -> None:
    PlanHistory(cluster).record(plan(1), seen(cluster))
    (body,) = render_fleet_plan(plan(2), 2)
    cluster.put("FleetPlan", {**body, "spec": {**body["spec"], "parts": 2}})
    assert PlanHistory(cluster).newest(seen(cluster)).number == 1
    assert PlanHistory(cluster).load(2) is None


def test_a_number_that_another_writer_took_is_passed_over(cluster: FakeCluster) -> None:
    history, stale = PlanHistory(cluster), seen(cluster)
    cluster.put("FleetPlan", render_fleet_plan(plan(9), 1)[0])
    assert history.record(plan(1), stale) == 2


def test_our_own_number_is_recognised_when_the_answer_was_lost(cluster: FakeCluster) -> None:
    history, stale = PlanHistory(cluster), seen(cluster)
    cluster.put("FleetPlan", render_fleet_plan(plan(1), 1)[0])
    assert history.record(plan(1), stale) == 1
    assert list(cluster.objects["FleetPlan"]) == ["plan-000001"]


def test_a_plan_that_cannot_be_written_is_an_error(cluster: FakeCluster) -> None:
    cluster.may_write = lambda: False
    with pytest.raises(PenstockError):
        PlanHistory(cluster).record(plan(1), CacheView(nodes={}, pods={}, deployments={}, plans={}, objects={}))


def aged(number: int, created: str) -> Body:
    body: dict[str, Any] = render_fleet_plan(plan(number), number)[0]
    return {**body, "metadata": {**body["metadata"], "creationTimestamp": created}}


def test_old_plans_and_those_beyond_the_count_go_and_the_newest_stays(cluster: FakeCluster) -> None:
    for number, created in enumerate(["2026-01-01", "2027-01-13", "2027-01-14", "2026-01-02"], start=1):
        cluster.put("FleetPlan", aged(number, f"{created}T00:00:00Z"))
    now_s = 1_800_000_000.0  # 2027-01-15
    PlanHistory(cluster).trim(seen(cluster), days=7, count=2, now_s=now_s)
    assert sorted(cluster.objects["FleetPlan"]) == ["plan-000003", "plan-000004"]
