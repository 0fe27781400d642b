"""Resources that say what exists: GPU classes and power domains."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from controller.schema_base import (
    LIST_SET,
    Amount,
    Count,
    DnsName,
    GpuWatts,
    LabelKey,
    QualifiedName,
    Resource,
    Rule,
    Selector,
    Status,
    Watts,
    immutable,
    text,
)


class PowerEnvelope(Resource):
    """Watts of one GPU: idle ≤ lowest cap ≤ highest cap."""

    idle_watts: GpuWatts
    """Draw of a GPU that nobody uses."""
    min_cap_watts: Annotated[int, Field(ge=1, le=10_000)]
    """Lowest power cap that the device accepts."""
    max_cap_watts: Annotated[int, Field(ge=1, le=10_000)]
    """Highest power cap: the worst case that is reserved while caps are off."""
    host_share_watts: GpuWatts = 0
    """The host's draw (CPU, memory, fans, network) for one GPU at work."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.minCapWatts <= self.maxCapWatts",
            field="minCapWatts",
            message="minCapWatts must not exceed maxCapWatts",
            holds=lambda power: power.min_cap_watts <= power.max_cap_watts,
        ),
        Rule(
            cel="self.idleWatts <= self.minCapWatts",
            field="idleWatts",
            message="idleWatts must not exceed minCapWatts",
            holds=lambda power: power.idle_watts <= power.min_cap_watts,
        ),
    )


class GpuClassSpec(Resource):
    """A kind of accelerator, with its price, memory and power envelope, all per GPU."""

    resource_name: QualifiedName
    """Extended resource that pods ask for, as nvidia.com/gpu."""
    node_selector: Annotated[Selector, Field(min_length=1)]
    """Labels of the nodes that hold this class; no node may match two classes."""
    memory_mebibytes: Annotated[int, Field(ge=1, le=10_000_000)]
    """Memory of one GPU."""
    link_island_gpus: Annotated[int, Field(ge=1, le=576)] | None = None
    """GPUs that one scale-up link joins; those of a node if not given. More than a node has (NVLink racks): the nodes
    of a location can hold a replica together, if it has no more GPUs than this."""
    kv_fabric: Annotated[str, text(63)] = ""
    """Network that moves keys and values; prefill and decode pair on one fabric only. Empty: all are on one."""
    power: PowerEnvelope
    """Power envelope of one GPU."""
    price_milli_usd_per_hour: Amount
    """Price of one GPU for an hour, in thousandths of a US dollar."""

    rules: ClassVar[tuple[Rule, ...]] = (
        immutable("resourceName", because="running pods ask for it; make another GpuClass"),
    )


class GpuClassStatus(Status):
    """What of the class is there."""

    nodes: Count | None = None
    """Managed nodes of the class."""
    gpus_total: Count | None = None
    """GPUs on them, broken ones included."""
    gpus_used: Count | None = None
    """GPUs that replicas of Penstock hold."""


class PowerDomainSpec(Resource):
    """What shares one feed: a site, feed, row, rack or node."""

    parents: Annotated[tuple[DnsName, ...], Field(max_length=8), LIST_SET] = ()
    """Power domains that feed this one; each must hold (feeds A and B)."""
    node_selector: Selector = Field(default_factory=dict)
    """Labels of the nodes in the domain itself; nodes of domains below count by themselves."""
    topology_label: LabelKey | None = None
    """Instead of nodeSelector: nodes whose label of this key has the domain's name as its value."""
    budget_watts: Annotated[Watts, Field(ge=1)]
    """What everything in the domain may draw together."""
    fixed_watts: Watts = 0
    """Draw of what Penstock does not place (switches, storage, losses) in this domain and all below it."""
    headroom_percent: Annotated[int, Field(ge=0, le=90)] = 0
    """Share of the budget that is never planned on."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.topologyLabel) || size(self.nodeSelector) == 0",
            field="topologyLabel",
            message="give nodeSelector or topologyLabel, not both",
            holds=lambda spec: spec.topology_label is None or not spec.node_selector,
        ),
        Rule(
            cel="self.fixedWatts <= self.budgetWatts * (100 - self.headroomPercent) / 100",
            field="fixedWatts",
            message="fixedWatts must leave something of budgetWatts less headroomPercent",
            holds=lambda spec: spec.fixed_watts <= spec.budget_watts * (100 - spec.headroom_percent) // 100,
        ),
    )


class PowerDomainStatus(Status):
    """Watts of the domain, counted three ways."""

    nodes: Count | None = None
    """Managed nodes that the domain feeds."""
    usable_watts: Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)] | None = None
    """Budget less headroom less fixed draw."""
    reserved_watts: Watts | None = None
    """Worst case of everything that runs or was asked for."""
    planned_watts: Watts | None = None
    """Mean draw expected under the plan."""
    measured_watts: Watts | None = None
    """What the meters say; absent while they say nothing."""
    state: Annotated[str, text(32)] | None = None
    """Within, Tight (the reserve nearly fills what may be used) or Over."""
