"""The log of a rollout: every step and every change of state once, and nothing of a quiet turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controller.story import Story
from solvers.errors import SolveFailed
from tests.fake_cluster import FakeCluster
from tests.test_loop import SERVICE, Bench, raise_demand


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(FakeCluster().install())
    made.cluster.serve(requests_per_s=6.0)
    yield made
    made.decider.stop()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "penstock")
    return caplog


def lines(said: pytest.LogCaptureFixture) -> list[str]:
    """What was logged since the last time."""
    found = [record.getMessage() for record in said.records]
    said.clear()
    return found


def test_a_placement_is_told_step_by_step_and_then_there_is_silence(
    bench: Bench, said: pytest.LogCaptureFixture
) -> None:
    report = bench.settle()
    told = lines(said)
    assert "deciding: no decision was made yet" in told
    assert any(line.startswith("plan-000001 is in force: ") for line in told)
    for (pool, location), count in report.sight.observation.snapshot.desired.items():
        assert any(
            line.startswith(f"{pool} at {location}: ") and f"-> {count}, the plan wants" in line for line in told
        )
    bench.turn()
    bench.turn(pause_s=61.0)  # a decision that changes nothing
    bench.turn()
    assert lines(said) == []


def test_a_refusal_is_told_once_and_again_when_it_came_back(bench: Bench, said: pytest.LogCaptureFixture) -> None:
    bench.settle()
    for name, body in bench.cluster.objects["Deployment"].items():
        body["metadata"]["managedFields"] = [
            {"manager": "somebody", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        ]
        bench.cluster.put("Deployment", body)
        assert bench.replicas()[name] > 0
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    lines(said)
    for _ in range(5):
        bench.turn()
    refused = [line for line in lines(said) if "ReplicasOwnedByOther" in line]
    assert len(refused) == len(set(refused)) > 0
    assert "failed with ReplicasOwnedByOther: somebody owns the replicas of" in refused[0]


def test_a_hold_is_told_when_it_begins_and_when_it_ends(bench: Bench, said: pytest.LogCaptureFixture) -> None:
    bench.settle()
    lines(said)
    for is_paused in (True, False):
        bench.cluster.change("FleetPolicy", "default", lambda spec, now=is_paused: spec.update(paused=now))  # type: ignore[misc]
        bench.settle()
        bench.turn()
    assert [line for line in lines(said) if "held" in line] == ["held: FleetPolicy/default is paused", "held no longer"]


def test_an_outage_is_told_once_whatever_each_attempt_says(bench: Bench, said: pytest.LogCaptureFixture) -> None:
    report = bench.settle()
    story = Story()
    lines(said)
    for attempt in range(3):
        story.tell(replace(report, decision=None, holds=(f"the API server cannot be relied on: attempt {attempt}",)))
    assert lines(said) == ["held: the API server cannot be relied on: attempt 0"]


def test_a_failed_solve_says_which_plan_stays(bench: Bench, said: pytest.LogCaptureFixture) -> None:
    bench.settle()
    bench.worker.fault = SolveFailed("the solver did not answer in 60.0 s and was killed")
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    lines(said)
    bench.turn()
    bench.turn(pause_s=1.0)
    assert "no new plan: the solver did not answer in 60.0 s and was killed" in lines(said)


def test_a_story_begins_with_silence(bench: Bench, said: pytest.LogCaptureFixture) -> None:
    report = bench.settle()
    lines(said)
    story = Story()
    story.tell(report)
    assert len(lines(said)) == 1, "the plan in force"
    story.tell(report)
    assert lines(said) == []
