"""Reads a folder of YAML as the API server would take it: the six kinds and ``v1/Node``.

Everything wrong is collected, so that one run shows all of it; nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from controller.crds import spec_schema, unknown_fields
from controller.kinds import node_record
from controller.records import NodeRecord
from controller.resources import (
    FleetPolicySpec,
    PowerDomainSpec,
    ServedModelSpec,
    parse_engine_profile,
    parse_fleet_policy,
    parse_gpu_class,
    parse_power_domain,
    parse_served_model,
)
from controller.schema import KINDS
from controller.validation import Json, find_violations, subject_of
from solvers.engine import EngineProfile, ProfileKey
from solvers.errors import InvalidInput, PenstockError
from solvers.fleet import GpuClass

SUFFIXES = frozenset({".yaml", ".yml"})
NODE = ("v1", "Node")
ParsedT = TypeVar("ParsedT")
LISTS = ("List", "NodeList", *(f"{kind}List" for kind in KINDS))
NODE_PARTS: Mapping[str, bool] = {
    "metadata.labels": False,
    "spec": False,
    "spec.taints": True,
    "status": False,
    "status.capacity": False,
    "status.allocatable": False,
    "status.conditions": True,
}
"""What a Node is read by, besides its name: True where it is a list of mappings and not one mapping."""


class InvalidManifests(PenstockError):
    """Documents of a folder are wrong; ``errors`` has all of them, in the order of files and documents."""

    def __init__(self, errors: Sequence[InvalidInput]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))

    def __reduce__(self) -> tuple[type, tuple[tuple[InvalidInput, ...]]]:
        return type(self), (self.errors,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One object and where it stands: ``file:document``, documents counted from 1."""

    place: str
    body: Json

    @property
    def subject(self) -> str:
        return f"{self.place} {subject_of(self.body)}"

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, namespace and name."""
        metadata = self.body["metadata"]
        namespaced = self.body["kind"] in KINDS and KINDS[self.body["kind"]].is_namespaced
        return self.body["kind"], metadata.get("namespace", "default") if namespaced else "", metadata["name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """What a folder holds, parsed; every tuple is sorted by name.

    Attributes
    ----------
    policy : FleetPolicySpec
        The one FleetPolicy; the defaults when the folder has none.
    bodies : tuple of objects
        As they were written, in order; FleetPlans are among them and are not parsed.
    """

    policy: FleetPolicySpec
    served_models: tuple[ServedModelSpec, ...]
    gpu_classes: tuple[GpuClass, ...]
    power_domains: tuple[PowerDomainSpec, ...]
    engine_profiles: tuple[EngineProfile, ...]
    nodes: tuple[NodeRecord, ...]
    bodies: tuple[Json, ...]


def load_folder(path: Path | str) -> Manifests:
    """Read every ``*.yaml`` and ``*.yml`` under a folder, or one file.

    Raises
    ------
    InvalidManifests
        With everything that is wrong: YAML, unknown kinds and fields, fields against their schema, duplicates, tiers
        that the policy lacks, two profiles for the same thing.
    """
    errors: list[InvalidInput] = []
    documents = [*_read_documents(Path(path), errors)]
    known = [document for document in documents if _accept(document, errors)]
    _refuse_duplicates(known, errors)
    if not documents and not errors:
        errors.append(InvalidInput(str(path), "", "holds no object", "write GpuClasses, Nodes, ServedModels and so on"))
    if errors:
        raise InvalidManifests(errors)
    return parse_documents(known)


def parse_documents(documents: Sequence[Document]) -> Manifests:
    """Parse documents that passed the schema.

    Raises
    ------
    InvalidManifests
        With every object that its parser refuses.
    """
    errors: list[InvalidInput] = []
    by_kind = {kind: [d for d in documents if d.body["kind"] == kind] for kind in (*KINDS, "Node")}
    policies = _parse_each(by_kind["FleetPolicy"], parse_fleet_policy, errors)
    policy = policies[0] if policies else default_policy()
    parsed = Manifests(
        policy=policy,
        served_models=_parse_each(by_kind["ServedModel"], lambda body: parse_served_model(body, policy), errors),
        gpu_classes=_parse_each(by_kind["GpuClass"], parse_gpu_class, errors),
        power_domains=_parse_each(by_kind["PowerDomain"], parse_power_domain, errors),
        engine_profiles=_parse_each(by_kind["EngineProfile"], parse_engine_profile, errors),
        nodes=_parse_each(by_kind["Node"], parse_node, errors),
        bodies=tuple(document.body for document in documents),
    )
    _refuse_rival_profiles(by_kind["EngineProfile"], parsed.engine_profiles, errors)
    if errors:
        raise InvalidManifests(errors)
    return parsed


def default_policy() -> FleetPolicySpec:
    """Give the FleetPolicy that holds where none is written: every default of its schema."""
    return parse_fleet_policy({"kind": "FleetPolicy", "metadata": {"name": "default"}, "spec": {}})


def parse_node(body: Json) -> NodeRecord:
    """Read a ``v1/Node`` from a file: Ready unless it says otherwise, allocatable as its capacity unless said."""
    status = body.get("status") or {}
    allocatable = status.get("allocatable") or status.get("capacity")
    try:
        record = node_record({**body, "status": {**status, "allocatable": allocatable}})
    except (ArithmeticError, TypeError, ValueError, AttributeError) as error:
        remedy = 'write quantities like nvidia.com/gpu: "8"'
        raise InvalidInput(
            subject_of(body), "status.capacity", f"is no list of quantities ({error!r})", remedy
        ) from None
    says_ready = any(condition.get("type") == "Ready" for condition in status.get("conditions") or ())
    return record if says_ready else replace(record, is_ready=True)


def _parse_each(
    documents: Sequence[Document], parse: Callable[[Json], ParsedT], errors: list[InvalidInput]
) -> tuple[ParsedT, ...]:
    parsed = []
    for document in sorted(documents, key=lambda document: document.key):
        try:
            parsed.append(parse(document.body))
        except InvalidInput as error:
            errors.append(_placed(error, document))
    return tuple(parsed)


def _read_documents(path: Path, errors: list[InvalidInput]) -> Iterator[Document]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    if not files:
        what = "holds no *.yaml or *.yml" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        errors.append(InvalidInput(str(path), "", what, "name a folder with manifests, as deploy/samples/demo"))
    for file in files:
        name = file.name if file == path else str(file.relative_to(path))
        yield from _read_file(file, name, errors)


def _read_file(file: Path, name: str, errors: list[InvalidInput]) -> Iterator[Document]:
    try:
        bodies = [*yaml.load_all(file.read_text(encoding="utf-8"), Loader=_Loader)]
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        errors.append(
            InvalidInput(name, "", f"cannot be read as YAML: {' '.join(str(error).split())}", "mend the file")
        )
        return
    for number, body in enumerate(bodies, start=1):
        if body is not None:
            yield from _unpack(f"{name}:{number}", body, errors)


def _unpack(place: str, body: object, errors: list[InvalidInput]) -> Iterator[Document]:
    """Take Lists apart, and refuse what is no object."""
    if not isinstance(body, Mapping) or not isinstance(body.get("metadata") or {}, Mapping):
        errors.append(InvalidInput(place, "", "is no object", "write apiVersion, kind, metadata and spec"))
    elif body.get("kind") in LISTS and isinstance(body.get("items"), list):
        for index, item in enumerate(body["items"]):
            yield from _unpack(f"{place} items[{index}]", item, errors)
    else:
        yield Document(place=place, body=body)


def _accept(document: Document, errors: list[InvalidInput]) -> bool:
    """Check one document against its schema; True when it can be parsed."""
    found = [*_find_errors(document.body)]
    errors.extend(_placed(error, document) for error in found)
    return not found


def _find_errors(body: Json) -> Iterator[InvalidInput]:
    kind, subject = body.get("kind"), subject_of(body)
    if (body.get("apiVersion"), kind) == NODE:
        yield from _find_node_errors(body, subject)
    elif not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join([*KINDS, "Node (v1)"])
        yield InvalidInput(subject, "kind", f"{body.get('apiVersion')}/{kind} is unknown", f"use one of {known}")
    else:
        yield from find_violations(body)
        for path in unknown_fields(body.get("spec"), spec_schema(kind)):
            yield InvalidInput(subject, path, "is no field of this kind", "check the spelling or remove it")


def _find_node_errors(body: Json, subject: str) -> Iterator[InvalidInput]:
    if not isinstance(_at(body, "metadata.name"), str):
        yield InvalidInput(subject, "metadata.name", "is required", "give the node a name")
    for path, is_list in NODE_PARTS.items():
        part = _at(body, path) or {}
        rows = part if is_list and isinstance(part, list) else [part]
        if not all(isinstance(row, Mapping) for row in rows):
            what = "a list of mappings" if is_list else "a mapping"
            yield InvalidInput(subject, path, f"is no {what.partition(' ')[2]}", f"write {what}, as kubectl shows it")
    labels = _at(body, "metadata.labels")
    for key, value in labels.items() if isinstance(labels, Mapping) else ():
        if not isinstance(value, str):
            yield InvalidInput(subject, f"metadata.labels.{key}", f"is {value!r}", "quote it: labels are text")


def _at(body: object, path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    for name in path.split("."):
        body = body.get(name) if isinstance(body, Mapping) else None
    return body


def _refuse_duplicates(documents: Sequence[Document], errors: list[InvalidInput]) -> None:
    first: dict[tuple[str, str, str], str] = {}
    for document in documents:
        earlier = first.setdefault(document.key, document.place)
        if earlier != document.place:
            errors.append(InvalidInput(document.subject, "metadata.name", f"is also in {earlier}", "keep one of them"))


def _refuse_rival_profiles(
    documents: Sequence[Document], profiles: Sequence[EngineProfile], errors: list[InvalidInput]
) -> None:
    """Refuse two profiles for one (model, GPU class, configuration)."""
    if len(profiles) != len(documents):
        return
    first: dict[ProfileKey, Document] = {}
    for document, profile in zip(sorted(documents, key=lambda document: document.key), profiles, strict=True):
        earlier = first.setdefault(profile.key, document)
        if earlier is not document:
            key = profile.key
            what = f"{key.model} on {key.gpu_class} as {key.config.engine} {key.config.label}"
            errors.append(InvalidInput(document.subject, "spec", f"{what} is also in {earlier.subject}", "keep one"))


def _placed(error: InvalidInput, document: Document) -> InvalidInput:
    return InvalidInput(f"{document.place} {error.subject}", error.field, error.problem, error.remedy)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loads YAML as Kubernetes sees it: dates stay text, and a key that is written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is there twice", key.start_mark)
            seen.add((key.tag, key.value))
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
