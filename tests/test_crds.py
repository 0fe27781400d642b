"""The committed CustomResourceDefinitions: fresh, structural, and kept by a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from controller.crds import DEFAULT_FOLDER, NotStructural, file_name, main, render, spec_schema, structural_schema
from controller.crds import unknown_fields as find_unknown
from controller.manifests import load_folder
from controller.plan_bodies import PART_BYTES, PLAN_LABEL, parse_fleet_plan, plan_name, render_fleet_plan
from controller.resources import parse_engine_profile
from controller.schema import API_VERSION, KINDS
from controller.schema_base import Open, Resource, Rule, immutable
from tests.conftest import SharedCluster
from tests.resource_cases import (
    BAD,
    SAMPLES,
    Body,
    all_statuses,
    changed,
    crd_bodies,
    good,
    install_crds,
    large_plan,
    large_profile,
)
from tests.simcluster.api import ApiError
from tests.simcluster.cluster import SimCluster


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_committed_file_is_what_the_types_say(kind: Any) -> None:
    assert (DEFAULT_FOLDER / file_name(kind)).read_text(encoding="utf-8") == render(kind)


def test_no_file_is_left_of_a_kind_that_is_gone() -> None:
    assert {path.name for path in DEFAULT_FOLDER.iterdir()} == {file_name(kind) for kind in KINDS.values()}


def test_check_tells_stale_files_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 0
    assert main(["--folder", str(tmp_path), "--check"]) == 0
    stale = tmp_path / "penstock.dev_gpuclasses.yaml"
    stale.write_text("old", encoding="utf-8")
    capsys.readouterr()
    assert main(["--folder", str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().out == f"{stale.name} is stale: run python -m controller.crds\n"
    assert stale.read_text(encoding="utf-8") == "old"


def _schemas(node: Any, path: str = "") -> list[tuple[str, Body]]:
    """Every schema below a definition's root, with its path."""
    found = [(path, node)]
    for key, inner in node.get("properties", {}).items():
        found += _schemas(inner, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            found += _schemas(node[key], f"{path}.{key}")
    return found


@pytest.mark.parametrize("body", crd_bodies(), ids=lambda body: body["spec"]["names"]["kind"])
def test_everything_is_bounded_and_described(body: Body) -> None:
    bounds = {"string": ("maxLength", "enum", "format"), "array": ("maxItems",), "integer": ("minimum",)}
    spec = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for path, schema in _schemas(spec):
        wanted = bounds.get(schema["type"], ())
        assert not wanted or any(bound in schema for bound in wanted), f"{path} lacks one of {wanted}"
        assert schema["type"] != "object" or "properties" in schema or "maxProperties" in schema, f"{path} is open"


class Leaf(Resource):
    """A leaf."""

    size: int = 3
    """Its size."""

    rules: ClassVar[tuple[Rule, ...]] = (immutable("size", because="leaves do not grow"),)


class Tree(Resource):
    """A tree."""

    leaf: Leaf = Field(default_factory=Leaf)
    """One leaf."""
    extra: Leaf | None = None
    """Perhaps another."""
    names: dict[str, str] = Field(default_factory=dict, max_length=4)
    """Names by language."""


class Anything(Open):
    """Keeps what it does not know."""

    known: str
    """The known part."""


class Loop(Resource):
    """Contains itself."""

    inner: Loop | None = None
    """The same again."""


class Either(Resource):
    """Cannot decide."""

    value: int | str
    """A number or a text."""


class Pair(Resource):
    """Two different things in a row."""

    both: tuple[int, str]
    """A number, then a text."""


def test_references_options_defaults_and_rules_become_structural() -> None:
    tree = structural_schema(Tree)
    assert "$defs" not in tree
    assert "additionalProperties" not in tree
    assert tree["properties"]["leaf"] == {
        "type": "object",
        "description": "One leaf.",
        "default": {"size": 3},
        "properties": {"size": {"type": "integer", "format": "int64", "default": 3, "description": "Its size."}},
        "x-kubernetes-validations": [
            {
                "rule": "self.size == oldSelf.size",
                "message": "size cannot change: leaves do not grow",
                "fieldPath": ".size",
            }
        ],
    }
    assert "default" not in tree["properties"]["extra"]
    assert tree["properties"]["names"]["additionalProperties"] == {"type": "string"}
    assert tree["properties"]["names"]["maxProperties"] == 4


def test_open_types_keep_unknown_fields_and_others_name_them() -> None:
    schema = structural_schema(Anything)
    assert schema["x-kubernetes-preserve-unknown-fields"] is True
    assert list(find_unknown({"known": "a", "other": 1}, schema)) == []
    assert list(find_unknown({"leaf": {"siez": 1}, "name": {}}, structural_schema(Tree))) == [
        "spec.leaf.siez",
        "spec.name",
    ]


@pytest.mark.parametrize(("model", "words"), [(Loop, "itself"), (Either, "union"), (Pair, "prefixItems")])
def test_what_has_no_structural_form_is_refused(model: type[Resource], words: str) -> None:
    with pytest.raises(NotStructural, match=words):
        structural_schema(model)


# On a real API server


@pytest.fixture(scope="module")
def serving_crds(shared_cluster: SharedCluster) -> Iterator[SimCluster]:
    """A cluster with the definitions: installing them takes the server seconds, so once for this file."""
    install_crds(shared_cluster.get())
    yield shared_cluster.get()
    shared_cluster.reset()


@pytest.fixture
def server(serving_crds: SimCluster) -> Iterator[SimCluster]:
    """The same, without objects left by the test before."""
    yield serving_crds
    for kind in KINDS.values():
        namespace = "/namespaces/default" if kind.is_namespaced else ""
        serving_crds.api.delete(f"/apis/{API_VERSION}{namespace}/{kind.plural}")


def _fields_blamed(error: ApiError) -> set[str]:
    return {cause.get("field", "") for cause in error.body.get("details", {}).get("causes", [])}


@pytest.mark.cluster
def test_the_server_accepts_every_good_object_and_shows_its_columns(server: SimCluster) -> None:
    for kind in KINDS:
        server.api.create(good(kind))
    listed = server.kubectl("get", "penstock", "-A")
    assert [kind for kind in KINDS if f"{kind.lower()}.penstock.dev/" not in listed] == []
    headings = {kind.short: server.kubectl("get", kind.short, "-A").splitlines()[0] for kind in KINDS.values()}
    assert "PREFILL" in headings["sm"]
    assert "RESERVED" in headings["pdom"]
    assert all(column.name in headings[kind.short] for kind in KINDS.values() for column in kind.columns[:3])


@pytest.mark.cluster
def test_the_server_blames_the_same_fields_as_the_types(server: SimCluster) -> None:
    disagreements = []
    for bad in BAD:
        try:
            server.api.create(bad.body())
            disagreements.append(f"{bad.label} was accepted")
        except ApiError as error:
            if bad.field not in _fields_blamed(error):
                disagreements.append(f"{bad.label}: {_fields_blamed(error)} instead of {bad.field}: {error}")
    assert disagreements == []


@pytest.mark.cluster
def test_names_are_kept_by_the_server(server: SimCluster) -> None:
    for kind, name in (("FleetPolicy", "other"), ("ServedModel", "m" * 64), ("GpuClass", "g" * 64)):
        with pytest.raises(ApiError) as refused:
            server.api.create(changed(good(kind), ("metadata", "name"), name))
        assert refused.value.status == 422
        assert "metadata" in _fields_blamed(refused.value)


@pytest.mark.cluster
def test_the_server_fills_in_the_defaults_that_the_types_have(server: SimCluster) -> None:
    for kind in KINDS:
        body = good(kind)
        stored = server.api.create(body)["spec"]
        expected = KINDS[kind].spec.model_validate_json(json.dumps(body["spec"]))
        assert stored == expected.model_dump(mode="json", by_alias=True, exclude_none=True) | _as_written(body)


def _as_written(body: Body) -> Body:
    """Pod templates are kept as they are; the types read only a part of them."""
    return {key: body["spec"][key] for key in ("template", "roleTemplates") if key in body["spec"]}


@pytest.mark.cluster
def test_an_empty_policy_is_every_default(server: SimCluster) -> None:
    stored = server.api.create(changed(good("FleetPolicy"), ("spec",), {}))
    defaults = KINDS["FleetPolicy"].spec()
    assert stored["spec"] == defaults.model_dump(mode="json", by_alias=True)


IMMUTABLE: tuple[tuple[str, tuple[str, ...], Any, str], ...] = (
    ("FleetPlan", ("report", "rounds"), 9, "spec"),
    ("FleetPlan", ("placements",), [], "spec"),
    ("GpuClass", ("resourceName",), "amd.com/gpu", "spec.resourceName"),
    ("EngineProfile", ("model",), "other/model", "spec.model"),
    ("EngineProfile", ("gpuClass",), "l40s", "spec.gpuClass"),
    ("EngineProfile", ("config", "tensorParallel"), 2, "spec.config"),
    ("FleetPolicy", ("locationLabel",), "topology.kubernetes.io/zone", "spec.locationLabel"),
)


@pytest.mark.cluster
def test_the_server_keeps_what_cannot_change_and_lets_the_rest_change(server: SimCluster) -> None:
    for kind in {kind for kind, *_ in IMMUTABLE}:
        server.api.create(good(kind))
    for kind, path, value, field in IMMUTABLE:
        target = server.api.path_of(good(kind))
        with pytest.raises(ApiError) as refused:
            server.api.merge(target, changed({"spec": {}}, ("spec", *path), value))
        assert field in _fields_blamed(refused.value), (kind, path)
    price = server.api.merge(server.api.path_of(good("GpuClass")), {"spec": {"priceMilliUsdPerHour": 1}})
    assert price["spec"]["priceMilliUsdPerHour"] == 1
    assert price["metadata"]["generation"] == 2


@pytest.mark.cluster
def test_unknown_fields_are_pruned_except_in_pod_templates(server: SimCluster) -> None:
    body = changed(good("ServedModel"), ("spec", "colour"), "red")
    body = changed(body, ("spec", "template", "spec", "tolerations"), [{"operator": "Exists"}])
    body = changed(body, ("spec", "template", "spec", "containers", 0, "stdin"), True)
    stored = server.api.create(body)["spec"]
    assert "colour" not in stored
    assert stored["template"] == body["spec"]["template"]
    assert list(find_unknown(body["spec"], spec_schema("ServedModel"))) == ["spec.colour"]
    with pytest.raises(ApiError, match=r"spec\.colour"):
        server.api.request("POST", server.api.collection_of(body), body, query={"fieldValidation": "Strict"})


@pytest.mark.cluster
def test_an_update_of_the_status_leaves_the_spec_alone(server: SimCluster) -> None:
    created = server.api.create(good("PowerDomain"))
    path = server.api.path_of(created)
    changed_both = {"spec": {"budgetWatts": 1}, "status": {"state": "Within", "reservedWatts": 10}}
    after = server.api.merge(f"{path}/status", changed_both)
    assert after["spec"] == created["spec"]
    assert after["status"] == {"state": "Within", "reservedWatts": 10, "conditions": []}
    assert after["metadata"]["generation"] == 1


@pytest.mark.cluster
def test_the_server_takes_every_part_of_a_plan_for_ten_thousand_replicas(server: SimCluster) -> None:
    plan = large_plan()
    created = [server.api.create(body) for body in render_fleet_plan(plan, 7)]
    assert max(len(json.dumps(body, separators=(",", ":"))) for body in created) <= PART_BYTES
    listed = server.api.list_all(f"/apis/{API_VERSION}/fleetplans", label_selector=f"{PLAN_LABEL}={plan_name(7)}")
    assert parse_fleet_plan(listed).placements == plan.placements
    with pytest.raises(ApiError) as refused:
        server.api.create(render_fleet_plan(plan, 7)[0])
    assert refused.value.reason == "AlreadyExists"


@pytest.mark.cluster
def test_the_rules_of_the_largest_profile_are_within_what_the_server_spends_on_them(server: SimCluster) -> None:
    body = large_profile()
    parse_engine_profile(body)
    server.api.create(body)
    steps = [[*row[:-1], row[-2] - 1] for row in body["spec"]["decode"]["stepMicroseconds"]]
    with pytest.raises(ApiError) as refused:
        server.api.merge(server.api.path_of(body), {"spec": {"decode": {"stepMicroseconds": steps}}})
    assert _fields_blamed(refused.value) == {"spec.decode.stepMicroseconds"}


@pytest.mark.cluster
def test_the_server_takes_every_status_that_we_render(server: SimCluster) -> None:
    for kind, status in all_statuses().items():
        path = server.api.path_of(server.api.create(good(kind)))
        after = server.api.merge(f"{path}/status", {"status": status})
        assert after["status"] == status, kind
    assert server.kubectl("get", "sm", "chat", "--no-headers").split("  ")[0] == "chat"


@pytest.mark.cluster
def test_kubectl_takes_the_samples_as_they_are(server: SimCluster) -> None:
    server.create_namespace("demo")
    for folder in (SAMPLES / "minimal", SAMPLES / "demo"):
        said = server.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(folder))
        assert len(said.splitlines()) == len(load_folder(folder).bodies)
