"""Resources that say what exists: GPU classes, power domains, engine profiles."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field

from controller.schema_base import (
    LIST_SET,
    Amount,
    Count,
    Degree,
    DnsLabel,
    DnsName,
    GpuWatts,
    LabelKey,
    ModelName,
    Permille,
    QualifiedName,
    Resource,
    Rule,
    Selector,
    Status,
    Tokens,
    Watts,
    immutable,
    text,
)
from solvers.correction import Phase
from solvers.engine import ProfileSource, is_concave


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


class EngineConfigSpec(Resource):
    """How one replica is started: engine, variant and parallel degrees."""

    engine: DnsLabel = "vllm"
    """Engine, as vllm, sglang or trtllm."""
    variant: Annotated[str, text(32, pattern=r"^([a-z0-9][a-z0-9.-]*)?$")] = ""
    """Precision or build that changes the curves, as fp8."""
    tensor_parallel: Degree = 1
    """GPUs that share each layer."""
    pipeline_parallel: Degree = 1
    """Stages that share the layers."""
    expert_parallel: Degree = 1
    """GPUs that share the experts; they are among the replica's own, so this does not multiply."""
    data_parallel: Degree = 1
    """Attention copies inside the replica."""


Ratios = tuple[tuple[int, ...], ...]
RatioRow = Annotated[tuple[Annotated[int, Field(ge=1000, le=1_000_000_000)], ...], Field(min_length=1, max_length=64)]


def ratio_rules(axis: str, table: str, of: Callable[[Any], tuple[tuple[int, ...], Ratios]]) -> tuple[Rule, ...]:
    """Rules of a table of ratios over the prompt lengths."""
    return (
        Rule(
            cel=f"self.{axis}.isSorted() && self.{axis}.all(x, self.{axis}.exists_one(y, y == x))",
            field=axis,
            message=f"{axis} must increase",
            holds=lambda curve: increases(of(curve)[0]),
        ),
        Rule(
            cel=f"size(self.{table}) == size(self.{axis}) && "
            f"self.{table}.all(row, size(row) == size(self.promptTokens))",
            field=table,
            message=f"give one row for each of {axis}, in it one value for each of promptTokens, "
            "not decreasing from row to row",
            holds=lambda curve: _is_table(of(curve)[1], len(of(curve)[0]), len(curve.prompt_tokens)),
        ),
    )


def _is_table(rows: Ratios, count: int, width: int) -> bool:
    """Tell whether there are so many rows of one width, none below the one before, which the server does not check."""
    return [len(row) for row in rows] == [width] * count and all(grows(line) for line in zip(*rows, strict=True))


class PrefillCurve(Resource):
    """Time to prefill one prompt on an otherwise idle replica."""

    prompt_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64)]
    """Prompt lengths, increasing."""
    microseconds: Annotated[tuple[Amount, ...], Field(min_length=1, max_length=64)]
    """Time for each prompt length, not decreasing."""
    cached_tokens: Annotated[tuple[Tokens, ...], Field(max_length=16)] = ()
    """Cached prefixes behind which prompts were measured, increasing; empty when none were."""
    cached_permille: Annotated[tuple[RatioRow, ...], Field(max_length=16)] = ()
    """Time behind each prefix, a row for each of cachedTokens, in thousandths of microseconds; at least 1000."""
    batches: Annotated[tuple[Tokens, ...], Field(max_length=16)] = ()
    """Numbers of equal prompts that were computed together, above 1 and increasing; empty when none were."""
    batch_permille: Annotated[tuple[RatioRow, ...], Field(max_length=16)] = ()
    """Time of each such batch, a row for each of batches, in thousandths of microseconds; at least 1000."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *ratio_rules("cachedTokens", "cachedPermille", lambda curve: (curve.cached_tokens, curve.cached_permille)),
        *ratio_rules("batches", "batchPermille", lambda curve: (curve.batches, curve.batch_permille)),
        Rule(
            cel="size(self.promptTokens) == size(self.microseconds)",
            field="microseconds",
            message="give one time for each of promptTokens",
            holds=lambda curve: len(curve.prompt_tokens) == len(curve.microseconds),
        ),
        Rule(
            cel="self.promptTokens.isSorted() && self.promptTokens.all(x, self.promptTokens.exists_one(y, y == x))",
            field="promptTokens",
            message="promptTokens must increase",
            holds=lambda curve: increases(curve.prompt_tokens),
        ),
        Rule(
            cel="self.microseconds.isSorted()",
            field="microseconds",
            message="microseconds must not decrease with the prompt; smooth the measurements",
            holds=lambda curve: grows(curve.microseconds),
        ),
    )


StepRow = Annotated[tuple[Amount, ...], Field(min_length=1, max_length=64)]


class DecodeTable(Resource):
    """Time of one decode step over batch and context."""

    batches: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64)]
    """Sequences in the batch, increasing: the table's rows."""
    context_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64)]
    """Mean context of a sequence, increasing: the table's columns."""
    step_microseconds: Annotated[tuple[StepRow, ...], Field(min_length=1, max_length=64)]
    """Time of one step, a row for each batch, a column for each context; not decreasing along either."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.batches.isSorted() && self.batches.all(x, self.batches.exists_one(y, y == x))",
            field="batches",
            message="batches must increase",
            holds=lambda table: increases(table.batches),
        ),
        Rule(
            cel="self.contextTokens.isSorted() && self.contextTokens.all(x, self.contextTokens.exists_one(y, y == x))",
            field="contextTokens",
            message="contextTokens must increase",
            holds=lambda table: increases(table.context_tokens),
        ),
        Rule(
            cel="size(self.stepMicroseconds) == size(self.batches) && "
            "self.stepMicroseconds.all(row, size(row) == size(self.contextTokens))",
            field="stepMicroseconds",
            message="give one row for each of batches and in it one time for each of contextTokens",
            holds=lambda table: (
                [len(row) for row in table.step_microseconds] == [len(table.context_tokens)] * len(table.batches)
            ),
        ),
        Rule(
            # The server compares the first column only; the others are compared when the profile is read.
            cel="self.stepMicroseconds.all(row, row.isSorted()) && self.stepMicroseconds.map(row, row[0]).isSorted()",
            field="stepMicroseconds",
            message="stepMicroseconds must not decrease with context or batch; smooth the measurements",
            holds=lambda table: all(grows(line) for line in (*table.step_microseconds, *columns(table))),
        ),
    )


class ProfilePower(Resource):
    """Mean draw of one GPU of the replica."""

    idle_watts: GpuWatts
    """While nothing runs."""
    prefill_watts: GpuWatts
    """While it prefills."""
    decode_watts: Annotated[tuple[GpuWatts, ...], Field(min_length=1, max_length=64)]
    """While it decodes, one value for each of decode.batches."""
    cap_watts: Annotated[tuple[GpuWatts, ...], Field(max_length=64)] = ()
    """Power caps of one GPU at which the speed is known, increasing; empty when it is known under none."""
    prefill_speed_permille: Annotated[tuple[Permille, ...], Field(max_length=64)] = ()
    """Speed of prefill at each cap, 1000 for full speed at the last; what a watt brings must not grow with the cap."""
    decode_speed_permille: Annotated[tuple[Permille, ...], Field(max_length=64)] = ()
    """Speed of decode steps at each cap, in the same way."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.capWatts.isSorted() && self.capWatts.all(x, self.capWatts.exists_one(y, y == x))",
            field="capWatts",
            message="capWatts must increase",
            holds=lambda power: increases(power.cap_watts),
        ),
        Rule(
            cel="size(self.prefillSpeedPermille) == size(self.capWatts) && self.prefillSpeedPermille.isSorted() && "
            "(size(self.capWatts) == 0 || self.prefillSpeedPermille[size(self.capWatts) - 1] == 1000)",
            field="prefillSpeedPermille",
            message="give one value for each of capWatts, not decreasing, concave, the last one 1000",
            holds=lambda power: is_speed(power.prefill_speed_permille, power.cap_watts),
        ),
        Rule(
            cel="size(self.decodeSpeedPermille) == size(self.capWatts) && self.decodeSpeedPermille.isSorted() && "
            "(size(self.capWatts) == 0 || self.decodeSpeedPermille[size(self.capWatts) - 1] == 1000)",
            field="decodeSpeedPermille",
            message="give one value for each of capWatts, not decreasing, concave, the last one 1000",
            holds=lambda power: is_speed(power.decode_speed_permille, power.cap_watts),
        ),
    )


class EngineProfileSpec(Resource):
    """Curves of one replica for (model, GPU class, engine configuration), with where they came from."""

    model: ModelName
    """Model as ServedModels name it."""
    gpu_class: DnsLabel
    """Name of the GpuClass."""
    config: EngineConfigSpec = Field(default_factory=EngineConfigSpec)
    """Engine configuration of the replica."""
    source: ProfileSource
    """Measured on hardware, Silicon for kernel tables, Roofline for first principles."""
    source_detail: Annotated[str, text(512)] = ""
    """Hardware, versions, date, sample size, smoothing."""
    prefill: PrefillCurve
    """Prefill time over prompt tokens."""
    decode: DecodeTable
    """Decode step time over batch and context."""
    kv_capacity_tokens: Annotated[int, Field(ge=1, le=10_000_000_000)]
    """Tokens whose keys and values fit in the replica beside the weights."""
    kv_bytes_per_token: Amount
    """Bytes that move to a decode replica for each prompt token."""
    kv_compatibility_group: Annotated[str, text(63)] = ""
    """How keys and values are laid out (engine version, attention backend, type): prefill and decode pair inside one
    group only. Empty for the group that the ServedModel names."""
    transfer_bytes_per_second: Annotated[int, Field(ge=1, le=100_000_000_000_000)]
    """Bandwidth for keys and values from a prefill replica to a decode replica."""
    prefill_chunk_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """Prompt tokens that a mixed replica computes beside one decode step."""
    power: ProfilePower
    """Mean draw of one GPU of the replica."""
    cold_start_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """From pod start to Ready."""

    rules: ClassVar[tuple[Rule, ...]] = (
        immutable("model", because="it is part of what the profile is for; make another EngineProfile"),
        immutable("gpuClass", because="it is part of what the profile is for; make another EngineProfile"),
        immutable("config", because="it is part of what the profile is for; make another EngineProfile"),
        Rule(
            cel="size(self.power.decodeWatts) == size(self.decode.batches)",
            field="power.decodeWatts",
            message="give one value for each of decode.batches",
            holds=lambda spec: len(spec.power.decode_watts) == len(spec.decode.batches),
        ),
    )


FactorPermille = Annotated[int, Field(ge=100, le=10_000)]
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
Time = Annotated[str, text(20, pattern=TIME)]


class ProfileCorrection(Resource):
    """What running services say of one phase: observed against this profile, factors in thousandths."""

    phase: Phase
    """What was compared: prefill and decode times, throughput at full load, watts."""
    likely_permille: FactorPermille
    """The middle."""
    low_permille: FactorPermille
    """Likely not below."""
    high_permille: FactorPermille
    """Likely not above."""
    planned_permille: FactorPermille | None = None
    """What planning uses while FleetPolicy says spec.modes.correction: Act; absent while too little is known."""
    since: Time | None = None
    """Since when that is so."""
    observations_milli: Annotated[int, Field(ge=0, le=1_000_000_000)]
    """Weight of the observations, in thousandths of one; it halves with age."""
    mean_micro: Annotated[int, Field(ge=-3_000_000, le=3_000_000)]
    """Mean of the logarithm of observed against predicted, in millionths."""
    squares_micro: Annotated[int, Field(ge=0, le=1_000_000_000_000)]
    """Squares about that mean, in millionths."""
    observed_at: Time
    """When the last observation was made."""
    profile_generation: Annotated[int, Field(ge=0)]
    """Generation of the spec that was compared; of another one, nothing is known."""


class EngineProfileStatus(Status):
    """Whether the profile is in use, and what running services say of it."""

    config: Annotated[str, text(63)] | None = None
    """Short name of the engine configuration, as tp2."""
    corrections: Annotated[tuple[ProfileCorrection, ...], Field(max_length=8)] = ()
    """How far it is off, by phase."""


def increases(values: tuple[int, ...]) -> bool:
    """Tell whether every value is above the one before."""
    return all(a < b for a, b in pairwise(values))


def grows(values: tuple[int, ...]) -> bool:
    """Tell whether no value is below the one before."""
    return all(a <= b for a, b in pairwise(values))


def is_speed(permille: tuple[int, ...], caps: tuple[int, ...]) -> bool:
    """Tell whether there is one for each cap, rising to 1000, and concave, which the server does not check."""
    if len(permille) != len(caps) or not grows(permille) or permille[-1:] not in ((), (1000,)):
        return False
    return is_concave(caps, [value / 1000 for value in permille])


def columns(table: DecodeTable) -> tuple[tuple[int, ...], ...]:
    """Turn the decode table: one tuple for each context; ragged tables were refused by the rule before."""
    return tuple(zip(*table.step_microseconds, strict=True))
