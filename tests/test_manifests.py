"""Folders of manifests: what is read, what is refused, and that nothing is passed over in silence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from controller.manifests import InvalidManifests, default_policy, load_folder
from controller.plan_bodies import parse_fleet_plan, render_fleet_plan
from solvers.engine import Role
from tests.resource_cases import SAMPLES, Body, changed, good, small_plan

NODE: Body = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1", "labels": {"penstock.dev/managed": "true"}},
    "status": {"capacity": {"nvidia.com/gpu": "8", "memory": "2Ti"}},
}


def _write(folder: Path, name: str, *bodies: object) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump_all(bodies), encoding="utf-8")
    return folder


def _errors(folder: Path) -> list[str]:
    with pytest.raises(InvalidManifests) as refused:
        load_folder(folder)
    assert str(refused.value) == "\n".join(str(error) for error in refused.value.errors)
    return [str(error) for error in refused.value.errors]


@pytest.mark.parametrize("sample", ["minimal", "demo"])
def test_the_samples_are_read_without_a_complaint(sample: str) -> None:
    manifests = load_folder(SAMPLES / sample)
    profiled = {profile.key.model for profile in manifests.engine_profiles}
    assert all(spec.declared is not None for spec in manifests.served_models)
    assert {spec.model.model for spec in manifests.served_models} <= profiled
    classes = {gpu_class.name for gpu_class in manifests.gpu_classes}
    assert {profile.key.gpu_class for profile in manifests.engine_profiles} <= classes
    assert all(manifests.policy.location_label in node.labels for node in manifests.nodes)


def test_the_demo_fleet_is_a_tree_of_power_with_every_node_in_one_rack_and_one_class() -> None:
    demo = load_folder(SAMPLES / "demo")
    assert len(demo.nodes) == 14
    domains = {spec.domain.name: spec for spec in demo.power_domains}
    assert {parent for spec in domains.values() for parent in spec.domain.parents} <= set(domains)
    for node in demo.nodes:
        feeding = [s for s in domains.values() if s.node_selector and s.node_selector.items() <= node.labels.items()]
        kinds = [c for c in demo.gpu_classes if c.node_selector.items() <= node.labels.items()]
        assert (len(feeding), len(kinds)) == (1, 1), node.name


def test_the_demos_budgets_bind_yet_feed_every_idle_gpu() -> None:
    demo = load_folder(SAMPLES / "demo")
    classes = {c.node_selector["nvidia.com/gpu.product"]: c for c in demo.gpu_classes}
    for spec in demo.power_domains:
        if spec.node_selector:
            inside = [n for n in demo.nodes if spec.node_selector.items() <= n.labels.items()]
            held = [(classes[n.labels["nvidia.com/gpu.product"]], n.capacity["nvidia.com/gpu"]) for n in inside]
            assert sum(gpus * c.idle_watts for c, gpus in held) < 0.5 * spec.domain.usable_watts
            assert sum(gpus * (c.max_cap_watts + c.host_share_watts) for c, gpus in held) > spec.domain.usable_watts


def test_files_are_read_from_folders_below_and_other_files_are_left_alone(tmp_path: Path) -> None:
    _write(tmp_path, "b/nodes.yml", NODE, None)
    _write(tmp_path, "a.yaml", good("GpuClass"))
    (tmp_path / "README.md").write_text("not a manifest", encoding="utf-8")
    manifests = load_folder(tmp_path)
    assert [gpu_class.name for gpu_class in manifests.gpu_classes] == ["h100-sxm"]
    assert [node.name for node in manifests.nodes] == ["node-1"]
    assert manifests.policy == default_policy()


def test_one_file_can_be_read(tmp_path: Path) -> None:
    _write(tmp_path, "a.yaml", good("GpuClass"))
    assert len(load_folder(str(tmp_path / "a.yaml")).gpu_classes) == 1


def test_lists_are_taken_apart(tmp_path: Path) -> None:
    other = changed(NODE, ("metadata", "name"), "node-2")
    _write(tmp_path, "a.yaml", {"apiVersion": "v1", "kind": "List", "items": [NODE, other]})
    assert [node.name for node in load_folder(tmp_path).nodes] == ["node-1", "node-2"]


def test_a_node_is_ready_and_whole_unless_it_says_otherwise(tmp_path: Path) -> None:
    sick = changed(NODE, ("metadata", "name"), "sick")
    sick = changed(sick, ("status", "conditions"), [{"type": "Ready", "status": "False"}])
    sick = changed(sick, ("status", "allocatable"), {"nvidia.com/gpu": "7"})
    sick = changed(sick, ("spec",), {"unschedulable": True})
    well, ill = load_folder(_write(tmp_path, "a.yaml", NODE, sick)).nodes
    assert (well.is_ready, well.is_cordoned, well.allocatable) == (True, False, {"nvidia.com/gpu": 8})
    assert (ill.is_ready, ill.is_cordoned, ill.allocatable) == (False, True, {"nvidia.com/gpu": 7})


def test_a_plan_can_stand_beside_the_resources(tmp_path: Path) -> None:
    (body,) = render_fleet_plan(small_plan(), 3)
    manifests = load_folder(_write(tmp_path, "a.yaml", body))
    assert parse_fleet_plan(manifests.bodies).placements == small_plan().placements


def test_everything_wrong_is_told_at_once_with_file_document_and_field(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "a.yaml",
        good("GpuClass"),
        changed(good("PowerDomain"), ("spec", "budgetWatts"), 0),
        changed(good("EngineProfile"), ("spec", "sauce"), "Measured"),
    )
    _write(tmp_path, "b.yaml", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}, "text")
    (tmp_path / "c.yaml").write_text("a: [1,\nb: 2", encoding="utf-8")
    errors = _errors(tmp_path)
    assert errors[0].startswith("b.yaml:2: is no object")
    assert errors[1].startswith("c.yaml: cannot be read as YAML")
    assert errors[2:] == [
        "a.yaml:2 PowerDomain/rack-1 spec.budgetWatts: is 0; use at least 1",
        (
            "a.yaml:3 EngineProfile/llama-3.1-8b-h100-sxm-tp1 spec.sauce: is no field of this kind; "
            "check the spelling or remove it"
        ),
        (
            "b.yaml:1 Deployment/d kind: apps/v1/Deployment is unknown; use one of ServedModel, GpuClass, PowerDomain, "
            "EngineProfile, FleetPolicy, FleetPlan, Node (v1)"
        ),
    ]


def test_an_object_in_two_files_is_refused_and_both_places_are_named(tmp_path: Path) -> None:
    _write(tmp_path, "a.yaml", NODE, good("GpuClass"))
    _write(tmp_path, "b.yaml", good("GpuClass"))
    assert _errors(tmp_path) == ["b.yaml:1 GpuClass/h100-sxm metadata.name: is also in a.yaml:2; keep one of them"]


def test_two_policies_are_refused(tmp_path: Path) -> None:
    policy = good("FleetPolicy")
    _write(tmp_path, "a.yaml", policy, policy, changed(policy, ("metadata", "name"), "second"))
    assert [error.split(":")[2] for error in _errors(tmp_path)] == [
        " there is one FleetPolicy and its name is default; call it default, or remove it where there is one already",
        " is also in a.yaml",
    ]


def test_one_name_in_two_namespaces_is_no_duplicate(tmp_path: Path) -> None:
    other = changed(good("ServedModel"), ("metadata", "namespace"), "other")
    manifests = load_folder(_write(tmp_path, "a.yaml", other, good("ServedModel")))
    assert [spec.model.name for spec in manifests.served_models] == ["default/chat", "other/chat"]
    assert manifests.served_models[0].model.tier_rank == 0


def test_two_profiles_for_the_same_thing_are_refused(tmp_path: Path) -> None:
    rival = changed(good("EngineProfile"), ("metadata", "name"), "rival")
    (error,) = _errors(_write(tmp_path, "a.yaml", good("EngineProfile"), rival))
    assert "meta-llama/Llama-3.1-8B on h100-sxm as vllm tp1 is also in" in error


def test_a_tier_that_the_folders_policy_lacks_is_refused(tmp_path: Path) -> None:
    body = changed(good("ServedModel"), ("spec", "tier"), "gold")
    (error,) = _errors(_write(tmp_path, "a.yaml", body, good("FleetPolicy")))
    assert error.startswith("a.yaml:1 ServedModel/default/chat spec.tier: FleetPolicy/default has no tier gold")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: A\nkind: B\n", "key kind is there twice"),
        ("metadata: 7\n", "is no object"),
        ("- 1\n", "is no object"),
        ("apiVersion: v1\nkind: Node\nmetadata: {}\n", "metadata.name: is required"),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {x: true}}\n", "metadata.labels.x: is True"),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus: {capacity: {a/b: lots}}\n", "write quantities"),
        ("kind: GpuClass\nmetadata: {name: a}\n", "apiVersion: is None; write penstock.dev/v1alpha1"),
    ],
)
def test_malformed_documents_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert words in "\n".join(_errors(tmp_path))


def test_an_unquoted_date_stays_text(tmp_path: Path) -> None:
    text = (SAMPLES / "minimal" / "penstock.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(text.replace("sourceDetail: ", "sourceDetail: 2026-11-20 # "), encoding="utf-8")
    assert load_folder(tmp_path).engine_profiles[0].source_detail == "2026-11-20"


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = yaml.safe_dump(good("ServedModel")) + "\n---\na: &a {x: 1}\nb: {<<: *a, y: 2}\nkind: Other\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    (error,) = _errors(tmp_path)
    assert error.startswith("a.yaml:2 Other/(unnamed) kind: None/Other is unknown")


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("", "holds no *.yaml")])
def test_a_folder_without_manifests_is_an_error(tmp_path: Path, name: str, words: str) -> None:
    (error,) = _errors(tmp_path / name)
    assert words in error


def test_a_file_without_an_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n---\n", encoding="utf-8")
    (error,) = _errors(tmp_path)
    assert "holds no object" in error


def test_the_error_travels_between_processes() -> None:
    with pytest.raises(InvalidManifests) as refused:
        load_folder("nowhere")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_role_templates_of_the_samples_cover_every_role() -> None:
    for spec in load_folder(SAMPLES / "demo").served_models:
        assert set(spec.templates) == set(Role)
