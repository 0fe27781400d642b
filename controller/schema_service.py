"""Resources that say what is asked and how to decide: ServedModel and FleetPolicy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from controller.schema_base import (
    LIST_SET,
    ConfigLabel,
    Count,
    DnsLabel,
    LabelKey,
    Message,
    ModelName,
    Open,
    Resource,
    Rule,
    Selector,
    Status,
    Tokens,
    Word,
    immutable,
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
    kv_compatibility_group: Annotated[str, text(63)] = ""
    """Prefill and decode pair inside one group only: same engine version, attention backend, KV type, fabric."""
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


class Modes(Resource):
    """Modes of the levers for the fleet. Everyone starts with Advise."""

    replicas: Mode = Mode.ADVISE
    """Replica counts."""
    placement: Mode = Mode.ADVISE
    """Where replicas run."""
    power_caps: Literal["Off"] = "Off"
    """Power caps of GPUs; only Off in this version."""


class Tier(Resource):
    """One tier; the first of the list is the most important."""

    name: DnsLabel
    """Name that ServedModels use."""
    namespaces: Annotated[tuple[DnsLabel, ...], Field(max_length=256), LIST_SET] = ()
    """Namespaces that may use the tier; empty for all."""


def _usual_tiers() -> tuple[Tier, ...]:
    return tuple(Tier(name=name) for name in ("critical", "standard", "best-effort"))


class Objective(Resource):
    """What the decision weighs."""

    energy_milli_usd_per_kilowatt_hour: Annotated[int, Field(ge=0, le=100_000)] = 120
    """Price of energy."""
    start_cost_seconds: Annotated[int, Field(ge=0, le=86_400)] = 180
    """A started replica costs so many seconds of its GPUs' price."""


class Churn(Resource):
    """How much may move."""

    max_starts_per_turn: Annotated[int, Field(ge=1, le=1000)] = 8
    """Replicas that may be starting at a time, over the whole fleet."""
    min_saving_percent: Annotated[int, Field(ge=0, le=100)] = 3
    """A plan that only saves money must save so much before anything moves."""


class Cadence(Resource):
    """How often the loop turns."""

    decision_seconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """Between full decisions."""
    tick_seconds: Annotated[int, Field(ge=1, le=3_600)] = 5
    """Between steps of a rollout."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.tickSeconds <= self.decisionSeconds",
            field="tickSeconds",
            message="tickSeconds must not exceed decisionSeconds",
            holds=lambda cadence: cadence.tick_seconds <= cadence.decision_seconds,
        ),
    )


class Headroom(Resource):
    """What demand is planned for, above what arrives now."""

    demand_percentile: Annotated[int, Field(ge=50, le=99)] = 90
    """Quantile of the forecast that is planned for."""
    horizon_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """How far ahead: at least the cold start of a replica."""
    capacity_percent: Annotated[int, Field(ge=0, le=300)] = 10
    """Capacity kept above that demand."""


class PlanHistory(Resource):
    """Which FleetPlans are kept."""

    days: Annotated[int, Field(ge=1, le=365)] = 7
    """Older ones are removed."""
    count: Annotated[int, Field(ge=2, le=500)] = 50
    """Beyond so many, the oldest are removed."""


class Telemetry(Resource):
    """Which readings count."""

    max_age_seconds: Annotated[int, Field(ge=1, le=3_600)] = 45  # three scrapes of 15 s; one lost scrape is normal
    """Older readings change nothing: the loop holds."""


class Solver(Resource):
    """When the solver stops."""

    gap_permille: Annotated[int, Field(ge=0, le=500)] = 10
    """Proved distance to the best possible plan, in thousandths of the objective."""
    time_limit_seconds: Annotated[int, Field(ge=1, le=3_600)] = 20
    """Time after which the best plan found so far is taken."""


class FleetPolicySpec(Resource):
    """How the fleet is run; there is one, named default."""

    modes: Modes = Field(default_factory=Modes)
    """Modes of the levers."""
    paused: bool = False
    """Stop rollouts; power stays protected."""
    managed_nodes: Selector = Field(default_factory=lambda: {"penstock.dev/managed": "true"})
    """Labels of the nodes that Penstock may place on; empty for all nodes."""
    location_label: LabelKey = "topology.penstock.dev/rack"
    """Node label whose value is the location: rack or row."""
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1, max_length=5)] = Field(default_factory=_usual_tiers)
    """Tiers, most important first."""
    objective: Objective = Field(default_factory=Objective)
    """What the decision weighs."""
    churn: Churn = Field(default_factory=Churn)
    """How much may move."""
    cadence: Cadence = Field(default_factory=Cadence)
    """How often the loop turns."""
    headroom: Headroom = Field(default_factory=Headroom)
    """What demand is planned for."""
    telemetry: Telemetry = Field(default_factory=Telemetry)
    """Which readings count."""
    solver: Solver = Field(default_factory=Solver)
    """When the solver stops."""
    plan_history: PlanHistory = Field(default_factory=PlanHistory)
    """Which FleetPlans are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.tiers.all(a, self.tiers.exists_one(b, a.name == b.name))",
            field="tiers",
            message="tiers must not repeat a name",
            holds=lambda spec: len({tier.name for tier in spec.tiers}) == len(spec.tiers),
        ),
        immutable("locationLabel", because="running pools are pinned by it; remove the FleetPolicy first"),
    )


class FleetPolicyStatus(Status):
    """What the loop does."""

    active_plan: Word | None = None
    """FleetPlan in force."""
    leader: Annotated[str, text(253)] | None = None
    """Replica of the operator that writes."""
    nodes: Count | None = None
    """Managed nodes with a known GPU class."""
    gpus_total: Count | None = None
    """GPUs on them."""
    gpus_used: Count | None = None
    """GPUs that replicas of Penstock hold."""
    usd_per_hour: Word | None = None
    """Cost of the plan in force."""
