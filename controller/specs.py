"""All resources of one turn, parsed: what is wrong becomes a fault, and everything else goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from controller.manifests import Manifests, default_policy
from controller.render import PLAN_FEASIBLE, READY, TELEMETRY_FRESH
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
from controller.validation import Json, subject_of
from solvers.engine import EngineProfile, ProfileKey
from solvers.errors import InvalidInput
from solvers.fleet import GpuClass

__all__ = ["PLAN_FEASIBLE", "READY", "TELEMETRY_FRESH", "Fault", "Specs", "parse_specs", "specs_of_manifests"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fault:
    """Something wrong with one object, that the loop goes on without.

    Attributes
    ----------
    subject : str
        ``Kind/namespace/name`` or ``Kind/name``.
    field : str
        Path inside it, empty when the whole object is meant.
    condition : str
        Type of the condition that it makes False.
    """

    subject: str
    field: str
    problem: str
    remedy: str = ""
    condition: str = READY

    def __str__(self) -> str:
        return str(InvalidInput(self.subject, self.field, self.problem, self.remedy))

    @classmethod
    def of(cls, error: InvalidInput, condition: str = READY) -> Fault:
        """Make a fault of what a parser refused."""
        return cls(
            subject=error.subject, field=error.field, problem=error.problem, remedy=error.remedy, condition=condition
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Specs:
    """Resources that are sound by themselves, sorted by name, and the faults of the others.

    Attributes
    ----------
    refused : tuple of str
        ``namespace/name`` of ServedModels that exist and could not be parsed: their replicas stay as they are.
    """

    policy: FleetPolicySpec
    served_models: tuple[ServedModelSpec, ...]
    gpu_classes: tuple[GpuClass, ...]
    power_domains: tuple[PowerDomainSpec, ...]
    engine_profiles: tuple[EngineProfile, ...]
    refused: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def specs_of_manifests(manifests: Manifests) -> Specs:
    """Take what a folder of manifests holds; it was checked as a whole when it was read."""
    faults: list[Fault] = []
    bodies = {
        kind: [body for body in manifests.bodies if body["kind"] == kind] for kind in ("GpuClass", "EngineProfile")
    }
    profiles = [(body, parse_engine_profile(body)) for body in bodies["EngineProfile"]]
    _name_unknown_classes(profiles, bodies, faults)
    return Specs(
        policy=manifests.policy,
        served_models=manifests.served_models,
        gpu_classes=manifests.gpu_classes,
        power_domains=manifests.power_domains,
        engine_profiles=manifests.engine_profiles,
        faults=tuple(faults),
    )


def parse_specs(bodies: Mapping[str, Iterable[Json]]) -> Specs:
    """Parse the bodies of a cluster.

    Parameters
    ----------
    bodies : mapping of kind to bodies
        ``{"ServedModel": [...], ...}``; kinds that are missing are empty.

    Notes
    -----
    Without a FleetPolicy its defaults hold, which only advise. Of several the one named default counts, else the
    first by name.
    """
    faults: list[Fault] = []
    sorted_bodies = {kind: sorted(found, key=subject_of) for kind, found in bodies.items()}

    def read(kind: str, parse: Callable[[Json], T]) -> list[tuple[Json, T]]:
        return _parse_each(sorted_bodies.get(kind, ()), parse, faults)

    policy = _one_policy(sorted_bodies.get("FleetPolicy", []), faults)
    models = read("ServedModel", lambda body: parse_served_model(body, policy))
    profiles = read("EngineProfile", parse_engine_profile)
    _name_unknown_classes(profiles, sorted_bodies, faults)
    accepted = {spec.model.name for _, spec in models}
    seen = {_service(body) for body in sorted_bodies.get("ServedModel", ())}
    return Specs(
        policy=policy,
        served_models=tuple(spec for _, spec in models),
        gpu_classes=tuple(spec for _, spec in read("GpuClass", parse_gpu_class)),
        power_domains=tuple(spec for _, spec in read("PowerDomain", parse_power_domain)),
        engine_profiles=_without_rivals(profiles, faults),
        refused=tuple(sorted(seen - accepted)),
        faults=tuple(faults),
    )


def _service(body: Json) -> str:
    return f"{body['metadata'].get('namespace', 'default')}/{body['metadata']['name']}"


def _parse_each(bodies: Iterable[Json], parse: Callable[[Json], T], faults: list[Fault]) -> list[tuple[Json, T]]:
    parsed = []
    for body in bodies:
        try:
            parsed.append((body, parse(body)))
        except InvalidInput as error:
            faults.append(Fault.of(error))
    return parsed


def _one_policy(bodies: list[Json], faults: list[Fault]) -> FleetPolicySpec:
    if not bodies:
        problem = "there is none; its defaults hold, which only advise"
        faults.append(Fault(subject="FleetPolicy/default", field="", problem=problem, remedy="create it"))
        return default_policy()
    chosen = next((body for body in bodies if body["metadata"]["name"] == "default"), bodies[0])
    for body in bodies:
        if body is not chosen:
            problem = f"is a second FleetPolicy and has no effect; {subject_of(chosen)} counts"
            faults.append(Fault(subject=subject_of(body), field="metadata.name", problem=problem, remedy="remove it"))
    parsed = _parse_each([chosen], parse_fleet_policy, faults)
    return parsed[0][1] if parsed else replace(default_policy(), is_paused=True)


def _name_unknown_classes(
    profiles: Iterable[tuple[Json, EngineProfile]], bodies: Mapping[str, Iterable[Json]], faults: list[Fault]
) -> None:
    """Fault the profiles that no GPU can use; one whose GpuClass is there but refused is that one's fault."""
    known = sorted(body["metadata"]["name"] for body in bodies.get("GpuClass", ()))
    for body, profile in profiles:
        name = profile.key.gpu_class
        if name not in known:
            problem = f"there is no GpuClass {name}, so nothing is planned with this profile"
            remedy = f"create it or use one of {', '.join(known)}" if known else "create it"
            faults.append(Fault(subject=subject_of(body), field="spec.gpuClass", problem=problem, remedy=remedy))


def _without_rivals(profiles: list[tuple[Json, EngineProfile]], faults: list[Fault]) -> tuple[EngineProfile, ...]:
    first: dict[ProfileKey, tuple[Json, EngineProfile]] = {}
    for body, profile in profiles:
        earlier = first.setdefault(profile.key, (body, profile))[0]
        if earlier is not body:
            key = profile.key
            what = f"{key.model} on {key.gpu_class} as {key.config.engine} {key.config.label}"
            problem = f"{what} is also in {subject_of(earlier)}, which counts"
            faults.append(Fault(subject=subject_of(body), field="spec", problem=problem, remedy="keep one"))
    return tuple(profile for _, profile in first.values())
