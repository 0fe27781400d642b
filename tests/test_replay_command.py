"""``penstock replay`` on the smallest sample: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli import main

ROOT = Path(__file__).parents[1]
MINIMAL = ROOT / "deploy/samples/minimal"
SERVICE = "default/chat"
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i / 4},500,20\n" for i in range(80))


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        def refuse(constant: str) -> float:
            raise ValueError(f"{constant} is no JSON")

        read: dict[str, Any] = json.loads(self.out, parse_constant=refuse)
        return read


Penstock = Callable[..., Said]


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str]) -> Penstock:
    def call(*words: object) -> Said:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Said(code=code, out=out, err=err)

    return call


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four equal requests a second for twenty seconds."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


@pytest.fixture
def plan(tmp_path: Path, penstock: Penstock) -> Path:
    """The sample's own plan, as the command line writes it."""
    path = tmp_path / "plan.yaml"
    said = penstock("plan", "-f", MINIMAL, "-o", "yaml")
    assert said.code == 0
    path.write_text(said.out)
    return path


@pytest.fixture
def replay(penstock: Penstock, plan: Path, trace: Path) -> Penstock:
    """Replay the trace as it is over the sample's plan, with more options."""
    return lambda *options: penstock(
        "replay", "-f", MINIMAL, "--plan", plan, "--trace", trace, "--factor", f"{SERVICE}=1", *options
    )


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    body = yaml.safe_load(path.read_text())
    change(body)
    path.write_text(yaml.safe_dump(body))
    return path


def rows_of(said: Said) -> list[list[str]]:
    """Cells of the table under its header; numbers have one space between thousands, columns at least two."""
    table = said.out.partition("\n\n")[0].splitlines()
    return [re.split(r"\s{2,}", line) for line in table[1:]]


# ---------------------------------------------------------------- outputs


def test_the_table_judges_every_slo_of_every_service(replay: Penstock) -> None:
    said = replay()
    assert (said.code, said.err) == (0, "")
    itl, ttft = rows_of(said)
    assert (itl[:4], itl[6]) == ([SERVICE, "80", "ITL p95", "40.00"], "yes")
    assert (ttft[:4], ttft[6]) == ([SERVICE, "80", "TTFT p95", "500.00"], "yes")
    assert "0 requests unfinished, 0 rejected" in said.out.splitlines()[-1]


def test_json_and_yaml_say_the_same_as_the_table(replay: Penstock) -> None:
    data = replay("-o", "json").data
    assert yaml.safe_load(replay("-o", "yaml").out) == data
    (service,) = data["services"]
    assert (service["service"], service["requests"], service["finished"]) == (SERVICE, 80, 80)
    assert service["outputTokens"] == 80 * 20
    assert [(slo["metric"], slo["percentile"], slo["met"]) for slo in service["slos"]] == [
        ("ITL", 95.0, True),
        ("TTFT", 95.0, True),
    ]
    for slo in service["slos"]:
        assert 0 < slo["attainedMilliseconds"] <= slo["limitMilliseconds"]
        assert slo["withinRatio"] == 1.0
    ttft = service["ttftMilliseconds"]
    assert 0 < ttft["p50"] <= ttft["p90"] <= ttft["p95"] <= ttft["p99"]
    assert service["goodputRequestsPerSecond"] == pytest.approx(80 / data["makespanSeconds"], rel=0.01)
    assert (data["unfinishedRequests"], data["rejected"], data["extrapolatedSteps"]) == (0, [], 0)
    assert data["energyKilowattHours"] > 0
    attained = [slo["attainedMilliseconds"] for slo in service["slos"]]
    assert [float(row[4]) for row in rows_of(replay())] == pytest.approx(attained, abs=0.006)


def test_the_same_replay_twice_prints_the_same(penstock: Penstock, plan: Path) -> None:
    words = ("replay", "-f", MINIMAL, "--plan", plan, "--until", 60, "--seed", 7, "-o", "json")
    assert penstock(*words) == penstock(*words)
    assert penstock(*words) != penstock(*words, "--seed", 8)


def test_without_options_it_plans_the_folder_and_meets_what_it_planned_for(penstock: Penstock) -> None:
    said = penstock("replay", "-f", MINIMAL, "-o", "json")
    (service,) = said.data["services"]
    assert said.code == 0
    assert service["requests"] == pytest.approx(6 * 600, rel=0.1)  # the declared load for the synthetic ten minutes


def test_a_trace_is_scaled_to_the_planned_load_or_by_the_asked_factor(penstock: Penstock, trace: Path) -> None:
    words = ("replay", "-f", MINIMAL, "--trace", trace, "-o", "json")

    def requests(*options: object) -> int:
        return int(penstock(*words, *options).data["services"][0]["requests"])

    assert requests() == pytest.approx(6 * 19.75, rel=0.15)
    assert requests("--demand", f"{SERVICE}=12") == pytest.approx(12 * 19.75, rel=0.15)
    assert requests("--factor", f"{SERVICE}=2") == 160


# ---------------------------------------------------------------- exit codes


def test_a_missed_slo_is_shown_and_exits_with_two(replay: Penstock) -> None:
    said = replay("--factor", f"{SERVICE}=60")
    assert said.code == 2
    missed = {row[2]: row for row in rows_of(said) if row[6] == "NO"}
    assert "TTFT p95" in missed
    limit_ms, attained_ms, within_percent = (float(cell.replace(" ", "")) for cell in missed["TTFT p95"][3:6])
    assert attained_ms > limit_ms
    assert within_percent < 95


def test_a_rejected_request_is_named_and_exits_with_two(replay: Penstock, trace: Path) -> None:
    trace.write_text(TRACE + "20,600000,5\n")
    said = replay()
    assert said.code == 2
    assert "1 rejected" in said.out
    assert f"rejected: {SERVICE}#80: 600,000 prompt and 5 output tokens do not fit" in said.out
    data = replay("-o", "json").data
    assert [row["request"] for row in data["rejected"]] == [f"{SERVICE}#80"]
    within = {slo["metric"]: slo["withinRatio"] for slo in data["services"][0]["slos"]}
    assert within == {"TTFT": pytest.approx(80 / 81, abs=1e-6), "ITL": 1.0}


def test_requests_that_are_not_served_meet_nothing_and_exit_with_two(replay: Penstock) -> None:
    said = replay("--until", 0, "-o", "json")
    (service,) = said.data["services"]
    assert (said.code, said.data["unfinishedRequests"], service["finished"]) == (2, 80, 0)
    assert [(slo["attainedMilliseconds"], slo["met"]) for slo in service["slos"]] == [(None, False)] * 2
    assert service["ttftMilliseconds"]["p95"] is None
    shown = replay("--until", 0)
    assert "80 requests unfinished" in shown.out
    assert "nan" not in shown.out


def test_a_plan_without_replicas_serves_nobody(replay: Penstock, plan: Path) -> None:
    def empty(body: dict[str, Any]) -> None:
        body["spec"]["placements"] = body["spec"]["pools"] = []

    edited(plan, empty)
    said = replay("-o", "json")
    assert (said.code, said.data["unfinishedRequests"]) == (2, 80)


def test_a_service_that_cannot_be_planned_is_told_and_exits_with_two(
    penstock: Penstock, tmp_path: Path, trace: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(MINIMAL, folder)
    other = next(b for b in yaml.safe_load_all((folder / "penstock.yaml").read_text()) if b["kind"] == "ServedModel")
    other["metadata"]["name"], other["spec"]["model"] = "other", "nobody/knows-it"
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    said = penstock("replay", "-f", folder, "--trace", trace, "--factor", f"{SERVICE}=1")
    assert said.code == 2
    assert said.err.startswith("warning: ServedModel/default/other")
    assert f"{SERVICE}" in said.out


def test_a_trace_of_one_request_is_replayed_as_it_is(penstock: Penstock, plan: Path, trace: Path) -> None:
    trace.write_text("".join(TRACE.splitlines(keepends=True)[:2]))
    said = penstock("replay", "-f", MINIMAL, "--plan", plan, "--trace", trace, "-o", "json")
    assert (said.code, said.data["services"][0]["finished"]) == (0, 1)


def test_prompts_beyond_the_profile_are_told(replay: Penstock, trace: Path) -> None:
    trace.write_text(TRACE + "20,9000,5\n")
    assert "note: 4 decode steps and 1 prompts lie beyond the tables" in replay().out


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("21,many,20", "trace.csv:82 prompt_tokens: 'many' is no whole number"),
        ("21,500,-3", "trace.csv:82 output_tokens: '-3' is negative"),
        ("soon,500,20", "trace.csv:82 arrival_s: 'soon' is no number"),
        ("21,500", "trace.csv:82: has 2 fields instead of 3"),
    ],
)
def test_a_bad_line_of_the_trace_is_named_with_its_field(replay: Penstock, trace: Path, line: str, says: str) -> None:
    trace.write_text(TRACE + line + "\n")
    said = replay()
    assert (said.code, said.out) == (1, "")
    assert says in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trace", "nowhere.csv"), "nowhere.csv: cannot be read"),
        (("--plan", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("--plan", MINIMAL / "penstock.yaml"), "penstock.yaml:1 kind: is 'GpuClass'; give a FleetPlan"),
        (("--until", "-1"), "--until: is -1.0; give 0 or more seconds"),
        (("--until", "nan"), "--until: is nan"),
        (("--window", "0"), "--window: is 0.0; give a time above 0"),
        (("--window", "1e-9"), "times within 19.75 s; show at most 100000 windows"),
        (("--seed", "-1"), "--seed: is -1; give 0 or more"),
        (("--trace", "gamma:cv=1e9"), "--trace cv: is '1e9'; give at most 100"),
        (("--trace", "poisson:output=1e99"), "--trace output: is '1e99'; give at most 100,000,000"),
        (("--trace", "poisson:prompt=5/2"), "--trace prompt: has a P99 of 2 below its P50 of 5"),
        (("--factor", "default/other=2"), "names no planned service: 'default/other'; planned are default/chat"),
        (("--factor", "default/chat"), "cannot read 'default/chat'; write NAMESPACE/NAME=NUMBER"),
        (("--demand", "default/other=2"), "names no planned service: 'default/other'"),
        (("--factor", f"{SERVICE}=0"), "requests: are none for any planned service"),
        (("-f", "nowhere"), "nowhere: no such file or folder"),
    ],
)
def test_bad_options_are_told_in_one_line_and_exit_with_one(
    replay: Penstock, options: tuple[str, ...], says: str
) -> None:
    said = replay(*options)
    assert (said.code, said.out) == (1, "")
    assert says in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "plan.yaml: holds no object"),
        ("kind: List\n", "plan.yaml: holds no object"),
        ("kind: List\nitems: [3]\n", "plan.yaml:1 kind: is None"),
        ("just text", "plan.yaml:1 kind: is None"),
        ("{a: [", "plan.yaml: cannot be read"),
        ("kind: [FleetPlan]\n", "plan.yaml:1 kind: is ['FleetPlan']"),
        ("kind: FleetPlan\nmetadata: p\nspec: {}\n", "plan.yaml:1 metadata: is no mapping"),
        ("kind: FleetPlan\nmetadata: {name: p}\nspec: {}\n", "FleetPlan/p spec."),
    ],
)
def test_a_plan_that_is_none_is_refused(replay: Penstock, plan: Path, text: str, says: str) -> None:
    plan.write_text(text)
    said = replay()
    assert (said.code, said.out) == (1, "")
    assert says in said.err
    assert len(said.err.splitlines()) == 1


# ---------------------------------------------------------------- plans


def test_a_plan_written_down_replays_as_the_one_made_now(penstock: Penstock, plan: Path, trace: Path) -> None:
    words = ("replay", "-f", MINIMAL, "--trace", trace, "-o", "json")
    made, read = penstock(*words).data, penstock(*words, "--plan", plan).data
    assert read.pop("costUsdPerHour") == pytest.approx(made.pop("costUsdPerHour"), abs=0.001)  # rounded in a FleetPlan
    assert read == made


def test_a_plan_may_come_as_json_as_a_list_or_in_several_documents(
    replay: Penstock, penstock: Penstock, plan: Path
) -> None:
    expected = replay("-o", "json")
    body = yaml.safe_load(plan.read_text())
    plan.write_text(penstock("plan", "-f", MINIMAL, "-o", "json").out)
    assert replay("-o", "json") == expected
    plan.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [body]}))
    assert replay("-o", "json") == expected
    first, second = dict(body["spec"], parts=2), dict(body["spec"], part=2, parts=2, services=[], domains=[])
    first["pools"] = first["placements"] = first["bindings"] = []
    plan.write_text(yaml.safe_dump_all([body | {"spec": first}, body | {"spec": second}]))
    assert replay("-o", "json") == expected
    plan.write_text(yaml.safe_dump(body | {"spec": first}))
    assert "has parts [1] of [1, 2]" in replay().err


def test_a_plan_of_another_fleet_is_refused_by_what_the_folder_lacks(replay: Penstock, plan: Path) -> None:
    def of_another_service(body: dict[str, Any]) -> None:
        for row in (*body["spec"]["pools"], *body["spec"]["placements"]):
            row["service"] = "prod/search"

    def on_another_class(body: dict[str, Any]) -> None:
        for row in (*body["spec"]["pools"], *body["spec"]["placements"]):
            row.update(service=SERVICE, gpuClass="a100-sxm")

    edited(plan, of_another_service)
    said = replay()
    assert (said.code, said.out) == (1, "")
    assert "plan: places prod/search, which the folder lacks" in said.err
    edited(plan, on_another_class)
    said = replay()
    assert (said.code, said.out) == (1, "")
    assert "a100-sxm" in said.err
    assert "for which the folder has no EngineProfile" in said.err


def test_events_hit_the_replay_and_are_told_in_every_form(replay: Penstock, tmp_path: Path) -> None:
    events, page = tmp_path / "events.csv", tmp_path / "page.html"
    events.write_text(f"at_s,what,pool,value\n3,fail,{SERVICE},1\n9999,drain,{SERVICE},1\n")
    said = replay("--events", events, "--report", page)
    assert re.search(r"3\.00 +fail +default/chat +1 ", said.out)
    assert "1 events lie after the end" in said.out
    assert page.read_text().count("stroke-dasharray") > 0
    assert "Dotted: events." in page.read_text()
    [event] = replay("--events", events, "-o", "json").data["events"]
    assert (event["atSeconds"], event["what"], len(event["replicas"])) == (3.0, "fail", 1)


def test_gpus_break_by_seed_when_asked(replay: Penstock) -> None:
    one, two = (replay("--mtbf-hours", "0.02", "--repair-s", "5", "--seed", "4", "-o", "json").data for _ in range(2))
    assert one["events"]
    assert one == two


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mtbf-hours", "0"), "--mtbf-hours: is 0.0"),
        (("--mtbf-hours", "1", "--repair-s", "0"), "--repair-s: is 0.0"),
        (("--repair-s", "nan"), "--repair-s: is nan"),
        (("--mtbf-hours", "1e-9"), "a second of the fleet; give hours that leave 0.01 s between them"),
        (("--events", "none.csv"), "none.csv: cannot be read"),
    ],
)
def test_events_that_make_no_sense_are_refused(replay: Penstock, options: tuple[str, ...], message: str) -> None:
    said = replay(*options)
    assert said.code == 1
    assert message in said.err
