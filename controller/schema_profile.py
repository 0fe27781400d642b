"""Engine profiles: what one replica of a model can do, as tables whose lengths and order the server checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field

from controller.schema_base import (
    Degree,
    DnsLabel,
    GpuWatts,
    ModelName,
    Permille,
    Resource,
    Rule,
    Status,
    Tokens,
    immutable,
    text,
)
from solvers.correction import Phase
from solvers.engine import ProfileSource, is_concave


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
Microseconds = Annotated[int, Field(ge=1, le=1_000_000_000_000)]
Sequences = Annotated[int, Field(ge=2, le=1_000_000)]


def increasing(axis: str, of: Callable[[Any], tuple[int, ...]]) -> Rule:
    """Claim that every value of a list is above the one before."""
    return Rule(
        cel=f"self.{axis}.isSorted() && self.{axis}.all(x, self.{axis}.exists_one(y, y == x))",
        field=axis,
        message=f"{axis} must increase",
        holds=lambda part: increases(of(part)),
    )


def columns_grow(axis: str, table: str) -> str:
    """The claim, in CEL, that no row of a table over an axis lies below the one before; rows of a wrong width pass."""
    column = f"self.{table}.map(row, row[self.{axis}.indexOf(x)])"
    return f"!self.{table}.all(row, size(row) == size(self.{axis})) || self.{axis}.all(x, {column}.isSorted())"


def ratio_rules(axis: str, table: str, of: Callable[[Any], tuple[tuple[int, ...], Ratios]]) -> tuple[Rule, ...]:
    """Rules of a table of ratios over the prompt lengths."""
    at = "self.promptTokens.indexOf(x)"
    high, low = (f"double(row[{at}{step}]) * double(self.microseconds[{at}{step}])" for step in ("", " - 1"))
    return (
        increasing(axis, lambda curve: of(curve)[0]),
        Rule(
            cel=f"size(self.{table}) == size(self.{axis}) && "
            f"self.{table}.all(row, size(row) == size(self.promptTokens)) && ({columns_grow('promptTokens', table)})",
            field=table,
            message=f"give one row for each of {axis}, in it one value for each of promptTokens, "
            "not decreasing from row to row",
            holds=lambda curve: _is_table(of(curve)[1], len(of(curve)[0]), len(curve.prompt_tokens)),
        ),
        Rule(
            cel="size(self.promptTokens) != size(self.microseconds) || "
            f"!self.{table}.all(row, size(row) == size(self.promptTokens)) || "
            f"self.{table}.all(row, self.promptTokens.all(x, x == self.promptTokens[0] || {low} <= 1.001 * {high}))",
            field=table,
            message=f"{table} must leave times that do not decrease with the prompt; smooth the measurements",
            holds=lambda curve: all(_leaves_growing(row, curve.microseconds) for row in of(curve)[1]),
        ),
    )


def _is_table(rows: Ratios, count: int, width: int) -> bool:
    """Tell whether there are so many rows of one width, none below the one before."""
    return [len(row) for row in rows] == [width] * count and all(grows(line) for line in zip(*rows, strict=True))


def _leaves_growing(row: tuple[int, ...], microseconds: tuple[int, ...]) -> bool:
    times = [float(ratio) * time for ratio, time in zip(row, microseconds, strict=True)]
    return all(a <= 1.001 * b for a, b in pairwise(times))


def speed_rule(field: str, of: Callable[[Any], tuple[int, ...]]) -> Rule:
    """Claim one speed for each cap, up to 1000, none below the chord of its neighbours by more than rounding."""
    at = "self.capWatts.indexOf(x)"
    before, here, after = (f"self.{field}[{at}{step}]" for step in (" - 1", "", " + 1"))
    low, high = (f"self.capWatts[{at}{step}]" for step in (" - 1", " + 1"))
    last = "self.capWatts[size(self.capWatts) - 1]"
    return Rule(
        cel=f"size(self.{field}) == size(self.capWatts) && self.{field}.isSorted() && "
        f"(size(self.capWatts) == 0 || self.{field}[size(self.capWatts) - 1] == 1000) && "
        f"self.capWatts.all(x, x == self.capWatts[0] || x == {last} || "
        f"({here} - {before} + 1) * ({high} - {low}) >= ({after} - {before}) * (x - {low}))",
        field=field,
        message="give one value for each of capWatts, not decreasing, concave, the last one 1000",
        holds=lambda power: is_speed(of(power), power.cap_watts),
    )


class PrefillCurve(Resource):
    """Time to prefill one prompt on an otherwise idle replica."""

    prompt_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64)]
    """Prompt lengths, increasing."""
    microseconds: Annotated[tuple[Microseconds, ...], Field(min_length=1, max_length=64)]
    """Time for each prompt length, not decreasing."""
    cached_tokens: Annotated[tuple[Tokens, ...], Field(max_length=16)] = ()
    """Cached prefixes behind which prompts were measured, increasing; empty when none were."""
    cached_permille: Annotated[tuple[RatioRow, ...], Field(max_length=16)] = ()
    """Time behind each prefix, a row for each of cachedTokens, in thousandths of microseconds; at least 1000."""
    batches: Annotated[tuple[Sequences, ...], Field(max_length=16)] = ()
    """Numbers of equal prompts that were computed together, above 1 and increasing; empty when none were."""
    batch_permille: Annotated[tuple[RatioRow, ...], Field(max_length=16)] = ()
    """Time of each such batch, a row for each of batches, in thousandths of microseconds; at least 1000."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="size(self.promptTokens) == size(self.microseconds)",
            field="microseconds",
            message="give one time for each of promptTokens",
            holds=lambda curve: len(curve.prompt_tokens) == len(curve.microseconds),
        ),
        increasing("promptTokens", lambda curve: curve.prompt_tokens),
        Rule(
            cel="self.microseconds.isSorted()",
            field="microseconds",
            message="microseconds must not decrease with the prompt; smooth the measurements",
            holds=lambda curve: grows(curve.microseconds),
        ),
        *ratio_rules("cachedTokens", "cachedPermille", lambda curve: (curve.cached_tokens, curve.cached_permille)),
        *ratio_rules("batches", "batchPermille", lambda curve: (curve.batches, curve.batch_permille)),
        Rule(
            cel="size(self.batchPermille) != size(self.batches) || "
            "self.batches.all(x, self.batchPermille[self.batches.indexOf(x)].all(y, y <= x * 1000))",
            field="batchPermille",
            message="no batch may take longer than its prompts one after another; leave out what is slower",
            holds=lambda curve: all(
                max(row) <= count * 1000 for count, row in zip(curve.batches, curve.batch_permille, strict=True)
            ),
        ),
    )


StepRow = Annotated[tuple[Microseconds, ...], Field(min_length=1, max_length=64)]


class DecodeTable(Resource):
    """Time of one decode step over batch and context."""

    batches: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64)]
    """Sequences in the batch, increasing: the table's rows."""
    context_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64)]
    """Mean context of a sequence, increasing: the table's columns."""
    step_microseconds: Annotated[tuple[StepRow, ...], Field(min_length=1, max_length=64)]
    """Time of one step, a row for each batch, a column for each context; not decreasing along either."""

    rules: ClassVar[tuple[Rule, ...]] = (
        increasing("batches", lambda table: table.batches),
        increasing("contextTokens", lambda table: table.context_tokens),
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
            cel="self.stepMicroseconds.all(row, row.isSorted()) && "
            f"({columns_grow('contextTokens', 'stepMicroseconds')})",
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
        increasing("capWatts", lambda power: power.cap_watts),
        speed_rule("prefillSpeedPermille", lambda power: power.prefill_speed_permille),
        speed_rule("decodeSpeedPermille", lambda power: power.decode_speed_permille),
        Rule(
            cel="self.idleWatts <= self.prefillWatts && self.decodeWatts.all(x, self.idleWatts <= x)",
            field="idleWatts",
            message="idleWatts must not exceed prefillWatts or any of decodeWatts; measure all of them in one way",
            holds=lambda power: power.idle_watts <= min(power.prefill_watts, *power.decode_watts),
        ),
        Rule(
            cel="size(self.capWatts) == 0 || self.idleWatts < self.capWatts[0]",
            field="capWatts",
            message="capWatts must lie above idleWatts; leave out caps at which nothing runs",
            holds=lambda power: power.idle_watts < min(power.cap_watts, default=math.inf),
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
    kv_bytes_per_token: Annotated[int, Field(ge=1, le=1_000_000_000_000)]
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
    """Tell whether there is one for each cap, rising to 1000, and concave."""
    if len(permille) != len(caps) or not grows(permille) or permille[-1:] not in ((), (1000,)):
        return False
    return is_concave(caps, [value / 1000 for value in permille])


def columns(table: DecodeTable) -> tuple[tuple[int, ...], ...]:
    """Turn the decode table: one tuple for each context; ragged tables were refused by the rule before."""
    return tuple(zip(*table.step_microseconds, strict=True))
