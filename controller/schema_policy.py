"""How to decide: FleetPolicy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from controller.schema_base import (
    LIST_SET,
    Count,
    DnsLabel,
    LabelKey,
    LocationName,
    Resource,
    Rule,
    Selector,
    Status,
    Watts,
    Word,
    immutable,
    text,
)
from controller.schema_service import Mode


class Modes(Resource):
    """Modes of the levers for the fleet. Everyone starts with Advise."""

    replicas: Mode = Mode.ADVISE
    """Replica counts."""
    placement: Mode = Mode.ADVISE
    """Where replicas run."""
    correction: Mode = Mode.ADVISE
    """How far profiles are off as services run: not learnt, learnt and told, or planned with."""
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
    start_cost_seconds: Annotated[int, Field(ge=0, le=86_400)] = 1080
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
    replay: Literal["Off", "On"] = "Off"
    """On, quoted since YAML reads a bare On as true: each plan's demand is replayed in simulation; a plan that it
    refutes is tightened and solved again."""


class Quota(Resource):
    """The most that the services of one namespace may hold together, and the least that they are promised."""

    namespace: DnsLabel
    """Whose services count."""
    gpu_class: DnsLabel | None = None
    """GpuClass that counts; all of them together when absent."""
    max_gpus: Count | None = None
    """GPUs that they may hold."""
    max_watts: Watts | None = None
    """Watts of those GPUs at their highest cap, host share included."""
    guaranteed_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    """Of the demand of each service, what is served before other services of its tier get more."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.maxGpus) || has(self.maxWatts) || has(self.guaranteedPercent)",
            field="maxGpus",
            message="give maxGpus, maxWatts or guaranteedPercent",
            holds=lambda quota: any(
                (quota.max_gpus is not None, quota.max_watts is not None, quota.guaranteed_percent)
            ),
        ),
        Rule(
            cel="!has(self.guaranteedPercent) || !has(self.gpuClass)",
            field="guaranteedPercent",
            message="guaranteedPercent is of demand, whatever serves it: leave gpuClass out",
            holds=lambda quota: quota.guaranteed_percent is None or quota.gpu_class is None,
        ),
    )

    @property
    def counted(self) -> tuple[str, str]:
        """Namespace and GPU class, empty for all."""
        return self.namespace, self.gpu_class or ""


class Spot(Resource):
    """Nodes that their owner may take back."""

    node_selector: Annotated[Selector, Field(min_length=1)]
    """Labels of the nodes, as karpenter.sh/capacity-type: spot."""
    reclaims_per_thousand_hours: Annotated[int, Field(ge=0, le=100_000)] = 20
    """How often one of them is taken away; each time costs the start of what ran on it."""
    price_percent: Annotated[int, Field(ge=0, le=1000)] = 100
    """What their GPUs cost, of the list price of their GpuClass."""


class KvLink(Resource):
    """What joins some locations to all others, for keys and values."""

    name: DnsLabel
    """Name that plans say."""
    locations: Annotated[tuple[LocationName, ...], Field(min_length=1, max_length=64), LIST_SET]
    """Locations on it; each location hangs on at most one link."""
    megabytes_per_second: Annotated[int, Field(ge=1, le=1_000_000)]
    """What it carries each way of what prefill hands to decode."""
    price_milli_usd_per_terabyte: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """What a terabyte over it costs, in thousandths of a US dollar."""


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
    quotas: Annotated[tuple[Quota, ...], Field(max_length=128)] = ()
    """What namespaces may hold; a namespace without one is bound by the fleet alone."""
    spot: Annotated[tuple[Spot, ...], Field(max_length=16)] = ()
    """Nodes that may be taken away; of several that match a node, the first counts."""
    kv_links: Annotated[tuple[KvLink, ...], Field(max_length=256)] = ()
    """Links between locations that bound and price keys and values; without any, they move freely."""
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
        Rule(
            cel="self.quotas.all(a, self.quotas.exists_one(b, a.__namespace__ == b.__namespace__ && "
            "(has(a.gpuClass) && has(b.gpuClass) ? a.gpuClass == b.gpuClass : has(a.gpuClass) == has(b.gpuClass))))",
            field="quotas",
            message="quotas must not repeat a namespace and gpuClass",
            holds=lambda spec: len({quota.counted for quota in spec.quotas}) == len(spec.quotas),
        ),
        Rule(
            cel="self.kvLinks.all(a, self.kvLinks.exists_one(b, a.name == b.name))",
            field="kvLinks",
            message="kvLinks must not repeat a name",
            holds=lambda spec: len({link.name for link in spec.kv_links}) == len(spec.kv_links),
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
