"""FleetPlan: one decision with its evidence, immutable, in parts that etcd takes.

Numbers are rounded to the unit in the field's name; ``resources.parse_fleet_plan`` states what that means.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from controller.schema_base import (
    Amount,
    ConfigLabel,
    Count,
    DnsLabel,
    DnsName,
    GpuWatts,
    Message,
    Resource,
    Rule,
    ServiceName,
    SizesLabel,
    Status,
    Watts,
    Word,
    text,
)
from solvers.engine import Role
from solvers.plan import SolveStatus

SignedAmount = Annotated[int, Field(ge=-1_000_000_000_000, le=1_000_000_000_000)]


class PlanPoolKey(Resource):
    """Which pool."""

    service: ServiceName
    """ServedModel, as namespace/name."""
    role: Role
    """Role of its replicas."""
    gpu_class: DnsLabel
    """GpuClass of its replicas."""
    engine: DnsLabel = "vllm"
    """Engine of its replicas."""
    config: ConfigLabel
    """Engine configuration, as tp2."""
    sizes: SizesLabel = ""
    """Prompt tokens of the requests that it serves, as p0-2047; empty for all."""


class PlanPool(PlanPoolKey):
    """What one pool is sized for."""

    replicas: Count
    """Replicas over all locations."""
    demand_parts_per_million: Annotated[int, Field(ge=0, le=1_000_000)]
    """Share of the service's served requests, of that role, routed to the pool."""
    capacity_milli_requests_per_second: Amount
    """What the pool carries with the SLOs kept."""
    cap_watts: GpuWatts
    """Power cap of one GPU."""
    reserved_watts: Watts
    """Worst case of the whole pool."""
    planned_watts: Watts
    """Mean draw of the whole pool at the planned load."""
    cost_milli_usd_per_hour: Amount
    """Price of the pool's GPUs."""
    nodes_per_replica: Annotated[int, Field(ge=1, le=1000)] = 1
    """Whole nodes of one island that each replica stands on."""


class PlanLocation(Resource):
    """So many replicas at one place."""

    location: Annotated[str, text(63)]
    """Value of the location label; * for any node of the class."""
    replicas: Count
    """Replicas there."""


class PlanPlacement(PlanPoolKey):
    """Where the replicas of one pool go; a pool of many places may be spread over parts."""

    locations: Annotated[tuple[PlanLocation, ...], Field(max_length=64)]
    """Places with their replicas."""


class PlanService(Resource):
    """What one service gets."""

    service: ServiceName
    """ServedModel, as namespace/name."""
    tier: DnsLabel
    """Its tier."""
    demand_milli_requests_per_second: Amount
    """Load that was planned for."""
    served_milli_requests_per_second: Amount
    """What of it is served inside the SLOs."""
    short_because: Annotated[tuple[Message, ...], Field(max_length=32)] = ()
    """Limits that stand in the way of the rest."""


class PlanDomain(Resource):
    """Watts of one power domain under the plan."""

    domain: DnsName
    """PowerDomain."""
    budget_watts: Watts
    """Its budget when the plan was made."""
    reserved_watts: Watts
    """Worst case, fixed draw not included."""
    planned_watts: Watts
    """Mean draw at the planned load."""
    price_milli_usd_per_kilowatt_hour: SignedAmount
    """What one more kilowatt would be worth in an hour."""


class PlanBinding(Resource):
    """A limit with no slack left."""

    limit: Annotated[str, text(253)]
    """The limit, as power or gpus."""
    subject: Annotated[str, text(253)]
    """What it binds."""
    unit: Annotated[str, text(63)]
    """Unit of the price."""
    price_milli_usd_per_hour: SignedAmount
    """What one more unit would be worth."""


class PlanRelief(Resource):
    """So much more of a limit, and everything could be served; the rows of a plan belong together."""

    limit: Annotated[str, text(253)]
    """The limit, as power or gpus."""
    subject: Annotated[str, text(253)]
    """Where, or whose."""
    unit: Annotated[str, text(63)]
    """GPU, kW, core, GiB, GB/s or replica."""
    milli_amount: Amount
    """How much more, in thousandths of the unit."""
    price_milli_usd_per_hour: Amount
    """What that costs to have."""
    is_estimate: bool = False
    """The relaxation decided, which knows no whole replicas: a little more may be needed."""
    first_milli_requests_per_second: Amount = 0
    """What the first unit would serve more by itself; 0 for one that helps only together with the others."""
    first_milli_usd_per_hour: Amount = 0
    """What the first unit would save by itself in penalties of unserved demand."""


class PlanSizeRange(Resource):
    """One part of a service that is split by size."""

    service: ServiceName
    """ServedModel, as namespace/name."""
    sizes: SizesLabel
    """Prompt tokens of its requests, as p0-2047; the router sends them to the pools that say the same."""
    demand_milli_requests_per_second: Amount
    """Load that was planned for."""
    served_milli_requests_per_second: Amount
    """What of it is served inside the SLOs."""


class PlanSplitPrice(Resource):
    """What a service would cost more if it were not split by size."""

    service: ServiceName
    """ServedModel, as namespace/name."""
    sizes: Annotated[tuple[SizesLabel, ...], Field(max_length=16)] = ()
    """Ranges that it is, or would be, split into; none where one mix for all is as good."""
    price_milli_usd_per_hour: Amount
    """What not splitting costs more, or what declaring that the router can split would save."""
    is_estimate: bool
    """Found for the service alone, not by a decision of the whole fleet."""
    is_declared: bool = True
    """The service says that its router can split."""


class PlanLink(Resource):
    """Keys and values over one link between locations."""

    link: DnsLabel
    """Name that FleetPolicy kvLinks gives it."""
    bytes_per_second: Amount
    """What it carries each way."""
    outgoing_bytes_per_second: Amount
    """What leaves its locations: prefilled there, decoded elsewhere."""
    incoming_bytes_per_second: Amount
    """What enters them."""
    cost_milli_usd_per_hour: Amount
    """What both cost."""


class PlanReport(Resource):
    """Evidence of the solve."""

    status: SolveStatus
    """Optimal, proved within the gap; Feasible, verified; Failed."""
    objective_milli_usd_per_hour: SignedAmount
    """Cost, energy, churn and penalties together."""
    bound_milli_usd_per_hour: SignedAmount | None = None
    """No plan can have a lower objective; absent when nothing was proved."""
    gap_parts_per_million: Annotated[int, Field(ge=0)] | None = None
    """Distance of objective and bound; absent when nothing was proved."""
    cost_milli_usd_per_hour: Amount
    """Price of the GPUs in use."""
    rounds: Count
    """Rounds of sizing."""
    notes: Annotated[tuple[Message, ...], Field(max_length=64)] = ()
    """What else the reader should know."""


class FleetPlanSpec(Resource):
    """One part of a decision; lists of all parts together are the plan."""

    number: Annotated[int, Field(ge=1, le=999_999_999)]
    """Number of the plan, one above the last."""
    part: Annotated[int, Field(ge=1, le=999)] = 1
    """Which part this is, from 1."""
    parts: Annotated[int, Field(ge=1, le=999)] = 1
    """How many parts the plan has."""
    decision_hash: Annotated[str, text(64, pattern=r"^[0-9a-f]+$")]
    """Hash over placements and caps; equal decisions are not written twice."""
    routing: Annotated[str, text(253)] = ""
    """Routing that the sizing assumed."""
    report: PlanReport
    """Evidence of the solve."""
    services: Annotated[tuple[PlanService, ...], Field(max_length=4096)] = ()
    """What each service gets."""
    pools: Annotated[tuple[PlanPool, ...], Field(max_length=4096)] = ()
    """What each pool is sized for."""
    placements: Annotated[tuple[PlanPlacement, ...], Field(max_length=4096)] = ()
    """Where replicas go."""
    domains: Annotated[tuple[PlanDomain, ...], Field(max_length=4096)] = ()
    """Watts of each power domain."""
    bindings: Annotated[tuple[PlanBinding, ...], Field(max_length=4096)] = ()
    """Limits with no slack left."""
    relief: Annotated[tuple[PlanRelief, ...], Field(max_length=64)] = ()
    """The cheapest way to serve what is short."""
    size_ranges: Annotated[tuple[PlanSizeRange, ...], Field(max_length=4096)] = ()
    """Parts of services that are split by size."""
    split_prices: Annotated[tuple[PlanSplitPrice, ...], Field(max_length=4096)] = ()
    """The price of not splitting, by service."""
    links: Annotated[tuple[PlanLink, ...], Field(max_length=256)] = ()
    """What keys and values load the links between locations with."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.part <= self.parts",
            field="part",
            message="part must not exceed parts",
            holds=lambda spec: spec.part <= spec.parts,
        ),
    )


class PlanWhy(Resource):
    """Why one service is placed as it is."""

    service: ServiceName
    """ServedModel, as namespace/name."""
    lines: Annotated[tuple[Annotated[str, text(253)], ...], Field(max_length=4)] = ()
    """Demand that its replicas carry, the best other ways, the price at which one would win."""


class FleetPlanStatus(Status):
    """What came of the decision."""

    state: Word | None = None
    """Advised, Active, Held, Rejected or Superseded."""
    applied: Word | None = None
    """Replicas ready/wanted."""
    message: Message | None = None
    """Why it is in that state."""
    why: Annotated[tuple[PlanWhy, ...], Field(max_length=32)] = ()
    """Why services are placed as they are: those that are short, then the dearest."""
