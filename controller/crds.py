"""Writes the CustomResourceDefinitions from the types: ``python -m controller.crds``.

What pydantic says in JSON Schema is turned into what Kubernetes calls a structural schema; what cannot be turned is
refused here, not by a server later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from controller.schema import GROUP, KINDS, VERSION, Kind
from controller.schema_base import Resource

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "crds"
HEADER = "# Written by `python -m controller.crds` from controller/schema*.py; do not edit.\n"
KEPT = frozenset(
    {
        "type", "description", "default", "enum", "format", "items", "properties", "required", "additionalProperties",
        "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
        "pattern", "nullable",
    }
)  # fmt: skip
DROPPED = frozenset({"title", "$defs", "propertyNames"})  # keys of maps are checked when the object is read
OPEN = "x-kubernetes-preserve-unknown-fields"

JsonSchema = dict[str, Any]


class NotStructural(ValueError):
    """A type has no structural schema."""


def structural_schema(model: type[Resource]) -> JsonSchema:
    """Derive the structural schema of a type.

    Raises
    ------
    NotStructural
        When the type is recursive, a union, a tuple of mixed types, or unbounded in a way that the server refuses.
    """
    raw = model.model_json_schema(by_alias=True)
    return _convert(raw, raw.get("$defs", {}), ())


def _convert(raw: JsonSchema, types: Mapping[str, JsonSchema], path: tuple[str, ...]) -> JsonSchema:
    node = _collapse(raw, types, path)
    unknown = {key for key in node if key not in KEPT | DROPPED and not key.startswith("x-kubernetes-")}
    if unknown:
        raise NotStructural(f"{'.'.join(path) or 'root'}: no structural form for {sorted(unknown)}")
    kept = {key: value for key, value in node.items() if key not in DROPPED}
    return _convert_children(kept, types, path)


def _convert_children(node: JsonSchema, types: Mapping[str, JsonSchema], path: tuple[str, ...]) -> JsonSchema:
    if "properties" in node:
        # Unknown fields beside known ones are pruned by the server, or kept where the type is open.
        extra = node.pop("additionalProperties", None)
        node |= {OPEN: True} if extra is True else {}
        node["properties"] = {k: _convert(v, types, (*path, k)) for k, v in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _convert(node["additionalProperties"], types, (*path, "*"))
    if "items" in node:
        node["items"] = _convert(node["items"], types, (*path, "[]"))
    if node.get("type") == "integer":
        node["format"] = "int64"
    return node


def _collapse(raw: JsonSchema, types: Mapping[str, JsonSchema], path: tuple[str, ...]) -> JsonSchema:
    """Inline references, and drop the null branch of optional fields; siblings of either win."""
    node = dict(raw)
    for _ in range(len(types) + 2):
        if "$ref" in node:
            name = node.pop("$ref").rpartition("/")[2]
            node = {**types[name], **node}
        elif "anyOf" in node:
            node = {**_only_branch(node.pop("anyOf"), path), **node}
            node = {key: value for key, value in node.items() if key != "default" or value is not None}
        elif "const" in node:
            node["enum"] = [node.pop("const")]
        else:
            return node
        if len(path) > 32:
            break
    raise NotStructural(f"{'.'.join(path)}: the type contains itself")


def _only_branch(branches: list[JsonSchema], path: tuple[str, ...]) -> JsonSchema:
    real = [branch for branch in branches if branch.get("type") != "null"]
    if len(real) != 1:
        raise NotStructural(f"{'.'.join(path)}: a union of {len(real)} types; give each its own optional field")
    return real[0]


@cache
def spec_schema(kind_name: str) -> JsonSchema:
    """Give the structural schema of a kind's spec; callers must not change it."""
    return structural_schema(KINDS[kind_name].spec)


def unknown_fields(value: object, schema: Mapping[str, Any], path: str = "spec") -> Iterator[str]:
    """Find the fields that the server would prune, as paths."""
    if isinstance(value, Mapping) and "properties" in schema:
        for key, inner in value.items():
            if key in schema["properties"]:
                yield from unknown_fields(inner, schema["properties"][key], f"{path}.{key}")
            elif not schema.get(OPEN):
                yield f"{path}.{key}"
    elif isinstance(value, list) and "items" in schema:
        for place, inner in enumerate(value):
            yield from unknown_fields(inner, schema["items"], f"{path}[{place}]")


def crd(kind: Kind) -> JsonSchema:
    """Make the CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name, "labels": {"app.kubernetes.io/part-of": "penstock"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.is_namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["penstock"],
            },
            "versions": [_version(kind)],
        },
    }


def _version(kind: Kind) -> JsonSchema:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": c.name, "type": c.type, "jsonPath": c.path, **({"priority": 1} if c.is_wide else {})}
            for c in kind.columns
        ],
        "schema": {"openAPIV3Schema": _root(kind)},
    }


def _root(kind: Kind) -> JsonSchema:
    rules = [rule.to_validation() for rule in kind.rules]
    return {
        "type": "object",
        "description": kind.doc,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(kind.spec),
            "status": structural_schema(kind.status),
        },
        **({"x-kubernetes-validations": rules} if rules else {}),
    }


def file_name(kind: Kind) -> str:
    return f"{GROUP}_{kind.plural}.yaml"


def render(kind: Kind) -> str:
    """Make the text of a kind's file."""
    return HEADER + yaml.dump(crd(kind), Dumper=_NoAliases, sort_keys=False, width=120, allow_unicode=True)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def main(arguments: list[str] | None = None) -> int:
    """Write all files, or say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m controller.crds", description="Write the CRDs of Penstock.")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where to write (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    options = parser.parse_args(arguments)
    wanted = {options.folder / file_name(kind): render(kind) for kind in KINDS.values()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.name} is {'stale: run python -m controller.crds' if options.check else 'written'}")
    if not options.check:
        options.folder.mkdir(parents=True, exist_ok=True)
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
