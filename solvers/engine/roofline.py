"""An ``EngineProfile`` from first principles, when nothing was measured.

Every step costs the larger of its arithmetic and its memory traffic, plus all-reduces and a fixed launch cost. The
efficiencies are round figures that such kernels reach in practice; expect errors of 20-40 %, and measure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, check_profile
from solvers.errors import InvalidInput

PROMPT_GRID = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCH_GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT_GRID = (256, 1024, 4096, 8192, 16384, 32768)

COMPUTE_EFFICIENCY = 0.6  # of the dense peak; large matrix products reach 0.55-0.75 in public kernel tables
MEMORY_EFFICIENCY = 0.8  # of the data sheet's bandwidth; the silicon tables' own correction factor is 0.8
LINK_EFFICIENCY = 0.7  # of the link's one-way rate, for rings over 2-8 GPUs
NETWORK_EFFICIENCY = 0.7  # of the network's rate, for KV blocks
ALL_REDUCE_LATENCY_S = 10e-6  # one small all-reduce inside a node
CROSS_ALL_REDUCE_LATENCY_S = 30e-6  # one between islands: a few hops over NICs and switches, each way
STEP_OVERHEAD_S = 0.002  # launch, sampling and scheduling of one engine step

MEMORY_USE_RATIO = 0.9  # share of the memory that an engine takes by default
RUNTIME_BYTES = 3_500_000_000  # activations, graphs and communication buffers; the silicon tables reserve as much

PREFILL_POWER_RATIO = 0.72  # B200 tables at a 1000 W limit: prefill attention 710 W, experts 718 W
DECODE_POWER_RATIO = 0.35  # memory-bound decode draws 0.2-0.55 of the limit; B200 decode attention 435 W of 1000 W
DECODE_POWER_GROWTH_RATIO = 0.20  # added on the way to the largest batch, by the logarithm of the batch

CAP_RATIOS = (0.4, 0.55, 0.7, 0.85, 1.0)  # breakpoints, of the highest cap
PREFILL_CAP_EXPONENT = 0.5  # dynamic power grows with clock × voltage², and voltage falls with about half of the clock
DECODE_FREE_CAP_RATIO = (
    0.55  # memory-bound steps draw 137-300 W of a 700 W H200 (arXiv 2605.11999): higher caps are idle
)
DECODE_CAP_EXPONENT = 0.35  # below, the memory's clock falls last, so speed falls slower than for prefill

CHUNK_BUDGET_S = 0.04  # a chunk may stretch a decode step by so much: 50 ms ITL less a usual step
CHUNK_SIZES = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of one weight and of one cached value; arithmetic stays in bf16 where only weights are small."""

    weight_bytes: float
    kv_bytes: int
    is_weight_only: bool = False


BF16 = Precision(weight_bytes=2.0, kv_bytes=2)
PRECISIONS = {
    "fp8": Precision(weight_bytes=1.0, kv_bytes=1),
    "fp4": Precision(weight_bytes=0.5, kv_bytes=1),
    "int4": Precision(weight_bytes=0.5, kv_bytes=2, is_weight_only=True),
}
"""By the word in an engine configuration's variant."""


def precision_of(config: EngineConfig) -> Precision:
    """Precision that a configuration's variant names; bf16 when it names none."""
    named = [precision for name, precision in PRECISIONS.items() if name in re.split("[-.]", config.variant)]
    return named[0] if named else BF16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What first principles need to know of a model.

    Attributes
    ----------
    parameters, active_parameters : float
        All of them, and those that one token passes through; equal for a dense model.
    attention_width : int
        Query heads × head size.
    kv_values_per_token : int
        Numbers cached per token over all layers, keys and values together.
    experts, experts_per_token : int
        1 and 1 for a dense model.
    """

    name: str
    parameters: float
    active_parameters: float
    layers: int
    hidden_size: int
    attention_width: int
    kv_values_per_token: int
    experts: int = 1
    experts_per_token: int = 1

    def touched_parameters(self, tokens: float) -> float:
        """Parameters read from memory for a step of ``tokens``: the experts that at least one token picks."""
        if self.experts <= self.experts_per_token:
            return self.parameters
        per_expert = (self.parameters - self.active_parameters) / (self.experts - self.experts_per_token)
        shared = self.parameters - self.experts * per_expert
        picked = 1.0 - math.pow(1.0 - self.experts_per_token / self.experts, tokens)
        return shared + self.experts * per_expert * picked


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What first principles need to know of a GPU class; peaks as in its data sheet, dense.

    ``link_bytes_per_s`` joins the ``link_island_gpus`` GPUs of one island, one way; ``network_bytes_per_s`` is the
    share of one GPU in the network between islands and replicas.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float | None
    link_bytes_per_s: float
    network_bytes_per_s: float
    idle_watts: float
    max_watts: float
    link_island_gpus: int = 8


def roofline_profile(
    model: ModelFacts,
    gpu: GpuFacts,
    config: EngineConfig,
    *,
    chunk_tokens: int | None = None,
    cold_start_s: float = 120.0,
) -> EngineProfile:
    """Derive the curves of one replica from the facts of its model and GPUs.

    Numbers are bf16 unless the variant says fp8, fp4 (fp4 weights with fp8 arithmetic and KV) or int4 (weights only).
    Latency falls with tensor parallelism; pipeline stages only add memory; data-parallel copies split a decode batch.

    Raises
    ------
    InvalidInput
        When the weights do not fit, or the GPU has no fp8 arithmetic.
    """
    maker = _Roofline(model=model, gpu=gpu, config=config)
    longest = maker.kv_capacity_tokens()
    prompts = within(PROMPT_GRID, longest)
    prefill = tuple(round(maker.prefill_s(tokens), 6) for tokens in prompts)
    idle, prefill_watts, decode_watts = draw_watts(gpu, BATCH_GRID)
    contexts = within(CONTEXT_GRID, longest)
    profile = EngineProfile(
        key=ProfileKey(model=model.name, gpu_class=gpu.name, config=config),
        source=ProfileSource.ROOFLINE,
        source_detail=f"first principles: compute {COMPUTE_EFFICIENCY} and memory {MEMORY_EFFICIENCY} of peak",
        prefill_tokens=prompts,
        prefill_s=prefill,
        decode_batches=BATCH_GRID,
        decode_contexts=contexts,
        decode_step_s=tuple(tuple(round(maker.decode_s(b, c), 6) for c in contexts) for b in BATCH_GRID),
        kv_capacity_tokens=longest,
        kv_bytes_per_token=model.kv_values_per_token * maker.precision.kv_bytes,
        transfer_bytes_per_s=transfer_bytes_per_s(gpu, config),
        prefill_chunk_tokens=chunk_tokens or chunk_for(prompts, prefill),
        idle_watts_per_gpu=idle,
        prefill_watts_per_gpu=prefill_watts,
        decode_watts_per_gpu=decode_watts,
        cold_start_s=cold_start_s,
        **cap_curves(gpu.idle_watts, gpu.max_watts),
    )
    check_profile(profile)
    return profile


def within(grid: Sequence[int], longest: int) -> tuple[int, ...]:
    """Knots of a grid up to ``longest``, and at least the first two."""
    return tuple(tokens for index, tokens in enumerate(grid) if tokens <= longest or index < 2)


def transfer_bytes_per_s(gpu: GpuFacts, config: EngineConfig) -> float:
    """KV bandwidth out of one replica: each tensor-parallel rank sends its own shard."""
    return float(round(NETWORK_EFFICIENCY * gpu.network_bytes_per_s * config.tensor_parallel))


def draw_watts(gpu: GpuFacts, batches: Sequence[int]) -> tuple[float, float, tuple[float, ...]]:
    """Mean draw of one GPU: idle, while it prefills, and while it decodes each of ``batches``."""
    growth = DECODE_POWER_GROWTH_RATIO / math.log2(max(batches[-1], 2))
    decode = tuple(
        max(gpu.idle_watts, round(gpu.max_watts * (DECODE_POWER_RATIO + growth * math.log2(batch)), 0))
        for batch in batches
    )
    return gpu.idle_watts, max(gpu.idle_watts, round(gpu.max_watts * PREFILL_POWER_RATIO, 0)), decode


class CapCurves(TypedDict):
    """Fields of an ``EngineProfile`` that say what a power cap costs."""

    cap_watts_per_gpu: tuple[float, ...]
    prefill_speed_ratio: tuple[float, ...]
    decode_speed_ratio: tuple[float, ...]


def cap_curves(idle_watts: float, max_watts: float) -> CapCurves:
    r"""Speed under a power cap $P$ when nothing was measured.

    .. math:: v_\mathrm{prefill} = \left(\frac{P - P_0}{P_1 - P_0}\right)^{0.5}, \qquad
              v_\mathrm{decode} = \min\left(1, \frac{P - P_0}{0.55 P_1 - P_0}\right)^{0.35}

    with the idle draw $P_0$ and the highest cap $P_1$. Prefill is bound by arithmetic: what is left above idle sets
    its clock. Decode waits for memory and draws about half of nameplate, so caps above that change nothing. Ratios
    are rounded down to thousandths.
    """
    caps = tuple(float(round(ratio * max_watts)) for ratio in CAP_RATIOS)
    above = [cap - idle_watts for cap in caps]
    free = DECODE_FREE_CAP_RATIO * max_watts - idle_watts
    return CapCurves(
        cap_watts_per_gpu=caps,
        prefill_speed_ratio=tuple(_thousandths((w / above[-1]) ** PREFILL_CAP_EXPONENT) for w in above),
        decode_speed_ratio=tuple(_thousandths(min(1.0, w / free) ** DECODE_CAP_EXPONENT) for w in above),
    )


def _thousandths(ratio: float) -> float:
    return math.floor(ratio * 1000.0 + 1e-9) / 1000.0


def chunk_for(prompt_tokens: Sequence[int], prefill_s: Sequence[float]) -> int:
    """Largest usual chunk whose prefill stays within the budget; the smallest one when none does."""
    fits = [size for size, time in zip(prompt_tokens, prefill_s, strict=True) if time <= CHUNK_BUDGET_S]
    return max((size for size in CHUNK_SIZES if size in fits), default=CHUNK_SIZES[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roofline:
    model: ModelFacts
    gpu: GpuFacts
    config: EngineConfig

    @property
    def precision(self) -> Precision:
        return precision_of(self.config)

    @property
    def flops_per_s(self) -> float:
        precision = self.precision
        is_plain = precision is BF16 or precision.is_weight_only
        peak = self.gpu.bf16_flops_per_s if is_plain else self.gpu.fp8_flops_per_s
        if peak is None:
            raise InvalidInput(
                f"profile {self.model.name} on {self.gpu.name}",
                "precision",
                f"{self.gpu.name} has no fp8 arithmetic",
                "use bf16",
            )
        return COMPUTE_EFFICIENCY * peak * self.config.tensor_parallel

    def kv_capacity_tokens(self) -> int:
        """Tokens that fit beside the weights; every data-parallel copy holds the whole model."""
        ranks = self.config.tensor_parallel * self.config.pipeline_parallel
        room = ranks * (MEMORY_USE_RATIO * self.gpu.memory_bytes - RUNTIME_BYTES)
        weights = self.model.parameters * self.precision.weight_bytes
        tokens = int((room - weights) / (self.model.kv_values_per_token * self.precision.kv_bytes))
        if tokens < PROMPT_GRID[0]:
            raise InvalidInput(
                f"profile {self.model.name} on {self.gpu.name}/{self.config.label}",
                "",
                f"weights take {weights / 1e9:,.0f} GB, {ranks} GPUs offer {room / 1e9:,.0f} GB",
                "use more GPUs per replica, a smaller precision or a larger GPU",
            )
        return tokens * self.config.data_parallel

    def prefill_s(self, tokens: int) -> float:
        """Linear layers, causal attention (half of the square), one pass over the weights, all-reduces."""
        flops = 2.0 * self.model.active_parameters * tokens
        flops += 2.0 * self.model.layers * self.model.attention_width * tokens**2
        return self._step_s(flops, self._weight_bytes(tokens), tokens)

    def decode_s(self, batch: int, context: int) -> float:
        """Each step reads the touched weights once and every cached key and value once."""
        rows = batch / self.config.data_parallel
        flops = 2.0 * self.model.active_parameters * rows
        flops += 4.0 * self.model.layers * self.model.attention_width * rows * context
        cached = rows * context * self.model.kv_values_per_token * self.precision.kv_bytes
        return self._step_s(flops, self._weight_bytes(rows) + cached, rows)

    def _weight_bytes(self, tokens: float) -> float:
        return self.model.touched_parameters(max(tokens, 1.0)) * self.precision.weight_bytes

    def _step_s(self, flops: float, moved_bytes: float, tokens: float) -> float:
        bandwidth = MEMORY_EFFICIENCY * self.gpu.memory_bytes_per_s * self.config.tensor_parallel
        return STEP_OVERHEAD_S + max(flops / self.flops_per_s, moved_bytes / bandwidth) + self._all_reduce_s(tokens)

    def _all_reduce_s(self, tokens: float) -> float:
        """Two all-reduces a layer; a ring of n moves 2(n-1)/n of the activations over every link.

        Ranks of several islands reduce inside theirs first, each then its share across over its part of the network.
        """
        ranks = self.config.tensor_parallel
        inside = min(ranks, self.gpu.link_island_gpus)
        outside = math.ceil(ranks / inside)
        activations = tokens * self.model.hidden_size * 2.0
        linked = 2.0 * (inside - 1) / inside * activations / (LINK_EFFICIENCY * self.gpu.link_bytes_per_s)
        share = activations / inside
        crossed = 2.0 * (outside - 1) / outside * share / (NETWORK_EFFICIENCY * self.gpu.network_bytes_per_s)
        latency = (inside > 1) * ALL_REDUCE_LATENCY_S + (outside > 1) * CROSS_ALL_REDUCE_LATENCY_S
        return 2.0 * self.model.layers * (latency + linked + crossed)
