"""``penstock plan``: what it prints in its three forms, its exit codes, and what it says of bad input."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from controller import planning
from controller.cli import main
from controller.crds import spec_schema, unknown_fields
from controller.plan_bodies import parse_fleet_plan
from controller.planning import parse_assignment
from controller.validation import find_violations
from solvers.engine import EngineConfig, Role
from solvers.errors import InvalidInput
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.problem import Policy, Problem
from tests.plans_by_hand import written
from tests.resource_cases import SAMPLES, minimal

Body = dict[str, Any]
Change = Callable[[list[Body]], object]
MINIMAL = SAMPLES / "minimal"
NOTHING_ASKED = Problem(services=(), demands={}, gpu_classes={}, nodes=(), domains={}, profiles={})


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run ``penstock plan`` in this process."""

    def run(folder: Path = MINIMAL, *options: str) -> Answer:
        code = main(["plan", "-f", str(folder), *options])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Change], Path]:
    """Copy the minimal sample with a change."""

    def make(change: Change) -> Path:
        documents = minimal()
        change(documents)
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        return tmp_path

    return make


def _of(kind: str, documents: list[Body]) -> Body:
    return next(document for document in documents if document["kind"] == kind)


def _plan_of(text: str) -> Plan:
    return parse_fleet_plan([yaml.safe_load(text)])


def test_a_trace_gives_sizes_with_a_stated_error_and_the_rate_of_its_busy_minutes(ask: Ask, tmp_path: Path) -> None:
    """Ten minutes of one request a second, and one minute of two: busy is what 95 % of the minutes stay within."""
    arrivals = [*range(600), *(n + 0.5 for n in range(60))]
    lines = [f"{at},{100 + 37 * (int(at) % 90)},{20 + int(at) % 50}" for at in sorted(arrivals)]
    file = tmp_path / "load.csv"
    file.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n", encoding="utf-8")
    demand = planning.with_traces(planning.observe_folder(MINIMAL).problem, [f"default/chat={file}"])
    cut = demand.demands["default/chat"]
    assert cut.requests_per_s == 2.0
    assert 4 <= len(cut.mix) <= 8
    assert re.fullmatch(r"Trace load.csv; \d sizes within \d+\.\d% of \d+", cut.source)
    answer = ask(MINIMAL, "--trace", f"default/chat={file}")
    assert "default/chat" in answer.out
    assert "2.00" in answer.out
    wrong = ask(MINIMAL, "--trace", "nobody")
    assert wrong.code == 1
    assert "write NAME=FILE; planned are default/chat" in wrong.err


def test_with_power_caps_the_table_and_the_plan_say_every_cap(ask: Ask, folder: Callable[[Change], Path]) -> None:
    def less_power(documents: list[Body]) -> None:
        for document in documents:
            if document["kind"] == "PowerDomain":
                document["spec"]["budgetWatts"] = 1900

    scarce = folder(less_power)
    code, out, _ = ask(scarce, "--demand", "default/chat=20", "--power-caps")
    pools = out.split("\n\n")[1].splitlines()
    assert code in (0, 2)
    assert pools[0].split()[5:8] == ["REPLICAS", "CAP", "W"]
    plan = _plan_of(ask(scarce, "--demand", "default/chat=20", "--power-caps", "-o", "yaml").out)
    assert any(pool.cap_watts < 700.0 for pool in plan.pools)
    assert {
        pool.cap_watts for pool in _plan_of(ask(scarce, "--demand", "default/chat=20", "-o", "yaml").out).pools
    } <= {700.0}


def test_replicas_of_two_nodes_are_planned_on_one_fabric_and_not_where_deployments_are_made(
    ask: Ask, folder: Callable[[Change], Path]
) -> None:
    def joined(documents: list[Body], management: str) -> None:
        _of("EngineProfile", documents)["spec"]["config"]["tensorParallel"] = 16
        _of("ServedModel", documents)["spec"]["management"] = management
        _of("FleetPolicy", documents)["spec"].setdefault("modes", {})["replicas"] = "Act"
        _of("PowerDomain", documents)["spec"]["budgetWatts"] = 100_000
        node = _of("Node", documents)
        node["metadata"]["labels"]["topology.penstock.dev/island"] = "leaf-1"
        for key in ("capacity", "allocatable"):
            if key in node["status"]:
                node["status"][key]["nvidia.com/gpu"] = "8"
        others = [copy.deepcopy(node) for _ in range(3)]
        for number, other in enumerate(others):
            other["metadata"]["name"] = f"more-{number}"
        documents[:] = [d for d in documents if d["kind"] != "Node"] + others

    code, out, err = ask(folder(lambda documents: joined(documents, "Observe")))
    assert code == 0, out + err
    header, row = out.split("\n\n")[1].splitlines()[:2]
    assert header.split()[5:8] == ["REPLICAS", "NODES", "EACH"]
    assert row.split()[3:6] == ["tp16", "1", "2"]
    code, out, _ = ask(folder(lambda documents: joined(documents, "Generate")))
    assert code == 2
    assert "one replica takes 2 nodes, and Deployments are made of one pod each" in out
    assert "run groups of pods under management Observe" in out


def test_the_table_says_what_is_placed_where_for_whom_and_within_which_budget(ask: Ask) -> None:
    code, out, err = ask()
    assert (code, err) == (0, "")
    headline, pools, services, power = out.rstrip("\n").split("\n\n")
    assert headline.startswith("Optimal: ")
    assert all(word in headline for word in ("USD/h", "objective", "bound", "gap"))
    assert pools.splitlines()[0].split() == ["SERVICE", "ROLE", "GPU", "CLASS", "CONFIG", "REPLICAS", "WHERE", "USD/H"]
    assert all("default/chat" in row and "h100-sxm" in row and "rack-1 ×" in row for row in pools.splitlines()[1:])
    assert services.splitlines()[1].split() == ["default/chat", "critical", "6.00", "6.00"]
    assert power.splitlines()[1].startswith("rack-1     6 000")


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_other_forms_are_a_fleet_plan_that_the_api_server_would_take(ask: Ask, form: str) -> None:
    body = yaml.safe_load(ask(MINIMAL, "-o", form).out)
    assert (body["kind"], body["metadata"]["name"]) == ("FleetPlan", "plan-000001")
    assert [*find_violations(body), *unknown_fields(body["spec"], spec_schema("FleetPlan"))] == []


def test_all_forms_tell_the_same_decision(ask: Ask) -> None:
    as_json, as_yaml = json.loads(ask(MINIMAL, "-o", "json").out), yaml.safe_load(ask(MINIMAL, "-o", "yaml").out)
    assert as_json == as_yaml
    plan = parse_fleet_plan([as_json])
    assert plan.decision_hash == as_json["spec"]["decisionHash"]
    headline = ask().out.splitlines()[0]
    assert f"{plan.report.cost_usd_per_hour:.2f} USD/h" in headline
    assert sum(row.replicas for row in plan.placements) > 0


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_the_same_folder_gives_the_same_text(ask: Ask, form: str) -> None:
    assert ask(MINIMAL, "-o", form) == ask(MINIMAL, "-o", form)


def test_the_order_of_documents_does_not_matter(ask: Ask, folder: Callable[[Change], Path]) -> None:
    assert ask(folder(lambda documents: documents.reverse())) == ask()


def test_more_demand_costs_more(ask: Ask) -> None:
    usual = _plan_of(ask(MINIMAL, "-o", "yaml").out)
    answer = ask(MINIMAL, "-o", "yaml", "--demand", "default/chat=60")
    plan = _plan_of(answer.out)
    assert answer.code == 0
    assert plan.services[0].served_requests_per_s == 60.0
    assert plan.report.cost_usd_per_hour > usual.report.cost_usd_per_hour


def test_a_fleet_without_nodes_or_services_is_told_in_words(ask: Ask, folder: Callable[[Change], Path]) -> None:
    code, out, _ = ask(folder(lambda documents: documents.remove(_of("Node", documents))))
    assert code == 2
    assert "\n\nno replicas\n\n" in out
    assert "there is no node of h100-sxm" in out
    code, out, _ = ask(folder(lambda documents: documents.remove(_of("ServedModel", documents))))
    assert code == 0
    assert "\n\nno service is planned\n\nPOWER" in out


def test_no_demand_keeps_the_least_replicas(ask: Ask) -> None:
    plan = _plan_of(ask(MINIMAL, "-o", "yaml", "--demand", "default/chat=0").out)
    assert sum(row.replicas for row in plan.placements) == 1


def test_demand_beyond_the_fleet_is_infeasible_with_numbers_and_names(ask: Ask) -> None:
    code, out, err = ask(MINIMAL, "--demand", "default/chat=10000")
    assert (code, err) == (2, "")
    short = [line for line in out.splitlines() if line.startswith("short: ")]
    assert short
    assert "default/chat" in short[0]
    assert "rack-1" in short[0]
    assert " W" in short[0]
    assert any(line.startswith("relief: ") and "kW more of power[" in line for line in out.splitlines())


def test_an_slo_that_nothing_keeps_is_infeasible_and_names_the_field(
    ask: Ask, folder: Callable[[Change], Path]
) -> None:
    def hurry(documents: list[Body]) -> None:
        _of("ServedModel", documents)["spec"]["slos"][0]["milliseconds"] = 1

    code, _, err = ask(folder(hurry))
    assert code == 2
    assert err.startswith("infeasible: ServedModel/default/chat spec.slos: ")
    assert "relax the SLO" in err


def _unknown_class(documents: list[Body]) -> None:
    _of("ServedModel", documents)["spec"]["gpuClasses"] = ["b300"]


def _cycle(documents: list[Body]) -> None:
    rack = _of("PowerDomain", documents)
    rack["spec"]["parents"] = ["row"]
    row = {"budgetWatts": 9000, "parents": [rack["metadata"]["name"]]}
    documents.append({**rack, "metadata": {"name": "row"}, "spec": row})


def _second_policy(documents: list[Body]) -> None:
    documents.append(copy.deepcopy(_of("FleetPolicy", documents)))


def _other_policy(documents: list[Body]) -> None:
    documents.append({**_of("FleetPolicy", documents), "metadata": {"name": "night"}})


def _unknown_gpu(documents: list[Body]) -> None:
    node = copy.deepcopy(_of("Node", documents))
    node["metadata"]["name"] = "node-2"
    node["metadata"]["labels"]["nvidia.com/gpu.product"] = "NVIDIA-B300"
    documents.append(node)


def _unknown_kind(documents: list[Body]) -> None:
    documents.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}})


def _no_curves(documents: list[Body]) -> None:
    documents.remove(_of("EngineProfile", documents))


def _negative_budget(documents: list[Body]) -> None:
    _of("PowerDomain", documents)["spec"]["budgetWatts"] = -4


def _misspelt(documents: list[Body]) -> None:
    _of("GpuClass", documents)["spec"]["prizeMilliUsdPerHour"] = 3


BAD: dict[str, tuple[Change, tuple[str, ...]]] = {
    # change → what the message must name: object, field, problem, way out
    "unknown GPU class": (_unknown_class, ("ServedModel/default/chat", "spec.gpuClasses", "b300", "use one of h100")),
    "cyclic power graph": (_cycle, ("PowerDomain/rack-1", "spec.parents", "row → rack-1", "remove one of these")),
    "the policy twice": (_second_policy, ("FleetPolicy/default", "metadata.name", "fleet.yaml:3", "keep one")),
    "two policies": (_other_policy, ("FleetPolicy/night", "metadata.name", "there is one FleetPolicy", "default")),
    "node of unknown GPU": (_unknown_gpu, ("Node/node-2", "metadata.labels", "no GpuClass", "create a GpuClass")),
    "unknown kind": (_unknown_kind, ("Secret/keys", "kind", "fleet.yaml:7", "v1/Secret", "use one of ServedModel")),
    "no profile": (_no_curves, ("ServedModel/default/chat", "spec.model", "no EngineProfile", "penstock profile")),
    "bound": (_negative_budget, ("PowerDomain/rack-1", "spec.budgetWatts", "-4", "at least 1")),
    "misspelt field": (_misspelt, ("GpuClass/h100-sxm", "spec.prizeMilliUsdPerHour", "check the spelling")),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_told_with_object_field_and_way_out(what: str, ask: Ask, folder: Callable[[Change], Path]) -> None:
    change, named = BAD[what]
    code, _, err = ask(folder(change))
    assert code == 1
    first = err.splitlines()[0]
    assert [part for part in named if part not in first] == []


def test_the_rest_is_planned_beside_a_node_of_unknown_gpu(ask: Ask, folder: Callable[[Change], Path]) -> None:
    assert ask(folder(_unknown_gpu)).out == ask().out


def test_everything_wrong_is_told_at_once(ask: Ask, folder: Callable[[Change], Path]) -> None:
    def several(documents: list[Body]) -> None:
        _negative_budget(documents)
        _misspelt(documents)
        _unknown_kind(documents)

    assert len(ask(folder(several)).err.splitlines()) == 3


def test_a_folder_that_is_not_there_is_named(ask: Ask, tmp_path: Path) -> None:
    code, out, err = ask(tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err.startswith("penstock plan: ")
    assert "nowhere: no such file or folder; name a folder" in err


def test_a_folder_without_manifests_is_named(ask: Ask, tmp_path: Path) -> None:
    code, _, err = ask(tmp_path)
    assert code == 1
    assert f"{tmp_path}: holds no *.yaml or *.yml" in err


def test_broken_yaml_is_told_with_file_and_line(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("kind: Node\nmetadata: {name: [\n", encoding="utf-8")
    code, _, err = ask(tmp_path)
    assert code == 1
    assert "broken.yaml: cannot be read as YAML" in err
    assert "line 3" in err


@pytest.mark.parametrize(
    "text", ["default/chat", "default/chat=", "=3", "default/chat=-1", "default/chat=nan", "a=inf"]
)
def test_a_demand_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="write NAMESPACE/NAME=NUMBER"):
        parse_assignment("--demand", text)


def test_a_demand_for_a_service_that_is_not_there_names_those_that_are(ask: Ask) -> None:
    code, _, err = ask(MINIMAL, "--demand", "default/chad=3")
    assert code == 1
    assert "'default/chad'" in err
    assert "planned are default/chat" in err


def test_a_baseline_decides_instead_and_says_so(ask: Ask) -> None:
    code, out, err = ask(MINIMAL, "--baseline", "best_fit")
    assert (code, err) == (0, "")
    assert "note: baseline best_fit: nothing is proved" in out
    plan = _plan_of(ask(MINIMAL, "--baseline", "best_fit", "-o", "yaml").out)
    assert plan.report.cost_usd_per_hour >= _plan_of(ask(MINIMAL, "-o", "yaml").out).report.cost_usd_per_hour


def test_all_plans_are_set_side_by_side(ask: Ask) -> None:
    code, out, err = ask(MINIMAL, "--compare", "--demand", "default/chat=200")
    assert (code, err) == (2, "")
    header, ours, *others = out.splitlines()
    assert header.split() == ["PLAN", "USD/H", "RATIO", "CRITICAL", "SHORT", "%", "OURS", "IS"]
    assert ours.split()[::4] == ["ours", "-"]
    assert [line.split()[0] for line in others] == ["greedy", "per_service", "watt_clamp", "best_fit"]
    rows = json.loads(ask(MINIMAL, "--compare", "--demand", "default/chat=200", "-o", "json").out)["plans"]
    assert [row["name"] for row in rows] == ["ours", "greedy", "per_service", "watt_clamp", "best_fit"]
    assert all(row["shortage_ratio"]["critical"] >= rows[0]["shortage_ratio"]["critical"] - 1e-9 for row in rows)


def test_a_comparison_is_of_all_baselines_or_of_one_plan(ask: Ask) -> None:
    with pytest.raises(SystemExit) as ended:
        ask(MINIMAL, "--compare", "--baseline", "greedy")
    assert ended.value.code == 1


def test_the_bound_of_a_plan_is_found_again_where_asked(ask: Ask) -> None:
    plain, checked = ask(MINIMAL), ask(MINIMAL, "--verify-bound")
    assert (checked.code, checked.out) == (plain.code, plain.out)
    assert checked.err.startswith("bound supported: claimed ")


def test_a_decision_without_prices_has_no_bound_to_check(ask: Ask) -> None:
    said = ask(MINIMAL, "--baseline", "greedy", "--verify-bound").err
    assert said == "the bound shows no prices that could be checked\n"


def test_a_large_fleet_is_planned_within_its_time_limit_and_early_plans_are_told(
    ask: Ask, folder: Callable[[Change], Path]
) -> None:
    def many(documents: list[Body]) -> None:
        node = _of("Node", documents)
        _of("PowerDomain", documents)["spec"]["budgetWatts"] = 1_000_000
        for number in range(70):
            documents.append(copy.deepcopy(node))
            documents[-1]["metadata"]["name"] = f"more-{number:02}"

    answer = ask(folder(many), "--demand", "default/chat=5000", "--time-limit", "0.001")
    assert answer.code == 2
    told = r"^\d+\.\d of at most 0\.001 s: a first checked plan comes to [\d,.]+ USD/h and leaves some demand unserved;"
    assert re.search(told, answer.err, re.MULTILINE)
    is_proved = answer.out.startswith("Optimal")
    assert is_proved != ("the time limit of 0.001 s ended the search" in answer.out)


@pytest.mark.parametrize("is_short", [False, True])
def test_early_plans_are_told_with_their_cost_and_whether_anything_is_short(
    is_short: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict[str, object]()
    pool = PoolKey(service="prod/chat", role=Role.MIXED, gpu_class="h100", config=EngineConfig())
    early = written(
        {pool: (3.0, {"rack-a": 1})}, {"prod/chat": 3.0}, asked_per_s={"prod/chat": 4.0 if is_short else 3.0}
    )
    early = replace(early, report=replace(early.report, objective_usd_per_hour=1234.5))

    def make_plan(problem: Problem, *, on_plan: Callable[[Plan], None], **how: object) -> Plan:
        given.update(how)
        on_plan(early)
        return early

    monkeypatch.setattr(planning, "make_plan", make_plan)
    assert planning.decided(replace(NOTHING_ASKED, policy=Policy(time_limit_s=7.0)), workers=3) is early
    assert given == {"workers": 3, "is_isolated": True, "clock": time.monotonic}
    short = " and leaves some demand unserved" if is_short else ""
    told = f"of at most 7 s: a first checked plan comes to 1,234.50 USD/h{short}; looking for a better one\n"
    assert re.fullmatch(r"\d+\.\d " + re.escape(told), capsys.readouterr().err)


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_that_is_no_time_is_refused(ask: Ask, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ask(MINIMAL, f"--time-limit={limit}")
    assert f"'{limit}' is no time of more than 0 seconds" in capsys.readouterr().err
