"""Splits by size as users and routers see them: labels and reading back, the FleetPlan, the API, ``penstock plan``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from controller.api_convert import plan_message
from controller.cli import main
from controller.inventory import place_of
from controller.plan_bodies import parse_fleet_plan, render_fleet_plan
from controller.plan_command import split_lines
from controller.records import POOL_LABEL, SIZES_LABEL
from controller.workloads import pool_labels, workload_name
from solvers.engine import EngineConfig, Role
from solvers.errors import InvalidInput
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.splits.parted import with_estimates
from tests import split_world
from tests.observed import deployment, fault_texts, observe, pod, served
from tests.resource_cases import minimal
from tests.split_world import CHAT
from tests.test_observe import others

POOL = PoolKey(service="demo/chat", role=Role.MIXED, gpu_class="h100", config=EngineConfig(), sizes="p0-2047")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(split_world.documents())


def test_pods_of_a_part_carry_a_label_that_routers_select_on_and_it_is_read_back() -> None:
    labels = pool_labels(POOL, "rack-1")
    assert labels[SIZES_LABEL] == "p0-2047"
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", labels[SIZES_LABEL])
    assert place_of(deployment(3, labels)) == (POOL, "rack-1")
    assert place_of(pod("p1", labels=labels)) == (POOL, "rack-1")


def test_parts_are_deployments_of_their_own_and_whole_pools_keep_their_names() -> None:
    long, whole = replace(POOL, sizes="p2048-up"), replace(POOL, sizes="")
    names = {workload_name(pool, "rack-1") for pool in (POOL, long, whole)}
    assert len(names) == 3
    assert workload_name(POOL, "rack-1").startswith("chat-mixed-h100-tp1-p0-2047-rack-1-")
    assert SIZES_LABEL not in pool_labels(whole, "rack-1")
    assert pool_labels(whole, "rack-1")[POOL_LABEL].startswith("chat-mixed-h100-tp1-rack-1-")


def test_a_broken_label_is_a_fault_by_name_and_no_crash() -> None:
    labels = {**pool_labels(POOL, "r1"), SIZES_LABEL: "short"}
    with pytest.raises(InvalidInput, match="restore the label"):
        place_of(deployment(1, labels))
    assert any("restore the label" in text for text in fault_texts(observe(pods=[pod("p1", labels=labels)])))


def test_a_size_that_nothing_serves_alone_is_still_a_fault() -> None:
    slow = served(slos=[{"metric": "TTFT", "percentile": 99, "milliseconds": 5}], routing={"splitsBySize": True})
    seen = observe(*others("ServedModel"), slow)
    assert any("no profile fits" in text for text in fault_texts(seen))
    assert seen.pinned == {"demo/chat": "no profile keeps its SLOs"}


def test_pins_and_splits_are_refused_by_name() -> None:
    both = served(pins=[{"location": "r1"}], routing={"splitsBySize": True})
    assert any("exclude each other" in text for text in fault_texts(observe(*others("ServedModel"), both)))


def test_a_fleet_plan_and_the_api_tell_the_parts(plan: Plan) -> None:
    again = parse_fleet_plan(render_fleet_plan(plan, number=1))
    assert again.placements == plan.placements
    assert again.decision_hash == plan.decision_hash
    assert [(row.service, row.sizes) for row in again.parts] == [(row.service, row.sizes) for row in plan.parts]
    assert again.splits[0].sizes == plan.splits[0].sizes
    assert again.splits[0].usd_per_hour == pytest.approx(plan.splits[0].usd_per_hour, abs=1e-3)
    message = plan_message(plan, 1)
    assert {row.pool.sizes for row in message.pools} == {"p0-4095", "p4096-up"}
    assert [row.sizes for row in message.parts] == ["p0-4095", "p4096-up"]
    assert message.splits[0].price_usd_per_hour == plan.splits[0].usd_per_hour
    assert "by prompt length" in message.routing


def test_the_price_of_not_splitting_is_said_in_words(plan: Plan) -> None:
    saving = plan.splits[0].usd_per_hour
    assert list(split_lines(plan)) == [
        f"split: {CHAT}: p0-4095 and p4096-up; not splitting would cost {saving:.2f} USD/h more"
    ]


def test_what_declaring_would_save_is_an_estimate(plan: Plan) -> None:
    problem = split_world.documents(splits=False)
    silent = with_estimates(make_plan(problem), problem)
    (row,) = silent.splits
    assert row.is_estimate
    assert not row.is_declared
    assert row.sizes == plan.splits[0].sizes
    assert row.usd_per_hour == pytest.approx(plan.splits[0].usd_per_hour, rel=0.3)
    said = f"routing.splitsBySize would save about {row.usd_per_hour:.2f} USD/h (estimate, p0-4095 and p4096-up)"
    assert list(split_lines(silent)) == [f"split: {CHAT}: {said}"]


def test_penstock_plan_takes_the_declaration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = minimal()
    for body in (body for body in documents if body["kind"] == "ServedModel"):
        body["spec"]["routing"] = {"splitsBySize": True}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    assert main(["plan", "-f", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "split: default/chat: no split of its sizes saves anything" in said
    assert "the bound covers plans that cut default/chat at 2048 prompt tokens" in said
