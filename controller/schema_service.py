"""What is asked: ServedModel, and the words it shares with FleetPolicy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from controller.schema_base import (
    LIST_SET,
    ConfigLabel,
    Count,
    DnsLabel,
    LocationName,
    Message,
    ModelName,
    Open,
    Resource,
    Rule,
    SizesLabel,
    Status,
    Tokens,
    Word,
    text,
)
from solvers.engine import Role
from solvers.workload import PlacementMode, SloMetric


class Mode(StrEnum):
    """What Penstock does with one lever: nothing, say what it would do, do it."""

    OFF = "Off"
    ADVISE = "Advise"
    ACT = "Act"


class DemandSource(StrEnum):
    """Where the load is read: at the gateway, at the engines, or from the resource itself."""

    GATEWAY = "Gateway"
    ENGINE = "Engine"
    DECLARED = "Declared"


class Management(StrEnum):
    """What Penstock writes of the workloads: nothing, or Deployments of its own."""

    OBSERVE = "Observe"
    GENERATE = "Generate"


class DeletionPolicy(StrEnum):
    """What becomes of generated workloads when the ServedModel is removed."""

    ORPHAN = "Orphan"
    DELETE = "Delete"


class SloSpec(Resource):
    """At least this percentile of requests (TTFT) or token gaps (ITL) stays within the limit."""

    metric: SloMetric
    """TTFT: arrival at the gateway to the first token. ITL: gap between two tokens after it."""
    percentile: Annotated[float, Field(ge=50, le=99.9)]
    """Percent of requests or gaps that must hold the limit, as 99 or 99.9."""
    milliseconds: Annotated[int, Field(ge=1, le=3_600_000)]
    """The limit."""


class SizeBucketSpec(Resource):
    """Requests of about one size."""

    prompt_tokens: Tokens
    """Tokens in."""
    output_tokens: Tokens
    """Tokens out."""
    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Share of the requests, relative to the other weights."""


class DeclaredDemand(Resource):
    """Load by declaration: the demand of source Declared, and the request sizes assumed before any were seen."""

    milli_requests_per_second: Annotated[int, Field(ge=0, le=1_000_000_000)]
    """Requests in a thousand seconds."""
    mix: Annotated[tuple[SizeBucketSpec, ...], Field(min_length=1, max_length=16)]
    """Sizes of the requests."""


class DemandSpec(Resource):
    """Where the load of the service is read."""

    source: DemandSource = DemandSource.GATEWAY
    """Gateway sees arrivals; Engine sees completions, which saturate; Declared is what the resource says."""
    inference_pool: DnsLabel | None = None
    """InferencePool whose gateway metrics count; the ServedModel's own name when absent."""
    declared: DeclaredDemand | None = None
    """Load used by source Declared, and by the others only where there is no telemetry at all (plan -f)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.source != 'Declared' || has(self.declared)",
            field="declared",
            message="source Declared needs declared with milliRequestsPerSecond and mix",
            holds=lambda demand: demand.source is not DemandSource.DECLARED or demand.declared is not None,
        ),
    )


class ReplicaBounds(Resource):
    """Replicas of each role."""

    min: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Fewest; kept even without load."""
    max: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Most."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.min <= self.max",
            field="min",
            message="min must not exceed max",
            holds=lambda bounds: bounds.min <= bounds.max,
        ),
    )


class PinSpec(Resource):
    """Replicas that must run at one location."""

    location: LocationName
    """Value of FleetPolicy's locationLabel: a rack or row."""
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """At least so many; kept even without load."""
    role: Role | None = None
    """Role that counts; any when absent."""
    gpu_class: DnsLabel | None = None
    """GpuClass that counts; any when absent."""


class SpreadSpec(Resource):
    """What must not hang on one location."""

    min_locations: Annotated[int, Field(ge=1, le=1000)] = 1
    """Locations with replicas that take prompts, and as many with replicas that decode."""
    max_share_per_location_percent: Annotated[int, Field(ge=1, le=100)] = 100
    """Of what is served, the most that may go with any one location: the replicas elsewhere carry the rest."""


class RoutingSpec(Resource):
    """What the service's router can do."""

    splits_by_size: bool = False
    """It can send requests to pools by the length of their prompts, as their label penstock.dev/prompt-tokens says."""


class ModeOverride(Resource):
    """Modes of the levers for one object; the stricter of this and FleetPolicy counts."""

    replicas: Mode | None = None
    """Replica counts."""
    placement: Mode | None = None
    """Where replicas run."""


class Container(Open):
    """A container of the pod; its other fields are Kubernetes' own."""

    name: DnsLabel
    """Name of the container."""


class PodSpec(Open):
    """A pod's spec; the first container is the engine."""

    containers: Annotated[tuple[Container, ...], Field(min_length=1, max_length=16)]
    """Containers; the first one gets GPUs and the PENSTOCK_ variables."""


class PodTemplate(Open):
    """A pod template. Arguments may use $(PENSTOCK_TENSOR_PARALLEL) and friends."""

    spec: PodSpec
    """The pod's spec."""


class RoleTemplates(Resource):
    """Complete pod templates for single roles, each instead of template."""

    prefill: PodTemplate | None = None
    """Template of prefill replicas."""
    decode: PodTemplate | None = None
    """Template of decode replicas."""
    mixed: PodTemplate | None = None
    """Template of mixed replicas."""


def _templated(role: Role) -> Rule:
    return Rule(
        cel=f"self.management != 'Generate' || !('{role}' in self.roles) || has(self.template) || "
        f"(has(self.roleTemplates) && has(self.roleTemplates.{role}))",
        field="template",
        message=f"management Generate needs template, or roleTemplates.{role} for the role {role}",
        holds=lambda spec: (
            spec.management is not Management.GENERATE
            or role not in spec.roles
            or spec.template is not None
            or (spec.role_templates is not None and getattr(spec.role_templates, role) is not None)
        ),
    )


class ServedModelSpec(Resource):
    """One service: a model with its SLOs, its load, and what may be done for it."""

    model: ModelName
    """Model, as EngineProfiles name it."""
    tier: DnsLabel
    """Tier of FleetPolicy; when not everything fits, lower tiers lose first."""
    slos: Annotated[tuple[SloSpec, ...], Field(max_length=4)] = ()
    """Latency objectives; without any, replicas are kept only from overload."""
    demand: DemandSpec = Field(default_factory=DemandSpec)
    """Where the load is read."""
    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=3), LIST_SET] = tuple(Role)
    """Roles that the engine can play; the plan chooses among them."""
    gpu_classes: Annotated[tuple[DnsLabel, ...], Field(max_length=32), LIST_SET] = ()
    """GpuClasses allowed; empty for any that fits."""
    engine_configs: Annotated[tuple[ConfigLabel, ...], Field(max_length=32), LIST_SET] = ()
    """Engine configurations allowed, as tp2 or tp8-ep8-fp8; empty for any with a profile."""
    replicas: ReplicaBounds = Field(default_factory=ReplicaBounds)
    """Bounds on the replicas of each role."""
    placement: PlacementMode = PlacementMode.LOCATION
    """Location pins each pool to a rack or row and proves its power; Class lets the scheduler choose any node."""
    locations: Annotated[tuple[LocationName, ...], Field(max_length=256), LIST_SET] = ()
    """Locations allowed; empty for all."""
    pins: Annotated[tuple[PinSpec, ...], Field(max_length=64)] = ()
    """Replicas that must run at certain locations; they come before everything else that the service needs."""
    max_spot_percent: Annotated[int, Field(ge=0, le=100)] = 100
    """Of what is served, the most that may hang on nodes that may be taken away (FleetPolicy spot); 0 refuses them."""
    fair_weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """When its tier is short, a service of twice the weight is short of half as large a part of its demand."""
    spread: SpreadSpec = Field(default_factory=SpreadSpec)
    """What must not hang on one location."""
    routing: RoutingSpec = Field(default_factory=RoutingSpec)
    """What the router can do; pools get one mix of requests, in proportion to capacity, unless it can do more."""
    kv_compatibility_group: Annotated[str, text(63)] = ""
    """Prefill and decode pair inside one group only (engine version, attention backend, KV type): that of the pools
    whose EngineProfile names none."""
    kv_may_cross: bool = True
    """Whether keys and values may move from one location to another; false pairs prefill and decode at each."""
    management: Management = Management.OBSERVE
    """Observe writes no workload. Generate makes Deployments from the templates."""
    modes: ModeOverride = Field(default_factory=ModeOverride)
    """Modes for this service; the stricter of these and FleetPolicy's counts."""
    deletion_policy: DeletionPolicy = DeletionPolicy.ORPHAN
    """Orphan leaves generated pods serving when the ServedModel is removed; Delete removes them."""
    template: PodTemplate | None = None
    """Pod template of every role without one of its own."""
    role_templates: RoleTemplates | None = None
    """Pod templates of single roles."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="'mixed' in self.roles || ('prefill' in self.roles && 'decode' in self.roles)",
            field="roles",
            message="roles must contain mixed, or prefill and decode together",
            holds=lambda spec: Role.MIXED in spec.roles or {Role.PREFILL, Role.DECODE} <= set(spec.roles),
        ),
        Rule(
            cel="self.slos.all(a, self.slos.exists_one(b, a.metric == b.metric && a.percentile == b.percentile))",
            field="slos",
            message="slos must not repeat a metric and percentile",
            holds=lambda spec: len({(slo.metric, slo.percentile) for slo in spec.slos}) == len(spec.slos),
        ),
        Rule(
            cel="self.placement == 'Location' || (size(self.locations) == 0 && size(self.pins) == 0 && "
            "self.spread.minLocations == 1 && self.spread.maxSharePerLocationPercent == 100 && "
            "self.maxSpotPercent == 100 && self.kvMayCross)",
            field="placement",
            message="locations, pins, spread, maxSpotPercent, kvMayCross false need placement Location: Class leaves "
            "places open",
            holds=lambda spec: (
                spec.placement is PlacementMode.LOCATION
                or (
                    not (spec.locations or spec.pins or spec.spread != SpreadSpec() or spec.max_spot_percent < 100)
                    and spec.kv_may_cross
                )
            ),
        ),
        Rule(
            cel="size(self.locations) == 0 || self.pins.all(p, p.location in self.locations)",
            field="pins",
            message="pins must be at locations that are allowed",
            holds=lambda spec: not spec.locations or all(pin.location in spec.locations for pin in spec.pins),
        ),
        Rule(
            cel="self.pins.all(p, (!has(p.role) || p.role in self.roles) && p.replicas <= self.replicas.max)",
            field="pins",
            message="pins must name roles of the service and ask for at most replicas.max",
            holds=lambda spec: all(
                pin.role in (None, *spec.roles) and pin.replicas <= spec.replicas.max for pin in spec.pins
            ),
        ),
        Rule(
            cel="self.spread.minLocations <= self.replicas.max",
            field="spread.minLocations",
            message="spread.minLocations must not exceed replicas.max",
            holds=lambda spec: spec.spread.min_locations <= spec.replicas.max,
        ),
        Rule(
            cel="!self.routing.splitsBySize || size(self.pins) == 0",
            field="pins",
            message="pins and routing.splitsBySize exclude each other: a pin does not say which sizes it holds",
            holds=lambda spec: not (spec.routing.splits_by_size and spec.pins),
        ),
        *(_templated(role) for role in Role),
    )


class PoolStatus(Resource):
    """Replicas of one pool."""

    role: Role
    """Role of the pool."""
    gpu_class: DnsLabel
    """GpuClass of the pool."""
    config: ConfigLabel
    """Engine configuration of the pool."""
    sizes: SizesLabel | None = None
    """Prompt tokens of the requests that it serves, as p0-2047; absent for all."""
    ready: Count
    """Replicas that serve."""
    want: Count
    """Replicas that the plan wants."""


class ServedModelStatus(Status):
    """How the service does."""

    mode: Mode | None = None
    """Mode in force: the strictest of all that apply."""
    pools: Annotated[tuple[PoolStatus, ...], Field(max_length=128)] = ()
    """Pools that run or are wanted."""
    prefill: Word | None = None
    """Prefill replicas, ready/want."""
    decode: Word | None = None
    """Decode replicas, ready/want."""
    mixed: Word | None = None
    """Mixed replicas, ready/want."""
    ttft: Word | None = None
    """Time to first token at the SLO's percentile, observed/SLO."""
    itl: Word | None = None
    """Inter-token latency at the SLO's percentile, observed/SLO."""
    usd_per_hour: Word | None = None
    """Cost of the plan's pools."""
    demand_milli_requests_per_second: Annotated[int, Field(ge=0)] | None = None
    """Load that the plan was made for."""
    demand_source: Annotated[str, text(253)] | None = None
    """Where that load came from."""
    plan: Word | None = None
    """FleetPlan that the figures belong to."""
    short_because: Annotated[tuple[Message, ...], Field(max_length=16)] = ()
    """What stands in the way when some load stays unserved."""
