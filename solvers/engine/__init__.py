"""What one replica can do: its configuration and its measured or derived curves."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from solvers.errors import InvalidInput
from solvers.hashing import HashedOnce

_LABEL = re.compile(
    r"tp(?P<tp>\d+)(-pp(?P<pp>\d+))?(-ep(?P<ep>\d+))?(-dp(?P<dp>\d+))?(-(?P<variant>[a-z0-9][a-z0-9.-]*))?"
)


LEAST_S = 1e-9  # of anything that a GPU does; less is a wrong unit, or no time at all
SPEED_ROUNDING = 1e-3
"""Resources hold speed ratios in thousandths; a concave curve rounded to them still passes."""


class Role(StrEnum):
    """What a replica does: prompts, output tokens, or both (chunked prefill)."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class EngineConfig(HashedOnce):
    """How one replica is started: the engine, a variant of it, and its parallel degrees."""

    __hash__ = HashedOnce.__hash__

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1
    engine: str = "vllm"
    variant: str = ""

    @property
    def gpus(self) -> int:
        """GPUs that start together; expert parallelism spans the same GPUs, so it does not multiply."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def label(self) -> str:
        """Short and stable, fit for a Kubernetes name: ``tp2``, ``tp4-pp2``, ``tp8-ep8-fp8``."""
        degrees = (
            ("tp", self.tensor_parallel, True),
            ("pp", self.pipeline_parallel, False),
            ("ep", self.expert_parallel, False),
            ("dp", self.data_parallel, False),
        )
        parts = [f"{name}{degree}" for name, degree, always in degrees if always or degree > 1]
        return "-".join([*parts, self.variant] if self.variant else parts)

    @classmethod
    def from_label(cls, label: str, engine: str = "vllm") -> EngineConfig:
        """Read a label back; ``EngineConfig.from_label(config.label, config.engine) == config``.

        Raises
        ------
        InvalidInput
            When the label does not start with a tensor-parallel degree.
        """
        found = _LABEL.fullmatch(label)
        if found is None:
            raise InvalidInput(label, "", "is no engine configuration", "write it like tp2, tp8-ep8 or tp4-pp2-fp8")
        degree = {name: int(found[name] or 1) for name in ("tp", "pp", "ep", "dp")}
        return cls(
            tensor_parallel=degree["tp"],
            pipeline_parallel=degree["pp"],
            expert_parallel=degree["ep"],
            data_parallel=degree["dp"],
            engine=engine,
            variant=found["variant"] or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ProfileKey(HashedOnce):
    """What a profile is measured for."""

    __hash__ = HashedOnce.__hash__

    model: str
    gpu_class: str
    config: EngineConfig


class ProfileSource(StrEnum):
    """Where the numbers came from, best first."""

    MEASURED = "Measured"
    SILICON = "Silicon"
    ROOFLINE = "Roofline"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile(HashedOnce):
    """Curves of one replica for (model, GPU class, engine config).

    Attributes
    ----------
    prefill_tokens, prefill_s : (P,) int, (P,) float s
        Time to prefill one prompt of so many tokens on an otherwise idle replica; both increasing.
    decode_batches, decode_contexts : (B,) int, (C,) int
        Axes of the decode table: sequences in the batch, mean context tokens of a sequence.
    decode_step_s : (B, C) float s
        Time of one decode step; not decreasing along either axis.
    kv_capacity_tokens : int
        Tokens whose keys and values fit in the replica beside the weights.
    kv_bytes_per_token : int
        Bytes moved to a decode replica per prompt token.
    transfer_bytes_per_s : float
        KV bandwidth from one prefill replica to a decode replica.
    prefill_chunk_tokens : int
        Prompt tokens that a mixed replica computes beside one decode step (chunked prefill).
    idle_watts_per_gpu, prefill_watts_per_gpu : float
        Mean draw of one GPU when nothing runs, and while it prefills.
    decode_watts_per_gpu : (B,) float W
        Mean draw of one GPU while it decodes, at each of ``decode_batches``.
    cold_start_s : float
        From pod start to Ready.
    cap_watts_per_gpu : (M,) float W
        Caps of one GPU at which the speed is known, increasing. Empty when it is not known under any cap: then no cap
        below the class's highest may be chosen.
    prefill_cached_tokens, prefill_cached_ratio : (K,) int, (K, P) float
        Time of a prompt behind a cached prefix of so many tokens, against ``prefill_s`` of the same new tokens; at
        least 1. Empty where it was not measured: see ``solvers.engine.prefill``.
    prefill_batches, prefill_batch_ratio : (M,) int, (M, P) float
        Time of so many equal prompts computed together, against one; between 1 and their number. Empty likewise.
    prefill_speed_ratio, decode_speed_ratio : (M,) float, 0-1
        Speed of prefill and of decode steps at each cap against none; not decreasing, concave in watts, 1 at the last.
    corrections : tuple of (str, float)
        Phases and factors that running services taught and that are in the tables already: ``solvers.correction``.
    kv_compatibility_group : str
        How keys and values are laid out (attention backend, type): replicas pair with those of the same group only.
        Empty for the group that the service names.
    """

    __hash__ = HashedOnce.__hash__

    key: ProfileKey
    source: ProfileSource
    source_detail: str
    prefill_tokens: tuple[int, ...]
    prefill_s: tuple[float, ...]
    decode_batches: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    decode_step_s: tuple[tuple[float, ...], ...]
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    transfer_bytes_per_s: float
    prefill_chunk_tokens: int = 2048
    idle_watts_per_gpu: float
    prefill_watts_per_gpu: float
    decode_watts_per_gpu: tuple[float, ...]
    cold_start_s: float = 120.0
    cap_watts_per_gpu: tuple[float, ...] = ()
    prefill_speed_ratio: tuple[float, ...] = ()
    decode_speed_ratio: tuple[float, ...] = ()
    prefill_cached_tokens: tuple[int, ...] = ()
    prefill_cached_ratio: tuple[tuple[float, ...], ...] = ()
    prefill_batches: tuple[int, ...] = ()
    prefill_batch_ratio: tuple[tuple[float, ...], ...] = ()
    corrections: tuple[tuple[str, float], ...] = ()
    kv_compatibility_group: str = ""


def check_profile(profile: EngineProfile) -> None:
    """Hold a profile against what every look-up assumes.

    Raises
    ------
    InvalidInput
        Naming the first field whose length, order or sign is wrong.
    """
    subject = f"EngineProfile/{profile.key.model} on {profile.key.gpu_class}/{profile.key.config.label}"
    for field, problem in _faults(profile):
        raise InvalidInput(subject, field, problem, "correct the table, or smooth it before use")


def _faults(profile: EngineProfile) -> Iterator[tuple[str, str]]:
    """Say what is wrong, as (field, problem)."""
    axes = ("prefill_tokens", "decode_batches", "decode_contexts")
    for axis in axes:
        if not _grows(getattr(profile, axis), strictly=True):
            yield axis, "must hold at least one value, above 0 and increasing"
    yield from _table_faults(profile)
    amounts = ("kv_capacity_tokens", "kv_bytes_per_token", "transfer_bytes_per_s", "prefill_chunk_tokens")
    for field in amounts:
        if not getattr(profile, field) > 0:
            yield field, f"is {getattr(profile, field)}, must be above 0"
    if not math.isfinite(profile.kv_capacity_tokens):
        yield "kv_capacity_tokens", f"is {profile.kv_capacity_tokens}, must be a number of tokens"
    busy = (profile.prefill_watts_per_gpu, *profile.decode_watts_per_gpu)
    if not 0 <= profile.idle_watts_per_gpu <= min(busy):
        yield "idle_watts_per_gpu", f"is {profile.idle_watts_per_gpu}, must be between 0 and the busy draws {min(busy)}"
    if not profile.cold_start_s >= 0:
        yield "cold_start_s", f"is {profile.cold_start_s}, must not be negative"
    yield from _cap_faults(profile)
    if profile.prefill_cached_tokens or profile.prefill_cached_ratio or profile.prefill_batches:
        from solvers.engine.prefill import prefill_faults  # which imports this module

        yield from prefill_faults(profile)


def _table_faults(profile: EngineProfile) -> Iterator[tuple[str, str]]:
    rows, columns = len(profile.decode_batches), len(profile.decode_contexts)
    if len(profile.prefill_s) != len(profile.prefill_tokens):
        yield "prefill_s", f"has {len(profile.prefill_s)} values for {len(profile.prefill_tokens)} prompts"
    if not _grows(profile.prefill_s):
        yield "prefill_s", "must be above 0 and not decrease with the prompt"
    if [len(row) for row in profile.decode_step_s] != [columns] * rows:
        yield "decode_step_s", f"must have {rows} rows (batches) of {columns} values (contexts)"
    elif not all(_grows(line) for line in (*profile.decode_step_s, *zip(*profile.decode_step_s, strict=True))):
        yield "decode_step_s", "must be above 0 and not decrease with batch or context"
    fastest = [*profile.prefill_s[:1], *(step for row in profile.decode_step_s[:1] for step in row[:1])]
    if any(0.0 < seconds < LEAST_S for seconds in fastest):
        yield (
            "prefill_s",
            f"or decode_step_s starts at {min(fastest):g} s, no GPU does anything in less than {LEAST_S:g}",
        )
    if len(profile.decode_watts_per_gpu) != rows:
        yield "decode_watts_per_gpu", f"has {len(profile.decode_watts_per_gpu)} values for {rows} batches"


def _cap_faults(profile: EngineProfile) -> Iterator[tuple[str, str]]:
    caps = profile.cap_watts_per_gpu
    if caps and not (_grows(caps, strictly=True) and caps[0] > profile.idle_watts_per_gpu):
        yield "cap_watts_per_gpu", f"must increase, from above the idle draw of {profile.idle_watts_per_gpu} W"
    for field in ("prefill_speed_ratio", "decode_speed_ratio"):
        ratios = getattr(profile, field)
        if len(ratios) != len(caps):
            yield field, f"has {len(ratios)} values for {len(caps)} caps"
        elif caps and not (_grows(ratios) and ratios[-1] == 1.0):
            yield field, "must be above 0, not decrease with the cap, and end at 1"
        elif not is_concave(caps, ratios):
            yield field, "must be concave: a watt more may not bring more speed at a higher cap than at a lower one"


def is_concave(at: Sequence[float], values: Sequence[float]) -> bool:
    """Whether no value lies below the chord of its neighbours, but for rounding to thousandths."""
    triples = zip(range(len(at)), range(1, len(at)), range(2, len(at)), strict=False)
    return all(
        values[j] >= values[i] + (values[k] - values[i]) * (at[j] - at[i]) / (at[k] - at[i]) - SPEED_ROUNDING
        for i, j, k in triples
    )


def _grows(values: Sequence[float], *, strictly: bool = False) -> bool:
    if not values or not all(math.isfinite(value) for value in values) or values[0] <= 0:
        return False
    pairs = itertools.pairwise(values)
    return all(a < b for a, b in pairs) if strictly else all(a <= b for a, b in pairs)
