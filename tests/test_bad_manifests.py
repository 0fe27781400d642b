"""Manifests with anything in them: what is wrong is named, object by object, and nothing ends in a trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.crds import spec_schema
from controller.manifests import InvalidManifests, load_folder
from controller.planning import observe_folder
from controller.profile_check import FIELDS
from controller.specs import parse_specs
from solvers.engine import EngineProfile
from solvers.errors import InvalidInput
from solvers.planner.checks import check_problem
from tests.resource_cases import Body, changed, corrections, good, minimal

GPU = "nvidia.com/gpu"
ODD: tuple[Any, ...] = (float("nan"), float("inf"), -1, "", "zz", [], {}, [None], {"a": None}, 1e300, "9" * 400, True)
"""What may stand where something else should."""

KINDS = ("GpuClass", "PowerDomain", "FleetPolicy", "ServedModel", "EngineProfile", "Node")


def bodies() -> list[Body]:
    """The smallest sample with what it leaves out: host resources, links, quotas, taints, conditions, corrections."""
    made = minimal()
    by_kind = {body["kind"]: body for body in made}
    node = by_kind["Node"]
    node["spec"] = {"taints": [{"key": "a", "effect": "NoSchedule"}]}
    amounts = {**node["status"]["capacity"], "cpu": "64", "memory": "512Gi"}
    node["status"] = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    by_kind["FleetPolicy"]["spec"] |= {
        "kvLinks": [{"name": "up", "locations": ["rack-1"], "megabytesPerSecond": 9}],
        "quotas": [{"namespace": "default", "maxGpus": 8}],
    }
    containers = by_kind["ServedModel"]["spec"]["template"]["spec"]["containers"]
    containers[0]["resources"] = {"requests": {"cpu": "2", "memory": "10Gi"}}
    by_kind["EngineProfile"]["status"] = {"corrections": corrections()}
    return made


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a body; of a list its first row."""
    rows = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, inner in rows:
        yield (*path, name)
        yield from places(inner, (*path, name))


def at(body: Body, path: tuple[str | int, ...]) -> tuple[Any, str | int]:
    """What holds the place, and the place's name in it."""
    holder: Any = body
    for name in path[:-1]:
        holder = holder[name]
    return holder, path[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_stands_in_a_manifest_ends_in_a_trace(tmp_path: Path, kind: str) -> None:
    """Every place of an object in turn is taken away, then holds something odd; each fourth odd thing, in turn."""
    made = bodies()
    place = next(index for index, body in enumerate(made) if body["kind"] == kind)
    told: list[InvalidInput] = []
    for number, path in enumerate(places(made[place])):
        for odd in (None, *ODD[number % 4 :: 4]):
            now = copy.deepcopy(made)
            holder, name = at(now[place], path)
            if odd is None:
                del holder[name]
            else:
                holder[name] = odd
            (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(now), encoding="utf-8")
            told.extend(refusals(tmp_path))
    assert len(told) > 10
    assert all(error.subject.startswith("a.yaml:") for error in told)


def refusals(folder: Path) -> tuple[InvalidInput, ...]:
    """What is refused of a folder; what is accepted must be of use to the planner."""
    try:
        check_problem(observe_folder(folder).problem)
    except InvalidManifests as error:
        return error.errors
    return ()


def test_the_whole_of_the_sample_is_sound(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(bodies()), encoding="utf-8")
    observed = observe_folder(tmp_path)
    assert observed.faults == ()
    assert observed.problem.policy.kv_links


WRONG: dict[str, tuple[str, str | tuple[str | int, ...], Any, str]] = {
    "a kind of no word": ("GpuClass", ("kind",), [], "is unknown; use one of"),
    "a namespace of no word": ("ServedModel", ("metadata", "namespace"), [], "metadata.namespace: is []"),
    "labels of no mapping": ("Node", ("metadata", "labels"), "zz", "metadata.labels: is no mapping"),
    "a status of no mapping": ("Node", ("status",), "zz", "status: is no mapping"),
    "taints of no mappings": ("Node", ("spec", "taints"), ["zz"], "spec.taints: is no list of mappings"),
    "conditions that are one": ("Node", ("status", "conditions"), "zz", "status.conditions: is no list of mappings"),
    "idle above what is busy": (
        "EngineProfile",
        ("spec", "power", "idleWatts"),
        1500,
        "spec.power.idleWatts: is 1500, must not exceed prefillWatts or any of decodeWatts",
    ),
    "times that fall": (
        "EngineProfile",
        ("spec", "prefill", "microseconds"),
        [6, 5, 4, 3, 2, 1],
        "spec.prefill.microseconds: must not decrease with the prompt",
    ),
    "less CPU than none": (
        "ServedModel",
        ("spec", "template", "spec", "containers", 0, "resources", "requests", "cpu"),
        "-1",
        "spec.template: of role decode asks for no quantities (less than nothing of cpu)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, what: str) -> None:
    kind, path, value, words = WRONG[what]
    made = bodies()
    holder, name = at(next(body for body in made if body["kind"] == kind), tuple(path))
    holder[name] = value
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(made), encoding="utf-8")
    with pytest.raises(InvalidManifests) as caught:
        load_folder(tmp_path)
    (error,) = caught.value.errors
    assert words in str(error)
    assert error.remedy


@pytest.mark.parametrize(("count", "said"), [("-1", "says -1"), ("1e300", "says 9.22337e+18")])
def test_a_node_with_gpus_that_none_can_have_is_left_out_by_name(tmp_path: Path, count: str, said: str) -> None:
    made = bodies()
    next(body for body in made if body["kind"] == "Node")["status"]["allocatable"] = {GPU: count}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(made), encoding="utf-8")
    observed = observe_folder(tmp_path)
    (fault,) = observed.faults
    assert str(fault).startswith(f"Node/node-1 status.allocatable: {said} {GPU}; the node and its watts are left out")
    assert observed.problem.nodes == ()


def test_one_profile_that_nothing_can_be_read_from_leaves_the_others_alone() -> None:
    sound = good("EngineProfile")
    wrong = changed(changed(sound, ("metadata", "name"), "wrong"), ("spec", "power", "idleWatts"), 1500)
    specs = parse_specs({"GpuClass": [good("GpuClass")], "EngineProfile": [sound, wrong]})
    assert len(specs.engine_profiles) == 1
    assert any(fault.field == "spec.power.idleWatts" and "wrong" in fault.subject for fault in specs.faults)


def test_every_table_of_a_profile_is_named_as_its_spec_has_it() -> None:
    plain = {"key", "source", "source_detail", "kv_compatibility_group", "corrections"}
    assert set(FIELDS) == {field.name for field in fields(EngineProfile)} - plain
    for path in FIELDS.values():
        schema = spec_schema("EngineProfile")
        for name in path.split("."):
            schema = schema["properties"][name]
