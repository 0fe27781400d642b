"""The resource types: what they refuse, which field they blame, and what they fill in."""

from __future__ import annotations

import pytest

from controller.schema import KINDS
from controller.schema_base import Resource
from controller.validation import find_violations
from tests.resource_cases import BAD, Bad, changed, good


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_object_has_no_violations(kind: str) -> None:
    assert find_violations(good(kind)) == ()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.label)
def test_a_bad_field_is_blamed_by_its_path(bad: Bad) -> None:
    fields = [error.field for error in find_violations(bad.body())]
    assert fields == [bad.field]


def test_every_violation_is_reported_at_once() -> None:
    body = changed(changed(good("GpuClass"), ("spec", "memoryMebibytes"), 0), ("spec", "power", "idleWatts"), "warm")
    assert [e.field for e in find_violations(body)] == ["spec.memoryMebibytes", "spec.power.idleWatts"]


def test_an_error_names_object_numbers_and_way_out() -> None:
    (error,) = find_violations(changed(good("ServedModel"), ("spec", "slos", 0, "percentile"), 30))
    assert str(error) == "ServedModel/default/chat spec.slos[0].percentile: is 30; use at least 50"


def test_a_bare_off_is_recognised_as_yaml_reading_false() -> None:
    (error,) = find_violations(changed(good("FleetPolicy"), ("spec", "modes", "replicas"), False))
    assert 'quote "Off"' in error.remedy


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("FleetPolicy", "other", "name is default"),
        ("ServedModel", "m" * 64, "64 characters"),
        ("GpuClass", "g" * 64, "64 characters"),
        ("PowerDomain", "", "is required"),
    ],
)
def test_a_bad_name_is_refused(kind: str, name: str, problem: str) -> None:
    (error,) = find_violations(changed(good(kind), ("metadata", "name"), name))
    assert error.field == "metadata.name"
    assert problem in error.problem


def test_a_wrong_version_is_refused() -> None:
    (error,) = find_violations(changed(good("GpuClass"), ("apiVersion",), "penstock.dev/v2"))
    assert (error.field, error.remedy) == ("apiVersion", "write penstock.dev/v1alpha1")


@pytest.mark.parametrize("spec", [None, [], "text"])
def test_a_spec_that_is_no_object_is_refused(spec: object) -> None:
    (error,) = find_violations(changed(good("GpuClass"), ("spec",), spec))
    assert error.field == "spec"


def test_a_decode_table_that_falls_in_an_inner_column_is_refused() -> None:
    """The server compares the first column only, so this is left to the operator."""
    steps = [[1, 9, 9, 9], [2, 8, 9, 9], [3, 9, 9, 9], [4, 9, 9, 9], [5, 9, 9, 9]]
    (error,) = find_violations(changed(good("EngineProfile"), ("spec", "decode", "stepMicroseconds"), steps))
    assert error.field == "spec.decode.stepMicroseconds"


def test_role_templates_stand_in_for_the_common_template() -> None:
    template = good("ServedModel")["spec"]["template"]
    body = changed(good("ServedModel"), ("spec", "roleTemplates"), dict.fromkeys(("prefill", "decode"), template))
    del body["spec"]["template"]
    (error,) = find_violations(body)
    assert "roleTemplates.mixed" in error.problem
    body["spec"]["roles"] = ["prefill", "decode"]
    assert find_violations(body) == ()


def _types(root: type[Resource]) -> set[type[Resource]]:
    found: set[type[Resource]] = set()
    todo: list[object] = [root]
    while todo:
        item = todo.pop()
        if isinstance(item, type) and issubclass(item, Resource) and item not in found:
            found.add(item)
            todo.extend(field.annotation for field in item.model_fields.values())
        todo.extend(getattr(item, "__args__", ()))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    types = _types(KINDS[kind].spec) | _types(KINDS[kind].status)
    assert len(types) > 1
    bare = [f"{t.__name__}.{name}" for t in types for name, field in t.model_fields.items() if not field.description]
    assert bare == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_but_those_on_updates_is_also_claimed_in_python(kind: str) -> None:
    rules = [rule for t in _types(KINDS[kind].spec) for rule in t.rules]
    assert [rule.cel for rule in rules if rule.holds is None and "oldSelf" not in rule.cel] == []
