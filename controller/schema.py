"""The six kinds of ``penstock.dev/v1alpha1``: names, types, printer columns and rules on the whole object.

The types themselves are in ``schema_fleet``, ``schema_profile``, ``schema_service``, ``schema_policy`` and
``schema_plan``; ``controller.crds`` writes the CustomResourceDefinitions from this table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.schema_base import API_VERSION, GROUP, VERSION, Condition, Resource, Rule, Status
from controller.schema_fleet import (
    GpuClassSpec,
    GpuClassStatus,
    PowerDomainSpec,
    PowerDomainStatus,
)
from controller.schema_plan import FleetPlanSpec, FleetPlanStatus
from controller.schema_policy import FleetPolicySpec, FleetPolicyStatus
from controller.schema_profile import EngineProfileSpec, EngineProfileStatus
from controller.schema_service import (
    DeletionPolicy,
    DemandSource,
    Management,
    Mode,
    ServedModelSpec,
    ServedModelStatus,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "VERSION",
    "Column",
    "Condition",
    "DeletionPolicy",
    "DemandSource",
    "EngineProfileSpec",
    "FleetPlanSpec",
    "FleetPolicySpec",
    "GpuClassSpec",
    "Kind",
    "Management",
    "Mode",
    "PowerDomainSpec",
    "ServedModelSpec",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of ``kubectl get``; ``is_wide`` shows it with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    is_wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of resource."""

    name: str
    plural: str
    short: str
    is_namespaced: bool
    doc: str
    spec: type[Resource]
    status: type[Status]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()

    @property
    def crd_name(self) -> str:
        return f"{self.plural}.{GROUP}"


def _condition(name: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{name}")].{field}'


def _columns(*rows: Sequence[str]) -> tuple[Column, ...]:
    """Read rows of (name, path[, type[, "wide"]])."""
    return tuple(
        Column(name=row[0], path=row[1], type=row[2] if len(row) > 2 else "string", is_wide=len(row) > 3)
        for row in rows
    )


_READY = (("READY", _condition("Ready", "status")), ("REASON", _condition("Ready", "reason")))
_AGE = ("AGE", ".metadata.creationTimestamp", "date")

# The names of these objects become label values of pods, which end at 63 characters.
_LABEL_SIZED = Rule(
    cel="size(self.metadata.name) <= 63", field="metadata", message="the name must not exceed 63 characters"
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="ServedModel",
            plural="servedmodels",
            short="sm",
            is_namespaced=True,
            doc="A service: one model with its SLOs, its load and the workloads that serve it.",
            spec=ServedModelSpec,
            status=ServedModelStatus,
            columns=_columns(
                ("MODE", ".status.mode"),
                ("TIER", ".spec.tier"),
                ("PREFILL", ".status.prefill"),
                ("DECODE", ".status.decode"),
                ("MIXED", ".status.mixed"),
                ("TTFT", ".status.ttft"),
                ("ITL", ".status.itl"),
                ("USD/H", ".status.usdPerHour"),
                *_READY,
                ("MODEL", ".spec.model", "string", "wide"),
                ("PLAN", ".status.plan", "string", "wide"),
                _AGE,
            ),
            rules=(_LABEL_SIZED,),
        ),
        Kind(
            name="GpuClass",
            plural="gpuclasses",
            short="gpc",
            is_namespaced=False,
            doc="A kind of accelerator, with its price, memory and power envelope.",
            spec=GpuClassSpec,
            status=GpuClassStatus,
            columns=_columns(
                ("MEMORY-MIB", ".spec.memoryMebibytes", "integer"),
                ("MAX-CAP-W", ".spec.power.maxCapWatts", "integer"),
                ("MILLI-USD/H", ".spec.priceMilliUsdPerHour", "integer"),
                ("NODES", ".status.nodes", "integer"),
                ("GPUS", ".status.gpusTotal", "integer"),
                ("USED", ".status.gpusUsed", "integer"),
                *_READY,
                ("RESOURCE", ".spec.resourceName", "string", "wide"),
                _AGE,
            ),
            rules=(_LABEL_SIZED,),
        ),
        Kind(
            name="PowerDomain",
            plural="powerdomains",
            short="pdom",
            is_namespaced=False,
            doc="What shares one feed, with its budget in watts.",
            spec=PowerDomainSpec,
            status=PowerDomainStatus,
            columns=_columns(
                ("BUDGET", ".spec.budgetWatts", "integer"),
                ("USABLE", ".status.usableWatts", "integer"),
                ("RESERVED", ".status.reservedWatts", "integer"),
                ("PLANNED", ".status.plannedWatts", "integer"),
                ("MEASURED", ".status.measuredWatts", "integer"),
                ("STATE", ".status.state"),
                ("NODES", ".status.nodes", "integer", "wide"),
                _AGE,
            ),
        ),
        Kind(
            name="EngineProfile",
            plural="engineprofiles",
            short="eprof",
            is_namespaced=False,
            doc="Curves of one replica for a model, GPU class and engine configuration.",
            spec=EngineProfileSpec,
            status=EngineProfileStatus,
            columns=_columns(
                ("MODEL", ".spec.model"),
                ("CLASS", ".spec.gpuClass"),
                ("TP", ".spec.config.tensorParallel", "integer"),
                ("VARIANT", ".spec.config.variant"),
                ("SOURCE", ".spec.source"),
                ("KV-TOKENS", ".spec.kvCapacityTokens", "integer"),
                *_READY,
                ("ENGINE", ".spec.config.engine", "string", "wide"),
                ("PP", ".spec.config.pipelineParallel", "integer", "wide"),
                ("EP", ".spec.config.expertParallel", "integer", "wide"),
                ("DP", ".spec.config.dataParallel", "integer", "wide"),
                _AGE,
            ),
        ),
        Kind(
            name="FleetPolicy",
            plural="fleetpolicies",
            short="fpol",
            is_namespaced=False,
            doc="How the fleet is run; there is one, named default.",
            spec=FleetPolicySpec,
            status=FleetPolicyStatus,
            columns=_columns(
                ("REPLICAS", ".spec.modes.replicas"),
                ("PLACEMENT", ".spec.modes.placement"),
                ("PAUSED", ".spec.paused", "boolean"),
                ("PLAN", ".status.activePlan"),
                ("NODES", ".status.nodes", "integer"),
                ("GPUS", ".status.gpusTotal", "integer"),
                ("USED", ".status.gpusUsed", "integer"),
                ("USD/H", ".status.usdPerHour"),
                *_READY,
                ("LEADER", ".status.leader", "string", "wide"),
                _AGE,
            ),
            rules=(
                Rule(
                    cel="self.metadata.name == 'default'",
                    field="metadata",
                    message="there is one FleetPolicy and its name is default",
                ),
            ),
        ),
        Kind(
            name="FleetPlan",
            plural="fleetplans",
            short="fplan",
            is_namespaced=False,
            doc="One decision for the whole fleet, with its evidence.",
            spec=FleetPlanSpec,
            status=FleetPlanStatus,
            columns=_columns(
                ("NUMBER", ".spec.number", "integer"),
                ("PART", ".spec.part", "integer"),
                ("OF", ".spec.parts", "integer"),
                ("SOLVE", ".spec.report.status"),
                ("MILLI-USD/H", ".spec.report.costMilliUsdPerHour", "integer"),
                ("GAP-PPM", ".spec.report.gapPartsPerMillion", "integer"),
                ("STATE", ".status.state"),
                ("APPLIED", ".status.applied"),
                _AGE,
            ),
            rules=(
                Rule(
                    cel="self.spec == oldSelf.spec",
                    field="spec",
                    message="the spec of a FleetPlan cannot change: a new decision is a new FleetPlan",
                ),
            ),
        ),
    )
}
