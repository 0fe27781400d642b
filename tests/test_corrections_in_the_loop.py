"""Corrections in the loop: learnt by the leader, kept in statuses, read back, told, and planned with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controller.cli import main
from controller.readings import EngineReading, Readings
from solvers.correction import Phase
from tests.fake_cluster import FakeCluster
from tests.test_loop import Bench
from tests.test_metrics import samples
from tests.world_bodies import Json

ACT = {"replicas": "Act", "placement": "Act", "correction": "Act"}


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(FakeCluster().install(modes=ACT))
    made.cluster.serve(requests_per_s=6.0)
    yield made
    made.decider.stop()


def teach(bench: Bench, windows: int, itl_s: float = 0.06) -> None:
    """Let every pod show such a gap, a minute at a time."""
    for _ in range(windows):
        now_s = bench.clock.now_s + 60.0
        engines = {
            key: EngineReading(
                pod=key,
                running=4.0,
                waiting=0.0,
                prompts_per_s=2.0,
                prompt_tokens_per_s=0.0,
                output_tokens_per_s=400.0,
                itl_s=itl_s,
                as_of_s=now_s,
            )
            for key in bench.cluster.objects["Pod"]
        }
        bench.telemetry.latest = Readings(taken_at_s=now_s, engines=engines)
        bench.turn(pause_s=60.0)


def save_statuses(bench: Bench) -> None:
    """The fake keeps statuses beside the objects; a real server hands both out together."""
    for body in list(bench.cluster.objects["EngineProfile"].values()):
        status = bench.cluster.statuses.get(body["metadata"]["name"])
        if status is not None:
            bench.cluster.put("EngineProfile", {**body, "status": status})


def rows(bench: Bench) -> dict[str, list[Json]]:
    """Corrections by EngineProfile, as the statuses have them."""
    found = {
        name: bench.cluster.statuses.get(name, {}).get("corrections", [])
        for name in bench.cluster.objects["EngineProfile"]
    }
    return {name: rows for name, rows in found.items() if rows}


def test_what_engines_show_is_written_exported_and_planned_with(bench: Bench) -> None:
    bench.settle()
    teach(bench, 16)
    every = [row for corrections in rows(bench).values() for row in corrections if row["phase"] == "decode"]
    planned = {row["plannedPermille"] / 1000 for row in every if "plannedPermille" in row}
    assert planned
    assert min(planned) > 1.05
    found = samples(bench.metrics.render())
    shown = {
        dict(labels)["kind"]: value
        for (name, labels), value in found.items()
        if name == "penstock_profile_correction_ratio" and dict(labels)["phase"] == "decode"
    }
    assert set(shown) == {"likely", "low", "high", "planned"}
    assert shown["planned"] in planned | {1.0}
    report = bench.settle()
    assert report.decision is not None
    corrected = [dict(p.corrections) for p in report.decision.problem.profiles.values() if p.corrections]
    assert planned <= {factors[Phase.DECODE] for factors in corrected}
    told = [event for event in bench.cluster.events if event["reason"] == "Corrected"]
    assert told
    assert told[0]["regarding" if "regarding" in told[0] else "involvedObject"]["kind"] == "EngineProfile"


def test_a_restarted_operator_goes_on_and_a_settled_one_stays_quiet(bench: Bench) -> None:
    bench.settle()
    teach(bench, 16)
    bench.telemetry.latest = Readings(taken_at_s=bench.clock.now_s)
    before = bench.settle()
    save_statuses(bench)
    bench.restart()
    after = bench.settle()
    assert before.decision is not None
    assert after.decision is not None
    assert after.decision.problem.profiles == before.decision.problem.profiles
    bench.writes()
    bench.turn()
    bench.turn()
    assert bench.writes() == []


def test_a_bad_status_is_ignored_and_told(bench: Bench) -> None:
    body = next(iter(bench.cluster.objects["EngineProfile"].values()))
    bench.cluster.put("EngineProfile", {**body, "status": {"corrections": [{"phase": "decode"}]}})
    report = bench.settle()
    assert report.decision is not None
    assert "CorrectionIgnored" in {event["reason"] for event in bench.cluster.events}


def test_advice_is_told_and_off_asks_nobody(bench: Bench) -> None:
    bench.settle()
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(modes={**ACT, "correction": "Advise"}))
    teach(bench, 16)
    assert rows(bench)
    report = bench.settle()
    assert report.decision is not None
    assert not any(profile.corrections for profile in report.decision.problem.profiles.values())
    assert bench.telemetry.asks_engines
    save_statuses(bench)
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(modes={**ACT, "correction": "Off"}))
    bench.turn(pause_s=20.0)
    assert rows(bench) == {}
    assert not bench.telemetry.asks_engines


def test_exported_objects_plan_as_the_operator_does(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.settle()
    teach(bench, 16, itl_s=0.004)  # faster than its profile, so that the plan keeps to it
    save_statuses(bench)
    kinds = ("GpuClass", "PowerDomain", "EngineProfile", "FleetPolicy", "ServedModel", "Node")
    bodies = [{"kind": kind, **body} for kind in kinds for body in bench.cluster.objects[kind].values()]
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump_all([{"apiVersion": "v1", **body} for body in bodies]))
    assert main(["plan", "-f", str(file)]) == 0
    out = capsys.readouterr().out
    assert "is planned with what running engines showed: " in out
    assert main(["plan", "-f", str(file)]) == 0
    assert capsys.readouterr().out == out
